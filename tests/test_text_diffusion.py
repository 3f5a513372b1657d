from __future__ import annotations

import json
from collections import Counter
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from conftest import complaint, run_here, untaught
from torch.nn.attention import SDPBackend, sdpa_kernel

from imagelab.data.datasets import load_dataset
from studies import text_diffusion
from studies.text_diffusion import (
    SEEN,
    UNSEEN,
    Captioner,
    Config,
    caption_words,
    decode,
    draw_both,
    drop_words,
    encode,
    evaluate,
    left_out_pair,
    may_train_on,
    measure_shape,
    prompts_left_out,
)


@pytest.fixture(scope="module", autouse=True)
def plain_attention():
    """On a CPU the gradient of torch's fused attention takes longer than all else in a small U-Net."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


def bar(width: float = 3, lean: float = 0.0) -> torch.Tensor:
    """A bar of a digit, drawn large and scaled down: (1, 1, 28, 28) uint8."""
    large = np.zeros((280, 280), np.uint8)
    half = 90
    start, end = (round(140 - lean * half), 140 + half), (round(140 + lean * half), 140 - half)
    cv2.line(large, start, end, 255, round(width * 10))
    return torch.from_numpy(cv2.resize(large, (28, 28), interpolation=cv2.INTER_AREA))[None, None]


def test_measuring_bars_of_known_shape():
    for width in (2, 3, 5):
        found, stroke, _ = measure_shape(bar(width, lean=0.3))[0].tolist()
        assert stroke == pytest.approx(width, abs=0.7)
        assert found == pytest.approx(4 * width / 12**0.5, abs=0.9)  # however far it leans
    leans = [measure_shape(bar(lean=lean))[0, 2].item() for lean in (-0.4, -0.2, 0.0, 0.2, 0.4)]
    assert leans == pytest.approx([-0.4, -0.2, 0.0, 0.2, 0.4], abs=0.06)  # positive to the right
    assert measure_shape(torch.zeros(1, 1, 28, 28, dtype=torch.uint8)).tolist() == [[0, 0, 0]]


@pytest.fixture(scope="module")
def digits():
    return load_dataset("mnist-5k", "data").shortened(3000, 10)


def test_thirds_are_thirds_of_each_class(digits):
    captioner = Captioner.fit(digits.images, digits.labels)
    thirds = captioner.thirds(digits.images, digits.labels)
    for label in range(10):
        own = thirds[digits.labels == label]
        for column in own.T:
            shares = torch.bincount(column, minlength=3) / len(own)
            assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.03)
    words = caption_words(thirds, digits.labels)
    assert words.shape == (3000, 4) and words.min() > 0


@pytest.mark.parametrize("group", [0, 1])
def test_unseen_combinations_are_not_trained_on_but_their_parts_are(digits, group):
    captioner = Captioner.fit(digits.images, digits.labels)
    thirds = captioner.thirds(digits.images, digits.labels)
    kept = may_train_on(digits.labels, thirds, group)
    for label in range(10):  # a tenth of each class, about
        assert 0.8 < kept[digits.labels == label].float().mean() < 0.96
        own = thirds[kept & (digits.labels == label)][:, 1:]
        stroke, slant = left_out_pair(label, group)
        assert not ((own[:, 0] == stroke) & (own[:, 1] == slant)).any()
        assert (own[:, 0] == stroke).any() and (own[:, 1] == slant).any()
        stroke, slant = left_out_pair(label, 1 - group)  # which the other training leaves out
        assert ((own[:, 0] == stroke) & (own[:, 1] == slant)).any()


def test_both_kinds_of_prompts_have_the_same_words_equally_often():
    """And of each class, of each width: neither kind is harder by its words alone."""
    counts = []
    for group in (0, 1):
        words = caption_words(*prompts_left_out(300, group))
        pairs = Counter(map(tuple, words[:, 1:3].tolist()))
        counts.append((Counter(words.flatten().tolist()), pairs))
        of_digit = Counter(map(tuple, words[:, [0, 3]].tolist()))
        assert len(of_digit) == 30 and set(of_digit.values()) == {10}
    assert counts[0] == counts[1]
    (thirds, labels), (others, same) = (prompts_left_out(300, group) for group in (0, 1))
    assert torch.equal(labels, same) and torch.equal(thirds[:, 0], others[:, 0])
    assert torch.equal(thirds[:, 1:], 2 - others[:, 1:])  # the opposite pairs
    for third, label in zip(thirds.tolist(), labels.tolist(), strict=True):
        assert tuple(third[1:]) == left_out_pair(label, 0)


@pytest.mark.parametrize("networks", [1, 2])
def test_what_was_seen_and_what_was_not_are_told_apart(monkeypatch, networks):
    """A network that draws exactly what it has seen, and nothing else."""

    def sample(group, words, _config):
        labels = words[:, 3] - 10
        left_out = torch.tensor([left_out_pair(int(label), group) for label in labels])
        return ~(words[:, 1:3] - torch.tensor([4, 7]) == left_out).all(dim=1), words

    monkeypatch.setattr(text_diffusion, "sample", sample)
    asked = []

    def agreement(drawn, thirds, labels, _captioner, _classifier):
        right, words = drawn
        assert torch.equal(words, caption_words(thirds, labels))
        asked.append(words)
        return right[:, None].expand(-1, 5)

    monkeypatch.setattr(text_diffusion, "agreement", agreement)
    found, _ = draw_both(Config(num_samples=60), list(range(networks)), None, None)
    assert found[SEEN].shape == found[UNSEEN].shape == (60 * networks, 5)
    assert found[SEEN].all() and not found[UNSEEN].any()
    seen, unseen = torch.cat(asked[:networks]), torch.cat(asked[networks:])
    assert torch.equal(seen[:, [0, 3]], unseen[:, [0, 3]])  # row by row: of one width and digit
    assert torch.equal(seen, unseen) == (networks == 2)  # the very same combinations


def test_the_difference_of_two_rows_has_an_interval():
    noise = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    a, b = noise < 0.6, noise < 0.5  # of the same noise
    found = {SEEN: a[:, None].expand(-1, 5), UNSEEN: b[:, None].expand(-1, 5)}
    metrics, tables = {}, []
    evaluate(
        SimpleNamespace(
            add_metric=lambda name, value, n, **more: metrics.update({name: (value, n, more)}),
            add_table=lambda *table: tables.append(table),
            add_figure=lambda *_: None,
        ),
        found, 1,
    )  # fmt: skip
    value, n, more = metrics["unseen less seen: all four"]
    assert n == 1000 and value == pytest.approx((b.sum() - a.sum()).item() / 1000)
    # The rows are pairs: only where they differ do they add to the interval, not where they agree.
    to_each_side = 1.96 * (0.1 * 0.9 / 1000) ** 0.5
    assert more["interval"] == pytest.approx((value - to_each_side, value + to_each_side), rel=0.1)
    low, high = metrics[f"{SEEN}: all four"][2]["interval"]
    assert low < a.float().mean() < high
    assert [row[0] for row in tables[0][2]] == [SEEN, UNSEEN, "difference"]


def test_words_are_left_out_alone_or_with_the_whole_caption():
    """The digit's word, the last one, only with all others."""
    rng = torch.Generator().manual_seed(0)
    words = drop_words(torch.full((20_000, 4), 7), Config(drop_word=0.2, drop_class=0.1), rng)
    assert set(words.unique().tolist()) == {0, 7}
    none = (words == 0).all(dim=1)
    assert none.float().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(words[:, 3] == 0, none)
    others = (words[~none, :3] == 0).float().mean(dim=0)
    assert others.tolist() == pytest.approx([0.2] * 3, abs=0.015)


def test_prompts_are_read_and_written():
    words = encode("a thin upright three")
    assert decode(words[0]) == "a thin upright three"
    assert encode("Three")[0].count_nonzero() == 1


def test_mistakes_are_told_in_a_sentence(tmp_path):
    assert "not 'purple'" in complaint("studies.text_diffusion", "--prompt", "a purple three")
    assert "take mnist-5k or mnist" in complaint(
        "studies.text_diffusion", "--dataset", "textures", "--quick", "--output-dir", tmp_path
    )


def test_a_run_leaves_what_was_promised(judged, tmp_path):
    run_here("studies.text_diffusion", "--quick", "--dataset", "mnist-5k", "--output-dir", tmp_path)
    folder = tmp_path / "study_images" / "text_diffusion"
    result = json.loads((folder / "results.json").read_text("utf-8"))
    assert untaught("studies.text_diffusion", result) == []
    assert all((folder / entry["path"]).is_file() for entry in result["files"])
    (table,) = result["tables"]
    assert [row[0] for row in table["rows"]] == [SEEN, UNSEEN, "difference"]
    assert result["metrics"][f"{UNSEEN}: all four"]["n"] == 60
    assert {"agreement.png", "unseen.png"} <= {entry["path"] for entry in result["files"]}
    run_here("studies.text_diffusion", "--prompt", "a bold slanted seven", "--quick", "--output-dir",
               tmp_path, "--samples-file", tmp_path / "s.npz")  # fmt: skip
    assert np.load(tmp_path / "s.npz")["images"].shape == (60, 28, 28)


def test_a_crossover_trains_a_second_network_and_goes_on(judged, tmp_path):
    """Of the opposite pairs, with a checkpoint of its own; --resume trains none of them again."""
    command = (
        "studies.text_diffusion",
        "--quick",
        "--dataset",
        "mnist-5k",
        "--widths",
        8,
        "--steps",
        2,
    )
    command = *command, "--crossover", "--attention", 0, "--patch-size", 4, "--output-dir", tmp_path
    run_here(*command)
    folder = tmp_path / "study_models" / "text_diffusion"
    files = [folder / "text.pth", folder / "text_opposite.pth"]
    states = [torch.load(path, weights_only=True) for path in files]
    first, second = (state["ema"] for state in states)
    assert any(not torch.equal(value, second[name]) for name, value in first.items())
    result = json.loads((tmp_path / "study_images/text_diffusion/results.json").read_text("utf-8"))
    metrics = result["metrics"]
    assert metrics[f"{UNSEEN}: all four"]["n"] == metrics[f"{SEEN}: all four"]["n"] == 120
    assert "the very same combinations" in result["tables"][0]["caption"]
    shares = [
        metrics["training images left out" + more]["value"] for more in ("", ", opposite pairs")
    ]
    assert all(0.05 < share < 0.2 for share in shares) and shares[0] != shares[1]
    run_here(*command, "--resume")
    for path, state in zip(files, states, strict=True):
        again = torch.load(path, weights_only=True)
        assert all(torch.equal(again["ema"][name], value) for name, value in state["ema"].items())
