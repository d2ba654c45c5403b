"""Contexts that come again with more events: what is new of them, so that their state goes on from the one kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rankhoist.capture import Jagged, Varying
from rankhoist.capture.jagged import flat

Context = Mapping[str, Tensor | Jagged]
Axes = Mapping[str, tuple[Varying, ...]]  # that vary, by input


def kept(context: Context) -> dict[str, Tensor]:
    """A copy of all that a context is made of."""
    return {name: t.clone() for name, t in flat(context).items()}


def events(before: Mapping[str, Tensor], now: Context, axes: Axes) -> dict[str, Tensor] | None:
    """What is new at the end of the inputs that got longer, along one axis each; None if `now` is not the context that
    was `kept` before with more at the end.
    """
    found = dict[str, Tensor]()
    for name, rows in flat(now).items():
        old = before[name]
        axis = _longer(old, rows, axes.get(name, ()))
        if axis is not None:
            size = old.shape[axis]
            found[name] = rows.narrow(axis, size, rows.shape[axis] - size)
            rows = rows.narrow(axis, 0, size)
        if not torch.equal(rows, old):
            return None
    return found or None


def _longer(before: Tensor, now: Tensor, axes: tuple[Varying, ...]) -> int | None:
    """The axis along which it has more, if it is one of those that vary, and all others are as they were."""
    differ = [i for i, (a, b) in enumerate(zip(before.shape, now.shape, strict=True)) if a != b]
    if len(differ) != 1 or differ[0] not in {v.axis for v in axes}:
        return None
    return differ[0] if now.shape[differ[0]] > before.shape[differ[0]] else None
