"""What further processes bring to a training under torchrun, and what they tell each other at each step.

    python -m benchmarks.scaling                     # two processes of one thread each: two minutes
    python -m benchmarks.scaling --device cuda       # the parts of a step on one GPU, for the estimates

The processes train the U-Net as under torchrun, by turns: one alone, while the other waits; both, each
with half of its batch (strong scaling); both, each with a batch as large as that (weak scaling). The
parts of a step are measured alone: what is done for every image in every process (`draw`), what is done
once per step (`update`), and a bare sum of the gradients over the processes (`sum`). From these come the
estimates for more processes.
"""

from __future__ import annotations

from imagelab.setup.command import command_line

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from benchmarks.training import part, quietly
from imagelab.data.datasets import Dataset, load_dataset
from imagelab.report.numbers import text_table
from imagelab.report.results import write_json
from imagelab.setup.runtime import Stopwatch, machine, prepare, versions
from imagelab.setup.settings import Checked, Count
from imagelab.training import distributed
from imagelab.training.loop import Training
from studies import unet_diffusion

WIDTHS = ((48, 96), (96, 192))
CASES = {"one process": (1, 1), "two, strong": (2, 1), "two, weak": (2, 2)}  # processes, batches
# Processes, and bytes per second into and out of the slowest place on their way round.
LINKS = {
    "8 GPUs, NVLink at 300 GB/s": (8, 300e9),
    "4 machines of 8 GPUs, 100 Gbit/s Ethernet": (32, 12.5e9),
    "4 machines of 8 GPUs, 10 Gbit/s Ethernet": (32, 1.25e9),
}
LATENCY = 2e-5  # seconds for one message, of which a sum over N processes takes 2·(N − 1)


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the scaling benchmark."""

    output_dir: Path = Path(".")
    """The folder under which benchmarks/scaling.json is written."""
    device: str = "cpu"
    """cpu: two processes and their parts. cuda: the parts of a step on one GPU."""
    quick: bool = False
    """A run of seconds that does every step and measures little."""
    debug: bool = False
    """Show the traceback of an error."""
    batch_size: Count = 64
    """Images per step of one process alone."""
    steps: Count = 5
    """Measured steps of each turn; two more do not count."""
    repeats: Count = 3
    """Turns of each case."""


@dataclass
class Parts:
    """Of one step of one process: seconds and bytes."""

    widths: tuple[int, ...]
    images_per_second: float
    """Of one process alone."""
    draw: float
    """Seconds per image that every process spends on all images of the step: data, t and noise. (Of 32
    batches at once, as 32 processes have them.)"""
    update: float
    """Seconds per step for clipping, Adam and the averaged weights."""
    gradient_bytes: int
    """Four bytes for each weight."""
    sum: float | None = None
    """Seconds for a bare sum of the gradients over the two processes."""

    def estimate(self, processes: int, batch: int, bytes_per_second: float) -> float:
        """Images per second of `processes` with `batch` images each.

        A ring carries 2·(N − 1)/N of the gradients into and out of each place. Nothing of it is hidden
        behind the backward pass, though it is in truth.
        """
        image = (1 / self.images_per_second) - self.draw - self.update / batch
        carried = 2 * (processes - 1) / processes * self.gradient_bytes
        told = carried / bytes_per_second + 2 * (processes - 1) * LATENCY
        step = batch * (image + processes * self.draw) + self.update + told
        return processes * batch / step


# --- one process ----------------------------------------------------------------------------------


def bytes_written() -> int | None:
    """By this process so far, over the network or into files; Linux tells it."""
    path = Path("/proc/self/io")
    if not path.is_file():
        return None
    return int(dict(line.split(": ") for line in path.read_text().splitlines())["wchar"])


@contextlib.contextmanager
def clocked() -> Iterator[list[tuple]]:
    """Seconds, CPU seconds and bytes written at the end of each step of the trainings inside."""
    ends, batches = [], Training.batches

    def timed(training: Training) -> Iterator[torch.Tensor]:
        for batch in batches(training):
            yield batch
            with Stopwatch():  # waits for a GPU
                ends.append((time.perf_counter(), time.process_time(), bytes_written()))

    with mock.patch.object(Training, "batches", timed):
        yield ends


def turn(config: Config, widths: tuple[int, ...], data: Dataset, batch: int) -> dict[str, float]:
    """Of one training of this process: seconds, CPU seconds and bytes written, each per step."""
    settings = unet_diffusion.Config(epochs=1, widths=widths, batch_size=batch)
    own = part(data, batch * (config.steps + 2))
    with clocked() as ends:
        quietly(lambda at: unet_diffusion.train(settings, own, at / "unet.pth"))()
    first, last = ends[1], ends[-1]
    names = ("seconds", "CPU seconds", "bytes")
    return {
        name: (b - a) / config.steps
        for name, a, b in zip(names, first, last, strict=True)
        if a is not None and b is not None
    }


def seconds_of(call: Callable[[], object]) -> float:
    """The median of 20 calls, after one that does not count."""
    taken = []
    for _ in range(21):
        with Stopwatch() as watch:
            call()
        taken.append(watch.seconds)
    return statistics.median(taken[1:])


def parts(config: Config, widths: tuple[int, ...], data: Dataset, rate: float) -> Parts:
    """What a step of one process is made of, each part measured alone; `rate` is measured already."""
    settings = unet_diffusion.Config(epochs=1, widths=widths, batch_size=config.batch_size)
    own = part(data, config.batch_size)
    trained: Any = quietly(lambda at: unet_diffusion.train(settings, own, at / "unet.pth"))()
    training = trained[0]
    network, rng = training.networks["unet"], training.rng
    model = unet_diffusion.build(vars(settings), data.shape, classes=len(data.classes))
    many = torch.arange(config.batch_size, device=own.images.device).repeat(32)

    def draw() -> None:
        x0 = unet_diffusion.batch_images(settings, own, many, rng)
        unet_diffusion.noisy_pair(model, x0, rng)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        training.optimizers["adam"].step()
        training._update_average()

    weights = sum(p.numel() for p in network.parameters())
    return Parts(widths, rate, seconds_of(draw) / len(many), seconds_of(update), 4 * weights)


def alone() -> contextlib.AbstractContextManager:
    """Process 0 trains inside as if there were no other."""
    return mock.patch.object(distributed, "world", lambda: 1)


# --- two processes --------------------------------------------------------------------------------


def by_turns(config: Config, widths: tuple[int, ...], data: Dataset) -> dict[str, dict]:
    """Of each case the medians over its turns, and the lowest and highest rate; {} in process 1."""
    turns: dict[str, list[dict]] = {name: [] for name in CASES}
    for k in range(config.repeats + 1):
        for name, (processes, batches) in CASES.items():
            dist.barrier()
            if processes == 1 and not distributed.writes():
                continue  # waits at the next barrier
            with alone() if processes == 1 else contextlib.nullcontext():
                taken = turn(config, widths, data, batches * config.batch_size)
            taken["images per second"] = batches * config.batch_size / taken["seconds"]
            if k:  # the first turn does not count
                turns[name].append(taken)
    dist.barrier()
    if not distributed.writes():
        return {}
    found = {}
    for name, taken in turns.items():
        found[name] = {key: statistics.median(t[key] for t in taken) for key in taken[0]}
        rates = [t["images per second"] for t in taken]
        found[name] |= {"lowest": min(rates), "highest": max(rates)}
    return found


def two_processes(config: Config, data: Dataset) -> list[dict]:
    """What process 0 of the two that torchrun started finds; [] in process 1."""
    found = []
    for widths in WIDTHS[: 1 if config.quick else None]:
        cases = by_turns(config, widths, data)
        settings = unet_diffusion.Config(widths=widths)
        model = unet_diffusion.build(vars(settings), data.shape, classes=len(data.classes))
        gradients = torch.zeros(sum(p.numel() for p in model.network.parameters()))
        summed = seconds_of(lambda gradients=gradients: dist.all_reduce(gradients))
        if cases:
            with alone():
                own = parts(config, widths, data, cases["one process"]["images per second"])
            found.append({"cases": cases, "parts": asdict(replace(own, sum=summed))})
        dist.barrier()
    return found


def one_process(config: Config, data: Dataset) -> list[dict]:
    """The parts of a step alone, as on one GPU."""
    found = []
    for widths in WIDTHS[: 1 if config.quick else None]:
        taken = [turn(config, widths, data, config.batch_size) for _ in range(config.repeats + 1)]
        rate = config.batch_size / statistics.median(t["seconds"] for t in taken[1:])
        found.append({"parts": asdict(parts(config, widths, data, rate))})
    return found


# --- the command ----------------------------------------------------------------------------------


def launch() -> int:
    """This command again, in two processes of one thread each."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", "benchmarks.scaling", *sys.argv[1:]]
    return subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    ).returncode


@dataclass
class Scaling:
    """What the command line prints."""

    found: list[dict]
    batch_size: int
    exit_status: int = 0

    def print_summary(self) -> None:
        if not distributed.writes():
            return
        for each in self.found:
            own = Parts(**each["parts"])
            print(f"\nU-Net of widths {own.widths}, {own.gradient_bytes / 4:,.0f} weights")
            if "cases" in each:
                print(table_of_cases(each["cases"]))
            print(
                f"one process {own.images_per_second:,.0f} images per second; of a step: "
                f"draw {own.draw * 1e6:.1f} µs per image, update {own.update * 1e3:.2f} ms per step, "
                f"gradients {own.gradient_bytes / 1e6:.2f} MB"
                + (f", their sum {own.sum * 1e3:.2f} ms" if own.sum else "")
            )
            rows = [
                [
                    name,
                    n,
                    (e := own.estimate(n, self.batch_size, at)),
                    e / own.images_per_second / n,
                ]
                for name, (n, at) in LINKS.items()
            ]
            print(text_table(["estimate", "processes", "images per second", "efficiency"], rows))


def table_of_cases(cases: dict[str, dict]) -> str:
    """Of each case. An efficiency is 1 where two processes do twice as much in the same time, or each
    of them as much with the same CPU seconds (which other work on the machine changes less)."""
    one, rows = cases["one process"], []
    for name, case in cases.items():
        n, batches = CASES[name]
        rate, spread = case["images per second"], f"{case['lowest']:.0f} to {case['highest']:.0f}"
        by_cpu = one["CPU seconds"] / (case["CPU seconds"] * n / batches)
        written = case["bytes"] / 1e6 if "bytes" in case else ""
        efficiency = rate / one["images per second"] / n
        rows.append([name, rate, spread, efficiency, by_cpu, written])
    columns = ["images per second", "lowest to highest", "efficiency", "by CPU", "MB sent a step"]
    return text_table(["", *columns], rows)


def run(config: Config) -> Scaling:
    """Measure, and write benchmarks/scaling.json under --output-dir."""
    if config.quick:
        config = replace(config, steps=1, repeats=1)
    device = distributed.join(prepare(0, config.device))
    data = load_dataset("mnist-5k", Path("data")).to(device)
    measure = two_processes if distributed.world() > 1 else one_process
    found = measure(config, data)
    distributed.leave()
    if distributed.writes():
        facts = {"device": machine(device), "versions": versions(), "batch size": config.batch_size,
                 "steps": config.steps, "repeats": config.repeats, "found": found}  # fmt: skip
        write_json(config.output_dir / "benchmarks" / "scaling.json", facts)
    return Scaling(found, config.batch_size)


def main() -> None:
    starts_two = "RANK" not in os.environ and not {"--help", "-h", "--device"} & set(sys.argv)
    if starts_two:
        raise SystemExit(launch())
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
