"""Jagged features as tensors of a request: their values, and what cuts these into rows.

    NAME.values     [values, *shape], the bags of all rows one after the other
    NAME.lengths    [rows], how many values each row has; or
    NAME.offsets    [rows + 1], where each row begins, and where the last one ends

Features that are columns of one input, ids and a weight for each, have the same lengths: those of the first are enough.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from rankhoist_client import v2
from rankhoist_client.refusal import RequestError

Lengths = NDArray[np.int64]

KINDS = ("INT64", "INT32")  # of lengths and offsets


def values_of(name: str) -> str:
    """What the tensor of a jagged feature's values is called."""
    return f"{name}.values"


def cuts_of(name: str) -> tuple[str, str]:
    """What its lengths, and its offsets, are called."""
    return f"{name}.lengths", f"{name}.offsets"


def lengths_of(name: str, side: str, given: Mapping[str, v2.Tensor], first: Lengths | None, most: int) -> Lengths:
    """How many values each row of a feature has; `first` are those of the column before it, which may stand for them.

    Raises:
        RequestError: they do not cut its values into bags, are not those of `first`, or a bag has more than `most`.
    """
    total = next(iter(given[values_of(name)].array.shape), 0)
    found = next((cut for cut in cuts_of(name) if cut in given), None)
    if found is None:
        assert first is not None, "its names were checked"
        lengths = first
    else:
        lengths = _read(found, side, given[found], ends=found.endswith(".offsets"))
    if len(lengths) and (int(lengths.min()) < 0 or int(lengths.max()) > total or int(lengths.sum()) != total):
        raise RequestError("shape", _misfit(found or name, lengths, total), name)
    if not len(lengths) and total:
        raise RequestError("shape", f"{name!r} has {total} values, and lengths for no row", name)
    if first is not None and not np.array_equal(first, lengths):
        raise RequestError("ragged", f"{name!r} has bags of other sizes than the feature that it belongs to", name)
    if len(lengths) and int(lengths.max()) > most:
        message = f"{name!r} has {int(lengths.max())} values in row {int(lengths.argmax())}, the most are {most}"
        raise RequestError("too_large", message, name)
    return lengths


def _read(name: str, side: str, given: v2.Tensor, ends: bool) -> Lengths:
    """Lengths from their tensor, or from that of offsets."""
    rows = "R" if side == "context" else "N"
    if given.datatype not in KINDS or given.array.ndim != 1 or (ends and not given.array.size):
        expected = f"INT64 [{rows} + 1]" if ends else f"INT64 [{rows}]"
        raise RequestError(
            "shape", f"{name!r} is {given.datatype} {list(given.array.shape)}, expected {expected}", name
        )
    array = given.array.astype(np.int64)
    if not ends:
        return array
    if array[0] != 0 or (array[1:] < array[:-1]).any():
        raise RequestError("shape", f"{name!r} must rise from 0, got {array.tolist()[:10]}", name)
    return np.diff(array)


def _misfit(name: str, lengths: Lengths, total: int) -> str:
    """What is wrong with lengths that do not fit so many values."""
    if int(lengths.min()) < 0:
        return f"{name!r} has length {int(lengths.min())} in row {int(lengths.argmin())}, expected 0 or more"
    if int(lengths.max()) > total:
        row = int(lengths.argmax())
        return f"{name!r} has length {int(lengths[row])} in row {row}, and there are {total} values in all"
    return f"the lengths of {name!r} add up to {int(lengths.sum())}, and there are {total} values"
