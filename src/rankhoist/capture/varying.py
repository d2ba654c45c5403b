"""Axes that vary from call to call, as the length of a history: what a user says of them, and what the graph has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.export.dynamic_shapes import Dim

from rankhoist.arguments import mapping_of
from rankhoist.errors import CaptureError, InputError

Dynamic = Mapping[str, "int | Mapping[int, Any]"]
Axes = Mapping[str, Mapping[int, Dim]]  # by input
MOST = 2**24
SAME = re.compile(r"^\s*(varying_\d+) = (varying_\d+)$", re.M)  # what torch suggests where lengths have to be one
BOUNDED = re.compile(r"^\s*(varying_\d+) = Dim\('varying_\d+'(?:, min=(\d+))?(?:, max=(\d+))?\)$", re.M)


@dataclass(frozen=True)
class Varying:
    """An axis of an input `[rows, ...]` whose length varies from call to call.

    Axes of the same `length` have the same length in a call, `low` to `high` (None: any).
    """

    axis: int
    length: str
    low: int
    high: int | None

    def holds(self, size: int) -> bool:
        """Whether it may have this length."""
        return self.low <= size and (self.high is None or size <= self.high)

    @property
    def text(self) -> str:
        """Its lengths to read: `2..200`, `0..`."""
        return f"{self.low}..{'' if self.high is None else self.high}"


def with_lengths(shape: Sequence[int], varying: Iterable[Varying], size: Callable[[Varying], Any]) -> tuple[Any, ...]:
    """The shape of a row, with what `size` says in place of every axis that varies."""
    free = {v.axis: v for v in varying}
    return tuple(size(free[axis]) if axis in free else own for axis, own in enumerate(shape, 1))


# -- what a user says


def asked(dynamic: Dynamic, leaves: Mapping[str, Any]) -> dict[str, dict[int, Dim]]:
    """By input, the symbol of every axis that varies; those of one name, or of one `Dim`, are one.

    Raises:
        InputError: it names no input or no such axis, or says something else of one.
    """
    found: dict[str, dict[int, Dim]] = {}
    names: dict[Any, Dim] = {}
    for name, axes in mapping_of(dynamic, "dynamic", "{'history': 1}").items():
        leaf = leaves.get(name)
        if not isinstance(leaf, torch.Tensor):
            raise InputError(f"dynamic names {name!r}, which is no tensor; the inputs are {', '.join(leaves)}")
        given: Mapping[int, Any] = {axes: None} if isinstance(axes, int) else axes
        for axis, said in mapping_of(given, f"dynamic[{name!r}]", "{1: (1, 200)}").items():
            if not isinstance(axis, int) or not 1 <= axis < leaf.dim():
                others = f"others are 1 to {leaf.dim() - 1}" if leaf.dim() > 1 else "there is no other"
                raise InputError(
                    f"axis {axis!r} of input {name!r} {list(leaf.shape)} cannot vary: axis 0 are the rows, which do, "
                    f"and {others}"
                )
            if not leaf.shape[axis]:
                raise InputError(f"the example has nothing along axis {axis} of input {name!r}, which varies")
            low, high, key = _said(name, axis, said)
            if not low <= leaf.shape[axis] <= high:
                raise InputError(
                    f"the example has length {leaf.shape[axis]} along axis {axis} of input {name!r}, which is to have "
                    f"{low} to {high}: give an example of such a length, or other bounds"
                )
            own = names.setdefault(key, Dim(f"varying_{len(names)}", min=low, max=high))
            found.setdefault(name, {})[axis] = own
    return found


def _said(name: str, axis: int, said: Any) -> tuple[int, int, Any]:
    """Bounds of an axis, and what it has in common with those that have the same length."""
    if said is None:
        return 0, MOST, (name, axis)
    if isinstance(said, str):
        return 0, MOST, said
    if isinstance(said, Dim):
        low, high = said.min, said.max
        return low, min(high, MOST) if isinstance(high, int) else MOST, said.__name__
    if isinstance(said, tuple | list) and len(said) == 2 and all(isinstance(n, int) for n in said):
        low, high = said
        if 0 <= low < high:
            return low, min(high, MOST), (name, axis)
    raise InputError(
        f"dynamic says {said!r} of axis {axis} of input {name!r}: give the lowest and the highest length (2, 200), a "
        "name that inputs of the same length share, a torch.export.Dim, or None"
    )


def fitted(axes: Axes, error: Exception) -> Axes | None:
    """The same where torch says that two lengths are one, or that the model bounds one that has no bounds yet; None if
    it says no such thing.
    """
    text = str(error.__cause__ or error)
    dims = {dim.__name__: dim for own in axes.values() for dim in own.values()}
    changed: dict[Any, Any] = {}
    for gone, kept in SAME.findall(text):
        if {gone, kept} <= {*dims}:
            x, y = dims[gone], dims[kept]
            changed[x] = changed[y] = Dim(kept, min=max(x.min, y.min), max=min(x.max, y.max))
            break
    for name, low, high in BOUNDED.findall(text):
        if name in dims and not changed and (dims[name].min, dims[name].max) == (0, MOST):
            changed[dims[name]] = Dim(name, min=int(low or 0), max=int(high or MOST))
    return {n: {a: changed.get(d, d) for a, d in own.items()} for n, own in axes.items()} if changed else None


def told(axes: Axes, error: Exception) -> str:
    """What torch says of lengths, in the names of inputs."""
    text = str(error)
    shown = {dim.__name__: f"{name}[{axis}]" for name, own in axes.items() for axis, dim in own.items()}
    named = re.sub(r"varying_\d+", lambda found: shown.get(found[0], found[0]), text)
    if named == text:
        return text
    return (
        f"dynamic: the model does not take all lengths of {', '.join(shown.values())} that are asked for: it "
        "fixes one, bounds it, or relates it to another. Give bounds, {axis: (lowest, highest)}, that fit, or one name "
        f"to axes of the same length.\n{named}"
    )


def traceable(leaf: torch.Tensor, axes: Iterable[int]) -> torch.Tensor:
    """An example with two positions at least along axes that vary: a size of 1 would be taken for a constant."""
    for axis in axes:
        if leaf.shape[axis] == 1:
            leaf = leaf.repeat_interleave(3, axis)
    return leaf


# -- what the graph has


def varying(name: str, value: torch.Tensor, ranges: Mapping[sympy.Symbol, Any]) -> tuple[Varying, ...]:
    """The axes after the rows of an input of a graph whose sizes are symbols.

    Raises:
        CaptureError: such a size is no symbol by itself.
    """
    found = list[Varying]()
    for axis, size in enumerate(value.shape):
        if axis and isinstance(size, torch.SymInt):
            expr = size.node.expr
            if not isinstance(expr, sympy.Symbol):
                raise CaptureError(
                    f"axis {axis} of input {name!r} has the size {expr}; an axis that varies needs a size of its own"
                )
            own = ranges.get(expr)
            high = int(own.upper) if own is not None and own.upper.is_Integer and own.upper < MOST else None
            found.append(Varying(axis, str(expr), int(own.lower) if own is not None else 2, high))
    return tuple(found)


def lengths(values: Iterable[torch.Tensor], rows: sympy.Symbol) -> dict[sympy.Symbol, int]:
    """The symbols of all lengths, and what they are in the example: two at least, as plans are made for it."""
    sizes: list[Any] = [size for value in values for size in value.shape[1:] if isinstance(size, torch.SymInt)]
    if any(size.node.expr == rows for size in sizes):
        raise CaptureError("an axis has the length of the rows: rows meet each other there")
    return {size.node.expr: max(int(size.node.hint or 0), 2) for size in sizes}
