"""`len(x)` in a model's own files: Python wants a number of it, where `x.shape[0]` is a size of any number of rows.

While the model is exported, the files of the packages that its modules are written in have a `len` of their own, which
looks at the shape: a library's containers of features are not in the files of its layers. Elsewhere Python's stays as
it is: what it fixes, the strict exporter reads in the model's bytecode.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from rankhoist.capture.own_lines import package_names


@contextlib.contextmanager
def lengths_are_sizes(model: nn.Module) -> Iterator[None]:
    own = [names for names in package_names(model) if "len" not in names]
    for names in own:
        names["len"] = _length
    try:
        yield
    finally:
        for names in own:
            names.pop("len", None)


def _length(x: Any) -> Any:
    return x.shape[0] if isinstance(x, Tensor) and x.dim() else len(x)
