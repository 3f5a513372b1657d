"""The settings that scripts share, and the limits of a setting written beside its type.

A script's `Config` is a frozen dataclass that inherits from one of the classes here; tyro turns
its fields and the line below each of them into `--help`.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Self, get_args, get_type_hints

from imagelab.setup.runtime import UserError

DATASETS = (
    "auto",
    "mnist-5k",
    "textures",
    "faces",
    "mnist",
    "fashion-mnist",
    "cifar10",
    "celeba",
)


@dataclass(frozen=True)
class Limits:
    """A number's inclusive limits. NaN and infinity are never inside."""

    low: float = -math.inf
    high: float = math.inf

    def sentence(self) -> str:
        if self.high == math.inf:
            return f"must be at least {self.low:g}"
        return f"must lie between {self.low:g} and {self.high:g}"


class There:
    """A path that must be there when it is given."""


Count = Annotated[int, Limits(1)]
Fraction = Annotated[float, Limits(0, 1)]
Rate = Annotated[float, Limits(1e-12, 1e3)]
InputFile = Annotated[Path, There()]
# The names that settings had before. As options, and in checkpoints, they are still understood.
FORMER_NAMES = {"keep_in_range": "bound"}
# The packages that write a file of --export and read it again, by its suffix.
EXPORTED = {".onnx": ("onnx", "onnxscript", "onnxruntime"), ".safetensors": ("safetensors",)}


@dataclass(frozen=True)
class Checked:
    """Settings that refuse, in a sentence, values outside the limits beside their types, and files that
    are not there: before anything is read. A path may be given as a string."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for name, default in ((f.name, f.default) for f in fields(self)):
            given = getattr(self, name)
            if isinstance(given, str) and _takes_a_path(hints[name]):
                object.__setattr__(self, name, Path(given))  # the class is frozen
            if given == () and default != ():
                raise UserError(f"{option(name)} must be followed by a value.")
            values: tuple[Any, ...] = given if isinstance(given, tuple) else (given,)
            for value in values:
                if value is None:
                    continue
                if isinstance(value, float) and not math.isfinite(value):
                    raise UserError(f"{option(name)} must be a finite number, not {value}.")
                for mark in _marks(hints[name]):
                    if isinstance(mark, There) and not Path(str(value)).exists():
                        raise UserError(f"{option(name)}: there is no file {value}.")
                    if isinstance(mark, Limits) and not mark.low <= value <= mark.high:
                        raise UserError(f"{option(name)} {mark.sentence()}, not {value}.")


@dataclass(frozen=True, kw_only=True)
class Common(Checked):
    """What every command understands, also those for one picture."""

    device: str = "auto"
    """auto (the GPU if there is one, else the CPU), cpu, cuda, cuda:1, ..."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class RunSettings(Common):
    """What every run of something as a whole understands."""

    output_dir: Path = Path(".")
    """The folder under which the fixed folders for pictures and checkpoints are made."""
    seed: Annotated[int, Limits(0, 2**31 - 1)] = 0
    """Seed of every random draw. The same seed gives the same pictures on one processor with the same
    number of threads. On a GPU small differences remain."""
    quick: bool = False
    """A run of seconds that does every step, with small numbers in place of the defaults. It is too short
    to judge the method."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unwritable("output_dir", self.output_dir)

    def if_quick(self, **changes) -> Self:
        """With --quick: these settings with `changes`, except where the user chose a value."""
        if not self.quick:
            return self
        defaults = {f.name: f.default for f in fields(self)}
        untouched = {k: v for k, v in changes.items() if getattr(self, k) == defaults[k]}
        return replace(self, **untouched)


@dataclass(frozen=True)
class Settings(RunSettings):
    """What every script understands."""

    show: bool = False
    """Open the pictures in windows at the end, if there is a display."""


@dataclass(frozen=True)
class DataSettings(Settings):
    """What every script that takes a data set understands besides."""

    dataset: str = "auto"
    """auto (MNIST if it is under --data-dir, else mnist-5k), mnist-5k (5,000 digits inside a package),
    textures, faces, mnist, fashion-mnist, cifar10, celeba, or folder:PATH for your own pictures."""
    data_dir: Path = Path("data")
    """The folder of downloaded data sets."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unknown_dataset(self.dataset)


@dataclass(frozen=True)
class BoardSettings(Checked):
    """What every training understands, also one of several models: what else it writes on its way."""

    tensorboard: bool = False
    """Also write losses and sample grids for TensorBoard, into tensorboard/ beside the checkpoint."""
    keep_every: Count | None = None
    """Also keep a copy of the checkpoint every so many epochs, with the epoch's number in its name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tensorboard:
            need("--tensorboard", ["tensorboard"])


@dataclass(frozen=True)
class ExportSettings(Checked):
    """What every script understands whose network is of use elsewhere."""

    export: Path | None = None
    """Also write the trained network into this file: .onnx for onnxruntime and others, or .safetensors
    for the weights alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.export is not None:
            if self.export.suffix not in EXPORTED:
                suffixes = " or ".join(EXPORTED)
                raise UserError(f"--export must end in {suffixes}, not {self.export.name!r}.")
            need(f"--export {self.export.name}", EXPORTED[self.export.suffix])


@dataclass(frozen=True)
class ResumableSettings(BoardSettings, Settings):
    """What every training understands besides."""

    resume: bool = False
    """Continue the training from its checkpoint."""
    time_limit: Annotated[float, Limits(1e-3)] | None = None
    """End the training after this many seconds; then measure the network as it is."""
    compile: bool = False
    """Train by way of torch.compile. The first steps take a minute or two more, the others less time: for
    trainings of an hour. It takes a C++ compiler."""


@dataclass(frozen=True)
class TrainingSettings(ResumableSettings, DataSettings):
    """What every script that trains on a data set and makes images understands besides."""

    sample_only: bool = False
    """Load the checkpoint and make images; train nothing."""
    checkpoint: InputFile | None = None
    """Make images from this checkpoint, for instance one of --keep-every; train nothing."""
    samples_file: Path | None = None
    """Also write the images into this .npz file (array 'images', uint8, N×H×W or N×H×W×3)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint is not None and not self.sample_only:
            object.__setattr__(self, "sample_only", True)  # the class is frozen
        if self.resume and self.sample_only:
            name = option("checkpoint" if self.checkpoint else "sample_only")
            raise UserError(f"--resume trains, {name} does not: choose one of them.")
        if self.samples_file is not None and self.samples_file.suffix != ".npz":
            raise UserError(f"--samples-file must end in .npz, not {self.samples_file.name!r}.")
        if self.samples_file is not None:
            refuse_unwritable("samples_file", self.samples_file.parent)


@dataclass(frozen=True)
class SamplingSettings(TrainingSettings):
    """What every script that draws as many images as one likes understands besides."""

    num_samples: Annotated[int, Limits(1, 1_000_000)] = 10_000
    """Samples to draw and to score. At most as many are scored as there are held-out images to compare
    them with; --samples-file gets all of them."""


def _marks(hint) -> list[Limits | There]:
    """The marks in a type's annotations, also in those of `Count | None` and `tuple[Count, ...]`."""
    if hasattr(hint, "__metadata__"):
        return [mark for mark in hint.__metadata__ if isinstance(mark, Limits | There)]
    return [mark for part in get_args(hint) for mark in _marks(part)]


def refuse_unwritable(name: str, folder: Path) -> None:
    """Raise UserError where the option `name` asks for a folder that cannot be made or written into."""
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f"{option(name)}: {there} is not a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{option(name)}: nothing can be written into {there}.")


def refuse_unknown_dataset(name: str) -> None:
    """Raise UserError for a --dataset that is no name of ours, and for a folder that is not there."""
    if name.startswith("folder:"):
        if not Path(name.removeprefix("folder:")).expanduser().is_dir():
            raise UserError(f"--dataset {name}: there is no such folder.")
    elif name not in DATASETS:
        raise unknown("--dataset", name, DATASETS, "folder:PATH")


def unknown(what: str, word: str, known: Sequence[str], *more: str) -> UserError:
    """That `what` (an option, say) knows no such word, with those of `known` that may have been meant;
    where none is near, with all of them and `more`."""
    near = [name for name in known if len(word) > 1 and word.lower() in name]
    near = near or difflib.get_close_matches(word.lower(), known)
    if near:
        hint = f"Perhaps you meant {' or '.join(near)}?"
    else:
        hint = f"Choose one of {', '.join([*known, *more])}."
    return UserError(f"Unknown {what} {word!r}. {hint}")


def _takes_a_path(hint) -> bool:
    return hint is Path or any(map(_takes_a_path, get_args(hint)))


def need(what: str, packages: Iterable[str]) -> None:
    """Raise UserError unless the packages are installed that `what` the user asked for takes."""
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise UserError(f"{what} needs more packages: pip install {' '.join(missing)}")


def option(name: str) -> str:
    """The command-line spelling of a field: 'batch_size' is '--batch-size'."""
    return "--" + name.replace("_", "-")


def settings_dict(config: Settings) -> dict:
    """A config as a dict of plain types, for checkpoints and results.json."""
    values = {f.name: getattr(config, f.name) for f in fields(config)}
    return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
