"""A store of items: scores equal the original's, whatever is known of the item, of the request or of the pair alone."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import LEVELS, assert_equal, repeated
from torch import Tensor, nn

import rankhoist
from rankhoist import Split
from rankhoist.capture import capture
from rankhoist.capture.sides import mark_sides
from rankhoist.compiler.algebra.memo import Memo
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.plan import Task, make_plans, plans_with_store, single
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.plan.search import make_plan, search
from rankhoist.compiler.rules import all_rules
from rankhoist.compiler.targets import ALIKE
from rankhoist.errors import ArtifactError, ContextError, InputError, VocabularyError
from rankhoist.hoist import hoist_program
from rankhoist.runtime import HoistedModel

ITEMS, N = 40, 11
OFFSETS = [0, 4, 4, N]  # three requests, one without candidates
G = torch.Generator().manual_seed(0)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


class Ranker(nn.Module):
    """All kinds of inputs: ids, tags and a vector of the item, a packed input of all three sides, and the pair's."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item, self.tag = nn.Embedding(9, 6), nn.Embedding(ITEMS, 5), nn.EmbeddingBag(7, 3, mode="mean")
        self.tower = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
        self.norm, self.top = nn.LayerNorm(24), nn.Linear(24, 24)
        self.last = nn.Linear(24, 2)

    def forward(self, user: Tensor, item: Tensor, tags: Tensor, text: Tensor, packed: Tensor, place: Tensor) -> Tensor:
        own = torch.cat([self.item(item), self.tag(tags), self.tower(text)], 1)
        x = torch.cat([self.user(user), own, packed, place], 1)
        x = x * self.top(self.norm(x)) + x
        return self.last(torch.relu(x)) + (self.user(user)[:, :5] * self.item(item)).sum(1, keepdim=True)


def rows(count: int) -> dict[str, Tensor]:
    """Inputs of the items and of pairs, whole."""
    return {
        "item": torch.randint(ITEMS, (count,), generator=G),
        "tags": torch.randint(7, (count, 3), generator=G),
        "text": randn(count, 8),
        "packed": randn(count, 5),
        "place": randn(count, 1),
    }


CONTEXT_COLUMNS, ITEM_COLUMNS = [1, 4], [0, 3]
CONTEXT = {"user": True, "packed": CONTEXT_COLUMNS}
ITEM = {"item": True, "tags": True, "text": True, "packed": ITEM_COLUMNS}


@pytest.fixture(scope="module")
def model() -> Ranker:
    torch.manual_seed(0)
    return Ranker().double().eval()


def example() -> dict[str, Tensor]:
    return {"user": torch.randint(9, (6,), generator=G), **rows(6)}


@pytest.fixture(scope="module")
def program(model: Ranker) -> Any:
    return capture(model, example(), CONTEXT, all_rules(), item=ITEM)


@pytest.fixture(scope="module")
def hoisted(program: Any) -> HoistedModel:
    return hoist_program(program)


def items_of(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"item": given["item"], "tags": given["tags"], "text": given["text"], "packed": given["packed"][:, [0, 3]]}


class Call:
    """One call of three ragged requests (or of one), and what the original makes of it."""

    def __init__(self, model: nn.Module, catalogue: dict[str, Tensor], requests: int = 3) -> None:
        self.offsets = OFFSETS if requests == 3 else [0, N]
        self.rows = torch.randint(len(catalogue["item"]), (N,), generator=G)
        self.pairs = {"packed": randn(N, 1), "place": randn(N, 1)}
        self.context = {"user": torch.randint(9, (requests,), generator=G), "packed": randn(requests, 2)}
        self.model = model

    def whole(self, catalogue: dict[str, Tensor]) -> dict[str, Tensor]:
        """The original's inputs."""
        drawn = {n: x[self.rows] for n, x in catalogue.items()}
        packed = torch.empty(N, 5, dtype=torch.float64)
        packed[:, CONTEXT_COLUMNS] = repeated(self.context["packed"], self.offsets)
        packed[:, ITEM_COLUMNS], packed[:, [2]] = drawn["packed"], self.pairs["packed"]
        user = repeated(self.context["user"], self.offsets)
        return {"user": user, **drawn, "packed": packed, "place": self.pairs["place"]}

    def expected(self, catalogue: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return self.model(**self.whole(catalogue))

    def scored(self, hoisted: HoistedModel, store: rankhoist.Store, **named: Any) -> Tensor:
        state = hoisted.prepare(self.context, candidates=N, store=store)
        named = named or {"rows": self.rows}
        offsets = self.offsets if len(self.offsets) > 2 else None
        return hoisted.score(state, None, offsets, store=store, pair_inputs=self.pairs, **named)


@pytest.mark.parametrize("requests", [1, 3])
@pytest.mark.parametrize("level", [*LEVELS, None], ids=lambda x: "kept" if x is None else x.name.lower())
def test_scores_by_a_store_are_equal_at_every_level(model, program, level, requests):
    catalogue = items_of(rows(ITEMS))
    if level is None:
        b = Builder()
        workloads = Workload(), Workload(item_bytes=10_000)
        plans = [single(attempt(Task(program, LEVELS[-1], w), memo=Memo(b))) for w in workloads]
    else:
        plan = make_plan(Task(program, level, Workload()))
        plans = [single(plan), plans_with_store(single(plan), 10_000)]
    hoisted = HoistedModel(program, *plans)
    call = Call(model, catalogue, requests)
    assert_equal(call.scored(hoisted, hoisted.catalogue(catalogue)), call.expected(catalogue))


def test_without_a_store_a_model_with_items_is_called_as_before(model, program, hoisted):
    catalogue = items_of(rows(ITEMS))
    call = Call(model, catalogue)
    whole = call.whole(catalogue)
    packed = Split(call.context["packed"], whole["packed"][:, [0, 2, 3]])
    given = {**whole, "user": call.context["user"], "packed": packed}
    assert_equal(hoisted(**given, request_offsets=OFFSETS), call.expected(catalogue))
    program = capture(model, example(), CONTEXT, all_rules())
    plain = HoistedModel(program, make_plans(Task(program, LEVELS[-1], Workload())))
    assert plain.blueprint.with_store is None
    assert str(plain.plans) == str(hoisted.plans)
    assert [str(p) for p in plain.plans.plans] == [str(p) for p in hoisted.plans.plans]
    assert torch.equal(plain(**given, request_offsets=OFFSETS), hoisted(**given, request_offsets=OFFSETS))


def test_ids_name_items_and_follow_updates_and_drops(model, hoisted):
    catalogue = items_of(rows(ITEMS))
    ids = torch.randperm(1000, generator=G)[:ITEMS]
    store = hoisted.catalogue(catalogue, ids=ids)
    call = Call(model, catalogue)
    assert_equal(call.scored(hoisted, store, ids=ids[call.rows]), call.expected(catalogue))

    changed, new = items_of(rows(8)), items_of(rows(30))
    store.update(changed, ids[:8])
    store.drop(ids[8:10])
    store.update(new, torch.arange(2000, 2030))  # two of them on the rows of those that were dropped
    assert len(store) == ITEMS - 2 + 30
    names = torch.cat([ids[:8], ids[10:], torch.arange(2000, 2030)])
    parts = [changed, {n: x[10:] for n, x in catalogue.items()}, new]
    now = {n: torch.cat([p[n] for p in parts]) for n in catalogue}
    call = Call(model, now)
    call.rows = torch.tensor([0, 3, 7, 8, 20, 37, 38, 39, 40, 66, 67])
    assert_equal(call.scored(hoisted, store, ids=names[call.rows]), call.expected(now))
    with pytest.raises(InputError, match=f"no items with these ids: {int(ids[8])}"):
        store.rows_of(ids[8:9])


def test_ids_may_be_strings(model, hoisted):
    catalogue = items_of(rows(ITEMS))
    names = [f"sku-{i}" for i in range(ITEMS)]
    store = hoisted.catalogue(catalogue, ids=names)
    call = Call(model, catalogue)
    assert_equal(call.scored(hoisted, store, ids=[names[i] for i in call.rows]), call.expected(catalogue))
    store.update(items_of(rows(1)), ["a much longer name than the others"])
    assert len(store.rows_of(["a much longer name than the others"])) == 1
    with pytest.raises(InputError, match="unknown"):
        store.rows_of(["sku-1", "unknown"])
    with pytest.raises(InputError, match="strings, got whole numbers"):
        store.update(items_of(rows(1)), [5])


def test_a_row_that_was_dropped_has_no_item(hoisted):
    store = hoisted.catalogue(items_of(rows(5)))
    store.drop([3])
    store.read(0, [0, 4])
    with pytest.raises(InputError, match="were dropped: 3"):
        store.read(0, [0, 3])


def test_new_weights_are_a_version_of_their_own(model, program):
    hoisted, catalogue = hoist_program(program, level="linear"), items_of(rows(ITEMS))
    old, call = hoisted.catalogue(catalogue), Call(model, catalogue)
    before = call.expected(catalogue)
    kept = {n: x.clone() for n, x in model.state_dict().items()}
    state = hoisted.prepare(call.context, store=old)
    other = Ranker().double().eval()
    hoisted.update_weights(other.state_dict())
    new = hoisted.catalogue(catalogue)
    assert_equal(call.scored(hoisted, old), before)
    call.model = other
    assert_equal(call.scored(hoisted, new), call.expected(catalogue))
    with pytest.raises(InputError, match="different versions of the weights"):
        hoisted.score(state, None, OFFSETS, store=new, rows=call.rows, pair_inputs=call.pairs)
    model.load_state_dict(kept)


class Widening(nn.Module):
    """An item tower whose results are wider than what it reads, and dear."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(8, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU())
        self.own, self.top = nn.Linear(3, 256), nn.Linear(256, 1)

    def forward(self, context: Tensor, item: Tensor) -> Tensor:
        return self.top(torch.relu(self.own(context) + self.tower(item)))


def test_what_is_kept_may_be_less_or_shorter():
    """With less room, the tower is computed per candidate; in a shorter dtype, scores are off by what that rounds."""
    model, catalogue, context = Widening().double().eval(), randn(ITEMS, 8), randn(1, 3)
    expected = model(context.expand(ITEMS, 3), catalogue)
    sizes = []
    for room, dtype in ((None, None), (100, None), (None, torch.bfloat16), (None, torch.int8)):
        hoisted = rankhoist.hoist(
            model, (randn(4, 3), randn(4, 8)), context=["context"], item=["item"], item_bytes=room, level="linear"
        )
        store = hoisted.catalogue([catalogue], dtype=dtype)
        sizes.append(store.bytes_per_item)
        scores = hoisted.score(hoisted.prepare([context], store=store), store=store, rows=torch.arange(ITEMS))
        if dtype is None:
            assert_equal(scores, expected)
        else:
            assert 0 < (scores - expected).abs().max() < 0.05
    assert sizes == [256 * 8, 8 * 8, 256 * 2, 256 + 4]
    with pytest.raises(InputError, match="keeps floats in"):
        hoisted.catalogue([catalogue], dtype=torch.int16)


def test_whole_numbers_of_a_scale(model, hoisted, tmp_path):
    """int8 is off by half a step of each item's own largest value; the certificate has the error; files keep it."""
    catalogue = items_of(rows(ITEMS))
    catalogue["text"][3] *= 1000
    catalogue["text"][4] = 0
    store = hoisted.catalogue(catalogue, dtype=torch.int8, path=tmp_path / "store")
    whole, exact = (hoisted.catalogue(catalogue, dtype=d).read(0, torch.arange(ITEMS))[0] for d in (torch.int8, None))
    for node, x in exact.items():
        step = x.reshape(ITEMS, -1).abs().amax(1) / 127
        assert bool(((whole[node] - x).reshape(ITEMS, -1).abs().amax(1) <= 0.51 * step).all())
    call = Call(model, catalogue)
    again = call.scored(hoisted, hoisted.open_catalogue(tmp_path / "store"))
    assert torch.equal(again, call.scored(hoisted, store))
    certificate = rankhoist.verify(hoisted, model, store=store, candidates=(20,), requests=(1,))
    assert certificate.checks[-1].name == "store" and certificate.checks[-1].error > 1e-4


def test_a_folder_is_opened_by_others(model, program, hoisted, tmp_path):
    catalogue = items_of(rows(ITEMS))
    written = hoisted.catalogue(catalogue, ids=[f"i{k}" for k in range(ITEMS)], path=tmp_path / "store")
    hoisted.save(tmp_path / "model")
    loaded = rankhoist.load(tmp_path / "model")
    store, call = loaded.open_catalogue(tmp_path / "store"), Call(model, catalogue)
    assert_equal(call.scored(loaded, store, ids=[f"i{k}" for k in call.rows]), call.expected(catalogue))
    more = items_of(rows(100))
    written.update(more, [f"j{k}" for k in range(100)])  # the tables grow
    again, call = loaded.open_catalogue(tmp_path / "store"), Call(model, more)
    assert_equal(call.scored(loaded, again, ids=[f"j{k}" for k in call.rows]), call.expected(more))
    loaded.update_weights(Ranker().double().state_dict())
    with pytest.raises(ArtifactError, match="of other weights"):
        loaded.open_catalogue(tmp_path / "store")
    (tmp_path / "store" / "table_0.bin").unlink()
    with pytest.raises(ArtifactError, match="missing or too short"):
        hoisted.open_catalogue(tmp_path / "store")
    with pytest.raises(ArtifactError, match="no readable store"):
        hoisted.open_catalogue(tmp_path)


def test_updates_are_seen_whole(model, hoisted):
    """Every answer is that of one of two catalogues, never of some rows of each."""
    two = [items_of(rows(ITEMS)) for _ in range(2)]
    store, call = hoisted.catalogue(two[0]), Call(model, two[0])
    expected = [call.expected(catalogue) for catalogue in two]
    stop = threading.Event()

    def update() -> None:
        for k in range(1, 200):
            store.update(two[k % 2], torch.arange(ITEMS))
            if stop.is_set():
                return

    writer = threading.Thread(target=update)
    writer.start()
    try:
        for _ in range(60):
            scores = call.scored(hoisted, store)
            assert min(float((scores - e).abs().max()) for e in expected) < 1e-12
    finally:
        stop.set()
        writer.join()


def test_the_certificate_says_what_a_store_costs(model, hoisted):
    catalogue = items_of(rows(ITEMS))
    store = hoisted.catalogue(catalogue)
    sizes = {"candidates": (1, 20), "requests": (1, 3)}
    for given in ({}, {"items": catalogue}):
        certificate = rankhoist.verify(hoisted, model, store=store, **sizes, **given)
        assert certificate.passed
        assert certificate.checks[-1].name == "store"
    store.update({n: x.flip(0) for n, x in catalogue.items()}, torch.arange(ITEMS))
    wrong = rankhoist.verify(hoisted, model, store=store, items=catalogue, **sizes)
    assert [check.name for check in wrong.failures] == ["store"]


def test_the_report_shows_what_is_kept(hoisted):
    report = hoisted.report()
    text = str(report)
    assert f"{report.items.bytes:,} bytes of each" in text
    assert all(rate in text for rate in ("per model", "per request", "per item, before", "per candidate"))
    assert report.items.bytes == hoisted.catalogue(items_of(rows(2))).bytes_per_item
    assert report.items.item.multiply_adds > 0


def test_the_best_of_all_items(model, hoisted, monkeypatch):
    monkeypatch.setattr("rankhoist.runtime.catalogue.best.BLOCK", 16)
    catalogue, ids = items_of(rows(ITEMS)), torch.arange(ITEMS).flip(0) + 100
    store, call = hoisted.catalogue(catalogue, ids=ids), Call(model, catalogue, 1)
    store.drop(ids[:3])
    state, one = hoisted.prepare(call.context, store=store), {n: x[:1] for n, x in call.pairs.items()}
    every = torch.arange(3, ITEMS)
    repeated_pairs = {n: x.expand(len(every), -1) for n, x in one.items()}
    scores = hoisted.score(state, store=store, rows=every, pair_inputs=repeated_pairs)[:, 1]
    found, highest = hoisted.rank_all(state, store, 20, pair_inputs=one, by=lambda result: result[:, 1])
    order = scores.argsort(descending=True)[:20]
    assert found.tolist() == ids[every[order]].tolist()
    assert_equal(highest, scores[order])
    assert len(hoisted.rank_all(state, store, 1000, pair_inputs=one, by=lambda result: result[:, 0])[0]) == ITEMS - 3
    with pytest.raises(InputError, match="one number each"):
        hoisted.rank_all(state, store, pair_inputs=one)
    with pytest.raises(InputError, match="1 or more"):
        hoisted.rank_all(state, store, 0, pair_inputs=one)


# -- what is no item's


class Mixed(nn.Module):
    """A candidate's feature against the mean of all candidates of the call."""

    def forward(self, context: Tensor, item: Tensor) -> Tensor:
        return (context * (item - item.mean(0))).sum(1) + item.cumsum(0)[:, 0] / item.shape[0]


def test_what_reads_other_rows_is_not_stored():
    model = Mixed().eval()
    example = (randn(5, 3), randn(5, 3))
    hoisted = rankhoist.hoist(model, example, context=["context"], item=["item"], level="linear")
    catalogue, context = randn(20, 3), randn(1, 3)
    store, chosen = hoisted.catalogue({"item": catalogue}), torch.tensor([3, 3, 7, 19])
    scores = hoisted.score(hoisted.prepare([context], store=store), store=store, rows=chosen)
    assert_equal(scores, model(context.expand(4, 3), catalogue[chosen]))
    (stage,) = [hoisted.stages.catalogue.item]
    assert not [n for n in stage.module.graph.nodes if n.op == "call_function"]


def test_an_input_of_the_pair_is_not_the_items(hoisted):
    kept = {n.rate for n in hoisted.blueprint.with_store.main.stored}
    assert kept == {Rate.ITEM}
    assert "place" not in hoisted.stages.catalogue.item.leaves
    assert "packed.pair" not in hoisted.stages.catalogue.item.leaves


# -- errors


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (["user"], "'user' is marked both as context and as item"),
        (["nobody"], "item name 'nobody' matches no input"),
        ({"packed": [1]}, r"columns \[1\] of input 'packed' are marked both"),
        ({"packed": [9]}, r"item columns \[9\] of input 'packed' are outside 0..4"),
        ({"tags": [0, 0]}, "listed twice"),
    ],
)
def test_marks_that_make_no_sense(item, message):
    shapes = {n: (tuple(x.shape[1:]), x.dtype) for n, x in example().items()}
    with pytest.raises(ContextError, match=message):
        mark_sides(shapes, CONTEXT, item)


def test_calls_that_make_no_sense(model, program, hoisted):
    catalogue = items_of(rows(ITEMS))
    store, call = hoisted.catalogue(catalogue), Call(model, catalogue, 1)
    state = hoisted.prepare(call.context, store=store)

    def refused(message: str, **given: Any) -> None:
        with pytest.raises(InputError, match=message):
            hoisted.score(given.pop("state", state), **{"store": store, "pair_inputs": call.pairs, **given})

    refused("one of them")
    refused("one of them", rows=[1], ids=[1])
    refused("rows of this store are 0 to 39, got 1 to 40", rows=[1, 40])
    refused("whole numbers", rows=[0.5])
    refused("whole numbers", rows=["a"])
    refused("no items with these ids: 77", ids=[1, 77])
    refused("11 rows of pair inputs for 1 items", rows=[1])
    refused("missing pair inputs: packed", rows=call.rows, pair_inputs={"place": call.pairs["place"]})
    refused("prepared for no store", state=hoisted.prepare(call.context), rows=call.rows)
    refused("in place of the candidate inputs", rows=call.rows, candidate_inputs={})
    with pytest.raises(InputError, match="pass the candidate inputs, or a store"):
        hoisted.score(state)
    with pytest.raises(InputError, match="of another model"):
        (plain := hoist_program(program, level="expand")).prepare(call.context, store=store)
    unknown = items_of(rows(2))
    unknown["item"][1] = ITEMS
    with pytest.raises(VocabularyError, match="input 'item' has id 40 in row 1, expected 0 to 39"):
        plain.catalogue(unknown)  # whose store keeps the id, for calls to look up
    with pytest.raises(InputError, match="ids are given twice: 5"):
        hoisted.catalogue(items_of(rows(2)), ids=[5, 5])
    with pytest.raises(InputError, match="3 ids for 2 items"):
        hoisted.catalogue(items_of(rows(2)), ids=[1, 2, 3])
    with pytest.raises(InputError, match=r"item input 'text' has shape \[2, 7\]"):
        store.update({**items_of(rows(2)), "text": randn(2, 7)}, [1, 2])
    plain = HoistedModel(program, make_plan(Task(program, LEVELS[0], Workload())))
    with pytest.raises(InputError, match="no input is marked as the item's"):
        plain.catalogue(catalogue)


class Normed(nn.Module):
    """A norm over all columns, then a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.top = nn.LayerNorm(48), nn.Linear(48, 64)

    def forward(self, context: Tensor, item: Tensor) -> Tensor:
        return self.top(self.norm(torch.cat([context, item], 1)))


def test_the_items_share_of_a_norms_mean_is_stored():
    """Of the layer's width are what is kept, and two passes over it: the request's part, then the scale and the bias.

    The scale takes the difference of two means and its square, and three sums.
    """
    model, catalogue, context = Normed().double().eval(), randn(ITEMS, 16), randn(3, 32)
    hoisted = rankhoist.hoist(model, (randn(4, 32), randn(4, 16)), context=["context"], item=["item"])
    store = hoisted.catalogue([catalogue])
    scores = hoisted.score(hoisted.prepare([context], store=store), store=store, rows=range(N), request_offsets=OFFSETS)
    assert_equal(scores, model(repeated(context, OFFSETS), catalogue[:N]))
    plan = hoisted.blueprint.with_store.main
    wide = [n for n in plan.nodes if n.rate is Rate.PAIR and n.shape == (64,) and n.work.elements]
    assert [n.op.__name__ for n in wide] == ["gathered", "add.Tensor", "scaled_from"]
    numbers = [n for n in plan.nodes if n.rate is Rate.PAIR and not n.shape and n.work.elements]
    assert [n.op.__name__ for n in numbers if n.op.__name__ != "gathered"] == [
        "add.Tensor", "square.default", "add.Tensor", "add.Tensor", "rsqrt.default",
    ]  # fmt: skip


class Crossed(nn.Module):
    """`x_{l+1} = x_0 * (U V x_l) + x_l` of low rank, over columns of all sides, then a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(96, 16, bias=False) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(16, 96) for _ in range(3))
        self.top = nn.Linear(96, 24)

    def forward(self, context: Tensor, item: Tensor, place: Tensor) -> Tensor:
        first = x = torch.cat([context, item, place], 1)
        for down, up in zip(self.down, self.up, strict=True):
            x = first * up(down(x)) + x
        return self.top(x)


def test_what_no_store_holds_is_no_matrix_of_each_candidate():
    """`U diag(item) V` is a matrix of an item: with no room for it, nothing is multiplied that would not be without."""
    model, items, context, place = Crossed().double().eval(), randn(ITEMS, 40), randn(3, 48), randn(N, 8)
    sides = (context[:1].expand(4, -1), items[:4], place[:4])
    hoisted = rankhoist.hoist(model, sides, context=["context"], item=["item"], item_bytes=600)
    plain, stored = hoisted.plan, hoisted.blueprint.with_store.main
    tasks = [replace(plan.task, level=Level.FULL) for plan in (plain, stored)]
    alike = [attempt(task, plain.evaluated).cost.multiply_adds for task in tasks]
    assert alike[1] <= alike[0] and stored.cost.multiply_adds <= plain.cost.multiply_adds
    store = hoisted.catalogue([items])
    state = hoisted.prepare([context], store=store)
    scores = hoisted.score(state, store=store, rows=range(N), pair_inputs=[place], request_offsets=OFFSETS)
    assert_equal(scores, model(repeated(context, OFFSETS), items[:N], place))


def test_a_search_begins_near_what_is_best_without_a_store(program):
    plain = make_plan(Task(program, Level.FULL, Workload()))
    stored = Workload(item_bytes=4000)
    found = search(Task(program, Level.FULL, stored, plain.target), near=[plain.evaluated])[-1]
    assert found.cost.seconds <= attempt(Task(program, Level.FULL, stored), plain.evaluated).cost.seconds * ALIKE
