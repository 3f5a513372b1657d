from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from imagelab import figures
from imagelab.datasets import random_subset
from imagelab.pictures import read_png
from imagelab.results import Result
from imagelab.samples import (
    draw_comparison,
    draw_trajectory,
    report_samples,
    score_models,
    write_grid,
    write_samples,
)


def images(n: int, channels: int = 1) -> torch.Tensor:
    rng = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, channels, 8, 9), generator=rng, dtype=torch.uint8)


@pytest.fixture
def result(tmp_path) -> Result:
    return Result("demo", "A demo", "", tmp_path, {}, 0, "cpu")


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_file(tmp_path, capsys, channels):
    samples = images(5, channels)
    write_samples(tmp_path / "folder" / "a.npz", samples)
    with np.load(tmp_path / "folder" / "a.npz") as file:
        assert file.files == ["images"]
        array = file["images"]
    assert array.dtype == np.uint8
    assert array.shape == ((5, 8, 9) if channels == 1 else (5, 8, 9, 3))
    back = array if channels == 3 else array[..., None]
    assert (back.transpose(0, 3, 1, 2) == samples.numpy()).all()
    assert "5 samples" in capsys.readouterr().out


def test_no_samples_file_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_samples(None, images(3))
    assert list(tmp_path.iterdir()) == []


def test_a_grid_shows_the_first_hundred(tmp_path):
    samples = images(130)
    write_grid(tmp_path / "a.png", samples)
    assert (read_png(tmp_path / "a.png") == figures.grid(samples[:100], 10)).all()


def test_too_little_to_score_is_said(stripes, tmp_path, capsys):
    config = SimpleNamespace(output_dir=tmp_path, seed=0, quick=True)
    enough = replace(stripes, test_images=stripes.images, test_labels=stripes.labels)
    one_class = replace(enough, classes=("only",))
    for data, n in ((stripes, 320), (enough, 299), (one_class, 320)):
        assert score_models(config, data, {"a": stripes.images, "b": stripes.images[:n]}) == {}
        out = capsys.readouterr().out
        assert out.count("\n") == 1 and "not scored" in out
    assert list(tmp_path.iterdir()) == []


def test_every_model_is_scored_by_one_judge(stripes, tmp_path):
    config = SimpleNamespace(output_dir=tmp_path, seed=0, quick=True)
    data = replace(stripes, test_images=stripes.images.flip(0), test_labels=stripes.labels.flip(0))
    models = {"good": stripes.images, "bad": torch.zeros_like(stripes.images)}
    scores = score_models(config, data, models)
    assert scores.keys() == {"good", "bad"} and scores["good"].judge == scores["bad"].judge
    assert abs(scores["good"].frechet) < 1e-3 < 1 < scores["bad"].frechet
    assert max(scores["bad"].class_shares) == 1 and scores["good"].class_shares == [0.5, 0.5]


def test_a_report_without_scores_has_both_grids(stripes, result):
    report_samples(result, stripes.test_images, None, stripes)
    assert [f["path"] for f in result.files] == ["samples.png", "real.png"]
    shown = read_png(result.folder / "samples.png")
    assert (shown == figures.grid(stripes.test_images, 10)).all()
    real = stripes.images[random_subset(320, 100, "real grid")]
    assert (read_png(result.folder / "real.png") == figures.grid(real, 10)).all()
    assert result.metrics == {}


def test_a_report_with_scores_has_figures_and_the_histogram(stripes, result):
    from imagelab.metrics import SampleScores

    scores = SampleScores(300, 5.0, 1.0, [0.25, 0.75], [0.5, 0.5], 0.9, "CNN 1234")
    report_samples(result, stripes.test_images, scores, stripes)
    assert result.metrics["Fréchet distance"].value == 5
    assert all(path.is_file() for path in result.pictures())
    assert "classes.png" in {f["path"] for f in result.files}


def test_a_comparison_is_drawn_with_and_without_scores(tmp_path):
    draw_comparison(tmp_path / "a.png", {"one": images(40), "two": images(36)}, {})
    draw_comparison(tmp_path / "b.png", {"one": images(40)}, {})
    assert read_png(tmp_path / "a.png").shape[1] > 1.5 * read_png(tmp_path / "b.png").shape[1]


@pytest.mark.parametrize(("steps", "shown"), [(12, 4), (5, 9), (1, 3)])
def test_a_trajectory_is_a_strip_and_an_animation(result, steps, shown):
    states = [(steps - k, (images(3) // steps) * (k + 1)) for k in range(steps)]
    draw_trajectory(result, states, shown=shown)
    strip, animation = (result.folder / f"reverse_process.{kind}" for kind in ("png", "gif"))
    assert result.pictures() == [strip, animation]
    with Image.open(strip) as picture:
        assert min(picture.size) > 50
    with Image.open(animation) as gif:
        assert gif.n_frames == steps
        assert gif.size == (3 * (3 * 9 + 2 * 2), 3 * 8)
        gif.seek(steps - 1)
        last = np.asarray(gif.convert("L")).astype(int)
    expected = figures.grid(states[-1][1], columns=3, scale=3)
    assert np.abs(last - expected).mean() < 3
