"""Functions of PyTorch that run the code of others for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def calling(others: Mapping[Any, Any]) -> Iterator[None]:
    """Whoever has imported a function, by whatever name, calls another that stands for it."""
    with contextlib.ExitStack() as stack:
        for own, other in others.items():
            for part in ("__code__", "__defaults__", "__kwdefaults__"):
                stack.callback(setattr, own, part, getattr(own, part))
                setattr(own, part, getattr(other, part))
        yield
