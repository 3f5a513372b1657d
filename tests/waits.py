"""Where a script makes the program wait for the device, by function: for standin.py and gpu.py.

`counted` has the counts. WAITS=FILE writes them as JSON when the script ends.
"""

from __future__ import annotations

import collections
import importlib
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

counted: collections.Counter[str] = collections.Counter()
_seen: set[tuple] = set()


def note() -> None:
    """Count one wait for the function of the project that caused it.

    As 'gan_mnist.py sample', or 'studies/vae.py encode in train' where a step of a training called it. Of
    these the steps are counted: waiting twice in one step counts once.
    """
    frame, place = sys._getframe(1), ""
    while frame is not None:
        path, function = Path(frame.f_code.co_filename), frame.f_code.co_name
        if (
            path.is_relative_to(ROOT)
            and path.parent != Path(__file__).parent
            and ".venv" not in path.parts
        ):
            place = place or f"{path.relative_to(ROOT).as_posix()} {function}"
            training = frame.f_locals.get("training")
            if (function == "train" or function.startswith("train_")) and training is not None:
                place += f" in {function}"
                if (place, id(training), training.steps_done) in _seen:
                    return
                _seen.add((place, id(training), training.steps_done))
                break
        frame = frame.f_back
    counted[place or "?"] += 1


def run_script() -> None:
    """Run the script that the command names, with the rest of the command, as `python -m` would."""
    sys.path.insert(0, str(ROOT))
    script, sys.argv = sys.argv[1], sys.argv[1:]
    try:
        importlib.import_module(script).main()
    finally:
        if "WAITS" in os.environ:
            Path(os.environ["WAITS"]).write_text(json.dumps(counted))
