"""The notebook, run as Jupyter runs it, and what its first cell does where there is no project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import nbformat
import pytest
from conftest import ROOT, with_classifier
from nbclient import NotebookClient

NOTEBOOK = ROOT / "studies" / "tour.ipynb"


def tour() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def code(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def test_it_is_kept_without_outputs():
    nbformat.validate(tour())
    assert all(not cell.outputs and cell.execution_count is None for cell in code(tour()))


def test_every_cell_runs_and_shows_what_it_says(quick_classifier, tmp_path):
    with_classifier(quick_classifier, tmp_path / "tour-run")
    book = tour()
    (setting,) = (cell for cell in code(book) if "QUICK = False" in cell.source)
    setting.source = setting.source.replace("QUICK = False", "QUICK = True")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with mock.patch.dict(os.environ, environment):
        NotebookClient(
            book,
            timeout=600,
            kernel_name="python3",
            resources={"metadata": {"path": str(tmp_path)}},
        ).execute()
    shown = [[out.data for out in cell.outputs if "data" in out] for cell in code(book)]
    runs = [data["text/html"] for (*_, data) in filter(None, shown) if "text/html" in data]
    titles = ("FGSM: noise against an attack", "MLP GAN", "MLP diffusion", "Stepwise noise")
    assert len(runs) == 4
    for title, html in zip(titles, runs, strict=True):
        assert title in html and "data:image/" in html and "<h3>Numbers</h3>" in html
    played = [data for (*_, data) in filter(None, shown) if "image/png" in data]
    assert len(played) == 4
    streams = [out for out in code(book)[3].outputs if out.output_type == "stream"]
    assert {out.name for out in streams} == {"stdout"}  # nothing is trained: the demo's classifier
    lines = "".join(out.text for out in streams)
    read, attacked = (line.split(":")[1] for line in lines.splitlines()[-2:])
    assert len(read.split()) == 10 and read != attacked
    assert not [out for cell in code(book) for out in cell.outputs if out.get("name") == "stderr"
                and "Warning" in out.text]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"tour-run"}


def first_cell(folder: Path, address: str, monkeypatch) -> list[list[str]]:
    """The commands that the first cell calls in `folder`; `sys.path` is as it was afterwards."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part not in ("", str(ROOT))])
    called = []
    monkeypatch.setattr(subprocess, "run", lambda words, check: called.append([*map(str, words)]))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    source = code(tour())[0].source
    exec(source.replace('ADDRESS = ""', f'ADDRESS = "{address}"', 1), {})
    return called


def test_the_first_cell_changes_nothing_in_a_copy_of_the_project(monkeypatch):
    for folder in (ROOT, ROOT / "studies"):
        assert first_cell(folder, "", monkeypatch) == []
        assert sys.path[0] == str(ROOT)


def test_elsewhere_the_first_cell_fetches_and_installs(tmp_path, monkeypatch):
    clone, install = first_cell(tmp_path, "https://example.org/a", monkeypatch)
    project = tmp_path / "project"
    assert clone == ["git", "clone", "--depth", "1", "https://example.org/a", str(project)]
    assert install[-2:] == ["-r", str(project / "requirements.txt")]
    assert sys.path[0] == str(project)
    with pytest.raises(ValueError, match="address of the repository"):
        first_cell(tmp_path, "", monkeypatch)
