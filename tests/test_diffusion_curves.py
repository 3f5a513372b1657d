from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import complaint, has_headline, run_here

from imagelab.data.datasets import load_dataset
from imagelab.report.evaluator import density_and_coverage, frechet_distance
from studies import diffusion_curves
from studies.diffusion_curves import (
    Config,
    Point,
    bootstrap_counts,
    coverage_and_reach,
    evaluator_of,
    frechet_distances,
    lesson_of_guidance,
    lesson_of_steps,
)


def gaussian(n: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, 16, generator=rng) + shift


def point(distance: float, spread: float, seed: int = 0) -> Point:
    """A point whose distance varies by `spread`; with another seed, from other noise."""
    rng = torch.Generator().manual_seed(seed)
    draws = distance + spread * torch.randn(400, generator=rng)
    values = torch.cat([torch.tensor([distance]), draws])
    return Point(values, 0.9, 0.02, accuracy=0.97, milliseconds=5.0, n=300)


def measured(samples: torch.Tensor, real: torch.Tensor) -> Point:
    distances = frechet_distances(samples, real, bootstrap_counts(len(samples)))
    shares = coverage_and_reach(samples, real)
    return Point(distances, *shares, accuracy=0.9, milliseconds=1.0, n=len(samples))


def test_the_set_itself_has_the_scores_of_the_evaluator_and_a_draw_those_of_its_rows():
    samples, real = gaussian(400, 1, 1.2, 0.3), gaussian(500, 2)
    counts = bootstrap_counts(400, draws=2)
    assert (counts[0] == 1).all() and (counts.sum(dim=1) == 400).all()
    for row, distance in zip(counts, frechet_distances(samples, real, counts), strict=True):
        drawn = samples.repeat_interleave(row, dim=0)
        assert distance.item() == pytest.approx(frechet_distance(drawn, real), rel=1e-6)
    assert torch.equal(counts, bootstrap_counts(400, draws=2))  # the same rows for every set


def test_the_coverage_is_the_evaluator_s_and_its_interval_the_jackknife_s():
    """By its definition: the share without each sample in turn."""
    samples, real = gaussian(60, 1, 1.2, 0.3), gaussian(1200, 2)
    share, to_each_side = coverage_and_reach(samples, real)
    assert share == pytest.approx(density_and_coverage(samples, real)[1], abs=1e-6)
    without = [
        density_and_coverage(torch.cat([samples[:k], samples[k + 1 :]]), real)[1] for k in range(60)
    ]
    without = torch.tensor(without, dtype=torch.float64)
    variance = 59 / 60 * (without - without.mean()).square().sum().item()
    assert to_each_side == pytest.approx(1.96 * variance**0.5, rel=1e-3)


def test_the_intervals_reach_as_far_as_sets_vary():
    real = gaussian(500, 0)
    points = [measured(gaussian(500, k, 1.1), real) for k in range(1, 41)]
    for name in ("distance", "coverage"):
        values = torch.tensor([getattr(p, name) for p in points])
        mean = sum(getattr(p, f"{name}_reach") for p in points) / len(points)
        assert mean == pytest.approx(1.96 * values.std().item(), rel=0.35), name
    again = measured(gaussian(500, 1, 1.1).repeat(4, 1), real)
    assert again.distance_reach < 0.7 * points[0].distance_reach  # of more, less


def test_sets_of_the_same_kind_rarely_differ_and_others_do():
    real = gaussian(300, 0)
    alike = [measured(gaussian(300, k, 1.1), real) for k in range(1, 41)]
    wrong = sum(a.differs(b) for a, b in zip(alike[::2], alike[1::2], strict=True))
    assert wrong <= 3  # of twenty, at 95 %
    wider = measured(gaussian(300, 99, 1.4), real)
    assert sum(wider.differs(other) for other in alike) == 40


def test_what_two_sets_have_in_common_cancels():
    """A small change of every sample is told apart, which is lost among other samples."""
    real, samples = gaussian(300, 0), gaussian(300, 1, 1.1)
    moved = measured(samples * 1.01, real), measured(samples, real)
    others = measured(gaussian(300, 2, 1.11), real), moved[1]
    assert moved[0].less(moved[1])[1] < others[0].less(others[1])[1] / 5
    assert moved[0].differs(moved[1]) and not others[0].differs(others[1])


def lesson(solver: Point, ddpm: Point, few: Point) -> tuple[str, list]:
    """What is said of the solver and of DDPM in 20 steps, and what is noted, beside DDPM in 1,000."""
    found = {
        "ddpm": {10: point(60, 5), 20: few, 1000: ddpm},
        "ddim": {20: point(99, 1)},
        "dpm-solver": {20: solver, 50: point(20, 1)},
    }
    metrics = []
    result = SimpleNamespace(
        add_metric=lambda name, value, n, interval: metrics.append((name, value, interval))
    )
    return lesson_of_steps(found, 2000, result), metrics


def test_few_steps_are_called_like_many_only_as_far_as_was_measured():
    many = point(41, 2, seed=1)
    told, ((name, value, (low, high)), _) = lesson(point(40, 2), many, point(55, 2))
    assert name == "dpm-solver in 20 steps: distance less ddpm's in 1000"
    assert "DPM-Solver++ in 20 steps has a distance of 40.0, DDPM in 1,000 of 41.0" in told
    assert value == pytest.approx(-1, abs=1e-5) and low < -6 and high > 4
    assert f"do not tell them apart, and they differ by less than {-low:.1f}. DDPM in 20" in told
    assert told.endswith("the many steps come nearer to the data.")  # than DDPM's few
    told, ((_, _, (low, high)), (name, value, _)) = lesson(point(26, 2), many, point(42, 2))
    assert high < 0 and "): the few steps come nearer to the data. DDPM in 20 steps has" in told
    assert name == "ddpm in 20 steps: distance less ddpm's in 1000" and value == pytest.approx(1)
    assert "do not tell them apart" in told.split("DDPM in 20")[1]
    only = {"ddpm": {10: point(60, 5)}, "dpm-solver": {50: point(20, 1)}}
    nothing = SimpleNamespace(add_metric=lambda *_, **__: None)
    told = lesson_of_steps(only, 2000, nothing)
    assert "in 50 steps has a distance of 20" in told and "DDPM in 10 steps has" not in told


def test_the_best_scale_is_named_with_those_that_may_be_as_good():
    scales = {0.0: point(80, 2), 1.0: point(31, 2, 1), 1.5: point(30, 2, 2), 3.0: point(33, 2, 3)}
    found = {}
    result = SimpleNamespace(add_metric=lambda name, value, n: found.update({name: value}))
    lesson = lesson_of_guidance(scales, 300, result)
    assert "1.5 has the smallest distance; n = 300 does not tell it from 1 and 3" in lesson
    assert found == {"scale of the smallest distance": 1.5}
    del scales[1.0], scales[3.0]
    assert lesson_of_guidance(scales, 300, result).endswith("1.5 has the smallest distance.")


def test_held_out_digits_come_in_as_many_variations_as_training_digits(monkeypatch):
    data = load_dataset("mnist-5k", "data").shortened(3000, 500)
    given = []
    monkeypatch.setattr(
        diffusion_curves.samples, "evaluator_for", lambda _, data, n: given.append((data, n)) or 1
    )
    evaluator_of(Config(), data)
    ((seen, n),) = given
    assert n == 2000 and len(seen.test_images) == len(seen.test_labels) == 7000
    assert torch.equal(seen.test_images[500:1000], data.test_images)
    evaluator_of(Config(), replace(data, name="mnist"))
    assert len(given[1][0].test_images) == 500


def test_curves_come_from_the_checkpoint(unet_run):
    run_here(
        "studies.diffusion_curves", "--quick", "--dataset", "mnist-5k", "--output-dir", unet_run
    )
    folder = unet_run / "study_images" / "diffusion_curves"
    assert all((folder / n).is_file() for n in ("steps.png", "guidance_curve.png", "lengths.png"))
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert has_headline("diffusion_curves", result)
    assert result["learned"] == ""  # a quick run
    guidance, steps, lengths = result["tables"]
    assert [row[1] for row in guidance["rows"]] == [0, 1, 3, ""]
    assert {row[0] for row in steps["rows"][:-1]} == {"ddpm", "ddim", "dpm-solver"}
    for table in (guidance, steps, lengths):
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        assert (rows[-1][""] if "" in rows[-1] else rows[-1]["sampler"]) and len(rows) > 1
        for row in rows[:-1]:
            assert 0 < row["distance ± (95 %)"] < row["Fréchet distance"]
            assert 0 < row["coverage ± (95 %)"] < 0.2
            low, high = map(float, row["95 %"].split(" to "))
            assert low < row["accuracy"] < high
    assert [table["rows"][-1][0] for table in (guidance, steps)] == ["held-out images (floor)"] * 2
    gap = result["metrics"]["dpm-solver in 5 steps: distance less ddpm's in 10"]
    by_name = {(row[0], row[1]): row[2] for row in steps["rows"]}
    difference = by_name["dpm-solver", 5] - by_name["ddpm", 10]
    assert gap["value"] == pytest.approx(difference) and gap["n"] == 300
    low, high = gap["interval"]
    assert low < difference < high
    last = {(row[0], row[1]): row[-1] for row in steps["rows"]}
    assert last["ddpm", 10] == ""  # itself
    assert last["dpm-solver", 5] == f"{difference:+.1f} ({low:+.1f} to {high:+.1f})"
    assert steps["columns"][-1] == "distance less ddpm's in 10 (95 %)"
    assert [row[-1] == "" for row in lengths["rows"]] == [True, False]


def test_without_a_second_training(unet_run):
    run_here("studies.diffusion_curves", "--quick", "--short-t", "None", "--few-steps", 2,
             "--scales", 1, "--dataset", "mnist-5k", "--output-dir", unet_run)  # fmt: skip
    folder = unet_run / "study_images" / "diffusion_curves"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert len(result["tables"]) == 2
    assert "lengths.png" not in [entry["path"] for entry in result["files"]]


def test_without_a_network_one_sentence(tmp_path):
    assert "train first (unet_diffusion" in complaint(
        "studies.diffusion_curves", "--output-dir", tmp_path
    )


def test_lengths_that_no_training_has_are_refused_at_once(unet_run):
    study = "studies.diffusion_curves", "--quick", "--dataset", "mnist-5k", "--output-dir", unet_run
    assert "up to 1000" in complaint(*study, "--lengths", 2000)
    assert "10" in complaint(*study, "--short-t", 10, "--steps", 21)
