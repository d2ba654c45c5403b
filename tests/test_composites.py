"""Operators that are made of others: followed through their parts, and left whole where that would be wrong."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, assert_equal, check_model, rates_of, reasons

from rankhoist import hoist
from rankhoist.capture.composites import few_prepared, is_functional
from rankhoist.compiler.graph.node import Rate
from rankhoist.errors import UnsupportedModelError

G = torch.Generator().manual_seed(0)
CONTEXT, CANDIDATE = (torch.randn(n, 4, generator=G, dtype=torch.float64) for n in (3, 7))
W = torch.randn(5, 8, generator=G, dtype=torch.float64)
INT8 = torch.int8


FUNCTIONAL = {  # sizes, which stand in every graph of any number of rows, are no parts
    "parts": lambda c, k: both(c, k).view(k.shape[0], 2, 4).sum(1),
    "several_results": lambda c, k: c.sort(1)[0] + k,
    "whole": lambda c, k: F.layer_norm(both(c, k), (8,)) @ W.t(),
}
OTHERS = {
    "taken_apart_by_torch": lambda c, k: both(c, k).reshape(k.shape[0], 2, 4).sum(1),
    "writes": lambda c, k: both(c, k).clone().relu_(),
    "has_an_effect": lambda c, k: (torch._assert_async(k.isfinite().all()), c + k)[1],
    "hidden": lambda c, k: torch.cond(k.sum() > 0, lambda x: x + 1, lambda x: x - 1, (c + k,)),
    "of_another_library": lambda c, k: torch.ops.quantized_decomposed.quantize_per_tensor(
        c.float(), 0.1, 0, -9, 9, INT8
    ),
}


@pytest.mark.parametrize("name", FUNCTIONAL)
def test_a_functional_program_is_what_torch_would_make_of_it(name: str):
    program = torch.export.export(Function(FUNCTIONAL[name]).eval(), (CONTEXT, CONTEXT.clone()))
    assert is_functional(program)
    program.graph.eliminate_dead_code()
    traced = program.run_decompositions({})
    calls, again = ([(n.target, str(n.args), str(n.kwargs)) for n in x.graph.nodes] for x in (program, traced))
    assert calls == again


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_not(name: str):
    importlib.import_module("torch.ao.quantization.fx._decomposed")
    assert not is_functional(torch.export.export(Function(OTHERS[name]).eval(), (CONTEXT, CONTEXT.clone())))


@pytest.mark.parametrize(("name", "tables"), [("parts", []), ("taken_apart_by_torch", [{}])])
def test_a_program_is_not_traced_for_nothing(name: str, tables: list[Any], monkeypatch: pytest.MonkeyPatch):
    """Each time costs as much as the export."""
    traced = []
    whole = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.export.ExportedProgram,
        "run_decompositions",
        lambda self, table: traced.append(table) or whole(self, table),
    )
    hoist(Function((FUNCTIONAL | OTHERS)[name]).eval(), (CONTEXT, CONTEXT), context=["context"])
    assert traced == tables


def parts_of_many(c, k):
    """Composites that stay whole, those that torch takes apart itself, and one that a control flow hides."""
    x = torch.matmul(torch.hstack([c, k]).unflatten(1, (2, 4)).flatten(1), W.T.contiguous()).square_()
    x = torch.cond(k.sum() > 0, lambda x: F.cosine_similarity(x, -x).unsqueeze(1) + x, lambda x: x - 1, (x,))
    first, _ = x.chunk(2, 1)
    return F.pairwise_distance(first, -first) + torch.inner(x, W.T[0][:5]) + x.narrow(1, 0, 2).std(1)


def test_what_has_to_stay_whole_does():
    """Torch is made to prepare fewer composites than it would: the program is the same."""
    example = CONTEXT, CONTEXT.clone()
    program = torch.export.export(Function(parts_of_many).eval(), example)
    whole = program.run_decompositions({})
    with few_prepared(program):
        assert str(program.run_decompositions({})) == str(whole)
    assert {"aten.hstack.default", "aten.cosine_similarity.default"} <= set(re.findall(r"aten\.\w+\.\w+", str(whole)))


def both(c, k):
    return torch.cat([c, k], 1)


def assigned(c, k):
    x = torch.zeros(k.shape[0], 8, dtype=k.dtype)
    x[:, :4] = c
    x[:, -3:] = k[:, :3]
    x[:, 4] = k[:, 3]
    return x


def at_places(c, k):
    """Assigned by steps, lists (the last of two wins), negative places and constant masks."""
    x = k.new_zeros(k.shape[0], 8)
    x[:, ::2] = c
    x[:, [1, 3, 5, -1]] = k
    return x


def overwritten(c, k):
    x = both(c, k)
    x[:, [1, 6, 1]] = torch.stack([c[:, 0], k[:, 0], k[:, 1]], 1)
    x[:, torch.tensor([True] * 2 + [False] * 6)] = c[:, 2:3]
    x[:, -5::3] = 2.0
    x[:, 3:5].fill_(0.5)
    x[:, 2].zero_()
    x[x > 1] = -1.0
    return x


def hidden_by_ids(c, k, w):
    """Tokens `[rows, 8, 5]`, of which some become one vector."""
    tokens = both(c, k).unsqueeze(2) * w[:, 0]
    tokens[both(c, k) > 0.5] = w[:, 1]
    return tokens.sum(2)


def diagonals(c, k):
    x = torch.cat([c.unsqueeze(2) * c.unsqueeze(1), k.unsqueeze(2) * c.unsqueeze(1)], 1)  # [rows, 8, 4]
    return torch.cat([x.diagonal(n, *axes) for n in (0, -2, 3, -5) for axes in ((1, 2), (2, 1), (-2, -1))], 1)


def on_diagonals(c, k):
    """Numbers of either side, and zeros, put on diagonals; also of a mask that has one head for all, once per head."""
    x = torch.cat([c.unsqueeze(2) * c.unsqueeze(1), k.unsqueeze(2) * c.unsqueeze(1)], 1)  # [rows, 8, 4]
    torch.diagonal(x, 0, 1, 2).copy_(k)
    torch.diagonal(x, -5, -2, -1).copy_(c[:, :3])
    torch.diagonal(x, 1, 2, 1).fill_(0.5)
    heads = x.unsqueeze(1).expand(-1, 2, -1, -1).reshape(-1, 8, 4)
    torch.diagonal(heads, -2, 1, 2).zero_()
    return heads.view(len(c), -1)


def strided(c, k):
    """Windows of 3, every second place of them, and one number many times."""
    x = both(c, k)
    rows = x.shape[0]
    return x.as_strided((rows, 3, 2), (8, 2, 3)).flatten(1) + x.as_strided((rows, 6), (8, 0)) * x.as_strided(
        (rows, 2, 3, 1), (8, 1, 2, 0)
    ).reshape(rows, 6)


COMPOSITES = {
    "at places": lambda c, k, w: F.linear(at_places(c, k), w),
    "overwritten": lambda c, k, w: F.linear(overwritten(c, k), w),
    "hidden by ids": hidden_by_ids,
    "diagonals": lambda c, k, w: diagonals(c, k),
    "on diagonals": lambda c, k, w: on_diagonals(c, k),
    "strided": lambda c, k, w: strided(c, k),
    "instance_norm": lambda c, k, w: F.instance_norm(torch.stack([c, k], 1), weight=w[0, :2], bias=w[1, :2]).sum(1),
    "hstack": lambda c, k, w: F.linear(torch.hstack([c, k]), w),
    "column_stack": lambda c, k, w: F.linear(torch.column_stack([c, k]), w),
    "dstack": lambda c, k, w: torch.dstack([c, k]).sum(2),
    "assigned": lambda c, k, w: F.linear(assigned(c, k), w),
    "cosine_similarity": lambda c, k, w: F.cosine_similarity(c, k),
    "pairwise_distance": lambda c, k, w: F.pairwise_distance(c, k),
    "linalg_norm": lambda c, k, w: torch.linalg.norm(both(c, k), dim=1),
    "inner": lambda c, k, w: torch.inner(both(c, k), w),
    "other names": lambda c, k, w: torch.divide(torch.negative(c), torch.absolute(k) + 1) - torch.arctan2(c, k),
    "nanmean": lambda c, k, w: torch.nanmean(both(c, k), 1) + torch.isclose(c, k).sum(1),
    "var_mean": lambda c, k, w: torch.stack([*torch.var_mean(both(c, k), 1), *torch.std_mean(both(c, k), [1])], 1),
    "fliplr": lambda c, k, w: F.linear(torch.fliplr(both(c, k)), w),
    "glu": lambda c, k, w: F.glu(both(c, k), 1),
    "differences": lambda c, k, w: F.mse_loss(c, k, reduction="none") + F.l1_loss(c, k, reduction="none"),
    "triangles": lambda c, k, w: torch.tril(c[:, :, None] * k[:, None]) + torch.triu(c[:, :, None] + k[:, None], 1),
    "combinations": lambda c, k, w: (
        both(c, k)[:, torch.combinations(torch.arange(8))].prod(2)
        + both(c, k)[:, torch.combinations(torch.arange(7), 2, with_replacement=True)].prod(2)
    ),
    "diag_embed": lambda c, k, w: torch.diag_embed(c) @ k.unsqueeze(2),
    "quantile": lambda c, k, w: torch.quantile(both(c, k), 0.5, dim=1),
}


@pytest.mark.parametrize("name", COMPOSITES)
def test_the_parts_are_followed(name):
    models = check_model(Function(COMPOSITES[name], w=W).eval(), CONTEXT, CANDIDATE)
    assert not [r for r in reasons(models["kept"]) if "no rule" in r]


@pytest.mark.parametrize("name", ["hstack", "column_stack", "assigned", "at places"])
def test_what_is_put_together_costs_what_a_concatenation_does(name):
    models = check_model(Function(COMPOSITES[name], w=W).eval(), CONTEXT, CANDIDATE)
    alike = check_model(Function(lambda c, k, w: F.linear(both(c, k), w), w=W).eval(), CONTEXT, CANDIDATE)
    for level in ("expand", "request", "linear", "full"):
        assert models[level].plan.cost.multiply_adds == alike[level].plan.cost.multiply_adds, level


@pytest.mark.parametrize(
    "read", [lambda x: x[:, 1:], lambda x: x.t().contiguous().t(), lambda x: x[:, :1].expand(-1, 4)]
)
def test_memory_is_not_read_where_it_lies_otherwise(read):
    """A view by strides of what is itself a view, or is transposed, has other numbers where that is laid out anew."""
    model = Function(lambda c, k: read(c * k).as_strided((k.shape[0], 2), (2, 1)))
    with pytest.raises(
        UnsupportedModelError, match=r"aten.as_strided.default in the model itself reads memory as it lies"
    ):
        hoist(model.eval(), (CONTEXT[:, :4], CANDIDATE[:3]), context=["context"])


def test_fourier_transforms_along_a_history():
    """PyTorch takes them apart in a way that the operators after it do not fit; and of no row at all MKL makes none."""

    def call(c, k, w):
        filtered = torch.fft.irfft(torch.fft.rfft(c.view(-1, 4, 1), dim=1) * torch.view_as_complex(w), n=4, dim=1)
        together = torch.fft.rfft(both(c, k).view(-1, 4, 2), dim=1, norm="ortho")
        return filtered.flatten(1) * k + together.abs().flatten(1)[:, 1:5]

    model = Function(call, w=torch.randn(3, 1, 2, generator=G, dtype=torch.float64)).eval()
    hoisted = hoist(model, (CONTEXT[[0, 1, 2, 0]], CANDIDATE[:4]), context=["context"])
    expected = model(CONTEXT[[0, 0, 0, 2, 2, 2, 2]], CANDIDATE)
    assert_equal(hoisted(CONTEXT, CANDIDATE, request_offsets=[0, 3, 3, 7]), expected)
    assert_equal(hoisted(CONTEXT, CANDIDATE[:0], request_offsets=[0, 0, 0, 0]), expected[:0])
    assert Rate.REQUEST in rates_of(hoisted, "fft_irfft") and Rate.PAIR in rates_of(hoisted, "fft_rfft")


def test_fourier_transforms_along_several_axes():
    """They are parts of others in PyTorch; those of a history are the request's."""

    def call(c, k):
        image = c.view(-1, 2, 2)
        once = torch.fft.irfft2(torch.fft.rfft2(image) * torch.fft.fft2(image).conj(), s=(2, 2)).flatten(1)
        beside = torch.fft.fftn(torch.cat([image, k.view(-1, 2, 2)], 1).unflatten(2, (2, 1)), dim=(3, 2)).abs()
        return once * k + beside.flatten(2).sum(2)

    hoisted = hoist(Function(call).eval(), (CONTEXT[[0, 1, 2, 0]], CANDIDATE[:4]), context=["context"])
    expected = call(CONTEXT[[0, 0, 0, 2, 2, 2, 2]], CANDIDATE)
    assert_equal(hoisted(CONTEXT, CANDIDATE, request_offsets=[0, 3, 3, 7]), expected)
    assert_equal(hoisted(CONTEXT[:1], CANDIDATE[:0]), expected[:0])
    once = rates_of(hoisted, "fft_rfft2") | rates_of(hoisted, "fft_fft2") | rates_of(hoisted, "fft_irfft2")
    assert once == {Rate.REQUEST} and rates_of(hoisted, "fft_fftn") == {Rate.REQUEST, Rate.ITEM}
