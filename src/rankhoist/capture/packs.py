"""Jagged inputs as models take them: several plain tensors of a call, or one container with bags by key.

A container is any type that is registered with torch's pytrees and has leaves `_values` and `_lengths` or `_offsets`,
as the `KeyedJaggedTensor` and `JaggedTensor` of torchrec: nothing of it is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rankhoist.capture.inputs import Split
from rankhoist.capture.jagged import Jagged
from rankhoist.errors import InputError

KINDS = ("lengths", "offsets", "ends")  # of what stands beside values: `[rows]`, `[rows]`, `[rows + 1]`
OTHERS = ("_stride_per_key_per_rank", "_inverse_indices")  # leaves of a container that have to be empty


@dataclass(frozen=True)
class Pack:
    """Leaves of a call that are made of jagged inputs.

    Attributes:
        places: where they stand among the leaves of a call: columns and lengths or offsets, or the container.
        inputs: the names of the jagged inputs.
        names: of the leaves.
        kind: one of `KINDS`, or the type of a container: `module.Name`.
        keys: of the bags in a container; one container may be one jagged input without a key.
        fields: the names of a container's leaves, in order.
    """

    places: tuple[int, ...]
    inputs: tuple[str, ...]
    names: tuple[str, ...]
    kind: str
    keys: tuple[str, ...] | None = None
    fields: tuple[str, ...] = ()

    def leaves(self, given: Mapping[str, Jagged]) -> list[Any]:
        """What a call has at `places`, of its jagged inputs by name."""
        bags = [given[name] for name in self.inputs]
        if self.kind not in KINDS:
            return [self._container(bags)]
        lengths = bags[0].lengths
        ends = lengths.cumsum(0)
        if self.kind == "ends":
            return [*bags[0].values, torch.cat([ends.new_zeros(1), ends])]
        return [*bags[0].values, lengths if self.kind == "lengths" else ends - lengths]

    def _container(self, bags: Sequence[Jagged]) -> Any:
        kind = next((k for k in pytree.SUPPORTED_NODES if _name(k) == self.kind), None)
        if kind is None:
            raise InputError(f"the model takes a {self.kind}: import the module that defines it")
        columns = [torch.cat(column) for column in zip(*(b.values for b in bags), strict=True)]
        found = dict(zip(("_values", "_weights"), columns, strict=False))
        found["_lengths"] = torch.cat([b.lengths for b in bags])
        context = None if self.keys is None else list(self.keys)
        return pytree.SUPPORTED_NODES[kind].unflatten_fn([found.get(f) for f in self.fields], context)


def packed(leaves: Mapping[str, Any], packs: Sequence[Pack]) -> dict[str, Any]:
    """Inputs by name, with values and lengths (or offsets) that stand apart as jagged inputs.

    Raises:
        InputError: they do not fit.
    """
    made = dict(leaves)
    for pack in packs:
        if pack.kind not in KINDS or not all(isinstance(made.get(name), Tensor) for name in pack.names):
            continue
        *values, bounds = (made.pop(name) for name in pack.names)
        try:
            if pack.kind == "lengths":
                bags = Jagged(*values, lengths=bounds)
            else:
                bags = _between(values, bounds, ends=pack.kind == "ends")
        except InputError as error:
            raise InputError(f"jagged input {pack.inputs[0]!r}: {error}") from error
        made[pack.inputs[0]] = bags
    return made


def joined(given: Mapping[str, Any], packs: Sequence[Pack]) -> dict[str, Any]:
    """Inputs by name, with bags of several columns in place of bags that are one column each, by its name.

    Raises:
        InputError: they are cut otherwise, or a column is missing.
    """
    made = dict(given)
    for pack in packs:
        own = {name: made.pop(name) for name in pack.names[:-1] if isinstance(made.get(name), Jagged)}
        if not own:
            continue
        (first, bags), *others = own.items()
        for name, other in others:
            if not torch.equal(other.lengths, bags.lengths):
                raise InputError(f"{first!r} and {name!r} are columns of one jagged input and have different lengths")
        values = [column for column_bags in own.values() for column in column_bags.values]
        if len(values) != len(pack.names) - 1:
            raise InputError(f"jagged input {pack.inputs[0]!r} has the columns {', '.join(pack.names[:-1])}")
        made[pack.inputs[0]] = Jagged.of(values, bags.lengths)
    return made


def apart(given: Mapping[str, Any], packs: Sequence[Pack]) -> dict[str, Any]:
    """Arguments by name as the model takes them: values and lengths (or offsets) in place of bags."""
    made = joined(given, packs)
    for pack in packs:
        if pack.kind in KINDS and isinstance(made.get(pack.inputs[0]), Jagged):
            made |= dict(zip(pack.names, pack.leaves(made), strict=True))
    return made


def _between(values: Sequence[Tensor], offsets: Tensor, ends: bool) -> Jagged:
    """The bags between offsets; with the ends among them, the last must be the number of values."""
    if ends and (not offsets.numel() or int(offsets[-1]) != len(values[0])):
        raise InputError(f"the last of its offsets [rows + 1] is not {len(values[0])}, the number of values")
    return Jagged(*values, offsets=offsets[:-1] if ends else offsets)


# -- containers


def is_container(value: Any) -> bool:
    """Whether it holds bags by key."""
    return hasattr(value, "_values") and hasattr(value, "_lengths") and type(value) in pytree.SUPPORTED_NODES


def opened(arguments: Any) -> Any:
    """Arguments with a dict of jagged inputs by key, or one of them, in place of every container."""
    return pytree.tree_map(_open, arguments, is_leaf=_closed)


def _closed(value: Any) -> bool:
    return isinstance(value, Split) or is_container(value)


def _open(value: Any) -> Any:
    if isinstance(value, Split):
        sides = [_open(value.context), _open(value.candidate)]
        return sides[0] | sides[1] if all(isinstance(s, dict) for s in sides) else value
    if not is_container(value):
        return value
    fields, keys = fields_of(value)
    columns = [fields[n] for n in ("_values", "_weights") if fields.get(n) is not None]
    lengths = fields["_lengths"]
    if lengths is None:
        lengths = fields["_offsets"].diff()
    if keys is None:
        return Jagged(*columns, lengths=lengths)
    whole, rows = Jagged(*columns, lengths=lengths), _rows_by_key(fields, len(keys), len(lengths))
    by_key = whole.lengths.split(rows)
    totals = whole.lengths.view(len(keys), -1).sum(1).tolist() if len({*rows}) == 1 else [int(x.sum()) for x in by_key]
    parts = zip(*(column.split(totals) for column in columns), strict=True)
    return {key: Jagged.of(own, x) for key, own, x in zip(keys, parts, by_key, strict=True)}


def _rows_by_key(fields: Mapping[str, Any], keys: int, bags: int) -> list[int]:
    """How many rows each key has: the same, unless the container says otherwise."""
    if fields.get("_inverse_indices") is not None:
        raise InputError("inverse indices of a jagged container are not supported: pass the bags of every row")
    strides = fields.get("_stride_per_key_per_rank")
    if strides is None:
        return [bags // max(keys, 1)] * keys
    return [int(row.sum()) for row in torch.as_tensor(strides)]


def fields_of(container: Any) -> tuple[dict[str, Any], list[str] | None]:
    """Its leaves by name, and its keys if it has any."""
    node = pytree.SUPPORTED_NODES[type(container)]
    if node.flatten_with_keys_fn is None:
        raise InputError(f"the leaves of {type(container).__name__} have no names")
    leaves, context = node.flatten_with_keys_fn(container)
    return {str(getattr(key, "name", key)): leaf for key, leaf in leaves}, context


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def pack_of(container: Any, place: int, names: Mapping[str, str] | str) -> Pack:
    """How a container is made of its jagged inputs: `names` by key, or the name of the only one."""
    fields, keys = fields_of(container)
    inputs = (names,) if isinstance(names, str) else tuple(names[k] for k in keys or ())
    held = None if isinstance(names, str) else tuple(keys or ())
    return Pack((place,), inputs, (), _name(type(container)), held, tuple(fields))
