from __future__ import annotations

import json

import pytest
import torch
from conftest import complaint, has_headline, run_here

from imagelab.report.evaluator import Scores
from studies import model_comparison as study


def measured(model: str, distance: float, coverage: float = 0.8, ms: float = 0.1):
    scores = Scores(300, distance, 1.0, 0.1, 1.0, coverage, [0.5, 0.5], [0.5, 0.4], 3.0)
    image = torch.zeros(study.STEPS, 1, 4, 4, dtype=torch.uint8)
    inside = [str(k) for k in range(study.STEPS)], image
    return study.Measured(model, 0, scores, 2.0, ms, 10, image, inside)


def rows(**measured: list) -> dict[str, dict]:
    return {name: study.table_row(name, of, 10.0) for name, of in measured.items()}


def test_a_row_holds_means_and_the_spread():
    two = [measured("vae", 90.0), measured("vae", 110.0, coverage=0.05)]
    row = rows(vae=two)["vae"]
    assert row["Fréchet distance"] == 100 and row["its spread"] == pytest.approx(0.2)
    assert row["failed runs"] == 1 and row["coverage"] == pytest.approx(0.425)
    assert row["seconds per epoch"] == 5 and row["entropy of classes"] == pytest.approx(1)


@pytest.fixture(scope="module")
def textbook() -> dict[str, dict]:
    """Figures as textbooks have them."""
    return rows(
        vae=[measured("vae", 100, 0.9, ms=0.2)] * 2,
        gan=[measured("gan", d, 0.3) for d in (50, 70)],
        dcgan=[measured("dcgan", d, 0.3) for d in (40, 60)],
        ddpm=[measured("ddpm", 20, 0.9, ms=5.0)] * 2,
    )


@pytest.fixture(scope="module")
def other() -> dict[str, dict]:
    """The other way round."""
    return rows(
        vae=[measured("vae", d, 0.3, ms=0.05) for d in (30, 60)],
        gan=[measured("gan", 100, 0.9, ms=9.0)] * 2,
        dcgan=[measured("dcgan", 100, 0.9, ms=9.0)] * 2,
        ddpm=[measured("ddpm", d, 0.3, ms=0.01) for d in (101, 301)],
    )


def test_a_claim_is_checked_against_what_was_measured(textbook, other):
    assert [verdict for *_, verdict in study.check_claims(textbook)] == ["agrees"] * 6
    assert [verdict for *_, verdict in study.check_claims(other)] == ["does not agree"] * 6
    mixed = textbook | {"gan": other["gan"]}
    verdicts = {text: verdict for text, _, verdict in study.check_claims(mixed)}
    # The MLP GAN covers and is slow, the DCGAN is as in the book.
    assert verdicts["GANs cover less of the data than VAEs and diffusion do."] == "in part"
    assert verdicts["VAEs are less efficient than GANs: an image takes longer."] == "in part"
    assert study.check_claims({name: textbook[name] for name in ("gan", "dcgan")}) == []
    two = {name: textbook[name] for name in ("gan", "ddpm")}
    assert len(study.check_claims(two)) == 4 and all(
        "VAE" not in figures for _, figures, _ in study.check_claims(two)
    )
    slow = textbook | {
        "unet": study.table_row("unet", [measured("unet", 10, 0.9, ms=20.0)] * 2, 10.0)
    }
    assert [verdict for *_, verdict in study.check_claims(slow)] == ["agrees"] * 6
    assert "U-Net DDPM 10" in study.check_claims(slow)[1][1]


def test_the_textbooks_table_stands_beside_its_verdicts(textbook, other):
    for figures, verdict in ((textbook, "agrees"), (other, "does not agree")):
        table = study.textbook_table(figures)
        assert [row[:4] for row in table] == [[k, *said] for k, said in study.TEXTBOOK.items()]
        assert len(table) == 5 and [row[5] for row in table[:4]] == [verdict] * 4
        assert table[4][5] == "to be looked at" and "inside_" in table[4][4]  # interpretability
    quality = study.textbook_table(textbook | {"vae": other["vae"]})[1]
    assert quality[5] == "in part"  # diffusion before the GANs, but these behind the VAE
    assert "VAE 45" in quality[4] and "MLP DDPM 20" in quality[4]
    one = {name: study.table_row(name, [measured(name, 50)], 10.0) for name in ("vae", "gan")}
    assert study.textbook_table(one)[0][4:] == ["", "not measured"]  # one seed has no spread


def test_the_paragraph_says_where_they_differ():
    said = [["GANs draw better than VAEs.", "", "does not agree"], ["VAEs are fast.", "", "agrees"]]
    text = study.summary(said, study.Config(budget=7), 500)
    assert "7 seconds" in text and "500 images" in text
    assert "agrees with the textbook that VAEs are fast." in text
    assert "does not agree that GANs draw better than VAEs." in text


def test_a_quick_comparison(judged, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "SLOW", 0.5)  # the U-Nets' sampling is timed once, not three times
    run_here("studies.model_comparison", "--quick", "--budget", 1, "--num-samples", 300,
             "--dataset", "mnist-5k", "--output-dir", tmp_path)  # fmt: skip
    folder = tmp_path / "study_images" / "model_comparison"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert has_headline("model_comparison", result)
    table, textbook, said = result["tables"]
    assert [row[0] for row in textbook["rows"]] == list(study.TEXTBOOK)
    assert {row[-1] for row in textbook["rows"]} <= {
        "agrees", "in part", "does not agree", "not measured", "to be looked at",
    }  # fmt: skip
    names = [row[0] for row in table["rows"]]
    assert names[:-2] == [*study.NAMES.values()] and "floor" in names[-2]
    assert "memoriser" in names[-1] and table["rows"][-1][1] < table["rows"][-2][1]
    assert all(row[1] > table["rows"][-2][1] for row in table["rows"][:-2])
    assert len(said["rows"]) == 5  # one seed says nothing of stability
    pictures = {entry["path"] for entry in result["files"]}
    assert {f"inside_{name}.png" for name in study.TRAIN} <= pictures
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
