"""What a model's outputs are called where they leave Python: in a server's answer, as columns of a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from rankhoist.runtime.hoisted import HoistedModel


def made_up_outputs(hoisted: HoistedModel, rows: int) -> list[tuple[str, Any]]:
    """(name, leaf) of what a model returns for one request with so many made-up candidates.

    One tensor is `scores`, entries of a dict go by their keys (`a.b` if nested), places of a tuple are `output_0`, ...
    """
    state = hoisted.prepare(hoisted.made_up("context", 1), candidates=rows)
    result = hoisted.score(state, hoisted.made_up("candidate", rows))
    if isinstance(result, Tensor):
        return [("scores", result)]
    return [(_name(path), leaf) for path, leaf in pytree.tree_flatten_with_path(result)[0]]


def _name(path: Sequence[Any]) -> str:
    keys = [str(getattr(key, "key", getattr(key, "idx", key))) for key in path]
    return "output_" + keys[0] if len(keys) == 1 and keys[0].isdigit() else ".".join(keys)
