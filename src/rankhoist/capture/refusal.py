"""What a model itself says where it fails: in which module, on which line; and whether its example is at fault."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rankhoist.capture.inputs import CONSTANTS
from rankhoist.capture.own_lines import is_own
from rankhoist.errors import InputError, RankhoistError
from rankhoist.mistakes import first_line

SCRIPTED = "The following operation failed in the TorchScript interpreter"


def refused(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], leaves: Mapping[str, Any]
) -> InputError | None:
    """Why a model fails on its example, called as it is; None where it does not. `leaves` are the example's, by name.

    On a GPU it is not tried: one that meets an id outside of a table is lost to the process.
    """
    weights = [*model.parameters(), *model.buffers()]
    if any(t.device.type not in ("cpu", "meta") for t in weights):
        return None
    args, kwargs = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (args, dict(kwargs)))
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            model(*args, **kwargs)
    except RankhoistError:  # of ours, who stand in for some functions meanwhile
        return None
    except Exception as error:  # whatever it is, it is the model's own
        path, kind = failing_module(model, error)
        where = f" in module {path!r} ({kind})" if path else ""
        said = f"the model itself fails on the example{where}: {type(error).__name__}: {_said(error)[:1500]}"
        return InputError(f"{said}. The example is {_shown(leaves)}{_other_dtypes(weights, leaves)}{line_of(error)}")
    return None


def _said(error: Exception) -> str:
    """Of a TorchScript module the last line, of others the first."""
    lines = str(error).strip().splitlines()
    return (lines[-1] if SCRIPTED in first_line(error) else first_line(error)).rstrip(".")


def _shown(leaves: Mapping[str, Any]) -> str:
    tensors = {name: x for name, x in leaves.items() if isinstance(x, Tensor)}
    others = [f"{name} = {x!r:.40}" for name, x in leaves.items() if isinstance(x, CONSTANTS)]
    constant = f"; what is no tensor is a constant of the model: {', '.join(others)}" if others else ""
    return ", ".join(f"{name} {_short(x.dtype)} {list(x.shape)}" for name, x in tensors.items()) + constant


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _other_dtypes(weights: list[Tensor], leaves: Mapping[str, Any]) -> str:
    """Advice, where floats of the example are of another dtype than all of the weights."""
    own = {w.dtype for w in weights if w.is_floating_point()}
    other = [n for n, x in leaves.items() if isinstance(x, Tensor) and x.is_floating_point() and x.dtype not in own]
    if len(own) != 1 or not other:
        return ""
    return f"; the model's weights are {_short(*own)}, unlike {', '.join(map(repr, other))}"


def line_of(error: BaseException) -> str:
    """The innermost line that is not torch's own."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if is_own(f.filename)]
    return (
        f"\nIt is line {lines[-1].lineno} of {lines[-1].filename}: {lines[-1].line}" if lines and lines[-1].line else ""
    )


def failing_module(model: nn.Module, error: BaseException) -> tuple[str, str]:
    """The path and the kind of the innermost submodule whose `forward` is on the error's traceback."""
    paths = {id(module): name for name, module in model.named_modules()}
    found = ("", type(model).__name__)
    current: BaseException | None = error
    while current is not None:
        frames = current.__traceback__
        while frames is not None:
            owner = frames.tb_frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and id(owner) in paths and frames.tb_frame.f_code.co_name == "forward":
                found = (paths[id(owner)], type(owner).__name__)
            frames = frames.tb_next
        current = current.__cause__ or current.__context__
    return found
