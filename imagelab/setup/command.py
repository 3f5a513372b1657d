"""From the command line to a result, and how a signal ends a run. Scripts import this first of all.

torch takes seconds to load. A Ctrl-C in that time would end in the traceback of whatever was being
imported; from this module's import on it ends in a word. Later it raises a KeyboardInterrupt. Libraries
lose some of these (what is raised in a destructor or in a callback from C goes no further), so it is
raised again every second until somebody has `heard` it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: KeyboardInterrupt | None = None


def heard() -> None:
    """To be called by who catches a KeyboardInterrupt and has more to do: it is not raised again."""
    global _asked
    _asked = None
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_REAL, 0)


def _ask(number: int, _frame) -> None:
    global _asked
    if number in SIGNALS:
        _asked = KeyboardInterrupt("terminated." if number == signal.SIGTERM else "")
        _asked.terminated = number == signal.SIGTERM
    if _asked is None:  # heard just now
        return
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _ask)
        signal.setitimer(signal.ITIMER_REAL, 1.0)
    raise _asked


def _tell_unless_asked(lost: sys.UnraisableHookArgs) -> None:
    """Of an exception that goes no further Python tells; not of ours, which is raised again."""
    if not isinstance(lost.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(lost)


def _leave(number: int, _frame) -> None:
    with contextlib.suppress(OSError):  # there may be no stderr
        os.write(2, b"\nstopped.\n")
    os._exit(128 + number)


def _listen(handler: Callable) -> dict[int, Any]:
    """Let `handler` have the signals, unless the caller lets them be ignored (as a shell does for what
    it runs in the background); the handlers before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    return {n: signal.signal(n, handler) for n, was in before.items() if was != signal.SIG_IGN}


def _is_a_script_of_ours() -> bool:
    main = getattr(sys.modules["__main__"], "__file__", None) or ""
    return Path(main).resolve().parent in (ROOT, ROOT / "studies", ROOT / "benchmarks")


if (
    _is_a_script_of_ours()
):  # else it is somebody's notebook, or a test, and their signals are theirs
    _listen(_leave)


def command_line(
    config_class: type,
    run: Callable[[Any], Any],
    description: str,
    commands: dict[str, tuple[type, Callable[[Any], Any]]] | None = None,
) -> None:
    """Parse the arguments into `config_class`, run, print the result's summary, exit.

    `commands` are further things that a script does, each with settings of its own: a first argument
    that names one takes its place. What they return is a Result, or None if they said all themselves.

    Exit status: 0 done, 1 a demo failed or a fault of ours, 2 wrong input, 130 Ctrl-C, 143 SIGTERM.
    """
    import tyro

    from imagelab.setup.files import give_back
    from imagelab.setup.runtime import explain

    before, sys.unraisablehook = _listen(_ask), _tell_unless_asked
    for stream in (sys.stdout, sys.stderr):  # where the terminal lacks a letter, print '?' instead
        stream.reconfigure(errors="replace")
    script, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    if arguments and arguments[0] in (commands or {}):
        config_class, run = commands[arguments[0]]
        script, description = f"{script} {arguments[0]}", config_class.__doc__
        arguments = arguments[1:]
    try:
        config = tyro.cli(
            config_class,
            prog=script,
            args=arguments,
            description=description,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        result = run(config)
        if _asked is not None:  # within the last second, and lost
            raise _asked
        if result is None:
            sys.exit(0)
        result.print_summary()
        if getattr(config, "show", False):
            result.show()
        sys.exit(result.exit_status)
    except (KeyboardInterrupt, Exception) as error:
        # What a library makes of a KeyboardInterrupt may be another error.
        stop = error if isinstance(error, KeyboardInterrupt) else _asked
        heard()
        if stop is not None:
            print(f"\n{script}: {str(stop) or 'stopped.'}", file=sys.stderr)
            sys.exit(143 if getattr(stop, "terminated", False) else 130)
        if "--debug" in sys.argv[1:]:
            traceback.print_exc()
        sentence, status = explain(error)
        print(f"{script}: {sentence}", file=sys.stderr)
        sys.exit(status)
    finally:
        heard()
        give_back()
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = sys.__unraisablehook__
