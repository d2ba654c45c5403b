"""Models inside of others: wrappers are taken off, methods are modules, quantised modules refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from rankhoist.errors import CaptureError, UnsupportedModelError

WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)
PREFIXES = ("_orig_mod.", "module.")
PACKED = "torch.ao.nn.quantized"
PARTS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")


class Method(nn.Module):
    """A method of a module, as a module with the same parts and weights, by the same names."""

    def __init__(self, method: MethodType) -> None:
        super().__init__()
        for part in PARTS:  # the dicts themselves, for whoever exchanges a weight
            self.__dict__[part] = getattr(method.__self__, part)
        self.forward = method


def unwrapped(model: Any) -> nn.Module:
    """The model that a wrapper calls, of `torch.compile`, `DataParallel` and the like; of a method, one that calls it.

    Raises:
        CaptureError: it is neither.
    """
    if isinstance(model, MethodType) and isinstance(model.__self__, nn.Module):
        return Method(model)
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"a model is a module, a method of one, an exported program or a file, not a {type(model).__name__}: put "
            "what it computes into the forward of a torch.nn.Module that has the weights"
        )
    return _inside(model)


def _inside(model: nn.Module) -> nn.Module:
    while True:
        inside = getattr(model, "module" if isinstance(model, WRAPPERS) else "_orig_mod", None)
        if not isinstance(inside, nn.Module):
            return model
        model = inside


def under_own_names(state_dict: Mapping[str, Tensor], names: Iterable[str]) -> Mapping[str, Tensor]:
    """The state dict of a wrapper under the names that its model has: without `module.`, `_orig_mod.`."""
    wanted = list(names)
    while not all(name in state_dict for name in wanted):
        inside = {k.split(".", 1)[1]: v for k, v in state_dict.items() if k.startswith(PREFIXES)}
        if not inside:
            break
        state_dict = inside
    return state_dict


def check_packed(model: nn.Module) -> None:
    """Refuse int8 modules.

    Raises:
        UnsupportedModelError: a module keeps its weights packed for int8 kernels.
    """
    packed = [(name, type(m).__name__) for name, m in model.named_modules() if type(m).__module__.startswith(PACKED)]
    if packed:
        name, kind = packed[0]
        raise UnsupportedModelError(
            f"module {name!r} ({kind}) keeps its weights packed for int8 kernels, which torch.export does not take, "
            "and quantises what it reads by the range of all rows of a call, so that no row's score is its own. Hoist "
            "the model as it was before it was quantised."
        )
