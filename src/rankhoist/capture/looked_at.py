"""Arrays of a call's values that a model keeps for whoever looks at it: `self.seen = shares.detach().cpu().numpy()`.

A graph makes no array, and while a model computes nobody has to read one. Who does is refused then, whatever is read.
"""

from __future__ import annotations

from typing import Any

import numpy as np

OWN = {*dir(object)} - {"__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__str__", "__repr__", "__format__"}


class LookedAt:
    """In the place of an array, to be kept and nothing else."""

    def __getattr__(self, name: str) -> Any:
        _refuse(self)


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("what .numpy() gives of an input's values is read in forward, where a graph has no array")


for _name in {*dir(np.ndarray)} - OWN:
    if _name.startswith("__"):  # the others are asked for by __getattr__
        setattr(LookedAt, _name, _refuse)
