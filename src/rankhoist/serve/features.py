"""What a served model takes: features by name.

A feature is an input of the model, or one side of a packed one: `NAME.context` and `NAME.candidate`. Where the model
has a catalogue, candidates have ids of items, and what belongs to pairs: `NAME.pair` of a packed input. A column of a
jagged input is a feature, too, with a bag of values in every row (see `rankhoist.serve.bags`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rankhoist_client import v2
from rankhoist_client.refusal import RequestError
from torch import Tensor

from rankhoist.capture import InputSpec, Varying
from rankhoist.capture.varying import with_lengths
from rankhoist.runtime import HoistedModel
from rankhoist.runtime.datatypes import DATATYPES
from rankhoist.runtime.vocabulary import FREE
from rankhoist.serve import bags


class Given(NamedTuple):
    """A tensor of a request, for the metadata: its dtype, the shape of a row, and what is to be known of it."""

    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Feature:
    """`[R, *shape]` of a context feature, `[N, *shape]` of a candidate feature; -1 is an axis that varies.

    `bounds`: ids are less than that; one number, or one per value of a row; `None` where nothing is looked up.
    `names_items`: its values are ids of a catalogue, numbers or texts.
    `jagged`: a row is a bag of values, each of this shape, and so are the bounds; it is a column of its `input`.
    `varying`: its axes whose length is another in every request (see `rankhoist.serve.lengths`).
    """

    name: str
    input: str
    side: str
    datatype: str
    shape: tuple[int, ...]
    bounds: int | NDArray[np.int64] | None = None
    names_items: bool = False
    jagged: bool = False
    varying: tuple[Varying, ...] = ()

    @property
    def rows(self) -> str:
        """How many rows it has, in messages."""
        return "R" if self.side == "context" else "N"

    @property
    def tensor(self) -> str:
        """The tensor that holds its values."""
        return bags.values_of(self.name) if self.jagged else self.name

    @property
    def leads(self) -> bool:
        """Whether its lengths are those of other features, too."""
        return self.jagged and self.name == self.input

    @property
    def tensors(self) -> dict[str, Given]:
        """The tensors of a request that it is given by, by name."""
        if not self.jagged:
            return {self.name: Given(self.datatype, self.shape, self.parameters)}
        cut = bags.cuts_of(self.input)[0]
        values = Given(self.datatype, self.shape, self.parameters | {"lengths": cut})
        lengths = {cut: Given("INT64", (), {"side": self.side})} if self.leads else {}
        return {bags.values_of(self.name): values, **lengths}

    @property
    def expected(self) -> str:
        """For a message."""
        sizes = ", ".join(["values" if self.jagged else self.rows, *self.sizes])
        cut = f" and INT64 {bags.cuts_of(self.name)[0]!r} [{self.rows}]" if self.leads else ""
        return (
            f"{self.datatype} {bags.values_of(self.name)!r} [{sizes}]{cut}"
            if self.jagged
            else f"{self.datatype} [{sizes}]"
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """For the metadata: its side, axes that vary, and the largest id, or one for each value of a row (None where it
        is no id).
        """
        if self.names_items:
            return {"side": self.side, "names": "items"}
        known: dict[str, Any] = {"side": self.side}
        if self.varying:
            known["varying"] = [
                {"axis": v.axis, "length": v.length, "minimum": v.low, "maximum": v.high} for v in self.varying
            ]
        if self.bounds is None:
            return known
        if isinstance(self.bounds, int):
            return known | {"maximum": self.bounds - 1}
        return known | {"maximum": [None if n == FREE else n - 1 for n in self.bounds.tolist()]}

    @property
    def sizes(self) -> list[str]:
        """The shape of a row to read: `["0..200", "8"]`."""
        return [str(size) for size in with_lengths(self.shape, self.varying, lambda v: v.text)]

    def row(self, lengths: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of a row where axes that vary have these lengths."""
        return with_lengths(self.shape, self.varying, lambda v: lengths[v.length])

    def check(self, given: v2.Tensor, allow_nan: bool, lengths: bags.Lengths | None = None) -> NDArray[Any]:
        """Its array, which is what the model expects; of a jagged feature the values, which `lengths` cut into rows.

        Raises:
            RequestError: it is not; the message says what was expected.
        """
        array = given.array
        if given.datatype != self.datatype:
            raise RequestError("dtype", f"{self.name!r} is {given.datatype}, expected {self.datatype}", self.name)
        self.check_shape(array)
        if not allow_nan and not (finite := _finite(array, self.datatype)).all():
            where = _first(~finite, lengths)
            raise RequestError("not_finite", f"{self.name!r} has NaN or an infinity {where}", self.name)
        if self.bounds is not None and array.size:
            self._check_ids(v2.readable(given), lengths)
        return array

    def check_shape(self, array: NDArray[Any]) -> None:
        """Refuse rows of another shape; how long axes are that vary is checked for the whole request."""
        given = array.shape[1:]
        if self.varying and len(given) == len(self.shape):
            given = tuple(-1 if own < 0 else size for own, size in zip(self.shape, given, strict=True))
        if given != self.shape or not array.ndim:
            message = f"{self.name!r} has shape {list(array.shape)}, expected {self.expected}"
            raise RequestError("shape", message, self.name)

    def _check_ids(self, array: NDArray[Any], lengths: bags.Lengths | None) -> None:
        bounds = np.asarray(self.bounds)
        if not bounds.ndim and array.dtype == np.int64 and array.view(np.uint64).max() < bounds:
            return  # one pass: a negative number is a huge one
        bounds = np.broadcast_to(bounds.reshape(self.shape) if bounds.ndim else bounds, array.shape)
        wrong = (bounds != FREE) & ~((array >= 0) & (array < bounds))
        if wrong.any():
            place = tuple(int(i[0]) for i in wrong.nonzero())
            raise RequestError(
                "out_of_vocabulary",
                f"{self.name!r} has id {array[place]} {_first(wrong, lengths)}, expected 0 to {bounds[place] - 1}",
                self.name,
            )


def features_of(hoisted: HoistedModel, sides: Mapping[str, str], *, with_store: bool = False) -> Iterable[Feature]:
    """Those of some sides of the inputs, which are sides of a request by another name."""
    bounds = hoisted.vocabulary.below
    for spec in hoisted.interface.inputs.values():
        if spec.bags:
            yield from _columns(hoisted, spec, sides, with_store)
            continue
        datatype = _datatype(hoisted, spec.dtype)
        for side, suffix, columns in spec.parts_with_store if with_store else spec.parts:
            if side in sides:
                whole = spec.name if spec.role != "packed" else spec.name + _suffix(side)
                own, shape = bounds.get(whole), spec.sizes if columns is None else (len(columns),)
                if own is not None and columns is not None and side in ("item", "pair"):
                    own = own[[spec.candidate_columns.index(c) for c in columns]]
                if own is not None and spec.varying:  # the widest: which value is which depends on the length
                    own = own.amax()[None]
                yield Feature(
                    spec.name + suffix, spec.name, sides[side], datatype, shape, _bounds(own), varying=spec.varying
                )


def _columns(hoisted: HoistedModel, spec: InputSpec, sides: Mapping[str, str], with_store: bool) -> Iterable[Feature]:
    """Those of a jagged input, which is one side's."""
    (part,) = spec.parts_with_store if with_store else spec.parts
    for i, column in enumerate(spec.bags if part.side in sides else ()):
        bounds = _bounds(hoisted.vocabulary.below.get(f"{spec.name}.values_{i}"))
        datatype = _datatype(hoisted, column.dtype)
        yield Feature(column.name, spec.name, sides[part.side], datatype, column.shape, bounds, jagged=True)


def _datatype(hoisted: HoistedModel, dtype: torch.dtype) -> str:
    """Of an input, whose dtype moves with the model where it was the model's."""
    return DATATYPES[hoisted.dtype if dtype == hoisted.interface.dtype else dtype]


def _suffix(side: str) -> str:
    """Behind a packed input's name, where its bounds are known by the sides of a call without a store."""
    return ".context" if side == "context" else ".candidate"


def _bounds(found: Tensor | None) -> int | NDArray[np.int64] | None:
    if found is None or not len(found) or bool((found == FREE).all()):
        return None
    same = bool((found == found[0]).all())
    return int(found[0]) if same else found.numpy()


def _finite(array: NDArray[Any], datatype: str) -> Any:
    """Where there are numbers; of bfloat16 there are the bits, and an exponent of ones is none."""
    if datatype == "BF16":
        return (array & 0x7F80) != 0x7F80
    return np.isfinite(array) if array.dtype.kind == "f" else np.True_


def _first(wrong: NDArray[np.bool_], lengths: bags.Lengths | None = None) -> str:
    """Where: `in row 3`, of values in bags the row whose bag it is."""
    place = int(wrong.reshape(len(wrong), math.prod(wrong.shape[1:])).any(1).argmax())
    return f"in row {place if lengths is None else int(np.searchsorted(lengths.cumsum(), place, side='right'))}"
