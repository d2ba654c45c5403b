"""Tensors without elements, as a slice from a pyramid's last layer has none: joined with others they add nothing."""

from __future__ import annotations

import torch
from torch import Tensor, fx

aten = torch.ops.aten


def without_elements(node: fx.Node) -> bool:
    """Whether it makes one tensor that has no elements in any call."""
    made = node.meta.get("val")
    return isinstance(made, Tensor) and any(isinstance(size, int) and size == 0 for size in made.shape)


def leave_out_empty(graph: fx.Graph) -> None:
    """Concatenations are those of tensors with elements; what only made the others goes."""
    for node in graph.find_nodes(op="call_function", target=aten.cat.default):
        full = [part for part in node.args[0] if not without_elements(part)]
        if full and len(full) < len(node.args[0]) and {p.meta["val"].dtype for p in full} == {node.meta["val"].dtype}:
            node.update_arg(0, full)
    for node in reversed(graph.nodes):
        if node.op == "call_function" and without_elements(node) and not node.users:
            graph.erase_node(node)
