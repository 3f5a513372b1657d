"""How soon a training on a folder of very many pictures takes its first step, and in how much memory.

    python -m benchmarks.own_pictures                       # 100,000 pictures: four minutes, 0.7 GB
    python -m benchmarks.own_pictures --pictures 10000

It makes PNG files of 32×32 pixels in ten classes of equal size, and starts `studies.dcgan` on them twice:
the first start decodes them. Each start ends after the first step.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.main_job import peak_memory

FOUND = "first step: "  # before the line of JSON that a start prints


def make_pictures(root: Path, count: int, side: int = 32) -> None:
    """`count` PNG files with noise over blocks of colour, in ten folders of equal size."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 128, (64, 4, 4, 3), dtype=np.uint8).repeat(side // 4, 1)
    blocks = blocks.repeat(side // 4, 2)
    for k in range(10):
        (root / f"class {k}").mkdir(parents=True)
    for k in range(count):
        picture = blocks[rng.integers(64)] + rng.integers(0, 100, (side, side, 1), dtype=np.uint8)
        path = root / f"class {k % 10}" / f"{k:07}.png"
        Image.fromarray(picture).save(path, compress_level=1)


def private_memory() -> float | None:
    """What this process holds now and no file could give back, MiB; Linux tells it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(x.split()[1]) / 2**10 for x in lines if x.startswith("RssAnon")), None)


def first_step(script: str, arguments: list[str]) -> None:
    """Run the script until the first step of its training is done, and print what that took."""
    from imagelab.training.loop import Training

    started, batches = time.perf_counter(), Training.batches

    def one(self):
        yield next(batches(self))
        taken = {
            "seconds": time.perf_counter() - started,
            "CPU seconds": time.process_time(),
            "peak MiB": peak_memory(),
            "MiB that are no file's": private_memory(),
            "images": len(self.data.images),
        }
        print(FOUND + json.dumps(taken), flush=True)
        raise SystemExit

    Training.batches = one
    sys.argv = [script, *arguments]
    importlib.import_module(script).main()


def start(root: Path, folder: Path) -> dict:
    """One start of the training in a process of its own."""
    arguments = ["studies.dcgan", "--dataset", f"folder:{root}", "--data-dir", folder / "data",
                 "--output-dir", folder, "--device", "cpu", "--image-size", "32"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.own_pictures", "--first-step", *map(str, arguments)],
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith(FOUND)]
    if not lines:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(lines[0].removeprefix(FOUND))


def main() -> None:
    if sys.argv[1:2] == ["--first-step"]:
        return first_step(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100_000, help="how many to make")
    parser.add_argument("--folder", type=Path, help="where they are already, or are to stay")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = options.folder or Path(scratch) / "pictures"
        if not root.is_dir():
            make_pictures(root, options.pictures)
        for name in ("first start", "second start"):
            print(name, json.dumps(start(root, Path(scratch))), flush=True)
    return None


if __name__ == "__main__":
    main()
