"""A model with jagged inputs, exported: its inputs are plain tensors, values and lengths apart, whatever it takes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from rankhoist.arguments import mapping_of
from rankhoist.capture.export import MAX_ROWS, exported
from rankhoist.capture.inputs import CONSTANTS, Column, Constant, named_leaves, with_others
from rankhoist.capture.jagged import Jagged
from rankhoist.capture.packs import KINDS, Pack, is_container, opened, pack_of, packed
from rankhoist.errors import InputError

MODEL = "model"
BagNames = Mapping[str, "str | Mapping[str, str]"]


@dataclass(frozen=True)
class JaggedCall:
    """A call of a model with jagged inputs.

    Attributes:
        leaves: its inputs by name, what is no tensor too.
        packs: how leaves of the call are made of jagged ones.
        in_spec: the structure of the call, `(args, kwargs)`; a container is one leaf.
    """

    leaves: dict[str, Any]
    packs: tuple[Pack, ...]
    constants: tuple[Constant, ...]
    in_spec: pytree.TreeSpec

    @property
    def tensors(self) -> dict[str, Tensor | Jagged]:
        """Its inputs by name."""
        return {n: x for n, x in self.leaves.items() if not isinstance(x, CONSTANTS)}

    @property
    def aliases(self) -> dict[str, str]:
        """Names of plain tensors that belong to a jagged input -> its name."""
        plain = [p for p in self.packs if p.kind in KINDS]
        return {name: p.inputs[0] for p in plain for name in p.names if name != p.inputs[0]}

    def call(self, leaves: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments, from the inputs by name."""
        return call(self.in_spec, leaves, self.packs, self.constants)

    def export(
        self, model: nn.Module, bound: inspect.BoundArguments, training: bool = False
    ) -> torch.export.ExportedProgram:
        """With one symbolic number of rows, and one of values per jagged input.

        Raises:
            ExportError: `torch.export` refuses the model.
        """
        rows = torch.export.Dim("rows", min=2, max=MAX_ROWS)
        given, sizes = list[Tensor](), list[Any]()
        for i, leaf in enumerate(self.tensors.values()):
            own = leaf.repeat_interleave(3, 0) if len(leaf) == 1 else leaf.clone()
            if isinstance(own, Jagged):
                own, total = _several(own), torch.export.Dim(f"values_{i}", min=0)
                given += [own.lengths, *own.values]
                sizes += [{0: rows}, *({0: total} for _ in own.values)]
            else:
                given.append(own)
                sizes.append({0: rows})
        wrapped, dynamic = _Rebuilt(model, self), {"tensors": tuple(sizes)}
        program = exported(wrapped, model, tuple(given), {}, dynamic, self.leaves, bound, training)
        _rename(program.graph)
        return program

    def groups(self, users: Sequence[fx.Node]) -> dict[str, list[fx.Node]]:
        """The placeholders of every input: of a jagged one its lengths, then its columns."""
        rest, found = iter(users), {}
        for name, leaf in self.tensors.items():
            count = 1 + len(leaf.values) if isinstance(leaf, Jagged) else 1
            found[name] = [next(rest) for _ in range(count)]
        return found

    def columns(self, name: str) -> tuple[Column, ...]:
        """What a jagged input has of each value; none where it is not jagged."""
        bags = self.leaves[name]
        if not isinstance(bags, Jagged):
            return ()
        named = next((p.names[:-1] for p in self.packs if p.inputs == (name,) and p.kind in KINDS), None)
        names = named or (name, f"{name}.weights")[: len(bags.values)]
        return tuple(Column(n, tuple(v.shape[1:]), v.dtype) for n, v in zip(names, bags.values, strict=True))


def call(
    in_spec: pytree.TreeSpec, leaves: Mapping[str, Any], packs: Sequence[Pack], constants: Sequence[Constant]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call, from its inputs by name, in order."""
    packed = {name for pack in packs for name in pack.inputs}
    others: dict[int, Any] = {c.place: c.value for c in constants}
    for pack in packs:
        others |= dict(zip(pack.places, pack.leaves(leaves), strict=True))
    fixed = {c.name for c in constants}
    own = [x for name, x in leaves.items() if name not in packed and name not in fixed]
    args, kwargs = pytree.tree_unflatten(with_others(own, others), in_spec)
    return args, kwargs


class _Rebuilt(nn.Module):
    """The model, called with plain tensors: `jagged` knows how its own call is made of them."""

    def __init__(self, model: nn.Module, jagged: JaggedCall) -> None:
        super().__init__()
        self.model, self.jagged = model, jagged
        self.training = model.training  # every module stays in the mode that it is in

    def forward(self, *tensors: Tensor) -> Any:
        rest, leaves, rows = iter(tensors), dict[str, Any](), tensors[0].shape[0]
        for name, leaf in self.jagged.leaves.items():
            if isinstance(leaf, Jagged):
                lengths = next(rest)
                torch._check(lengths.shape[0] == rows)  # one symbol, whatever the model makes of sums of them
                leaves[name] = Jagged.of([next(rest) for _ in leaf.values], lengths)
            else:
                leaves[name] = leaf if isinstance(leaf, CONSTANTS) else next(rest)
        args, kwargs = self.jagged.call(leaves)
        return self.model(*args, **kwargs)


def _several(bags: Jagged) -> Jagged:
    """With two values at least: a size of one would be taken for a constant."""
    if len(bags.values[0]) > 1:
        return bags
    lengths = torch.zeros_like(bags.lengths)
    lengths[0] = 2
    return Jagged.of([v.new_zeros(2, *v.shape[1:]) for v in bags.values], lengths)


def _rename(graph: fx.Graph) -> None:
    """Paths of modules as they are in the model."""
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            own = {k: (path.removeprefix(MODEL).removeprefix("."), kind) for k, (path, kind) in stack.items()}
            node.meta["nn_module_stack"] = dict(list(own.items())[1:])


# -- which inputs are jagged


def jagged_call(bound: inspect.BoundArguments, jagged: BagNames) -> JaggedCall | None:
    """A call with jagged inputs: containers, and those that are named in `jagged`; None where it has none.

    Raises:
        InputError: `jagged` names no input, or lengths or offsets do not fit the values.
    """
    structure = (tuple(bound.args), dict(bound.kwargs))
    flat, in_spec = pytree.tree_flatten(structure, is_leaf=is_container)
    if not jagged and not any(is_container(x) for x in flat):
        return None
    named = named_leaves(opened(bound.arguments))
    names, packs = iter(named), []
    places: dict[str, int] = {}
    for place, leaf in enumerate(flat):
        if is_container(leaf):
            packs.append(_of_container(leaf, place, names))
        else:
            places[next(names)] = place
    leaves, declared = declared_in(named, jagged, places)
    constants = tuple(Constant(n, places[n], x) for n, x in leaves.items() if isinstance(x, CONSTANTS))
    return JaggedCall(leaves, (*packs, *declared), constants, in_spec)


def _of_container(container: Any, place: int, names: Any) -> Pack:
    inside = opened(container)
    if isinstance(inside, Jagged):
        return pack_of(container, place, next(names))
    return pack_of(container, place, {key: next(names) for key in inside})


def declared_in(
    leaves: Mapping[str, Any], jagged: BagNames, places: Mapping[str, int]
) -> tuple[dict[str, Any], list[Pack]]:
    """Inputs by name, with those that `jagged` names together in place of their values.

    `jagged` says what cuts values into bags, `{values: offsets}` or `{values: {"lengths": lengths}}`; values with the
    same are columns of one input.
    """
    by_bounds: dict[tuple[str, str], list[str]] = {}
    for values, bounds in mapping_of(jagged, "jagged", "{values: offsets}").items():
        by_bounds.setdefault(_said(values, bounds), []).append(values)
    named = {*jagged, *(name for _, name in by_bounds)}
    unknown = sorted(n for n in named if not isinstance(leaves.get(n), Tensor))
    if unknown:
        raise InputError(f"jagged names {unknown[0]!r}, which is no tensor; the inputs are {', '.join(leaves)}")
    others = [x for n, x in leaves.items() if n not in named]
    rows = {len(x) for x in others if isinstance(x, Jagged) or (isinstance(x, Tensor) and x.dim())}
    made, packs, gone = dict(leaves), [], set[str]()
    for (kind, bounds), columns in by_bounds.items():
        if kind == "offsets" and rows == {len(leaves[bounds]) - 1}:
            kind = "ends"
        names = (*columns, bounds)
        pack = Pack(tuple(places[n] for n in names), (columns[0],), names, kind)
        made |= packed({n: leaves[n] for n in names}, [pack])
        gone |= {bounds, *columns[1:]}
        packs.append(pack)
    return {n: x for n, x in made.items() if n not in gone}, packs


def _said(values: Any, bounds: Any) -> tuple[str, str]:
    """`lengths` or `offsets`, and which input they are."""
    if isinstance(bounds, str):
        bounds = {"offsets": bounds}
    if not isinstance(bounds, Mapping) or len(bounds) != 1 or not {*bounds} <= {"lengths", "offsets"}:
        raise InputError(
            f"jagged={{{values!r}: {bounds!r}}} is neither {{values: offsets}} nor {{values: {{'lengths': lengths}}}}, "
            "names of inputs"
        )
    ((kind, name),) = bounds.items()
    return kind, name
