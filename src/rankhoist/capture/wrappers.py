"""Models inside of others: wrappers are taken off, methods are modules, weights that are no whole ones are refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from rankhoist.capture.sparse import is_sparse, parts_of
from rankhoist.errors import CaptureError, UnsupportedModelError

WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)
PREFIXES = ("_orig_mod.", "module.")
PACKED = "torch.ao.nn.quantized"
SHARDED, SPREAD = "torch.distributed.fsdp", "torch.distributed.tensor"
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
    wanted, state_dict = list(names), _in_parts(state_dict)
    while not all(name in state_dict for name in wanted):
        inside = {k.split(".", 1)[1]: v for k, v in state_dict.items() if k.startswith(PREFIXES)}
        if not inside:
            break
        state_dict = inside
    return state_dict


def _in_parts(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights that are made of others, as quantised ones, taken apart under the names that torch.export gives these."""

    def parts(x: Tensor) -> list[Tensor]:
        if not is_traceable_wrapper_subclass(x):
            return [x]
        return [part for name in x.__tensor_flatten__()[0] for part in parts(getattr(x, name))]

    found = dict[str, Tensor]()
    for name, weight in state_dict.items():
        if is_traceable_wrapper_subclass(weight):
            path, dot, own = name.rpartition(".")
            found |= {f"{path}{dot}parametrizations.{own}.original{i}": x for i, x in enumerate(parts(weight))}
        elif is_sparse(weight):
            found |= parts_of(name, weight)
        else:
            found[name] = weight
    return found


def check_whole(model: nn.Module) -> None:
    """Refuse weights that are packed, or spread over processes.

    Raises:
        UnsupportedModelError: a module keeps its weights for kernels of fewer bits, or one process has a part of them.
    """
    for name, module in model.named_modules():
        kinds, kind = [base.__module__ for base in type(module).__mro__], type(module).__name__
        spread = [n for n, w in module.named_parameters(recurse=False) if type(w).__module__.startswith(SPREAD)]
        if spread or any(k.startswith(SHARDED) for k in kinds):
            raise UnsupportedModelError(
                f"module {name!r} ({kind}) has weights that are spread over processes (FSDP, tensor parallel): hoist "
                "the plain model, with whole weights loaded into it. torch.distributed.checkpoint.state_dict gives "
                "them: get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))"
            )
        if kinds[0].startswith(PACKED):
            by_range = getattr(getattr(module, "_packed_params", None), "dtype", None) is torch.qint8
            reads = (
                ", and quantises what it reads by the range of all rows of a call, so that no row's score is its own"
                if kinds[0].startswith(f"{PACKED}.dynamic") and by_range
                else ""
            )
            raise UnsupportedModelError(
                f"module {name!r} ({kind}) keeps its weights packed for kernels of fewer bits, which torch.export does "
                f"not take{reads}. Hoist the model as it was before it was quantised."
            )
