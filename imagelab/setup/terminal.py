"""What a terminal shows of a run: lines that break at words, and bars that tell how far it is.

Where there is no terminal (a pipe, a log file, a notebook) there are plain lines every few seconds.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TextIO

LINES_EVERY = 5.0  # seconds, where there is no terminal
PATIENCE = 1.0  # seconds without a word after which a bar that was not worth one appears
told: set[str] = set()  # the sentences of tell_once
_last_word = time.monotonic()  # when something was shown last


def is_terminal(stream: TextIO) -> bool:
    """Whether `stream` is a terminal in which a line can be drawn over; one without a width is none."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):  # Windows' NUL says that it is a terminal
        return False


def columns() -> int:
    """Characters in a line: those of the terminal, 100 at most."""
    return min(shutil.get_terminal_size((100, 24)).columns, 100)


def wrapped(text: str, indent: str = "") -> str:
    """Paragraphs of `text` in lines that break at words, those after a paragraph's first after `indent`.

    The lines of an indented one, which are commands, stay lines; a comment that leaves one too long
    goes below it.
    """
    return "\n\n".join(
        "\n".join(map(_command, part.split("\n")))
        if part.startswith("    ")
        else _fill(part, indent)
        for part in text.strip("\n").split("\n\n")
    )


def _fill(text: str, indent: str) -> str:
    return textwrap.fill(
        text, columns(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _command(line: str) -> str:
    command, mark, comment = line.partition("  #")
    if len(line) <= columns() or not mark:
        return line
    return command.rstrip() + "\n" + _fill(f"{' ' * 8}#{comment}", " " * 10)


def duration(seconds: float) -> str:
    """'45 s', '3 min 20 s', '1 h 50 min'."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def tell(text: str) -> None:
    """A line on stderr, without breaking a bar."""
    _note()
    if is_terminal(sys.stderr):
        from tqdm import tqdm

        tqdm.write(wrapped(text), file=sys.stderr)
    else:
        print(text, file=sys.stderr, flush=True)


def tell_if_silent(text: str) -> None:
    """What takes its time now, where nothing has been shown for a second (in a file: for five)."""
    if time.monotonic() - _last_word >= (PATIENCE if is_terminal(sys.stderr) else LINES_EVERY):
        tell(text)


def tell_once(sentence: str, where: Path | str | int = "") -> None:
    """The same, the first time it is said.

    `where` is the file of which it is said; of further files it is not said again.
    """
    if sentence not in told:
        told.add(sentence)
        tell(f"{readable(where)}: {sentence}" if where else sentence)


def as_utf8(text: str) -> str:
    """Bytes of a file's name that are no UTF-8, which Python holds as surrogates, spelt \\xe9: so that
    the text can be written, and two names stay two."""
    return re.sub("[\ud800-\udfff]", lambda byte: f"\\x{ord(byte[0]) & 255:02x}", text)


def readable(name: str | Path | int | Exception) -> str:
    """A name, of a file or out of one, or what an error says, as it can be shown: line breaks and the
    like become spaces."""
    text = "".join(c if c.isprintable() else " " for c in as_utf8(str(name)))
    return text.strip() or "?"


def bar(
    label: str,
    unit: str,
    total: int | None = None,
    initial: int = 0,
    keep: bool = False,
    hidden: bool = False,
):
    """How far a job is, on stderr: `update(n)`, true where that was shown, `set_postfix` and `close`.

    It is a context manager. One that is not worth to `keep` vanishes at its end, and shows itself only
    when nothing else has been said for a second (in a file: for five).
    """
    if not is_terminal(sys.stderr):
        return _Lines(label, unit, total, initial, keep, hidden)
    # `delay` counts from now: the patience that is left.
    delay = 0 if keep else max(PATIENCE - (time.monotonic() - _last_word), 0)
    return _bar_class()(
        desc=label,
        unit=unit,
        total=total,
        initial=initial,
        leave=keep,
        disable=hidden,
        delay=delay,
        file=sys.stderr,
        mininterval=0.5,
        dynamic_ncols=True,
    )


def progress(parts: Iterable, label: str, unit: str, total: int | None = None, **more) -> Iterator:
    """`parts` one after the other, with a bar of how many there have been."""
    total = len(parts) if total is None and isinstance(parts, Sized) else total
    with bar(label, unit, total, **more) as shown:
        for part in parts:
            yield part
            shown.update(1)


def _note() -> None:
    global _last_word
    _last_word = time.monotonic()


def plural(noun: str) -> str:
    """'step' becomes 'steps', 'batch' 'batches', 'query' 'queries'."""
    if noun.endswith("y"):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith("ch") else f"{noun}s"


@functools.cache
def _bar_class() -> type:
    from tqdm import tqdm

    class Bar(tqdm):
        def display(self, *args, **more):
            _note()
            return super().display(*args, **more)

    return Bar


class _Lines:
    """A bar where nothing can be drawn over: a line when none has been written for five seconds."""

    def __init__(
        self, label: str, unit: str, total: int | None, n: int, keep: bool, hidden: bool
    ) -> None:
        self.label, self.units, self.total = label, plural(unit), total
        self.n = self.initial = n
        self.keep, self.hidden = keep, hidden
        self.values: dict[str, str] = {}
        self.started = time.monotonic()

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_error) -> None:
        self.close()

    def update(self, n: int = 1) -> bool:
        self.n += n
        since = max(_last_word, self.started) if self.keep else _last_word
        due = not self.hidden and time.monotonic() - since >= LINES_EVERY
        if due:
            tell(self.line())
        return due

    def set_postfix(self, values: dict[str, str], refresh: bool = True) -> None:
        self.values = values

    def close(self) -> None:
        if self.keep and not self.hidden:
            took = duration(time.monotonic() - self.started)
            tell(f"{self.label}: {self.n:,}{self._of()} {self.units} in {took}")
        self.hidden = True

    def line(self) -> str:
        """'GAN: 34 %, 2,540 of 7,429 steps, 21 s, 41 s left, d_loss 0.512'."""
        seconds, done = time.monotonic() - self.started, self.n - self.initial
        share = [f"{self.n / self.total:.0%}".replace("%", " %")] if self.total else []
        left = [f"{duration(seconds / done * (self.total - self.n))} left"] if self.total else []
        values = [f"{name} {value}" for name, value in self.values.items()]
        parts = [*share, f"{self.n:,}{self._of()} {self.units}", duration(seconds), *left, *values]
        return f"{self.label}: {', '.join(parts)}"

    def _of(self) -> str:
        return f" of {self.total:,}" if self.total else ""
