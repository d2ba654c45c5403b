"""Arguments of public calls: one of another kind is refused by its name, before anything is done."""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rankhoist.errors import ArtifactError, InputError

K = TypeVar("K")
T = TypeVar("T")
SHORT = (bool, int, float, str, bytes)


def path_of(given: str | os.PathLike[str], what: str = "path") -> Path:
    """A path; a number, which the system would take for a file that is open, is none.

    Raises:
        InputError: it is neither a text nor a path.
    """
    if not isinstance(given, str | os.PathLike):
        raise InputError(f"{what} is {_shown(given)}, expected a text or a pathlib.Path")
    return Path(given)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Where a file, or a folder, is written: what the system refuses is an error of ours that names it.

    Raises:
        ArtifactError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{os.fspath(path)} cannot be written: {error.strerror or error}") from error


def of_kind(given: Any, kind: type[T] | tuple[type[T], ...], what: str, advice: str) -> T:
    """What is given, if it is of this kind; `advice` says where one comes from.

    Raises:
        InputError: it is of another.
    """
    if not isinstance(given, kind):
        raise InputError(f"{what} is {_shown(given)}, expected {advice}")
    return given


def mapping_of(given: Mapping[K, T], what: str, like: str) -> Mapping[K, T]:
    """A mapping `like` this one.

    Raises:
        InputError: it is none.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"{what} is {_shown(given)}, expected a mapping, such as {like}")
    return given


def whole_numbers(given: Iterable[int], what: str) -> tuple[int, ...]:
    """Whole numbers.

    Raises:
        InputError: they are none, or one that stands alone.
    """
    try:
        return tuple(whole_number(n, what) for n in given)
    except TypeError:
        raise InputError(f"{what} is {_shown(given)}, expected a list of whole numbers, such as [100, 1000]") from None


def whole_number(given: int, what: str) -> int:
    """A whole number.

    Raises:
        InputError: it is none.
    """
    try:
        return operator.index(given)
    except TypeError:
        raise InputError(f"{what}: {_shown(given)} is no whole number") from None


def texts(given: str | Iterable[str], what: str) -> tuple[str, ...]:
    """Texts; one that stands alone is not the list of its letters.

    Raises:
        InputError: they are none.
    """
    if isinstance(given, str):
        return (given,)
    try:
        found = tuple(given)
    except TypeError:
        raise InputError(f"{what} is {_shown(given)}, expected a list of texts") from None
    for text in found:
        of_kind(text, str, f"{what}: one", "a text")
    return found


def as_a_tensor(given: Any) -> str:
    """Advice, where a tensor, or several, can be made of what was given in its place: `: torch.from_numpy(x)`."""
    if hasattr(given, "to_numpy"):  # of pandas and the like: a table, or a column
        if hasattr(given, "columns"):
            return ": {name: torch.from_numpy(x[name].to_numpy()) for name in x}"
        return ": torch.from_numpy(x.to_numpy())"
    if hasattr(given, "__array__"):
        return ": torch.from_numpy(x)"
    if isinstance(given, int | float):
        return ": torch.tensor([x])"
    return ": torch.tensor(x)" if isinstance(given, list | tuple) else ""


def _shown(given: Any) -> str:
    """Its kind; of what is short, itself as well."""
    kind = type(given).__name__
    return "None" if given is None else f"{kind} {given!r:.40}" if isinstance(given, SHORT) else kind
