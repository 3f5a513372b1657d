from __future__ import annotations

import importlib
import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import complaint, run_here, untaught

from imagelab.setup.runtime import Interrupted, prepare
from imagelab.techniques import likelihood
from imagelab.techniques.diffusion import (
    cosine_schedule,
    linear_schedule,
    make_schedule,
    to_x0,
)
from studies import unet_diffusion
from studies.unet_diffusion import (
    Config,
    Model,
    bound_likelihood,
    build,
    classes_to_draw,
    guided,
    hybrid_loss,
    load_model,
    log_variance,
    noisy_pair,
    sample,
    train,
    vlb_terms,
)

TINY = Config(widths=(8, 16), epochs=12, batch_size=32, lr=5e-3, ema_decay=0.9, steps=3, seed=3)


@pytest.fixture(scope="module")
def tiny(stripes, tmp_path_factory):
    """A tiny network, trained on stripes."""
    prepare(3, "cpu")
    return train(TINY, stripes, tmp_path_factory.mktemp("tiny") / "unet.pth")


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text("utf-8"))


def test_guidance_identities():
    rng = torch.Generator().manual_seed(0)
    conditional, unconditional = torch.randn(2, 5, 1, 4, 4, generator=rng)
    assert torch.allclose(guided(conditional, unconditional, 0.0), unconditional)
    assert torch.allclose(guided(conditional, unconditional, 1.0), conditional, atol=1e-6)
    three = guided(conditional, unconditional, 3.0)
    assert torch.allclose(three, 3 * conditional - 2 * unconditional, atol=1e-5)
    rescaled = guided(conditional, unconditional, 3.0, rescale=1.0)
    assert torch.allclose(rescaled.std((1, 2, 3)), conditional.std((1, 2, 3)))
    half = guided(conditional, unconditional, 3.0, rescale=0.5)
    assert torch.allclose(half, (three + rescaled) / 2, atol=1e-6)


class Teller:
    """A 'network' whose answer shows the class that it was given; it counts the images."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, x, t, label):
        self.images += len(x)
        assert (t >= 0).all() and (t < 1).all()
        return label.float()[:, None].expand_as(x) / 10


def test_guidance_of_0_and_1_are_identities_and_cost_what_they_should():
    s = linear_schedule(50)
    x, label, none = torch.zeros(3, 2), torch.full((3,), 4), torch.full((3,), 1)
    for scale, answer, images in ((0.0, 0.1, 6), (1.0, 0.4, 3), (2.0, 0.7, 6), (9.0, 1.0, 6)):
        network = Teller()
        estimate = Model(network, s, "x0", (2,)).estimator({"label": label}, {"label": none}, scale)
        assert torch.allclose(estimate(x, 10), torch.full((3, 2), answer))  # clipped at 1
        assert network.images == images


def test_every_t_is_trained_and_the_targets_fit():
    s = cosine_schedule(7)
    rng = torch.Generator().manual_seed(0)
    x0 = torch.rand(2000, 3) * 2 - 1
    for kind in ("eps", "x0", "v"):
        x_t, t, wanted = noisy_pair(Model(None, s, kind, (3,)), x0, rng)
        assert t.unique().tolist() == list(range(7))  # T−1 as well
        early = t < 6  # at the last t of the cosine nothing is left to read ε from
        assert torch.allclose(to_x0(s, kind, wanted, x_t, t)[early], x0[early], atol=1e-3)


def images(n: int, rng: torch.Generator) -> torch.Tensor:
    """Random grey levels (n, 1, 4, 4) in [-1, 1]."""
    return torch.randint(0, 256, (n, 1, 4, 4), generator=rng) / 127.5 - 1


def test_v_chooses_between_the_two_variances():
    s = cosine_schedule(50)
    t = torch.tensor([0, 1, 30, 49])
    smallest, largest, middle = (
        log_variance(s, torch.full((4, 1), v), t) for v in (-1.0, 1.0, 0.0)
    )
    beta_tilde = s.beta * (1 - s.alpha_bar_prev) / (1 - s.alpha_bar)
    beta_tilde[0] = beta_tilde[1]  # as in improved-diffusion: β̃_0 is 0
    assert torch.allclose(smallest.exp()[:, 0], beta_tilde[t])
    assert torch.allclose(largest.exp()[:, 0], s.beta[t])
    assert torch.allclose(middle, (smallest + largest) / 2)


@pytest.mark.parametrize("kind", ["posterior", "beta"])
def test_the_terms_of_the_loss_are_those_of_the_bound(kind):
    """Against imagelab's bound, which is checked against data of a known likelihood."""
    s, rng = cosine_schedule(50), torch.Generator().manual_seed(0)
    x0 = images(6, rng)
    x0_hat = (x0 + 0.1 * torch.randn(x0.shape, generator=rng)).clamp(-1, 1)
    t = torch.tensor([0, 0, 1, 7, 30, 49])
    log_var = log_variance(s, torch.full_like(x0, -1.0 if kind == "posterior" else 1.0), t)
    found = vlb_terms(s, x0, x0_hat, log_var, t)
    for k, step in enumerate(t.tolist()):
        x, x_hat, var = x0[k].double(), x0_hat[k].double(), log_var[k].exp()
        if step == 0:
            nats = -likelihood.discretised_gaussian(x, x_hat, var.sqrt())
        else:
            nats = likelihood.step_kl(s, torch.tensor([step]), x, x_hat, var)
        assert found[k].item() == pytest.approx(nats.mean().item() / np.log(2))


def test_the_likelihood_s_part_of_the_loss_trains_v_alone():
    s, rng = cosine_schedule(50), torch.Generator().manual_seed(0)
    model = Model(None, s, "v", (1, 4, 4), "learned")
    x0 = images(8, rng)
    x0[:, :, 0], x0[:, :, 1] = -1, 1  # black and white, whose bins have one end only
    x_t, t, target = noisy_pair(model, x0, rng)
    t[0] = 0  # its term is another formula
    out = torch.randn(8, 2, 4, 4, generator=rng, requires_grad=True)
    loss = hybrid_loss(model, out, target, x0, x_t, t)
    loss.backward()
    assert out.grad.isfinite().all() and (out.grad[:, 1] != 0).all()
    alone = out.detach()[:, :1].clone().requires_grad_()
    simple = hybrid_loss(replace(model, variance="fixed"), alone, target, x0, x_t, t)
    simple.backward()
    assert (
        torch.equal(out.grad[:, :1], alone.grad) and loss > simple
    )  # L_simple's gradient, no other


def test_a_learned_variance_has_a_better_likelihood_than_both_fixed_ones(stripes, tmp_path):
    """And the bound is told the class: with the wrong one it is worse."""
    config = replace(TINY, T=50, variance="learned", epochs=20)
    _, model = train(config, stripes, tmp_path / "unet.pth")

    def bits(model: Model, labels: torch.Tensor) -> float:
        rng = torch.Generator().manual_seed(0)
        return bound_likelihood(model, stripes.test_images, labels, rng).bits_per_dimension

    labels = stripes.test_labels
    learned = bits(model, labels)
    network = FirstHalf(model.network)
    assert learned < bits(replace(model, network=network, variance="fixed"), labels) - 0.01
    assert learned < bits(model, 1 - labels) - 0.1


class FirstHalf(torch.nn.Module):
    """A network that keeps its v to itself."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *arguments, **more):
        return self.network(*arguments, **more).chunk(2, dim=1)[0]


def test_it_learns(tiny):
    """Over zero, which an untrained network answers, it gains, and goes on gaining."""
    loss = tiny[0].curve("loss")
    assert loss[:3].mean() > 0.7 and loss[-5:].mean() < 0.6 * loss[:3].mean()


def test_an_image_does_not_depend_on_its_batch(tiny):
    _, model = tiny
    for sampler in ("ddpm", "ddim", "dpm-solver"):
        config = replace(TINY, sampler=sampler)
        together, labels = sample(model, config, 24)
        apart, _ = sample(model, config, 24, portion=5)
        assert (together.int() - apart.int()).abs().max() <= 1  # a rounding, not another image
        assert labels.tolist() == [0] * 10 + [1] * 10 + [0] * 4
    assert not torch.equal(together, sample(model, replace(config, seed=4), 24)[0])


def test_labels_can_be_chosen():
    assert classes_to_draw(replace(TINY, labels=(7, 2)), 10, 25).tolist() == (
        [7] * 10 + [2] * 10 + [7] * 5
    )


def test_the_class_is_drawn_that_is_asked_for(tiny):
    """Class 0 is bright on the left, class 1 on the right."""
    images, labels = sample(tiny[1], replace(TINY, steps=10, guidance=2), 60)
    left, right = (half.float().mean(dim=(1, 2, 3)) for half in images.split(14, dim=3))
    assert ((left > right) == (labels == 0)).float().mean() > 0.9


@pytest.mark.parametrize("study", ["unet_diffusion", "text_diffusion", "diffusion_restoration"])
def test_resume_ends_at_the_same_weights(study, stripes, tmp_path, monkeypatch):
    """Ctrl-C in the middle of an epoch, then --resume: bit for bit what an unbroken run ends at. With
    dropout, which draws from a generator of torch's own, and other draws in between."""
    module = importlib.import_module(f"studies.{study}")
    config = module.Config(widths=(8, 16), epochs=2, batch_size=32, lr=5e-3, ema_decay=0.9, seed=3,
                           dropout=0.3)  # fmt: skip
    words = 1 + torch.arange(1600).reshape(400, 4) % 19
    captions = {"words": words} if study == "text_diffusion" else {}

    def end(config, path: Path) -> dict:
        module.train(config, stripes, path=path, **captions)
        return torch.load(path, weights_only=True)

    whole, steps = end(config, tmp_path / "whole.pth"), []
    loss = whole["history"]["loss"]
    assert len(loss) == 20 and loss[-3:].mean() < 0.9 * loss[:3].mean()

    def stop(*arguments):
        steps.append(1)
        if len(steps) == 13:
            signal.raise_signal(signal.SIGINT)
        return noisy_pair(*arguments)

    monkeypatch.setattr(unet_diffusion, "noisy_pair", stop)
    with pytest.raises(Interrupted, match="--resume goes on"):
        end(config, tmp_path / "part.pth")
    torch.randn(7)
    part = end(replace(config, resume=True), tmp_path / "part.pth")
    assert len(steps) == 20 and part["epoch"] == whole["epoch"] == 2  # no step was done twice
    assert torch.equal(part["history"]["loss"], loss)
    for kind in (lambda saved: saved["model"]["unet"], lambda saved: saved["ema"]):
        for name, values in kind(whole).items():
            assert torch.equal(values, kind(part)[name]), name


def test_an_older_checkpoint_still_draws(tiny, tmp_path):
    """It calls the patch size "fold", and does not say how the size is halved."""
    training, model = tiny
    saved = torch.load(training.path, weights_only=True)
    saved["config"]["fold"] = saved["config"].pop("patch_size")
    del saved["config"]["pool"], saved["config"]["variance"]
    torch.save(saved, tmp_path / "old.pth")
    old = load_model(tmp_path / "old.pth", torch.device("cpu"))
    assert old.settings["patch_size"] == 2
    assert torch.equal(sample(old, TINY, 12)[0], sample(model, TINY, 12)[0])


@pytest.mark.parametrize("kind", ["cosine", "linear", "zero-terminal-snr"])
@pytest.mark.parametrize("T", [50, 500, 1000])
def test_every_schedule_ends_in_noise(kind, T):
    schedule = make_schedule(kind, T)
    assert len(schedule) == T and schedule.alpha_bar[-1] < 1e-3


def test_epsilon_says_nothing_about_the_image_at_zero_snr():
    config = {**vars(Config()), "prediction": "eps", "schedule": "zero-terminal-snr"}
    with pytest.raises(unet_diffusion.UserError, match="--prediction eps"):
        build(config, (1, 28, 28), classes=10)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_each_prediction_learns(prediction, stripes, tmp_path):
    config = replace(TINY, epochs=1, prediction=prediction)
    loss = train(config, stripes, tmp_path / "unet.pth")[0].curve("loss")
    assert loss[-1] < 0.9 * loss[0]


def test_a_run_leaves_what_was_promised(unet_run):
    folder = unet_run / "study_images" / "unet_diffusion"
    result = results(folder)
    assert untaught("studies.unet_diffusion", result) == []
    names = {entry["path"] for entry in result["files"]}
    assert {"samples.png", "guidance.png", "reverse_process.gif", "bound.png"} <= names
    bits = result["metrics"]["bound per dimension"]
    assert bits["n"] == 4 and bits["interval"][0] < bits["value"] < bits["interval"][1]
    assert all((folder / name).is_file() for name in names)
    for name in ("read as the class asked for", "real images read as their own class"):
        assert 0 <= result["metrics"][name]["value"] <= 1
    assert result["metrics"][name]["value"] > 0.5  # so many real images are read correctly
    assert result["metrics"]["coverage"]["floor"] > 0.5


def test_samples_come_again_from_the_checkpoint(unet_run, tmp_path):
    for name, extra in (("a.npz", ()), ("b.npz", ()), ("c.npz", ("--labels", 7))):
        run_here("studies.unet_diffusion", "--sample-only", "--quick", "--num-samples", 12,
                   "--output-dir", unet_run, "--samples-file", tmp_path / name, *extra)  # fmt: skip
    a, b, c = (np.load(tmp_path / f"{name}.npz")["images"] for name in "abc")
    assert a.shape == (12, 28, 28) and (a == b).all() and (a != c).any()


def test_mistakes_are_told_in_a_sentence(unet_run, tmp_path):
    def said(*arguments):
        return complaint("studies.unet_diffusion", *arguments, "--output-dir", unet_run)

    assert "between 0 and 9" in said("--sample-only", "--labels", 12)
    assert "between 1 and T = 1000" in said("--sample-only", "--steps", 1001)
    path = unet_run / "study_models" / "unet_diffusion" / "unet.pth"
    before, training = path.read_bytes(), ("--dataset", "mnist-5k", "--quick")
    assert "is for --sample-only" in said(*training, "--labels", 7)
    assert "between 1 and T = 8" in said(*training, "--T", 8, "--steps", 9)
    assert "divisible by" in said(*training, "--widths", 8, 8, 8, 8)
    assert path.read_bytes() == before  # refused before the training, not after it
    assert "train first (unet_diffusion" in complaint(
        "studies.unet_diffusion", "--sample-only", "--output-dir", tmp_path
    )
