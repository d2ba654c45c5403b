"""What the weights stage of a file would allocate, known before it runs: a small file must not ask for all memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from rankhoist.compiler.emit import Stage
from rankhoist.errors import ArtifactError
from rankhoist.runtime.plain import shown

FREE = 2**30  # bytes that any file may ask for,
TIMES = 16  # and so many times its weights: a product of two thin matrices is larger than both


def check(stage: Stage, tensors: Mapping[str, Tensor]) -> None:
    """Run the weights stage on tensors without memory, of the shapes of `tensors`.

    Raises:
        ArtifactError: all results together are far larger than the weights, or their sizes cannot be told.
    """
    allowed = FREE + TIMES * sum(t.numel() * t.element_size() for t in tensors.values())
    try:
        with torch.inference_mode(False), torch.no_grad(), FakeTensorMode():
            read = [tensors[name] for name in stage.leaves]
            given = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype) for t in read]
            with _Counted(allowed):
                stage.run(None, None, None, *given)
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(f"the sizes of what it makes of its weights are unknown: {shown(str(error))}") from error


class _Counted(TorchDispatchMode):
    """Adds up the bytes of new results."""

    def __init__(self, allowed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allowed, self.bytes = allowed, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if any(r.alias_info is not None for r in func._schema.returns):  # no new memory
            return made
        self.bytes += sum(t.untyped_storage().nbytes() for t in pytree.tree_leaves(made) if isinstance(t, Tensor))
        if self.bytes > self.allowed:
            raise ArtifactError(
                f"it makes {self.bytes:,} bytes of its weights (at {func}), and {self.allowed:,} are allowed: "
                f"{FREE:,} and {TIMES} times its weights"
            )
        return made
