"""Every script and command on a GPU: the stand-in for one (standin.py), and a real one (gpu.py).

python -m pytest -m devices --dist load    # every script and command on the stand-in, nine minutes
CUDA_VISIBLE_DEVICES=0 python -m pytest -m devices --dist load -n 8    # on the real GPU as well
"""

from __future__ import annotations

import collections
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import waits
from torch.utils import backend_registration

from imagelab.setup import runtime
from imagelab.setup.runtime import UserError, explain, pick_device
from imagelab.techniques.pretrained import trained
from imagelab.training.checkpoints import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
needs_backend = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch cannot set up a backend in Python",
)
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="torch sees no CUDA GPU (the tests hide it unless CUDA_VISIBLE_DEVICES is set)",
)
STANDIN = pytest.param("standin", marks=needs_backend)
CUDA = pytest.param("cuda", marks=needs_gpu)
LAUNCHERS = {"standin": "standin", "cuda": "gpu"}  # files of tests/
STRICT = """
at = torch.device("standin", 0)
x = torch.arange(6.0, device=at)
refused = {
    "mixed devices": lambda: x + torch.ones(6),
    "generator of the CPU": lambda: torch.randn(3, device=at, generator=torch.Generator()),
    "generator of the device": lambda: torch.randn(3, generator=torch.Generator(at)),
    "numpy": lambda: x.numpy(),
    "random state": lambda: torch.Generator(at).set_state(x.to(torch.uint8)),
}
for name, wrong in refused.items():
    try:
        wrong()
    except (RuntimeError, TypeError):
        print(name)
assert (x * torch.tensor(2.0)).device == at and x[torch.tensor([1, 2])].tolist() == [1, 2]
"""
# For these a program waits, on a GPU as on the stand-in, and for the others it doesn't.
WAIT = ["item", "to the CPU", "mask", "nonzero", "list to the device", "indices on the CPU", "set"]
WAITS = """
import {launcher}, torch, waits
{launcher}.install()
at = torch.device("{device}", 0)
x, rows = torch.arange(6.0, device=at), torch.tensor([1, 2])
on_device = rows.to(at)
operations = {{
    "item": lambda: x.sum().item(),
    "to the CPU": lambda: x.cpu(),
    "mask": lambda: x[x > 2],
    "nonzero": lambda: x.nonzero(),
    "list to the device": lambda: torch.tensor([1, 2], device=at),
    "indices on the CPU": lambda: x[rows],
    "set": lambda: x.copy_(torch.zeros(6)),
    "number": lambda: x * 2 + torch.tensor(2.0),
    "indices": lambda: x[on_device] + x[1:3].sum() + x[1],
    "where": lambda: torch.where(x > 2, x, 0).gather(0, on_device),
    "to the device, not blocking": lambda: rows.to(at, non_blocking=True),
    "drawn": lambda: torch.rand(3, device=at, generator=torch.Generator(at)),
}}
for name, operation in operations.items():
    before = sum(waits.counted.values())
    operation()
    if sum(waits.counted.values()) > before:
        print(name)
"""


def environment_for(device: str) -> dict[str, str]:
    return {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if device == "standin" else {})}


def on(device: str, script: str, *arguments: object, counts: Path | None = None) -> str:
    """What a script prints on the device, which --device auto finds."""
    environment = environment_for(device) | ({"WAITS": str(counts)} if counts else {})
    launcher = f"tests/{LAUNCHERS[device]}.py"
    return printed_by(launcher, script, *map(str, arguments), environment=environment)


def printed_by(*arguments: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("device", [STANDIN, CUDA])
def test_what_waits_is_counted_and_the_stand_in_is_as_strict_as_a_gpu(device):
    """Both in one process, which takes its time to start."""
    probe = WAITS.format(launcher=LAUNCHERS[device], device=device)
    probe += "print()" + STRICT if device == "standin" else ""
    environment = environment_for(device) | {"PYTHONPATH": "tests"}
    waited, _, refused = printed_by("-c", probe, environment=environment).partition("\n\n")
    assert waited.splitlines() == WAIT
    assert device != "standin" or refused.splitlines() == [
        "mixed devices", "generator of the CPU", "generator of the device", "numpy", "random state",
    ]  # fmt: skip


# Two epochs of five steps, of a script that waits twice in a step, at each start, and for a bar.
WAITING = """
class Training:
    steps_done = last_epoch = 0

def inner():
    note()

def start():
    note()

def _show_progress():
    note()

def train():
    training = Training()
    for epoch in 1, 2:
        training.last_epoch = epoch
        start()
        for _ in range(5):
            training.steps_done += 1
            inner(), inner(), _show_progress()

train()
inner()
"""


def test_waits_are_counted_by_the_steps_of_a_training(monkeypatch):
    """The first one in an epoch may be there for the epoch, and does not count."""
    monkeypatch.setattr(waits, "counted", collections.Counter())
    exec(compile(WAITING, ROOT / "studies" / "made.py", "exec"), {"note": waits.note})
    assert waits.counted == {
        "studies/made.py inner in train": 8,
        "studies/made.py _show_progress": 10,
        "studies/made.py inner": 1,
    }


DIGITS = ("--dataset", "mnist-5k")
RUNS = {
    "fgsm": DIGITS,
    "diffusion_demo": (),
    "gan_mnist": DIGITS,
    "mlp_diffusion": DIGITS,
    "studies.adversarial_training": DIGITS,
    "studies.cnn_classifier": DIGITS,
    "studies.dcgan": DIGITS,
    "studies.denoising_autoencoder": DIGITS,
    "studies.denoising_gan": DIGITS,
    "studies.detection": (),
    "studies.image_translation": (),
    "studies.model_comparison": DIGITS,
    "studies.segmentation": (),
    "studies.text_diffusion": DIGITS,
    "studies.unet_diffusion": DIGITS,
    "studies.vae": DIGITS,
}
# Further commands, and the studies that start from the U-Net's checkpoint.
AFTERWARDS = {
    "gan_mnist": [("--sample-only",), ("--resume", "--epochs", "3")],
    "mlp_diffusion": [("--sample-only",), ("--resume", "--epochs", "3")],
    "studies.vae": [("--sample-only",), ("--resume", "--epochs", "3")],
    "studies.dcgan": [("--sample-only",)],
    "studies.unet_diffusion": [("--sample-only", "--labels", "7")],
}
FROM_THE_UNET = ("diffusion_curves", "inpainting", "diffusion_restoration")
IN_EVERY_SUITE = ("studies.segmentation",)
STEPS = 20  # fewer than any quick training has


def per_step(counts: dict[str, int]) -> dict[str, int]:
    """Functions of trainings that made the program wait at every step."""
    return {place: n for place, n in counts.items() if n >= STEPS and " in train" in place}


@pytest.mark.parametrize("device", [STANDIN, CUDA])
@pytest.mark.parametrize(
    "script",
    [s if s in IN_EVERY_SUITE else pytest.param(s, marks=pytest.mark.devices) for s in RUNS],
)
def test_a_quick_run_with_its_further_commands(script, device, tmp_path):
    """A tensor left on the CPU is an error; no step of a training waits for the device."""
    shared = ("--quick", *RUNS[script], "--output-dir", tmp_path / "out")
    printed = on(device, script, *shared, counts=tmp_path / "counts.json")
    assert re.search(rf"seed 0, {device}", printed)
    assert not per_step(json.loads((tmp_path / "counts.json").read_text()))
    for more in AFTERWARDS.get(script, []):
        on(device, script, *shared, *more)
    if script == "studies.unet_diffusion":
        for study in FROM_THE_UNET:
            on(device, f"studies.{study}", *shared)


@pytest.mark.devices
@pytest.mark.parametrize("device", [STANDIN, CUDA])
@pytest.mark.parametrize(
    ("script", "command", "inputs"),
    [
        ("studies.segmentation", "predict", ("--image", "{photo}", "--output", "{out}.png")),
        ("studies.detection", "predict", ("--source", "{photo}", "--output", "{out}.png")),
        (
            "studies.denoising_autoencoder",
            "denoise",
            ("--image", "{photo}", "--output", "{out}.png"),
        ),
        ("studies.inpainting", "inpaint", ("--image", "{digit}", "--output", "{out}.png")),
    ],
)
def test_commands_for_a_picture_of_ones_own(script, command, inputs, device, tmp_path):
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    places = {name: str(tmp_path / f"{name}.png") for name in ("photo", "digit")}
    Image.fromarray(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)).save(places["photo"])
    digit = np.zeros((28, 28), np.uint8)
    digit[4:24, 12:15] = 255
    Image.fromarray(digit).save(places["digit"])
    if command in ("predict", "inpaint"):
        trained = "studies.unet_diffusion" if command == "inpaint" else script
        on(device, trained, "--quick", *RUNS[trained], "--output-dir", tmp_path)
        model = tmp_path / "study_models" / "unet_diffusion" / "unet.pth"
        where = ("--model", model) if command == "inpaint" else ("--output-dir", tmp_path)
    else:
        where = ()
    told = [text.format(out=tmp_path / "out", **places) for text in inputs]
    on(device, script, command, *told, *where)
    assert (tmp_path / "out.png").is_file()


# --- which device -------------------------------------------------------------------------------


def test_auto_falls_back_where_the_device_has_no_kernel(monkeypatch, capsys):
    """As with a card that is too old for the wheel: it is found, and cannot compute."""
    found = torch.device("meta")  # a device whose values cannot be read
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: found)
    assert pick_device("auto") == torch.device("cpu")
    assert "The device meta cannot be used" in capsys.readouterr().err


def test_a_device_that_is_named_and_cannot_compute_is_refused():
    with pytest.raises(UserError, match=r"--device meta cannot be used here \(.+\)\."):
        pick_device("meta")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_no_memory_is_never_a_damaged_checkpoint_or_weights_file(error, tmp_path, monkeypatch):
    sentence, status = explain(error)
    assert sentence.startswith("Out of memory") and status == 2
    path = tmp_path / "a.pth"
    path.write_bytes(b"whatever")

    def fails(*_arguments, **_more):
        raise error

    monkeypatch.setattr(torch, "load", fails)
    with pytest.raises(type(error)):
        load_checkpoint(path, "gan_mnist")
    source = SimpleNamespace(url="https://example.org/w.pth")
    with pytest.raises(type(error)):
        trained(torch.nn.Linear(2, 2), "a network", source, path)


def test_an_error_of_the_accelerator_is_named():
    error = RuntimeError("CUDA error: an illegal memory access was encountered\nmore")
    sentence, status = explain(error)
    assert "(CUDA error: an illegal memory access was encountered)" in sentence and status == 2
    assert explain(RuntimeError("shapes differ"))[1] == 1


def test_a_stopwatch_on_the_cpu_leaves_other_devices_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("waited for a GPU"))
    runtime.use(torch.device("cpu"))
    with runtime.Stopwatch() as watch:
        pass
    assert watch.seconds >= 0
