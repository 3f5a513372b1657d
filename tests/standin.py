"""A stand-in for a GPU: it computes on the CPU and refuses what a GPU refuses.

    python tests/standin.py gan_mnist --quick --output-dir /tmp/run    # --device auto finds it

It uses PyTorch's PrivateUse1 backend, set up for Python. A tensor on the device wraps a CPU tensor. A
dispatch mode sees every operation. It raises an error if tensors of two devices meet (except indices and
0-dimensional CPU tensors, which CUDA takes, too), and if a random generator is of another device. It
counts what makes the program wait (see waits.py): copies between the CPU and the device, `.item()`, and
operations whose result has a size that depends on values.
"""

from __future__ import annotations

import torch
import waits
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
aten = torch.ops.aten
# The size of their result depends on values: the program has to wait for the device.
BY_VALUE = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
    aten._local_scalar_dense.default,
}
INDEXING = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
    aten._unsafe_index_put.default,
}
COPIES = {aten._to_copy.default, aten.copy_.default, aten.copy.default}


class Backend:
    """What torch asks a backend's module."""

    def is_available(self):
        return True

    def is_initialized(self):
        return True

    def _is_in_bad_fork(self):
        return False

    def device_count(self):
        return 1

    def current_device(self):
        return 0

    def set_device(self, _index):
        pass

    def synchronize(self, _device=None):
        pass

    def get_rng_state(self, _device=None):
        return torch.default_generator.get_state()

    def set_rng_state(self, state, _device=None):
        pass

    def manual_seed_all(self, _seed):
        pass

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


class StandInTensor(torch.Tensor):
    """A tensor on the device; `inner` is the CPU tensor that holds its values."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, layout=inner.layout, device=torch.device(NAME, 0),
        )  # fmt: skip

    def __init__(self, inner: torch.Tensor) -> None:
        self.inner = inner

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"StandInTensor({self.inner})"

    def numpy(self, *, force=False):
        raise TypeError(
            f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu() first."
        )

    def __format__(self, spec):
        return format(self.item(), spec) if self.dim() == 0 else super().__format__(spec)

    def tolist(self):
        waits.note()
        return self.inner.tolist()

    def __reduce_ex__(self, protocol):
        return self.inner.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        copy = StandInTensor(self.inner.clone())
        return copy.requires_grad_(self.requires_grad)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        with Strict():
            return func(*args, **(kwargs or {}))


class Generator(torch.Generator):
    """A generator that knows whether it is one of the device; the same numbers as the CPU's."""

    on_device: set[int] = set()  # noqa: RUF012
    _where: torch.device

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls, "cpu")
        generator._where = torch.device(device)
        if generator._where.type == NAME:
            cls.on_device.add(generator._cdata)
        else:
            cls.on_device.discard(generator._cdata)
        return generator

    def __init__(self, device="cpu") -> None:
        pass

    @property
    def device(self):
        return torch.device(NAME, 0) if self._where.type == NAME else self._where

    def set_state(self, state):
        if isinstance(state, StandInTensor):
            raise TypeError("RNG state must be a torch.ByteTensor")
        return super().set_state(state)


def blocks_nothing(func, args, kwargs) -> bool:
    """Whether a copy is one for which the program need not wait."""
    if kwargs.get("non_blocking"):
        return True
    return func is not aten._to_copy.default and len(args) > 2 and bool(args[2])


class Strict(TorchDispatchMode):
    """Every operation, on the inner tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        ours = [x for x in tensors if isinstance(x, StandInTensor)]
        asked = kwargs.get("device")
        to_device = torch.device(asked).type == NAME if asked is not None else None
        target = bool(ours) if to_device is None else to_device
        if ours:
            self.check(func, args, tensors)
        if func in COPIES:
            source = args[1] if func is aten.copy_.default else args[0]
            into = isinstance(args[0], StandInTensor) if func is aten.copy_.default else target
            if isinstance(source, StandInTensor) != into and not blocks_nothing(func, args, kwargs):
                waits.note()
            target = into
        elif func in BY_VALUE and ours:
            waits.note()
        elif func in INDEXING and ours:
            indices = [x for x in args[1] if x is not None]
            if any(
                x.dtype in (torch.bool, torch.uint8) or not isinstance(x, StandInTensor)
                for x in indices
            ):
                waits.note()
        generators = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch._C.Generator)]
        for generator in generators:
            if (generator._cdata in Generator.on_device) != target:
                where = NAME if target else "cpu"
                raise RuntimeError(
                    f"Expected a '{where}' device type for generator but found another"
                )
        if asked is not None and to_device:
            kwargs["device"] = torch.device("cpu")
        inner_args, inner_kwargs = tree_map(
            lambda x: x.inner if isinstance(x, StandInTensor) else x, (args, kwargs)
        )
        found = func(*inner_args, **inner_kwargs)
        returned = func._schema.returns
        if returned and returned[0].alias_info is not None and returned[0].alias_info.is_write:
            if "out" in kwargs:
                return kwargs["out"]
            if isinstance(found, torch.Tensor):
                return args[0]
        if func is aten._local_scalar_dense.default:
            return found
        if not target:
            return found
        return tree_map(
            lambda x: (
                StandInTensor(x)
                if isinstance(x, torch.Tensor) and not isinstance(x, StandInTensor)
                else x
            ),
            found,
        )

    @staticmethod
    def check(func, args, tensors) -> None:
        if func in COPIES:
            return
        free = set()
        if func in INDEXING:
            free = {id(x) for x in args[1] if x is not None}
        for x in tensors:
            if not isinstance(x, StandInTensor) and x.dim() > 0 and id(x) not in free:
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but found at least two devices, "
                    f"{NAME}:0 and cpu! ({func})"
                )


def _new(how):
    """A factory as autograd's own threads call it, in which no dispatch mode is on."""

    def made(size, *layout, dtype=None, **_more):
        return StandInTensor(how(size, *layout, dtype=dtype or torch.get_default_dtype()))

    return made


def _inner(x: torch.Tensor) -> torch.Tensor:
    return x.inner if isinstance(x, StandInTensor) else x


def _copy_from(source, into, non_blocking=False):
    """A copy that torch makes itself, as torch.tensor(…, device=…) does."""
    if isinstance(source, StandInTensor) != isinstance(into, StandInTensor) and not non_blocking:
        waits.note()
    _inner(into).copy_(_inner(source))
    return into


def install() -> None:
    """Set the device up as this process's accelerator."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=Backend())
    torch.library.impl("aten::empty_strided", "PrivateUse1", _new(torch.empty_strided))
    torch.library.impl("aten::empty.memory_format", "PrivateUse1", _new(torch.empty))
    torch.library.impl("aten::_copy_from", "PrivateUse1", _copy_from)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    torch.Generator = Generator
    load = torch.load

    def loaded(file, map_location=None, **more):
        contents = load(file, map_location="cpu", **more)
        if map_location is None or torch.device(map_location).type != NAME:
            return contents
        return tree_map(lambda x: StandInTensor(x) if isinstance(x, torch.Tensor) else x, contents)

    torch.load = loaded
    Strict().__enter__()


if __name__ == "__main__":
    install()
    waits.run_script()
