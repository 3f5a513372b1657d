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
    """Holds two output folders with a trained classifier."""
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


WORKER = """
import sys
from pathlib import Path
import torch
from imagelab import distributed
from imagelab.datasets import Dataset
from imagelab.runtime import command_line, prepare
from studies.unet_diffusion import Config, train

def run(config):
    distributed.join(prepare(config.seed, "cpu"))
    images = torch.arange(64 * 784).reshape(64, 1, 28, 28).to(torch.uint8)
    labels = torch.arange(64) % 2
    data = Dataset("made", "by a test", ("a", "b"), images, labels, images, labels)
    train(config, data, config.output_dir / "unet.pth")

command_line(Config, run, "")
"""


def test_a_killed_process_ends_the_run_with_a_sentence_and_a_checkpoint(tmp_path):
    """The checkpoint of the last epoch can be continued, by one process as well."""
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    arguments = [str(tmp_path / "worker.py"), "--output-dir", str(tmp_path), "--widths", "8", "16",
                 "--batch-size", "32"]  # fmt: skip
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [sys.executable, *launch, *arguments, "--epochs", "100000"], env=environment(),
        stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip
    path = tmp_path / "unet.pth"
    deadline = time.monotonic() + 120
    while not path.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    assert path.is_file()
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)],
                              capture_output=True, text=True, check=True)  # fmt: skip
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0 and "--resume goes on" in said
    done = torch.load(path, weights_only=True)["epoch"]
    assert done >= 1
    subprocess.run([sys.executable, *arguments, "--epochs", str(done + 1), "--resume"],
                   env=environment(), check=True, capture_output=True, timeout=120)  # fmt: skip
    assert torch.load(path, weights_only=True)["epoch"] == done + 1
