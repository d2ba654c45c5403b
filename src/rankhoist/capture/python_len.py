"""`len(x)` in a model's own files: Python wants a number of it, where `x.shape[0]` is a size of any number of rows.

While the model is exported, the files that its modules are written in have a `len` of their own, which looks at the
shape. Elsewhere Python's stays as it is: what it fixes, the strict exporter reads in the model's bytecode.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from rankhoist.capture.own_lines import is_own


@contextlib.contextmanager
def lengths_are_sizes(model: nn.Module) -> Iterator[None]:
    """For the files of a model's modules, and of what they are derived from."""
    files = {base.__module__ for module in model.modules() for base in type(module).__mro__}
    spaces = [vars(sys.modules[name]) for name in files if name in sys.modules]
    own = [s for s in spaces if "len" not in s and s.get("__file__") and is_own(str(s["__file__"]))]
    for space in own:
        space["len"] = _length
    try:
        yield
    finally:
        for space in own:
            space.pop("len", None)


def _length(x: Any) -> Any:
    return x.shape[0] if isinstance(x, Tensor) and x.dim() else len(x)
