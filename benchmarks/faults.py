"""Faults, tried on the scripts in processes of their own, and what they cost: nothing, it is promised.

    python -m benchmarks.faults                          # all scripts; hours
    python -m benchmarks.faults --only gan_mnist --moments 20
    python -m benchmarks.faults --kinds full-disk two-runs foreign-checkpoint

Every case starts a script with --quick over the output of a run that ended well, hurts it, and looks at
what is left: every checkpoint, picture and JSON file must be whole, and no traceback may have been shown.
"""

from __future__ import annotations

from imagelab.setup.command import command_line

import os
import pickle
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

import torch

import advanced_image_processing as driver
from benchmarks.scenes import (
    BUILDS_ON,
    OF_ITS_OWN,
    ROOT,
    FaultScene,
    Harm,
    end,
    harm,
    prepared,
    start,
)
from imagelab.report.numbers import text_table
from imagelab.report.results import write_json
from imagelab.setup.settings import Checked, Count, Limits, option

Kind = Literal["signals", "killed-saves", "full-saves", "full-disk", "read-only", "two-runs",
               "foreign-checkpoint", "bad-data", "random-settings"]  # fmt: skip
MainJob = Literal["advanced_image_processing"]
# The main job goes on after a demo that failed, so of these it tells nothing that its demos do not.
OF_THE_MAIN_JOB: tuple[Kind, ...] = ("signals", "killed-saves", "full-saves")
NO_NETWORK = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # nobody answers


@dataclass(frozen=True)
class Config(Checked):
    """Settings of the faults."""

    output_dir: Path = Path(".")
    """The folder under which benchmarks/faults.json is written."""
    seed: Annotated[int, Limits(0, 2**31 - 1)] = 0
    """Seed of the moments, of the saves that are killed and of the strange settings."""
    debug: bool = False
    """Show the traceback of an error."""
    only: tuple[driver.Name | MainJob, ...] = ()
    """Try these scripts only."""
    kinds: tuple[Kind, ...] = ()
    """Try these kinds only."""
    moments: Count = 20
    """Of each script, how often each of SIGINT, SIGTERM and SIGKILL comes, at random moments spread
    over its run, and how many of its saves are killed, and find a full disk."""
    settings: Count = 5
    """Runs of each script with strange settings."""


@dataclass
class Case:
    """One fault, and what was wrong after it."""

    script: str
    what: str
    problems: list[str] = field(default_factory=list)


# --- the kinds of faults --------------------------------------------------------------------------


def signals(scene: FaultScene, work: Path, config: Config) -> Iterator[Case]:
    """At random moments from the start of the process to its end: it ends, and nothing half written
    is left. Status 0 is that of a run that had done its work when the signal came."""
    rng = random.Random(config.seed)
    ways = (
        (signal.SIGINT, (130, -2)),
        (signal.SIGTERM, (143, -15)),
        (signal.SIGKILL, (-9,)),
    )
    for number, statuses in ways:
        for k in range(config.moments):  # one in each of as many parts of the run: every phase
            at = scene.seconds * (k + rng.random()) / config.moments
            folder = scene.copy(work / "case")
            began, process = time.time(), start(scene.script, folder)
            time.sleep(at)
            late = ", when it had ended" * (process.poll() is not None)
            done = (0,) if late or has_results(scene, folder, began) else ()
            process.send_signal(number)
            case = Case(scene.script, f"{number.name} after {at:.1f} s{late}")
            case.problems = harm(process, statuses + done, scene, folder)
            yield case


def has_results(scene: FaultScene, folder: Path, began: float) -> bool:
    """Whether the run that `began` then has written its results.json, the last thing it does.

    Python takes a second or two more to leave memory, and knows no Ctrl-C by then.
    """
    own = driver.EVERYTHING[scene.script].folder if scene.script in driver.EVERYTHING else ""
    record = folder / own / "results.json"
    return record.is_file() and record.stat().st_mtime > began


# Python imports a module of this name before all others. What is written must have a hidden name until
# it is whole: any other file of the output that is opened for writing ends the process with status 99.
SABOTAGE = """
import errno, os, signal, sys
replace, left = os.replace, {n}

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def fill():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

def replace_or_fail(*names, **more):
    global left
    left -= 1
    if left == -1:
        {act}()
    replace(*names, **more)

def watch(event, values):
    if event == "open" and isinstance(values[0], str) and values[0].startswith({folder!r}):
        changes = set("wax+") & set(values[1] or "") or (values[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if changes and not os.path.basename(values[0]).startswith("."):
            print(values[0], "is written in its place", file=sys.stderr, flush=True)
            os._exit(99)

os.replace = replace_or_fail
sys.addaudithook(watch)
"""


def sabotaged(
    scene: FaultScene, work: Path, config: Config, act: str, what: str, statuses: tuple[int, ...]
) -> Iterator[Case]:
    """Runs whose first save, or another at random, ends in `act`; status 0 if there are not as many."""
    rng = random.Random(config.seed)
    files = sum(path.is_file() for path in scene.folder.rglob("*"))
    for n in (0, *sorted(rng.sample(range(1, files), min(config.moments, files) - 1))):
        folder = scene.copy(work / "case")
        code = SABOTAGE.format(n=n, act=act, folder=str(folder))
        (work / "sitecustomize.py").write_text(code, encoding="utf-8")
        path = os.pathsep.join((str(work), str(ROOT)))
        process = start(scene.script, folder, environment={"PYTHONPATH": path})
        case = Case(scene.script, f"{what} its save number {n + 1}, if it has as many")
        case.problems = harm(process, (*statuses, *[0] * (n > 0)), scene, folder)
        yield case


def killed_saves(scene: FaultScene, work: Path, config: Config) -> Iterator[Case]:
    """SIGKILL when a file is written and is just about to take the place of the old one: that stands."""
    yield from sabotaged(scene, work, config, "kill", "killed in", (-9,))


def full_saves(scene: FaultScene, work: Path, config: Config) -> Iterator[Case]:
    """The disk is full when a file is all but written: the old one stands, one sentence, status 2; the
    main job goes on with its next demo, and has status 1."""
    statuses = (1, 2) if scene.script in get_args(MainJob) else (2,)
    yield from sabotaged(scene, work, config, "fill", "no room for", statuses)


def on_a_disk(
    scene: FaultScene, work: Path, room: int, what: str, read_only: bool = False
) -> list[Case]:
    """The case of a run on a disk in memory, `room` bytes larger than the scene that lies on it.

    None where Linux or the user's rights do not allow to mount one.
    """
    place = work / "disk"
    place.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={scene.size + room}", "none", str(place)]
    try:
        if subprocess.run(mount, capture_output=True).returncode != 0:
            return []
    except FileNotFoundError:  # no Linux
        return []
    try:
        folder = scene.copy(place / "case")
        if read_only:
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        case = Case(scene.script, what)
        case.problems = harm(start(scene.script, folder), (2,), scene, folder)
    finally:
        subprocess.run(["umount", str(place)], check=True)
    return [case]


def full_disk(scene: FaultScene, work: Path, config: Config) -> Iterator[Case]:
    """A disk with little room left, and a limit on every file's size: what was there stays, one
    sentence, status 2."""
    import resource

    for room in (0, 20_480):
        yield from on_a_disk(scene, work, room, f"{room:,} bytes left on the disk")
    for limit in (2_000, 20_000):
        folder = scene.copy(work / "case")

        def lower(limit=limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        process = start(scene.script, folder, preexec_fn=lower)
        case = Case(scene.script, f"files end at {limit:,} bytes")
        case.problems = harm(process, (2,), scene, folder)
        yield case


def read_only(scene: FaultScene, work: Path, config: Config) -> Iterator[Case]:
    """An output folder that cannot be made, or lies on a disk that may only be read: one sentence,
    status 2."""
    (work / "file").write_text("in the way")
    for place in (work / "file" / "folder", Path("/proc/nothing")):
        yield Case(
            scene.script, f"output under {place.parent.name}", end(start(scene.script, place), (2,))
        )
    yield from on_a_disk(scene, work, scene.size, "a disk that may only be read", read_only=True)


def two_runs(scene: FaultScene, work: Path, config: Config) -> Iterator[Case]:
    """Two runs at once in one folder, of two seeds: one does its work, the other one is refused, and
    all files are whole."""
    folder = scene.copy(work / "case")
    one, other = (start(scene.script, folder, "--seed", seed) for seed in ("0", "1"))
    case = Case(scene.script, "two runs in one folder")
    case.problems = end(one, (0, 2)) + harm(other, (0, 2), scene, folder)
    if one.returncode == other.returncode:
        case.problems.append("both were refused" if one.returncode else "neither was refused")
    yield case


class Malicious:
    """What a hostile pickle would do."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


def foreign_checkpoint(scene: FaultScene, work: Path, config: Config) -> Iterator[Case]:
    """Cut short, of another script, of another format, or with code in it: refused, and left as it is."""
    # One of each folder: the classifier's, and the script's own.
    first = {path.parent: path for path in sorted(scene.folder.rglob("*.pth"), reverse=True)}
    for checkpoint in first.values():
        state = torch.load(checkpoint, weights_only=True)
        raw = checkpoint.read_bytes()
        contents: dict[str, Callable[[Path], object]] = {
            "cut short": lambda path, raw=raw: path.write_bytes(raw[: len(raw) // 2]),
            "empty": lambda path: path.write_bytes(b""),
            "with code in it": lambda path: path.write_bytes(pickle.dumps(Malicious())),
        }
        for what, changed in (
            ("of another script", {"script": "another"}),
            ("of a later format", {"format": 99}),
            ("of an earlier format", {"format": 0}),
        ):
            contents[what] = partial(torch.save, {**state, **changed})
        for what, write in contents.items():
            folder = scene.copy(work / "case")
            path = folder / checkpoint.relative_to(scene.folder)
            write(path)
            found = path.read_bytes()
            # The classifier's cache is read by every run, and so is the network that a script builds
            # on; the others' checkpoints by --resume.
            always = {"classifier_models", BUILDS_ON.get(scene.script)} & set(path.parts)
            more = () if always else ("--resume",)
            case = Case(scene.script, f"{path.name} {what}")
            case.problems = end(start(scene.script, folder, *more), (2,), path.name)
            if path.read_bytes() != found:
                case.problems.append(Harm(f"{path.name} was overwritten"))
            if (ROOT / "executed").exists():
                case.problems.append("code was executed")
                (ROOT / "executed").unlink()
            yield case


def bad_data(scene: FaultScene, work: Path, config: Config) -> Iterator[Case]:
    """A data set whose files are cut short, or that is not there while no network is: a sentence."""
    if scene.script in OF_ITS_OWN:
        return
    raw = work / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    (raw / "train-images-idx3-ubyte").write_bytes(b"\x00\x00\x08\x03 cut short")
    for what, place in (("corrupt", work / "data"), ("absent, no network", work / "none")):
        more = ("--dataset", "mnist", "--data-dir", str(place))
        process = start(scene.script, scene.copy(work / "case"), *more, environment=NO_NETWORK)
        yield Case(scene.script, f"MNIST {what}", end(process, (2,), str(place)))
    pictures, picture = work / "pictures", next(scene.folder.rglob("*.png")).read_bytes()
    for name in ("a", "b"):
        (pictures / name).mkdir(parents=True, exist_ok=True)
        for k in range(10):
            (pictures / name / f"{k}.png").write_bytes(picture)
    (pictures / "b" / "short.png").write_bytes(picture[: len(picture) // 2])
    process = start(scene.script, scene.copy(work / "case"), "--dataset", f"folder:{pictures}")
    # A script that takes no folder names the folder in its refusal.
    name = pictures.name if scene.script == "text_diffusion" else "short.png"
    yield Case(scene.script, "a folder with a picture cut short", end(process, (2,), name))


WHOLE = ("0", "1", "2", "3", "-1", "99999999999")
REAL = (*WHOLE, "0.5", "1e-12", "1e300", "nan", "inf")
WORDS = (*REAL, "", "auto", "none", "ä b", "1 2", "8 16 24", "None", "True")
STRANGE = {bool: (None,), int: WHOLE, float: REAL}  # a flag has no word; other types take any
LONG = 30.0  # seconds, after which a run with strange settings is asked to stop


def random_settings(scene: FaultScene, work: Path, config: Config) -> Iterator[Case]:
    """An option at random with a strange value: refused in a sentence, or run."""
    rng = random.Random(config.seed)
    given = {"output_dir", "quick", "show", "debug"}
    options = [f for f in fields(driver.module_of(scene.script).Config) if f.name not in given]
    for chosen in rng.sample(options, min(config.settings, len(options))):
        word = rng.choice(STRANGE.get(type(chosen.default), WORDS))
        more = [option(chosen.name), *(word.split(" ") if word is not None else ())]
        folder = scene.copy(work / "case")
        process = start(scene.script, folder, *more)
        case = Case(scene.script, " ".join(more))
        stop = threading.Timer(LONG, process.send_signal, [signal.SIGINT])
        stop.start()
        case.problems = harm(process, (0, 2, 130), scene, folder)
        stop.cancel()
        yield case


KINDS: dict[str, Callable[[FaultScene, Path, Config], Iterator[Case]]] = {
    "signals": signals, "killed-saves": killed_saves, "full-saves": full_saves, "full-disk": full_disk,
    "read-only": read_only, "two-runs": two_runs, "foreign-checkpoint": foreign_checkpoint,
    "bad-data": bad_data, "random-settings": random_settings,
}  # fmt: skip


# --- the run --------------------------------------------------------------------------------------


@dataclass
class Findings:
    """What the command line prints."""

    cases: list[Case]
    exit_status: int = 0

    def print_summary(self) -> None:
        for case in self.cases:
            for problem in case.problems:
                print(f"{case.script}, {case.what}: {problem}")
        wrong = [p for case in self.cases for p in case.problems]
        tracebacks = sum(p == "traceback" for p in wrong)
        harmed = sum(isinstance(p, Harm) for p in wrong)
        rows = [
            ["cases tried", len(self.cases)],
            ["files damaged or lost", harmed],
            ["tracebacks shown", tracebacks],
            ["other problems", len(wrong) - harmed - tracebacks],
        ]
        print(text_table(["", "count"], rows))


def run(config: Config) -> Findings:
    """Try the chosen kinds of faults on the chosen scripts; `benchmarks/faults.json` lists the cases."""
    # A shell's background job is deaf to Ctrl-C, and so would be the scripts that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cases: list[Case] = []
    for script in config.only or (*driver.EVERYTHING, *get_args(MainJob)):
        kinds = config.kinds or KINDS
        if script in get_args(MainJob):
            kinds = [kind for kind in kinds if kind in OF_THE_MAIN_JOB]
        with tempfile.TemporaryDirectory(prefix="fäult ") as work:
            scene = prepared(script, Path(work) / "ended well")
            for kind in kinds:
                for case in KINDS[kind](scene, Path(work), config):
                    cases.append(case)
                    print(
                        f"{script}, {case.what}: {'; '.join(case.problems) or 'well'}", flush=True
                    )
        record = [vars(case) for case in cases]  # written after each script: the run is long
        write_json(config.output_dir / "benchmarks" / "faults.json", {"cases": record})
    return Findings(cases, 1 if any(case.problems for case in cases) else 0)


def main() -> None:
    command_line(Config, run, __doc__)


if __name__ == "__main__":
    main()
