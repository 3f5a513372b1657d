"""How fast this collection is, as ratios against the ordinary way to write the same thing.

    python -m benchmarks                            # all, five minutes on two CPU cores
    python -m benchmarks --only training limit
    python -m benchmarks.main_job                   # the phases of the whole main job, not of --quick

Both sides of a ratio run by turns in one process, several times; the median and the spread of the
ratios are printed and written into `benchmarks/results.json`. An absolute time says little: the same
machine is a third faster or slower an hour later. `training` is ours against the ordinary script
(ordinary.py), `limit` ours against the matrix products and convolutions of the same steps alone,
`variants` training steps in other forms, `compiled` trainings with --compile against without,
`shares` what the operators' time in a training goes into (Python's between them is not in it).
"""

from __future__ import annotations

from imagelab.setup.command import command_line

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from benchmarks.attack import attack
from benchmarks.growth import FACTORS, growth
from benchmarks.main_job import main_job, table
from benchmarks.sampling import sampling
from benchmarks.shares import shares
from benchmarks.training import limit, training
from benchmarks.variants import compiled, variants
from imagelab.report.numbers import text_table
from imagelab.report.results import write_json
from imagelab.setup.runtime import Stopwatch, machine, prepare, versions
from imagelab.setup.settings import Checked, Count

RATIOS = {
    "training": training, "limit": limit, "attack": attack, "sampling": sampling,
    "variants": variants, "compiled": compiled,
}  # fmt: skip
USUAL = Literal["training", "limit", "attack", "sampling", "growth", "shares", "main-job"]
Name = Literal[USUAL, "variants", "compiled"]


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the benchmarks."""

    device: str = "cpu"
    """The device to measure, both sides on it: 'cpu', 'cuda', ... ('auto': the accelerator, if any).
    shares and main-job always measure the CPU."""

    output_dir: Path = Path(".")
    """The folder under which benchmarks/results.json is written."""
    quick: bool = False
    """A run of seconds that does every step and measures little."""
    debug: bool = False
    """Show the traceback of an error."""
    only: tuple[Name, ...] = ()
    """Run these only. variants and compiled, which take long, are run only if they are named."""
    repeats: Count = 3
    """Turns of both sides of a ratio."""


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
    repeats: int,
    what: str,
    unit: str,
    amount: float,
    ours: Callable,
    other: Callable | None,
    other_amount: float | None = None,
) -> Ratio:
    """Run both sides by turns, after one turn that does not count.

    `amount` of `unit` per turn; of the other side `other_amount`, if that does another part of the work.
    """
    amounts = amount, amount if other_amount is None else other_amount
    rates = []
    for turn in range(repeats + 1):
        seconds = []
        for side in filter(None, (ours, other)):
            with Stopwatch() as watch:
                side()
            seconds.append(watch.seconds)
        if turn:
            rates.append([part / s for part, s in zip(amounts, seconds, strict=False)])
    medians = [statistics.median(side) for side in zip(*rates, strict=True)]
    if other is None:
        return Ratio(what, unit, *medians)
    ratios = [ours / other for ours, other in rates]
    return Ratio(what, unit, *medians, statistics.median(ratios), min(ratios), max(ratios))


@dataclass
class Speeds:
    """What the command line prints."""

    measured: dict[str, list[dict]]
    """Of each benchmark, what it found."""
    exit_status: int = 0

    def print_summary(self) -> None:
        found = self.measured
        ratios = [ratio for name in RATIOS for ratio in found.get(name, ())]
        if ratios:
            rows = [["" if v is None else v for v in ratio.values()] for ratio in ratios]
            columns = ["what", "per second", "ours", "other", "ratio", "lowest", "highest"]
            print("\n" + text_table(columns, rows))
        if "growth" in found:
            rows = [[line["what"], *line["relative"]] for line in found["growth"]]
            print("\n" + text_table(["time for so much", *(f"{k}×" for k in FACTORS)], rows))
        if "shares" in found:
            rows = [list(line.values()) for line in found["shares"]]
            columns = ["share of the operators' time", *list(found["shares"][0])[1:]]
            print("\n" + text_table(columns, rows))
        if "main-job" in found:
            print("\n" + table(found["main-job"]))


def run(config: Config) -> Speeds:
    """Run the chosen benchmarks and enter each into `benchmarks/results.json` under --output-dir."""
    device = prepare(0, config.device)
    repeats = 1 if config.quick else config.repeats
    facts = {"device": machine(device), "versions": versions(), "quick": config.quick}
    outcome = Speeds({})
    for name in config.only or get_args(USUAL):
        print(f"{name} ...", flush=True)
        if name == "growth":
            found = growth(device, config.quick)
        elif name == "shares":
            found = shares()
        elif name == "main-job":
            found = main_job(quick=True)
        else:
            cases = RATIOS[name](device, config.quick)
            found = [asdict(measure(repeats, *case)) for case in cases]
        outcome.measured[name] = found
        more = {"repeats": repeats} if name in RATIOS else {}
        enter(config.output_dir / "benchmarks" / "results.json", name, facts | more, found)
    return outcome


def enter(path: Path, name: str, facts: dict, found: list[dict]) -> None:
    """Write what one benchmark found into the file, in which the others' last findings stay."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        record = {}
    kept = {key: record[key] for key in get_args(Name) if key in record}
    write_json(path, kept | {name: {**facts, "found": found}})


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
