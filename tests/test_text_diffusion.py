from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from conftest import complaint, run_here, untaught

from imagelab.data.datasets import load_dataset
from studies.text_diffusion import (
    Captioner,
    Config,
    caption_words,
    decode,
    drop_words,
    encode,
    may_train_on,
    measure_shape,
    random_prompts,
    unseen_pair,
)


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


def test_unseen_combinations_are_not_trained_on_but_their_parts_are(digits):
    captioner = Captioner.fit(digits.images, digits.labels)
    thirds = captioner.thirds(digits.images, digits.labels)
    kept = may_train_on(digits.labels, thirds)
    for label in range(10):  # a tenth of each class, about
        assert 0.83 < kept[digits.labels == label].float().mean() < 0.95
        own = thirds[kept & (digits.labels == label)][:, 1:]
        stroke, slant = unseen_pair(label)
        assert not ((own[:, 0] == stroke) & (own[:, 1] == slant)).any()
        assert (own[:, 0] == stroke).any() and (own[:, 1] == slant).any()


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
    for seen in (True, False):
        thirds, labels = random_prompts(200, seen)
        pairs = [tuple(third.tolist()) == unseen_pair(k) for third, k in
                 zip(thirds[:, 1:], labels.tolist(), strict=True)]  # fmt: skip
        assert set(pairs) == {not seen}


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
    assert [row[0] for row in result["tables"][0]["rows"]] == [
        "seen together in training", "never seen together",
    ]  # fmt: skip
    run_here("studies.text_diffusion", "--prompt", "a bold slanted seven", "--quick", "--output-dir",
               tmp_path, "--samples-file", tmp_path / "s.npz")  # fmt: skip
    assert np.load(tmp_path / "s.npz")["images"].shape == (50, 28, 28)
