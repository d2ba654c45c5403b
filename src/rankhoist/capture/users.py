"""The inputs of an exported graph: what the user calls them, which are context, and the symbol of their rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch import fx

from rankhoist.capture.bags import JaggedCall
from rankhoist.capture.inputs import Constant, Context, InputSpec, constants_in
from rankhoist.capture.sides import mark_sides
from rankhoist.capture.varying import lengths, varying
from rankhoist.errors import CaptureError, ContextError, UnusedInputWarning


@dataclass(frozen=True)
class Users:
    """See `Program`; `nodes` are the placeholders of all inputs, but of constants."""

    nodes: list[fx.Node]
    rows: sympy.Symbol
    inputs: dict[str, InputSpec]
    constants: tuple[Constant, ...]
    lengths: dict[sympy.Symbol, int] = field(default_factory=dict)
    bags: dict[str, str] = field(default_factory=dict)


def plain_users(
    users: Sequence[fx.Node], example: Mapping[str, Any], ranges: Mapping[sympy.Symbol, Any], context: Context,
    item: Context | None,
) -> Users:  # fmt: skip
    """One tensor with rows on axis 0 each, or a constant, which is taken out of the graph; `ranges` of symbols."""
    names = list(example) or [node.name for node in users]
    if len(names) != len(users):
        raise CaptureError(f"the exported graph has {len(users)} inputs, the example {len(names)}: {', '.join(names)}")
    constants = constants_in({n: u.meta["val"] for n, u in zip(names, users, strict=True)})
    names = [n for n in names if all(n != c.name for c in constants)]
    for constant in constants:
        node = users[constant.place]
        node.graph.erase_node(node)  # nobody reads it: the export has put its value in its place
    users = [u for i, u in enumerate(users) if all(i != c.place for c in constants)]
    named = dict(zip(names, users, strict=True))
    rows = _row_symbol(named)
    found = lengths([u.meta["val"] for u in users], rows)
    specs = mark_sides({n: _row(u, example.get(n)) for n, u in named.items()}, context, item)
    specs = [replace(s, varying=varying(s.name, u.meta["val"], ranges)) for s, u in zip(specs, users, strict=True)]
    for spec, node in zip(specs, users, strict=True):
        _check_varying(spec, specs)
        _warn_unread(spec, [node])
    return Users(users, rows, {u.name: s for u, s in zip(users, specs, strict=True)}, constants, found)


def jagged_users(users: Sequence[fx.Node], jagged: JaggedCall, context: Context, item: Context | None) -> Users:
    """Some of them jagged: their lengths have rows, their columns have not."""
    groups = jagged.groups(users)
    rows = _row_symbol({name: nodes[0] for name, nodes in groups.items()})
    shapes = {name: _row(nodes[0]) for name, nodes in groups.items()}
    inputs, bags = dict[str, InputSpec](), dict[str, str]()
    for spec in mark_sides(shapes, context, item, jagged.aliases):
        nodes, columns = groups[spec.name], jagged.columns(spec.name)
        _warn_unread(spec, nodes)
        if columns and spec.item:
            raise ContextError(
                f"input {spec.name!r} is jagged and marked as the item's: a store keeps no bags; leave it out of item, "
                "and it is pooled once per candidate"
            )
        if columns:
            spec = replace(spec, dtype=columns[0].dtype, bags=columns)
            bags |= {n.name: nodes[0].name + leaf for n, leaf in zip(nodes, spec.leaves(spec.role), strict=True)}
        inputs[nodes[0].name] = spec
    return Users(list(users), rows, inputs, jagged.constants, bags=bags)


def _row(node: fx.Node, example: Any = None) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape of one row, an axis that varies as the example has it, and dtype."""
    value = node.meta["val"]
    own = value.shape if example is None else example.shape
    return tuple(s.node.hint if isinstance(s, torch.SymInt) else s for s in own[1:]), value.dtype


def _check_varying(spec: InputSpec, specs: Sequence[InputSpec]) -> None:
    """That a length is the context's, so that the request stage knows it, and no store has to."""
    of_context = {v.length for s in specs if s.role == "context" for v in s.varying}
    for own in spec.varying:
        where = f"axis {own.axis} of input {spec.name!r} varies"
        if own.length not in of_context:
            raise CaptureError(
                f"{where}, and the input is {spec.role}: an axis varies with an input of the context, as a history "
                "does. Pad it to one length"
            )
        if any(s.item or s.item_columns for s in specs):
            raise CaptureError(f"{where}, which a store of items cannot have yet: leave item out, or pad to one length")


def _warn_unread(spec: InputSpec, nodes: Sequence[fx.Node]) -> None:
    if spec.role == "context" and not any(node.users for node in nodes):
        warnings.warn(f"context input {spec.name!r} is never read by the model", UnusedInputWarning, stacklevel=5)


def _row_symbol(users: Mapping[str, fx.Node]) -> sympy.Symbol:
    symbols: dict[str, Any] = {}
    for name, node in users.items():
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor) or value.dim() == 0 or not isinstance(value.shape[0], torch.SymInt):
            shape = list(value.shape) if isinstance(value, torch.Tensor) else value
            raise CaptureError(
                f"input {name!r} has shape {shape}: axis 0 must be a symbolic row count (dynamic_shapes). Hoist the "
                "module itself, or export it with rows = torch.export.Dim('rows') in dynamic_shapes={name: {0: rows}}"
            )
        symbols[name] = value.shape[0].node.expr
    if len(set(symbols.values())) != 1:
        raise CaptureError(f"the inputs' row counts are different symbols: {symbols}; export them with one shared Dim")
    symbol = next(iter(symbols.values()))
    if not isinstance(symbol, sympy.Symbol):
        raise CaptureError(f"the row count is {symbol}, expected one symbol")
    return symbol
