"""Whose memory a result and a state are: a caller who writes to what was given or returned changes no later call."""

from __future__ import annotations

import pytest
import torch
from helpers import Function, assert_equal, hoisted_at, repeated
from torch import nn
from torch.utils import _pytree as pytree

import rankhoist
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules import all_rules

W = torch.linspace(-1, 1, 3, dtype=torch.float64)
OFFSETS = [[0, 4], [0, 1], [0, 2, 2, 5]]
SHARED = {
    "input": lambda c, k, w: (k, (c * k).sum(1)),
    "view_of_an_input": lambda c, k, w: (k[:, 1], k.t().t()[:, :2]),
    "context": lambda c, k, w: (c, c[:, 0], (c * k).sum(1)),
    "of_context_alone": lambda c, k, w: (c * w).sum(1, keepdim=True),
    "weight": lambda c, k, w: (w, w[1:], (c * k).sum(1)),
    "of_weights_alone": lambda c, k, w: (w * 2, w.exp().expand(k.shape[0], 3), (c * k).sum(1)),
    "number": lambda c, k, w: (torch.tensor(2.5), torch.ones(k.shape[0], 2), c + k),
    "einsum_of_one": lambda c, k, w: torch.einsum("bi->ib", k).t(),
    "whole_numbers": lambda c, k, w: (c > 0, k > 0),
    "two_names": lambda c, k, w: (lambda y: (y, y.clone(), (y + 0)[:, :1]))(c * k),
}


def leaves(result):
    return [x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("name", SHARED)
def test_a_result_is_the_caller_s(name):
    c, k = torch.randn(3, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    model = Function(SHARED[name], w=W.clone()).eval()
    program = capture(model, (c[[0, 1, 2, 0]], k[:4]), ["context"], all_rules())
    for level in (Level.EXPAND, Level.REQUEST, Level.FULL):
        hoisted = hoisted_at(program, level)
        for offsets in OFFSETS:
            requests, rows = len(offsets) - 1, offsets[-1]
            given = c[:requests].clone(), k[:rows].clone()
            want = model(repeated(given[0], offsets), given[1])
            want = pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, want)
            state = hoisted.prepare([given[0]], candidates=rows)
            for call in (
                lambda h=hoisted, g=given, o=offsets: h(*g, request_offsets=o),
                lambda h=hoisted, g=given, o=offsets, s=state: h.score(s, [g[1]], o),
            ) * 2:
                result = call()
                assert_equal(result, want, f"{level} {offsets}")
                for one in leaves(result):
                    one.fill_(1)
                    others = [x for x in leaves(result) if x is not one]
                    assert name != "two_names" or not (others[0] == 1).all()
                    one.zero_()
                assert torch.equal(given[0], c[:requests]) and torch.equal(given[1], k[:rows])
                assert torch.equal(model.w, W)


def test_what_is_made_anew_is_not_copied():
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0)).eval()
    hoisted = rankhoist.hoist(model, (torch.randn(4, 6),), context={"input": [0, 1, 2]})
    twice = rankhoist.hoist(
        Function(lambda c, k: (lambda y: (y, y))(c * k)).eval(),
        (torch.randn(4, 3), torch.randn(4, 3)),
        context=["context"],
    )
    for stage in (*hoisted.stages.all, *twice.stages.all):
        assert "clone" not in stage.module.code
    one, other = twice(torch.randn(1, 3), torch.randn(4, 3))
    assert one is other


class Reads(nn.Module):
    """Passes its context on as it is."""

    def forward(self, history, item):
        return (history * item[:, None]).sum(1), (history * 2).sum(1) * item


def test_a_state_is_the_caller_s():
    history, item = torch.randn(3, 5), torch.randn(6)
    offsets = [0, 1, 4, 6]
    hoisted = rankhoist.hoist(Reads().eval(), (history, item[:3]), context=["history"], dynamic={"history": 1})
    want = hoisted(history, item, request_offsets=offsets)
    given = history.clone()
    state = hoisted.prepare({"history": given}, candidates=6)
    growing = hoisted.prepare({"history": given[:, :4]}, growing=True)
    given.zero_()
    assert_equal(hoisted.score(state, [item], offsets), want)
    event = history[:, 4:].clone()
    grown = hoisted.append(growing, {"history": event})
    event.zero_()
    assert_equal(hoisted.score(grown, [item], offsets), want)


def test_a_state_for_a_store_is_the_caller_s():
    history, item = torch.randn(1, 5), torch.randn(6)
    hoisted = rankhoist.hoist(Reads().eval(), (history[[0] * 6], item), context=["history"], item=["item"])
    store, given = hoisted.catalogue({"item": item}), history.clone()
    state = hoisted.prepare({"history": given}, store=store)
    given.zero_()
    assert_equal(hoisted.score(state, store=store, rows=range(6)), hoisted(history, item))


class Writes(nn.Module):
    """Writes to its inputs, and returns one of them."""

    def forward(self, context, candidate):
        candidate[:, 1:].add_(context[:, 1:])
        return candidate, candidate.mul_(2).sum(1), context.neg_()


def test_inputs_that_the_model_writes_to_stay_as_they_are():
    c, k = torch.randn(2, 3), torch.randn(5, 3)
    hoisted = rankhoist.hoist(Writes().eval(), (k.clone(), k.clone()), context=["context"])
    given = c.clone(), k.clone()
    want = Writes()(repeated(c, [0, 2, 5]), k.clone())
    for _ in range(2):
        assert_equal(hoisted(*given, request_offsets=[0, 2, 5]), want)
        assert torch.equal(given[0], c) and torch.equal(given[1], k)
