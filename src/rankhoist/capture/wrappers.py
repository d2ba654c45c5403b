"""Models inside of others: wrappers are taken off, TorchScript modules converted, quantised ones refused by name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from rankhoist.capture.signature import Arguments
from rankhoist.errors import ExportError, UnsupportedModelError
from rankhoist.mistakes import in_one_line

WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)
PREFIXES = ("_orig_mod.", "module.")
PACKED = "torch.ao.nn.quantized"


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that a wrapper calls: of `torch.compile`, `DataParallel` and the like."""
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


def signature_of(model: nn.Module) -> Arguments:
    """The arguments of a model; those of a TorchScript module by its schema."""
    if not isinstance(model, torch.jit.ScriptModule):
        return Arguments.of(model.forward)
    kind, empty = inspect.Parameter, inspect.Parameter.empty
    return Arguments(
        inspect.Signature([
            kind(a.name, kind.POSITIONAL_OR_KEYWORD, default=a.default_value if a.has_default_value() else empty)
            for a in model.forward.schema.arguments[1:]  # type: ignore[attr-defined]
        ])
    )  # fmt: skip


def converted(model: torch.jit.ScriptModule, bound: inspect.BoundArguments) -> tuple[nn.Module, inspect.BoundArguments]:
    """A TorchScript module as one that exports, by torch's own converter, and a call of it.

    Raises:
        ExportError: the converter refuses it.
    """
    from torch._export.converter import TS2EPConverter  # takes seconds

    found: list[torch.fx.GraphModule] = []

    class Converter(TS2EPConverter):
        """Without the export that follows, which knows no rows."""

        def retrace_as_exported_program(self, gm: torch.fx.GraphModule, constants: dict[str, Any]) -> Any:
            for name in (n for n, value in constants.items() if isinstance(value, Tensor)):  # they are no weights
                path, _, own = name.rpartition(".")
                gm.get_submodule(path)._non_persistent_buffers_set.add(own)
            found.append(gm)
            return SimpleNamespace(state_dict=model.state_dict())

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Converter(model, bound.args).convert()
    except Exception as error:
        raise ExportError(
            f"torch cannot convert the TorchScript module {model.original_name} ({in_one_line(error)}). Hoist the "
            "nn.Module that it was scripted or traced from."
        ) from error
    return found[0], inspect.signature(found[0].forward).bind(*bound.args)
