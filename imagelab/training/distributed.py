"""One training over several processes, as `torchrun` starts them; a single process is the case of one.

Every process draws the same batch and the same random numbers and works on its own rows of them;
DistributedDataParallel averages the gradients. So N processes take the steps that one would take; with
dropout alone they differ, because its masks are drawn for a process's own rows.
"""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import nn

from imagelab.setup.runtime import UserError, use


def join(device: torch.device) -> torch.device:
    """Meet the other processes, if torchrun started any; the device of this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return device
    if device.type == "cuda":
        rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if rank >= gpus:
            raise UserError(
                f"torchrun started more processes than this machine has GPUs, {gpus}: use "
                f"--nproc-per-node {gpus}, or --device cpu."
            )
        device = use(torch.device("cuda", rank))
        torch.cuda.set_device(device)
    # What is on the CPU goes through gloo: for a word there, the program need not wait for its GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def leave() -> None:
    """Part from the other processes: what follows is done by one alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def writes() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return int(os.environ.get("RANK", "0")) == 0


def own_rows(batch_size: int) -> slice:
    """The rows of a batch that this process works on."""
    if batch_size % world():
        raise UserError(
            f"--batch-size must be divisible by the number of processes, {world()}; it is "
            f"{batch_size}."
        )
    share = batch_size // world()
    rank = dist.get_rank() if dist.is_initialized() else 0
    return slice(rank * share, (rank + 1) * share)


def replicated(model: nn.Module) -> nn.Module:
    """The network to call in training: it averages gradients over the processes."""
    return nn.parallel.DistributedDataParallel(model) if world() > 1 else model


def mean(value: torch.Tensor) -> torch.Tensor:
    """The mean over the processes of a 0-dimensional tensor."""
    if world() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / world()


def any_of(flag: bool) -> bool:
    """Whether `flag` is set in any process: they must all stop after the same step."""
    return bool(mean(torch.tensor(float(flag))) > 0)
