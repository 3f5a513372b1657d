"""Where the time of the main job goes, and its memory.

    python -m benchmarks.main_job [--quick]

runs the demos one after the other in a fresh process and prints a table; `python -m benchmarks` runs it
with --quick.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

PHASES = (
    "import",
    "data",
    "classifier",
    "training",
    "comparison",
    "likelihood",
    "figures",
    "sampling and measuring",
)
FUNCTIONS = {  # where each phase's work is done
    "data": {"imagelab.data.datasets": ("load_dataset",)},
    "figures": {
        "imagelab.report.figures": ("save_figure", "new_figure", "grid"),
        "imagelab.data.pictures": ("write_png", "write_gif"),
    },
    "classifier": {"imagelab.techniques.classifier": ("trained_classifier",)},
    "likelihood": {"imagelab.report.bounds": ("report_bounds",)},
    # What watches a training is measured as measuring. Last, because a script takes up the others
    # where it is imported.
    "sampling and measuring": {
        "imagelab.report.samples": ("track",),
        "gan_mnist": ("sample",),
        "mlp_diffusion": ("sample",),
    },
    "comparison": {"gan_mnist": ("train_compared",), "mlp_diffusion": ("train_others",)},
}
TRAININGS = ("comparison", "classifier")  # a training within these is theirs


class Clock:
    """Seconds per phase; a phase within another stops the outer one's clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.stack: list[str] = []
        self.since = time.perf_counter()

    def enter(self, phase: str) -> None:
        self._book()
        self.stack.append(phase)

    def leave(self) -> None:
        self._book()
        self.stack.pop()

    def _book(self) -> None:
        now = time.perf_counter()
        if self.stack:
            self.seconds[self.stack[-1]] += now - self.since
        self.since = now

    def timed(self, function: Callable, phase: str) -> Callable:
        @functools.wraps(function)
        def run(*args, **kwargs):
            self.enter(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return run


def instrument(clock: Clock) -> None:
    """Put the clock around the functions that do each phase's work, before a demo imports them."""
    for phase, modules in FUNCTIONS.items():
        for module, names in modules.items():
            home = importlib.import_module(module)
            for name in names:
                setattr(home, name, clock.timed(getattr(home, name), phase))
    training = importlib.import_module("imagelab.training.loop").Training
    enter, leave = training.__enter__, training.__exit__

    def begin(self):
        inside = clock.stack[-1] if clock.stack else ""
        clock.enter(inside if inside in TRAININGS else "training")
        return enter(self)

    def end(self, *error):
        clock.leave()
        return leave(self, *error)

    training.__enter__, training.__exit__ = begin, end


def measured(quick: bool, folder: Path) -> list[dict]:
    """Run the main job's demos in this process: seconds of each phase, and the memory used so far."""
    clock = Clock()
    clock.enter("import")
    instrument(clock)
    driver = importlib.import_module("advanced_image_processing")
    rows = []
    for name, demo in driver.DEMOS.items():
        before = time.process_time()
        module = importlib.import_module(name)
        config = driver.Config(quick=quick, dataset="mnist-5k", output_dir=folder)
        clock.enter("sampling and measuring")
        module.run(driver.demo_config(module, config, demo))
        clock.leave()
        rows.append(
            {
                "demo": name,
                "seconds": {phase: clock.seconds.pop(phase, 0.0) for phase in PHASES},
                "CPU seconds": time.process_time() - before,
                "peak memory so far, MiB": peak_memory(),
            }
        )
    return rows


def peak_memory() -> float:
    """Of this process since its start, MiB. Linux counts in KiB, macOS in bytes."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)


def main_job(quick: bool) -> list[dict]:
    """The same in a process of its own, so that imports and memory count from zero."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.main_job",
        "--json",
        *(["--quick"] if quick else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict]) -> str:
    from imagelab.report.numbers import text_table

    others = ("CPU seconds", "peak memory so far, MiB")
    cells = [
        [row["demo"], *row["seconds"].values(), *(row[name] for name in others)] for row in rows
    ]
    return text_table(["seconds of", *PHASES, *others], cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the quick run")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(arguments.quick, Path(folder))
    print(json.dumps(rows) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
