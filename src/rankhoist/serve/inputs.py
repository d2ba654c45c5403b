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

    def check(
        self, given: Mapping[str, v2.Tensor], most: int, allow_nan: bool = False, most_requests: int = 1,
        most_values: int = v2.MOST,
    ) -> Batch:  # fmt: skip
        """Tensors by feature, and perhaps `request_offsets`, as a batch.

        Raises:
            RequestError: a feature is missing, unknown or not as expected, there are more than `most` candidates or
                more than `most_requests` rows of context (each is prepared, whether it has candidates or not), or a row
                of a jagged feature, or an axis that varies, has more than `most_values`.
        """
        self._check_names(given)
        sizes = lengths.of_tensors(self._varying, given, most_values) if self._varying else {}
        limits = {"context": most_requests, "candidate": most}
        sides: dict[str, dict[str, Rows]] = {"context": {}, "candidate": {}}
        rows, ids, cuts = {"context": -1, "candidate": -1}, None, dict[str, bags.Lengths]()
        for name, feature in self.features.items():
            cut = None
            if feature.jagged:
                cut = bags.lengths_of(name, feature.side, given, cuts.get(feature.input), most_values)
                cuts[feature.input] = cut
            array = feature.check(given[feature.tensor], allow_nan, cut)
            if feature.varying and not len(array):
                array = array.reshape(0, *feature.row(sizes))
            count = len(array) if cut is None else len(cut)
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
            elif cut is None:
                sides[feature.side][feature.input] = _tensor(array, feature.datatype)
            else:
                earlier = sides[feature.side].get(feature.input)
                columns = [*(earlier.values if isinstance(earlier, Jagged) else ()), _tensor(array, feature.datatype)]
                sides[feature.side][feature.input] = Jagged.of(columns, torch.from_numpy(cut))
        requests = 1 if rows["context"] < 0 else rows["context"]
        offsets = _offsets(given.get(OFFSETS), requests, rows["candidate"])
        return Batch(
            sides["context"], sides["candidate"], requests, rows["candidate"], offsets, ids,
            lengths=tuple(sizes.values()),
        )  # fmt: skip

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
