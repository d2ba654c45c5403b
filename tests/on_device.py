"""A GPU that is not there: its tensors say that they are on `cuda:0`, and hold their numbers on the CPU.

An operator that is given tensors of two devices fails, as it does on a GPU; what waits for the device, and copies from
memory that is not pinned, are listed; `pretended_cuda` captures CUDA graphs of it. Scores are real, so that what code
for devices computes is compared like any other. What is not shown: times, kernels in Triton, compiled stages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from pretended_cuda import Driver
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda:0"), torch.device("meta")
aten = torch.ops.aten
TRANSFERS = {aten._to_copy.default, aten.copy_.default, aten._foreach_copy_.default}
WAITS = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten.repeat_interleave.Tensor, aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default,
    aten.bincount.default, aten.is_nonzero.default,
}  # fmt: skip


class OnDevice(Tensor):
    """A tensor there; `held` are its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} is called where there is no device")

    def __repr__(self) -> str:
        return f"OnDevice({self.held!r})"


class Pinned(Tensor):
    """A tensor of the CPU that a copy to the device need not wait for."""

    __torch_function__ = torch._C._disabled_torch_function_impl


def there(x: Any) -> bool:
    """Whether a device is there, or a tensor on it."""
    if isinstance(x, Tensor):
        return isinstance(x, OnDevice)
    return isinstance(x, str | torch.device) and torch.device(x).type == "cuda"


def held(x: Any) -> Any:
    return x.held if isinstance(x, OnDevice) else x


def tensors(*of: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(of) if isinstance(x, Tensor)]


class Device(TorchDispatchMode):
    """Runs operators on its tensors.

    Attributes:
        calls: how many ran there.
        waits: operators that waited for it.
        copies: what was copied to it from memory that is not pinned, and was waited for.
    """

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self.driver, self.calls = driver, 0
        self.waits: list[str] = []
        self.copies: list[str] = []

    def forget(self) -> None:
        """Of what follows alone."""
        self.calls = 0
        self.waits.clear()
        self.copies.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in TRANSFERS:
            return self._transferred(func, args, kwargs)
        if not there(kwargs.get("device")) and not any(map(there, tensors(args, kwargs))):
            return func(*args, **kwargs)
        return self.ran(func, args, kwargs)

    def ran(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operator makes on the device, or where it says."""
        named, tags = kwargs.get("device"), getattr(func, "tags", ())
        if named is None:
            self._check(func, tags, args, kwargs)
        else:
            kwargs = {**kwargs, "device": CPU}
        if torch.Tag.inplace_view in tags:  # its own sizes change as well
            with torch._C._DisableTorchDispatch():
                func(*args, **kwargs)
        made = self._launched(func, args, {k: v for k, v in kwargs.items() if k != "pin_memory"})
        if named is not None and not there(named):
            return made
        known = {id(x.held): x for x in tensors(args, kwargs) if isinstance(x, OnDevice)}
        return pytree.tree_map_only(Tensor, lambda x: known[id(x)] if id(x) in known else OnDevice(x), made)

    def _launched(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.calls += 1
        args, kwargs = pytree.tree_map(held, (tuple(args), kwargs))
        made = func(*args, **kwargs)
        self.driver.launched(func, args, kwargs, made)
        return made

    def _check(self, func: Any, tags: Any, args: Any, kwargs: Any) -> None:
        outside = [x for x in tensors(args, kwargs) if not there(x)]
        if func is aten.index.Tensor:
            if any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]):
                self._waited(self.waits, str(func))
            if there(args[0]) and outside:  # it takes places on the CPU, and copies them
                self._waited(self.copies, "places on the CPU")
                outside = []
        if outside and not (torch.Tag.pointwise in tags and all(x.dim() == 0 for x in outside)):
            devices = [str(x.device) for x in tensors(args, kwargs)]
            raise RuntimeError(f"Expected all tensors to be on the same device, {func} is given {devices}")
        if func in WAITS and not (func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is not None):
            self._waited(self.waits, str(func))

    def _waited(self, where: list[str], what: str) -> None:
        self.driver.check_no_capture(what)
        where.append(what)

    def _transferred(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is aten._to_copy.default:
            goes = there(kwargs["device"]) if kwargs.get("device") is not None else there(args[0])
            self._moved(args[0], goes, kwargs.get("non_blocking", False), None)
            kwargs = {**kwargs, "device": CPU}
            if not goes and not there(args[0]):
                return func(*args, **kwargs)
            made = self._launched(func, args, kwargs)
            return OnDevice(made) if goes else made
        tos, ofs = args[:2] if isinstance(args[0], list) else ([args[0]], [args[1]])
        for to, of in zip(tos, ofs, strict=True):
            self._moved(of, there(to), kwargs.get("non_blocking", args[2] if len(args) > 2 else False), to)
        self._launched(func, args, kwargs)
        return None if isinstance(args[0], list) else args[0]

    def _moved(self, of: Tensor, onto: bool, free: bool, to: Tensor | None) -> None:
        if there(of) and not onto:
            assert not free or isinstance(to, Pinned), "who reads it before the copy is done?"
            if not free:
                self._waited(self.waits, "copy to the CPU")
        elif onto and not there(of):
            self.driver.check_no_capture("a copy from the CPU")
            if not (free and isinstance(of, Pinned)):
                self.copies.append(f"copy of {list(of.shape)}")


class Python(TorchFunctionMode):
    """What Python's side of PyTorch looks up about a device before it calls an operator."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in HANDLED:
            return HANDLED[func](self, func, *args, **kwargs)
        if there(kwargs.get("device")) and not isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
            if func is torch.tensor:
                self.device.copies.append("torch.tensor")
            self.device.calls += 1
            made = func(*args, **{**kwargs, "device": CPU})
            return made if there(made) else OnDevice(made)
        if kwargs.pop("pin_memory", False):
            return func(*args, **kwargs).as_subclass(Pinned)
        return func(*args, **kwargs)

    def to(self, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        like = [a for a in (*args, kwargs.get("other")) if isinstance(a, Tensor)]
        if like:
            args, kwargs = (like[0].device, like[0].dtype), {}
        device, dtype, free, _ = torch._C._nn._parse_to(*args, **{k: v for k, v in kwargs.items() if k != "copy"})
        if device == META:
            return held(x).to(device, dtype)
        goes = there(x) if device is None else there(device)
        if goes == there(x) and dtype in (None, x.dtype) and not kwargs.get("copy"):
            return x
        return aten._to_copy.default(x, dtype=dtype, device=device, non_blocking=free)

    def cuda(self, func: Any, x: Tensor, *_: Any) -> Any:
        return self.to(func, x, CUDA)

    def cpu(self, func: Any, x: Tensor) -> Any:
        return self.to(func, x, CPU)

    def pin_memory(self, func: Any, x: Tensor) -> Any:
        assert not there(x), "memory of a device cannot be pinned"
        return x.clone().as_subclass(Pinned)

    def tolist(self, func: Any, x: Tensor) -> Any:
        if there(x):
            self.device.waits.append("tolist")
        return func(held(x))

    def numpy(self, func: Any, x: Tensor, **kwargs: Any) -> Any:
        if there(x):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
        return func(x, **kwargs)

    def as_tensor(self, func: Any, x: Any, dtype: Any = None, device: Any = None) -> Any:
        if not isinstance(x, Tensor) and not there(device):
            return func(x, dtype=dtype, device=device)
        made = x if isinstance(x, Tensor) else func(x, dtype=dtype)
        return self.to(func, made, made.device if device is None else device, dtype or made.dtype)

    def attention(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """One operator there; on a CPU it may be several, which make masks of their own."""
        return self.device.ran(func, args, kwargs) if any(map(there, args)) else func(*args, **kwargs)

    def one_hot(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """There it does not look at the ids, where it is told how many there are."""
        count = args[1] if len(args) > 1 else kwargs.get("num_classes", -1)
        if there(args[0]) and count < 0:
            self.device.waits.append("one_hot")
        return self.device.ran(func, args, kwargs) if there(args[0]) else func(*args, **kwargs)


HANDLED = {
    Tensor.to: Python.to, Tensor.cuda: Python.cuda, Tensor.cpu: Python.cpu, Tensor.pin_memory: Python.pin_memory,
    Tensor.tolist: Python.tolist, Tensor.numpy: Python.numpy, torch.as_tensor: Python.as_tensor,
    F.scaled_dot_product_attention: Python.attention, F.one_hot: Python.one_hot,
    aten.scaled_dot_product_attention.default: Python.attention, aten.one_hot.default: Python.one_hot,
}  # fmt: skip


@contextmanager
def device() -> Iterator[Device]:
    """Within it there is a GPU."""
    driver = Driver()
    with driver.installed(), Device(driver) as made, Python(made):
        yield made
