from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import ROOT

from benchmarks.scaling import LATENCY, Parts

PARTS = Parts((8, 16), 100, draw=1e-4, update=0.02, gradient_bytes=4_000_000)


def test_the_estimate_for_one_process_is_what_was_measured():
    assert PARTS.estimate(1, 64, 1e9) == pytest.approx(100)
    assert PARTS.estimate(1, 64, 1e3) == pytest.approx(100)  # it tells nobody anything


def test_the_estimate_against_its_sum():
    """Batches of 10 in 4 processes: 10 images of 10 − 0.1 − 2 ms, 40 drawn, one update, 6 MB sent."""
    seconds = 10 * (0.010 - 1e-4 - 0.002) + 40 * 1e-4 + 0.02 + 6e6 / 1e8 + 6 * LATENCY
    assert PARTS.estimate(4, 10, 1e8) == pytest.approx(40 / seconds)


def test_more_processes_on_a_slow_network_bring_less():
    ideal = 8 * PARTS.estimate(1, 64, 1e9)
    fast, slow = (PARTS.estimate(8, 64, speed) for speed in (300e9, 1e8))
    assert slow < fast < ideal and fast > 0.9 * ideal


def test_two_processes_tell_each_other_the_gradients(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", "--quick", "--batch-size", "8",
         "--output-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "two, weak" in done.stdout and done.stdout.count("U-Net of widths") == 1
    (found,) = json.loads((tmp_path / "benchmarks" / "scaling.json").read_text("utf-8"))["found"]
    size = found["parts"]["gradient_bytes"]
    for name, case in found["cases"].items():
        assert case["images per second"] > 0
        if sys.platform == "linux":
            expected = 0 if name == "one process" else size
            assert expected <= case["bytes"] <= 1.05 * expected + 1e4, name
