"""The same graph with less overhead per call: torch's own functions instead of ATen overloads.

An ATen overload called from Python costs two to three times as much as the function that reaches it through torch's
binding (3 to 8 microseconds, measured), which is most of the time when there are few candidates.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from rankhoist.compiler.algebra.ir import aten

FUNCTIONS: dict[Any, Callable[..., Any]] = {
    aten.linear.default: F.linear,
    aten.mul.Tensor: torch.mul,
    aten.add.Tensor: torch.add,
    aten.sub.Tensor: torch.sub,
    aten.div.Tensor: torch.div,
    aten.addcmul.default: torch.addcmul,
    aten.matmul.default: torch.matmul,
    aten.bmm.default: torch.bmm,
    aten.reshape.default: torch.reshape,
    aten.permute.default: torch.permute,
    aten.select.int: torch.select,
    aten.cat.default: torch.cat,
    aten.stack.default: torch.stack,
    aten.index_select.default: torch.index_select,
    aten.mm.default: torch.mm,
    aten.addmm.default: torch.addmm,
    aten.layer_norm.default: torch.layer_norm,
    aten.softmax.int: torch.softmax,
    aten.mean.dim: torch.mean,
    aten.amax.default: torch.amax,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.maximum.default: torch.maximum,
    aten.scaled_dot_product_attention.default: F.scaled_dot_product_attention,
    aten.relu.default: torch.relu,
    aten.sigmoid.default: torch.sigmoid,
    aten.tanh.default: torch.tanh,
    aten.exp.default: torch.exp,
    aten.sum.dim_IntList: torch.sum,
    aten.relu_.default: torch.relu_,
    aten.sigmoid_.default: torch.sigmoid_,
    aten.tanh_.default: torch.tanh_,
    aten.exp_.default: torch.exp_,
}
METHODS = {
    aten.addcmul_.default: "addcmul_", aten.add_.Tensor: "add_", aten.sub_.Tensor: "sub_", aten.mul_.Tensor: "mul_",
    aten.div_.Tensor: "div_", aten.expand.default: "expand",
}  # fmt: skip


def spelled(module: fx.GraphModule) -> Callable[..., tuple[Any, ...]]:
    """A function that computes what `module` computes."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        values[node] = made = graph.node_copy(node, lambda n: values[n])
        if node.op != "call_function":
            continue
        if node.target in METHODS and not made.kwargs:
            made.op, made.target = "call_method", METHODS[node.target]
        elif node.target is aten.slice.Tensor and _whole(node):
            x, axis, start, end = made.args[:4]
            made.target, made.args = torch.narrow, (x, axis, start, end - start)  # type: ignore[operator]
        elif node.target is aten.index.Tensor:
            x, places = made.args
            every = (slice(None) if p is None else p for p in places)  # type: ignore[union-attr]
            made.target, made.args = operator.getitem, (x, tuple(every))
        elif node.target is aten.embedding.default:  # what else it takes is about gradients
            made.target, made.args = F.embedding, (made.args[1], made.args[0])
        else:
            made.target = FUNCTIONS.get(node.target, node.target)
    run: Callable[..., tuple[Any, ...]] = fx.GraphModule(nn.Module(), graph).forward
    return run


def _whole(node: fx.Node) -> bool:
    """Whether a slice has the length its bounds say, in steps of one: `narrow` does not clip."""
    axis, start, end, step = (*node.args[1:], 1)[:4] if len(node.args) >= 4 else (0, 0, 0, 0)
    shape = node.meta.get("shape", ())
    numbers = all(type(x) is int for x in (axis, start, end))
    return numbers and step == 1 and 0 < axis <= len(shape) and shape[axis - 1] == end - start  # type: ignore
