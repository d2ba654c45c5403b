"""On a GPU that is not there (see `on_device`): no operator meets tensors of two devices, nothing waits, equal scores.

Calls are run as they are, and recorded as CUDA graphs by what records them on a GPU.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import serving
import torch
from bagged import Pooled, bags, starts
from growing import GROWS, Reads
from helpers import assert_equal, repeated
from on_device import CUDA, Device, OnDevice, device, there
from random_models import OFFSETS, RandomModel, build
from random_models.items import shuffled, side, with_items
from test_backends import CASES
from test_catalogue import CONTEXT, ITEM, ITEMS, Call, Ranker, example, items_of, rows
from test_growing import made as made_growing
from test_random_models import assert_close, head, owners
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import rankhoist
from rankhoist import HoistedModel, Jagged, Workload, hoist
from rankhoist.bench.scenarios import scenario
from rankhoist.capture import capture
from rankhoist.compiler.algebra.memo import Memo
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.plan import Task, search, single
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.plan.search import make_plan
from rankhoist.compiler.rules import all_rules
from rankhoist.compiler.targets import named
from rankhoist.errors import BackendError, InputError
from rankhoist.hoist import hoist_program
from rankhoist.runtime.planned import OnePlan
from rankhoist.serve.inputs import Batch
from rankhoist.serve.items import Items
from rankhoist.serve.model import ServedModel

BOUNDS = [0, 3, 3, 9, 11, 20]  # five requests, one without candidates


@pytest.fixture
def gpu() -> Iterator[Device]:
    with device() as made:
        yield made


def on(values: Any) -> Any:
    """The same on the device."""
    return pytree.tree_map(lambda x: x.to("cuda") if isinstance(x, Tensor | Jagged) else x, values)


def off(values: Any) -> Any:
    """Scores, all of which are on the device."""
    leaves = [x for x in pytree.tree_leaves(values) if isinstance(x, Tensor)]
    assert leaves and all(map(there, leaves)), "a result that is not on the device"
    return pytree.tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, values)


def free(gpu: Device) -> None:
    """Nothing was waited for since it was asked last."""
    assert (gpu.waits, gpu.copies) == ([], [])
    gpu.forget()


# -- the pretence itself


def test_what_fails_on_a_device_fails_here(gpu: Device):
    x, here = torch.randn(3, 4).to("cuda"), torch.randn(3, 4)
    assert isinstance(x, OnDevice) and x.device == CUDA and x.is_cuda and torch.zeros(2, device="cuda").is_cuda
    for wrong in (lambda: x + here, lambda: torch.cat([x, here]), lambda: x.index_select(0, torch.arange(2))):
        with pytest.raises(RuntimeError, match="same device"):
            wrong()
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    gpu.forget()
    assert there(x * torch.tensor(2.0)) and there(x.new_zeros(2)) and there(torch.zeros_like(x))
    free(gpu)
    for waits in (lambda: bool(x.any()), lambda: x[x > 0], x.cpu, x.tolist, x.nonzero, lambda: x.sum().item()):
        waits()
        assert len(gpu.waits) == 1, "it waits"
        gpu.forget()
    torch.arange(3).pin_memory().to("cuda", non_blocking=True)
    free(gpu)
    for copies in (lambda: torch.arange(3).to("cuda", non_blocking=True), lambda: torch.tensor(3, device="cuda")):
        copies()
        assert len(gpu.copies) == 1, "it copies from memory that is not pinned"
        gpu.forget()


# -- every plan of the benchmark's models


@pytest.mark.parametrize("name", ["dot_pairs_27_4", "recurrent_history"])
def test_every_plan_of_a_scenario(name: str, gpu: Device, monkeypatch: pytest.MonkeyPatch):
    """Whole and in two halves; as many operators run for a few requests as for many, also where one of them has nearly
    all candidates.
    """
    monkeypatch.setattr(search, "SECONDS", 0.5)
    case = scenario(name)
    model = case.model()
    context, candidate = case.sides(len(BOUNDS) - 1, BOUNDS[-1])
    few = {n: x[:5] for n, x in candidate.items()}
    hoisted = hoist_program(capture(model, case.arguments(context, few), case.context_names))
    expected = model(*case.arguments({n: repeated(x, BOUNDS) for n, x in context.items()}, candidate))
    hoisted.to("cuda")
    assert hoisted.plans.target == "cuda-float32" and hoisted.device == CUDA
    context, candidate, many = on(context), on(candidate), case.sides(18, 0, seed=1)[0]
    uneven = {r: (on({n: x[:r] for n, x in many.items()}), [0, *[1] * (r - 1), BOUNDS[-1]]) for r in (9, 18)}
    rows = {n: repeated(x[:9], uneven[9][1]) for n, x in many.items()}
    of_uneven = model(*case.arguments(rows, off(candidate)))
    two = {n: x[:2] for n, x in context.items()}
    for plan in range(len(hoisted.plans.plans)):
        own = OnePlan(hoisted, plan)
        gpu.forget()
        got = own(*case.arguments(context, candidate), request_offsets=BOUNDS)
        calls = gpu.calls
        free(gpu)
        assert_equal(off(got), expected, f"plan {plan}")
        state = own.prepare(context)
        gpu.forget()
        got = own.score(state, candidate, BOUNDS)
        free(gpu)
        assert_equal(off(got), expected, f"plan {plan}, halves")
        gpu.forget()
        own(*case.arguments(two, candidate), request_offsets=[0, 9, 20])
        assert calls == gpu.calls, f"plan {plan} runs more operators for more requests"
        run = []
        for own_context, bounds in uneven.values():
            gpu.forget()
            got = own(*case.arguments(own_context, candidate), request_offsets=bounds)
            run.append((gpu.calls, gpu.waits.copy(), gpu.copies.copy()))
            if bounds is uneven[9][1]:
                assert_equal(off(got), of_uneven, f"plan {plan}, uneven")
        assert run[0] == run[1] and run[0][1:] == ([], []), f"plan {plan}, uneven"


@pytest.mark.parametrize("name", CASES)
def test_recorded_calls(name: str, gpu: Device):
    """One request and several, other rows in every call, with new weights too."""
    case = CASES[name]
    model, hoisted = (copy.deepcopy(one).double() for one in case.make())
    hoisted.to("cuda").to_backend("graphs")
    chance = random.Random(0)
    for new in (False, True):
        if new:
            model = copy.deepcopy(model)
            with torch.no_grad():
                for weight in model.parameters():
                    weight.mul_(1.25)
            hoisted.update_weights(model.state_dict())
        for count in (1, 9, 5, 20, 20):
            offsets = [0, *sorted(chance.choices(range(count + 1), k=chance.randint(0, 4))), count]
            user, item = (_double(draw(n)) for draw, n in ((case.user, len(offsets) - 1), (case.item, count)))
            expected = model(*case.whole(repeated(user, offsets), item))
            own = case.call(hoisted, on(user), on(item), offsets)
            apart = case.run(hoisted, on(user), on(item), offsets)
            assert_equal(off([own, apart]), [expected, expected], f"{offsets}")
    assert hoisted.replay_counts.replayed >= 16 and gpu.driver.replays >= 16
    assert all(s.graph is None for s in gpu.driver.streams) and gpu.driver.random


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


@pytest.mark.parametrize("backend", ["eager", "graphs"])
def test_a_recorded_call_waits_for_nothing(backend: str, gpu: Device):
    """Of a call that is repeated, the boundaries alone go over, and from pinned memory."""
    case = CASES["crossed"]
    hoisted = case.make()[1].double().to("cuda").to_backend(backend)
    user, item = on(case.user(3)), on(case.item(12))
    for offsets in ([0, 4, 8, 12], [0, 3, 7, 12], [0, 4, 7, 12]):
        gpu.forget()
        hoisted(user, item, request_offsets=offsets)
        state = hoisted.prepare({"user": user})
        hoisted.score(state, {"item": item}, offsets)
    free(gpu)
    assert (gpu.driver.replays > 0) == (backend == "graphs")


def test_warm_up_records_what_is_planned_for_replays(gpu: Device):
    """On a GPU without asking, `tune` and `warm_up` record; a copy of the model does too."""
    case = CASES["crossed"]
    model, hoisted = case.make()
    hoisted.to("cuda").warm_up([8, 16], [1, 2])
    assert hoisted.backend == "graphs" and hoisted.plans.target == "cuda-float32-graphs"
    for own in (hoisted, copy.deepcopy(hoisted).warm_up([8], [2])):
        before = own.replay_counts.replayed
        user, item = case.user(2), case.item(7)
        got = own(on(user), on(item), request_offsets=[0, 2, 7])
        assert_equal(off(got), model(*case.whole(repeated(user, [0, 2, 7]), item)))
        assert own.replay_counts.replayed == before + 1
    tuned = copy.deepcopy(case.make()[1]).to("cuda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rankhoist.runtime.tune.installed", lambda *_: ["eager", "graphs"])
        tuned.tune([8], [1, 2], seconds=0.2)
    user, item = case.user(1), case.item(8)
    assert_equal(off(tuned(on(user), on(item))), model(*case.whole(user.expand(8, *user.shape[1:]), item)))


# -- random models


def with_example(model: RandomModel) -> RandomModel:
    """Whose example is of three requests."""
    whole = model.rows(model.context, head(model.candidate, 3), torch.arange(3))
    return replace(model, program=replace(model.program, example=whole))


@pytest.mark.filterwarnings("ignore:calls run as they are:rankhoist.errors.HoistingWarning")
@pytest.mark.parametrize("seed", range(20))
def test_random_models(seed: int):
    """Moved there, by a plan for there; recorded; planned where they are there already."""
    model = with_example(build(random.Random(seed).randint))
    expected = model.original(model.context, model.candidate, owners(OFFSETS))
    plan = attempt(Task(model.program, Level.FULL, Workload(), named("cuda-float32")))
    with device() as gpu:
        hoisted = HoistedModel(model.program, plan).to("cuda")
        context, candidate = on(model.context), on(model.candidate)
        call = model.call(context, candidate)
        gpu.forget()
        got = [hoisted(**call, request_offsets=OFFSETS), hoisted.score(hoisted.prepare(context), candidate, OFFSETS)]
        free(gpu)
        for made in got:
            assert_close(off(made), expected, "as it is")
        if not model.program.lengths and not any(s.bags for s in model.program.inputs.values()):
            hoisted.to_backend("graphs")
            for _ in range(2):
                assert_close(off(hoisted(**call, request_offsets=OFFSETS)), expected, "recorded")
        program = moved(model)
        again = make_plan(Task(program, Level.FULL, Workload())) if seed % 5 == 0 else None
        own = HoistedModel(program, again or attempt(Task(program, Level.FULL, Workload())))
        assert_close(off(own(**call, request_offsets=OFFSETS)), expected, "captured there")
        back = own.cpu()(**model.call(model.context, model.candidate), request_offsets=OFFSETS)
        assert_close(back, expected, "back")


def moved(model: RandomModel) -> Any:
    """The program as it is captured of a model that is there; its graph says `cuda` where it names a device."""
    program = model.program
    for node in program.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda")}
    weights = {n: replace(w, tensor=w.tensor.to("cuda")) for n, w in program.weights.items()}
    return replace(program, weights=weights, device=CUDA, example=on(program.example))


@pytest.mark.parametrize("seed", range(20, 28))
def test_random_models_with_a_store(seed: int):
    model = build(random.Random(seed).randint)
    if model.program.lengths:
        return  # no store has items whose model reads a history of any length
    program, order = with_items(model.program), [3, 1, 6, 0, 2, 5, 4]
    expected = model.original(model.context, model.candidate, owners(OFFSETS))
    items, pairs = shuffled(side(model, program, "item"), order), side(model, program, "pair")
    b = Builder()
    workloads = Workload(), Workload(item_bytes=10**6)
    plans = [single(attempt(Task(program, Level.FULL, w), memo=Memo(b))) for w in workloads]
    rows = torch.tensor(order).argsort()
    with device() as gpu:
        hoisted = HoistedModel(program, *plans).to("cuda")
        for given in (items, on(items)):
            store, pair_inputs = hoisted.catalogue(given), on(pairs)
            state = hoisted.prepare(on(model.context), store=store)
            gpu.forget()
            got = hoisted.score(state, None, OFFSETS, store=store, rows=rows, pair_inputs=pair_inputs)
            free(gpu)
            assert_close(off(got), expected, "by a store")


# -- inputs as production has them


class Constants(nn.Module):
    """What a model makes of nothing in its forward, and keeps beside its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.place, self.top = nn.Embedding(20, 6), nn.Embedding(5, 6), nn.Linear(13, 1)
        self.plain = torch.rand(6)
        self.register_buffer("scale", torch.rand(6), persistent=False)

    def forward(self, history: Tensor, item: Tensor, price: Tensor) -> Tensor:
        length = history.shape[1]
        h = self.table(history) + self.place(torch.arange(length)) * self.plain * self.scale
        seen = torch.tril(torch.ones(length, length, dtype=torch.bool))
        h = (h @ h.mT).masked_fill(~seen, float("-inf")).softmax(-1) @ h
        weights = torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5], dtype=h.dtype)
        user = (h * weights[:, None]).sum(1) * torch.full((1,), 0.5)
        x = torch.cat([user, self.table(item), price + torch.zeros(price.shape[0], 1, dtype=price.dtype)], 1)
        x = x[:, torch.tensor([0, 2, 4, 6, 8, 10, 12, 1, 3, 5, 7, 9, 11])]
        return self.top(x) + torch.where(price > 0, torch.eye(2)[0, 0], torch.zeros(1))


def test_constants_go_where_the_model_goes(gpu: Device, tmp_path: Any):
    """Also through a file, back again, and with new weights."""
    torch.manual_seed(0)
    model = Constants().double().eval()
    history, item, price = torch.randint(20, (5, 5)), torch.randint(20, (20,)), torch.randn(20, 1).double()
    program = capture(model, (history, item[:5], price[:5]), ["history"], all_rules())
    expected, given = model(repeated(history, BOUNDS), item, price), on((history, item, price))
    for level in (Level.EXPAND, Level.FULL):
        hoisted = HoistedModel(program, attempt(Task(program, level, Workload()))).cuda()
        gpu.forget()
        got = hoisted(*given, request_offsets=BOUNDS)
        free(gpu)
        assert_equal(off(got), expected, level.name)
    hoisted.update_weights(model.state_dict())
    hoisted.save(tmp_path / "a.rankhoist")
    loaded = rankhoist.load(tmp_path / "a.rankhoist")
    assert_equal(loaded(history, item, price, request_offsets=BOUNDS), expected)
    for own in (hoisted, loaded.to("cuda")):
        assert_equal(off(own(*given, request_offsets=BOUNDS)), expected)
    assert_equal(hoisted.to("cpu")(history, item, price, request_offsets=BOUNDS), expected)


def test_bags_and_histories_of_any_length(gpu: Device):
    """Values and lengths; states that grow."""
    torch.manual_seed(0)
    model, sizes = Pooled().eval(), ([2, 0, 3], [1, 4, 0, 2, 2, 0, 1])
    tags, words, price = bags(sizes[0]), bags(sizes[1], seed=1), torch.randn(7, 1, dtype=torch.float64)
    example = (tags.values[0], starts(tags.lengths), words.values[0][:3], torch.tensor([0, 1, 3]), price[:3])
    named_bags = {"tags": "tag_offsets", "words": "word_offsets"}
    program = capture(model, example, ["tags"], all_rules(), jagged=named_bags)
    hoisted = HoistedModel(program, make_plan(Task(program, Level.FULL, Workload()))).to("cuda")
    owner = owners(OFFSETS)
    whole = tags[owner]
    expected = model(whole.values[0], starts(whole.lengths), words.values[0], starts(words.lengths), price)
    context, candidate = on({"tags": tags}), on({"words": words, "price": price})
    state = hoisted.prepare(context)
    gpu.forget()
    got = hoisted.score(state, candidate, OFFSETS)
    free(gpu)
    assert_equal(off(got), expected)


def test_states_grow_there(gpu: Device):
    model = Reads({name: GROWS[name] for name in ("counted", "causal_window")})
    hoisted = made_growing(model).to("cuda")
    history, item = torch.randint(40, (3, 8)), torch.randint(40, (7,))
    state = hoisted.prepare(on({"history": history[:, :6]}), growing=True)
    for place in (6, 7):
        state = hoisted.append(state, on({"history": history[:, place : place + 1]}))
    with torch.no_grad():
        expected = model(history[owners(OFFSETS)], item)
    assert_equal(off(hoisted.score(state, on({"item": item}), OFFSETS)), expected)


def test_stores_of_items(gpu: Device, tmp_path: Any):
    """In the device's memory and in a folder, opened again, changed, ranked as a whole."""
    torch.manual_seed(0)
    model = Ranker().double().eval()
    program, b = capture(model, example(), CONTEXT, all_rules(), item=ITEM), Builder()
    workloads = Workload(), Workload(item_bytes=10_000)
    plans = [single(attempt(Task(program, Level.FULL, w), memo=Memo(b))) for w in workloads]
    hoisted = HoistedModel(program, *plans)
    catalogue = items_of(rows(ITEMS))
    call = Call(model, catalogue)
    plain = call.pairs, call.context
    call.pairs, call.context = on(plain)
    hoisted.to("cuda")
    folder = hoisted.catalogue(catalogue, path=tmp_path / "store")
    stores = [hoisted.catalogue(catalogue), folder, hoisted.open_catalogue(tmp_path / "store")]
    stores.append(hoisted.catalogue(catalogue, path=tmp_path / "short", dtype=torch.int8))
    call.scored(hoisted, stores[0])
    gpu.forget()
    got = [off(call.scored(hoisted, store)) for store in stores]
    assert set(gpu.waits) == {"copy to the CPU"} and len(gpu.waits) == len(stores) and not gpu.copies
    call.pairs, call.context = plain
    expected = call.expected(catalogue)
    for made in got[:3]:
        assert_equal(made, expected)
    assert float((got[3] - expected).abs().max() / expected.abs().max()) < 0.05
    changed = {n: x[:2] for n, x in items_of(rows(ITEMS)).items()}
    for store in stores[:2]:
        store.update(changed, [7, ITEMS])
        store.drop([3])
        assert len(store) == ITEMS
    one, pairs = on([{n: x[:1] for n, x in given.items()} for given in (call.context, call.pairs)])
    state = hoisted.prepare(one, store=stores[0])
    ids, _ = hoisted.rank_all(state, stores[0], 4, by=lambda made: made[:, 0], pair_inputs=pairs)
    assert len(ids) == 4 and 3 not in ids


# -- what is said, and the server


def test_an_input_elsewhere_is_named(gpu: Device):
    case = CASES["crossed"]
    hoisted = case.make()[1].double().to("cuda")
    user, item = case.user(2), case.item(4)
    with pytest.raises(InputError, match=r"^candidate input 'item' is on cpu, and the model on cuda:0: move one"):
        hoisted(on(user), item, request_offsets=[0, 2, 4])
    with pytest.raises(InputError, match=r"^context input 'user' is on cpu, and the model on cuda:0"):
        hoisted.to_backend("graphs")(user, on(item), request_offsets=[0, 2, 4])
    with pytest.raises(InputError, match=r"^candidate input 'item' is on cuda:0, and the model on cpu"):
        hoisted.to("cpu").to_backend("eager")(user, on(item), request_offsets=[0, 2, 4])


def test_a_graph_of_the_callers_own(gpu: Device):
    """A call of one request is captured as it is, recorded or not; one that copies to the device is refused."""
    case = CASES["crossed"]
    model, hoisted = case.make()
    hoisted.to("cuda").warm_up([4], [1])
    user, item = case.user(1), case.item(4)
    given, graph = on((user, item)), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        made = hoisted(*given)
    other = case.item(4)
    given[1].copy_(other.pin_memory())
    graph.replay()
    assert_equal(off(made), model(user.expand(4), other))
    two = on(case.user(2))
    with pytest.raises(BackendError, match="cannot be captured"), torch.cuda.graph(graph, stream=torch.cuda.Stream()):
        hoisted(two, given[1], request_offsets=[0, 2, 4])


def test_a_server_there(gpu: Device):
    """Requests come in the CPU's memory, with and without a catalogue."""
    hoisted = serving.hoisted_ranker()
    given = serving.inputs(1, 6)
    expected = serving.scores(hoisted, given)
    served = ServedModel("ranker", "1", hoisted.to("cuda"))
    hoisted.warm_up([6], [1])
    for _ in range(2):
        context = {n: x for n, x in given.items() if n in serving.CONTEXT}
        candidates = {n: x for n, x in given.items() if n not in serving.CONTEXT}
        gpu.forget()
        got = served.score(Batch(context, candidates, 1, 6))
        free(gpu)
        for name, own in expected.items():
            np.testing.assert_allclose(got.outputs[name], own, rtol=2e-5, atol=2e-6)
    assert hoisted.replay_counts.replayed >= 2


def test_a_server_with_a_catalogue_there(gpu: Device):
    model = serving.Ranker().eval()
    hoisted = hoist(model, serving.inputs(8, 8), context=list(serving.CONTEXT), item=["item", "tags"])
    given = serving.inputs(1, 6)
    expected = serving.scores(hoisted, given)
    hoisted.to("cuda")
    store = hoisted.catalogue({n: given[n] for n in ("item", "tags")})
    served = ServedModel("ranker", "1", hoisted, items=Items(store, "sku"))
    context = {n: given[n] for n in serving.CONTEXT}
    got = served.score(Batch(context, {"price": given["price"]}, 1, 6, ids=np.arange(6)))
    for name, own in expected.items():
        np.testing.assert_allclose(got.outputs[name], own, rtol=2e-5, atol=2e-6)
