"""Checkpoints that describe themselves: tensors and plain types, written completely or not at all."""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from imagelab.setup.files import atomic_path
from imagelab.setup.runtime import UserError, is_of_the_machine
from imagelab.setup.settings import FORMER_NAMES, option, settings_dict

FORMAT = 1
FIELDS = {
    "format": int,
    "script": str,
    "config": dict,
    "dataset": dict,
    "epoch": int,
    "step": int,
    "model": dict,
    "ema": dict,
    "optimizer": dict,
    "rng": dict,
    "history": dict,
    "extra": dict,
}


def save_checkpoint(path: Path, contents: dict[str, Any]) -> None:
    """Write a checkpoint with the keys of FIELDS (`format` is added here), atomically."""
    buffer = io.BytesIO()  # torch.save onto a full disk would not raise an OSError
    torch.save({"format": FORMAT, **contents}, buffer)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(
    path: Path | str, script: str, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Read the checkpoint that `script` wrote.

    Nothing in the file is executed (`weights_only=True`). Raises UserError when it is missing, cut
    short, not a checkpoint, of another script, or of a newer format, or when its weights are no numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"There is no checkpoint {path}: train first ({script}, without --resume and --sample-only), "
            "or choose the --output-dir of an earlier run."
        )
    raw = io.BytesIO(path.read_bytes())  # an error here is the disk's, not a damaged checkpoint
    try:
        contents = torch.load(raw, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a checkpoint of this project, or it holds more than tensors "
            "and plain values. It was not loaded."
        ) from error
    except Exception as error:  # torch raises many kinds for bytes that are no checkpoint
        if is_of_the_machine(error):  # no damage either
            raise
        raise UserError(
            f"{path} is damaged or cut short and cannot be read as a checkpoint; "
            "move it away and train again."
        ) from error
    if not isinstance(contents, dict) or "format" not in contents:
        raise UserError(f"{path} is not a checkpoint of this project.")
    if contents["format"] != FORMAT:
        raise UserError(
            f"{path} has checkpoint format {contents['format']!r}; this version reads "
            f"format {FORMAT}."
        )
    if contents.get("script") != script:
        raise UserError(f"{path} was written by {contents.get('script')!r}, not by {script!r}.")
    wrong = [k for k, kind in FIELDS.items() if not isinstance(contents.get(k), kind)]
    if wrong:
        raise UserError(f"{path} lacks {', '.join(wrong)}, which a checkpoint must hold.")
    check_finite([contents["model"], contents["ema"]], path)
    for name, former in FORMER_NAMES.items():
        if former in contents["config"]:
            contents["config"][name] = contents["config"].pop(former)
    return contents


def is_checkpoint(path: Path | str) -> bool:
    """Whether the file is a checkpoint of this project. Raises UserError where there is no such file."""
    if not Path(path).is_file():
        raise UserError(f"There is no file {path}.")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # `load_checkpoint` says what is wrong with the file
        if is_of_the_machine(error):
            raise
        return False
    return isinstance(contents, dict) and "format" in contents and "script" in contents


def resumes_on(saved: dict[str, Any], device: torch.device) -> bool:
    """Whether a training can continue on `device`: the random states of CPU and GPU differ in kind."""
    return len(saved["rng"]["training"]) == len(torch.Generator(device).get_state())


def check_finite(weights: Any, path: Path | str) -> None:
    """Raises UserError where a tensor in these nested dicts and lists holds NaN or infinity."""
    if isinstance(weights, dict | list | tuple):
        for part in weights.values() if isinstance(weights, dict) else weights:
            check_finite(part, path)
    elif isinstance(weights, torch.Tensor) and not weights.isfinite().all():
        raise UserError(f"The weights in {path} are not finite (NaN or infinity): train again.")


@contextlib.contextmanager
def checkpoint_errors(path: Path | str) -> Iterator[None]:
    """Use it around code that builds a network from the settings in the checkpoint `path`.

    Raises UserError if these settings are missing, or if no network can be built from them.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if is_of_the_machine(error):
            raise
        raise UserError(f"{path} does not say how its network was built.") from error


def check_trained_for(saved: dict[str, Any], path: Path | str, data, config, *names: str) -> None:
    """Raises UserError unless a checkpoint comes from `data` and the settings `names` of `config`."""
    if saved["dataset"].get("name") != data.name:
        raise UserError(
            f"{path} was trained with --dataset {saved['dataset'].get('name')}, not {data.name}."
        )
    check_settings(saved, str(path), settings_dict(config), names)


def check_settings(saved: dict[str, Any], what: str, config: dict, names: Iterable[str]) -> None:
    """Raises UserError, which begins with `what`, if one of the settings `names` was different."""
    for name in names:
        then, now = saved["config"].get(name), config[name]
        if then != now:
            raise UserError(f"{what} was trained with {option(name)} {then}, not {now}.")


def load_weights(module: torch.nn.Module, weights: dict, path: Path | str) -> None:
    """`module.load_state_dict` with one sentence when the weights are those of another network."""
    try:
        module.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        if is_of_the_machine(error):
            raise
        raise UserError(
            f"The weights in {path} do not fit the network "
            f"{type(module).__name__} with these settings."
        ) from error
