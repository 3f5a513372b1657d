"""What to say of a package that is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def missing_package(error: BaseException) -> str | None:
    """A sentence on the package whose absence is `error`; None for any other error."""
    package = (getattr(error, "name", None) or "").split(".")[0]
    ours = (ROOT / package).exists() or (ROOT / f"{package}.py").exists()
    if not isinstance(error, ModuleNotFoundError) or ours:
        return None
    return (
        f"{sys.executable} has no package {package}. Switch to the environment that has it, or install "
        "what the scripts need: python -m pip install -r requirements.txt"
    )
