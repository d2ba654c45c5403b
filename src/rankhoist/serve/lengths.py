"""Axes that vary, as the length of a history: how long they are in a request, within their bounds.

A feature with such an axis is one tensor, `[R, T, ...]` or `[N, T, ...]`, with one length in a request. Features that
share a length, as a history and its mask, have it together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rankhoist_client import v2
from rankhoist_client.refusal import RequestError

from rankhoist.capture import Varying
from rankhoist.serve.features import Feature


def of_tensors(features: Sequence[Feature], given: Mapping[str, v2.Tensor], most: int) -> dict[str, int]:
    """The lengths of a request, in the order of the features; the lowest where no row says which.

    Raises:
        RequestError: one is out of its bounds or more than `most`, or two that have to be one differ.
    """
    found = dict[str, tuple[int, str]]()
    for feature in features:
        array = given[feature.name].array
        feature.check_shape(array)
        for own in feature.varying:
            if not len(array):
                continue
            size = array.shape[own.axis]
            _check(feature.name, own, size)
            if size > most:
                raise RequestError("too_large", f"{_where(feature.name, own, size)}, the most are {most}", feature.name)
            before, said = found.get(own.length, (size, ""))
            if before != size:
                message = f"{_where(feature.name, own, size)}, and {said}: they have to be one"
                raise RequestError("ragged", message, feature.name)
            found[own.length] = size, _where(feature.name, own, size)
    lowest = {v.length: v.low for feature in features for v in feature.varying}
    return {length: found[length][0] if length in found else low for length, low in lowest.items()}


def of_lists(feature: Feature, rows: Any) -> tuple[int, ...]:
    """The shape of a row, of the first one in nested lists; the lowest length where there is no list to say it.

    Raises:
        RequestError: a length is out of its bounds, or there is no list.
    """
    if not feature.varying:
        return feature.shape
    free, sizes = {v.axis: v for v in feature.varying}, list[int]()
    first = rows[:1] if isinstance(rows, list) else []
    for axis, size in enumerate(feature.shape, 1):
        if (own := free.get(axis)) is not None:
            if first and not isinstance(first[0], list):
                raise RequestError("shape", f"{feature.name!r} has no list, expected {feature.expected}", feature.name)
            size = len(first[0]) if first else own.low
            _check(feature.name, own, size)
        sizes.append(size)
        first = first[0][:1] if first and isinstance(first[0], list) else []
    return tuple(sizes)


def _check(name: str, own: Varying, size: int) -> None:
    if not own.holds(size):
        expected = f"{own.low} or more" if own.high is None else f"{own.low} to {own.high}"
        raise RequestError("shape", f"{_where(name, own, size)}, expected {expected}", name)


def _where(name: str, own: Varying, size: int) -> str:
    return f"{name!r} has length {size} along axis {own.axis}"
