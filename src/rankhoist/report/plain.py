"""Dataclasses from plain data of a file that nobody vouches for: every value has the type that its field says."""

from __future__ import annotations

import dataclasses
import math
import types
from functools import cache
from typing import Any, get_args, get_origin, get_type_hints

from rankhoist.errors import ArtifactError

NOT_FINITE = {"nan", "inf", "-inf"}  # as strings, since JSON has no numbers for them


def decoded(kind: Any, data: Any) -> Any:
    """`data` as a dataclass, a tuple, a dict of strings, an optional value or a plain one; other keys are ignored.

    Raises:
        ArtifactError: something has another type, is missing, or is a negative number.
    """
    if dataclasses.is_dataclass(kind):
        return _as_dataclass(kind, data)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple:
        items = data if type(data) is tuple else _checked(list, data)  # a tuple before it was JSON
        return tuple(decoded(inner[0], item) for item in items)
    if origin is dict:
        return {_checked(str, key): decoded(inner[1], value) for key, value in _checked(dict, data).items()}
    if origin is types.UnionType:
        return None if data is None else decoded(next(k for k in inner if k is not types.NoneType), data)
    if kind is float:
        return _as_float(data)
    if kind is int and _checked(int, data) < 0:
        raise ArtifactError(f"it has {data} where a number of 0 or more is expected")
    return _checked(kind, data)


def _as_dataclass(kind: Any, data: Any) -> Any:
    """Fields with a default may be missing: older files lack them."""
    given, hints = _checked(dict, data), _hints(kind)
    needed = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
    missing = [name for name in needed if name not in given]
    if missing:
        raise ArtifactError(f"its {kind.__name__.lower()} lacks {missing[0]!r}")
    return kind(**{f.name: decoded(hints[f.name], given[f.name]) for f in dataclasses.fields(kind) if f.name in given})


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _as_float(data: Any) -> float:
    number = float(data) if type(data) is float or type(data) is int or data in NOT_FINITE else math.nan
    if math.isnan(number) and data != "nan":
        raise ArtifactError(f"it has a {type(data).__name__} where a number is expected")
    return number


def _checked(kind: type, data: Any) -> Any:
    if type(data) is not kind:
        raise ArtifactError(f"it has a {type(data).__name__} where {kind.__name__} is expected")
    return data
