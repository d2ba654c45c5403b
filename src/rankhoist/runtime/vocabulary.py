"""How large the ids of each input may be: read from the emitted graphs, where inputs meet the tables they index.

Positions of an input's values, numbered in row-major order, are moved through the graph as the values would be, by the
same operators; where positions arrive at a table as ids, the table's rows bound them. Ids that are computed on the way
are not followed: there the lookup itself is watched, and it is known which inputs the ids are computed from.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from rankhoist.capture import Interface
from rankhoist.compiler.emit import Stage, Stages
from rankhoist.compiler.emit.lookups import LOOKUPS, Use, at, paths, uses
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import aten
from rankhoist.errors import VocabularyError
from rankhoist.runtime.weights import Argument, Weights

MOVES = {
    aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim,
    aten.squeeze.dims, aten.permute.default, aten.transpose.int, aten.select.int, aten.slice.Tensor, aten.clone.default,
    aten.expand.default, aten.stack.default, aten.cat.default, aten.index_select.default, aten.alias.default,
    aten.unbind.int, aten.split.Tensor, aten.split_with_sizes.default, aten.flatten.using_ints,
}  # fmt: skip
# What leaves every value where it is; of one request, its rows repeated are that row.
KEEPS = {
    aten._to_copy.default,
    aten.to.dtype,
    aten.trunc.default,
    kernels.spread,
    kernels.repeat_rows,
    kernels.repeat_bags,
}

NOBODY = -1  # the position of a value that is no input's
FREE = torch.iinfo(torch.int64).max  # of a value that indexes nothing


@dataclass(frozen=True)
class Origin:
    """Where the values of a tensor come from: the `inputs` it is computed from, and whose values it holds as they are.

    `positions` are those of one row, among the values of all inputs: -1 for a value that is no input's. `floored`: they
    are rounded down, and -0.5 becomes -1.
    """

    inputs: frozenset[str]
    positions: Tensor | None = None
    floored: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """What ids a model's inputs may hold.

    Attributes:
        below: input name as in the stages (`NAME.context` and `NAME.candidate` of a packed one, `NAME.values_0` of one
            that has bags) -> int64, one bound per value of a row: ids are less than it. Inputs that index nothing are
            not listed.
        lowest: the same inputs -> the least that each value may be: 0, or less where -1 is the last row.
        sources: of every plan, for its request and its candidate stage: lookups by node, and the inputs whose values
            their ids are, or are computed from.
        computed: of those, the lookups whose ids are not bounded by the bounds of inputs, and what to say where one is
            outside.
    """

    below: dict[str, Tensor]
    lowest: dict[str, Tensor]
    sources: list[dict[str, dict[str, list[str]]]]
    computed: list[dict[str, dict[str, str]]]

    def guard(self, stages: Stages) -> None:
        """Have stages guard what they compute, where they are compiled."""
        for variant, computed in zip(stages.variants, self.computed, strict=True):
            variant.request.guards, variant.candidate.guards = computed["context"], computed["candidate"]

    def explain(self, plan: int, lookup: str, value: float, bounds: range) -> VocabularyError:
        """What is wrong with an id that a lookup of a plan was given."""
        known = {name: own for side in self.sources[plan].values() for name, own in side.items()}
        names = _named(known.get(lookup, []))
        computed = any(lookup in side for side in self.computed[plan].values())
        expected = f"expected {bounds[0]} to {bounds[-1]}" if bounds else "and its table has no rows"
        if computed:
            return VocabularyError(f"the model computes id {value} from {names}, {expected}")
        have = "have" if names.startswith("inputs") else "has"
        return VocabularyError(f"{names} {have} id {value}, {expected}")


def vocabulary(interface: Interface, stages: Stages, weights: Weights) -> Vocabulary:
    """Follow the inputs through all plans."""
    given = _positions(interface)
    count = sum(o.positions.numel() for o in given.values() if o.positions is not None)
    below, lowest = torch.full((count,), FREE), torch.full((count,), -FREE)
    sources, computed = [], []
    for variant, (request, candidate) in zip(stages.variants, weights.arguments, strict=True):
        followed = _Followed(below, lowest)
        made = followed.stage(variant.request, "context", _given(request, "context", given, {}))
        state = dict(zip(variant.state, made, strict=False))
        followed.stage(variant.candidate, "candidate", _given(candidate, "candidate", given, state))
        sources.append(followed.sources)
        computed.append(followed.computed)
    known = {n: o.positions.flatten() for n, o in given.items() if o.positions is not None}
    known = {n: p for n, p in known.items() if bool((below[p] != FREE).any())}
    return Vocabulary(
        {n: below[p] for n, p in known.items()}, {n: lowest[p] for n, p in known.items()}, sources, computed
    )


def _positions(interface: Interface) -> dict[str, Origin]:
    """One row of every input, its values numbered on from those of the input before; of bags, one value."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for spec in interface.inputs.values():
        if spec.role == "packed":
            shapes[f"{spec.name}.context"] = spec.name, (len(spec.columns),)
            shapes[f"{spec.name}.candidate"] = spec.name, (len(spec.candidate_columns),)
        elif spec.bags:
            shapes |= {f"{spec.name}.values_{i}": (c.name, c.shape) for i, c in enumerate(spec.bags)}
        else:
            shapes[spec.name] = spec.name, spec.shape
    made, start = {}, 0
    for stage, (name, shape) in shapes.items():
        end = start + math.prod(shape)
        made[stage] = Origin(frozenset({name}), torch.arange(start, end).reshape(1, *shape))
        start = end
    return made


def _given(arguments: Sequence[Argument], side: str, inputs: dict[str, Origin], state: dict[int, Any]) -> list[Any]:
    """What stands for a stage's arguments."""
    named = [inputs.get(x, inputs.get(f"{x}.{side}")) if isinstance(x, str) else x for x in arguments]
    return [state.get(x) if isinstance(x, int) else x for x in named]


class _Followed:
    """Stages followed one after the other for one row; the bounds of positions are lowered on the way."""

    def __init__(self, below: Tensor, lowest: Tensor) -> None:
        self.below, self.lowest = below, lowest
        self.computed: dict[str, dict[str, str]] = {"context": {}, "candidate": {}}
        self.sources: dict[str, dict[str, list[str]]] = {"context": {}, "candidate": {}}

    def stage(self, stage: Stage, side: str, given: list[Any]) -> list[Any]:
        """What stands for a stage's results."""
        placeholders = iter([1, None, None, *given])  # rows, owner, offsets
        values: dict[fx.Node, Any] = {}
        results: list[Any] = []
        for node in stage.module.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(placeholders)
            elif node.op == "call_function":
                values[node] = _moved(node, values)
                if node.target in LOOKUPS:
                    self._lookup(node, side, values)
            elif node.op == "output":
                results = [values.get(result) for result in node.args[0]]
        return results

    def _lookup(self, node: fx.Node, side: str, values: dict[fx.Node, Any]) -> None:
        """Bound the positions that index a table; a lookup by anything else of a call is guarded."""
        args = fx.node.map_arg(node.args, values.get)
        ids = [at(args, path) for path in paths(node.target, node.args)]
        origins = [x for x in ids if isinstance(x, Origin)]
        if not origins:
            return
        self.sources[side][node.name] = names = sorted(frozenset().union(*(o.inputs for o in origins)))
        sizes = args[3] if node.target is kernels.read_tables else args[0]
        known = node.target is aten.one_hot.default or isinstance(sizes, Tensor)
        found = list(uses(node.target, fx.node.map_arg(node.args, lambda n: _plain(values.get(n))))) if known else []
        bounded = [self._bounded(at(args, use.path), use) for use in found]
        if not all(bounded) or len(found) < len(ids):
            self.computed[side][node.name] = computed_from(names, found)

    def _bounded(self, ids: Any, use: Use) -> bool:
        """Whether ids are an input's, and bounded now."""
        if not isinstance(ids, Origin) or ids.positions is None:
            return isinstance(ids, Tensor)
        sizes = torch.as_tensor(use.size).expand(ids.positions.shape)
        inside = ids.positions >= 0
        at_least = -sizes if use.wrap else torch.zeros_like(sizes)
        self.below.scatter_reduce_(0, ids.positions[inside], sizes[inside], "amin")
        self.lowest.scatter_reduce_(0, ids.positions[inside], at_least[inside], "amax")
        return bool(inside.all()) and not ids.floored


def computed_from(names: Sequence[str], found: Sequence[Use]) -> str:
    """What is wrong where a model computes an id that its table does not have."""
    one = found[0] if len(found) == 1 and isinstance(found[0].size, int) else None
    expected = f", expected {-one.size if one.wrap else 0} to {one.size - 1}" if one else ""
    return f"an id that the model computes from {_named(names)} is outside of its table{expected}"


def _named(names: Sequence[str]) -> str:
    """Inputs in a message."""
    return f"input{'s' if len(names) > 1 else ''} {' and '.join(map(repr, names)) or 'none'}"


def _moved(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """What stands for a result: a size that is computed, or where its values come from."""
    given = [values.get(n) for n in node.all_input_nodes]
    if node.target is operator.mul and all(isinstance(a, int) for a in given):
        return node.target(*fx.node.map_arg(node.args, values.get))
    origins = [a for a in given if isinstance(a, Origin)]
    if not origins:
        return None
    inputs = frozenset().union(*(o.inputs for o in origins))
    floored = any(o.floored for o in origins)
    if node.target in KEEPS:
        return given[0]
    if node.target is aten.floor.default:
        return replace(origins[0], floored=True)
    return Origin(inputs, _positions_after(node, values) if node.target in MOVES else None, floored)


def _positions_after(node: fx.Node, values: dict[fx.Node, Any]) -> Tensor | None:
    """The positions after an operator that only moves values; None where it does not take one row."""
    moved, *others = node.args
    parts = [values.get(n) for n in moved] if isinstance(moved, list | tuple) else [values.get(moved)]  # type: ignore
    known = [p.positions for p in parts if isinstance(p, Origin) and p.positions is not None]
    if node.target is aten.stack.default and known:  # all have one shape
        parts = [p if isinstance(p, Origin) and p.positions is not None else known[0] for p in parts]
    if not all(isinstance(p, Tensor) or (isinstance(p, Origin) and p.positions is not None) for p in parts):
        return None
    own = [p.positions if isinstance(p, Origin) else torch.full(p.shape, NOBODY) for p in parts]  # type: ignore
    if any(not isinstance(values.get(n), int | Tensor) for n in _nodes(others, node.kwargs)):  # where a bag ends, say
        return None
    rest, named = fx.node.map_arg((others, dict(node.kwargs)), values.get)
    try:
        made = node.target(own if isinstance(moved, list | tuple) else own[0], *rest, **named)  # type: ignore[operator]
    except (RuntimeError, IndexError, TypeError):  # it does not take these sizes: one row, or integers
        return None
    return made if isinstance(made, Tensor) and made.numel() else None


def _nodes(*arguments: Any) -> list[fx.Node]:
    """All nodes among arguments."""
    found: list[fx.Node] = []
    fx.node.map_arg(arguments, found.append)
    return found


def _plain(value: Any) -> Any:
    return value.positions if isinstance(value, Origin) else value
