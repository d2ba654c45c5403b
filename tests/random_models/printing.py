"""A random model as text: one line of code for every input, weight and operator, with the sizes of its result."""

from __future__ import annotations

import operator
from typing import Any

import torch
from sympy import Symbol
from torch import Tensor, fx

from random_models.rows import length, row_count
from rankhoist.capture import Program


def code(program: Program) -> str:
    """What a person reads of a failing model."""
    lines = [_line(node, program) for node in program.graph.nodes if node.op in ("placeholder", "call_function")]
    return "\n".join([*lines, f"  return {program.outputs}"])


def _line(node: fx.Node, program: Program) -> str:
    made = _role(node.name, program) if node.op == "placeholder" else _call(node)
    return f"  {node.name} = {made}  # {_sizes(node.meta['val'])}"


def _call(node: fx.Node) -> str:
    arguments = [repr(a) for a in node.args] + [f"{k}={v!r}" for k, v in node.kwargs.items()]
    name = str(node.target).removeprefix("aten.") if node.target is not operator.mul else "mul"
    return f"{name}({', '.join(arguments)})"


def _role(name: str, program: Program) -> str:
    if name in program.weights:
        weight = program.weights[name]
        shown = weight.tensor.numel() <= 12 or (weight.fixed and weight.tensor.numel() <= 64)
        trained = weight.trained and weight.tensor.is_floating_point()
        return f"constant {weight.tensor.tolist()}" if shown and not trained else "weight"
    if name in program.bags:
        key, _, what = program.bags[name].rpartition(".")
        return f"{program.inputs[key].role} input, {what} of bags"
    spec = program.inputs[name]
    return spec.role + (f" input, context columns {list(spec.columns)}" if spec.role == "packed" else " input")


def _sizes(value: Any) -> str:
    if isinstance(value, Tensor):
        names = {row_count(): Symbol("rows"), length(): Symbol("length")}
        sizes = [str(n if isinstance(n, int) else n.node.expr.subs(names)) for n in value.shape]
        kind = "" if value.dtype == torch.float64 else f" {str(value.dtype).removeprefix('torch.')}"
        return f"[{', '.join(sizes)}]{kind}"
    return ", ".join(_sizes(v) for v in value) if isinstance(value, list) else "size"
