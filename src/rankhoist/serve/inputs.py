"""The features of a request, checked before they are computed with."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rankhoist_client import v2
from rankhoist_client.refusal import RequestError
from torch import Tensor

from rankhoist.capture import Jagged
from rankhoist.errors import ServeError
from rankhoist.runtime import HoistedModel
from rankhoist.serve import bags, lengths
from rankhoist.serve.features import Feature, features_of

# A view of a request's body is read-only, which suits: the stages never write to their inputs.
warnings.filterwarnings("ignore", message="The given (NumPy array|buffer) is not writable")

OFFSETS = "request_offsets"
Rows = Tensor | Jagged


@dataclass(frozen=True)
class Batch:
    """Checked inputs of R requests and N candidates, by the model's own names; `offsets` where they were given.

    `ids` `[N]` are those of the candidates' items, where there is a catalogue; `skips`: unknown ones have no scores.
    `lengths` are those of axes that vary, in an order of the model's.
    """

    context: dict[str, Rows]
    candidates: dict[str, Rows]
    requests: int
    rows: int
    offsets: list[int] | None = None
    ids: NDArray[Any] | None = None
    skips: bool = False
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What a request may have at most, and whether numbers may be NaN or infinite.

    Attributes:
        candidates: rows of the candidates, or of items.
        requests: rows of the context: each is prepared, whether it has candidates or not.
        values: in a row of a jagged feature, and along an axis that varies.
    """

    candidates: int
    requests: int = 1
    values: int = v2.MOST
    allow_nan: bool = False

    def rows(self, side: str) -> int:
        """Of the features of a side."""
        return self.candidates if side == "candidate" else self.requests


@dataclass(frozen=True)
class Signature:
    """All features of a model, by name."""

    features: dict[str, Feature]

    @staticmethod
    def of(hoisted: HoistedModel, ids: Feature | None = None) -> Signature:
        """From its interface and its graphs; `ids` name items where the model has a catalogue."""
        if ids is None:
            return Signature(
                {f.name: f for f in features_of(hoisted, {"context": "context", "candidate": "candidate"})}
            )
        return Signature(_with(ids, features_of(hoisted, {"context": "context", "pair": "candidate"}, with_store=True)))

    @staticmethod
    def of_items(hoisted: HoistedModel, ids: Feature) -> Signature:
        """What items of a catalogue are made of."""
        return Signature(_with(ids, features_of(hoisted, {"item": "candidate"}, with_store=True)))

    def check(self, given: Mapping[str, v2.Tensor], limits: Limits) -> Batch:
        """Tensors by feature, and perhaps `request_offsets`, as a batch.

        Raises:
            RequestError: a feature is missing, unknown or not as expected, or there is more than the limits allow.
        """
        self._check_names(given)
        sizes = lengths.of_tensors(self._varying, given, limits.values) if self._varying else {}
        sides, cuts = _Sides(limits), dict[str, bags.Lengths]()
        for name, feature in self.features.items():
            cut = None
            if feature.jagged:
                cut = bags.lengths_of(name, feature.side, given, cuts.get(feature.input), limits.values)
                cuts[feature.input] = cut
            array = feature.check(given[feature.tensor], limits.allow_nan, cut)
            if feature.varying and not len(array):
                array = array.reshape(0, *feature.row(sizes))
            sides.add(feature, array, cut)
        context, candidates = sides.tensors["context"], sides.tensors["candidate"]
        requests, rows = sides.rows.get("context", 1), sides.rows.get("candidate", -1)
        offsets = _offsets(given.get(OFFSETS), requests, rows)
        return Batch(context, candidates, requests, rows, offsets, sides.ids, lengths=tuple(sizes.values()))

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
    def _varying(self) -> list[Feature]:
        """Those with axes that vary."""
        return [feature for feature in self.features.values() if feature.varying]

    @cached_property
    def _names(self) -> frozenset[str]:
        """Tensors that there may be."""
        own = (f.tensors if not f.jagged else (*f.tensors, *bags.cuts_of(f.name)) for f in self.features.values())
        return frozenset(name for names in own for name in names)


class _Sides:
    """The tensors of features that are checked, `[R, ...]` of the context and `[N, ...]` of the candidates."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.rows: dict[str, int] = {}
        self.tensors: dict[str, dict[str, Rows]] = {"context": {}, "candidate": {}}
        self.ids: NDArray[Any] | None = None

    def add(self, feature: Feature, array: NDArray[Any], cut: bags.Lengths | None) -> None:
        """One more feature; `cut` are lengths of bags, where it is jagged."""
        self._count(feature, len(array) if cut is None else len(cut))
        side = self.tensors[feature.side]
        if feature.names_items:
            self.ids = array
        elif cut is None:
            side[feature.input] = _tensor(array, feature.datatype)
        else:
            earlier = side.get(feature.input)
            columns = [*(earlier.values if isinstance(earlier, Jagged) else ()), _tensor(array, feature.datatype)]
            side[feature.input] = Jagged.of(columns, torch.from_numpy(cut))

    def _count(self, feature: Feature, count: int) -> None:
        """All features of a side have as many rows, within the limits."""
        side, most = feature.side, self._limits.rows(feature.side)
        before = self.rows.setdefault(side, count)
        if count != before:
            expected = f"{before} as the {side} features before it"
            raise RequestError("ragged", f"{feature.name!r} has {count} rows, expected {expected}", feature.name)
        if count > most:
            what = "candidates" if side == "candidate" else "context rows"
            raise RequestError("too_large", f"{count} {what}, the most are {most}")


def _with(ids: Feature, features: Iterable[Feature]) -> dict[str, Feature]:
    """Features after the one that names items.

    Raises:
        ServeError: one has its name.
    """
    found = {feature.name: feature for feature in features}
    if ids.name in found:
        raise ServeError(f"ids of items are called {ids.name!r}, as an input of the model is; name others by item_id")
    return {ids.name: ids, **found}


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


def _tensor(array: NDArray[Any], datatype: str) -> Tensor:
    if datatype == "BF16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
