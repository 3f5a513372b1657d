"""How the tests run a script: in a subprocess, as a user does; and which tests share a process."""

from __future__ import annotations

import os

# Several processes of pytest-xdist with one thread each do more than one with several threads.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# What imagelab.setup.runtime.prepare sets comes too late in a process whose tests have multiplied before.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
# Many tests compare bits, which a GPU does not repeat. CUDA_VISIBLE_DEVICES=0 runs them on one.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import contextlib
import copy
import hashlib
import importlib
import io
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from filelock import FileLock

import advanced_image_processing as driver
from imagelab.data.datasets import Dataset, load_dataset
from imagelab.setup.runtime import prepare
from imagelab.techniques.classifier import trained_classifier

ROOT = Path(__file__).resolve().parent.parent
# These files take ten seconds or more, the longest first. The tests' processes begin with them, so that
# none works alone at the end. Of two files that need the same run, the first is done before the second.
LONGEST_FIRST = (
    "advanced_image_processing", "denoising_autoencoder", "text_diffusion", "any_input", "detection",
    "adversarial_training", "segmentation", "image_translation", "denoising_gan", "unet_diffusion",
    "gan_mnist", "playground_in_a_browser", "diffusion_curves", "devices", "own_digit", "distributed",
    "cnn_classifier", "tour", "faults", "mlp_diffusion", "benchmarks", "without_torch", "scaling", "vae",
    "fgsm", "attacks", "model_comparison", "playground", "diffusion_restoration", "page",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


def command(script: str, *arguments: object) -> list[str]:
    """`script`: 'fgsm' at the top level, or 'studies.vae', which is run from the root."""
    how = ["-m", script] if "." in script else [str(ROOT / f"{script}.py")]
    return [sys.executable, *how, *map(str, arguments)]


def run_script(script: str, *arguments: object, status: int = 0) -> subprocess.CompletedProcess:
    """Run a script and check its exit status; a traceback is never shown."""
    own = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    done = subprocess.run(
        command(script, *arguments), capture_output=True, text=True, encoding="utf-8",
        env={**own, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done


def run_here(script: str, *arguments: object, status: int = 0) -> tuple[str, str]:
    """The same in this process, which spares the imports; what was printed and what complained."""
    main = importlib.import_module(script).main
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    with (
        mock.patch.object(sys, "argv", [f"{script}.py", *map(str, arguments)]),
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
        pytest.raises(SystemExit) as stop,
    ):
        main()
    for stream in streams:
        stream.seek(0)
    shown, complained = (stream.read() for stream in streams)
    assert (stop.value.code or 0) == status, complained[-3000:]
    assert "Traceback" not in complained
    return shown, complained


def complaint(script: str, *arguments: object) -> str:
    """The one sentence with which a script refuses bad input (exit status 2)."""
    _, complained = run_here(script, *arguments, status=2)
    return complained.strip().splitlines()[-1]


def has_headline(script: str, result: dict) -> bool:
    """Whether the figure that the driver's tables show of the script is in its result."""
    headline = driver.EVERYTHING[script.split(".")[-1]].headline
    return any(name.startswith(headline) for name in result["metrics"])


def untaught(script: str, result: dict) -> list[str]:
    """The script's lessons that its result cannot teach: they name a figure that was not measured.

    A quick run states no lesson, so the script's function is asked what it would say of these figures.
    """
    assert has_headline(script, result)

    def measured(*names: str) -> list[float] | None:
        found = [result["metrics"].get(name, {}).get("value") for name in names]
        return None if None in found else found

    def lessons(of: Callable) -> list[str]:
        return importlib.import_module(script).lessons(
            SimpleNamespace(**{**result, "measured": of})
        )

    told = " ".join(lessons(measured))  # what stands between the numbers is compared
    return [
        text
        for text in lessons(lambda *names: [1.0] * len(names))
        if not all(part in told for part in re.split(r"(?:(?<= )[+-])?\d[\d.,]*", text))
    ]


def once(tmp_path_factory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that the first of the tests' processes to need it has made; the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / name, base / f"{name}.done"
    with FileLock(base / f"{name}.lock"):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


def remembered(function: Callable) -> Callable:
    """A function without chance, which is not computed twice for the same arguments.

    Networks are the same if their weights and modes are, generators if their states are. A generator
    goes on as it did after the first call.
    """
    known = {}

    def call(*arguments, **more):
        given = [*arguments, *more.values()]
        generators = [value for value in given if isinstance(value, torch.Generator)]
        facts = pickle.dumps([[told_apart(value) for value in given], list(more)])
        key = hashlib.sha256(facts).digest()
        if key not in known:
            result = function(*arguments, **more)
            known[key] = result, [generator.get_state() for generator in generators]
        result, states = known[key]
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        return copy.deepcopy(result)

    return call


def told_apart(value: object) -> object:
    """What tells an argument of a `remembered` function from others."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().contiguous().numpy().tobytes()
    if isinstance(value, torch.Generator):
        return told_apart(value.get_state())
    if isinstance(value, torch.nn.Module):
        return type(value).__name__, value.training, told_apart(list(value.state_dict().values()))
    if isinstance(value, list | tuple):
        return [told_apart(part) for part in value]
    assert value is None or isinstance(value, bool | int | float | str)
    return value


@pytest.fixture(scope="session")
def main_job(tmp_path_factory) -> Path:
    """The output folder of one quick main job, at a path with a space and non-ASCII letters."""

    def run(folder: Path) -> None:
        run_script("advanced_image_processing", "--quick", "--dataset", "mnist-5k", "--output-dir",
                   folder)  # fmt: skip
        assert not list(folder.rglob(".*-*"))  # no temporary file is left

    return once(tmp_path_factory, "Größe 1", run)


def elsewhere(path: Path, **inputs: torch.Tensor) -> torch.Tensor:
    """What onnxruntime, which knows nothing of PyTorch, computes from the network in an .onnx file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: x.numpy() for name, x in inputs.items()})
    return torch.from_numpy(found)


@pytest.fixture(scope="session")
def quick_classifier(tmp_path_factory) -> Path:
    """An output folder with the classifier in it that quick runs attack and score with."""

    def train(folder: Path) -> None:
        device = prepare(0, "cpu")
        data = load_dataset("mnist-5k", Path()).shortened().to(device)
        with contextlib.redirect_stderr(io.StringIO()):
            trained_classifier(data, folder, quick=True)

    return once(tmp_path_factory, "quick_classifier", train)


def with_classifier(quick_classifier: Path, folder: Path) -> Path:
    """The folder with a copy of the classifier in it, which need not be trained again."""
    shutil.copytree(quick_classifier / "classifier_models", folder / "classifier_models")
    return folder


@pytest.fixture
def judged(quick_classifier, tmp_path) -> Path:
    """An output folder with the classifier in it."""
    return with_classifier(quick_classifier, tmp_path)


@pytest.fixture(scope="session")
def unet_run(quick_classifier, tmp_path_factory) -> Path:
    """The output folder of one quick run of the U-Net study, whose network others build on."""

    def run(folder: Path) -> None:
        with_classifier(quick_classifier, folder)
        run_here(
            "studies.unet_diffusion", "--quick", "--dataset", "mnist-5k", "--output-dir", folder
        )

    return once(tmp_path_factory, "unet", run)


@pytest.fixture
def float32(monkeypatch) -> None:
    """No bfloat16, which some processors take where the others compute in float32."""
    monkeypatch.setattr("imagelab.setup.runtime.has_fast_bfloat16", lambda _device: False)


@pytest.fixture(scope="session")
def stripes() -> Dataset:
    """A tiny data set: class 0 has a bright left half, class 1 a bright right half, plus noise."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    images = torch.randint(0, 60, (400, 1, 28, 28), generator=rng, dtype=torch.uint8)
    images[labels == 0, :, :, :14] += 180
    images[labels == 1, :, :, 14:] += 180
    return Dataset("stripes", "made by the tests", ("left", "right"),
                   images[:320], labels[:320], images[320:], labels[320:])  # fmt: skip
