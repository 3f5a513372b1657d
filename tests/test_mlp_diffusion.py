from __future__ import annotations

from imagelab.setup.command import parsed

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import complaint, run_here, untaught
from PIL import Image

import mlp_diffusion as ddpm
from imagelab.data.datasets import signed
from imagelab.data.pictures import read_png
from imagelab.report import figures
from imagelab.report.results import start_result
from imagelab.setup.runtime import Interrupted, UserError
from imagelab.setup.settings import settings_dict
from imagelab.techniques.diffusion import linear_schedule

RECIPES = list(ddpm.RECIPES)
DDPMS = [name for name, recipe in ddpm.RECIPES.items() if not recipe.subtracts]


def network(recipe: str, dimensions: tuple[int, int, int] = (1, 28, 28), **more) -> ddpm.Denoiser:
    torch.manual_seed(0)
    return ddpm.build(settings_dict(ddpm.Config(recipe=recipe, **more)), dimensions)


# --- the lesson, as mathematics -------------------------------------------------------------------


def test_the_uncorrected_recipes_do_not_end_in_noise():
    ends = {name: network(name).schedule.alpha_bar[-1].item() for name in RECIPES}
    for name in ("literal", "subtract"):
        assert ends.pop(name) == pytest.approx(0.603, abs=1e-3)
    assert list(ends.values()) == pytest.approx([7.7e-6] * 3, rel=0.01)


def test_a_bottleneck_of_256_passes_at_most_256_dimensions_of_noise(float32):
    """ε̂ as the network's output is an affine image of 256 numbers; from x̂₀ it is not."""
    torch.manual_seed(0)
    x, t = torch.randn(600, 784), torch.full((600,), 20)
    with torch.no_grad():
        rank = {}
        for name in ("rescaled", "corrected"):
            _, eps = network(name).x0_and_eps(x, t)
            rank[name] = torch.linalg.matrix_rank((eps - eps.mean(0)).double(), rtol=1e-4).item()
    assert rank["rescaled"] <= 256 < 500 < rank["corrected"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_noise_and_clean_image_make_up_x_t(recipe):
    """√ᾱ·x̂₀ + √(1 − ᾱ)·ε̂ = x_t, whichever of the two the network estimates."""
    model = network(recipe)
    x, t = torch.randn(50, 784), torch.arange(50)
    with torch.no_grad():
        x0_hat, eps_hat = model.x0_and_eps(x, t)
    assert torch.allclose(model.schedule.q_sample(x0_hat, t, eps_hat), x, atol=1e-3)


@pytest.mark.parametrize("how", ["tanh", "clip", "none"])
def test_what_keeps_the_estimate_in_range(how):
    model = network("corrected", keep_in_range=how)
    with torch.no_grad():
        model.mlp[-1].bias += 3  # far outside
        x_t, t = torch.randn(5, 784), torch.full((5,), 10)
        x0, _ = model.x0_and_eps(x_t, t)
        drawn = list(ddpm.reverse_process(model, torch.randn(5, 784), torch.Generator()))[-1][1]
    assert (x0.max() <= 1) == (how == "tanh")
    assert (drawn.max() <= 1) == (how != "none")
    assert torch.equal(model.estimate(x_t, t), x0.clamp(-1, 1) if how == "clip" else x0)


def test_the_former_name_of_a_setting_is_still_understood(tmp_path, stripes, monkeypatch):
    """`--bound clip` on the command line, and `bound` in a checkpoint, also one that is resumed."""
    asked = []
    monkeypatch.setattr(ddpm, "command_line", lambda config, *_: asked.append(config))
    ddpm.main()
    config = parsed(asked[0], "mlp_diffusion.py", "", ["--bound", "clip", "--batch-size", "32"])
    assert config.keep_in_range == "clip"
    config = replace(config, output_dir=tmp_path, epochs=1)
    ddpm.train(config, stripes, tmp_path / "a.pth")
    saved = torch.load(tmp_path / "a.pth", weights_only=True)
    saved["config"]["bound"] = saved["config"].pop("keep_in_range")
    torch.save(saved, tmp_path / "a.pth")
    assert ddpm.load_denoiser(tmp_path / "a.pth")[0].keep_in_range == "clip"
    again = replace(config, epochs=2, resume=True)
    with pytest.raises(UserError, match="--keep-in-range clip, not none"):
        ddpm.train(replace(again, keep_in_range="none"), stripes, tmp_path / "a.pth")
    assert ddpm.train(again, stripes, tmp_path / "a.pth").epochs_done == 2


def test_a_black_background_is_nothing_at_every_t(monkeypatch):
    """What the first layer sees of √ᾱ_t·(−1), without noise, is 0."""
    model, seen = network("corrected"), []
    model.mlp[0].register_forward_pre_hook(lambda _layer, given: seen.append(given[0]))
    t = torch.arange(50)
    with torch.no_grad():
        model(model.schedule.q_sample(-torch.ones(50, 784), t, torch.zeros(50, 784)), t)
    assert seen[0][:, :784].abs().max() < 1e-6


def test_weights_on_the_error_of_the_image():
    s = linear_schedule(50)
    assert torch.allclose(ddpm.weight_on_x0(s, "snr"), s.snr.float())
    min_snr = ddpm.weight_on_x0(s, "min-snr")
    assert min_snr.max() == 5 and torch.allclose(min_snr[s.snr < 5], s.snr[s.snr < 5].float())
    corrected = ddpm.weight_on_x0(s, "noise-variance")
    assert torch.allclose(corrected, (1 - s.alpha_bar).float()) and (corrected.diff() > 0).all()


def test_three_convolutions_see_seven_pixels_and_no_t():
    model, x, t = network("subtract"), torch.randn(1, 784), torch.tensor([7])
    with torch.no_grad():
        assert torch.equal(model(x, t), model(x, t + 30))
        changed = x.clone()
        changed[0, 14 * 28 + 14] += 1
        rows, columns = (model(x, t) != model(changed, t)).reshape(28, 28).nonzero(as_tuple=True)
    assert rows.min() == columns.min() == 11 and rows.max() == columns.max() == 17


class Constant(ddpm.Denoiser):
    """Answers 0 to everything."""

    def forward(self, x_t, t):
        return torch.zeros_like(x_t)


@pytest.mark.parametrize("recipe", ["rescaled", "corrected"])
def test_the_loss_is_the_formula(recipe):
    """For an answer of 0: the mean of ε² is 1, the weighted mean of x₀² is the mean weight times x₀²."""
    base = network(recipe)
    model = Constant(base.schedule, base.recipe, "none")
    weight, x0 = (
        ddpm.weight_on_x0(base.schedule, base.recipe.weight),
        torch.full((20_000, 784), 0.5),
    )
    loss = ddpm.denoising_loss(model, x0, weight, 0.0, torch.Generator().manual_seed(0))
    expected = 1.0 if recipe == "rescaled" else weight.mean().item() * 0.25
    assert loss.item() == pytest.approx(expected, rel=0.02)


def test_dimmed_images_keep_black_and_lose_light():
    x0 = torch.tensor([-1.0, 0.0, 1.0]).repeat(4000, 1)
    dim = ddpm.dimmed(x0, 0.25, torch.Generator().manual_seed(0))
    assert (dim[:, 0] == -1).all()
    changed = dim[:, 2] < 1
    assert changed.float().mean().item() == pytest.approx(0.25, abs=0.03)
    kept = (dim[changed, 2] + 1) / 2
    assert 0.4 <= kept.min() < 0.42 and 0.98 < kept.max() < 1
    assert torch.allclose((dim[changed, 1] + 1), kept)
    assert torch.equal(ddpm.dimmed(x0, 0.0, torch.Generator()), x0)


def test_the_rate_rises_and_falls_but_for_the_uncorrected_recipes():
    corrected = ddpm.Config(recipe="corrected")
    rates = [ddpm.learning_rate(corrected, p) for p in (0.025, 0.05, 0.3, 2 / 3, 1.0)]
    assert rates == pytest.approx([3e-3, 6e-3, 6e-3, 3e-3, 0])
    for config in (ddpm.Config(recipe="literal"), ddpm.Config(recipe="subtract")):
        assert [ddpm.learning_rate(config, p) for p in (0.01, 0.5, 1.0)] == [2e-3] * 3


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_uncorrected_recipes_have_adam_s_usual_decays(recipe, stripes, tmp_path):
    config = ddpm.Config(recipe=recipe, batch_size=32, epochs=1, conv_width=2)
    training = ddpm.train(config, stripes, tmp_path / "a.pth")
    usual = recipe in ("literal", "subtract")
    assert training.optimizers["adam"].defaults["betas"] == (0.9, 0.999 if usual else 0.99)


# --- the reverse process --------------------------------------------------------------------------


class Oracle(ddpm.Denoiser):
    """Knows that every image is the constant 0.5, and answers so."""

    def forward(self, x_t, t):
        x0 = torch.full_like(x_t, 0.5)
        if self.recipe.predicts_x0:
            return x0
        return (x_t - self.sqrt_alpha_bar[t, None] * x0) / self.sqrt_one_minus_alpha_bar[t, None]


def oracle(recipe: str) -> Oracle:
    return Oracle(network(recipe).schedule, ddpm.RECIPES[recipe], "tanh")


@pytest.mark.parametrize("recipe", DDPMS)
def test_a_perfect_estimate_is_reached_without_noise_at_the_end(recipe):
    model = oracle(recipe)
    rng = torch.Generator().manual_seed(0)
    states = list(ddpm.reverse_process(model, torch.randn(3, 784, generator=rng), rng))
    assert [t for t, _ in states] == list(range(50, -1, -1))
    assert torch.allclose(states[-1][1], torch.tensor(0.5), atol=1e-3)
    assert states[-2][1].std() > 1e-3


def test_the_reverse_process_has_the_forward_process_marginals():
    """From a true x_T, with a perfect estimate, x_t has variance 1 − ᾱ_t around √ᾱ_t·x₀."""
    model = oracle("corrected")
    rng = torch.Generator().manual_seed(0)
    signal, noise = model.sqrt_alpha_bar[-1], model.sqrt_one_minus_alpha_bar[-1]
    start = signal * 0.5 + noise * torch.randn(200, 784, generator=rng)
    for t, x in ddpm.reverse_process(model, start, rng):
        if t in (40, 20, 5):  # x_t here is the state after the step t, at table row t − 1
            alpha_bar = model.schedule.alpha_bar[t - 1].item()
            assert x.mean().item() == pytest.approx(math.sqrt(alpha_bar) * 0.5, abs=0.01)
            assert x.var().item() == pytest.approx(1 - alpha_bar, rel=0.03)


def test_subtracting_the_noise_overshoots_even_with_a_perfect_network():
    """Each step takes 1/√(1 − ᾱ_t) times the noise there is. With the literal betas that explodes."""
    wrong = ddpm.with_step(oracle("literal"), subtracts=True)
    start = torch.randn(3, 784, generator=torch.Generator().manual_seed(0))
    states = dict(ddpm.reverse_process(wrong, start, torch.Generator()))
    signal, noise = wrong.sqrt_alpha_bar[49], wrong.sqrt_one_minus_alpha_bar[49]
    left = (start - signal * 0.5) * (1 - 1 / noise)
    assert torch.allclose(states[49], signal * 0.5 + left, atol=1e-5)
    assert (states[0] - 0.5).abs().mean() > 1000
    assert not oracle("literal").recipe.subtracts  # whose step, DDPM's, draws the image (above)


def test_the_forward_process_has_the_closed_form_s_moments():
    """x_t step by step has mean √ᾱ_t·x₀ and variance 1 − ᾱ_t (Ho et al. eq. 4), and begins with x₀."""
    schedule, x0 = network("corrected").schedule, torch.full((200, 784), 0.5)
    states = list(ddpm.forward_process(schedule, x0, torch.Generator().manual_seed(0)))
    assert [t for t, _ in states] == list(range(51)) and torch.equal(states[0][1], x0)
    for t in (1, 10, 30, 50):
        x, alpha_bar = states[t][1], schedule.alpha_bar[t - 1].item()
        assert x.mean().item() == pytest.approx(math.sqrt(alpha_bar) * 0.5, abs=0.01)
        assert x.var().item() == pytest.approx(1 - alpha_bar, rel=0.03)


def test_sampling_starts_from_nothing_but_noise(monkeypatch):
    starts = []

    def note(_model, x, _rng):
        starts.append(x)
        yield 0, x

    monkeypatch.setattr(ddpm, "reverse_process", note)
    ddpm.sample(network("corrected"), 1500, (1, 28, 28), seed=0)
    x = torch.cat(starts)
    assert x.shape == (1500, 784)
    assert abs(x.mean()) < 0.005 and x.std().item() == pytest.approx(1, abs=0.005)
    assert (
        x.mean(dim=0).abs().max() < 0.15
        and abs(torch.corrcoef(x[:, :50].T) - torch.eye(50)).max() < 0.15
    )


def test_the_pictured_processes_start_from_held_out_images_and_from_noise(monkeypatch, stripes):
    shown = []
    monkeypatch.setattr(ddpm.samples, "add_trajectory", lambda _, *both: shown.extend(both))
    monkeypatch.setattr(ddpm, "to_uint8", lambda x: x)
    ddpm.add_processes(network("corrected"), stripes, 0, None)
    reverse, forward = shown
    assert [t for t, _ in forward] == list(range(51)) == [t for t, _ in reverse][::-1]
    held_out = signed(stripes.test_images)
    assert all((held_out == image).flatten(1).all(dim=1).any() for image in forward[0][1])
    for noise in (reverse[0][1], forward[50][1]):
        assert abs(noise.mean()) < 0.1 and noise.std().item() == pytest.approx(1, abs=0.05)


def test_the_epochs_are_numbered_in_their_grids_and_in_the_animation(tmp_path, stripes):
    result = start_result(
        "a", "", "", ddpm.Config(output_dir=tmp_path), "p", torch.device("cpu"), stripes
    )
    result.folder.mkdir(exist_ok=True)
    config = ddpm.Config(output_dir=tmp_path, batch_size=32, epochs=2)
    main = ddpm.train(config, stripes, tmp_path / "a.pth", ddpm.observer(result, None))
    ddpm.samples.add_epoch_grids(result, main, "noise")
    one, two = (read_png(result.folder / f"epoch_00{k}.png") for k in (1, 2))
    plain = figures.grid(stripes.images[:100], columns=10)
    titles = [grid[: len(grid) - len(plain)] for grid in (one, two)]
    assert titles[0].shape == titles[1].shape and (titles[0] != titles[1]).any()
    with Image.open(result.folder / "training.gif") as gif:
        assert gif.n_frames == 2 and gif.size == one.shape[::-1]


# --- the script -----------------------------------------------------------------------------------


def test_the_main_job_left_what_was_promised(main_job):
    folder = main_job / "diffusion_samples"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert untaught("mlp_diffusion", result) == []
    for entry in result["files"]:
        assert (folder / entry["path"]).is_file(), entry
    names = {entry["path"] for entry in result["files"]}
    assert {
        "recipes.png",
        "reverse_process.gif",
        "errors.png",
        "epoch_001.png",
        "subtraction.png",
        "bound.png",
        "training.gif",
    } <= names
    assert {f"{name}: Fréchet distance" for name in RECIPES} <= result["metrics"].keys()
    assert result["metrics"]["Fréchet distance"]["memoriser"] > 0
    nats, bits = (
        result["metrics"][f"bound: {u}"] for u in ("nats per image", "bits per dimension")
    )
    assert bits["value"] == pytest.approx(nats["value"] / 784 / math.log(2)) and nats["n"] == 100
    assert (main_job / "diffusion_models" / "fast_mlp_diffusion.pth").is_file()


@pytest.mark.parametrize(("compared", "trained"), [(4, 4), (2, 5)])
def test_all_recipes_are_compared_at_equal_epochs(tmp_path, stripes, compared, trained):
    """Where the comparison is as long as the main training, that is one of its five."""
    config = ddpm.Config(output_dir=tmp_path, batch_size=32, epochs=4, compare_epochs=compared)
    main = ddpm.train(config, stripes, tmp_path / "a.pth")
    others = ddpm.train_others(config, stripes)
    assert len(others) == trained
    result = start_result("a", "", "", config, "pictures", torch.device("cpu"), stripes)
    result.folder.mkdir(exist_ok=True)
    drawn, (figure, _) = {}, figures.new_figure(1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ddpm.samples, "plot_comparison", lambda images, _: drawn.update(images) or figure
        )
        ddpm.evaluate(main, others, None, result)
    assert len(drawn) == 5 + 4  # the recipes; two networks with both steps
    assert all(f"\nepochs: {compared}" in name for name in drawn)
    table = next(t for t in result.tables if "bound" in t["caption"])
    names = [row[0] for row in table["rows"]]
    assert len(names) == (5 if compared == 4 else 6) and not any("x − ε̂" in name for name in names)
    assert names[-1] == names[-2] + ", fitted variances" and names[-2].endswith("epochs: 4")
    assert names[0].endswith(f"epochs: {compared}")


def test_sampling_from_the_checkpoint(main_job, tmp_path):
    run_here("mlp_diffusion", "--sample-only", "--num-samples", 1200, "--output-dir", main_job,
             "--samples-file", tmp_path / "s.npz")  # fmt: skip
    images = np.load(tmp_path / "s.npz")["images"]
    assert images.shape == (1200, 28, 28) and images.dtype == np.uint8
    assert len(np.unique(images, axis=0)) == 1200


def test_a_checkpoint_of_another_schedule_is_refused(tmp_path, stripes, monkeypatch):
    """As after a change of the schedule in the script, which the settings do not tell."""
    ddpm.train(ddpm.Config(batch_size=32, epochs=1), stripes, tmp_path / "a.pth")
    assert ddpm.load_denoiser(tmp_path / "a.pth")[1] == stripes.shape
    other = ddpm.linear_schedule(50, 1e-3, 0.03, True)
    monkeypatch.setattr(ddpm, "linear_schedule", lambda *_: other)
    with pytest.raises(UserError, match="trained with another noise schedule"):
        ddpm.load_denoiser(tmp_path / "a.pth")


def test_stopped_and_resumed_ends_at_the_same_weights_and_samples(tmp_path, stripes):
    """What sampling takes besides the weights comes back as well. (test_gan_mnist.py presses Ctrl-C.)"""
    config = ddpm.Config(output_dir=tmp_path, batch_size=32)

    def trained(name: str, **settings) -> torch.Tensor:
        run = ddpm.train(replace(config, **settings), stripes, tmp_path / name)
        return ddpm.sample(run.averaged, 20, stripes.shape, seed=0)

    whole = trained("whole.pth", epochs=3)
    assert not torch.equal(trained("short.pth", epochs=1), whole)
    with pytest.MonkeyPatch.context() as patch:  # Ctrl-C in the second epoch
        patch.setattr(ddpm.Training, "_asked_to_stop", lambda run: run.steps_done == 13)
        patch.setattr(ddpm.Training, "_leave_if_asked", _leave)
        with pytest.raises(Interrupted):
            trained("stopped.pth", epochs=3)
    assert torch.equal(trained("stopped.pth", epochs=3, resume=True), whole)
    saved = [torch.load(tmp_path / f"{n}.pth", weights_only=True) for n in ("whole", "stopped")]
    for part in ("model", "ema", "extra"):
        one, other = (_tensors(contents[part]) for contents in saved)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)) and len(one) > 2


def _leave(run: ddpm.Training) -> None:
    if run.steps_done == 13:
        raise Interrupted("stopped")


def _tensors(tree: dict) -> list[torch.Tensor]:
    leaves = [_tensors(v) if isinstance(v, dict) else [v] for v in tree.values()]
    return [tensor for leaf in leaves for tensor in leaf]


def test_wrong_input(tmp_path):
    shared = ("--quick", "--dataset", "mnist-5k", "--output-dir", tmp_path)
    assert "--T" in complaint("mlp_diffusion", *shared, "--T", 5)
    assert "between 0 and 1" in complaint("mlp_diffusion", *shared, "--beta-end", 0.4)
    assert "There is no checkpoint" in complaint("mlp_diffusion", *shared, "--resume")
