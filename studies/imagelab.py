"""Lets a study be run as a file, `python studies/vae.py`, as the run button of an editor does.

Python then looks for `imagelab` beside the study, finds this, and is sent to the project's folder.
`python -m studies.vae` never comes here.
"""

import importlib
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
del sys.modules["imagelab"]
importlib.import_module("imagelab")
