"""Weights that were made under `torch.inference_mode`: torch takes no graph of them outside of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn


@contextlib.contextmanager
def ordinary_weights(model: object) -> Iterator[None]:
    """While a model is captured it has copies of them, equal and each copied once; then its own again."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    copies: dict[Tensor, Tensor] = {}
    replaced: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    for module in modules:
        for held in (module._parameters, module._buffers):
            own = [(name, x) for name, x in held.items() if x is not None and x.is_inference()]
            for name, x in own:
                if x not in copies:
                    copy = x.detach().clone()
                    copies[x] = nn.Parameter(copy, x.requires_grad) if isinstance(x, nn.Parameter) else copy
                held[name] = copies[x]  # type: ignore[assignment]
                replaced.append((held, name, x))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for held, name, x in replaced:
            held[name] = x
