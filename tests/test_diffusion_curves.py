from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import complaint, has_headline, run_here

from imagelab.report.evaluator import frechet_distance
from studies.diffusion_curves import Point, lesson_of_guidance, lesson_of_steps, spread_of_distance


def point(distance: float, spread: float) -> Point:
    return Point(distance, spread, coverage=0.9, accuracy=0.97, milliseconds=5.0)


def test_the_spread_is_that_from_one_set_to_the_next():
    rng = torch.Generator().manual_seed(0)
    real = torch.randn(300, 16, generator=rng)
    sets = [1.2 * torch.randn(300, 16, generator=rng) + 0.3 for _ in range(40)]
    expected = np.std([frechet_distance(x, real) for x in sets], ddof=1)
    found = [spread_of_distance(x, real) for x in sets[:4]]
    assert 0.1 < expected < 1
    assert np.mean(found) == pytest.approx(expected, rel=0.3)
    assert spread_of_distance(sets[0], real) == found[0]  # the same again
    assert spread_of_distance(sets[0].repeat(4, 1), real) < 0.7 * found[0]  # of more, less


def test_distances_that_differ_by_less_than_two_spreads_are_not_told_apart():
    assert point(50, 4).differs(point(41, 4.4)) and point(41, 4.4).differs(point(50, 4))
    assert not point(50, 4).differs(point(41, 4.6))

    found = {
        "ddpm": {10: point(60, 5), 1000: point(31, 6)},
        "ddim": {20: point(99, 1)},
        "dpm-solver": {20: point(40, 6.5), 50: point(20, 1)},
    }
    result = SimpleNamespace(add_metric=lambda *_: None)
    lesson = lesson_of_steps(found, 300, result)
    assert "in 20 steps has a distance of 40, DDPM in 1000 of 31" in lesson
    assert "varies by 6.5, so the two cannot be told apart" in lesson
    found["dpm-solver"][20] = point(45, 6.5)
    assert "so the two differ" in lesson_of_steps(found, 300, result)
    del found["dpm-solver"][20]  # no few steps were measured: the fewest there are
    assert "in 50 steps has a distance of 20" in lesson_of_steps(found, 300, result)


def test_the_best_scale_is_named_with_those_that_may_be_as_good():
    scales = {0.0: point(80, 5), 1.0: point(31, 5), 1.5: point(30, 5), 3.0: point(39, 5)}
    found = {}
    result = SimpleNamespace(add_metric=lambda name, value, n: found.update({name: value}))
    lesson = lesson_of_guidance(scales, 300, result)
    assert "1.5 has the smallest distance; n = 300 does not tell it from 1 and 3" in lesson
    assert found == {"scale of the smallest distance": 1.5}
    del scales[1.0], scales[3.0]
    assert lesson_of_guidance(scales, 300, result).endswith("1.5 has the smallest distance.")


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
    assert [row[1] for row in guidance["rows"]] == [0, 1, 3]
    assert {row[0] for row in steps["rows"]} == {"ddpm", "ddim", "dpm-solver"}
    for table in (guidance, steps, lengths):
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        assert all(0 < row["its spread"] < row["Fréchet distance"] for row in rows)
        assert all("(95 %: " in row["accuracy"] for row in rows)  # n = 300
    spread = result["metrics"]["spread of the distance at this n"]
    assert spread["n"] == 300 and spread["value"] in [row[3] for row in steps["rows"]]


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
