"""Networks as files for elsewhere. What each script writes is tried in that script's own tests."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import complaint, elsewhere, run_here
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import gan_mnist
from imagelab.setup.runtime import UserError, autocast, in_float32
from imagelab.techniques.export import export_network


@pytest.fixture
def trained(main_job, tmp_path):
    """An output folder with a trained generator."""
    shutil.copytree(main_job / "GAN_models", tmp_path / "GAN_models")
    return tmp_path


def test_the_generator_draws_the_same_elsewhere(trained):
    path = trained / "a folder" / "generator.onnx"
    shown, _ = run_here("gan_mnist", "--sample-only", "--num-samples", 100, "--output-dir", trained,
                        "--export", path)  # fmt: skip
    assert f"{path} holds the network" in shown
    G = gan_mnist.load_generator(trained / "GAN_models/mlp_gan.pth", torch.device("cpu"))
    z = torch.randn(7, 100)
    drawn = elsewhere(path, latents=z)
    assert drawn.shape == (7, 1, 28, 28) and drawn.std() > 0.1
    with torch.no_grad(), in_float32():
        assert torch.allclose(drawn, G(z), atol=1e-5)


def test_weights_alone_read_as_they_were_and_say_what_they_are_of(trained):
    path = trained / "generator.safetensors"
    run_here("gan_mnist", "--sample-only", "--num-samples", 100, "--output-dir", trained, "--export",
             path)  # fmt: skip
    saved = torch.load(trained / "GAN_models/mlp_gan.pth", weights_only=True)["ema"]
    found = load_file(path)
    assert found.keys() == saved.keys() and all(torch.equal(found[k], saved[k]) for k in saved)
    with safe_open(path, "pt") as file:
        words = file.metadata()
    assert words["network"] == "Generator" and "to images (B, C, H, W)" in words["description"]


class OtherElsewhere(nn.Linear):
    """A network that computes something else where it is exported."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.compiler.is_exporting() * 1e-2


def test_what_computes_something_else_is_not_kept(tmp_path):
    path = tmp_path / "other.onnx"
    path.write_text("an earlier one")
    with pytest.raises(UserError, match=r"differs from PyTorch's by 0\.01"):
        export_network(path, OtherElsewhere(3, 2), {"x": torch.rand(2, 3)}, "y")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [
        ("other.onnx", "an earlier one")
    ]


def test_what_is_said_of_a_network_is_in_the_file(tmp_path):
    path = tmp_path / "linear.safetensors"
    model = nn.Linear(3, 2).train()
    export_network(str(path), model, {"x": torch.rand(2, 3)}, "y", classes=("ä", "b"))
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["classes"]) == ["ä", "b"]
    assert model.training and model.weight.requires_grad  # the caller's stays as it was


def test_refused_before_the_training(tmp_path, monkeypatch):
    shared = ("gan_mnist", "--quick", "--output-dir", tmp_path, "--export")
    assert "must end in .onnx or .safetensors, not 'g.pt'" in complaint(*shared, "g.pt")
    with pytest.raises(UserError, match=r"\.onnx or \.safetensors, not as 'g\.pt'"):
        export_network("g.pt", nn.Identity(), {}, "y")
    missing = {"onnx", "onnxruntime", "safetensors"}
    monkeypatch.setattr(
        "imagelab.setup.settings.find_spec", lambda name: name not in missing or None
    )
    sentence = "--export g.onnx needs more packages: pip install onnx onnxruntime"
    assert complaint(*shared, "g.onnx").endswith(sentence)
    assert complaint(*shared, "g.safetensors").endswith(": pip install safetensors")
    with pytest.raises(UserError, match="pip install safetensors"):
        export_network(tmp_path / "g.safetensors", nn.Identity(), {}, "y")
    assert list(tmp_path.iterdir()) == []


def test_no_bfloat16_where_it_is_not_wanted(monkeypatch):
    monkeypatch.setattr("imagelab.setup.runtime.has_fast_bfloat16", lambda _device: True)
    cpu, ones = torch.device("cpu"), torch.ones(2, 2)
    with autocast(cpu):
        assert (ones @ ones).dtype == torch.bfloat16
    with in_float32(), autocast(cpu):
        assert (ones @ ones).dtype == torch.float32
    with autocast(cpu):
        assert (ones @ ones).dtype == torch.bfloat16
