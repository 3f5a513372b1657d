"""The tests' own tool: what two runs would compute from the same input is computed once."""

from __future__ import annotations

import torch
from conftest import remembered
from torch import nn


def test_a_function_is_asked_once_for_the_same_input():
    asked = []

    def noisy(model: nn.Module, x: torch.Tensor, rng: torch.Generator, scale: float = 1.0):
        asked.append(scale)
        return model(x) + scale * torch.randn(len(x), 1, generator=rng)

    again, x = remembered(noisy), torch.ones(3, 2)
    layer, copied = nn.Linear(2, 1), nn.Linear(2, 1)
    copied.load_state_dict(layer.state_dict())

    def drawn(model: nn.Module, values: torch.Tensor, seed: int, **more):
        """Two results with one generator."""
        rng = torch.Generator().manual_seed(seed)
        return [function(model, values, rng, **more) for function in (again, noisy)]

    with torch.no_grad():
        first = drawn(layer, x, 0)
        asked.clear()
        second = drawn(copied, x.clone(), 0)
        assert asked == [1.0]  # the second of the two only, and after the same numbers
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        second[0].zero_()
        assert torch.equal(drawn(layer, x, 0)[0], first[0])  # what is remembered is not given away
        asked.clear()
        drawn(layer, x, 1)
        drawn(layer, x + 1, 0)
        drawn(layer, x, 0, scale=2.0)
        drawn(layer.eval(), x, 0)
        layer.weight.add_(1)
        drawn(layer.train(), x, 0)
        assert len(asked) == 10  # each of these is something else
