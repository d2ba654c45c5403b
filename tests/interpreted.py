"""Kernels in Triton beside the operators they stand for, on the CPU: run with TRITON_INTERPRET=1, prints what differs.

A program of its own, for Triton decides when it is imported whether it compiles.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import torch
import torch.nn.functional as F
from helpers import Function, assert_equal, repeated
from torch import Tensor

from rankhoist import HoistedModel, Workload
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph import fused, kernels
from rankhoist.compiler.graph.activations import NAMES, OVER
from rankhoist.compiler.graph.padded import Padded
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.plan.search import operators_of
from rankhoist.compiler.targets import named
from rankhoist.runtime import offsets as blocks

CPU = torch.device("cpu")
COUNTS = ([1], [0, 0, 70, 1, 0, 9, 0], [0, 0])  # candidates of each request
SIZES = ((1, 1, 1, 1), (1, 1, 40, 130), (2, 3, 7, 16))  # B, E, k, n


def calls() -> dict[str, Callable[[], None]]:
    """Every check by name."""
    found: dict[str, Callable[[], None]] = {}
    for counts, sizes, dtype in itertools.product(COUNTS, SIZES, (torch.float32, torch.bfloat16)):
        about = f"{counts} {sizes} {dtype}"
        found[f"from a row {about}"] = lambda c=counts, s=sizes, d=dtype: from_a_row(c, s, d)
        found[f"by request {about}"] = lambda c=counts, s=sizes, d=dtype: by_request(c, s, d)
        found[f"over both {about}"] = lambda c=counts, s=sizes, d=dtype: over_both(c, s, d)
    for shape, dtype in itertools.product(
        ((7, 3), (2, 3, 64), (5, 1), (0, 4), (3, 124)), (torch.float32, torch.bfloat16)
    ):
        found[f"norm {shape} {dtype}"] = lambda s=shape, d=dtype: norms(s, d)
        found[f"repeat {shape} {dtype}"] = lambda s=shape, d=dtype: repeats(s, d)
    for check in (by_request, over_both):  # requests that have several blocks each
        found[f"cut {check.__name__}"] = lambda c=check: cut(lambda: c(COUNTS[1], SIZES[2], torch.float32))
    found |= {"no numbers of another request": no_numbers, "one request": lambda: over_both([37], (3, 5, 8, 33), None)}
    return (
        found
        | {f"ends with {name}": lambda name=name: ends(name) for name in OVER}
        | {"a model": a_model, "a sequence": a_sequence}
    )


def cut(call: Callable[[], None]) -> None:
    """However even requests are, a block has no more rows than they have on average."""
    whole, blocks.WASTE = blocks.WASTE, 0
    try:
        call()
    finally:
        blocks.WASTE = whole


def drawn(shape: tuple[int, ...], dtype: torch.dtype, swapped: bool = False) -> Tensor:
    """Numbers, perhaps not as neighbours in memory."""
    made = torch.randn(shape)
    return (made.mT.contiguous().mT if swapped else made).to(dtype)


def several(counts: list[int]) -> tuple[Tensor, Padded, Tensor]:
    """Boundaries, padded blocks and owners."""
    bounds = torch.tensor([0, *itertools.accumulate(counts)])
    padded, owner = blocks.Blocks(bounds.tolist(), int(bounds[-1])).on(CPU)
    return bounds, padded, owner


def from_a_row(counts: list[int], sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """A product by weights that starts from the row of the request; and the start by itself, over a product."""
    (_, each, k, n), (_, _, owner) = sizes, several(counts)
    x, weight = drawn((sum(counts), each, k), dtype, swapped=True), drawn((n, k), dtype)
    start = drawn((len(counts), n), dtype, swapped=True)
    truth = x.double() @ weight.double().T
    expected = truth + start.double()[owner][:, None]
    assert_equal(fused.linear_from(x, weight, start, owner), expected.to(dtype))
    assert_equal(fused.finished(truth.to(dtype), start, owner), expected.to(dtype))
    assert_equal(fused.linear_from(x[:, 0], weight, start, owner), expected[:, 0].to(dtype))
    start = drawn((len(counts), each, n), dtype, swapped=True)
    expected = truth + start.double()[owner]
    assert_equal(fused.linear_from(x, weight, start, owner), expected.to(dtype))
    assert_equal(fused.finished(truth.to(dtype), start, owner), expected.to(dtype))


def by_request(counts: list[int], sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """Products by the matrix of the request: alone, from its row, over what is there, and several matrices each."""
    (batch, each, k, n), (bounds, padded, owner) = sizes, several(counts)
    x, m = drawn((sum(counts), batch, each, k), dtype, swapped=True), drawn((len(counts), batch, k, n), dtype)
    start, total = drawn((len(counts), n), dtype), drawn((sum(counts), each, n), dtype)
    truth = torch.cat([x[a:b].double() @ m[r].double() for r, (a, b) in enumerate(itertools.pairwise(bounds.tolist()))])
    assert_equal(fused.request_matmul(x, m, padded), truth.to(dtype))
    one, first = truth[:, 0], (x[:, 0], m[:, 0], padded)
    assert_equal(fused.request_linear(*first), one.to(dtype))
    assert_equal(fused.request_linear(*first, start=start), (one + start.double()[owner][:, None]).to(dtype))
    onto = total.clone()
    assert fused.request_linear(*first, onto=onto) is onto
    assert_equal(onto, (one + total.double()).to(dtype))


def over_both(counts: list[int], sizes: tuple[int, ...], dtype: torch.dtype | None) -> None:
    """Queries over keys of the request and a row's own, of which there may be many more or fewer; perhaps of no blocks,
    and scores so far apart that only running peaks keep the sums finite.
    """
    (heads, queries, d, keys), (bounds, padded, _) = sizes, several(counts)
    n, e, own, dtype, blocks = sum(counts), d + 3, queries + 1, dtype or torch.float32, padded if dtype else None
    q = drawn((n, heads, queries, d), dtype, swapped=True) * 20
    k, v = drawn((len(counts), heads, keys, d), dtype, swapped=True), drawn((len(counts), heads, keys, e), dtype)
    own_k, own_v = drawn((n, heads, own, d), dtype), drawn((n, heads, own, e), dtype, swapped=True)
    owner = torch.repeat_interleave(torch.arange(len(counts)), bounds.diff())
    both = [torch.cat([x.double()[owner], y.double()], 2) for x, y in ((k, own_k), (v, own_v))]
    expected = F.scaled_dot_product_attention(q.double(), *both, scale=0.4)
    assert_equal(fused.merged_attention(q, k, v, own_k, own_v, 0.4, blocks), expected.to(dtype))
    assert_equal(
        kernels.merged_attention(q.double(), *(x.double() for x in (k, v, own_k, own_v)), 0.4, bounds), expected
    )


def norms(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Layer norm and root-mean-square norm of rows that may lie apart, with weights and without."""
    x, weight, bias = drawn((*shape[:-1], 2 * shape[-1]), dtype)[..., ::2] + 3, *drawn((2, shape[-1]), dtype)
    for w, b in ((weight, bias), (weight, None), (None, None)):
        own = [None if t is None else t.double() for t in (w, b)]
        expected = F.layer_norm(x.double(), shape[-1:], *own, eps=1e-3)
        assert_equal(fused.norm(x, w, b, 1e-3, centred=True), expected.to(dtype))
        assert_equal(
            fused.norm(x, w, None, 1e-3, centred=False), F.rms_norm(x.double(), shape[-1:], own[0], 1e-3).to(dtype)
        )


def repeats(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Rows by owner, some of whom have none."""
    x, owner = drawn(shape, dtype, swapped=True), torch.arange(shape[0]).repeat_interleave(torch.arange(shape[0]) % 3)
    assert torch.equal(fused.repeat(x, owner), x.index_select(0, owner))


def no_numbers() -> None:
    """What is no number in one request, or in one row, stays there, though rows of several share a tile."""
    _, padded, _ = several([3, 4, 2])
    x, m, start = drawn((9, 2, 5), torch.float32), drawn((3, 5, 4), torch.float32), drawn((3, 4), torch.float32)
    m[1, 0, 0], x[8, 1, 0] = torch.inf, torch.nan
    bad = torch.zeros(9, 2, dtype=torch.bool)
    bad[3:7], bad[8, 1] = True, True
    assert torch.equal(fused.request_linear(x, m, padded, start).isfinite().all(-1), ~bad)
    q, k, v = (drawn(s, torch.float32) for s in ((9, 1, 2, 5), (3, 1, 6, 5), (3, 1, 6, 4)))
    own_k, own_v = drawn((9, 1, 3, 5), torch.float32), drawn((9, 1, 3, 4), torch.float32)
    v[1, 0, 0], own_k[8, 0, 2] = torch.inf, torch.nan
    bad[8, 0] = True
    assert torch.equal(fused.merged_attention(q, k, v, own_k, own_v, 1.0, padded).isfinite().all(-1)[:, 0], ~bad)


def ends(name: str) -> None:
    """A function of the result, by each kernel."""
    _, padded, owner = several([3, 0, 5])
    x, weight, m, start = (drawn(s, torch.float32) for s in ((8, 2, 7), (9, 7), (3, 7, 9), (3, 9)))
    op = next(op for op, own in NAMES.items() if own == name)
    product = x @ weight.T
    expected = op(product + start[owner][:, None])
    assert_equal(fused.linear_from(x, weight, start, owner, name), expected)
    assert_equal(fused.finished(product.clone(), start, owner, name), expected)
    grouped = fused.request_linear(x, m, padded)
    expected = op(grouped + start[owner][:, None])
    assert_equal(fused.request_linear(x, m, padded, start, activation=name), expected)


def a_model() -> None:
    """A plan for a GPU over padded blocks, by our kernels and by none: what is a product of ours is one kernel."""

    def scores(context: Tensor, candidate: Tensor, w: Tensor, v: Tensor) -> Tensor:
        hidden = torch.relu(torch.cat([context, candidate], 1) @ w)
        return torch.einsum("nk,nkj->nj", hidden, (context @ v).view(-1, 20, 6))

    made = {"w": torch.randn(17, 20), "v": torch.randn(8, 120)}
    model, bounds = Function(scores, **made).eval(), [0, 4, 4, 11]
    context, candidate = torch.randn(3, 8), torch.randn(11, 9)
    program = capture(model, (torch.randn(5, 8), torch.randn(5, 9)), ["context"])
    target = named("cuda-bfloat16")
    hoisted = HoistedModel(program, attempt(Task(program, Level.FULL, Workload(1000, 8), target)))
    used: list[str] = []
    for name in ("linear_from", "request_linear"):
        own = getattr(fused, name)
        setattr(fused, name, lambda *a, own=own, name=name, **k: (used.append(name), own(*a, **k))[1])
    expected = model(repeated(context, bounds), candidate)
    for ours in (lambda x: False, lambda x: True):
        fused.runs = fused.multiplies = ours
        assert_equal(hoisted(context, candidate, request_offsets=bounds), expected)
    assert used == ["linear_from", "request_linear"], used


def a_sequence() -> None:
    """A candidate behind its request's history, by our kernels and by none: one kernel where it attends to both."""

    def scores(context: Tensor, candidate: Tensor, w: Tensor) -> Tensor:
        parts = (torch.cat([context, candidate[:, None]], 1) @ w).chunk(3, -1)
        by_heads = (x.unflatten(-1, (2, 2)).transpose(1, 2) for x in parts)
        return F.scaled_dot_product_attention(*by_heads, is_causal=True)[:, :, -1]

    model, bounds = Function(scores, w=torch.randn(8, 12)).eval(), [0, 4, 4, 11]
    context, candidate = torch.randn(3, 7, 8), torch.randn(11, 8)
    program = capture(model, (torch.randn(5, 7, 8), torch.randn(5, 8)), ["context"])
    plan = attempt(Task(program, Level.FULL, Workload(1000, 8), named("cuda-bfloat16")), operators_of(program))
    assert kernels.merged_attention in {n.op for n in plan.nodes}
    hoisted, expected = HoistedModel(program, plan), model(repeated(context, bounds), candidate)
    for ours in (lambda x: False, lambda x: True):
        fused.runs = fused.multiplies = ours
        assert_equal(hoisted(context, candidate, request_offsets=bounds), expected)
        assert_equal(hoisted(context[:1], candidate), model(context[:1].expand(11, -1, -1), candidate))


def main() -> None:
    """Run all; print a line of JSON."""
    blocks.LOOPS, blocks.WASTE = (), 100
    assert kernels.fused is fused
    problems: dict[str, str] = {}
    for name, call in calls().items():
        torch.manual_seed(0)
        try:
            call()
        except Exception as error:
            problems[name] = f"{type(error).__name__}: {error}"
    print(json.dumps({"checked": len(calls()), "problems": problems}))


if __name__ == "__main__":
    main()
