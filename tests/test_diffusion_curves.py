from __future__ import annotations

import json

from conftest import complaint, has_headline, run_here


def test_curves_come_from_the_checkpoint(unet_run):
    run_here("studies.diffusion_curves", "--quick", "--dataset", "digits", "--output-dir", unet_run)
    folder = unet_run / "study_images" / "diffusion_curves"
    assert all((folder / n).is_file() for n in ("steps.png", "guidance_curve.png", "lengths.png"))
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert has_headline("diffusion_curves", result)
    tables = result["tables"]
    assert [row[0] for row in tables[0]["rows"]] == [0, 1, 3]
    assert {row[0] for row in tables[1]["rows"]} == {"ddpm", "ddim", "dpm-solver"}


def test_without_a_network_one_sentence(tmp_path):
    assert "unet_diffusion train first" in complaint(
        "studies.diffusion_curves", "--output-dir", tmp_path
    )


def test_lengths_that_no_training_has_are_refused_at_once(unet_run):
    study = "studies.diffusion_curves", "--quick", "--dataset", "digits", "--output-dir", unet_run
    assert "up to 1000" in complaint(*study, "--lengths", 2000)
    assert "10" in complaint(*study, "--short-t", 10, "--steps", 21)
