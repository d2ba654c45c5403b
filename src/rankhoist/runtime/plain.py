"""Plain data from a file that nobody vouches for: every value is checked for its type before it is used."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import torch

from rankhoist.errors import ArtifactError

T = TypeVar("T")

DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)}


def as_kind(value: Any, kind: type[T]) -> T:
    """The value, which must be of exactly this type: `True` is no number."""
    if type(value) is not kind:
        raise ArtifactError(f"it has {shown(value)} where {kind.__name__} is expected")
    return value


def entry(data: Any, key: str, kind: type[T]) -> T:
    """One entry of an object."""
    if key not in as_kind(data, dict):
        raise ArtifactError(f"it lacks {key!r}")
    return as_kind(data[key], kind)


def entries(data: Any, key: str, kind: type[T]) -> list[T]:
    """A list in an object."""
    return [as_kind(value, kind) for value in entry(data, key, list)]


def counts(data: Any, key: str) -> tuple[int, ...]:
    """A list of numbers that are 0 or more."""
    numbers = tuple(entries(data, key, int))
    if any(n < 0 for n in numbers):
        raise ArtifactError(f"it has a negative number in {key!r}")
    return numbers


def dtype_name(dtype: torch.dtype) -> str:
    """`float32`."""
    return str(dtype).removeprefix("torch.")


def as_dtype(name: Any) -> torch.dtype:
    """The inverse of `dtype_name`."""
    if as_kind(name, str) not in DTYPES:
        raise ArtifactError(f"it has {shown(name)} where a dtype is expected")
    return DTYPES[name]


def as_device(name: Any) -> torch.device:
    """A device such as `cpu` or `cuda:0`, whether or not this machine has it."""
    if not re.fullmatch(r"[a-z]+(:[0-9]{1,3})?", as_kind(name, str)):
        raise ArtifactError(f"it has {shown(name)} where a device is expected")
    return torch.device(name)


def printable(text: str) -> str:
    """Text without the characters that a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def shown(value: Any) -> str:
    """A value for a message: short, and without characters that a terminal would obey."""
    text = ascii(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
