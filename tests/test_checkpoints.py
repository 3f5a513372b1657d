from __future__ import annotations

import importlib
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import complaint
from torch import nn

from imagelab.setup.runtime import UserError
from imagelab.techniques.pretrained import trained
from imagelab.training.checkpoints import (
    FIELDS,
    is_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from studies import diffusion_restoration


def contents(script: str = "a") -> dict:
    return {name: kind() for name, kind in FIELDS.items() if name != "format"} | {"script": script}


def test_round_trip(tmp_path):
    path = tmp_path / "folder" / "a.pth"
    save_checkpoint(path, contents() | {"model": {"w": torch.arange(3.0)}, "epoch": 4})
    back = load_checkpoint(path, "a")
    assert back["epoch"] == 4 and torch.equal(back["model"]["w"], torch.arange(3.0))


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="There is no checkpoint"):
        load_checkpoint(tmp_path / "a.pth", "a")


def test_every_truncation_is_told(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, contents() | {"model": {"w": torch.randn(1000)}})
    whole = path.read_bytes()
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            load_checkpoint(path, "a")
        assert path.read_bytes() == whole[:length]  # never repaired, never deleted


@pytest.mark.parametrize(
    ("function", "error"),
    [("torch.load", MemoryError), ("torch.load", torch.OutOfMemoryError),
     ("pathlib.Path.read_bytes", PermissionError)],
)  # fmt: skip
def test_what_is_not_the_files_fault_is_not_called_damage(tmp_path, monkeypatch, function, error):
    """A whole training must not be moved away because the memory is full or the disk says no."""

    def fails(*_, **__):
        raise error

    save_checkpoint(tmp_path / "a.pth", contents())
    monkeypatch.setattr(function, fails)
    with pytest.raises(error):
        load_checkpoint(tmp_path / "a.pth", "a")
    if function == "torch.load":
        with pytest.raises(error):
            is_checkpoint(tmp_path / "a.pth")


def test_checkpoints_are_told_from_other_files(tmp_path):
    save_checkpoint(tmp_path / "a.pth", contents())
    torch.save({"weight": torch.ones(2)}, tmp_path / "weights.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    found = {path.name for path in tmp_path.iterdir() if is_checkpoint(path)}
    assert found == {"a.pth"}
    with pytest.raises(UserError, match="There is no file"):
        is_checkpoint(tmp_path / "none.pth")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["model", "ema"])
def test_weights_that_are_no_numbers_are_told(tmp_path, place, bad):
    weights = {"network": {"w": torch.tensor([1.0, bad]), "steps": torch.tensor(3)}}
    save_checkpoint(tmp_path / "a.pth", contents() | {place: weights})
    with pytest.raises(UserError, match=r"weights in .*a\.pth are not finite"):
        load_checkpoint(tmp_path / "a.pth", "a")


def test_weights_from_elsewhere(tmp_path):
    """torchvision's: whatever --weights names is a file, and holds numbers."""
    network, source = nn.Linear(2, 2), SimpleNamespace(url="https://example.org/w.pth")
    os.mkfifo(tmp_path / "pipe")  # to read it would wait for ever
    for path in (tmp_path / "pipe", tmp_path, Path(os.devnull), tmp_path / "none"):
        with pytest.raises(UserError, match="There is no weights file"):
            trained(network, "a network", source, path)
    torch.save({"weight": torch.full((2, 2), float("nan")), "bias": torch.zeros(2)}, tmp_path / "w")
    with pytest.raises(UserError, match="are not finite"):
        trained(network, "a network", source, tmp_path / "w")


def test_foreign_and_incomplete_files(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, contents("b"))
    with pytest.raises(UserError, match="written by 'b'"):
        load_checkpoint(path, "a")
    torch.save({"w": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(path, "a")
    torch.save({**contents(), "format": 99}, path)
    with pytest.raises(UserError, match="format 99"):
        load_checkpoint(path, "a")
    torch.save({"format": 1, "script": "a"}, path)
    with pytest.raises(UserError, match="lacks"):
        load_checkpoint(path, "a")


@pytest.mark.parametrize(
    ("script", "name"),
    [("gan_mnist", ""), ("mlp_diffusion", ""), ("studies.dcgan", ""), ("studies.vae", "16"),
     ("studies.unet_diffusion", "")],
)  # fmt: skip
@pytest.mark.parametrize("changed", [{}, {"dataset": {"shape": "abc"}}], ids=["little", "nonsense"])
def test_what_says_too_little_of_itself_is_refused(tmp_path, script, name, changed):
    """As the checkpoint of a version would that knew a setting less."""
    module = importlib.import_module(script)
    path = module.checkpoint_path(module.Config(output_dir=tmp_path), *filter(None, [name]))
    save_checkpoint(path, contents(module.SCRIPT) | changed)
    said = complaint(script, "--sample-only", "--output-dir", tmp_path)
    assert f"{path} does not say how its network was built" in said


@pytest.mark.parametrize(
    "script",
    ["gan_mnist", "mlp_diffusion", "studies.dcgan", "studies.vae", "studies.unet_diffusion",
     "studies.denoising_autoencoder", "studies.text_diffusion"],
)  # fmt: skip
def test_a_checkpoint_of_another_script_is_refused(tmp_path, script):
    """By every script that has --sample-only; nor is the latest one taken in its place."""
    save_checkpoint(tmp_path / "a.pth", contents("another"))
    said = complaint(script, "--checkpoint", tmp_path / "a.pth", "--dataset", "mnist-5k",
                     "--output-dir", tmp_path)  # fmt: skip
    own = script.removeprefix("studies.")
    assert f"{tmp_path / 'a.pth'} was written by 'another', not by '{own}'" in said


def test_super_resolution_refuses_it_as_well(tmp_path, stripes):
    save_checkpoint(tmp_path / "a.pth", contents("another"))
    with pytest.raises(UserError, match="written by 'another'"):
        diffusion_restoration.load_trained(
            diffusion_restoration.Config(checkpoint=tmp_path / "a.pth"), stripes
        )


class Malicious:
    def __reduce__(self):
        return (open, ("harm", "w"))


def test_code_in_a_pickle_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pth"
    torch.save({"format": 1, "script": "a", "model": Malicious()}, path)
    with pytest.raises(UserError):
        load_checkpoint(path, "a")
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError):
        load_checkpoint(path, "a")
    assert not (tmp_path / "harm").exists()


def test_weights_of_another_network(tmp_path):
    with pytest.raises(UserError, match="do not fit"):
        load_weights(nn.Linear(2, 2), nn.Linear(3, 2).state_dict(), tmp_path / "a.pth")
