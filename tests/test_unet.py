from __future__ import annotations

import pytest
import torch

from imagelab.setup.runtime import UserError
from imagelab.techniques.unet import Attention, PixelNorm, UNet


def awake(model: UNet) -> UNet:
    """All weights random: the layers that add nothing at first would hide what passes through."""
    torch.manual_seed(0)
    for values in model.parameters():
        torch.nn.init.normal_(values, 0, 0.1)
    return model.eval()


@pytest.mark.parametrize("patch_size", [1, 2])
def test_shapes(patch_size):
    model = UNet(3, (8, 16, 24), blocks=2, attention=(1, 2), patch_size=patch_size, classes=10)
    side = 4 * patch_size * 3
    out = model(torch.randn(2, 3, side, side), torch.rand(2), torch.tensor([0, 10]))
    assert out.shape == (2, 3, side, side) and out.dtype == torch.float32
    assert (out == 0).all()  # at first it says nothing


def test_two_outputs():
    out = UNet(3, (8, 16), attention=(), outputs=2)(torch.randn(2, 3, 8, 8), torch.rand(2))
    assert out.shape == (2, 6, 8, 8)


def test_what_halves_the_size_can_be_chosen():
    """Same weights, another answer; and the largest of 2×2 pixels is what max-pooling takes."""
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([0.3])
    average, largest = (awake(UNet(1, (8, 16), attention=(), pool=p)) for p in ("average", "max"))
    assert not torch.allclose(average(x, t), largest(x, t), atol=1e-4)
    assert average.halve(torch.arange(4.0).reshape(1, 1, 2, 2), 2).item() == 1.5
    assert largest.halve(torch.arange(4.0).reshape(1, 1, 2, 2), 2).item() == 3


def test_sizes_that_were_promised():
    def parameters(model):
        return sum(p.numel() for p in model.parameters())

    small = UNet(1, (48, 96), classes=10)
    assert 1.0e6 < parameters(small) < 1.5e6
    ho = UNet(3, (128, 256, 256, 256), blocks=2, attention=(1,), patch_size=1, classes=10)
    assert 28e6 < parameters(ho) < 36e6


def test_every_condition_counts():
    """The answer depends on x, t, the class, the words, and the picture beside."""
    model = awake(UNet(1, (8, 16), attention=(1,), classes=3, vocabulary=5, beside=1))
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([0.3])
    condition = {
        "label": torch.tensor([1]),
        "words": torch.tensor([[1, 2]]),
        "beside": torch.randn(1, 1, 8, 8),
    }
    usual = model(x, t, **condition)
    for name, other in (
        ("label", torch.tensor([3])),
        ("words", torch.tensor([[1, 4]])),
        ("beside", torch.randn(1, 1, 8, 8)),
    ):
        assert not torch.allclose(usual, model(x, t, **{**condition, name: other}), atol=1e-4), name
    assert not torch.allclose(usual, model(x, t + 0.2, **condition), atol=1e-4)
    assert not torch.allclose(usual, model(x + 0.1, t, **condition), atol=1e-4)


def test_images_of_a_batch_do_not_meet():
    model = awake(UNet(1, (8, 16), attention=(1,), classes=3))
    x, t, label = torch.randn(3, 1, 8, 8), torch.rand(3), torch.tensor([0, 1, 2])
    together = model(x, t, label)
    alone = torch.cat([model(x[k : k + 1], t[k : k + 1], label[k : k + 1]) for k in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_attention_is_the_textbook_s():
    """softmax(QKᵀ/√d)·V, head by head."""
    layer = Attention(8, heads=2)
    torch.nn.init.normal_(layer.out.weight)
    x = torch.randn(1, 8, 2, 3)
    pixels = layer.norm(x).flatten(2).transpose(1, 2)[0]  # (6, 8)
    q, (k, v) = layer.query(pixels), layer.key_value(pixels).chunk(2, dim=1)
    heads = [(q[:, s] @ k[:, s].T / 2).softmax(dim=1) @ v[:, s] for s in (slice(0, 4), slice(4, 8))]
    expected = x + layer.out(torch.cat(heads, dim=1)).T.reshape(1, 8, 2, 3)
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_the_norm_is_per_pixel():
    out = PixelNorm(16)(3 + 5 * torch.randn(2, 16, 4, 4))
    assert torch.allclose(out.mean(dim=1), torch.zeros(2, 4, 4), atol=1e-5)
    assert torch.allclose(out.var(dim=1, unbiased=False), torch.ones(2, 4, 4), atol=1e-3)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="divisible by 8"):
        UNet(1, (8, 16, 16), patch_size=2)(torch.randn(1, 1, 28, 28), torch.rand(1))
    with pytest.raises(UserError, match="levels from 0 to 1"):
        UNet(1, (8, 16), attention=(2,))
    with pytest.raises(UserError, match="divisible by 4"):
        UNet(1, (10, 16))
