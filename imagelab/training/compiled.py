"""--compile: the networks of a training by way of torch.compile, which writes code for just these.

Convolution, norm and activation become fewer passes over memory. Writing and compiling takes a minute at
the first step, so that only long trainings gain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from imagelab.setup import runtime
from imagelab.setup.terminal import tell, tell_once


@contextlib.contextmanager
def compiled(networks: Iterable[nn.Module]) -> Iterator[None]:
    """The networks, and what they consist of, are called compiled inside the block.

    Their weights stay where they are, and so do checkpoints. Where nothing can be compiled, a sentence
    says so, and the networks are called as ever.
    """
    if fault := _fault():
        tell_once(f"--compile: nothing can be compiled here ({fault}). It goes on without.")
        yield
        return
    tell("--compile: the first steps take a minute or two more.")
    # Whether there is bfloat16 is asked of the processor, which cannot be compiled, and does not change.
    torch.compiler.assume_constant_result(runtime.has_fast_bfloat16)
    # A GAN's discriminator is called by its layers, not as a whole.
    modules = [module for network in networks for module in (network, *network.children())]
    for module in modules:
        module.compile(dynamic=False)
    try:
        yield
    finally:
        for module in modules:
            module._compiled_call_impl = None


def _fault() -> str:
    """Why a function of a line cannot be compiled; '' if it can."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8))
    except Exception as error:  # no compiler, one that fails, a Python that torch cannot trace
        lines = [line for line in str(error).splitlines() if line.strip()]
        return (lines or [type(error).__name__])[0].rstrip(".:")
    return ""
