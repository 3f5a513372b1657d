"""Why this file: `python studies/vae.py`, the run button of an editor, works without `pip install -e .`.

Python then looks for `imagelab` in the folder of the study, finds this file, and is sent on to the
project's folder. `python -m studies.vae` never comes here.
"""

import importlib
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)
del sys.modules["imagelab"]
importlib.import_module("imagelab")
