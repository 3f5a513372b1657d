"""Run a script in its own process, disturb it, and check the files that it leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import advanced_image_processing as driver
from imagelab.data.datasets import EMBEDDED
from imagelab.data.video import open_video

ROOT = Path(__file__).resolve().parent.parent
# A script and the study that must run before it, because it starts from that study's checkpoint.
BUILDS_ON = {
    name: "unet_diffusion" for name in ("diffusion_curves", "inpainting", "diffusion_restoration")
}
# Scripts that don't take the embedded digits, and the data set that they take.
OF_ITS_OWN = {"segmentation": "scenes", "detection": "scenes", "diffusion_demo": None}
PATIENCE = 120.0  # seconds that a process may take to end after a signal


@dataclass
class FaultScene:
    """The output folder of an undisturbed run of `script`. Every case gets a copy of it."""

    script: str
    folder: Path
    seconds: float

    @property
    def size(self) -> int:
        """Bytes that the files take on a disk."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return sum(-(-path.stat().st_size // 4096) * 4096 for path in files)

    def copy(self, to: Path) -> Path:
        shutil.rmtree(to, ignore_errors=True)
        return Path(shutil.copytree(self.folder, to))


class Harm(str):
    """A problem with the files: one is damaged, missing, or was overwritten."""


def command(script: str, folder: Path, *more: str) -> list[str]:
    data = OF_ITS_OWN.get(script, EMBEDDED)
    chosen = ["--dataset", data] if data else []
    return [
        sys.executable,
        *driver.call_of(script),
        "--quick",
        *chosen,
        "--output-dir",
        str(folder),
        *more,
    ]


def start(
    script: str, folder: Path, *more: str, environment: dict[str, str] | None = None, **how
) -> subprocess.Popen:
    return subprocess.Popen(
        command(script, folder, *more),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        env={
            **os.environ,
            "PYTHONIOENCODING": "utf-8",
            "PYTHONPATH": str(ROOT),
            **(environment or {}),
        },
        **how,
    )


def end(process: subprocess.Popen, statuses: tuple[int, ...], names: str = "") -> list[str]:
    """Wait for the process. Returns what is wrong with its exit status and its error message.

    The message must contain `names`. A script catches its exceptions and calls those that it did not
    foresee "Unexpected"; that counts as a traceback.
    """
    try:
        complaint = process.communicate(timeout=PATIENCE)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return [f"still running after {PATIENCE:.0f} s"]
    problems = ["traceback"] if "Traceback" in complaint or ": Unexpected " in complaint else []
    last = (complaint.strip().splitlines() or [""])[-1]
    if names not in last:
        problems.append(f"{names} is not in: {last[:200]}")
    if process.returncode not in statuses:
        problems.append(f"status {process.returncode}: {last[:200]}")
    return problems


def damaged(folder: Path) -> list[str]:
    """A problem for each file under `folder` that cannot be read to its end."""
    from PIL import Image, ImageSequence

    def picture(path: Path) -> None:
        with Image.open(path) as image:
            for frame in ImageSequence.Iterator(image):
                frame.load()
        if path.suffix == ".gif" and path.read_bytes()[-1:] != b";":
            raise ValueError("cut between two frames")

    def film(path: Path) -> None:
        with open_video(path) as video:
            if sum(1 for _ in video.frames) != video.length:
                raise ValueError("frames are missing")

    def page(path: Path) -> None:
        if not path.read_text("utf-8").rstrip().endswith("</html>"):
            raise ValueError("cut short")

    readers: dict[str, Callable[[Path], object]] = {
        ".pth": lambda path: torch.load(path, weights_only=True)["model"],
        ".json": lambda path: json.loads(path.read_text("utf-8")),
        ".npz": lambda path: dict(np.load(path)),
        ".png": picture, ".gif": picture, ".mp4": film, ".webm": film, ".html": page,
    }  # fmt: skip
    problems = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith(".") and path.suffix in readers:
            try:
                readers[path.suffix](path)
            except Exception as error:
                name = path.relative_to(folder)
                problems.append(Harm(f"{name} is damaged ({type(error).__name__})"))
    return problems


def lost(before: Path, after: Path) -> list[str]:
    """A problem for each file of the undisturbed run that is missing now."""
    files = [path.relative_to(before) for path in before.rglob("*") if path.is_file()]
    return [Harm(f"{path} is gone") for path in files if not (after / path).is_file()]


def harm(
    process: subprocess.Popen, statuses: tuple[int, ...], scene: FaultScene, folder: Path
) -> list[str]:
    """Wait for the process. Returns what is wrong with its end and with the files in its folder."""
    return end(process, statuses) + damaged(folder) + lost(scene.folder, folder)


def prepared(script: str, folder: Path) -> FaultScene:
    """Run the script undisturbed, after the study that it builds on."""
    if script in BUILDS_ON:
        prepared(BUILDS_ON[script], folder)
    seconds = run_undisturbed(script, folder)
    if (folder / "classifier_models").exists():  # now it is in the cache, as for the cases
        seconds = run_undisturbed(script, folder)
    return FaultScene(script, folder, seconds)


def run_undisturbed(script: str, folder: Path) -> float:
    """The seconds that the script took."""
    began = time.perf_counter()
    if problems := end(start(script, folder), (0,)):
        raise RuntimeError(f"{script} fails undisturbed: {problems}")
    return time.perf_counter() - began
