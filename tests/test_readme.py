"""What the README promises outside the scripts: its Python, the installation, the public checks."""

from __future__ import annotations

import re
import shutil
import tomllib

import torch
from conftest import ROOT, with_classifier

README = (ROOT / "README.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_its_python_runs_as_it_stands_there(main_job, tmp_path, monkeypatch):
    shutil.copytree(main_job / "GAN_models", tmp_path / "GAN_models")
    with_classifier(main_job, tmp_path / "quick-run")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "quick-run" / "fake_images" / "results.json").is_file()
    images, attacked = names["images"], names["attacked"]
    assert images.shape == (16, 1, 28, 28) and images.dtype == torch.uint8
    change = (attacked - images / 255).abs().max().item()
    assert 0.099 < change < 0.101
    assert (names["model"](attacked).argmax(dim=1) != names["labels"]).any()
    noisy, clean = names["noisy"], names["clean"]
    assert clean.shape == noisy.shape and clean.std() < noisy.std()


def test_the_installation_holds_every_module_and_file():
    tools = PROJECT["tool"]["setuptools"]
    assert set(tools["py-modules"]) == {path.stem for path in ROOT.glob("*.py")}
    assert tools["packages"]["find"]["include"] == ["imagelab*", "studies*"]
    named = {pattern.lstrip("*") for pattern in tools["package-data"]["*"]}
    files = [path for path in (ROOT / "imagelab").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} - {".py", ".pyc"} == named


def test_the_extras_are_what_the_tests_run_with():
    lines = (ROOT / "requirements-dev.txt").read_text("utf-8").splitlines()
    extras = PROJECT["project"]["optional-dependencies"]
    assert extras.keys() == {"onnx", "safetensors", "tensorboard"}
    assert {line for extra in extras.values() for line in extra} <= set(lines)


def test_one_version():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\nversion: {PROJECT['project']['version']}\n" in citation


def test_the_public_checks_find_the_two_commands():
    workflow = (ROOT / ".github/workflows/readme.yml").read_text("utf-8")
    (names,) = re.findall(r"ends-in: \[(.*)\]", workflow)
    (pattern,) = re.findall(r'grep -E "(.*)" README', workflow)
    for name in names.split(", "):
        line = pattern.replace("$COMMAND_ENDS_IN\\$", f"{name}$")
        assert len(re.findall(line, README, re.MULTILINE)) == 1
