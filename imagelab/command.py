"""From the command line to a result. Scripts import this before anything else.

torch takes seconds to load. A Ctrl-C in that time would end in the traceback of whatever was being
imported; from this module's import on it ends in a word, as it does later.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


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

    from imagelab.files import give_back
    from imagelab.runtime import explain

    signal.signal(signal.SIGTERM, _terminate)
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
        if result is None:
            sys.exit(0)
        result.print_summary()
        if getattr(config, "show", False):
            from imagelab.figures import show

            show(result.pictures())
        sys.exit(result.exit_status)
    except KeyboardInterrupt as stop:
        print(f"\n{script}: {str(stop) or 'stopped.'}", file=sys.stderr)
        sys.exit(143 if getattr(stop, "terminated", False) else 130)
    except Exception as error:
        if "--debug" in sys.argv[1:]:
            traceback.print_exc()
        sentence, status = explain(error)
        print(f"{script}: {sentence}", file=sys.stderr)
        sys.exit(status)
    finally:
        give_back()


def _terminate(_signum, _frame) -> None:
    stop = KeyboardInterrupt("terminated.")
    stop.terminated = True
    raise stop


def _quiet_interrupt(kind: type, error: BaseException, trace) -> None:
    """Python's way to report an error that nobody caught, for all but Ctrl-C."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nstopped.", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _quiet_interrupt
