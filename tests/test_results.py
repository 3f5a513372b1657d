from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from imagelab.report.numbers import (
    mean_and_reach,
    metric_text,
    number,
    share_cell,
    text_table,
    wilson,
)
from imagelab.report.results import Result, start_result, write_json
from imagelab.setup.runtime import UserError
from imagelab.setup.settings import Settings


def result(folder: Path) -> Result:
    return Result("demo", "A demo", "What it does.", folder, {"seed": 3, "lr": 0.1}, 3, "cpu")


def saved(run: Result) -> dict:
    run.save()
    text = (run.folder / "results.json").read_text(encoding="utf-8")

    def refuse(constant: str):
        pytest.fail(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_everything_entered_is_in_the_file(tmp_path):
    run = result(tmp_path / "pictures")
    run.dataset = {"name": "stripes"}
    run.add_metric("PSNR", 31.25, 10, unit="dB", floor=20, better="higher")
    run.add_table("Accuracy", ["ε", "accuracy"], [[0.1, 0.9], [0.2, 0.8]])
    assert run.add_file("a.png", "A picture.") == tmp_path / "pictures" / "a.png"
    run.add_file("b.png", "A frame.", featured=False)
    record = saved(run)
    assert record.keys() >= {
        "script", "title", "summary", "dataset", "seed", "device", "versions", "config",
        "seconds", "metrics", "tables", "files",
    }  # fmt: skip
    assert (record["script"], record["title"], record["seed"]) == ("demo", "A demo", 3)
    assert record["config"] == {"seed": 3, "lr": 0.1} and record["dataset"] == {"name": "stripes"}
    assert record["metrics"] == {
        "PSNR": {"value": 31.25, "n": 10, "unit": "dB", "floor": 20, "better": "higher",
                 "memoriser": None, "interval": None}
    }  # fmt: skip
    assert record["threads"] == torch.get_num_threads()
    rows = [[0.1, 0.9], [0.2, 0.8]]
    assert record["tables"] == [{"caption": "Accuracy", "columns": ["ε", "accuracy"], "rows": rows}]
    assert [(f["path"], f["caption"], f["featured"]) for f in record["files"]] == [
        ("a.png", "A picture.", True),
        ("b.png", "A frame.", False),
    ]
    assert {"python", "torch", "numpy"} <= record["versions"].keys()
    assert record["seconds"] >= 0
    assert run.pictures() == [tmp_path / "pictures" / "a.png"]


def test_a_picture_that_is_not_there_is_not_noted(tmp_path):
    run = result(tmp_path)
    (tmp_path / "epoch_002.png").touch()
    assert run.note_file("epoch_001.png", "Epoch 1.") is None
    assert run.note_file("epoch_002.png", "Epoch 2.") == tmp_path / "epoch_002.png"
    assert [entry["path"] for entry in run.files] == ["epoch_002.png"]


def test_the_file_does_not_tell_where_it_lies(tmp_path):
    saved(result(tmp_path / "pictures"))
    assert str(tmp_path) not in (tmp_path / "pictures" / "results.json").read_text()


def test_nan_and_infinity_become_null(tmp_path):
    run = result(tmp_path)
    run.add_metric("a", math.nan, 1)
    run.add_metric("b", math.inf, 1, floor=-math.inf)
    run.add_metric("c", np.float64("nan"), 1)
    run.add_table("t", ["x"], [[math.nan], [math.inf], [1.5]])
    record = saved(run)
    assert [m["value"] for m in record["metrics"].values()] == [None, None, None]
    assert record["metrics"]["b"]["floor"] is None
    assert record["tables"][0]["rows"] == [[None], [None], [1.5]]


def test_paths_and_letters_in_json(tmp_path):
    write_json(tmp_path / "a.json", {"where": Path("a/b"), 1: ("ε",)})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "ε" in text and text.endswith("}\n")
    assert json.loads(text) == {"where": str(Path("a/b")), "1": ["ε"]}


def test_ones_own_picture_is_not_written_over(tmp_path):
    """Such as one that an earlier run has left in its folder."""

    @dataclass(frozen=True)
    class WithImage(Settings):
        image: Path | None = None

    config = WithImage(output_dir=tmp_path, image=tmp_path / "out" / "blur.png")
    with pytest.raises(UserError, match=r"blur\.png lies in the folder that this run writes into"):
        start_result("a", "", "", config, "out", torch.device("cpu"))
    start_result("a", "", "", config, "other", torch.device("cpu"))


def test_bytes_that_are_no_utf8_in_json(tmp_path):
    """As file names from an old zip have; a report must not be lost for them."""
    write_json(tmp_path / "a.json", {"caf\udce9": ["caf\udce9 $", Path("caf\udce9")]})
    text = (tmp_path / "a.json").read_text("utf-8")
    assert json.loads(text) == {"caf\\xe9": ["caf\\xe9 $", "caf\\xe9"]}


def test_a_saved_result_leaves_its_folder_to_others(tmp_path):
    """Also where the process goes on, as a notebook's does."""
    run = start_result("a", "", "", Settings(output_dir=tmp_path), "out", torch.device("cpu"))
    other = FileLock(tmp_path / "out" / ".lock", timeout=0)
    with pytest.raises(TimeoutError):
        other.acquire()
    run.save()
    with other:
        assert (tmp_path / "out" / "results.json").is_file()


def test_a_result_starts_with_its_settings(tmp_path, stripes):
    config = Settings(output_dir=tmp_path, seed=5)
    run = start_result("demo", "A demo", "", config, "pictures", torch.device("cpu"), stripes)
    assert run.folder == tmp_path / "pictures" and run.seed == 5
    assert run.config["output_dir"] == str(tmp_path) and run.device.startswith("cpu")
    assert run.dataset == stripes.describe()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"), (0.5, "0.500"), (-0.5, "-0.500"), (12.345, "12.3"), (123.4, "123"),
        (100.0, "100"), (1234.6, "1,235"), (1e6, "1,000,000"), (0.0, "0"), (0, "0"), (7, "7"),
        (12_345, "12,345"), (-12_345, "-12,345"), (True, "True"), ("text", "text"), (None, "not defined"),
        (math.nan, "nan"), (math.inf, "inf"), (0.00012345, "0.000123"), (1.0, "1.00"),
        (np.float64(0.25), "0.250"), (999.4, "999"), (999.7, "1,000"),
    ],
)  # fmt: skip
def test_numbers(value, text):
    assert number(value) == text


def test_columns_are_aligned():
    table = text_table(["name", "n", "note"], [["a", 5, "x"], ["longer", 12_000, "what"]])
    assert table.splitlines() == [
        "name         n  note",
        "a            5  x",
        "longer  12,000  what",
    ]
    assert text_table(["a", "b"], []) == "a  b"


def test_metrics_as_text():
    plain = {"value": 0.9641, "unit": "", "floor": None, "better": None, "n": 5}
    assert metric_text(plain) == "0.964"
    assert metric_text({**plain, "value": 31.2, "unit": "dB"}) == "31.2 dB"
    floored = {**plain, "value": 152.0, "floor": 40.1, "better": "lower"}
    assert metric_text(floored) == "152 (floor 40.1, lower is better)"
    assert metric_text({**plain, "floor": 0.0}) == "0.964 (floor 0)"
    within = {**plain, "interval": [0.833, 1.0], "better": "higher"}
    assert metric_text(within) == "0.964 (95 %: 0.833 to 1.00, higher is better)"
    assert metric_text({**within, "value": None}) == "not defined"


# --- intervals of shares --------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7, 80, 200, 499])
def test_the_interval_is_the_one_of_scipy(n):
    from scipy.stats import binomtest

    for k in {0, 1, n // 3, n // 2, n - 1, n}:
        expected = binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
        assert wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_published_intervals():
    """Newcombe (1998), table I, method 3."""
    for k, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
                            (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):  # fmt: skip
        assert wilson(k / n, n) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_of_a_mean_is_the_normal_one_of_scipy():
    from scipy.stats import norm, sem

    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
    mean, to_each_side = mean_and_reach(values)
    low, high = norm.interval(0.95, loc=4.0 - 0.125, scale=sem(values))
    assert (mean - to_each_side, mean + to_each_side) == pytest.approx((low, high))


def test_a_share_of_few_has_its_interval(tmp_path):
    run = result(tmp_path)
    run.add_share("few", torch.tensor(0.675), 80, better="higher")
    run.add_share("most of few", 0.5, 499)
    run.add_share("many", 0.675, 500)
    written = saved(run)["metrics"]
    assert written["few"]["interval"] == pytest.approx([0.566, 0.768], abs=1e-3)
    assert written["few"]["better"] == "higher" and written["few"]["n"] == 80
    assert written["most of few"]["interval"] and written["many"]["interval"] is None
    assert metric_text(written["few"]) == "0.675 (95 %: 0.566 to 0.768, higher is better)"
    assert share_cell(torch.tensor(0.675), 80) == "0.675 (95 %: 0.566 to 0.768)"
    assert share_cell(torch.tensor(0.5), 500) == 0.5


def test_the_summary_names_figures_and_featured_files(tmp_path, capsys):
    run = result(tmp_path)
    run.add_metric("PSNR", 31.25, 10, unit="dB")
    run.add_table("Accuracy", ["ε"], [[0.1]])
    run.add_file("a.png", "A picture.")
    run.add_file("b.png", "A frame.", featured=False)
    run.print_summary()
    out = capsys.readouterr().out
    assert "31.2 dB" in out and "Accuracy" in out and "seed 3" in out
    assert str(tmp_path / "a.png") in out and "b.png" not in out


def test_a_table_fits_into_the_terminal(monkeypatch):
    columns = ["recipe", "Fréchet distance", "coverage"]
    rows = [["1 + 2: the noise passes beside, min-SNR weights", 212.4, 0.37], ["", 9999.0, 0.0]]
    whole = text_table(columns, rows)  # stdout is no terminal here
    assert len(whole.splitlines()) == 3
    monkeypatch.setattr("imagelab.report.numbers.is_terminal", lambda _stream: True)
    monkeypatch.setenv("COLUMNS", "40")
    lines = text_table(columns, rows).splitlines()
    assert max(map(len, lines)) <= 40 and len(lines) > 3
    assert sorted(" ".join(lines).split()) == sorted(whole.split())  # no word is broken or lost
    assert lines[0].split()[0] == "recipe"
    numbers = [line for line in lines if "212" in line]
    assert len(numbers) == 1 and numbers[0].endswith("0.370")
    monkeypatch.setenv("COLUMNS", "5")  # narrower than its words: as narrow as they allow
    assert max(map(len, text_table(columns, rows).splitlines())) == 7 + 2 + 8 + 2 + 8
    monkeypatch.setenv("COLUMNS", "34")  # the widest column has no word to break at
    lines = text_table(["file", "what it shows"], [["a_long_name_of_a_file.png", "what it shows"]])
    assert lines.splitlines()[2:] == ["a_long_name_of_a_file.png  what it", " " * 27 + "shows"]
    assert text_table(["a", ""], [["", ""]]).splitlines()[0] == "a"


def test_lessons_are_told_of_what_was_measured(tmp_path):
    run = result(tmp_path / "pictures")
    run.add_metric("accuracy, FGSM, ε = 0.3", 0.0376, 100)
    run.add_metric("literal: distance", 1316.6, 100)
    run.add_metric("lost", float("nan"), 100)
    assert run.measured("accuracy, FGSM, ε = 0.3", "literal: distance") == [0.0376, 1316.6]
    assert run.measured("literal: distance", "nothing") is None
    assert run.measured("lost") is None
    run.save("It leaves 3.8 %.", "So it is.")
    assert run.learned == "It leaves 3.8 %. So it is."
    written = json.loads((tmp_path / "pictures" / "results.json").read_text("utf-8"))
    assert written["learned"] == run.learned


def test_a_quick_run_states_no_lesson(tmp_path, capsys):
    run = result(tmp_path / "pictures")
    run.config["quick"] = True
    assert run.save("It leaves 3.8 %.").learned == ""
    run.print_summary()
    printed = capsys.readouterr().out
    assert "A quick run: too short to learn from these figures." in printed
    assert "3.8" not in printed
