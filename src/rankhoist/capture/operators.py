"""What a node of the captured graph calls: its operator, its module, and whether that draws random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from rankhoist.errors import CaptureError


def overload(node: fx.Node) -> torch._ops.OpOverload:
    """The ATen operator that a node calls."""
    if not isinstance(node.target, torch._ops.OpOverload):
        raise CaptureError(f"{node.name} calls {node.target}, which is no ATen operator")
    return node.target


def operator_name(node: fx.Node) -> str:
    """The operator without namespace and overload: `linear`, `add`."""
    return str(overload(node)._schema.name).split("::")[1]


def is_view(op: torch._ops.OpOverload) -> bool:
    """Whether a result, or a part of one, may lie in the memory of an operand, but by writing to it."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in op._schema.returns)


def module_path(node: fx.Node) -> str:
    """Path of the module whose `forward` made this node, e.g. `cross.layers.0`; empty for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return str(paths[-1]) if paths else ""


def captured_name(node: fx.Node) -> str:
    """The node's own name, or that of the captured node of whose result it computes a part."""
    return str(node.meta.get("captured", node.name))


def named_arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments that are given, by their names in the schema."""
    names = [a.name for a in overload(node)._schema.arguments]
    return dict(zip(names, node.args, strict=False)) | node.kwargs


def draws(node: fx.Node) -> bool:
    """Whether the operator draws random numbers: dropout in training mode does, also inside of attention and of
    recurrent layers.
    """
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    given = named_arguments(node)
    share = next((given[name] for name in ("p", "dropout_p", "dropout") if name in given), 1.0)
    switch = next((given[name] for name in ("train", "training") if name in given), True)
    return switch is not False and share != 0.0
