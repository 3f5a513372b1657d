"""One training over two processes, started by torchrun, against the same in one process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script

from imagelab import distributed
from imagelab.runtime import UserError

SETTINGS = (
    "--quick", "--dataset", "digits", "--widths", "8", "16", "--batch-size", "64", "--epochs", "1",
    "--num-samples", "20", "--debug",
)  # fmt: skip


def torchrun(folder: Path, *arguments: object) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "studies.unet_diffusion", *SETTINGS, "--output-dir", str(folder), *map(str, arguments),
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHONIOENCODING": "utf-8",
    }


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "study_models" / "unet_diffusion" / "unet.pth", weights_only=True)


def test_a_batch_is_split_without_a_rest(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 3)
    with pytest.raises(UserError, match="divisible by the number of processes, 3"):
        distributed.own_rows(64)
    assert distributed.own_rows(63) == slice(0, 21)


@pytest.fixture
def folder(unet_run, tmp_path) -> Path:
    """An output folder with a trained classifier in it."""
    for name in ("one", "two"):
        shutil.copytree(unet_run / "classifier_models", tmp_path / name / "classifier_models")
    return tmp_path


def test_two_processes_take_the_steps_of_one(folder):
    run_script("studies.unet_diffusion", *SETTINGS, "--output-dir", folder / "one")
    done = subprocess.run(torchrun(folder / "two"), env=environment(), capture_output=True,
                          text=True, encoding="utf-8", check=False, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = checkpoint(folder / "one"), checkpoint(folder / "two")
    losses = one["history"]["loss"], two["history"]["loss"]
    assert len(losses[0]) == one["step"] + one["epoch"] * 93 > 50
    assert torch.allclose(*losses, atol=1e-4)
    for name, values in one["ema"].items():
        assert torch.allclose(values, two["ema"][name], atol=1e-2), name
    pictures = folder / "two" / "study_images" / "unet_diffusion"
    assert (pictures / "results.json").is_file()


def test_a_killed_process_ends_the_run_with_a_sentence_and_a_checkpoint(folder):
    """The checkpoint of the last epoch can be continued, by one process as well."""
    folder = folder / "one"
    process = subprocess.Popen(torchrun(folder, "--epochs", 50), env=environment(),
                               stderr=subprocess.PIPE, text=True, encoding="utf-8")  # fmt: skip
    path = folder / "study_models" / "unet_diffusion" / "unet.pth"
    deadline = time.monotonic() + 120
    while not path.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    assert path.is_file()
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)],
                              capture_output=True, text=True, check=True)  # fmt: skip
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "--resume goes on" in said
    saved = checkpoint(folder)
    assert saved["epoch"] >= 1
    run_script("studies.unet_diffusion", *SETTINGS, "--output-dir", folder, "--resume",
               "--epochs", saved["epoch"] + 1)  # fmt: skip
    assert checkpoint(folder)["epoch"] == saved["epoch"] + 1
