from __future__ import annotations

import json
import math
import signal
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import command, complaint, run_here, run_script, untaught
from PIL import Image

import gan_mnist as gan
from imagelab.report import figures
from imagelab.report.results import start_result


def test_networks_and_their_shapes():
    G, D = gan.build(gan.Config(), (1, 28, 28), torch.device("cpu"))
    images = G(torch.randn(5, 100))
    assert images.shape == (5, 1, 28, 28) and images.abs().max() <= 1
    assert D(images).shape == (5,) and D(images).min() > 0 and D(images).max() < 1
    for both, alone in zip(D.compare(images, -images), (images, -images), strict=True):
        assert torch.allclose(both, D.logits(alone), atol=1e-6)
    assert [tuple(p.shape) for p in G.parameters() if p.dim() == 2] == [
        (128, 100), (256, 128), (784, 256),
    ]  # fmt: skip
    assert [tuple(p.shape) for p in D.parameters() if p.dim() == 2] == [
        (256, 784), (128, 256), (1, 128),
    ]  # fmt: skip


def test_losses_are_the_formulas():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])
    d_real, d_fake = real.sigmoid(), fake.sigmoid()
    expected = -(d_real.log().mean() + (1 - d_fake).log().mean()) / 2
    assert gan.discriminator_loss(real, fake).item() == pytest.approx(expected.item(), rel=1e-5)
    smoothed = -((0.9 * d_real.log() + 0.1 * (1 - d_real).log()).mean() + (1 - d_fake).log().mean())
    assert gan.discriminator_loss(real, fake, 0.1).item() == pytest.approx(smoothed.item() / 2)
    assert gan.generator_loss(fake).item() == pytest.approx(-d_fake.log().mean().item(), rel=1e-5)
    certain = torch.tensor([-200.0])
    assert gan.generator_loss(certain).item() == 200  # log of a rounded sigmoid would be infinite
    assert gan.discriminator_loss(torch.zeros(2), torch.zeros(2)).item() == pytest.approx(
        math.log(2)
    )


def test_images_are_moved_whole_and_gradients_go_back():
    x = torch.full((200, 2, 9, 9), -1.0)
    x[:, 0, 4, 4], x[:, 1, 4, 4] = 1.0, 0.5
    shifted = gan.random_shift(x, 2, torch.Generator().manual_seed(0))
    assert torch.equal(gan.random_shift(x, 0, torch.Generator()), x) and shifted.shape == x.shape
    rows, columns = (shifted[:, 0] == 1).nonzero().T[1:]
    assert len(rows) == 200 and {*rows.tolist()} == {*columns.tolist()} == {2, 3, 4, 5, 6}
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) == 25
    assert ((shifted[:, 1] == 0.5) == (shifted[:, 0] == 1)).all()  # the channels go together
    corner = torch.zeros(50, 1, 9, 9, requires_grad=True)
    gan.random_shift(corner, 2, torch.Generator().manual_seed(0)).sum().backward()
    assert (corner.grad[:, 0, 2:-2, 2:-2] == 1).all() and (corner.grad[:, 0, 0, 0] == 0).any()


def test_the_rate_falls_and_the_average_draws(tmp_path, stripes):
    """From the half of the training on; G's samples are those of the averaged weights."""
    config = gan.Config(output_dir=tmp_path, batch_size=32, epochs=4, grid_every=0)
    G, D = gan.build(config, stripes.shape, torch.device("cpu"))
    rates, step = [], torch.optim.Adam.step

    def note(adam, *_):
        rates.append(adam.param_groups[0]["lr"])
        return step(adam)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", note)
        run = gan.train(config, stripes, G, D, tmp_path / "a.pth")
    assert len(rates) == 2 * 40 and set(rates[:38]) == {config.lr}
    assert rates[-1] < 0.06 * config.lr and rates[40:] == sorted(rates[40:], reverse=True)
    drawing = gan.sampling_network(run)
    assert drawing is run.averaged and drawing is not G
    assert not torch.equal(drawing.layers[0].weight, G.layers[0].weight)
    loaded = gan.load_generator(tmp_path / "a.pth", torch.device("cpu"))
    assert torch.equal(gan.sample(loaded, 9, 0), gan.sample(drawing, 9, 0))


@pytest.mark.parametrize(("compared", "trained"), [(3, 1), (2, 2)])
def test_the_recipe_as_often_written_stands_beside_it_at_equal_epochs(
    tmp_path, stripes, compared, trained
):
    config = gan.Config(output_dir=tmp_path, batch_size=32, epochs=3, compare_epochs=compared)
    result = start_result("gan_mnist", "", "", config, "pictures", torch.device("cpu"), stripes)
    result.folder.mkdir(exist_ok=True)
    runs = gan.train_compared(config, stripes)
    assert len(runs) == trained
    old = runs["as often written"].config
    assert (old.lr, old.beta1, old.decay_from, old.ema_decay) == (2e-4, 0.5, 1.0, 0.0)
    assert (old.batch_size, old.max_shift) == (64, 0)
    assert old.epochs == (compared) and runs["as often written"].averaged is None
    G, D = gan.build(config, stripes.shape, torch.device("cpu"))
    main = gan.train(config, stripes, G, D, tmp_path / "a.pth")
    drawn, (figure, _) = {}, figures.new_figure(1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            gan.samples, "plot_comparison", lambda images, _: drawn.update(images) or figure
        )
        gan.report_compared({"here": main, **runs}, 40, None, result)
    assert len(drawn) == 2 and all(f"epochs: {compared}\n" in title for title in drawn)


def test_the_main_job_left_what_was_promised(main_job):
    folder = main_job / "fake_images"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert untaught("gan_mnist", result) == []
    assert (main_job / "GAN_models" / "mlp_gan.pth").is_file()
    for entry in result["files"]:
        assert (folder / entry["path"]).is_file(), entry
    assert result["metrics"]["Fréchet distance"]["n"] == 500
    assert result["metrics"]["Fréchet distance"]["floor"] > 0
    assert result["evaluator"].startswith("mnist-5k CNN")


def test_sampling_from_the_checkpoint(main_job, tmp_path):
    before = (main_job / "fake_images" / "results.json").read_bytes()
    run_script("gan_mnist", "--sample-only", "--num-samples", 37, "--output-dir", main_job,
               "--samples-file", tmp_path / "s.npz")  # fmt: skip
    images = np.load(tmp_path / "s.npz")["images"]
    assert images.shape == (37, 28, 28) and images.dtype == np.uint8
    assert images.std() > 10 and len(np.unique(images, axis=0)) == 37
    assert (main_job / "fake_images" / "results.json").read_bytes() == before
    run_here("gan_mnist", "--sample-only", "--num-samples", 37, "--output-dir", main_job,
             "--samples-file", tmp_path / "t.npz")  # fmt: skip
    assert np.array_equal(np.load(tmp_path / "t.npz")["images"], images)


def test_same_seed_same_bytes(main_job, judged):
    run_script("gan_mnist", "--quick", "--compare", "--dataset", "mnist-5k",
               "--output-dir", judged)  # fmt: skip
    first, again = (
        {p.name: p.read_bytes() for p in (root / "fake_images").glob("*.[pg][ni][gf]")}
        for root in (main_job, judged)
    )
    first.pop("drawn.png", None)
    assert first == again and len(first) >= 5


def test_another_seed_other_weights_and_other_latents():
    (G, D), (H, E) = (
        gan.build(gan.Config(seed=seed), (1, 28, 28), torch.device("cpu")) for seed in (0, 1)
    )
    for one, other in ((G, H), (D, E)):
        assert not torch.equal(next(one.parameters()), next(other.parameters()))
    assert not torch.equal(gan.sample(G, 5, seed=0), gan.sample(G, 5, seed=1))


def test_ctrl_c_then_resume_ends_at_the_same_weights(main_job, judged):
    shared = ("--quick", "--dataset", "mnist-5k", "--output-dir", judged, "--log-every", 5)
    process = subprocess.Popen(command("gan_mnist", *shared), stderr=subprocess.PIPE, text=True,
                               stdout=subprocess.DEVNULL, encoding="utf-8")  # fmt: skip
    shown = ""
    while "step 5:" not in shown:  # early, so that even a slow reader is heard before the end
        letter = process.stderr.read(1)
        assert letter, shown  # else it has ended
        shown += letter
    process.send_signal(signal.SIGINT)
    shown += process.stderr.read()
    assert process.wait() == 130 and "--resume goes on" in shown and "Traceback" not in shown
    half = torch.load(judged / "GAN_models/mlp_gan.pth", weights_only=True)
    assert 5 <= half["step"] + half["epoch"] * 46 < 92
    run_here("gan_mnist", *shared, "--resume")
    whole, resumed = (
        torch.load(root / "GAN_models/mlp_gan.pth", weights_only=True)
        for root in (main_job, judged)
    )
    for network in ("generator", "discriminator"):
        for name, value in whole["model"][network].items():
            assert torch.equal(value, resumed["model"][network][name]), name


def test_grids_and_scores_also_within_an_epoch(tmp_path, stripes):
    """With --grid-every 0.5; a resumed run adds to them, and the animation has one page for each."""
    config = gan.Config(output_dir=tmp_path, batch_size=32, epochs=2, grid_every=0.5)
    result = start_result("gan_mnist", "", "", config, "pictures", torch.device("cpu"), stripes)
    result.folder.mkdir(exist_ok=True)
    for epochs, resume in ((1, False), (2, True)):
        own = replace(config, epochs=epochs, resume=resume)
        G, D = gan.build(own, stripes.shape, torch.device("cpu"))
        watching = gan.observer(own, result, None)
        run = gan.train(own, stripes, G, D, tmp_path / "a.pth", after_epoch=watching)
    assert run.curve("grid_epoch").tolist() == [0.5, 1, 1.5, 2]
    names = ["epoch_000.50.png", "epoch_001.png", "epoch_001.50.png", "epoch_002.png"]
    pictures = [(result.folder / name).read_bytes() for name in names]
    assert len(set(pictures)) == 4
    gan.evaluate(config, stripes, run, None, result)
    written = [entry["path"] for entry in result.files]
    assert [path for path in written if path.startswith("epoch_")] == names
    with Image.open(result.folder / "training.gif") as animation:
        assert animation.n_frames == 4


def test_a_kept_checkpoint_is_sampled_from(judged):
    """The first kept one draws other images than the last, which is the latest one."""
    shared = ("gan_mnist", "--quick", "--dataset", "mnist-5k", "--output-dir", judged)
    run_here(*shared, "--keep-every", 1)
    models = judged / "GAN_models"
    assert {path.name for path in models.iterdir()} == {
        "mlp_gan.pth", "mlp_gan_epoch_0001.pth", "mlp_gan_epoch_0002.pth",
    }  # fmt: skip
    drawn = {}
    for name in ("", "_epoch_0001", "_epoch_0002"):
        path = models / f"mlp_gan{name}.pth"
        run_here(*shared, "--checkpoint", path, "--samples-file", judged / "s.npz")
        drawn[name] = np.load(judged / "s.npz")["images"]
    run_here(*shared, "--sample-only", "--samples-file", judged / "s.npz")
    assert (np.load(judged / "s.npz")["images"] == drawn[""]).all()
    assert (drawn["_epoch_0002"] == drawn[""]).all()
    assert (drawn["_epoch_0001"] != drawn[""]).any()


def test_damaged_checkpoints_are_told_and_kept(main_job, tmp_path):
    path = tmp_path / "GAN_models" / "mlp_gan.pth"
    path.parent.mkdir()
    shared = ("--sample-only", "--output-dir", tmp_path)
    assert "There is no checkpoint" in complaint("gan_mnist", *shared)
    whole = (main_job / "GAN_models" / "mlp_gan.pth").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in complaint("gan_mnist", *shared)
    assert len(path.read_bytes()) == len(whole) // 2
    path.write_bytes((main_job / "diffusion_models/fast_mlp_diffusion.pth").read_bytes())
    assert "written by 'mlp_diffusion'" in complaint("gan_mnist", *shared)


def test_your_own_folder_of_pictures(tmp_path):
    rng = np.random.default_rng(0)
    for kind, offset in (("light", 120), ("dark", 0)):
        (tmp_path / "own" / kind).mkdir(parents=True)
        for i in range(20):
            array = rng.integers(0, 100, (40, 30, 3)) + offset
            Image.fromarray(array.astype(np.uint8)).save(tmp_path / "own" / kind / f"{i}.png")
    shown, _ = run_here("gan_mnist", "--epochs", 1, "--dataset", f"folder:{tmp_path / 'own'}",
                        "--num-samples", 300, "--output-dir", tmp_path,
                        "--samples-file", tmp_path / "s.npz")  # fmt: skip
    assert "not scored" in shown
    assert np.load(tmp_path / "s.npz")["images"].shape == (300, 32, 32, 3)


def test_wrong_input(tmp_path):
    shared = ("--quick", "--dataset", "mnist-5k", "--output-dir", tmp_path)
    assert "--epochs" in complaint("gan_mnist", *shared, "--epochs", 0)
    assert "--lr" in complaint("gan_mnist", *shared, "--lr", "nan")
    assert ".npz" in complaint("gan_mnist", *shared, "--samples-file", "a.png")
    assert "choose one" in complaint("gan_mnist", *shared, "--resume", "--sample-only")
