"""Trained networks as files for use elsewhere, each read again and compared before it is kept.

`.onnx` holds the network itself, which onnxruntime and others run without PyTorch; `.safetensors` its
weights alone. Both hold in words what goes in and what comes out.
"""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imagelab.setup.files import atomic_path
from imagelab.setup.runtime import UserError, in_float32
from imagelab.setup.settings import EXPORTED, need

TOLERANCE = 1e-4  # of the largest output, or of 1


def export_network(
    path: Path | str | None,
    model: nn.Module,
    inputs: dict[str, torch.Tensor],
    output: str,
    any_size: bool = False,
    **about: Any,
) -> None:
    """Write `model` into `path` (.onnx or .safetensors), in float32; nothing where that is None.

    `inputs` are two of each input that the network takes, by the names under which the file has them.
    It will take any number of them and, with `any_size`, images of other sides. `about` is
    kept in the file beside the class's docstring. Raises UserError for another suffix, where a
    package is missing, and where what was written does not compute the same.
    """
    if path is None:
        return
    path = Path(path)
    if path.suffix not in EXPORTED:
        raise UserError(f"A network is written as {' or '.join(EXPORTED)}, not as {path.name!r}.")
    need(path.name, EXPORTED[path.suffix])
    model = copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format)
    model = model.eval().requires_grad_(False)
    words = {"network": type(model).__name__, "description": inspect.getdoc(model) or ""}
    words |= {name: json.dumps(value, ensure_ascii=False) for name, value in about.items()}
    with atomic_path(path) as temporary, in_float32():
        if path.suffix == ".safetensors":
            _write_weights(temporary, model, words)
            print(f"{path} holds the network's weights.")
            return
        _write_onnx(temporary, model, inputs, output, any_size, words)
        difference = _difference(temporary, model, inputs)
        if not difference <= TOLERANCE:
            raise UserError(
                f"{path.name} was not written: onnxruntime's output differs from PyTorch's by "
                f"{difference:.1g}."
            )
    print(
        f"{path} holds the network; onnxruntime's output is PyTorch's to within {difference:.1g}."
    )


def _write_weights(path: Path, model: nn.Module, words: dict[str, str]) -> None:
    from safetensors.torch import load_file, save_file

    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, path, metadata=words)
    found = load_file(path)
    if found.keys() != weights.keys() or not all(
        map(torch.equal, found.values(), [weights[name] for name in found])
    ):
        raise UserError(f"{path.name} was not written: it does not read as it was.")


def _write_onnx(
    path: Path,
    model: nn.Module,
    inputs: dict[str, torch.Tensor],
    output: str,
    any_size: bool,
    words: dict[str, str],
) -> None:
    free = torch.export.Dim.DYNAMIC
    shapes = [
        {0: torch.export.Dim("batch")} | dict.fromkeys(range(2, x.dim()) if any_size else (), free)
        for x in inputs.values()
    ]
    program = torch.onnx.export(
        model,
        tuple(inputs.values()),
        input_names=list(inputs),
        output_names=[output],
        dynamic_shapes=tuple(shapes),
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # with dynamo it is one
    program.model.metadata_props.update(words)
    program.save(path)


@torch.no_grad()
def _difference(path: Path, model: nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    """The largest difference of the file's output from the model's, for three of each input."""
    import onnxruntime

    # As many as were not there when the file was written, in another order.
    three = {name: torch.cat([x.flip(0), x[:1]]) for name, x in inputs.items()}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {name: x.numpy() for name, x in three.items()})
    expected = model(*three.values())
    return ((torch.from_numpy(found) - expected).abs().max() / expected.abs().max().clamp(1)).item()
