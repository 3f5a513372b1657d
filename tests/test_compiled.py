from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

import gan_mnist
from imagelab.training import compiled
from studies import unet_diffusion

CPU = torch.device("cpu")


@pytest.fixture
def graphs(monkeypatch) -> list[torch.fx.GraphModule]:
    """What is compiled, by a compiler that notes it and changes nothing: the real one takes minutes."""
    seen = []

    def note(graph: torch.fx.GraphModule, _inputs):
        seen.append(graph)
        return graph.forward

    monkeypatch.setattr(
        nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend=note)
    )
    monkeypatch.setattr(compiled, "_fault", lambda: "")
    yield seen
    torch._dynamo.reset()


def train_gan(data, folder, compile: bool):
    config = gan_mnist.Config(epochs=1, batch_size=32, compile=compile)
    G, D = gan_mnist.build(config, data.shape, CPU)
    return gan_mnist.train(config, data, G, D, folder / f"{compile}.pth")


def test_both_networks_of_a_gan_are_compiled_while_they_train(graphs, stripes, tmp_path):
    plain = train_gan(stripes, tmp_path, False)
    assert graphs == []
    own = train_gan(stripes, tmp_path, True)
    products = [sum("linear" in str(node.target) for node in g.graph.nodes) for g in graphs]
    assert products.count(3) == len(products) and len(products) >= 3  # G; D of 64 and of 32 images
    for name, network in plain.networks.items():
        for a, b in zip(network.parameters(), own.networks[name].parameters(), strict=True):
            assert torch.equal(a, b)
    assert all(m._compiled_call_impl is None for n in own.networks.values() for m in n.modules())
    saved = [torch.load(tmp_path / f"{c}.pth", weights_only=True)["model"] for c in (False, True)]
    assert [list(s["generator"]) for s in saved] == [list(saved[0]["generator"])] * 2


def test_a_unet_is_one_graph(graphs, stripes, tmp_path):
    config = unet_diffusion.Config(epochs=1, batch_size=160, widths=(8, 16), compile=True)
    unet_diffusion.train(config, stripes, tmp_path / "unet.pth")
    assert len(graphs) == 1


def test_without_a_compiler_it_trains_as_ever(stripes, tmp_path, monkeypatch, capsys):
    def fail(*_args, **_more):
        raise RuntimeError("no C++ compiler found.\nlook here")

    monkeypatch.setattr(torch, "compile", fail)
    own = train_gan(stripes, tmp_path, True)
    told = " ".join("".join(capsys.readouterr()).split())
    assert "nothing can be compiled here (no C++ compiler found). It goes on without." in told
    plain = train_gan(stripes, tmp_path, False)
    assert torch.equal(own.curve("g_loss"), plain.curve("g_loss"))
