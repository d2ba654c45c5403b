"""States that grow: one more event equals a longer history, or is refused by the operator that is in the way."""

from __future__ import annotations

import copy
import functools
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from growing import CHANGES, GROWS, WITH_ITEM, Reads
from helpers import assert_equal
from lengthy import IDS, ROWS, WIDTH, rows_of
from torch import Tensor, fx, nn

import rankhoist
from rankhoist import HoistedModel, Workload
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.rules import all_rules
from rankhoist.errors import AppendError, InputError, VocabularyError
from rankhoist.runtime.scoring import RequestState

MOST = 60


def made(model: nn.Module, most: int = MOST) -> HoistedModel:
    """With one plan, in which what reads the history alone is the request's."""
    context, candidate = rows_of(9, ROWS)
    program = capture(model, context | candidate, ["history"], all_rules(), dynamic={"history": {1: (1, most)}})
    return HoistedModel(program, attempt(Task(program, Level.REQUEST, Workload())))


def refusal(hoisted: HoistedModel, place: int) -> str:
    """Why a state of one of its tensors does not grow."""
    copied = copy.deepcopy(hoisted)
    variant = copied.stages.variants[0]
    graph = fx.Graph()
    graph.output((graph.graph_copy(variant.request.module.graph, {})[place],))
    graph.eliminate_dead_code()
    variant.request = replace(variant.request, module=fx.GraphModule(nn.Module(), graph))
    variant.state = [variant.state[place]]
    with pytest.raises(AppendError, match="a state of this model does not grow") as refused:
        copied.prepare(rows_of(5)[0], growing=True)
    return str(refused.value)


def assert_same(state: RequestState, want: RequestState, context: str) -> None:
    assert state.tensors.keys() == want.tensors.keys()
    for node, tensor in want.tensors.items():
        assert state.tensors[node].shape == tensor.shape, context
        torch.testing.assert_close(state.tensors[node], tensor, rtol=1e-10, atol=1e-12, msg=context)


@pytest.mark.parametrize("reads", [GROWS, WITH_ITEM], ids=["alone", "with_item"])
def test_a_longer_history_is_what_was_and_the_event(reads: dict):
    model = Reads(reads)
    hoisted = made(model)
    for requests, offsets in ((1, [0, ROWS]), (3, [0, 3, 3, ROWS])):
        context, candidate = rows_of(14, requests, seed=3)
        history = context["history"]
        state = hoisted.prepare({"history": history[:, :5]}, growing=True)
        for start, end in ((5, 6), (6, 7), (7, 10), (10, 14)):  # one event, and several
            before = [t.clone() for t in state.tensors.values()]
            longer = hoisted.append(state, {"history": history[:, start:end]})
            assert all(torch.equal(a, b) for a, b in zip(before, state.tensors.values(), strict=True))
            state = longer
            assert_same(state, hoisted.prepare({"history": history[:, :end]}), f"{requests} requests, {end}")
        owner = torch.repeat_interleave(torch.arange(requests), torch.tensor(offsets).diff())
        with torch.no_grad():
            want = model(history[owner], candidate["item"])
        for name, got, truth in zip(reads, hoisted.score(state, candidate, offsets), want, strict=True):
            assert_equal(got, truth, name)


def test_what_changes_at_every_position_is_refused_by_name():
    hoisted = made(Reads(CHANGES))
    hoisted.blueprint = replace(hoisted.blueprint, report=functools.cache(hoisted.blueprint.report))
    places = range(len(hoisted.stages.variants[0].state))
    told = [refusal(hoisted, place) for place in places]
    named = Counter(re.findall(r"aten\.(\w+)", "\n".join(told)))
    assert named == Counter(operator for *_, operator in CHANGES.values()), told
    assert any("aten.gru.input (gru in parts.both_ways.steps) changes at every position" in t for t in told), told
    assert hoisted.prepare(rows_of(5)[0]).grown is None, "and without growing nothing is asked"


def test_two_states_may_grow_from_one():
    hoisted = made(Reads({"last_step": GROWS["last_step"]}))
    history = rows_of(9, seed=5)[0]["history"]
    state = hoisted.prepare({"history": history[:, :5]}, growing=True)
    state = hoisted.append(state, {"history": history[:, 5:6]})
    one, other = (hoisted.append(state, {"history": history[:, t : t + 1]}) for t in (6, 7))
    further = hoisted.append(one, {"history": history[:, 8:9]})
    for grown, places in ((one, [6]), (other, [7]), (further, [6, 8])):
        longer = torch.cat([history[:, :6], history[:, places]], 1)
        assert_same(grown, hoisted.prepare({"history": longer}), str(places))
        assert_same(hoisted.append(grown, {"history": history[:, :1]}),
                    hoisted.prepare({"history": torch.cat([longer, history[:, :1]], 1)}), "and on")  # fmt: skip


def test_a_state_grows_in_and_outside_of_inference_mode():
    hoisted = made(Reads({"last_step": GROWS["last_step"]}))
    history = rows_of(9, seed=5)[0]["history"]
    state = hoisted.prepare({"history": history[:, :4]}, growing=True)
    for end, inference in ((5, True), (6, True), (7, False), (8, False), (9, True)):
        with torch.inference_mode(inference):
            state = hoisted.append(state, {"history": history[:, end - 1 : end]})
            assert_same(state, hoisted.prepare({"history": history[:, :end]}), f"{end}, {inference}")


# -- many events


class Remembers(nn.Module):
    """A recurrence, causal attention, a mean and a running sum."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.item = nn.Embedding(IDS, WIDTH), nn.Embedding(IDS, 4 * WIDTH)
        self.gru, self.maps = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        h = self.table(history)
        q, k, v = self.maps(h).chunk(3, -1)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        found = [self.gru(h)[1][-1], seen[:, -1], h.mean(1), h.cumsum(1).sigmoid().mean(1)]
        return (torch.cat(found, 1) * self.item(item)).sum(1)


@pytest.fixture(scope="module")
def remembers() -> HoistedModel:
    torch.manual_seed(0)
    return made(Remembers().double().eval(), 2000)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_a_thousand_events_do_not_drift(remembers: HoistedModel, dtype: torch.dtype):
    hoisted = copy.deepcopy(remembers).to(dtype)
    context, candidate = rows_of(1201, seed=1)
    history = context["history"]
    state = hoisted.prepare({"history": history[:, :200]}, growing=True)
    for t in range(200, 1200):
        state = hoisted.append(state, {"history": history[:, t : t + 1]})
    want = hoisted.prepare({"history": history[:, :1200]})
    if dtype == torch.float64:
        assert_same(state, want, "a thousand events")
    one = hoisted.append(
        hoisted.prepare({"history": history[:, :1199]}, growing=True), {"history": history[:, 1199:1200]}
    )
    scores = [hoisted.score(s, candidate) for s in (state, one, want)]
    exact = copy.deepcopy(hoisted).double()
    truth = exact(history[:, :1200], candidate["item"])
    after_all, after_one, own = (float((x.double() - truth).abs().max()) for x in scores)
    assert after_all <= 2 * max(after_one, own) + 1e-14, "a thousand events are as near the truth as one"


# -- several inputs


class Several(nn.Module):
    """A history with weights of its events, another history, and a user."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.user = nn.Embedding(40, WIDTH), nn.Linear(3, WIDTH)
        self.maps, self.top = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(2 * WIDTH, 1)
        self.double().eval()

    def forward(self, history: Tensor, weight: Tensor, other: Tensor, user: Tensor, item: Tensor) -> Tensor:
        own = self.user(user)
        mixed = self.maps(torch.cat([self.table(history), own[:, None].expand(-1, history.shape[1], -1)], -1)).tanh()
        pooled = (mixed * weight[..., None]).sum(1) + self.table(other).amax(1) * own
        return self.top(torch.cat([pooled, self.table(item)], 1)).squeeze(1)


def of_several(history: int, other: int, requests: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "history": torch.randint(40, (requests, 20), generator=generator)[:, :history],
        "weight": torch.rand(requests, 20, generator=generator, dtype=torch.float64)[:, :history],
        "other": torch.randint(40, (requests, 20), generator=generator)[:, :other],
        "user": torch.randn(requests, 3, generator=generator, dtype=torch.float64),
    }


@pytest.fixture(scope="module")
def several() -> HoistedModel:
    """Hoisted, with lengths of two histories."""
    torch.manual_seed(0)
    example = of_several(9, 13, ROWS) | {"item": torch.randint(40, (ROWS,))}
    dynamic = {"history": {1: (1, 16)}, "weight": {1: (1, 16)}, "other": {1: (1, 30)}}
    return rankhoist.hoist(Several(), example, context=list(example)[:-1], dynamic=dynamic, level="request")


def test_histories_grow_one_by_one_and_others_stay(several: HoistedModel):
    state = several.prepare(of_several(5, 7), growing=True)
    after = of_several(6, 9)
    state = several.append(state, {n: after[n][:, 5:] for n in ("history", "weight")})
    assert_same(state, several.prepare(of_several(6, 7)), "history")
    state = several.append(state, {"other": after["other"][:, 7:]})
    assert_same(state, several.prepare(after), "other")
    last = of_several(7, 10)
    state = several.append(state, {n: last[n][:, after[n].shape[1] :] for n in ("other", "history", "weight")})
    assert_same(state, several.prepare(last), "both")


def test_a_file_keeps_how_states_grow(several: HoistedModel, tmp_path: Path):
    several.save(tmp_path / "grows.rankhoist")
    loaded = rankhoist.load(tmp_path / "grows.rankhoist")
    state = loaded.prepare(of_several(5, 7), growing=["other"])
    state = loaded.append(state, {"other": of_several(5, 8)["other"][:, 7:]})
    assert_same(state, several.prepare(of_several(5, 8)), "loaded")


def test_a_state_keeps_the_weights_that_it_was_made_with(several: HoistedModel):
    hoisted = copy.deepcopy(several)
    state, want = hoisted.prepare(of_several(5, 7), growing=["other"]), hoisted.prepare(of_several(5, 8))
    hoisted.update_weights({n: t * 2 for n, t in hoisted.state_dict().items()})
    state = hoisted.append(state, {"other": of_several(5, 8)["other"][:, 7:]})
    assert_same(state, want, "old weights")


def test_events_that_do_not_fit_are_refused_by_name(several: HoistedModel):
    state = several.prepare(of_several(5, 7), growing=["history"])
    one = {n: t[:, 5:] for n, t in of_several(6, 7).items() if n in ("history", "weight")}
    plain = several.prepare(of_several(5, 7))
    assert plain.bytes < state.bytes
    refused = [
        (plain, one, "prepare it with growing=True"),
        (state, {"other": one["history"]}, "does not grow along 'other'"),
        (state, {}, "append takes events of history, weight, other; got none"),
        (state, {"user": one["weight"]}, "append takes events of history, weight, other; got user"),
        (state, {"history": one["history"]}, "missing events of 'weight', which has the length of history, weight"),
        (state, one | {"weight": one["weight"].float()}, "'weight' has dtype torch.float32"),
        (state, one | {"weight": one["weight"][..., None]}, "'weight' has shape"),
        (state, one | {"weight": one["weight"][:, :0]}, r"'weight' has shape \[2, 0\], expected \[requests, 1..\]"),
        (state, {n: t[:1] for n, t in one.items()}, "have 1 rows, and the state 2 requests"),
        (state, one | {"weight": one["weight"].repeat(1, 2)}, "the events have different lengths"),
        (state, {n: t.repeat(1, 12) for n, t in one.items()}, r"a history of 17 is longer than input 'history' takes"),
    ]  # fmt: skip
    for own, events, words in refused:
        with pytest.raises(InputError, match=words):
            several.append(own, events)
    with pytest.raises(VocabularyError, match="input 'history' has id 40 in row 0, expected 0 to 39"):
        several.append(state, one | {"history": one["history"] * 0 + 40})
    with pytest.raises(
        InputError, match="growing names 'user'; inputs with an axis that varies are history, weight, other"
    ):
        several.prepare(of_several(5, 7), growing=["user"])


def test_where_no_axis_varies_no_state_grows():
    class Sums(nn.Module):
        def forward(self, history: Tensor, item: Tensor) -> Tensor:
            return history.sum(1) * item.sum(1)

    hoisted = rankhoist.hoist(Sums().eval(), (torch.randn(4, 3), torch.randn(4, 5)), context=["history"])
    with pytest.raises(InputError, match="no axis of a context input varies: hoist with dynamic="):
        hoisted.prepare({"history": torch.randn(1, 3)}, growing=True)
