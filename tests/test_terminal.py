from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios

import pytest
from conftest import ROOT

from imagelab.setup import terminal
from imagelab.setup.terminal import (
    bar,
    duration,
    plural,
    progress,
    tell_if_silent,
    tell_once,
    wrapped,
)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (6600, "1 h 50 min")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_plurals():
    assert [plural(w) for w in ("step", "batch", "query")] == ["steps", "batches", "queries"]


def test_lines_break_at_words(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    text = "A generator turns a hundred random numbers into an image.\n\n    python a.py --epochs 12    # for a long time\n    python b.py"  # noqa: E501
    lines = wrapped(text).splitlines()
    assert max(map(len, lines)) <= 30 and " ".join(lines[:2]) == text.splitlines()[0]
    assert lines[3:] == [
        "    python a.py --epochs 12",
        "        # for a long time",
        "    python b.py",
    ]
    assert wrapped("  a/b.png  A picture of what there is.", "    ").splitlines() == [
        "  a/b.png  A picture of what", "    there is."]  # fmt: skip
    monkeypatch.setenv("COLUMNS", "300")
    assert max(map(len, wrapped("word " * 90).splitlines())) <= 100


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time that the module sees, to be set; nothing has been said for long."""
    now = [1000.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(terminal, "_last_word", 0.0)
    return now


def test_a_file_gets_a_line_every_five_seconds(clock, capsys):
    with bar("GAN", "step", total=1000, keep=True) as shown:
        for _ in range(30):
            clock[0] += 0.5
            if shown.update(10):
                shown.set_postfix({"loss": "0.512"}, refresh=False)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "GAN: 10 %, 100 of 1,000 steps, 5 s, 45 s left",
        "GAN: 20 %, 200 of 1,000 steps, 10 s, 40 s left, loss 0.512",
        "GAN: 30 %, 300 of 1,000 steps, 15 s, 35 s left, loss 0.512",
        "GAN: 300 of 1,000 steps in 15 s",
    ]


def test_the_time_left_of_a_resumed_job_counts_its_own_steps(clock, capsys):
    shown = bar("GAN", "step", total=1000, initial=900)
    clock[0] += 10
    shown.update(50)
    assert "95 %, 950 of 1,000 steps, 10 s, 10 s left" in capsys.readouterr().err


def test_short_jobs_one_after_the_other_are_not_silent(clock, capsys):
    """Each takes two seconds, which is worth no line; together they are."""
    for _ in range(6):
        for _ in progress(range(4), "attack", "step"):
            clock[0] += 0.5
    terminal.tell("A word.")
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "A word." and 1 <= len(lines) - 1 <= 3
    assert all(line.startswith("attack: ") for line in lines[:-1])


def test_a_hidden_bar_is_silent(clock, capsys):
    with bar("GAN", "step", total=2, keep=True, hidden=True) as shown:
        clock[0] += 60
        assert not shown.update(1)
    assert capsys.readouterr().err == ""


def test_progress_hands_on_the_parts_and_their_number(clock, capsys):
    def parts():
        for part in "ab":
            clock[0] += 6
            yield part

    assert list(progress(parts(), "reading", "file")) == ["a", "b"]
    assert capsys.readouterr().err.splitlines()[0] == "reading: 1 files, 6 s"


def test_what_takes_its_time_is_told_where_nothing_else_is(clock, capsys):
    tell_if_silent("Scoring.")
    clock[0] += 4
    tell_if_silent("Making a.png.")
    clock[0] += 1.5
    tell_if_silent("Making b.png.")
    assert capsys.readouterr().err == "Scoring.\nMaking b.png.\n"


def test_once(capsys):
    tell_once("Only of this test.")
    tell_once("Only of this test.")
    assert capsys.readouterr().err == "Only of this test.\n"


WORK = """
import time
from imagelab.setup.terminal import bar, tell
with bar("GAN", "step", total=20, keep=True) as shown:
    for k in range(20):
        time.sleep(0.06)
        shown.update(1)
        if k == 10:
            tell("The loss of step 10, in a sentence that is longer than a line of this terminal: 0.512.")
"""


def test_a_terminal_gets_a_bar_and_a_pipe_none():
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    environment |= {"PYTHONPATH": str(ROOT), "TERM": "xterm"}
    shared = [sys.executable, "-c", WORK], {"env": environment, "check": True}
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 60))
    subprocess.run(shared[0], stdout=slave, stderr=slave, **shared[1])
    os.close(slave)
    drawn = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:
            break
        drawn += part
        if not part:
            break
    os.close(master)
    assert b"GAN: 100%" in drawn and drawn.count(b"\r") > 3
    assert b"that is longer than a\r\nline of this" in drawn  # 60 columns
    piped = subprocess.run(shared[0], capture_output=True, text=True, **shared[1])
    assert piped.stdout == "" and "\r" not in piped.stderr
    told, end = piped.stderr.splitlines()
    assert told.endswith("0.512.") and end.startswith("GAN: 20 of 20 steps in ")
