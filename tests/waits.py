"""Where a script makes the program wait for the device, by function: for standin.py and gpu.py.

`counted` has the counts. WAITS=FILE writes them as JSON when the script ends.
"""

from __future__ import annotations

import collections
import importlib
import json
import os
import sys
import traceback
from pathlib import Path

# What a training calls now and then, not at every step.
AT_TIMES = {"after_epoch", "save", "announce_means", "_show_progress"}
ROOT = Path(__file__).resolve().parent.parent

counted: collections.Counter[str] = collections.Counter()


def note() -> None:
    """Count one wait for the function of the project that caused it.

    As 'gan_mnist.py sample', or 'studies/vae.py encode in train' where a training's step called it.
    """
    frames = [
        (path.relative_to(ROOT).as_posix(), frame.name)
        for frame in reversed(traceback.extract_stack())
        if (path := Path(frame.filename)).is_relative_to(ROOT)
        and path.parent != Path(__file__).parent
        and ".venv" not in path.parts
    ]
    path, function = frames[0] if frames else ("?", "?")
    names = [name for _, name in frames]
    training = next((name for name in names if name == "train" or name.startswith("train_")), None)
    if training is not None and not AT_TIMES & set(names[: names.index(training)]):
        function += f" in {training}"
    counted[f"{path} {function}"] += 1


def run_script() -> None:
    """Run the script that the command names, with the rest of the command, as `python -m` would."""
    sys.path.insert(0, str(ROOT))
    script, sys.argv = sys.argv[1], sys.argv[1:]
    try:
        importlib.import_module(script).main()
    finally:
        if "WAITS" in os.environ:
            Path(os.environ["WAITS"]).write_text(json.dumps(counted))
