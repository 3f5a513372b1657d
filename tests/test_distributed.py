"""One training over two processes, started by torchrun, against the same in one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_here

from imagelab.setup.runtime import UserError
from imagelab.training import distributed

# A script as the U-Net study is one, with data that are made at once. One process alone scores.
WORKER = """
import torch
from imagelab.training import distributed
from imagelab.setup import runtime
from imagelab.data.datasets import Dataset
from imagelab.report.evaluator import frechet_distance, kernel_distance
from imagelab.setup.command import command_line
from studies.unet_diffusion import Config, train

runtime.has_fast_bfloat16 = lambda _device: False  # half a batch rounds otherwise than a whole one

def run(config):
    distributed.join(runtime.prepare(config.seed, "cpu"))
    images = torch.arange(64 * 784).reshape(64, 1, 28, 28).to(torch.uint8)
    labels = torch.arange(64) % 2
    data = Dataset("made", "by a test", ("a", "b"), images, labels, images, labels)
    if distributed.writes():
        x, y = torch.rand(2, 300, 4)
        frechet_distance(x, y), kernel_distance(x, y)
    train(config, data, config.output_dir / "unet.pth")
    distributed.leave()

def main():
    command_line(Config, run, "")

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def worker(tmp_path, monkeypatch, float32) -> Path:
    """The script, which this process can import as well."""
    path = tmp_path / "worker.py"
    path.write_text(WORKER, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return path


def settings(folder: Path, epochs: int) -> list[str]:
    return ["--output-dir", str(folder), "--widths", "8", "16", "--batch-size", "32", "--epochs",
            str(epochs)]  # fmt: skip


def command(worker: Path, folder: Path, epochs: int) -> list[str]:
    """Two processes by torchrun."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [sys.executable, *launch, str(worker), *settings(folder, epochs)]


def environment() -> dict[str, str]:
    more = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    return {**os.environ, **more}


def run(arguments: list[str]) -> None:
    done = subprocess.run(arguments, env=environment(), capture_output=True, text=True,
                          encoding="utf-8", check=False, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "unet.pth", weights_only=True)


def test_a_batch_is_split_without_a_rest(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 3)
    with pytest.raises(UserError, match="divisible by the number of processes, 3"):
        distributed.own_rows(64)
    assert distributed.own_rows(63) == slice(0, 21)


def test_two_processes_take_the_steps_of_one(worker, tmp_path):
    run_here("worker", *settings(tmp_path / "1", 10))
    run(command(worker, tmp_path / "2", 10))
    one, two = checkpoint(tmp_path / "1"), checkpoint(tmp_path / "2")
    losses = one["history"]["loss"], two["history"]["loss"]
    assert len(losses[0]) == 20 and losses[0][-1] < losses[0][0]
    assert torch.allclose(*losses, atol=1e-5)
    for name, values in one["ema"].items():
        assert torch.allclose(values, two["ema"][name], atol=1e-3), name


def test_a_killed_process_ends_the_run_with_a_sentence_and_a_checkpoint(worker, tmp_path):
    """The checkpoint of the last epoch can be continued, by one process as well."""
    process = subprocess.Popen(command(worker, tmp_path, 100_000), env=environment(),
                               stderr=subprocess.PIPE, text=True, encoding="utf-8")  # fmt: skip
    deadline = time.monotonic() + 120
    while not (tmp_path / "unet.pth").is_file() and time.monotonic() < deadline:
        time.sleep(0.2)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)],
                              capture_output=True, text=True, check=True)  # fmt: skip
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0 and "--resume goes on" in said
    done = checkpoint(tmp_path)["epoch"]
    assert done >= 1
    run_here("worker", *settings(tmp_path, done + 1), "--resume")
    assert checkpoint(tmp_path)["epoch"] == done + 1
