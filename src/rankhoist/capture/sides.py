"""Which inputs, or which of their columns, are context, and which are known of the item alone: what a user says."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from typing import Any

import torch

from rankhoist.capture.inputs import Context, InputSpec, matching
from rankhoist.errors import ContextError


def mark_sides(
    shapes: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    context: Context,
    item: Context | None = None,
    aliases: Mapping[str, str] | None = None,
) -> list[InputSpec]:
    """All inputs from the user's `context` and `item` arguments (names or globs, or `{name: columns}`).

    `aliases` are names of what belongs to an input, as lengths do to their values.
    """
    aliases = aliases or {}
    wanted = _wanted_columns("context", [*shapes, *aliases], context)
    of_items = _wanted_columns("item", [*shapes, *aliases], [] if item is None else item)
    for alias, name in aliases.items():
        if alias in wanted and name not in wanted:
            raise ContextError(f"{alias!r} is context, so {name!r}, which it belongs to, must be")
    specs = []
    for name, (shape, dtype) in shapes.items():
        columns = wanted.get(name, False)
        if columns is True or columns is False:
            spec = InputSpec(name, shape, dtype, "context" if columns else "candidate")
        else:
            spec = _packed(name, shape, dtype, columns)
        specs.append(_with_item(spec, of_items.get(name, False)))
    if all(spec.role == "context" for spec in specs):
        raise ContextError("every input is marked as context, so there is no candidate input: nothing would be ranked")
    return specs


def _wanted_columns(argument: str, names: list[str], given: Context) -> dict[str, Any]:
    if isinstance(given, str):
        given = [given]
    if not isinstance(given, Iterable):
        raise ContextError(
            f"{argument} is {given!r:.40}, expected a list of names of inputs; they are {', '.join(names)}"
        )
    items: Iterable[tuple[str, Any]]
    items = given.items() if isinstance(given, Mapping) else ((pattern, True) for pattern in given)
    wanted: dict[str, Any] = {}
    for pattern, columns in items:
        if not isinstance(pattern, str):
            raise ContextError(f"{argument} names are strings or globs, got {pattern!r}")
        matched = matching(pattern, names)
        if not matched:
            raise ContextError(f"{argument} name {pattern!r} matches no input; the inputs are {', '.join(names)}")
        wanted.update(dict.fromkeys(matched, columns))
    return wanted


def _packed(name: str, shape: tuple[int, ...], dtype: torch.dtype, columns: Any) -> InputSpec:
    chosen = _columns("context", name, shape, columns)
    if not chosen:
        return InputSpec(name, shape, dtype, "candidate")
    if len(chosen) == shape[0]:
        return InputSpec(name, shape, dtype, "context")
    return InputSpec(name, shape, dtype, "packed", chosen)


def _with_item(spec: InputSpec, columns: Any) -> InputSpec:
    """An input, or columns of one, marked as known of the item alone."""
    if columns is False:
        return spec
    if spec.role == "context":
        raise ContextError(f"input {spec.name!r} is marked both as context and as item; it is one of them")
    if columns is True:
        return replace(spec, item=True)
    chosen = _columns("item", spec.name, spec.shape, columns)
    both = sorted(set(chosen) & set(spec.columns))
    if both:
        raise ContextError(f"columns {both} of input {spec.name!r} are marked both as context and as item")
    if len(chosen) == len(spec.candidate_columns):
        return replace(spec, item=True)
    return replace(spec, item_columns=chosen)


def _columns(argument: str, name: str, shape: tuple[int, ...], columns: Any) -> tuple[int, ...]:
    """Columns of a packed input, in order."""
    if len(shape) != 1:
        raise ContextError(
            f"input {name!r} has shape [{', '.join(['rows', *map(str, shape)])}]; columns need [rows, columns]"
        )
    width = shape[0]
    if isinstance(columns, int | None):
        raise ContextError(f"{argument} columns of input {name!r} are {columns!r}, expected a list of them")
    chosen = range(width)[columns] if isinstance(columns, slice) else [_number(argument, name, c) for c in columns]
    wrong = [c for c in chosen if not 0 <= c < width]
    if wrong:
        shown = f"{wrong}" if len(wrong) < 6 else f"{wrong[:3]} and {len(wrong) - 3} more"
        raise ContextError(f"{argument} columns {shown} of input {name!r} are outside 0..{width - 1}")
    if len(set(chosen)) != len(chosen):
        raise ContextError(f"{argument} columns of input {name!r} are listed twice: {sorted(chosen)}")
    if list(chosen) != sorted(chosen) and not isinstance(columns, Set):
        raise ContextError(
            f"{argument} columns of input {name!r} are listed in another order than that of the input, in which a "
            "Split gives them: list them ascending, and give X[:, sorted(columns)]"
        )
    return tuple(sorted(chosen))


def _number(argument: str, name: str, column: Any) -> int:
    """The number of a column, also one of NumPy or of PyTorch; a truth value is none, for it says by its place."""
    truth = isinstance(column, bool) or str(getattr(column, "dtype", "")).endswith("bool")
    try:
        if not truth:
            return operator.index(column)
    except TypeError:
        pass
    raise ContextError(
        f"{argument} columns of input {name!r}: {column!r} is no whole number, expected those of columns"
    )
