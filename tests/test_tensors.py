from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imagelab.data.datasets import load_dataset
from imagelab.data.tensors import (
    Dataset,
    batch_indices,
    mean_grey,
    random_subset,
    signed,
    to_uint8,
    unit,
)


def rows(images: torch.Tensor) -> list[bytes]:
    return [image.tobytes() for image in images.contiguous().numpy()]


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("mnist-5k", Path("nowhere"))


def test_a_part_for_quick_runs_is_spread_over_the_training_images(digits):
    part = digits.shortened(train=6000, test=3)
    chosen = random_subset(len(digits.images), 6000, "quick run")
    assert torch.equal(part.images, digits.images[chosen])
    assert torch.equal(part.labels, digits.labels[chosen])
    assert torch.equal(part.test_images, digits.test_images[:3])
    # 6,000 of 14 × 4,000 are of some 3,190 digits; spaced evenly, of 3,000.
    assert len({i % 4000 for i in chosen.tolist()}) > 3100
    assert len(digits.shortened(train=10**6, test=10**6).images) == 56_000


def test_a_random_subset():
    chosen = random_subset(100, 30, "a").tolist()
    assert len(set(chosen)) == 30 and set(chosen) <= set(range(100))
    assert chosen == random_subset(100, 30, "a").tolist()
    assert chosen != random_subset(100, 30, "b").tolist()
    assert sorted(random_subset(5, 30, "a").tolist()) == [0, 1, 2, 3, 4]


def test_the_mean_grey_is_exact_and_takes_a_thousand_images_at_a_time(monkeypatch):
    images = torch.randint(0, 256, (2500, 1, 5, 4), dtype=torch.uint8)
    sizes, take = [], torch.Tensor.sum
    monkeypatch.setattr(
        torch.Tensor,
        "sum",
        lambda x, *more: sizes.append(len(x) if x.dim() else 0) or take(x, *more),
    )
    mean = mean_grey(images)
    assert max(sizes) == 1000
    assert mean.item() == pytest.approx(images.double().mean().item() / 255, rel=1e-12)


def test_all_256_values_survive_the_way_to_floats_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(signed(values)), values)
    assert torch.equal(to_uint8(unit(values) * 2 - 1), values)
    assert torch.equal(unit(values), torch.arange(256) / 255)
    assert signed(values)[[0, 255]].tolist() == [-1, 1]
    assert torch.equal(values, torch.arange(256, dtype=torch.uint8))


def test_floats_outside_the_range_are_clipped_and_not_written_to():
    x = torch.tensor([-3.0, 3.0, 0.999, -0.999])
    kept = x.clone()
    assert to_uint8(x).tolist() == [0, 255, 255, 0]
    assert torch.equal(x, kept)


def test_an_epoch_is_a_permutation():
    batches = batch_indices(100, 10, seed=0, epoch=1)
    assert [len(b) for b in batches] == [10] * 10
    order = torch.cat(batches)
    assert order.sort().values.tolist() == list(range(100)) != order.tolist()


def test_the_order_is_that_of_seed_and_epoch():
    torch.manual_seed(1)
    first = torch.cat(batch_indices(100, 10, seed=0, epoch=1))
    torch.manual_seed(2)
    assert torch.equal(first, torch.cat(batch_indices(100, 10, seed=0, epoch=1)))
    assert not torch.equal(first, torch.cat(batch_indices(100, 10, seed=0, epoch=2)))
    assert not torch.equal(first, torch.cat(batch_indices(100, 10, seed=1, epoch=1)))


@pytest.mark.parametrize(
    ("n", "sizes"), [(105, [10] * 10), (109, [10] * 10), (5, [5]), (10, [10]), (19, [10])]
)
def test_only_a_sole_incomplete_batch_is_kept(n, sizes):
    batches = batch_indices(n, 10, seed=0, epoch=1)
    assert [len(b) for b in batches] == sizes
    assert len(set(torch.cat(batches).tolist())) == sum(sizes)
