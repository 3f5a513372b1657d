from __future__ import annotations

import copy
import inspect
import itertools
import json
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import complaint, remembered, run_here, untaught
from PIL import Image

from imagelab.data.datasets import Dataset, batch_indices, unit
from imagelab.report.figures import new_figure, save_figure
from imagelab.report.numbers import wilson
from imagelab.setup.runtime import Interrupted
from imagelab.techniques.attacks import pgd
from imagelab.techniques.classifier import DigitCNN, new_classifier
from studies import adversarial_training as study

QUICK = ("studies.adversarial_training", "--quick", "--dataset", "mnist-5k", "--output-dir")


# --- the script -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def attacks_once():
    """The same attack on the same network is computed once, though two runs measure it."""
    with pytest.MonkeyPatch.context() as patch:
        for module, names in (
            (study, ("accuracy", "fgsm", "pgd", "pgd_accuracies", "loss_surface")),
            (study.strong_attacks, ("apgd", "square_attack")),
        ):
            for name in names:
                patch.setattr(module, name, remembered(getattr(module, name)))
        yield


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    run_here(*QUICK, folder)
    return folder


def result_of(folder: Path) -> dict:
    path = folder / "study_images" / "adversarial_training" / "results.json"
    return json.loads(path.read_text("utf-8"))


def checkpoints(folder: Path) -> dict[str, int]:
    """The names of the checkpoints and when they were written."""
    files = (folder / "study_models" / "adversarial_training").iterdir()
    return {path.name: path.stat().st_mtime_ns for path in files}


def column(result: dict, name: str, training: str) -> list[float]:
    """Numbers; of '0.885 (0.833 to 0.922)' the first."""
    table = result["tables"][0]
    cells = [row[table["columns"].index(name)] for row in table["rows"] if row[0] == training]
    return [float(str(cell).split(" (")[0]) for cell in cells]


def row_of(result: dict, training: str) -> list:
    """The row of one training in the table of strong attacks: its name, then numbers."""
    name, *cells = next(row for row in result["tables"][1]["rows"] if row[0] == training)
    return [name, *(float(str(cell).split(" (")[0]) for cell in cells)]


def test_pictures_and_checkpoints_lie_where_they_belong(quick):
    assert {path.name for path in quick.iterdir()} == {"study_images", "study_models"}
    assert checkpoints(quick).keys() == {"ordinary.pth", "fast.pth", "pgd.pth"}
    names = [entry["path"] for entry in result_of(quick)["files"]]
    assert {"accuracy.png", "gradients.png", "transfer.png", "loss_surface.png"} <= set(names)
    for name in names:
        with Image.open(quick / "study_images" / "adversarial_training" / name) as picture:
            assert min(picture.size) > 200


def test_the_table(quick):
    """Three networks, three ε; an attack does more harm with a larger ε, and more than noise."""
    result, epsilon = result_of(quick), study.Config().epsilon
    assert len(result["tables"][0]["rows"]) == 9
    assert untaught("studies.adversarial_training", result) == []
    for training in study.METHODS:
        radii = [epsilon / 3, 2 * epsilon / 3, epsilon]
        assert column(result, "ε", training) == pytest.approx(radii)
        signs, fgsm, forty, hundred = (
            column(result, name, training)
            for name in ("random signs", "FGSM", "PGD-40", "PGD-100 with restarts")
        )
        # Three standard errors: 0.05 of 1,000 images; of the ten attacked anew, two.
        for accuracies, error in ((signs, 0.05), (fgsm, 0.05), (forty, 0.2), (hundred, 0.2)):
            assert all(b <= a + error for a, b in itertools.pairwise(accuracies))
        assert fgsm[0] < signs[0] and fgsm[-1] < signs[-1] - 0.15
        assert forty[-1] <= forty[0]
        assert all(a <= b + 0.2 for a, b in zip(forty, fgsm, strict=True))
        assert all(a <= b + 0.1 for a, b in zip(hundred, forty, strict=True))
        clean = column(result, "clean", training)
        assert clean == clean[:1] * 3 and clean[0] > 0.3  # ten classes
        strong = dict(zip(result["tables"][1]["columns"], row_of(result, training), strict=True))
        assert strong["PGD-100 with restarts"] == pytest.approx(hundred[-1])
        names = ("APGD-CE", "APGD-DLR", "Square")
        assert strong["all together"] <= min(strong[name] for name in names) + 1e-6
        assert strong["all together"] <= hundred[-1] + 1e-6
        for name in (*names, "all together"):
            metric = result["metrics"][f"{training}: {name}, ε = {epsilon:g}"]
            assert (metric["value"], metric["n"]) == (pytest.approx(strong[name]), 10)
        metric = result["metrics"][f"{training}: FGSM, ε = {epsilon:g}"]
        assert (metric["value"], metric["n"]) == (fgsm[-1], 1000) and metric["interval"] is None
        metric = result["metrics"][f"{training}: PGD-40, ε = {epsilon:g}"]
        assert metric["n"] == 10 and metric["interval"] == pytest.approx(wilson(forty[-1], 10))


def test_quick_spares_a_whole_training(quick, tmp_path):
    path = tmp_path / "study_models" / "adversarial_training" / "ordinary.pth"
    path.parent.mkdir(parents=True)
    state = torch.load(quick / path.relative_to(tmp_path), weights_only=True)
    torch.save({**state, "config": {**state["config"], "quick": False}}, path)
    written = path.read_bytes()
    assert "which --quick would overwrite" in complaint(*QUICK, tmp_path)
    assert path.read_bytes() == written


def test_resuming_a_finished_run_trains_nothing_and_measures_the_same(quick, monkeypatch):
    blank = new_figure(2, 2)[0]
    for name in ("accuracies", "gradients", "transfer", "surfaces", "checks"):
        monkeypatch.setattr(study, f"plot_{name}", lambda *what: blank)
    tables, written = result_of(quick)["tables"], checkpoints(quick)
    _, complained = run_here(*QUICK, quick, "--resume")
    assert checkpoints(quick) == written and "are right under" not in complained
    again = result_of(quick)["tables"]
    seconds = tables[0]["columns"].index("seconds")
    for row in [*tables[0]["rows"], *again[0]["rows"]]:
        row[seconds] = None
    assert again == tables


def test_wrong_input(tmp_path):
    for option, value, sentence in (
        ("--epsilon", 0.9, "--epsilon must lie between 0.001 and 0.5, not 0.9."),
        ("--pgd-epochs", 0, "--pgd-epochs must be at least 1, not 0."),
    ):
        assert sentence in complaint(*QUICK, tmp_path, option, value)
    assert list(tmp_path.iterdir()) == []


# --- the trainings --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aside(stripes) -> Dataset:
    return replace(stripes, images=stripes.test_images, labels=stripes.test_labels)


def defence(method: str, epochs: int = 2, **more) -> study.Defence:
    """Five steps an epoch."""
    settings = {"epsilon": 0.3, "pgd_steps": 2, "batch_size": 64, "lr": 3e-3, "seed": 0}
    return study.Defence(method, epochs, **{**settings, "resume": False, **more})


def train(own: study.Defence, data: Dataset, *more) -> study.Training:
    return study.train(own, new_classifier(data, own.seed), data, *more)


@pytest.fixture
def attacks_made(monkeypatch) -> list[SimpleNamespace]:
    """The arguments and the `result` of each attack that a training makes."""
    calls = []

    def spy(*args, **more):
        call = inspect.signature(pgd).bind(*args, **more)
        call.apply_defaults()
        calls.append(SimpleNamespace(**call.arguments, result=pgd(*args, **more)))
        return calls[-1].result

    monkeypatch.setattr(study, "pgd", spy)
    return calls


@pytest.fixture
def trained_on(monkeypatch) -> list[torch.Tensor]:
    """What the network sees in training mode: not the attacks, which are made in eval mode."""
    seen, build = [], new_classifier

    def watch(module, inputs):
        if module.training:
            seen.append(inputs[0].detach().clone())

    def hooked(*args):
        model = build(*args)
        model.register_forward_pre_hook(watch)
        return model

    monkeypatch.setitem(globals(), "new_classifier", hooked)
    return seen


def batches(data: Dataset) -> list[torch.Tensor]:
    """The indices of the ten batches of two epochs."""
    return [i for epoch in (1, 2) for i in batch_indices(len(data.images), 64, 0, epoch)]


def test_ordinary_training_meets_the_images_as_they_are(
    stripes, aside, tmp_path, attacks_made, trained_on
):
    train(defence("ordinary"), stripes, aside, tmp_path / "a.pth")
    assert attacks_made == [] and len(trained_on) == 10
    for seen, batch in zip(trained_on, batches(stripes), strict=True):
        assert torch.equal(seen, unit(stripes.images[batch]))


def ramp() -> list[float]:
    """ε over ten steps: it grows over the first quarter."""
    return [0.3 * min(k / 11 * 4, 1) for k in range(1, 11)]


def test_fast_training_takes_one_step_from_a_random_start(
    stripes, aside, tmp_path, attacks_made, trained_on
):
    train(defence("fast"), stripes, aside, tmp_path / "a.pth")
    assert [call.epsilon for call in attacks_made] == pytest.approx(ramp())
    for call, seen, batch in zip(attacks_made, trained_on, batches(stripes), strict=True):
        assert (call.steps, call.norm, call.restarts, call.start) == (1, "linf", 1, None)
        assert call.step_size == pytest.approx(1.25 * call.epsilon) and not call.targeted
        assert torch.equal(call.images, unit(stripes.images[batch]))
        assert torch.equal(call.labels, stripes.labels[batch])
        assert torch.equal(seen, call.result)


def test_pgd_training_goes_on_from_the_perturbation_of_the_last_epoch(
    stripes, aside, tmp_path, attacks_made, trained_on
):
    training = train(defence("PGD"), stripes, aside, tmp_path / "a.pth")
    assert [call.epsilon for call in attacks_made] == pytest.approx(ramp())
    last = torch.zeros(stripes.images.shape)
    for k, (call, batch) in enumerate(zip(attacks_made, batches(stripes), strict=True)):
        assert call.steps == 2 and call.step_size == pytest.approx(call.epsilon / 3)
        assert torch.equal(call.images, unit(stripes.images[batch]))
        if k < 5:
            assert call.start is None
        else:
            found = call.start - call.images
            assert (found - last[batch]).abs().max() <= 0.5 / 255 + 1e-6  # kept as whole greys
        last[batch] = call.result - call.images
        assert torch.equal(trained_on[k], call.result)
    found = training.extra["found"]
    assert found.dtype == torch.int8 and found.shape == stripes.images.shape
    assert (found.float() - last * 255).abs().max() <= 0.5 + 1e-3
    assert found.abs().max() <= 0.3 * 255 + 0.5 and (found != 0).float().mean() > 0.5


def test_an_attack_moves_with_its_image(stripes, aside, tmp_path, attacks_made, trained_on):
    """Each batch by steps of its own; what is kept is moved back."""
    training = train(defence("PGD", shift=2), stripes, aside, tmp_path / "a.pth")
    last, moves = torch.zeros(stripes.images.shape), set()
    for k, (call, batch) in enumerate(zip(attacks_made, batches(stripes), strict=True)):
        x = unit(stripes.images[batch])
        by = [
            (down, right)
            for down, right in itertools.product(range(-2, 3), repeat=2)
            if torch.equal(x.roll((down, right), (2, 3)), call.images)
        ]
        assert len(by) == 1 and torch.equal(trained_on[k], call.result)
        moves |= set(by)
        if k >= 5:
            found = (call.start - call.images).roll([-d for d in by[0]], (2, 3))
            assert (found - last[batch]).abs().max() <= 0.5 / 255 + 1e-6
        last[batch] = (call.result - call.images).roll([-d for d in by[0]], (2, 3))
    assert len(moves) > 3
    assert (training.extra["found"].float() - last * 255).abs().max() <= 0.5 + 1e-3


def test_the_strided_network(stripes):
    """The same for the same seed, for sides of any length; every layer has its part in the logits."""
    config, x = study.Config(network="strided"), unit(stripes.images[:3])
    model = study.new_network(config, stripes)
    again = study.new_network(config, stripes).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    assert type(study.new_network(replace(config, network="plain"), stripes)) is DigitCNN
    model(x).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) > 1_000_000
    for shape, classes in (((3, 31, 17), 4), ((1, 8, 8), 2)):
        assert study.StridedCNN(shape, classes)(torch.rand(2, *shape)).shape == (2, classes)


def test_perturbations_come_back_on_resume(stripes, aside, tmp_path, attacks_made, monkeypatch):
    path, spy = tmp_path / "a.pth", study.pgd

    def stopping(*args, **more):
        if len(attacks_made) == 6:  # in the second step of the second epoch
            signal.raise_signal(signal.SIGINT)
        return spy(*args, **more)

    monkeypatch.setattr(study, "pgd", stopping)
    with pytest.raises(Interrupted, match="--resume"):
        train(defence("PGD"), stripes, aside, path)
    assert len(attacks_made) == 7
    saved = torch.load(path, weights_only=True)["extra"]["found"]
    train(defence("PGD", resume=True), stripes, aside, path)
    assert len(attacks_made) == 10
    call, batch = attacks_made[7], batches(stripes)[7]
    assert saved[batch].abs().max() > 0.2 * 255
    assert torch.allclose(call.start, call.images + saved[batch] / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("checks", "done", "best"),
    [
        ([0.9, 0.1, 1.0, 1.0], 2, 0),  # a collapse: the end
        ([0.5, 0.7, 0.6, 0.55], 4, 1),
        ([0.0, 0.0, 0.0, 0.0], 4, 3),
        ([0.5, 0.6, 0.7, 0.1], 4, 2),  # a collapse in the last epoch
    ],
)
def test_the_best_epoch_is_kept_and_a_collapse_ends_the_training(
    stripes, aside, tmp_path, monkeypatch, checks, done, best
):
    states, path = [], tmp_path / "a.pth"
    few = replace(stripes, images=stripes.images[:64], labels=stripes.labels[:64])  # one step

    def check(model, images, labels, epsilons, *_, **__):
        assert len(images) == len(labels) == 80 and epsilons == [0.3]
        states.append(copy.deepcopy(model.state_dict()))
        return [checks[len(states) - 1]]

    monkeypatch.setattr(study, "pgd_accuracies", check)
    for resume in (False, True):  # after its end, nothing goes on
        training = train(defence("fast", 4, resume=resume), few, aside, path)
        best_network = training.networks["best"]
        assert len(states) == training.epoch == done and not best_network.training
        assert training.curve("check").tolist() == pytest.approx(checks[:done])
        for name, value in best_network.state_dict().items():
            assert torch.equal(value, states[best][name])
    averaged = training.averaged.state_dict()  # what is kept is the moving average of the weights
    assert all(torch.equal(averaged[name], states[-1][name]) for name in averaged)
    assert not torch.equal(averaged["dense2.weight"], training.networks["classifier"].dense2.weight)
    assert not torch.equal(states[0]["dense2.weight"], states[1]["dense2.weight"])


def test_the_observer_tells_the_check_and_its_collapse(
    stripes, aside, tmp_path, monkeypatch, capsys
):
    few = replace(stripes, images=stripes.images[:64], labels=stripes.labels[:64])
    for method, sentences in (("fast", 1), ("ordinary", 0)):
        checks = iter([0.9, 0.1])
        monkeypatch.setattr(study, "pgd_accuracies", lambda *_, left=checks, **__: [next(left)])
        train(defence(method), few, aside, tmp_path / f"{method}.pth", study.announce_checks(aside))
        told = capsys.readouterr().err
        assert "epoch 1: 90.0% of 80 are right" in told and "epoch 2: 10.0% of 80 are right" in told
        assert told.count("has collapsed") == sentences


def test_the_loss_around_an_image_is_that_of_every_point(stripes):
    """At step 0 of both directions the image itself, elsewhere what the network says there."""
    model, x, y = new_classifier(stripes, 0).eval(), unit(stripes.images[:1]), stripes.labels[:1]
    signs, steps = torch.ones_like(x), torch.tensor([-0.2, 0.0, 0.2])
    loss = study.loss_surface(model, x, y, signs, steps)
    along = study.attacks.input_gradient(model, x, y).sign()
    for i, j in itertools.product(range(3), range(3)):
        point = (x + steps[j] * along + steps[i] * signs).clamp(0, 1)
        expected = torch.nn.functional.cross_entropy(model(point), y)
        assert loss[i, j].item() == pytest.approx(expected.item(), rel=1e-3)
    assert loss[1, 2] > loss[1, 1] > loss[1, 0]


@pytest.mark.parametrize(
    ("checks", "collapsed"),
    [
        ([], False),
        ([0.9], False),
        ([0.9, 0.71], False),
        ([0.9, 0.69], True),
        ([0.2, 0.9, 0.5], True),
        ([0.9, 0.1, 0.85], False),
    ],
)
def test_a_collapse_is_20_points_below_the_best(checks, collapsed):
    assert study.has_collapsed(torch.tensor(checks)) is collapsed


def test_what_is_left_open_is_fitted_to_the_data(stripes):
    config = study.Config(epsilon=0.2, fast_epochs=7)
    for name in ("stripes", "mnist-5k", "mnist"):
        got = study.with_defaults(config, replace(stripes, name=name))
        defaults = {**study.DEFAULTS["others"], **study.DEFAULTS.get(name, {})}
        assert (got.network, got.shift) == (("strided", 1) if name == "mnist" else ("plain", 0))
        assert (got.epsilon, got.fast_epochs) == (0.2, 7)
        assert got.pgd_epochs == defaults["pgd_epochs"] and got.restarts == defaults["restarts"]
        assert got.batch_size == study.defence(got, "PGD").batch_size == defaults["batch_size"]
        methods = [study.defence(got, method) for method in study.METHODS]
        assert [m.epochs for m in methods] == [got.ordinary_epochs, 7, got.pgd_epochs]
        assert all(m.epsilon == 0.2 for m in methods)


def test_a_training_that_had_not_begun_is_not_resumed(tmp_path):
    config = study.Config(output_dir=tmp_path, resume=True)

    def resumed() -> list[bool]:
        return [study.defence(config, method).resume for method in study.METHODS]

    assert resumed() == [True, False, False]
    for method in ("ordinary", "fast"):
        path = study.checkpoint_path(config, method)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert resumed() == [True, True, False]


def test_the_attacks_together_leave_what_each_of_them_leaves(stripes, monkeypatch):
    """An image counts only if it is read correctly after every attack; DLR takes three classes."""
    x, y = unit(stripes.test_images[:4]), torch.tensor([0, 0, 0, 0])

    class Reader(torch.nn.Module):
        """Reads an image as class 0 if its first pixel is 0."""

        classes = 3

        def forward(self, images):
            pixel = images[:, 0, 0, :1]
            return torch.cat([1 - pixel, 2 * pixel, torch.zeros(len(images), self.classes - 2)], 1)

    def spoiling(k: int):
        def attack(model, images, *_, **__):
            images = images.clone()
            images[:, 0, 0, 0] = 0
            images[k, 0, 0, 0] = 1
            return images

        return attack

    monkeypatch.setattr(study, "pgd", spoiling(0))
    monkeypatch.setattr(study.strong_attacks, "apgd", spoiling(1))
    monkeypatch.setattr(study.strong_attacks, "square_attack", spoiling(2))
    config = study.Config(restarts=1, square_queries=1)
    correct = study.correct_under_strong_attacks(config, Reader(), x, y, None)
    assert correct.keys() == set(study.STRONG)
    assert correct["Square"].tolist() == [True, True, False, True]
    assert correct["all together"].tolist() == [False, False, False, True]
    two = Reader()
    two.classes = 2
    assert "APGD-DLR" not in study.correct_under_strong_attacks(config, two, x, y, None)


def test_a_class_without_held_out_images_is_left_out_of_the_gallery(stripes, tmp_path):
    data = replace(stripes, classes=("left", "none", "right"), test_labels=stripes.test_labels * 2)
    models = {"ordinary": new_classifier(data, 0).eval()}
    save_figure(study.plot_gradients(0.1, 0, models, data), tmp_path / "g.png")
    assert Image.open(tmp_path / "g.png").size[0] > 200


def test_one_class_is_refused(tmp_path):
    for i in range(10):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    assert "one class only" in complaint("studies.adversarial_training", "--output-dir", tmp_path,
                                         "--dataset", f"folder:{tmp_path}")  # fmt: skip
