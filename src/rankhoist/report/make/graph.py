"""The captured program as a graph of plain data: who reads whom, shapes, and what the plan did with each result."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import sympy
import torch
from torch import fx

from rankhoist.capture import InputSpec, Program
from rankhoist.capture.operators import captured_name, module_path
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.plan import Plan
from rankhoist.report.record import Graph, Vertex

ROLE_RATES = {"context": ("request",), "candidate": ("item",), "packed": ("request", "item")}


def make_graph(plan: Plan) -> Graph:
    """Inputs, operators and outputs of the captured program; sizes and Python's own arithmetic are left out."""
    program, outcomes = plan.interpreter.program, plan.interpreter.outcomes
    vertices: list[Vertex] = []
    numbers: dict[fx.Node, int] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.inputs:
            made = _input(program.inputs[node.name], node, program)
        elif node.op == "call_function" and captured_name(node) in outcomes and node.meta.get("val") is not None:
            made = _operator(plan, node, numbers)
        else:
            if node.target is operator.getitem and node.args[0] in numbers:  # one of several results
                numbers[node] = numbers[node.args[0]]
            continue
        numbers[node] = len(vertices)
        vertices.append(made)
    read = _reads((o for o in program.returned if isinstance(o, fx.Node)), numbers)
    last = Vertex("output", "output", "", "", ("pair",), (), "", read, (), "", "")
    return Graph((*vertices, last))


def _input(spec: InputSpec, node: fx.Node, program: Program) -> Vertex:
    shape, dtype = _result(node, program)
    return Vertex(spec.name, "input", "", "", ROLE_RATES[spec.role], shape, dtype, (), (), "", "")


def _operator(plan: Plan, node: fx.Node, numbers: dict[fx.Node, int]) -> Vertex:
    program, outcome = plan.interpreter.program, plan.interpreter.outcomes[captured_name(node)]
    shape, dtype = _result(node, program)
    inputs = node.all_input_nodes
    return Vertex(
        name=node.name,
        kind="operator",
        operator=str(node.target),
        module=module_path(node),
        rates=tuple(rate.name.lower() for rate in sorted(outcome.rates)),
        shape=shape,
        dtype=dtype,
        reads=_reads(inputs, numbers),
        weights=tuple(program.weights[x.name].name for x in inputs if x.name in program.weights),
        choice=_choice(plan, node.name),
        rule=outcome.rule,
    )


def _choice(plan: Plan, name: str) -> str:
    if plan.level is not Level.FULL or name not in plan.interpreter.choices:
        return ""
    return "materialised" if name in plan.evaluated else "pushed"


def _reads(nodes: Iterable[fx.Node], numbers: dict[fx.Node, int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(numbers[n] for n in nodes if n in numbers))


def _result(node: fx.Node, program: Program) -> tuple[tuple[str, ...], str]:
    """Shape and dtype of the (first) tensor that a node makes."""
    meta: Any = node.meta.get("val")
    fake = meta if isinstance(meta, torch.Tensor) else next(m for m in meta if isinstance(m, torch.Tensor))
    return tuple(_size(s, program.rows) for s in fake.shape), str(fake.dtype).removeprefix("torch.")


def _size(size: Any, rows: sympy.Symbol) -> str:
    return str(size.node.expr.subs(rows, sympy.Symbol("N"))) if isinstance(size, torch.SymInt) else str(size)
