from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import complaint, run_here, untaught
from PIL import Image

from imagelab.techniques.diffusion import cosine_schedule, image_noise
from studies.inpainting import (
    MASKS,
    Config,
    classical_fillings,
    guess_class,
    hide_at_random,
    hole_psnr,
    make_holes,
    repaint,
    repaint_levels,
)
from studies.unet_diffusion import Model

# --- RePaint --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "jump", "repeats", "calls"), [(250, 10, 10, 2410), (50, 5, 5, 230)]
)
def test_repaint_walks_as_often_as_the_paper_s(steps, jump, repeats, calls):
    levels = repaint_levels(steps, jump, repeats)
    moves = [b - a for a, b in pairwise(levels)]
    assert levels[0] == steps and levels[-1] == 0 and set(moves) == {1, -1}
    assert moves.count(-1) == calls and moves.count(-1) - moves.count(1) == steps
    assert repaint_levels(7, 10, 5) == [7, 6, 5, 4, 3, 2, 1, 0]  # no room for a jump


def test_repaint_leaves_the_known_alone_and_fills_the_rest_with_the_estimate():
    s = cosine_schedule(100)
    known = torch.rand(2, 1, 4, 4) * 2 - 1
    hole = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    hole[..., 2:, :] = True
    calls = []

    def estimate(x, t):
        calls.append(t)
        return torch.full_like(x, 0.25)

    out = repaint(s, estimate, known, hole, image_noise(0, 0, 2, (1, 4, 4)), 20, 5, 3)
    assert torch.equal(out[~hole], known[~hole])
    assert torch.allclose(out[hole], torch.tensor(0.25), atol=1e-5)
    assert len(calls) == 20 + 3 * 2 * 5 and max(calls) == 99


def test_repaint_s_states_have_the_noise_of_their_level():
    """With a model that knows N(0, 1) images, every state is N(0, 1): up, down, inside and outside."""
    s = cosine_schedule(100)
    rng = torch.Generator().manual_seed(0)
    known = torch.randn(20_000, 2, generator=rng)
    hole = torch.tensor([True, False]).expand(20_000, 2)
    seen = []

    def estimate(x, t):
        seen.append(x.std(dim=0))
        alpha_bar = s.alpha_bar[t].item()
        exact = alpha_bar**0.5 * x  # E[x₀ | x_t]
        spread = (1 - alpha_bar) ** 0.5
        return exact + spread * torch.randn(x.shape, generator=rng)  # a draw of x₀ | x_t

    repaint(s, estimate, known, hole, lambda: torch.randn(20_000, 2, generator=rng), 20, 5, 3)
    assert torch.allclose(torch.stack(seen), torch.ones(len(seen), 2), atol=0.05)


# --- holes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MASKS)
def test_holes(kind):
    holes = make_holes(kind, 5, (1, 28, 28), 0)
    assert holes.shape == (5, 1, 28, 28) and holes.dtype == torch.bool
    share = holes.float().mean().item()
    assert {"box": share == 0.25, "half": share == 0.5, "strokes": 0.1 < share < 0.6}[kind]
    assert torch.equal(holes, make_holes(kind, 5, (1, 28, 28), 0))


def test_the_reader_learns_from_images_with_one_hole_of_each_kind():
    change = hide_at_random((1, 28, 28), 3, torch.device("cpu"))
    seen = change(torch.ones(300, 1, 28, 28), torch.Generator().manual_seed(0))
    kinds = {kind: make_holes(kind, 1000, (1, 28, 28), 3).float() for kind in MASKS}
    found = {
        kind: sum((holes == 1 - image).flatten(1).all(1).any().item() for image in seen)
        for kind, holes in kinds.items()
    }
    assert sum(found.values()) == 300 and min(found.values()) > 70


@pytest.mark.parametrize("channels", [1, 3])
def test_the_classical_methods_fill_the_hole_and_nothing_else(channels):
    images = torch.full((2, channels, 28, 28), 200, dtype=torch.uint8)
    images[:, :, 14:] = 40
    holes = make_holes("half", 2, (channels, 28, 28), 0)
    for name, filled in classical_fillings(images, holes).items():
        outside = ~holes.expand_as(images)
        assert filled.shape == images.shape, name
        assert torch.equal(filled[outside], images[outside]), name
        assert (filled[~outside].int() - 200).abs().max() < 10, name  # all that is seen is 200


def test_what_could_not_jump_is_refused():
    assert "there would be no jump" in complaint("studies.inpainting", "--repaint-steps", 9)
    Config(repaint_steps=10), Config(repaint_steps=9, repeats=1)


def test_psnr_counts_the_hole_alone():
    images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    holes = make_holes("half", 2, (1, 28, 28), 0)
    filled = images.clone()
    filled[:, :, 14:] = 51  # 0.2 of 255: 14 dB
    filled[:, :, :14] = 255
    found, to_each_side = hole_psnr(filled, images, holes)
    assert found == pytest.approx(13.98, abs=0.01)
    assert to_each_side == pytest.approx(0, abs=1e-4)  # both fillings are as far off


def test_the_interval_of_the_hole_s_psnr_is_that_of_other_images():
    """Of holes of different sizes, with errors that differ from image to image."""
    rng = torch.Generator().manual_seed(0)
    images = torch.zeros(4000, 1, 8, 8, dtype=torch.uint8)
    holes = torch.rand(4000, 1, 8, 8, generator=rng) < torch.rand(4000, 1, 1, 1, generator=rng)
    levels = 60 + 20 * torch.rand(4000, 1, 1, 1, generator=rng)
    filled = (levels * torch.ones(1, 1, 8, 8)).byte()
    parts = zip(*(x.split(100) for x in (filled, images, holes)), strict=True)
    found = torch.tensor([hole_psnr(*part) for part in parts])
    assert found[:, 1].mean().item() == pytest.approx(1.96 * found[:, 0].std().item(), rel=0.25)


def test_the_class_is_guessed_whose_estimate_finds_the_seen_part(monkeypatch):
    """A 'model' that draws one grey per class: the image's own grey must be found, with noise."""
    network = torch.nn.Linear(1, 1)
    network.classes = 4
    model = Model(network, cosine_schedule(100), "v", (1, 8, 8))
    greys = torch.tensor([-0.9, -0.3, 0.3, 0.9])

    def estimate(self, labels, guidance=1, rescale=0):
        return lambda x, t: greys[labels][:, None, None, None].expand_as(x)

    monkeypatch.setattr(Model, "class_estimator", estimate)
    wanted = torch.tensor([2, 0, 3, 1])
    images = ((greys[wanted] + 1) * 127.5).byte()[:, None, None, None].repeat(1, 1, 8, 8)
    images[:, :, 4:] = 77  # hidden: must not count
    assert torch.equal(guess_class(model, images, make_holes("half", 4, (1, 8, 8), 0)), wanted)


def test_a_run_leaves_what_was_promised(unet_run):
    run_here("studies.inpainting", "--quick", "--dataset", "mnist-5k", "--output-dir", unet_run)
    folder = unet_run / "study_images" / "inpainting"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert untaught("studies.inpainting", result) == []
    names = {entry["path"] for entry in result["files"]}
    assert names == {"box.png", "half.png", "strokes.png", "several.png"}
    assert all((folder / name).is_file() for name in names)
    assert (unet_run / "classifier_models" / "mnist-5k_cnn_holes_quick.pth").is_file()
    for table in result["tables"]:
        assert {"Telea", "Navier-Stokes", "diffusion, class by classifier"} < {
            row[0] for row in table["rows"]
        }
        assert all("(95 %: " in row[3] for row in table["rows"])  # of ten images
        assert all(0 < row[2] < 5 for row in table["rows"][:-1])
    low, high = result["metrics"]["half: class kept by diffusion"]["interval"]
    assert 0 <= low < high <= 1


def test_a_picture_of_one_s_own(unet_run, tmp_path):
    """One that is twice as high as wide: it gets margins, and so does the picture of the hole."""
    digit = np.zeros((40, 20), np.uint8)
    digit[5:35, 8:13] = 255
    Image.fromarray(digit).save(tmp_path / "one.png")
    hole = np.zeros((40, 20), np.uint8)
    hole[20:] = 255
    Image.fromarray(hole).save(tmp_path / "hole.png")
    model = unet_run / "study_models" / "unet_diffusion" / "unet.pth"
    run_here("studies.inpainting", "inpaint", "--image", tmp_path / "one.png", "--mask",
               tmp_path / "hole.png", "--output", tmp_path / "out.png", "--model", model,
               "--samples", 2, "--label", 1)  # fmt: skip
    out = np.asarray(Image.open(tmp_path / "out.png"))
    assert out.shape == (112, 232)
    seen = np.asarray(Image.fromarray(digit).resize((14, 28), Image.Resampling.LANCZOS))[:14]
    assert (out[: 14 * 4 : 4, 7 * 4 : 21 * 4 : 4] == seen).all()  # the known part is as it was
    assert (out[: 14 * 4, : 7 * 4] == 0).all()


def test_mistakes_are_told_in_a_sentence(unet_run, tmp_path):
    def said(*arguments):
        model = unet_run / "study_models" / "unet_diffusion" / "unet.pth"
        return complaint("studies.inpainting", "inpaint", "--model", model, *arguments)

    assert "no picture" in said("--image", "none.png", "--output", tmp_path / "o.png")
    assert "box, half, strokes" in said("--image", "none.png", "--output", tmp_path / "o.png",
                                        "--mask", "middle")  # fmt: skip
    for name, size, level in (
        ("one", (20, 20), 0),
        ("wide", (40, 20), 255),
        ("all", (20, 20), 255),
    ):
        Image.new("L", size, level).save(tmp_path / f"{name}.png")
    own = "--image", tmp_path / "one.png", "--output", tmp_path / "o.png", "--mask"
    assert "40×20 pixels" in said(*own, tmp_path / "wide.png")
    assert "hides all" in said(*own, tmp_path / "all.png")
    assert "hides nothing" in said(*own, tmp_path / "one.png")
    assert "must end in" in said("--image", "none.png", "--output", tmp_path / "o.txt")
    assert "train first (unet_diffusion" in complaint(
        "studies.inpainting", "--output-dir", tmp_path
    )


def test_neither_picture_nor_hole_is_written_over(tmp_path):
    for name in ("a", "hole"):
        Image.new("L", (28, 28), 200).save(tmp_path / f"{name}.png")
    for name in ("a", "hole"):
        output = tmp_path / f"{name}.png"
        sentence = complaint("studies.inpainting", "inpaint", "--image", tmp_path / "a.png",
                             "--mask", tmp_path / "hole.png", "--output", output)  # fmt: skip
        assert "choose another --output" in sentence
