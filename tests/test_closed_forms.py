"""Counted work equals the closed forms of the papers that the levels stand for, to the last multiply-add.

The formulas, with their letters, are in `rankhoist.bench.closed_forms`. Both stages count. Unless another source is
named, equations and sections are those of arXiv 2605.27450.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import comb
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, assert_equal
from torch import Tensor, nn

from rankhoist import Workload
from rankhoist.bench import closed_forms
from rankhoist.bench.closed_forms import Split, Work
from rankhoist.bench.scenarios import DotPairs, NormLinear
from rankhoist.capture import Program, capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import aten, live_nodes
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.hoist import hoist_program
from rankhoist.nn import RDCN, CrossNetV2

MANY = 10**9  # candidates: the limit, in which what is done once per request counts nothing
FIELDS = [(5, 2, 3), (3, 4, 2), (1, 3, 4), (6, 1, 5)]  # K, M, D
COLUMNS = [(30, 10, 16), (7, 9, 4), (1, 5, 3), (12, 1, 8)]  # Dc, Dk, H
CANDIDATES = [1, 50, 1000]

Shape = tuple[int, ...]


def program(model: nn.Module | Callable[..., Any], context: Shape, candidate: Shape, **weights: Tensor) -> Program:
    """A model, or a function of (context, candidate, **weights), in float64; its scores are equal at level `first`."""
    module = model if isinstance(model, nn.Module) else Function(model, **weights)
    module = module.double().eval()
    g = torch.Generator().manual_seed(0)
    rows = [torch.randn(4, *shape, generator=g, dtype=torch.float64) for shape in (context, candidate)]
    captured = capture(module, tuple(rows), ["context"])
    for level in ("expand", "first"):
        expected = module(rows[0][:1].expand_as(rows[0]), rows[1])
        assert_equal(hoist_program(captured, level=level)(rows[0][:1], rows[1]), expected, level)
    return captured


def multiply_adds(captured: Program, level: str, n: int) -> int:
    return hoist_program(captured, workload=Workload(n), level=level).plan.cost.multiply_adds


def check(captured: Program, form: Split, *candidates: int) -> None:
    """Counted work at levels `expand` and `first` is that of the form."""
    for n in candidates:
        assert multiply_adds(captured, "expand", n) == form.plain.of(n)
        assert multiply_adds(captured, "first", n) == form.split.of(n)


def saving(captured: Program) -> float:
    """Share of the multiply-adds that level `first` saves for many candidates."""
    return 1 - multiply_adds(captured, "first", MANY) / multiply_adds(captured, "expand", MANY)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def both(c: Tensor, k: Tensor) -> Tensor:
    return torch.cat([c, k], 1)


# -- pairs of fields


def gram(c: Tensor, k: Tensor) -> Tensor:
    """All dot products of fields, in both orders."""
    x = both(c, k)
    return torch.bmm(x, x.mT)


def dots(c: Tensor, k: Tensor, pairs: Tensor) -> Tensor:
    """The dot product of each pair of fields once."""
    x = both(c, k)
    return torch.einsum("npd,npd->np", x[:, pairs[0]], x[:, pairs[1]])


def products(c: Tensor, k: Tensor, pairs: Tensor) -> Tensor:
    """The same without a matrix product: elements are multiplied, then added."""
    x = both(c, k)
    return (x[:, pairs[0]] * x[:, pairs[1]]).sum(-1)


def pair_list(fields: int) -> Tensor:
    return torch.triu_indices(fields, fields, 1)


@pytest.mark.parametrize(("k", "m", "d"), FIELDS)
def test_gram_matrix(k, m, d):
    check(program(gram, (k, d), (m, d)), closed_forms.gram(k, m, d), *CANDIDATES)


@pytest.mark.parametrize(("k", "m", "d"), FIELDS)
def test_dot_pairs(k, m, d):
    """Eq. 6; the ratio is Eq. 7."""
    captured, form = program(dots, (k, d), (m, d), pairs=pair_list(k + m)), closed_forms.dot_pairs(k, m, d)
    check(captured, form, *CANDIDATES)
    for n in CANDIDATES:
        counted = Fraction(multiply_adds(captured, "expand", n), multiply_adds(captured, "first", n))
        assert counted == form.ratio(n)


@pytest.mark.parametrize(("k", "m", "d"), FIELDS)
def test_dot_pairs_without_a_matrix_product(k, m, d):
    """Eq. 6 again, in elements that `mul` writes: no operator here multiplies and adds.

    Counted without the choice among levels: gathers write elements too, so a plan may well prefer `expand` here.
    """
    captured, form = program(products, (k, d), (m, d), pairs=pair_list(k + m)), closed_forms.dot_pairs(k, m, d)

    def multiplied(level: Level, n: int) -> int:
        plan = attempt(Task(captured, level, Workload(n)))
        products = [x for x in live_nodes(plan.outputs) if x.op is aten.mul.Tensor]
        return sum(x.work.elements * plan.workload.of(x.rate) for x in products)

    for n in CANDIDATES:
        assert multiplied(Level.EXPAND, n) == form.plain.of(n)
        assert multiplied(Level.FIRST, n) == form.split.of(n)


@pytest.mark.parametrize(("k", "m"), [(27, 4), (5, 2), (3, 4)])
def test_share_saved_of_all_pairs(k, m):
    """For many candidates: K / (K + M) of a Gram matrix, `C(K, 2) / C(K + M, 2)` (Eq. 8) of its pairs."""
    assert closed_forms.gram(k, m, 2).saved == Fraction(k, k + m)
    assert closed_forms.dot_pairs(k, m, 2).saved == Fraction(comb(k, 2), comb(k + m, 2))
    assert saving(program(gram, (k, 2), (m, 2))) == pytest.approx(k / (k + m), abs=1e-6)
    listed = saving(program(dots, (k, 2), (m, 2), pairs=pair_list(k + m)))
    assert listed == pytest.approx(comb(k, 2) / comb(k + m, 2), abs=1e-6)


def test_share_saved_as_published():
    """27 context and 4 candidate fields: 87 % of the Gram matrix, 75.5 % of the pairs."""
    assert saving(program(gram, (27, 2), (4, 2))) == pytest.approx(0.87, abs=5e-3)
    assert saving(program(dots, (27, 2), (4, 2), pairs=pair_list(31))) == pytest.approx(0.755, abs=5e-4)


# -- layers


@pytest.mark.parametrize(("dc", "dk", "h"), COLUMNS)
def test_linear_over_a_concatenation(dc, dk, h):
    """Eq. 11, and arXiv 2602.23105; also with the columns in any order."""
    form = closed_forms.linear(dc, dk, h)
    n, order = 50, torch.randperm(dc + dk, generator=torch.Generator().manual_seed(2))
    weight = randn(h, dc + dk)
    for call in (lambda c, k, w: F.linear(both(c, k), w), lambda c, k, w: F.linear(both(c, k)[:, order], w)):
        captured = program(call, (dc,), (dk,), w=weight)
        assert multiply_adds(captured, "expand", n) == form.plain.of(n)
        for level in ("linear", "first", "full"):
            assert multiply_adds(captured, level, n) == form.split.of(n)


@pytest.mark.parametrize(("k", "m", "d"), FIELDS)
def test_dot_pairs_then_linear(k, m, d):
    """Eq. 6, and the layer that reads the pairs, Eq. 12."""
    h = 3
    captured = program(
        lambda c, k, pairs, w: F.linear(dots(c, k, pairs), w), (k, d), (m, d), pairs=pair_list(k + m),
        w=randn(h, comb(k + m, 2)),
    )  # fmt: skip
    check(captured, closed_forms.dot_pairs(k, m, d) + closed_forms.linear_over_pairs(k, m, h), *CANDIDATES)


@pytest.mark.parametrize(("k", "m", "d"), FIELDS)
def test_triangle_of_a_gram_matrix_then_linear(k, m, d):
    """The Gram matrix and the same layer (DLRM, arXiv 1906.00091); a single field's square is never read."""
    h = 3
    form = closed_forms.gram(k, m, d, diagonal=False) + closed_forms.linear_over_pairs(k, m, h)
    check(program(DotPairs(k + m, h), (k, d), (m, d)), form, *CANDIDATES)


@pytest.mark.parametrize(("dc", "dk", "h"), COLUMNS)
def test_first_cross_layer(dc, dk, h):
    """Eq. 15 (section 4.2): Dc / D of it; a layer after it reads all of x_1."""
    n, d, form = 50, dc + dk, closed_forms.cross_layer(dc, dk)

    def cross(c: Tensor, k: Tensor, w: Tensor, b: Tensor, v: Tensor | None = None) -> Tensor:
        x = both(c, k)
        out = x * F.linear(x, w, b) + x
        return out if v is None else F.linear(out, v)

    alone = program(cross, (dc,), (dk,), w=randn(d, d), b=randn(d))
    check(alone, form, n)
    assert form.saved == Fraction(dc, d)
    assert saving(alone) == pytest.approx(dc / d, abs=1e-6)
    read = program(cross, (dc,), (dk,), w=randn(d, d), b=randn(d), v=randn(h, d))
    assert multiply_adds(read, "first", n) == (form.split + Work(0, d * h)).of(n)


class Crossed(nn.Module):
    """A cross network over both sides."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.cross = CrossNetV2(width, layers)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        out: Tensor = self.cross(both(context, candidate))
        return out


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize(("c", "t"), [(30, 10), (7, 9), (12, 1)])
def test_cross_networks(c, t, layers):
    """DCNv2 at level `first` saves in its first layer alone; rDCN (Eq. 19 and 20), hoisted, costs its formula."""
    unchanged, changed = closed_forms.cross_network(c, t, layers), closed_forms.rdcn(c, t, layers)
    check(program(Crossed(c + t, layers), (c,), (t,)), unchanged, 50)
    assert unchanged.saved == Fraction(c, (c + t) * layers)
    captured = program(RDCN(c, t, layers), (c,), (t,))
    for n in CANDIDATES:
        assert multiply_adds(captured, "full", n) == changed.split.of(n)
    assert changed.plain == unchanged.plain and changed.saved == 1 - Fraction(t, c + t) ** 2


class SelfAttention(nn.Module):
    """One layer over context and candidate tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = both(context, candidate)
        out: Tensor = self.layer(x, x, x, need_weights=False)[0]
        return out


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(("k", "m", "d"), [(5, 2, 4), (2, 3, 4), (6, 1, 8)])
def test_first_attention_layer(k, m, d, heads):
    """Section 4.3.

    What context queries take from context keys is merged with what they take from candidate keys per candidate, so the
    output projection reads all K + M tokens of every candidate.
    """
    check(program(SelfAttention(d, heads), (k, d), (m, d)), closed_forms.attention_layer(k, m, d), 50)


# -- beyond the papers


def test_norm_then_linear_is_a_small_addition_to_the_linear_map():
    """Statistics of blocks, then `Dc H + N Dk H` products: no term in N Dc."""
    dc, dk, h, n = 90, 12, 20, 1000
    captured = program(NormLinear(dc + dk, h), (dc,), (dk,))
    assert multiply_adds(captured, "full", n) <= closed_forms.linear(dc, dk, h).split.of(n) + (dc + dk + 2) * h * 2


# -- where the papers contradict themselves


def test_published_shares_by_closed_form():
    """RAD's table at 514 + 577 columns and 4 layers, and at 27 + 4 fields; MaRI's largest ratio."""
    assert closed_forms.rdcn(514, 577, 4).saved == 1 - Fraction(577, 1091) ** 2 == pytest.approx(0.72, abs=5e-4)
    assert closed_forms.rdcn_as_printed(514, 577, 4).saved == Fraction(514, 1091), "not the 72 % that it prints"
    assert closed_forms.cross_network(514, 577, 4).saved == pytest.approx(0.118, abs=5e-4), "not 18 %,"
    assert closed_forms.rdcn(514, 577, 4).saved / 4 == pytest.approx(0.18, abs=5e-4), "which would be another model's"
    assert closed_forms.gram(27, 4, 128).saved == pytest.approx(0.871, abs=5e-4)
    assert closed_forms.dot_pairs(27, 4, 128).saved == pytest.approx(0.755, abs=5e-4)
    for ratio, n in ((1, 100), (3, 500), (10, 2000)):
        assert closed_forms.linear(ratio * 64, 64, 512).ratio(n) == Fraction((1 + ratio) * n, ratio + n)
    assert float(closed_forms.linear(640, 64, 512).ratio(2000)) == pytest.approx(10.95, abs=5e-3)
