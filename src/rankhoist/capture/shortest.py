"""The shortest histories: `torch.export` follows a model for two positions, and it may do something else for fewer.

An example is `x = h.mean(1) if h.shape[1] > 1 else h.sum(1)`. So a program is held beside its model on the example, cut
to one position and to none. Where they differ, the program is of longer histories alone; where the model fails, by what
else is in the example perhaps, nothing is known.
"""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rankhoist.capture.alike import leaves_alike

Cut = Mapping[int, Mapping[int, int]]  # by the place of a tensor among all arguments, and by axis: to which length


def shortest(model: nn.Module, bound: inspect.BoundArguments, program: torch.export.ExportedProgram) -> None:
    """Raise the lowest length of every axis of a program that varies, to where it is its model."""
    run = functools.cache(program.module)
    for symbol, places in _lengths(program).items():
        own = program.range_constraints[symbol]
        for length in (1, 0):
            cut: dict[int, dict[int, int]] = defaultdict(dict)
            for place, axis in places:
                cut[place][axis] = length
            if own.lower <= length and not _same(model, bound, run, cut):
                program.range_constraints[symbol] = type(own)(length + 1, own.upper)
                break


def _lengths(program: torch.export.ExportedProgram) -> dict[sympy.Symbol, list[tuple[int, int]]]:
    """Where the symbols of lengths stand: the place of an argument, and its axis."""
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    found: dict[sympy.Symbol, list[tuple[int, int]]] = defaultdict(list)
    for place, name in enumerate(program.graph_signature.user_inputs):
        value = nodes.get(name) if isinstance(name, str) else None
        for axis, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if axis and isinstance(size, torch.SymInt) and size.node.expr in program.range_constraints:
                found[size.node.expr].append((place, axis))
    return found


def _same(model: nn.Module, bound: inspect.BoundArguments, run: Callable[[], nn.Module], cut: Cut) -> bool:
    """Whether both compute the same of an example that is cut, or the model computes nothing."""
    leaves, spec = pytree.tree_flatten((bound.args, bound.kwargs))
    args, kwargs = pytree.tree_unflatten(list(_cut(leaves, cut)), spec)
    with torch.no_grad():
        try:
            truth = model(*args, **kwargs)
        except Exception:  # whatever it is, it is the model's own failure
            return True
        try:
            made = run()(*args, **kwargs)
        except Exception:  # of a length that the program does not take, or torch cannot run it at all
            return False
    return leaves_alike(made, truth)


def _cut(leaves: list[Any], cut: Cut) -> Iterator[Any]:
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            for axis, length in cut.get(place, {}).items():
                leaf = leaf.narrow(axis, 0, length)
            leaf = torch.cat([leaf, leaf])  # two rows at least
        yield leaf
