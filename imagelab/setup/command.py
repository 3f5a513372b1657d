"""From the command line to a result, and how a signal ends a run. Scripts import this first of all.

torch takes seconds to load. A Ctrl-C in that time would end in the traceback of whatever was being
imported; from this module's import on it ends in a word. Later it raises a KeyboardInterrupt. Libraries
lose some of these (what is raised in a destructor or in a callback from C goes no further), so it is
raised again every second until somebody has `heard` it.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from imagelab.setup.packages import ROOT, missing_package

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Questions that need no torch, with tyro's own for tab completion.
ANSWERED_AT_ONCE = {"-h", "--help", "--list", "--tyro-print-completion", "--tyro-write-completion"}
MISSED = (ImportError, NameError, AttributeError)  # what a missing module leads to
FEW = 8  # choices that --help spells out
_asked: _Asked | None = None
_answering = False


class _Asked(KeyboardInterrupt):
    """What a signal raises; `terminated` where that was SIGTERM."""

    terminated = False


def heard() -> None:
    """To be called by who catches a KeyboardInterrupt and has more to do: it is not raised again."""
    global _asked
    _asked = None
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_REAL, 0)


def _ask(number: int, _frame) -> None:
    global _asked
    if number in SIGNALS:
        _asked = _Asked("terminated." if number == signal.SIGTERM else "")
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


def _name_a_missing_package(kind, error, trace) -> None:
    """The hook of errors that nobody caught. A missing package is one while the script is imported."""
    sentence = missing_package(error)
    if sentence is None or "--debug" in sys.argv[1:]:
        sys.__excepthook__(kind, error, trace)
    if sentence is not None:
        print(f"{Path(sys.argv[0]).name}: {sentence}", file=sys.stderr)
        sys.exit(2)


def command_line(
    config_class: type,
    run: Callable[[Any], Any],
    description: str | None,
    commands: dict[str, tuple[type, Callable[[Any], Any]]] | None = None,
) -> None:
    """Parse the arguments into `config_class`, run, print the result's summary, exit.

    `commands` are further things that a script does, each with settings of its own: a first argument
    that names one takes its place. What they return is a Result, or None if they said all themselves.

    Exit status: 0 done, 1 a demo failed or a fault of ours, 2 wrong input, 130 Ctrl-C, 143 SIGTERM.
    """
    from imagelab.setup.files import give_back
    from imagelab.setup.runtime import explain

    before, sys.unraisablehook = _listen(_ask), _tell_unless_asked
    # Where the terminal lacks a letter, print '?' instead. Lines of both come in their order in a file.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace", line_buffering=True)
    script, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    if commands and arguments and arguments[0] in commands:
        config_class, run = commands[arguments[0]]
        script, description = f"{script} {arguments[0]}", config_class.__doc__
        arguments, commands = arguments[1:], None
    try:
        config = parsed(config_class, script, description, arguments, tuple(commands or ()))
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
        if _answering and isinstance(error, MISSED):
            raise  # then the script goes on with torch
        # What a library makes of a KeyboardInterrupt may be another error.
        stop = error if isinstance(error, KeyboardInterrupt) else _asked
        heard()
        if stop is not None:
            _complain(f"{script}: {str(stop) or 'stopped.'}", start="\n")
            sys.exit(143 if getattr(stop, "terminated", False) else 130)
        if "--debug" in sys.argv[1:]:
            traceback.print_exc()
        sentence, status = explain(error)
        _complain(f"{script}: {sentence}")
        sys.exit(status)
    finally:
        heard()
        give_back()
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = sys.__unraisablehook__


def _complain(sentence: str, start: str = "") -> None:
    """On stderr; one line where that is no terminal."""
    from imagelab.setup.terminal import is_terminal, wrapped

    print(start + (wrapped(sentence) if is_terminal(sys.stderr) else sentence), file=sys.stderr)


# --- the arguments --------------------------------------------------------------------------------


def parsed(
    config_class: type, script: str, description: str | None, arguments: list[str], commands=()
) -> Any:
    """The settings that `arguments` ask for; --help, and what tyro refuses, end the process.

    Raises UserError for a value outside a setting's choices, and for a word that is no command.
    """
    import tyro

    from imagelab.setup.settings import unknown
    from imagelab.setup.terminal import wrapped

    if commands and arguments and not arguments[0].startswith("-"):
        raise unknown("command", arguments[0], commands)
    _refuse_no_choice(config_class, arguments)
    if {"-h", "--help"}.intersection(arguments):
        print(wrapped(description or ""), end="\n\n")
    settings, registry = _told(config_class), tyro.constructors.ConstructorRegistry()
    registry.struct_rule(lambda info: settings if info.type is config_class else None)
    return tyro.cli(
        config_class,
        prog=script,
        args=arguments,
        description="",
        config=(tyro.conf.FlagCreatePairsOff,),
        registry=registry,
    )


def _told(config_class: type):
    """What tyro makes of the settings, for a better `--help`.

    The script's own come first, then what it has in common with more and more others. What is empty
    unless it is given needs no word on that. Many choices are left to --list. Lines break where the
    terminal's do.
    """
    import tyro

    from imagelab.setup.settings import FORMER_NAMES, option

    info = tyro.constructors.StructTypeInfo.make(config_class, tyro.MISSING_NONPROP, False)
    spec = tyro.constructors.ConstructorRegistry.get_struct_spec(info)
    assert isinstance(spec, tyro.constructors.StructConstructorSpec)  # as of every dataclass
    stated = [inspect.get_annotations(kind) for kind in config_class.__mro__]

    def better(field):
        name = "NAME [NAME ...]" if len(_literals(field.type)) > FEW else None
        empty = field.default is None or field.default is False or field.default == ()
        hint = "" if empty else None
        former = [option(FORMER_NAMES[field.name])] if field.name in FORMER_NAMES else None
        marks = tyro.conf.arg(metavar=name, help_behavior_hint=hint, aliases=former)
        kind = Annotated[field.type, marks]
        kind = tyro.conf.DisallowNone[kind] if field.default is None else kind
        return replace(field, type=kind, helptext=" ".join(field.helptext().split()))

    def distance(field):
        return [field.name in names for names in stated].index(True)

    return replace(spec, fields=tuple(map(better, sorted(spec.fields, key=distance))))


def _refuse_no_choice(config_class: type, arguments: list[str]) -> None:
    """tyro names what there is to choose from, all of it; this names what may have been meant."""
    from imagelab.setup.settings import option, unknown

    hints = get_type_hints(config_class)
    choices = {option(name): _literals(hint) for name, hint in hints.items()}
    asked = ""
    for word in arguments:
        if word.startswith("--"):
            asked, _, word = word.replace("_", "-").partition("=")
        known = choices.get(asked)
        if known and word and word not in known:
            raise unknown(asked, word, known)


def _literals(hint) -> tuple[str, ...]:
    """What a type leaves to choose from, also as `Name | None` and `tuple[Name, ...]`; () for others."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(word for part in get_args(hint) for word in _literals(part))


if (
    _is_a_script_of_ours()
):  # else it is somebody's notebook, or a test, and their signals are theirs
    _listen(_leave)
    sys.excepthook = _name_a_missing_package
    if ANSWERED_AT_ONCE.intersection(sys.argv[1:]):
        from imagelab.setup import without_torch

        _answering = True
        without_torch.answer(sys.modules["__main__"], ROOT)
        _answering = False
