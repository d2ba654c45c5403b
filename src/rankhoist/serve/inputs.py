"""What a served model takes: features by name, checked before they are computed with.

A feature is an input of the model, or one side of a packed one: `NAME.context` and `NAME.candidate`. Where the model
has a catalogue, candidates have ids of items, and what belongs to pairs: `NAME.pair` of a packed input. A column of a
jagged input is a feature, too, with a bag of values in every row (see `rankhoist.serve.bags`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rankhoist_client import v2
from rankhoist_client.refusal import RequestError
from torch import Tensor

from rankhoist.capture import InputSpec, Jagged
from rankhoist.errors import ServeError
from rankhoist.runtime import HoistedModel
from rankhoist.runtime.datatypes import DATATYPES
from rankhoist.runtime.vocabulary import FREE
from rankhoist.serve import bags

# A view of a request's body is read-only, which suits: the stages never write to their inputs.
warnings.filterwarnings("ignore", message="The given (NumPy array|buffer) is not writable")

OFFSETS = "request_offsets"
Rows = Tensor | Jagged


class Given(NamedTuple):
    """A tensor of a request, for the metadata: its dtype, the shape of a row, and what is to be known of it."""

    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Feature:
    """`[R, *shape]` of a context feature, `[N, *shape]` of a candidate feature.

    `bounds`: ids are less than that; one number, or one per value of a row; `None` where nothing is looked up.
    `names_items`: its values are ids of a catalogue, numbers or texts.
    `jagged`: a row is a bag of values, each of this shape, and so are the bounds; it is a column of its `input`.
    """

    name: str
    input: str
    side: str
    datatype: str
    shape: tuple[int, ...]
    bounds: int | NDArray[np.int64] | None = None
    names_items: bool = False
    jagged: bool = False

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
        sizes = ", ".join(map(str, (*(["values"] if self.jagged else [self.rows]), *self.shape)))
        cut = f" and INT64 {bags.cuts_of(self.name)[0]!r} [{self.rows}]" if self.leads else ""
        return (
            f"{self.datatype} {bags.values_of(self.name)!r} [{sizes}]{cut}"
            if self.jagged
            else f"{self.datatype} [{sizes}]"
        )

    @property
    def parameters(self) -> dict[str, Any]:
        """For the metadata: its side, and the largest id, or one for each value of a row (None where it is no id)."""
        if self.names_items:
            return {"side": self.side, "names": "items"}
        if self.bounds is None:
            return {"side": self.side}
        if isinstance(self.bounds, int):
            return {"side": self.side, "maximum": self.bounds - 1}
        return {"side": self.side, "maximum": [None if n == FREE else n - 1 for n in self.bounds.tolist()]}

    def check(self, given: v2.Tensor, allow_nan: bool, lengths: bags.Lengths | None = None) -> NDArray[Any]:
        """Its array, which is what the model expects; of a jagged feature the values, which `lengths` cut into rows.

        Raises:
            RequestError: it is not; the message says what was expected.
        """
        array = given.array
        if given.datatype != self.datatype:
            raise RequestError("dtype", f"{self.name!r} is {given.datatype}, expected {self.datatype}", self.name)
        if array.shape[1:] != self.shape or not array.ndim:
            message = f"{self.name!r} has shape {list(array.shape)}, expected {self.expected}"
            raise RequestError("shape", message, self.name)
        if not allow_nan and not (finite := _finite(array, self.datatype)).all():
            where = _first(~finite, lengths)
            raise RequestError("not_finite", f"{self.name!r} has NaN or an infinity {where}", self.name)
        if self.bounds is not None and array.size:
            self._check_ids(v2.readable(given), lengths)
        return array

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


@dataclass(frozen=True)
class Batch:
    """Checked inputs of R requests and N candidates, by the model's own names; `offsets` where they were given.

    `ids` `[N]` are those of the candidates' items, where there is a catalogue; `skips`: unknown ones have no scores.
    """

    context: dict[str, Rows]
    candidates: dict[str, Rows]
    requests: int
    rows: int
    offsets: list[int] | None = None
    ids: NDArray[Any] | None = None
    skips: bool = False


@dataclass(frozen=True)
class Signature:
    """All features of a model, by name."""

    features: dict[str, Feature]

    @staticmethod
    def of(hoisted: HoistedModel, ids: Feature | None = None) -> Signature:
        """From its interface and its graphs; `ids` name items where the model has a catalogue."""
        if ids is None:
            return Signature({f.name: f for f in _features(hoisted, {"context": "context", "candidate": "candidate"})})
        return Signature(_with(ids, _features(hoisted, {"context": "context", "pair": "candidate"}, with_store=True)))

    @staticmethod
    def of_items(hoisted: HoistedModel, ids: Feature) -> Signature:
        """What items of a catalogue are made of."""
        return Signature(_with(ids, _features(hoisted, {"item": "candidate"}, with_store=True)))

    def check(
        self, given: Mapping[str, v2.Tensor], most: int, allow_nan: bool = False, most_requests: int = 1,
        most_values: int = v2.MOST,
    ) -> Batch:  # fmt: skip
        """Tensors by feature, and perhaps `request_offsets`, as a batch.

        Raises:
            RequestError: a feature is missing, unknown or not as expected, there are more than `most` candidates or
                more than `most_requests` rows of context (each is prepared, whether it has candidates or not), or a row
                of a jagged feature has more than `most_values`.
        """
        self._check_names(given)
        limits = {"context": most_requests, "candidate": most}
        sides: dict[str, dict[str, Rows]] = {"context": {}, "candidate": {}}
        rows, ids, cuts = {"context": -1, "candidate": -1}, None, dict[str, bags.Lengths]()
        for name, feature in self.features.items():
            lengths = None
            if feature.jagged:
                lengths = bags.lengths_of(name, feature.side, given, cuts.get(feature.input), most_values)
                cuts[feature.input] = lengths
            array = feature.check(given[feature.tensor], allow_nan, lengths)
            count = len(array) if lengths is None else len(lengths)
            if rows[feature.side] not in (-1, count):
                expected = f"as the {feature.side} features before it"
                raise RequestError(
                    "ragged", f"{name!r} has {count} rows, expected {rows[feature.side]} {expected}", name
                )
            rows[feature.side] = count
            if count > limits[feature.side]:
                what = "candidates" if feature.side == "candidate" else "context rows"
                raise RequestError("too_large", f"{count} {what}, the most are {limits[feature.side]}")
            if feature.names_items:
                ids = array
            elif lengths is None:
                sides[feature.side][feature.input] = _tensor(array, feature.datatype)
            else:
                earlier = sides[feature.side].get(feature.input)
                columns = [*(earlier.values if isinstance(earlier, Jagged) else ()), _tensor(array, feature.datatype)]
                sides[feature.side][feature.input] = Jagged.of(columns, torch.from_numpy(lengths))
        requests = 1 if rows["context"] < 0 else rows["context"]
        offsets = _offsets(given.get(OFFSETS), requests, rows["candidate"])
        return Batch(sides["context"], sides["candidate"], requests, rows["candidate"], offsets, ids)

    def _check_names(self, given: Iterable[str]) -> None:
        names = set(given)
        for name, feature in self.features.items():
            cuts = names.intersection(bags.cuts_of(name)) if feature.jagged else ()
            if feature.tensor not in names or (feature.leads and not cuts):
                message = f"{feature.side} feature {name!r} is missing: {feature.expected}"
                raise RequestError("missing_input", message, name)
            if len(cuts) > 1:
                raise RequestError(
                    "unknown_input", f"{' and '.join(sorted(cuts))} say the same: give one of them", name
                )
        unknown = sorted(names - {*self._names, OFFSETS})
        if unknown:
            known = ", ".join(name for feature in self.features.values() for name in feature.tensors)
            raise RequestError(
                "unknown_input", f"unknown feature {unknown[0][:60]!r}; the features are {known}", unknown[0]
            )

    @cached_property
    def _names(self) -> frozenset[str]:
        """Tensors that there may be."""
        own = (f.tensors if not f.jagged else (*f.tensors, *bags.cuts_of(f.name)) for f in self.features.values())
        return frozenset(name for names in own for name in names)


def _with(ids: Feature, features: Iterable[Feature]) -> dict[str, Feature]:
    """Features after the one that names items.

    Raises:
        ServeError: one has its name.
    """
    found = {feature.name: feature for feature in features}
    if ids.name in found:
        raise ServeError(f"ids of items are called {ids.name!r}, as an input of the model is; name others by item_id")
    return {ids.name: ids, **found}


def _features(hoisted: HoistedModel, sides: Mapping[str, str], *, with_store: bool = False) -> Iterable[Feature]:
    """Those of some sides of the inputs, which are sides of a request by another name."""
    bounds = hoisted.vocabulary.below
    for spec in hoisted.interface.inputs.values():
        if spec.varying:
            raise ServeError(
                f"axis {spec.varying[0].axis} of input {spec.name!r} varies, which the server does not take yet"
            )
        if spec.bags:
            yield from _columns(hoisted, spec, sides, with_store)
            continue
        datatype = _datatype(hoisted, spec.dtype)
        for side, suffix, columns in spec.parts_with_store if with_store else spec.parts:
            if side in sides:
                whole = spec.name if spec.role != "packed" else spec.name + _suffix(side)
                own, shape = bounds.get(whole), spec.shape if columns is None else (len(columns),)
                if own is not None and columns is not None and side in ("item", "pair"):
                    own = own[[spec.candidate_columns.index(c) for c in columns]]
                yield Feature(spec.name + suffix, spec.name, sides[side], datatype, shape, _bounds(own))


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
    if found is None or not len(found):
        return None
    same = bool((found == found[0]).all())
    return int(found[0]) if same else found.numpy()


def _offsets(given: v2.Tensor | None, requests: int, rows: int) -> list[int] | None:
    """R + 1 boundaries of the requests' candidates."""
    if given is None:
        if requests == 1:
            return None
        message = f"the context has {requests} rows; {OFFSETS} INT64 [{requests + 1}] says which candidates are whose"
        raise RequestError("missing_input", message, OFFSETS)
    array = given.array
    if given.datatype != "INT64" or array.shape != (requests + 1,):
        message = f"{OFFSETS!r} is {given.datatype} {list(array.shape)}, expected INT64 [{requests + 1}]"
        raise RequestError("shape", message, OFFSETS)
    if array[0] != 0 or array[-1] != rows or (array[1:] < array[:-1]).any():
        message = f"{OFFSETS!r} must rise from 0 to {rows}, the number of candidates, got {array.tolist()[:10]}"
        raise RequestError("shape", message, OFFSETS)
    offsets: list[int] = array.tolist()
    return offsets


def _finite(array: NDArray[Any], datatype: str) -> Any:
    """Where there are numbers; of bfloat16 there are the bits, and an exponent of ones is none."""
    if datatype == "BF16":
        return (array & 0x7F80) != 0x7F80
    return np.isfinite(array) if array.dtype.kind == "f" else np.True_


def _tensor(array: NDArray[Any], datatype: str) -> Tensor:
    if datatype == "BF16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _first(wrong: NDArray[np.bool_], lengths: bags.Lengths | None = None) -> str:
    """Where: `in row 3`, of values in bags the row whose bag it is."""
    place = int(wrong.reshape(len(wrong), math.prod(wrong.shape[1:])).any(1).argmax())
    return f"in row {place if lengths is None else int(np.searchsorted(lengths.cumsum(), place, side='right'))}"
