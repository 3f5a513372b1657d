"""What a run reports: `results.json` beside the pictures, and the summary in the terminal."""

from __future__ import annotations

import itertools
import json
import math
import sys
import textwrap
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat

import torch

from imagelab.report import figures
from imagelab.setup.files import atomic_path, claim, give_back
from imagelab.setup.runtime import UserError, machine, versions
from imagelab.setup.settings import Settings, settings_dict
from imagelab.setup.terminal import as_utf8, is_terminal, readable, tell_if_silent, wrapped
from imagelab.setup.terminal import columns as terminal_columns
from imagelab.training import distributed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEW = 500  # a share of fewer than these is shown with its interval


@dataclass
class Metric:
    """A measured figure. `n` is the sample size, `floor` the same figure of held-out real images,
    `memoriser` that of training images, `interval` what the figure lies in with 95 % (low, high)."""

    value: float
    n: int
    unit: str = ""
    floor: float | None = None
    memoriser: float | None = None
    better: Literal["lower", "higher"] | None = None
    interval: tuple[float, float] | None = None


@dataclass(repr=False)
class Result:
    """What `run(config)` returns. Paths in `files` are relative to `folder`.

    A notebook shows it as its pictures and figures.
    """

    script: str
    title: str
    summary: str
    folder: Path
    config: dict[str, Any]
    seed: int
    device: str
    threads: int = field(default_factory=torch.get_num_threads)  # with others, other last bits
    dataset: dict[str, Any] | None = None
    learned: str = ""  # what the figures teach
    evaluator: str = ""  # the network in whose features distances are measured, with its hash
    seconds: float = 0.0
    metrics: dict[str, Metric] = field(default_factory=dict)
    tables: list[dict[str, Any]] = field(default_factory=list)
    files: list[dict[str, Any]] = field(default_factory=list)
    exit_status: int = 0
    started: float = field(default_factory=time.perf_counter)

    def add_metric(self, name: str, value: SupportsFloat, n: int, **more: Any) -> None:
        self.metrics[name] = Metric(float(value), int(n), **more)

    def add_share(self, name: str, share: SupportsFloat, n: int, **more: Any) -> None:
        """Add the share of n images (or of whatever else) of which something is true.

        Of fewer than 500 it gets its 95 % interval.
        """
        interval = wilson(float(share), n) if n < FEW else None
        self.add_metric(name, share, n, interval=interval, **more)

    def add_table(self, caption: str, columns: list[str], rows: list[list[Any]]) -> None:
        self.tables.append({"caption": caption, "columns": columns, "rows": rows})

    def add_file(self, name: str, caption: str, featured: bool = True) -> Path:
        """Note that `name` (in `folder`) is written, with one line on what to see; its path.

        Files that are not `featured` stay out of the report: single frames, raw grids.
        """
        tell_if_silent(f"Making {name}.")
        self.files.append({"path": name, "caption": caption, "featured": featured})
        return self.folder / name

    def add_figure(self, name: str, figure: Figure, caption: str) -> None:
        """Save a figure as `name` in the folder, with one line on what to see."""
        figures.save_figure(figure, self.add_file(name, caption))

    def note_file(self, name: str, caption: str) -> Path | None:
        """Note a picture of an epoch, not featured; its path, or None where a run was continued
        without the pictures from before."""
        if not (self.folder / name).is_file():
            return None
        return self.add_file(name, caption, featured=False)

    def measured(self, *names: str) -> list[float] | None:
        """The values of these metrics, or None where one was not measured or is not a number."""
        values = [self.metrics[name].value for name in names if name in self.metrics]
        complete = len(values) == len(names) and all(map(math.isfinite, values))
        return values if complete else None

    def pictures(self) -> list[Path]:
        return [self.folder / f["path"] for f in self.files if f["featured"]]

    def show(self) -> None:
        """Open the pictures in windows and wait until they are closed."""
        figures.show(self.pictures())

    def save(self, *lessons: str) -> Result:
        """Write `results.json` into the folder and return self.

        `lessons` are sentences on what the figures teach. A quick run states none: it is too short.
        """
        self.seconds = time.perf_counter() - self.started
        self.learned = "" if self.config.get("quick") else " ".join(lessons)
        write_json(self.folder / "results.json", {**self.record(), "versions": versions()})
        give_back(self.folder)  # in a notebook the process goes on
        return self

    def record(self) -> dict[str, Any]:
        """What `results.json` says of the run, but for the versions."""
        record = {k: v for k, v in asdict(self).items() if k not in ("started", "exit_status")}
        return _jsonable({**record, "folder": self.folder.name})

    def __repr__(self) -> str:
        figures, pictures = len(self.metrics), len(self.pictures())
        return f"<Result of {self.script}: {figures} figures, {pictures} pictures in {self.folder}>"

    def _repr_html_(self) -> str:
        from imagelab.report.page import notebook_html

        return notebook_html(self)

    def print_summary(self) -> None:
        for table in self.tables:
            print("\n" + wrapped(table["caption"]))
            print(text_table(table["columns"], table["rows"]))
        if self.metrics:
            print()
            rows = [[name, metric_text(asdict(m)), m.n] for name, m in self.metrics.items()]
            print(text_table(["figure", "value", "n"], rows))
        if self.learned:
            print("\n" + wrapped(self.learned))
        if self.config.get("quick"):
            print("\n" + wrapped("A quick run: too short to learn from these figures."))
        took = f"{self.seconds:.0f} s, " if self.seconds else ""  # 0: nothing was measured
        print(f"\n{took}seed {self.seed}, {self.device}. Look at:")
        for entry in self.files:
            if entry["featured"]:
                print(
                    wrapped(f"  {self.folder / entry['path']}  {entry['caption']}", indent=" " * 6)
                )


def start_result(
    module: str, title: str, summary: str, config: Settings, folder: str, device, dataset=None
) -> Result:
    """A Result whose clock starts now, for pictures in `folder` under --output-dir.

    Raises UserError where another run is writing into that folder, or where the user's own picture
    (--image) lies in it, which might be written over.
    """
    image = getattr(config, "image", None)
    if image is not None and image.resolve().parent == (config.output_dir / folder).resolve():
        raise UserError(
            f"{readable(image)} lies in the folder that this run writes into: move it elsewhere, or "
            "choose another --output-dir."
        )
    if distributed.writes():
        claim(Path(config.output_dir) / folder)
    return Result(
        script=module,
        title=title,
        summary=summary,
        folder=Path(config.output_dir) / folder,
        config=settings_dict(config),
        seed=config.seed,
        device=machine(device),
        dataset=dataset.describe() if dataset is not None else None,
    )


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval (low, high) of a share of n independent draws (Wilson 1927).

    The shares p that lie no more than 1.96 standard deviations √(p(1 − p)/n) from the one measured.
    """
    z = NormalDist().inv_cdf(0.975)
    middle = share + z**2 / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = (edge / (1 + z**2 / n) for edge in (middle - reach, middle + reach))
    return max(low, 0.0), min(high, 1.0)


def share_cell(share: float, n: int) -> float | str:
    """A share of n for a table: '0.885 (95 %: 0.833 to 0.922)' where n is below 500, else the number."""
    if n >= FEW:
        return float(share)
    return metric_text(asdict(Metric(float(share), n, interval=wilson(float(share), n))))


def metric_text(metric: dict[str, Any]) -> str:
    """A metric as people read it: '0.964', '31.2 dB', '152 (floor 40.1, memoriser 9, lower is better)',
    '0.885 (95 %: 0.833 to 0.922)'."""
    if metric["value"] is None:
        return number(None)
    text = f"{number(metric['value'])} {metric['unit']}".strip()
    interval = metric.get("interval")  # older results have none
    notes = [f"95 %: {number(interval[0])} to {number(interval[1])}"] if interval else []
    for line in ("floor", "memoriser"):
        notes += [f"{line} {number(metric[line])}"] if metric.get(line) is not None else []
    notes += [f"{metric['better']} is better"] if metric["better"] else []
    return text + (f" ({', '.join(notes)})" if notes else "")


def number(value: Any) -> str:
    """Three significant digits for floats, thousands separated for whole numbers, others as is."""
    if value is None:  # not a number, in JSON
        return "not defined"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (math.isfinite(value) and abs(value) >= 999.5):
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if value else "0"


def text_table(columns: list[str], rows: list[list[Any]]) -> str:
    """Columns aligned for a terminal: the first to the left, numbers to the right.

    What is too wide for the terminal breaks at words, within its column.
    """
    cells = [[str(c) for c in columns]] + [[number(c) for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    words = [
        max(len(word) for row in cells for word in [*row[i].split(), ""])
        for i in range(len(columns))
    ]
    room = terminal_columns() - 2 * (len(columns) - 1) if is_terminal(sys.stdout) else math.inf
    while sum(widths) > room and widths != words:
        widest = max(range(len(widths)), key=lambda i: (widths[i] > words[i], widths[i]))
        widths[widest] -= 1
    numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    lines = []
    for row in cells:
        parts = [
            textwrap.wrap(c, max(w, 1), break_on_hyphens=False)
            for c, w in zip(row, widths, strict=True)
        ]
        for line in itertools.zip_longest(*parts, fillvalue=""):
            aligned = (
                c.rjust(w) if right else c.ljust(w)
                for c, w, right in zip(line, widths, numeric, strict=True)
            )
            lines.append("  ".join(aligned).rstrip())
    return "\n".join(lines)


def write_json(path: Path, contents: Any) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(
            json.dumps(_jsonable(contents), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def _jsonable(value: Any) -> Any:
    """JSON knows no NaN or infinity, no paths, and no bytes that are not UTF-8."""
    if isinstance(value, dict):
        return {as_utf8(str(k)): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return as_utf8(str(value)) if isinstance(value, Path | str) else value
