from __future__ import annotations

import json

import pytest
import torch
from conftest import complaint, has_headline, run_here

from imagelab.report.evaluator import Scores
from studies import model_comparison as study


def measured(model: str, distance: float, coverage: float = 0.8, ms: float = 0.1):
    scores = Scores(300, distance, 1.0, 0.1, 1.0, coverage, [0.5, 0.5], 0.9, 3.0)
    image = torch.zeros(study.STEPS, 1, 4, 4, dtype=torch.uint8)
    return study.Measured(model, 0, scores, 2.0, ms, 10, image, image)


def rows(**measured: list) -> dict[str, dict]:
    return {name: study.table_row(name, of, 10.0) for name, of in measured.items()}


def test_a_row_holds_means_and_the_spread():
    two = [measured("vae", 90.0), measured("vae", 110.0, coverage=0.05)]
    row = rows(vae=two)["vae"]
    assert row["Fréchet distance"] == 100 and row["its spread"] == pytest.approx(0.2)
    assert row["failed runs"] == 1 and row["coverage"] == pytest.approx(0.425)
    assert row["seconds per epoch"] == 5 and row["entropy of classes"] == pytest.approx(1)


def test_a_claim_is_checked_against_what_was_measured():
    textbook = rows(
        vae=[measured("vae", 100, 0.9)] * 2,
        gan=[measured("gan", d, 0.3) for d in (50, 70)],
        dcgan=[measured("dcgan", d, 0.3) for d in (40, 60)],
        ddpm=[measured("ddpm", 20, 0.9, ms=5.0)] * 2,
    )
    assert [verdict for *_, verdict in study.claims(textbook)] == ["agrees"] * 5
    other = rows(
        vae=[measured("vae", d, 0.3, ms=9.0) for d in (30, 60)],
        gan=[measured("gan", 100, 0.9)] * 2,
        dcgan=[measured("dcgan", 100, 0.9)] * 2,
        ddpm=[measured("ddpm", d, 0.3, ms=0.1) for d in (101, 301)],
    )
    assert [verdict for *_, verdict in study.claims(other)] == [
        "does not agree", "does not agree", "does not agree", "does not agree", "does not agree",
    ]  # fmt: skip
    mixed = textbook | {"gan": other["gan"]}
    assert study.claims(mixed)[3][2] == "in part"  # the MLP GAN covers, the DCGAN does not
    assert study.claims({name: textbook[name] for name in ("gan", "dcgan")}) == []
    two = {name: textbook[name] for name in ("gan", "ddpm")}
    assert len(study.claims(two)) == 4 and all(
        "VAE" not in said for _, said, _ in study.claims(two)
    )
    slow = textbook | {
        "unet": study.table_row("unet", [measured("unet", 10, 0.9, ms=20.0)] * 2, 10.0)
    }
    assert [verdict for *_, verdict in study.claims(slow)] == ["agrees"] * 5
    assert "U-Net DDPM 10" in study.claims(slow)[1][1]


def test_the_paragraph_says_where_they_differ():
    said = [["GANs draw better than VAEs.", "", "does not agree"], ["VAEs are fast.", "", "agrees"]]
    text = study.summary(said, study.Config(budget=7), 500)
    assert "7 seconds" in text and "500 images" in text
    assert "agrees with the textbook that VAEs are fast." in text
    assert "does not agree that GANs draw better than VAEs." in text


def test_a_quick_comparison(judged, tmp_path):
    run_here("studies.model_comparison", "--quick", "--budget", 1, "--num-samples", 300,
             "--dataset", "mnist-5k", "--output-dir", tmp_path)  # fmt: skip
    folder = tmp_path / "study_images" / "model_comparison"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert has_headline("model_comparison", result)
    table, said = result["tables"]
    names = [row[0] for row in table["rows"]]
    assert names[:-2] == [*study.NAMES.values()] and "floor" in names[-2]
    assert "memoriser" in names[-1] and table["rows"][-1][1] < table["rows"][-2][1]
    assert all(row[1] > table["rows"][-2][1] for row in table["rows"][:-2])
    assert len(said["rows"]) == 4  # one seed says nothing of stability
    assert "seconds from each of 1 seeds" in result["summary"]
    assert all((folder / entry["path"]).is_file() for entry in result["files"])
    models = {path.name for path in (tmp_path / "study_models" / "model_comparison").iterdir()}
    assert models == {f"{name}_seed0.pth" for name in study.TRAIN}

    # Half of the budget is not what was trained.
    study_ = "studies.model_comparison", "--quick", "--models", "vae", "--dataset", "mnist-5k"
    assert "trained for 1 seconds already" in complaint(
        *study_, "--budget", 0.5, "--num-samples", 300, "--resume", "--output-dir", tmp_path
    )
    path = tmp_path / "study_models" / "model_comparison" / "vae_seed0.pth"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "config": {**state["config"], "quick": False}}, path)
    assert "which --quick would overwrite" in complaint(*study_, "--output-dir", tmp_path)


def test_without_scores_there_is_no_comparison(tmp_path):
    sentence = complaint("studies.model_comparison", "--quick", "--num-samples", 10,
                         "--dataset", "mnist-5k", "--output-dir", tmp_path)  # fmt: skip
    assert "nothing to compare" in sentence
