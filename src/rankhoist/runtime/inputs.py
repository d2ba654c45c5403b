"""The inputs of a call: sorted by side, and checked for kinds, dtypes, shapes and row counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankhoist.capture import Interface, Split
from rankhoist.capture.inputs import named_leaves
from rankhoist.errors import InputError


class Row(NamedTuple):
    """What one row of an input is."""

    dtype: torch.dtype
    shape: torch.Size


class Inputs:
    """What a model takes that computes in `dtype`, on `device`.

    Its two sides are `context`, with one row per request, and `candidate`; a packed input is one of each. Where items
    have a store, a candidate has two sides: `item`, with one row per item of the store, and `pair`.

    Attributes:
        expected: side -> input -> its row.
    """

    def __init__(self, interface: Interface, dtype: torch.dtype, device: torch.device) -> None:
        self.interface, self.dtype, self.device = interface, dtype, device
        self._specs = {spec.name: spec for spec in interface.inputs.values()}
        self._roles = [(spec.name, spec.role) for spec in self._specs.values()]
        self.expected = self._expected()

    def _expected(self) -> dict[str, dict[str, Row]]:
        expected: dict[str, dict[str, Row]] = {"context": {}, "candidate": {}, "item": {}, "pair": {}}
        for name, spec in self._specs.items():
            dtype = self.dtype if spec.dtype == self.interface.dtype else spec.dtype
            for side, _, columns in {*spec.parts, *spec.parts_with_store}:
                expected[side][name] = Row(dtype, torch.Size(spec.shape if columns is None else [len(columns)]))
        return {side: {name: rows[name] for name in self._specs if name in rows} for side, rows in expected.items()}

    def of_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Context and candidate inputs by name, of a call's arguments.

        Raises:
            InputError: one is missing, or a packed input is not given in its two parts.
        """
        leaves = self.interface.leaves(args, kwargs)
        context, candidate = {}, {}
        for name, role in self._roles:
            value = leaves[name]
            if role == "context":
                context[name] = value
            elif role == "candidate":
                candidate[name] = value
            elif isinstance(value, Split):
                context[name], candidate[name] = value.context, value.candidate
            else:
                spec = self._specs[name]
                raise InputError(
                    f"packed input {name!r} is given as rankhoist.Split(context=[R, {len(spec.columns)}], "
                    f"candidate=[N, {len(spec.candidate_columns)}]), got {type(value).__name__}"
                )
        return context, candidate

    def of_side(self, side: str, inputs: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
        """One side's inputs by name, of a mapping or of a sequence in order.

        Raises:
            InputError: one is missing, or there is another number of them.
        """
        names = list(self.expected[side])
        if not isinstance(inputs, Mapping):
            values = [inputs] if isinstance(inputs, Tensor) else list(inputs)
            if len(values) != len(names):
                raise InputError(f"expected {len(names)} {side} inputs ({', '.join(names)}), got {len(values)}")
            return dict(zip(names, values, strict=True))
        leaves = named_leaves({"inputs": dict(inputs)})
        missing = [n for n in names if n not in leaves]
        if missing:
            raise InputError(f"missing {side} inputs: {', '.join(missing)}; got {', '.join(leaves) or 'none'}")
        return {n: leaves[n] for n in names}

    def rows(self, side: str, inputs: Mapping[str, Any]) -> int:
        """The row count of one side; without inputs that is one request, and no candidate.

        Raises:
            InputError: an input has the wrong kind, dtype or shape, or two have different row counts.
        """
        rows, same = -1, True
        for name, tensor in inputs.items():
            row = self.expected[side][name]
            given: Sequence[int] = tensor.shape if isinstance(tensor, Tensor) else ()
            if not given or given[1:] != row.shape or tensor.dtype != row.dtype:
                _explain(name, tensor, side, row)
            same = same and rows in (-1, given[0])
            rows = given[0]
        if not same:
            listing = ", ".join(f"{name}: {tensor.shape[0]}" for name, tensor in inputs.items())
            raise InputError(f"the {side} inputs have different row counts ({listing})")
        return rows if rows >= 0 else int(side == "context")

    def made_up(self, side: str, rows: int) -> dict[str, Tensor]:
        """Rows of one side: the example's, in turn; zeros where there is no example."""
        made = {}
        for name, (dtype, shape) in self.expected[side].items():
            rows_of = self.interface.example.get(name, torch.zeros(1, *shape))
            spec = self._specs[name]
            own = next(p.columns for p in (*spec.parts, *spec.parts_with_store) if p.side == side)
            if own is not None and name in self.interface.example:
                rows_of = rows_of[:, list(own)]
            made[name] = rows_of[torch.arange(rows) % len(rows_of)].to(self.device, dtype)
        return made


def _explain(name: str, tensor: Any, side: str, row: Row) -> None:
    """Raise what is wrong with an input; integers of another width are fine."""
    if not isinstance(tensor, Tensor):
        raise InputError(f"{side} input {name!r} is {type(tensor).__name__}, expected a tensor")
    if tensor.dim() == 0 or tensor.shape[1:] != row.shape:
        expected = ", ".join(["rows", *map(str, row.shape)])
        raise InputError(f"{side} input {name!r} has shape {list(tensor.shape)}, expected [{expected}]")
    floating = row.dtype.is_floating_point or tensor.is_floating_point()
    if floating or torch.bool in (row.dtype, tensor.dtype):
        raise InputError(f"{side} input {name!r} has dtype {tensor.dtype}, expected {row.dtype}")
