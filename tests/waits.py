"""Where a script makes the program wait for the device, by function: for standin.py and gpu.py.

`counted` has the counts. WAITS=FILE writes them as JSON when the script ends.
"""

from __future__ import annotations

import collections
import importlib
import json
import os
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

AS_SHOWN = {"_show_progress", "announce_means"}  # a value is printed, some times a minute
TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

counted: collections.Counter[str] = collections.Counter()
_seen: set[tuple] = set()


def note() -> None:
    """Count one wait for the function of the project that caused it.

    As 'gan_mnist.py sample', or 'studies/vae.py encode in train' where a step of a training called it. Of
    these only steps are counted that were not the first to wait there in their epoch: what is done once
    an epoch is no wait at every step.
    """
    # A gradient is computed in a thread of its own, for which the program's first thread waits.
    waiting = sys._current_frames()[threading.main_thread().ident or 0]
    place, training = _place_of(sys._getframe(1)) or _place_of(waiting) or ("?", None)
    if training is not None:
        step = (place, id(training), training.steps_done)
        epoch = (place, id(training), "epoch", training.last_epoch)
        if step in _seen or epoch not in _seen:
            _seen.update((step, epoch))
            return
        _seen.add(step)
    counted[place] += 1


def _place_of(frame: FrameType | None) -> tuple[str, Any] | None:
    """The project's function that runs in this frame, and the training that has called it, if any."""
    place = ""
    while frame is not None:
        path, function = Path(frame.f_code.co_filename), frame.f_code.co_name
        if path.is_relative_to(ROOT) and TESTS not in path.parents and ".venv" not in path.parts:
            place = place or f"{path.relative_to(ROOT).as_posix()} {function}"
            if function in AS_SHOWN:
                return place, None
            training = frame.f_locals.get("training")
            if (function == "train" or function.startswith("train_")) and training is not None:
                return f"{place} in {function}", training
        frame = frame.f_back
    return (place, None) if place else None


def run_script() -> None:
    """Run the script that the command names, with the rest of the command, as `python -m` would."""
    sys.path.insert(0, str(ROOT))
    script, sys.argv = sys.argv[1], sys.argv[1:]
    try:
        importlib.import_module(script).main()
    finally:
        if "WAITS" in os.environ:
            Path(os.environ["WAITS"]).write_text(json.dumps(counted))
