"""Columns in JSON: nested lists of numbers become arrays, without a Python loop over rows.

What is in a list is looked at before numpy sees it: numpy would take text for numbers and cut fractions off.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankhoist_client.refusal import RequestError

# Names of the protocol v2; numpy has no bfloat16, whose bits are kept as integers.
DATATYPES: dict[str, Any] = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64,
    "FP16": np.float16, "BF16": np.uint16, "FP32": np.float32, "FP64": np.float64,
}  # fmt: skip


def column(
    name: str, rows: Any, shape: Sequence[int], datatype: str, row_of: Callable[[int], int] = int
) -> NDArray[Any]:
    """A list of N rows, each nested as `shape` says, as `[N, *shape]`; texts are BYTES.

    `row_of` says which row an entry of the list is to be called.

    Raises:
        RequestError: a row has another length than the others (the row is named), or holds something else than numbers.
    """
    flat = _list(name, rows)
    if datatype == "BYTES":
        return _texts(name, flat)
    count, inner = len(flat), 1
    for size in shape:
        _check_lengths(name, flat, size, inner, shape, row_of)
        flat = list(itertools.chain.from_iterable(flat))
        inner *= size
    return numbers(name, flat, datatype, max(inner, 1), row_of).reshape(count, *shape)


def bags(name: str, rows: Any, shape: Sequence[int], datatype: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """A list of N bags, each a list of values of any length, as the values `[total, *shape]` and the lengths `[N]`.

    Raises:
        RequestError: a row is no list, or one of its values is not as expected (the row is named).
    """
    rows = _list(name, rows)
    if not {list}.issuperset(map(type, rows)):
        row, value = next((i, x) for i, x in enumerate(rows) if type(x) is not list)
        raise RequestError("shape", f"{name!r} has a list of values per row, and row {row} has {_shown(value)}", name)
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    ends = lengths.cumsum()
    values = list(itertools.chain.from_iterable(rows))
    made = column(name, values, shape, datatype, lambda place: int(np.searchsorted(ends, place, side="right")))
    return made, lengths


def shaped(name: str, values: Any, shape: Sequence[int], datatype: str) -> NDArray[Any]:
    """A list of all values in row-major order, or nested as `shape` says, as an array of that shape."""
    values = _list(name, values)
    if values and isinstance(values[0], list):
        made = column(name, values, shape[1:], datatype)
    else:
        made = numbers(name, values, datatype, 1)
    if made.size != math.prod(shape):
        raise RequestError(
            "shape", f"{name!r} has {made.size} values, its shape {list(shape)} says {math.prod(shape)}", name
        )
    return made.reshape(tuple(shape))


def numbers(name: str, flat: list[Any], datatype: str, width: int, row_of: Callable[[int], int] = int) -> NDArray[Any]:
    """A flat list of numbers, `width` to a row, as an array."""
    kind = DATATYPES[datatype]
    floating = datatype.startswith(("FP", "BF"))
    allowed = {bool} if datatype == "BOOL" else {int, float} if floating else {int}
    if not allowed.issuperset(map(type, flat)):
        row, value = next((row_of(i // width), x) for i, x in enumerate(flat) if type(x) not in allowed)
        raise RequestError("dtype", f"{name!r} is {datatype}, and row {row} has {_shown(value)}", name)
    try:
        with np.errstate(over="ignore"):  # too large for a float is infinite, and refused as such
            made = np.array(flat, dtype=np.float32 if datatype == "BF16" else kind)
    except OverflowError:
        raise RequestError("dtype", f"{name!r} is {datatype}, and has a number out of its range", name) from None
    return rounded(made) if datatype == "BF16" else made


def _texts(name: str, rows: list[Any]) -> NDArray[Any]:
    """An array of objects: the longest text decides no other's size."""
    if not {str}.issuperset(map(type, rows)):
        row, value = next((i, x) for i, x in enumerate(rows) if type(x) is not str)
        raise RequestError("dtype", f"{name!r} has texts, and row {row} has {_shown(value)}", name)
    made = np.empty(len(rows), object)
    made[:] = rows
    return made


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError("shape", f"{name!r} is {_shown(value)}, expected a list", name)
    return value


def _check_lengths(
    name: str, rows: list[Any], size: int, inner: int, shape: Sequence[int], row_of: Callable[[int], int]
) -> None:
    """Every entry is a list of `size` values; `inner` entries belong to one row."""
    if not {list}.issuperset(map(type, rows)):
        row, value = next((row_of(i // inner), x) for i, x in enumerate(rows) if type(x) is not list)
        raise RequestError(
            "shape", f"{name!r} has rows of shape {list(shape)}, and row {row} has {_shown(value)}", name
        )
    if not {size}.issuperset(map(len, rows)):
        row, length = next((row_of(i // inner), len(x)) for i, x in enumerate(rows) if len(x) != size)
        reason = "ragged" if {len(x) for x in rows} != {length} else "shape"
        expected = f"row {row} has {length} values where {size} are expected"
        raise RequestError(reason, f"{name!r} has rows of shape {list(shape)}, and {expected}", name)


def rounded(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """In bfloat16, to nearest, as bits."""
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _shown(value: Any) -> str:
    """A value for a message."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the text {value[:20]!a}"
    return f"the number {value}" if isinstance(value, int | float) else f"a {type(value).__name__}"
