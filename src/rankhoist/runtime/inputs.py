"""The inputs of a call: sorted by side, and checked for kinds, dtypes, shapes and row counts."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankhoist.arguments import as_a_tensor
from rankhoist.capture import Interface, Split, Varying
from rankhoist.capture.inputs import missing_inputs, named_leaves
from rankhoist.capture.jagged import Jagged, flat
from rankhoist.capture.packs import is_container, opened, packed
from rankhoist.errors import BackendError, ExportWarning, InputError
from rankhoist.runtime.rows import Row, bags_of, in_own_width

VALUES = 13  # in bags to export with: not as many as there are rows
LENGTH = 17  # the same of axes that vary


class Given(NamedTuple):
    """A tensor as stages read it: its name there, what the user calls it, and what one row of it is.

    Of a jagged input it is a column, a row is one value, and `lengths` is the name of what cuts it into bags.
    """

    stage: str
    name: str
    row: Row
    lengths: str = ""


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
            bags = tuple(Row(self._own(c.dtype), torch.Size(c.shape)) for c in spec.bags)
            for side, _, columns in {*spec.parts, *spec.parts_with_store}:
                shape = torch.Size(spec.shape if columns is None else [len(columns)])
                expected[side][name] = Row(self._own(spec.dtype), shape, bags, spec.varying)
        return {side: {name: rows[name] for name in self._specs if name in rows} for side, rows in expected.items()}

    def _own(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of an input, which moves with the model where it was the model's."""
        return self.dtype if dtype == self.interface.dtype else dtype

    def refuse(self, how: str, *, varying: bool = True) -> None:
        """Refuse what can run no model of jagged inputs and, if it is `varying` that it cannot, none of any length.

        Raises:
            BackendError: an axis varies, or an input is jagged; says which.
        """
        for spec in self._specs.values():
            if spec.varying and varying:
                found = f"axis that varies, as axis {spec.varying[0].axis} of {spec.name!r} does"
            elif spec.bags:
                found = f"jagged input, as {spec.name!r} is"
            else:
                continue
            raise BackendError(f"{how} takes no {found}: backend 'eager' and saved files do")

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
        """One side's inputs by name, of a mapping, which may be of all sides, or of a sequence in order.

        Raises:
            InputError: one is missing, there is another number of them, or one of a name that the model has not.
        """
        names = list(self.expected[side])
        if self.interface.jagged:
            inputs = self._bags_of_side(inputs)
        if not isinstance(inputs, Mapping):
            values = [inputs] if isinstance(inputs, Tensor | Jagged) else inputs
            if not isinstance(values, Sequence):
                kind, advice = type(inputs).__name__, as_a_tensor(inputs)
                raise InputError(f"{side} inputs are {kind}, expected {{name: tensor}} or a list in order{advice}")
            if len(values) != len(names):
                raise InputError(f"expected {len(names)} {side} inputs ({', '.join(names)}), got {len(values)}")
            return dict(zip(names, values, strict=True))
        if len(inputs) == len(names) and all(isinstance(inputs.get(n), Tensor) for n in names):
            return {n: inputs[n] for n in names}  # no containers, which take a while to open
        leaves = {self._named(path): leaf for path, leaf in named_leaves({"inputs": dict(inputs)}).items()}
        missing = [n for n in names if n not in leaves]
        if missing:
            raise missing_inputs(missing, leaves, f"{side} inputs", inputs)
        own = {n: x for n, x in leaves.items() if n in names or n not in self._specs}
        if len(own) > len(names):
            self.interface.check_others(own, own, names, f"{side} inputs")
        return {n: leaves[n] for n in names}

    def _named(self, path: str) -> str:
        """The input at a path: its key alone, where that is its name."""
        key = path.partition(".")[2]
        return key if path not in self._specs and key in self._specs else path

    def _bags_of_side(self, inputs: Any) -> Any:
        """One side's inputs without containers, and with values and lengths that stand apart as jagged inputs."""
        if is_container(inputs):
            inputs = {"": inputs}
        if not isinstance(inputs, Mapping):
            return inputs if isinstance(inputs, Tensor | Jagged) else [x for v in inputs for x in _each(opened(v))]
        apart: dict[str, Any] = {}
        for name, value in inputs.items():
            inside = opened(value)
            if isinstance(inside, dict) and is_container(value):
                apart |= {key if key in self._specs else f"{name}.{key}": bags for key, bags in inside.items()}
            else:
                apart[name] = inside
        return packed(named_leaves({"inputs": apart}), self.interface.packs)

    def accept(self, side: str, inputs: dict[str, Any]) -> int:
        """Check the inputs of one side, and count their rows; without inputs that is one request, and no candidate.

        Whole numbers of another width are replaced by those that the graph was captured with: what it makes of them
        would overflow elsewhere.

        Raises:
            InputError: an input has the wrong kind, dtype or shape, or two have different row counts.
        """
        rows, same = -1, True
        for name, tensor in inputs.items():
            row = self.expected[side][name]
            given: Sequence[int] = tensor.shape if isinstance(tensor, Tensor) else ()
            if row.bags:
                inputs[name] = bags = bags_of(name, tensor, side, row)
                given = bags.shape
            elif (
                not given
                or not (given[1:] == row.shape or row.fits(given[1:]))
                or tensor.dtype != row.dtype
                or (tensor.is_meta and self.device.type != "meta")
            ):
                inputs[name] = in_own_width(name, tensor, side, row)
            same = same and rows in (-1, given[0])
            rows = given[0]
        if not same:
            listing = ", ".join(f"{name}: {tensor.shape[0]}" for name, tensor in inputs.items())
            raise InputError(f"the {side} inputs have different row counts ({listing})")
        if self.interface.varying:
            self._check_lengths(side, inputs)
        return rows if rows >= 0 else int(side == "context")

    def _check_lengths(self, side: str, inputs: Mapping[str, Any]) -> None:
        """That axes of one length have it."""
        found: dict[str, dict[str, int]] = {}
        for name in inputs:
            for v in self.expected[side][name].varying:
                found.setdefault(v.length, {})[f"axis {v.axis} of {name!r}"] = inputs[name].shape[v.axis]
        for sizes in found.values():
            one_length(sizes, f"{side} inputs")

    @cached_property
    def lengths(self) -> dict[str, list[tuple[str, Varying]]]:
        """By length that varies, the inputs of the context that have it, and where."""
        found: dict[str, list[tuple[str, Varying]]] = {}
        for name, row in self.expected["context"].items():
            for own in row.varying:
                found.setdefault(own.length, []).append((name, own))
        return found

    @cached_property
    def events(self) -> dict[tuple[str, str], Row]:
        """By length and input, what a row of positions is that make it longer by any number of them."""
        return {
            (length, name): row._replace(
                varying=tuple(replace(v, low=1, high=None) if v == axis else v for v in row.varying)
            )
            for length, own in self.lengths.items()
            for name, axis in own
            for row in [self.expected["context"][name]]
        }

    def stage_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Tensors by the names that stages read."""
        return flat(inputs) if self.interface.jagged else inputs

    @cached_property
    def tensors(self) -> dict[str, dict[str, Given]]:
        """What is known of every tensor that stages read, side by side."""
        return {
            side: {given.stage: given for name, row in rows.items() for given in self._given(name, row)}
            for side, rows in self.expected.items()
        }

    def _given(self, name: str, row: Row) -> list[Given]:
        if not row.bags:
            return [Given(name, name, row)]
        columns = zip(self._specs[name].bags, row.bags, strict=True)
        return [Given(f"{name}.values_{i}", c.name, own, f"{name}.lengths") for i, (c, own) in enumerate(columns)]

    def several(self, side: str, rows: int) -> dict[str, Tensor]:
        """Tensors that stages read, of so many made-up rows, with values in bags: of every input another number. Axes
        that vary have other lengths, too.
        """
        made = self.made_up(side, rows, self._lengths_apart)
        for number, (name, bags) in enumerate((n, x) for n, x in made.items() if isinstance(x, Jagged)):
            columns = [v.new_zeros(VALUES + number, *v.shape[1:]) for v in bags.values]
            lengths = torch.zeros_like(bags.lengths)
            lengths[0] = VALUES + number
            made[name] = Jagged.of(columns, lengths)
        return self.stage_inputs(made)

    @property
    def exported(self) -> Inputs:
        """The same for exported stages, where axes that vary have one position at least: of none, a runtime's own mean
        is 0 and no NaN, and not every operator takes it. If the model takes none, a `ExportWarning` says so.
        """
        own = self.interface.inputs
        if empty := [n for n, s in own.items() if any(v.low == 0 for v in s.varying)]:
            told = f"exported, it takes one position and more of {', '.join(empty)}; the hoisted model takes none, too"
            warnings.warn(told, ExportWarning, stacklevel=3)
        specs = {n: replace(s, varying=tuple(replace(v, low=max(v.low, 1)) for v in s.varying)) for n, s in own.items()}
        return Inputs(replace(self.interface, inputs=specs), self.dtype, self.device)

    @cached_property
    def _lengths_apart(self) -> dict[str, int]:
        """Of axes that vary, by length, one that no other axis has, where bounds let it."""
        found = {v.length: v for spec in self._specs.values() for v in spec.varying}
        wanted = enumerate(found.items(), LENGTH)
        return {name: max(v.low, n if v.high is None else min(n, v.high), 2) for n, (name, v) in wanted}

    def _made_up_bags(self, name: str, bags: Sequence[Row], rows: int) -> Jagged:
        none = Jagged.of([torch.zeros(0, *b.shape, dtype=b.dtype) for b in bags], torch.zeros(1, dtype=torch.int64))
        rows_of = self.interface.example.get(name, none)
        chosen = rows_of[torch.arange(rows) % len(rows_of)]
        columns = [v.to(self.device, b.dtype) for v, b in zip(chosen.values, bags, strict=True)]
        return Jagged.of(columns, chosen.lengths.to(self.device))

    @cached_property
    def other_lengths(self) -> dict[str, int]:
        """Of axes that vary, by length, another one than the example's."""
        found = {v.length: (v, spec.shape[v.axis - 1]) for spec in self._specs.values() for v in spec.varying}
        return {name: size + 1 if v.holds(size + 1) else size - 1 for name, (v, size) in found.items()}

    def made_up(self, side: str, rows: int, lengths: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Rows of one side: the example's, in turn; zeros where there is no example. Axes that vary have the example's
        length, or another one of `lengths`.
        """
        made = {}
        for name, (dtype, shape, bags, _) in self.expected[side].items():
            spec = self._specs[name]
            if bags:
                made[name] = self._made_up_bags(name, bags, rows)
                continue
            rows_of = self.interface.example.get(name, torch.zeros(1, *shape))
            own = next(p.columns for p in (*spec.parts, *spec.parts_with_store) if p.side == side)
            if own is not None and name in self.interface.example:
                rows_of = rows_of[:, list(own)]
            for axis, size in () if lengths is None else [(v.axis, lengths[v.length]) for v in spec.varying]:
                rows_of = rows_of.index_select(axis, torch.arange(size) % rows_of.shape[axis])
            made[name] = rows_of[torch.arange(rows) % len(rows_of)].to(self.device, dtype)
        return made


def _each(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else [value]


def one_length(sizes: Mapping[str, int], what: str) -> int:
    """The length that axes have, by where each is.

    Raises:
        InputError: they have several.
    """
    if len({*sizes.values()}) > 1:
        listing = ", ".join(f"{where}: {size}" for where, size in sizes.items())
        raise InputError(f"the {what} have different lengths ({listing}), which have to be one")
    return next(iter(sizes.values()))
