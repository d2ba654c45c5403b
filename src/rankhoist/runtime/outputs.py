"""What a model's outputs are called where they leave Python: in a server's answer, as columns of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from rankhoist.capture.named import key_text, leaves_with_path
from rankhoist.runtime.hoisted import HoistedModel


class Returned(NamedTuple):
    """A leaf of what a model returns; of a tensor the shape, with -1 where it is as long as an axis that varies."""

    name: str
    value: Any
    shape: tuple[int, ...] = ()


def made_up_outputs(hoisted: HoistedModel, rows: int) -> list[Returned]:
    """What a model returns for one request with so many made-up candidates.

    One tensor is `scores`, entries of a dict go by their keys (`a.b` if nested), places of a tuple are `output_0`, ...
    """
    made = _leaves(hoisted, rows, None)
    others = _leaves(hoisted, rows, hoisted.other_lengths) if hoisted.interface.varying else made
    return [
        Returned(name, leaf, sizes_of(leaf, other) if isinstance(leaf, Tensor) else ())
        for (name, leaf), (_, other) in zip(made, others, strict=True)
    ]  # fmt: skip


def _leaves(hoisted: HoistedModel, rows: int, lengths: Mapping[str, int] | None) -> list[tuple[str, Any]]:
    state = hoisted.prepare(hoisted.made_up("context", 1, lengths), candidates=rows)
    result = hoisted.score(state, hoisted.made_up("candidate", rows, lengths))
    if isinstance(result, Tensor):
        return [("scores", result)]
    return [(_name(path), leaf) for path, leaf in leaves_with_path(result)]


def sizes_of(tensor: Tensor, other: Tensor) -> tuple[int, ...]:
    """Its shape, and -1 where that of the same tensor for other lengths differs."""
    return tuple(size if size == changed else -1 for size, changed in zip(tensor.shape, other.shape, strict=True))


def _name(path: Sequence[Any]) -> str:
    keys = [key_text(key) for key in path]
    return "output_" + keys[0] if len(keys) == 1 and keys[0].isdigit() else ".".join(keys)
