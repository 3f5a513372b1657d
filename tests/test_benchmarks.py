from __future__ import annotations

import itertools
import json

import pytest
import torch
from conftest import run_script

from benchmarks import __main__ as benchmarks
from benchmarks import attack
from imagelab.classifier import new_classifier
from imagelab.datasets import unit


def test_a_ratio_is_that_of_turns_taken_together(monkeypatch):
    """Ours takes 1, 1, 1 s and the ordinary way 2, 3, 10 s, after a first turn that does not count."""
    seconds = [9, 9, 1, 2, 1, 3, 1, 10]
    clock = itertools.accumulate(itertools.chain.from_iterable((0, s) for s in seconds))
    monkeypatch.setattr(benchmarks.time, "perf_counter", lambda: next(clock))
    calls = []
    ratio = benchmarks.measure(
        "test", "images", 60, lambda: calls.append("a"), lambda: calls.append("b"), repeats=3
    )
    assert calls == ["a", "b"] * 4
    assert (ratio.ratio, ratio.lowest, ratio.highest) == pytest.approx((3, 2, 10))
    assert (ratio.ours, ratio.ordinary) == pytest.approx((60, 20))


def test_both_sides_of_the_attack_do_the_same_work(stripes):
    model = new_classifier(stripes, 0).eval()
    images, labels = unit(stripes.test_images[:40]), stripes.test_labels[:40]
    ordinary = attack.ordinary_pgd(model, images, labels)
    ours = attack.pgd(
        model, images, labels, attack.EPSILON, torch.Generator().manual_seed(0), attack.STEPS
    )
    loss = [torch.nn.functional.cross_entropy(model(x), labels).item() for x in (ordinary, ours)]
    assert (ordinary - images).abs().max() <= attack.EPSILON + 1e-6
    assert loss[0] == pytest.approx(loss[1], rel=0.05)  # from other random starts


def test_the_command(tmp_path):
    shown = run_script("benchmarks.__main__", "--quick", "--output-dir", tmp_path).stdout
    assert "PGD on the CNN" in shown and "ratio" in shown
    written = json.loads((tmp_path / "benchmarks" / "results.json").read_text("utf-8"))
    assert [entry["what"] for entry in written["ratios"]] == ["PGD on the CNN"]
    assert written["ratios"][0]["ratio"] > 0
    refused = run_script("benchmarks.__main__", "--only", "nonsense", status=2)
    assert "--only" in refused.stderr + refused.stdout
