from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_here
from PIL import Image

from benchmarks import scenes


def test_what_is_not_whole_is_seen(tmp_path):
    """The check itself: it must find what the faults are said never to leave."""
    Image.new("L", (40, 40), 7).save(tmp_path / "good.png")
    torch.save({"model": {}}, tmp_path / "good.pth")
    (tmp_path / "good.json").write_text("{}")
    assert scenes.damaged(tmp_path) == []
    for name in ("good.png", "good.pth", "good.json"):
        raw = (tmp_path / name).read_bytes()
        (tmp_path / f"bad{Path(name).suffix}").write_bytes(raw[: len(raw) // 2])
    assert {problem.split()[0] for problem in scenes.damaged(tmp_path)} == {
        "bad.png", "bad.pth", "bad.json",
    }  # fmt: skip
    (tmp_path / "after").mkdir()
    assert len(scenes.lost(tmp_path, tmp_path / "after")) == 6


def test_tracebacks_and_statuses_are_seen():
    import subprocess
    import sys

    def process(code: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)

    assert scenes.end(process("raise ValueError"), (1,)) == ["traceback"]
    assert scenes.end(process("exit(3)"), (0, 2)) == ["status 3: "]
    assert scenes.end(process("exit(2)"), (2,)) == []
    refuse = "import sys; print('x.pth is empty.', file=sys.stderr); exit(2)"
    assert scenes.end(process(refuse), (2,), "x.pth") == []
    assert scenes.end(process(refuse), (2,), "y.pth") == ["y.pth is not in: x.pth is empty."]
    crash = "import sys; print('a.py: Unexpected KeyError: 1', file=sys.stderr); exit(1)"
    assert scenes.end(process(crash), (1,)) == ["traceback"]


def test_some_faults_of_one_script(tmp_path):
    """`python -m benchmarks.faults` tries all kinds on all scripts, which takes hours."""
    shown, _ = run_here("benchmarks.faults", "--only", "diffusion_demo", "--kinds", "full-disk",
                        "--output-dir", tmp_path)  # fmt: skip
    cases = json.loads((tmp_path / "benchmarks" / "faults.json").read_text("utf-8"))["cases"]
    tried = [case["what"] for case in cases]
    # Two limits of a file's size, and two small disks where the tests may mount one.
    assert len([what for what in tried if "disk" not in what]) == 2
    assert all(case["problems"] == [] for case in cases)
    rows = [line.split() for line in shown.splitlines()[-4:]]
    assert [row[-1] for row in rows] == [str(len(tried)), "0", "0", "0"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_libraries_load(number, tmp_path):
    """With a stand-in for torch that takes long to import."""
    import os
    import subprocess
    import sys

    (tmp_path / "torch.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)")
    process = subprocess.Popen([sys.executable, "fgsm.py"], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert process.stdout.readline() == "loading\n"
    process.send_signal(number)
    complaint = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number and complaint.strip() == "stopped."
