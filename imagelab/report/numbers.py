"""How measured figures are written: a metric, the interval of a share, a table for the terminal."""

from __future__ import annotations

import itertools
import math
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist, fmean, stdev
from typing import Any, Literal

from imagelab.setup.terminal import columns as terminal_columns
from imagelab.setup.terminal import is_terminal

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


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % interval (low, high) of a share of n independent draws (Wilson 1927).

    The shares p that lie no more than 1.96 standard deviations √(p(1 − p)/n) from the one measured.
    """
    z = NormalDist().inv_cdf(0.975)
    middle = share + z**2 / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = (edge / (1 + z**2 / n) for edge in (middle - reach, middle + reach))
    return (low if share > 0 else 0.0), (high if share < 1 else 1.0)  # exactly, without rounding


def mean_and_reach(values: Sequence[float]) -> tuple[float, float]:
    """The mean of independent values, and how far its 95 % interval reaches to each side."""
    return fmean(values), NormalDist().inv_cdf(0.975) * stdev(values) / math.sqrt(len(values))


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
