"""How a script runs: device, seeds, number formats, and errors that end in a sentence."""

from __future__ import annotations

import contextlib
import os
import platform
import time
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib import metadata
from typing import TypeVar

import torch

from imagelab.setup.packages import missing_package
from imagelab.setup.terminal import tell_once

Network = TypeVar("Network", bound=torch.nn.Module)
_in_use = torch.device("cpu")
# How accelerators and allocators say that there is no memory left, where they raise no class of its own.
OUT_OF_MEMORY = ("allocate memory", "out of memory", "ALLOC_FAILED")
ACCELERATOR = (
    "CUDA error",
    "CUDA driver",
    "CUDNN_STATUS",
    "CUBLAS_STATUS",
    "HIP error",
    "XPU error",
)


class UserError(Exception):
    """Something that the user can mend. Its text is one clear sentence; scripts exit with status 2."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after the current step was finished and saved. Its text says how to go on.

    `terminated` where it was SIGTERM.
    """

    terminated = False


def pick_device(name: str) -> torch.device:
    """The device for `--device`: 'auto' is the accelerator if there is one that works, else the CPU.

    Works means: it computes in float64, as noise schedules and distances do. Raises UserError for a
    device that torch does not know, that is not in this machine, or that does not work.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        if found is None or found.type == "mps":  # has no float64
            return torch.device("cpu")
        if fault := _fault_of(found):
            tell_once(f"The device {found.type} cannot be used ({fault}). Computing on the CPU.")
            return torch.device("cpu")
        return found
    if name.startswith("mps"):
        raise UserError("--device mps has no float64, which is needed here: use --device cpu.")
    if fault := _fault_of(name):
        raise UserError(f"--device {name} cannot be used here ({fault}).")
    return torch.device(name)


def _fault_of(device: torch.device | str) -> str:
    """Why the device cannot compute; '' if it can. An old card is found, but the wheel has no kernel."""
    try:
        two = torch.ones(2, dtype=torch.float64, device=device).add(1).sum().item() / 2
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return "" if two == 2 else f"it says that 1 + 1 is {two:g}"


def use(device: torch.device) -> torch.device:
    """Make `device` the one that a Stopwatch waits for; returns it."""
    global _in_use
    _in_use = device
    return device


def prepare(seed: int, device: str) -> torch.device:
    """Set up the process for a run and return the device.

    Denormal numbers are flushed to zero: a GAN's saturated tanh feeds Adam with squares below
    1e-38, which cost an ordinary processor a hundred cycles each and change no picture.
    """
    # MKL's products otherwise depend, in the last bit and now and then, on where an array begins in
    # memory. MKL reads this at its first product, so here is early enough; it costs no time.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    torch.set_flush_denormal(True)
    spare_the_compiler()
    torch.manual_seed(seed)
    return use(pick_device(device))


def spare_the_compiler() -> None:
    """Let Adam do without torch's compiler, which takes more than a second and 150 MB to load.

    Adam's methods load it to say that they are not to be compiled, and nothing here compiles them. A
    torch in which they do so in another way loads it as ever.
    """
    unmarked = (
        getattr(method, "__wrapped__", None) for method in vars(torch.optim.Optimizer).values()
    )
    for method in filter(None, unmarked):
        vars(method).setdefault("__dynamo_disable", method)
    step = vars(torch.optim.Adam)["step"]
    if step.__name__ == "step" and not hasattr(step, "hooked"):  # no Adam has been made as yet
        plain = getattr(step, "__wrapped__", step)
        torch.optim.Adam.step = torch.no_grad()(plain)


def generator(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator of its own for each purpose, so that no use of one shifts another."""
    return torch.Generator(device=device).manual_seed(zlib.crc32(f"{seed}/{purpose}".encode()))


class Stopwatch:
    """`with Stopwatch() as watch:` measures `watch.seconds`, what a GPU still had to do included."""

    seconds: float

    def __enter__(self) -> Stopwatch:
        self._started = self._now()
        return self

    def __exit__(self, *_error) -> None:
        self.seconds = self._now() - self._started

    @staticmethod
    def _now() -> float:
        if _in_use.type != "cpu":
            torch.get_device_module(_in_use).synchronize(_in_use)
        return time.perf_counter()


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 ones: GPUs, processors with AMX or AVX512_BF16.

    Other processors compute them too, more slowly than float32 ones.
    """
    if device.type == "cpu":
        asked = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in asked)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


_float32_alone = False


@contextlib.contextmanager
def in_float32() -> Iterator[None]:
    """No `autocast` inside the block: for networks that are to run elsewhere."""
    global _float32_alone
    before, _float32_alone = _float32_alone, True
    try:
        yield
    finally:
        _float32_alone = before


def autocast(device: torch.device) -> AbstractContextManager:
    """bfloat16 autocast where the hardware is made for it, else float32 as it stands."""
    if has_fast_bfloat16(device) and not _float32_alone:
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def in_eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """The model in eval mode inside the block, every part as it was after it."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def channels_last(network: Network, device: torch.device | str) -> Network:
    """The network, moved to `device`, with weights in the order in which convolutions are fastest."""
    # torch's types leave this argument out, which its documentation has.
    return network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def versions() -> dict[str, str]:
    """The versions that decide a result's digits, for results.json."""
    packages = (
        "torch",
        "torchvision",
        "numpy",
        "scikit-image",
        "scikit-learn",
        "mlxtend",
        "torchmetrics",
    )
    return {"python": platform.python_version()} | {p: metadata.version(p) for p in packages}


def machine(device: torch.device) -> str:
    """The device in words: 'cpu, 2 threads, AVX512' or 'cuda, NVIDIA H200, bfloat16'."""
    words = [device.type]
    if device.type == "cpu":
        words += [f"{torch.get_num_threads()} threads", torch.backends.cpu.get_cpu_capability()]
    elif device.type == "cuda":
        words.append(torch.cuda.get_device_name(device))
    return ", ".join(words + ["bfloat16"] * has_fast_bfloat16(device))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the machine or of the accelerator did not suffice."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in OUT_OF_MEMORY)


def is_of_accelerator(error: BaseException) -> bool:
    """Whether the accelerator failed, so that the error says nothing of what was computed or read."""
    if isinstance(error, getattr(torch, "AcceleratorError", ())):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in ACCELERATOR)


def is_of_the_machine(error: BaseException) -> bool:
    """Whether memory or accelerator failed: then no file is damaged and no setting is wrong."""
    return is_out_of_memory(error) or is_of_accelerator(error)


def explain(error: BaseException) -> tuple[str, int]:
    """One sentence and the exit status for an exception: 2 where the user can mend it, else 1."""
    if isinstance(error, UserError):
        return str(error), 2
    if (missing := missing_package(error)) is not None:
        return missing, 2
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror or error}{where}.", 2
    if is_out_of_memory(error):
        return "Out of memory: try a smaller --batch-size, or --device cpu.", 2
    if is_of_accelerator(error):
        first = str(error).strip().splitlines()[0].rstrip(".")
        return f"The device {_in_use} failed ({first}): run it again, or use --device cpu.", 2
    text = str(error).strip().splitlines() or [""]
    return f"Unexpected {type(error).__name__}: {text[0]} (--debug shows where)", 1
