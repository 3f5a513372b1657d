"""How fast this collection is, as ratios against the ordinary way to write the same thing.

    python -m benchmarks                            # all, five minutes on two CPU cores
    python -m benchmarks --only training limit
    python -m benchmarks.main_job                   # the phases of the whole main job, not of --quick

Both sides of a ratio run by turns in one process, several times; the median and the spread of the
ratios are printed and written into `benchmarks/results.json`. An absolute time says little: the same
machine is a third faster or slower an hour later. `training` is ours against the ordinary script
(ordinary.py), `limit` ours against the matrix products and convolutions of the same steps alone,
`shares` what the time of a training goes into.
"""

from __future__ import annotations

from imagelab.command import command_line

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from benchmarks.attack import attack
from benchmarks.growth import FACTORS, growth
from benchmarks.main_job import main_job, table
from benchmarks.sampling import sampling
from benchmarks.shares import shares
from benchmarks.training import limit, training
from imagelab.results import text_table, write_json
from imagelab.runtime import UserError, machine, prepare, versions
from imagelab.settings import Count, RunSettings

RATIOS = {"training": training, "limit": limit, "attack": attack, "sampling": sampling}
Name = Literal["training", "limit", "attack", "sampling", "growth", "shares", "main-job"]


@dataclass(frozen=True)
class Config(RunSettings):
    """Settings of the benchmarks."""

    only: tuple[Name, ...] = ()
    """Run these only."""
    repeats: Count = 3
    """Turns of both sides."""


@dataclass
class Ratio:
    """How many times as much of `unit` per second ours does as the other side, if there is one."""

    what: str
    unit: str
    ours: float
    other: float | None = None
    ratio: float | None = None
    lowest: float | None = None
    highest: float | None = None


def measure(
    what: str, unit: str, amount: float, ours: Callable, other: Callable | None, repeats: int
) -> Ratio:
    """Run both sides by turns, after one turn that does not count; `amount` of `unit` per turn."""
    rates = []
    for turn in range(repeats + 1):
        seconds = []
        for side in filter(None, (ours, other)):
            started = time.perf_counter()
            side()
            seconds.append(time.perf_counter() - started)
        if turn:
            rates.append([amount / s for s in seconds])
    medians = [statistics.median(side) for side in zip(*rates, strict=True)]
    if other is None:
        return Ratio(what, unit, *medians)
    ratios = [ours / other for ours, other in rates]
    return Ratio(what, unit, *medians, statistics.median(ratios), min(ratios), max(ratios))


@dataclass
class Outcome:
    """What the command line prints."""

    ratios: list[Ratio]
    growth: list[dict]
    shares: list[dict]
    main_job: list[dict]
    exit_status: int = 0

    def print_summary(self) -> None:
        if self.ratios:
            rows = [["" if v is None else v for v in vars(ratio).values()] for ratio in self.ratios]
            columns = ["what", "per second", "ours", "other", "ratio", "lowest", "highest"]
            print("\n" + text_table(columns, rows))
        if self.growth:
            rows = [[line["what"], *line["relative"]] for line in self.growth]
            print("\n" + text_table(["time for so much", *(f"{k}×" for k in FACTORS)], rows))
        if self.shares:
            rows = [list(line.values()) for line in self.shares]
            print("\n" + text_table(["share of the time", *list(self.shares[0])[1:]], rows))
        if self.main_job:
            print("\n" + table(self.main_job))


def run(config: Config) -> Outcome:
    """Run the chosen benchmarks and write `benchmarks/results.json` under --output-dir."""
    if config.device not in ("auto", "cpu"):
        raise UserError("The benchmarks measure the CPU: leave out --device.")
    device = prepare(config.seed, "cpu")
    repeats = 1 if config.quick else config.repeats
    outcome = Outcome([], [], [], [])
    for name in config.only or get_args(Name):
        print(f"{name} ...", flush=True)
        if name == "growth":
            outcome.growth = growth(device, config.quick)
        elif name == "shares":
            outcome.shares = shares()
        elif name == "main-job":
            outcome.main_job = main_job(quick=True)
        else:
            for case in RATIOS[name](device, config.quick):
                outcome.ratios.append(measure(*case, repeats))
        record = {"device": machine(device), "versions": versions(), "repeats": repeats}
        measured = asdict(outcome)
        del measured["exit_status"]
        write_json(config.output_dir / "benchmarks" / "results.json", record | measured)
    return outcome


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
