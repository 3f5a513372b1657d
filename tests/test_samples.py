from __future__ import annotations

import importlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import complaint
from PIL import Image

from imagelab.data.datasets import Dataset, random_subset
from imagelab.data.pictures import read_png
from imagelab.report import figures
from imagelab.report.evaluator import Evaluator
from imagelab.report.results import Result
from imagelab.report.samples import (
    add_quality,
    add_trajectory,
    evaluator_for,
    plot_comparison,
    report_neighbours,
    report_samples,
    track,
    write_grid,
    write_samples,
)
from imagelab.setup.runtime import UserError
from imagelab.techniques.classifier import digest, trained_classifier
from imagelab.training.loop import Training


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


@pytest.mark.parametrize("channels", [1, 3])
def test_a_title_stands_above_the_grid(tmp_path, channels):
    samples = images(100, channels)
    for title in ("epoch 1", "epoch 2"):
        write_grid(tmp_path / f"{title}.png", samples, title=title)
    first, second = (read_png(tmp_path / f"epoch {k}.png") for k in (1, 2))
    sheet = figures.grid(samples, 10)
    assert (first[-len(sheet) :] == sheet).all() and (second[-len(sheet) :] == sheet).all()
    assert (first[: -len(sheet)] != second[: -len(sheet)]).any() and first.min() < 50


@pytest.fixture(scope="module")
def enough(stripes) -> Dataset:
    """With as many held-out images as an evaluator needs; these are the training images, shuffled."""
    order = torch.randperm(320, generator=torch.Generator().manual_seed(0))
    return replace(stripes, test_images=stripes.images[order], test_labels=stripes.labels[order])


@pytest.fixture(scope="module")
def evaluator(enough, tmp_path_factory) -> Evaluator:
    config = SimpleNamespace(output_dir=tmp_path_factory.mktemp("evaluator"), seed=0, quick=True)
    return evaluator_for(config, enough, 310)


# --- the evaluator and the curve along the training ---------------------------------------------------


def test_too_little_to_score_is_said(stripes, enough, tmp_path, capsys):
    config = SimpleNamespace(output_dir=tmp_path, seed=0, quick=True)
    one_class = replace(enough, classes=("only",))
    for data, n, said in ((stripes, 320, "2 and 80"), (enough, 299, "2 and 299"),
                          (one_class, 320, "1 and 320")):  # fmt: skip
        assert evaluator_for(config, data, n) is None
        out = capsys.readouterr().out
        assert out.count("\n") == 1 and "not scored" in out and said in out
    assert list(tmp_path.iterdir()) == []


def test_the_evaluator_is_the_cached_classifier(enough, tmp_path):
    config = SimpleNamespace(output_dir=tmp_path, seed=0, quick=True)
    evaluator = evaluator_for(config, enough, 310)
    assert evaluator.n == 310
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.pth")}
    assert digest(trained_classifier(enough, tmp_path, 0, True)) in evaluator.name
    assert evaluator_for(config, enough, 310).name == evaluator.name
    assert evaluator_for(config, enough, 310, known=evaluator) is evaluator
    assert evaluator_for(config, enough, 300, known=evaluator).n == 300
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.pth")} == files != {}


class Run:
    """What `track` and `add_quality` need of a Training: five steps an epoch."""

    steps_per_epoch, steps_done, _board, shared = 5, 0, None, False
    curve = Training.curve
    log = Training.log
    epochs_done = Training.epochs_done

    def __init__(self) -> None:
        self.history = {}


def test_quality_is_tracked(stripes, evaluator, result):
    run = Run()
    track(run, evaluator, stripes.images[: evaluator.n])
    add_quality(result, run, evaluator)
    assert result.files == []  # one point is no curve
    run.history.clear()
    for run.steps_done, samples in ((5, torch.zeros_like(stripes.images)), (12, stripes.images)):
        track(run, evaluator, samples[: evaluator.n])
    assert {k: len(run.curve(k)) for k in run.history} == {
        "tracked_epoch": 2, "tracked_distance": 2, "tracked_coverage": 2
    }  # fmt: skip
    assert run.curve("tracked_epoch").tolist() == pytest.approx([1, 2.4])
    scores = evaluator.scores(stripes.images)
    bad, good = run.curve("tracked_distance").tolist()
    assert good == pytest.approx(scores.frechet, rel=1e-3) and bad > 100 * good
    assert run.curve("tracked_coverage").tolist() == pytest.approx([0, scores.coverage], abs=0.01)
    add_quality(result, run, evaluator)
    assert [f["path"] for f in result.files] == ["quality.png"]
    assert read_png(result.folder / "quality.png").shape[1] > 300


def test_without_an_evaluator_no_curve_is_drawn(result):
    add_quality(result, Run(), None)
    assert result.files == []


# --- the report -----------------------------------------------------------------------------------


def test_a_report_without_an_evaluator_has_both_grids(stripes, result):
    assert report_samples(result, stripes.test_images, None, stripes) is None
    assert [f["path"] for f in result.files] == ["samples.png", "real.png", "neighbours.png"]
    shown = read_png(result.folder / "samples.png")
    assert (shown == figures.grid(stripes.test_images, 10)).all()
    real = stripes.images[random_subset(320, 100, "real grid")]
    assert (read_png(result.folder / "real.png") == figures.grid(real, 10)).all()
    assert list(result.metrics) == ["distance to the nearest training image"]


def test_a_report_with_an_evaluator_has_figures_histogram_and_neighbours(
    stripes, enough, evaluator, result
):
    rows = torch.randperm(320, generator=torch.Generator().manual_seed(1))
    samples = enough.images[rows].clone()
    samples[:, :, :4, :4] = 255  # close to the training images, not equal to them
    scores = report_samples(result, samples, evaluator, enough)
    assert scores.frechet == pytest.approx(evaluator.scores(samples).frechet, rel=1e-3)
    assert result.evaluator == evaluator.name
    for name, value, floor in (
        ("Fréchet distance", scores.frechet, evaluator.floor.frechet),
        ("coverage", scores.coverage, evaluator.floor.coverage),
    ):
        assert (result.metrics[name].value, result.metrics[name].floor) == (value, floor)
        assert result.metrics[name].n == evaluator.n
    names = [f["path"] for f in result.files]
    assert names == ["samples.png", "real.png", "classes.png", "neighbours.png"]
    assert all(path.is_file() for path in result.pictures())
    assert (
        f"{result.metrics['distance to the nearest training image'].floor:.3f}"
        in (result.files[-1]["caption"])
    )


def test_neighbours_stand_below_their_samples_with_their_distances(enough, result, monkeypatch):
    drawn = {}

    def plot_rows(rows, columns):
        drawn.update(rows=rows, columns=columns)
        return figures.new_figure(1, 1)[0]

    monkeypatch.setattr(figures, "plot_rows", plot_rows)
    rows = torch.randperm(320, generator=torch.Generator().manual_seed(1))
    samples = enough.images[rows].clone()
    samples[:, :, :4, :4] = 255  # close to the training images, not equal to them
    report_neighbours(result, samples, enough)
    shown, nearest = drawn["rows"].values()
    ten = torch.linspace(0, 319, 10).long()  # of all of them, evenly
    assert torch.equal(shown, samples[ten]) and torch.equal(nearest, enough.images[rows[ten]])
    error = (samples[ten].double() - enough.images[rows[ten]]).div(255).square()
    expected = error.mean(dim=(1, 2, 3)).sqrt().tolist()
    assert [float(name.split()[-1]) for name in drawn["columns"]] == pytest.approx(
        expected, abs=6e-4
    )


@pytest.mark.parametrize("learnt", [True, False])
def test_images_learnt_by_heart_lie_at_no_distance(enough, evaluator, result, learnt):
    held_out = 255 - enough.test_images  # unlike the training images
    data = replace(enough, test_images=held_out)
    report_samples(result, enough.images if learnt else held_out, evaluator, data)
    distance = result.metrics["distance to the nearest training image"]
    assert distance.n == 320 and distance.floor > 0.1
    assert distance.value < 1e-3 if learnt else distance.value == pytest.approx(distance.floor)


def test_a_comparison_is_drawn_with_and_without_scores(tmp_path):
    for name, shown in (("a", {"one": images(40), "two": images(36)}), ("b", {"one": images(40)})):
        figures.save_figure(plot_comparison(shown, {}), tmp_path / f"{name}.png")
    assert read_png(tmp_path / "a.png").shape[1] > 1.5 * read_png(tmp_path / "b.png").shape[1]


@pytest.mark.parametrize(("steps", "shown"), [(12, 4), (5, 9), (1, 3)])
@pytest.mark.parametrize("both", [False, True])
def test_a_trajectory_is_a_strip_and_an_animation(result, steps, shown, both, monkeypatch):
    drawn, enter = [], result.add_figure
    monkeypatch.setattr(result, "add_figure", lambda *a: drawn.append(a[1]) or enter(*a))
    states = [(steps - k, (images(3) // steps) * (k + 1)) for k in range(steps)]
    forward = states[::-1] if both else None
    add_trajectory(result, states, forward, shown=shown)
    strip, animation = (result.folder / f"reverse_process.{kind}" for kind in ("png", "gif"))
    assert result.pictures() == [strip, animation]
    assert ("forward" in result.files[0]["caption"]) == both
    titles = [axis.get_title() for axis in drawn[0].axes if axis.get_title()]
    assert {"t = 1", f"t = {steps}"} <= set(titles)  # both ends of the way
    assert len(titles) == (1 + both) * min(shown, steps)
    times = [int(title.removeprefix("t = ")) for title in titles]
    strip_of = {"reverse": times[-min(shown, steps) :], "forward": times[: min(shown, steps)]}
    assert not both or strip_of["forward"] == strip_of["reverse"][::-1]
    gaps = -np.diff(strip_of["reverse"])  # from noise to image, nearer and nearer to each other
    assert (gaps > 0).all() and (np.diff(gaps) <= 0).all()
    with Image.open(strip) as picture:
        assert min(picture.size) > 50
    with Image.open(animation) as gif:
        assert gif.n_frames == (steps // 2 + 1 if both else steps)  # every second one of both
        gif.seek(gif.n_frames - 1)
        last = np.asarray(gif.convert("L")).astype(int)
    expected = figures.grid(states[-1][1], columns=3, scale=3)
    if (
        both
    ):  # each under its name and t: the forward process has become noise, the reverse one images
        sheets = [figures.grid(part[-1][1], columns=2, scale=4) for part in (forward, states)]
        assert last.shape[0] > len(sheets[0])
        last = last[-len(sheets[0]) :]
        expected = np.concatenate([sheets[0], np.full((len(last), 24), 255), sheets[1]], axis=1)
    assert last.shape == expected.shape and np.abs(last - expected).mean() < 3


@pytest.mark.parametrize(
    ("script", "picture"),
    [
        ("gan_mnist", "real.png"),
        ("mlp_diffusion", "real.png"),
        ("studies.adversarial_training", "ball.png"),
        ("studies.cnn_classifier", "examples.png"),
        ("studies.dcgan", "real.png"),
        ("studies.model_comparison", "real.png"),
        ("studies.unet_diffusion", "real.png"),
        ("studies.vae", "real.png"),
    ],
)
def test_there_is_a_picture_before_anything_is_trained(script, picture, tmp_path, monkeypatch):
    def stop(*_args, **_more):
        raise UserError("here the first training would begin")

    module = importlib.import_module(script)
    monkeypatch.setattr("imagelab.report.samples.trained_classifier", stop)
    monkeypatch.setattr(module, "train", stop, raising=False)  # dcgan has gan_mnist's
    told = complaint(script, "--dataset", "mnist-5k", "--output-dir", tmp_path)
    assert told.endswith("here the first training would begin")
    shown = read_png(tmp_path / module.PICTURES / picture)
    assert shown.shape == (596, 596) if picture == "real.png" else min(shown.shape[:2]) > 200
