"""How fast this collection is, as ratios against the ordinary way to write the same thing.

    python -m benchmarks                  # all
    python -m benchmarks --only attack

Both sides of a ratio run by turns in one process, several times; the median and the spread of the
ratios are printed and written into `benchmarks/results.json`. An absolute time says little: the same
machine is a third faster or slower an hour later.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from benchmarks.attack import attack
from imagelab.results import text_table, write_json
from imagelab.runtime import command_line, has_fast_bfloat16, machine, prepare
from imagelab.settings import Count, Settings

BENCHMARKS = {"attack": attack}


@dataclass(frozen=True)
class Config(Settings):
    """Settings of the benchmarks."""

    only: tuple[Literal["attack"], ...] = ()
    """Run these only."""
    repeats: Count = 5
    """Turns of both sides."""


@dataclass
class Ratio:
    """How many times as much of `unit` per second ours does as the ordinary way."""

    what: str
    unit: str
    ours: float
    ordinary: float
    ratio: float
    lowest: float
    highest: float


def measure(
    what: str, unit: str, amount: float, ours: Callable, ordinary: Callable, repeats: int
) -> Ratio:
    """Run both sides by turns, after one turn that does not count; `amount` of `unit` per turn."""
    rates = []
    for turn in range(repeats + 1):
        seconds = []
        for side in (ours, ordinary):
            started = time.perf_counter()
            side()
            seconds.append(time.perf_counter() - started)
        if turn:
            rates.append([amount / s for s in seconds])
    ratios = [ours / ordinary for ours, ordinary in rates]
    medians = [statistics.median(side) for side in zip(*rates, strict=True)]
    return Ratio(what, unit, *medians, statistics.median(ratios), min(ratios), max(ratios))


@dataclass
class Outcome:
    """What the command line prints."""

    ratios: list[Ratio]
    exit_status: int = 0

    def print_summary(self) -> None:
        rows = [list(asdict(ratio).values()) for ratio in self.ratios]
        columns = ["what", "per second", "ours", "ordinary", "ratio", "lowest", "highest"]
        print(text_table(columns, rows))

    def pictures(self) -> list[Path]:
        return []


def run(config: Config) -> Outcome:
    """Run the chosen benchmarks and write `benchmarks/results.json` under --output-dir."""
    device = prepare(config.seed, config.device)
    repeats = 2 if config.quick else config.repeats
    ratios = []
    for name, benchmark in BENCHMARKS.items():
        if not config.only or name in config.only:
            for case in benchmark(device, config.quick):
                ratios.append(measure(*case, repeats))
    write_json(
        config.output_dir / "benchmarks" / "results.json",
        {
            "device": machine(device),
            "fast_bfloat16": has_fast_bfloat16(device),
            "repeats": repeats,
            "ratios": [asdict(ratio) for ratio in ratios],
        },
    )
    return Outcome(ratios)


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
