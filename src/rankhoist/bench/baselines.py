"""What a hoisted model is compared with: the original on repeated rows, compiled, and mapped over candidates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from rankhoist.bench.scenarios import Scenario, Tensors

Call = Callable[[], Any]


def repeated(context: Tensors, offsets: list[int]) -> Tensors:
    """Context rows for every candidate of their request: a view where there is one request."""
    rows = offsets[-1]
    if len(offsets) == 2:
        return {name: x.expand(rows, *x.shape[1:]) for name, x in context.items()}
    counts = torch.tensor(offsets).diff().to(next(iter(context.values())).device)
    return {name: x.repeat_interleave(counts, 0) for name, x in context.items()}


def eager(model: Callable[..., Any], case: Scenario, context: Tensors, candidate: Tensors, offsets: list[int]) -> Call:
    """The model as trained, on rows that are repeated before the clock starts."""
    return partial(model, *case.arguments(repeated(context, offsets), candidate))


def vmapped(model: nn.Module, case: Scenario, context: Tensors, candidate: Tensors) -> Call:
    """`vmap` over candidates with the context unbatched: what depends on context alone is computed once."""

    def one(context: Tensors, candidate: Tensors) -> Any:
        row = {name: x.unsqueeze(0) for name, x in candidate.items()}
        return pytree.tree_map(lambda y: y.squeeze(0), model(*case.arguments(context, row)))

    return partial(torch.func.vmap(one, in_dims=(None, 0)), context, candidate)


def graphed(call: Call) -> Call:
    """The call's kernels as one CUDA graph over the same tensors: no launch costs; its result is overwritten."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = call()

    def replayed() -> Any:
        graph.replay()
        return made

    return replayed
