"""The floor of a plan: its matrix products alone, on contiguous tensors, each in the fastest orientation.

Nothing that computes the same products can be faster than this with the same library; what a stage needs beyond it is
memory traffic, pointwise operators and calls.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import Node, Rate, aten

TRIES = 3  # calls per orientation, of which the fastest counts
BATCHED = {aten.matmul.default, aten.bmm.default, aten.baddbmm.default}
BY_REQUEST = {kernels.request_linear, kernels.request_linear_from, kernels.request_linear_onto}


@dataclass(frozen=True)
class Product:
    """`batch` products `[m, k] x [k, n]`."""

    batch: int
    m: int
    k: int
    n: int

    @property
    def multiply_adds(self) -> int:
        return self.batch * self.m * self.k * self.n


def products(nodes: Iterable[Node], stage: str, candidates: int, requests: int) -> list[Product]:
    """The products of one stage ("request" or "candidate") of a plan, in one call."""
    own = [n for n in nodes if n.work.multiply_adds and n.rate is not Rate.WEIGHT and n.rate.stage == stage]
    return [p for n in own if (p := product(n, candidates, requests)).multiply_adds]


def product(node: Node, candidates: int, requests: int) -> Product:
    """What a node multiplies: rows and outer axes together are m, but for batched operators, and per request."""
    rows = candidates if node.rate.per_candidate else requests
    size = max(math.prod(node.shape), 1)
    n = node.shape[-1] if node.shape else 1
    k = max(node.work.multiply_adds // size, 1)
    outer = size // n
    if node.op in BATCHED:
        m = node.shape[-2] if len(node.shape) > 1 else 1
        return Product(rows * outer // m, m, k, n)
    if node.op in (kernels.batched_matmul, kernels.request_matmul):
        b = node.shape[0]
        times = requests if node.op is kernels.request_matmul else 1
        return Product(times * b, -(-rows // times) * outer // b, k, n)
    if node.op in BY_REQUEST and requests > 1:
        return Product(requests, -(-rows // requests) * outer, k, n)
    return Product(1, rows * outer, k, n)


def floor(parts: Iterable[Product], dtype: torch.dtype, device: torch.device) -> Callable[[], None]:
    """One call that runs all the products, each in its fastest orientation, results written over old ones."""
    calls = [min(_orientations(p, dtype, device), key=_seconds) for p in parts]

    def run() -> None:
        for call in calls:
            call()

    return run


def _orientations(p: Product, dtype: torch.dtype, device: torch.device) -> list[Callable[[], Any]]:
    """`x w`, `x w^T` and `w x^T`, so that either operand may come in either layout."""

    def made(*shape: int) -> torch.Tensor:
        return torch.ones(*([p.batch] if p.batch > 1 else []), *shape, dtype=dtype, device=device)

    multiply = torch.mm if p.batch == 1 else torch.bmm
    x, w, wt = made(p.m, p.k), made(p.k, p.n), made(p.n, p.k)
    out, out_t = made(p.m, p.n), made(p.n, p.m)
    return [
        partial(multiply, x, w, out=out),
        partial(multiply, x, wt.mT, out=out),
        partial(multiply, wt, x.mT, out=out_t),
    ]


def _seconds(call: Callable[[], Any]) -> float:
    best = math.inf
    for _ in range(TRIES + 1):  # the first call is the warm-up: it may be slow, never the fastest
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best
