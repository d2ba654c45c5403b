"""What torch finds out about every tensor that it traces, and nobody reads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

from torch.fx.experimental import proxy_tensor

FOUND_OUT = "_extract_tensor_metadata"  # in torch: beside the tensor itself, in which order it lies in memory


@contextlib.contextmanager
def unread() -> Iterator[None]:
    """While this thread traces a model: how its tensors lie in memory is not written beside those that stand for them.

    With sizes that are symbols that has to be shown, which took a third of the export of a model with 500 inputs.
    """
    own, found_out = threading.get_ident(), getattr(proxy_tensor, FOUND_OUT, None)

    def nothing(tensor: Any, *how: Any) -> Any:
        return None if threading.get_ident() == own or found_out is None else found_out(tensor, *how)

    with mock.patch.object(proxy_tensor, FOUND_OUT, nothing, create=True):
        yield
