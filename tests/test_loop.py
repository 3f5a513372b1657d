from __future__ import annotations

import itertools
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from imagelab.setup.runtime import Interrupted, UserError
from imagelab.setup.settings import TrainingSettings
from imagelab.setup.terminal import told
from imagelab.training import loop as training
from imagelab.training.checkpoints import load_checkpoint
from imagelab.training.loop import Training, can_resume, kept_path, one_cycle, smooth


@dataclass(frozen=True)
class Config(TrainingSettings):
    epochs: int = 3
    batch_size: int = 64
    lr: float = 1e-2


def fit(
    config: Config, data, path: Path, stop_at: int | None = None, number=signal.SIGINT,
    spoil_from: float = float("inf"), rounds: list | None = None, **more,
):  # fmt: skip
    """Train a small network on noisy inputs; ask for an end during step `stop_at`, from step
    `spoil_from` on lose the loss in NaN."""
    torch.manual_seed(0)
    rounds = [] if rounds is None else rounds
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 2))
    adam = torch.optim.Adam(model.parameters(), lr=config.lr, fused=True)
    networks, optimizers = {"net": model}, {"adam": adam}
    training = Training(
        path, "test", config, data, networks=networks, optimizers=optimizers, ema="net", **more
    )
    if config.resume:
        training.load()
    with training:
        for _ in training.epochs():
            rounds.append(training.steps_done)
            for batch in training.batches():
                x = data.images[batch].float() / 255
                x = x + 0.1 * torch.randn(x.shape, generator=training.rng)
                loss = nn.functional.cross_entropy(model(x), data.labels[batch])
                loss = loss * float("nan") if training.steps_done >= spoil_from else loss
                adam.zero_grad()
                loss.backward()
                adam.step()
                training.log(loss=loss, progress=torch.tensor(training.progress))
                training.extra["sum"] = training.extra.get("sum", 0) + x.sum()
                if training.steps_done == stop_at:
                    signal.raise_signal(number)
    return training


def weights(training: Training) -> list[torch.Tensor]:
    return [*training.networks["net"].parameters(), *training.averaged.parameters()]


@pytest.mark.parametrize("stop_at", [1, 4, 5, 6, 11, 15])  # five steps an epoch
def test_stopped_and_resumed_ends_at_the_same_weights(stripes, tmp_path, stop_at):
    whole = fit(Config(), stripes, tmp_path / "whole.pth")
    path = tmp_path / "stopped.pth"
    when = "after the training" if stop_at == whole.total_steps else f"after {stop_at} of 15 steps"
    with pytest.raises(Interrupted, match=f"{when}.*--resume"):
        fit(Config(), stripes, path, stop_at)
    resumed = fit(Config(resume=True), stripes, path)
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(whole.curve("loss"), resumed.curve("loss"))
    assert torch.equal(whole.extra["sum"], resumed.extra["sum"])
    progress = torch.arange(1, 16) / 16  # inside (0, 1), whether interrupted or not
    assert torch.allclose(resumed.curve("progress"), progress)


def test_with_other_threads_it_goes_on_and_says_so_once(stripes, tmp_path, monkeypatch, capfd):
    """Their sums round otherwise, and the checkpoint names how many there were."""
    told.clear()
    path, here = tmp_path / "a.pth", torch.get_num_threads()

    def said(**more) -> str:
        capfd.readouterr()
        fit(Config(resume=True, **more), stripes, path)
        return capfd.readouterr().err

    fit(Config(epochs=1), stripes, path)
    assert torch.load(path, weights_only=True)["threads"] == here
    assert "Threads" not in said(epochs=1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: here + 3)
    sentence = f"Threads until here {here}, from here on {here + 3}: the weights may differ"
    assert said(epochs=1).count(sentence) == 1
    fit(Config(epochs=2), stripes, path)  # anew: nothing to say
    assert torch.load(path, weights_only=True)["threads"] == here + 3
    monkeypatch.undo()
    assert said(epochs=2).count("Threads until here") == 1  # another sentence
    monkeypatch.setattr(torch, "get_num_threads", lambda: here + 3)
    assert "Threads" not in said(epochs=3)  # said before, of another training of the same run

    saved = torch.load(path, weights_only=True)
    del saved["threads"]  # as older checkpoints are
    torch.save(saved, path)
    told.clear()
    assert "Threads" not in said(epochs=4)


def test_an_epoch_in_parts_ends_at_the_same_weights(stripes, tmp_path):
    """Five steps in two parts are three and two; each is saved, and a stopped one is resumed."""
    whole, rounds = fit(Config(epochs=2), stripes, tmp_path / "whole.pth"), []
    parts = fit(Config(epochs=2), stripes, tmp_path / "a.pth", rounds=rounds, parts=2)
    assert rounds == [0, 3, 5, 8]
    path = tmp_path / "b.pth"
    with pytest.raises(Interrupted, match="after 8 of 10"):
        fit(Config(epochs=2), stripes, path, stop_at=8, parts=2)
    rounds.clear()
    resumed = fit(Config(epochs=2, resume=True), stripes, path, rounds=rounds, parts=2)
    assert rounds == [8] and resumed.epochs_done == 2
    for other in (parts, resumed):
        assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(other), strict=True))


def test_numbered_copies_are_kept_beside_the_latest(stripes, tmp_path):
    """Each is the checkpoint of its epoch; the training itself ends as one that keeps none."""
    plain = fit(Config(epochs=5), stripes, tmp_path / "plain.pth")
    path, after = tmp_path / "kept" / "a.pth", {}
    kept = fit(Config(epochs=5, keep_every=2), stripes, path)
    names = ["a.pth", "a_epoch_0002.pth", "a_epoch_0004.pth"]
    assert sorted(p.name for p in path.parent.iterdir()) == names
    for epoch in (2, 4):
        fit(Config(epochs=epoch), stripes, tmp_path / "short.pth")
        after[epoch] = torch.load(tmp_path / "short.pth", weights_only=True)
        saved = load_checkpoint(kept_path(path, epoch), "test")
        assert (saved["epoch"], saved["step"]) == (epoch, 0)
        for name, values in after[epoch]["model"]["net"].items():
            assert torch.equal(saved["model"]["net"][name], values)
    assert all(torch.equal(a, b) for a, b in zip(weights(plain), weights(kept), strict=True))


def test_what_is_kept_may_change_on_resume(stripes, tmp_path):
    """A stopped run that is resumed with other copies ends at the same weights."""
    whole, path = fit(Config(epochs=4), stripes, tmp_path / "whole.pth"), tmp_path / "a.pth"
    with pytest.raises(Interrupted):
        fit(Config(epochs=4, keep_every=1), stripes, path, stop_at=8)
    assert kept_path(path, 1).is_file() and not kept_path(path, 2).exists()
    resumed = fit(Config(epochs=4, keep_every=3, resume=True), stripes, path)
    assert kept_path(path, 3).is_file() and not kept_path(path, 2).exists()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))


def test_an_epoch_cut_short_by_the_time_limit_is_not_kept(stripes, tmp_path, monkeypatch):
    now = itertools.count()
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(now)))
    cut = fit(Config(epochs=99, time_limit=40.0, keep_every=1), stripes, tmp_path / "a.pth")
    assert cut.step > 0  # within an epoch
    kept = sorted(tmp_path.glob("a_epoch_*"))
    assert kept == [kept_path(tmp_path / "a.pth", epoch + 1) for epoch in range(cut.epoch)]
    assert all(load_checkpoint(path, "test")["step"] == 0 for path in kept)


def test_a_loss_that_is_not_finite_ends_the_training(stripes, tmp_path):
    """The checkpoint of the last good epoch stays; where there is none, nothing is written."""
    path = tmp_path / "a.pth"
    with pytest.raises(
        UserError, match=r"no longer finite .* epoch 1; nothing was saved.*--lr 1000"
    ):
        fit(Config(lr=1000.0), stripes, path, spoil_from=2)
    assert not path.exists()
    with pytest.raises(UserError, match=r"epoch 2; .*a\.pth is as it was"):
        fit(Config(), stripes, path, spoil_from=7)
    saved = load_checkpoint(path, "test")
    assert saved["epoch"] == 1
    assert all(values.isfinite().all() for values in saved["model"]["net"].values())


def test_sigterm_saves_and_says_so(stripes, tmp_path):
    with pytest.raises(Interrupted) as stop:
        fit(Config(), stripes, tmp_path / "a.pth", stop_at=3, number=signal.SIGTERM)
    assert stop.value.terminated
    assert torch.load(tmp_path / "a.pth", weights_only=True)["step"] == 3


def test_handlers_are_restored(stripes, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    fit(Config(epochs=1), stripes, tmp_path / "a.pth")
    assert signal.getsignal(signal.SIGINT) is before


def test_another_seed_or_shuffle_ends_elsewhere(stripes, tmp_path):
    a = fit(Config(seed=0), stripes, tmp_path / "a.pth")
    b = fit(Config(seed=1), stripes, tmp_path / "b.pth")
    assert not torch.equal(weights(a)[0], weights(b)[0])


def test_resume_refuses_other_settings_and_other_data(stripes, tmp_path):
    path = tmp_path / "a.pth"
    fit(Config(epochs=1), stripes, path)
    with pytest.raises(UserError, match=r"--lr 0\.01, not 0\.02"):
        fit(Config(lr=0.02, resume=True), stripes, path)
    with pytest.raises(UserError, match="320 images of stripes, not on 320 of other"):
        fit(Config(resume=True), replace(stripes, name="other"), path)
    longer = fit(Config(epochs=2, resume=True), stripes, path)  # more epochs are welcome
    assert longer.steps_done == 10
    with pytest.raises(UserError, match="trained for 2 epochs already, more than --epochs 1"):
        fit(Config(epochs=1, resume=True), stripes, path)


def test_average_follows_its_ramp(stripes, tmp_path, monkeypatch):
    """After n steps the mean keeps (1 + n)/(10 + n) of what it was."""
    seen, update = [], Training._update_average

    def watched(training: Training) -> None:
        seen.append(
            [
                training.averaged[1].weight.clone(),
                training.networks["net"][1].weight.detach().clone(),
            ]
        )
        update(training)
        seen[-1].append(training.averaged[1].weight.clone())

    monkeypatch.setattr(Training, "_update_average", watched)
    fit(Config(epochs=1), stripes, tmp_path / "a.pth")
    assert len(seen) == 5
    for n, (before, current, after) in enumerate(seen, start=1):
        kept = (1 + n) / (10 + n)
        assert torch.allclose(after, kept * before + (1 - kept) * current, atol=1e-7)
        assert not torch.equal(before, current)


def test_a_quick_run_spares_a_whole_one(stripes, tmp_path):
    path = tmp_path / "a.pth"
    fit(Config(epochs=2, quick=True), stripes, path)
    fit(Config(epochs=2, quick=True), stripes, path)  # one of its own kind may go
    fit(Config(epochs=2), stripes, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="--quick would overwrite"):
        fit(Config(epochs=1, quick=True), stripes, path)
    assert path.read_bytes() == before
    path.write_bytes(before[:-100])
    with pytest.raises(UserError, match="damaged or cut short"):  # who knows what it was
        fit(Config(epochs=1, quick=True), stripes, path)


def test_one_cycle_climbs_for_a_quarter_and_then_falls():
    assert one_cycle(0) == one_cycle(1) == 0 and one_cycle(0.25) == 1
    rates = torch.tensor([one_cycle(k / 16) for k in range(17)])
    assert torch.allclose(rates[:5].diff(), torch.tensor(1 / 4))
    assert torch.allclose(rates[4:].diff(), torch.tensor(-1 / 12))


def test_the_time_limit_ends_a_run_and_more_time_goes_on(stripes, tmp_path, monkeypatch):
    """A clock that is a second later at each look: the limit is reached within an epoch."""
    now = itertools.count()
    monkeypatch.setattr(training.time, "perf_counter", lambda: float(next(now)))
    path = tmp_path / "a.pth"
    short = fit(Config(epochs=1000, time_limit=40.0), stripes, path)
    assert 0 < short.steps_done < 40 and short.is_last(short.last_epoch)
    assert short.curve("progress").max() < 1  # of the time, and rising with it
    assert short.curve("progress").diff().min() > 0
    assert len(short.curve("loss")) == short.steps_done

    over = fit(Config(epochs=1000, time_limit=40.0, resume=True), stripes, path)
    assert over.steps_done == short.steps_done  # the time before counts
    longer = fit(Config(epochs=1000, time_limit=200.0, resume=True), stripes, path)
    assert longer.steps_done > 2 * short.steps_done

    least = fit(Config(epochs=9, time_limit=0.1), stripes, tmp_path / "c.pth")
    assert least.steps_done == 1 and (tmp_path / "c.pth").is_file()


def test_other_pictures_under_the_same_name_are_not_gone_on_with(stripes, tmp_path):
    """Of one's own folder the name and the counts may stay when a picture changes its class."""
    own = replace(stripes, name="folder:mine")
    fit(Config(epochs=1), own, tmp_path / "a.pth")
    fit(Config(epochs=2, resume=True), own, tmp_path / "a.pth")
    labels = own.labels.clone()
    labels[0] = 1 - labels[0]
    with pytest.raises(UserError, match="other pictures of folder:mine"):
        fit(Config(epochs=3, resume=True), replace(own, labels=labels), tmp_path / "a.pth")


def test_of_several_trainings_those_go_on_that_have_begun(tmp_path):
    resumed, fresh = Config(resume=True), Config()
    (tmp_path / "there.pth").touch()
    assert can_resume(resumed, tmp_path / "there.pth") and not can_resume(
        resumed, tmp_path / "none.pth"
    )
    assert can_resume(resumed, tmp_path / "none.pth", first=True)  # it will say what is missing
    assert not can_resume(fresh, tmp_path / "there.pth") and not can_resume(
        fresh, tmp_path, first=True
    )


def test_means_over_windows():
    values = torch.arange(7.0)
    assert smooth(values, 2).tolist() == [0.5, 2.5, 4.5]
    assert smooth(values, 1).tolist() == values.tolist()
    assert smooth(values, 100).tolist() == [3.0]
    assert smooth(torch.zeros(0), 5).tolist() == []


def test_the_model_of_a_training_is_its_average_else_its_first_network(stripes, tmp_path):
    nets = {"first": nn.Linear(2, 1), "second": nn.Linear(3, 1)}
    plain, averaged = (
        Training(
            tmp_path / "x.pth", "test", Config(), stripes, networks=nets, optimizers={}, ema=name
        )
        for name in (None, "second")
    )
    assert plain.model is nets["first"] and plain.averaged is None
    assert averaged.model is averaged.averaged and averaged.model is not nets["second"]
    assert torch.equal(averaged.model.weight, nets["second"].weight)
