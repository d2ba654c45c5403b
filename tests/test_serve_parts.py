"""Parts of the server in this process: mapped weights, bounds of ids, joined calls, states, JSON columns."""

from __future__ import annotations

import asyncio
import gc
import mmap
import time
import weakref
from dataclasses import replace

import numpy as np
import psutil
import pytest
import serving
import torch
from rankhoist_client.columns import column
from rankhoist_client.refusal import REASONS, RETRY_AFTER, RequestError
from rankhoist_client.v2 import Tensor, read_request, read_response, write_response
from serving import inputs
from torch import nn

import rankhoist
from rankhoist.runtime import RequestState
from rankhoist.runtime.mapped import load_mapped, unpack, version_of
from rankhoist.serve.batching import joined, joined_up_to
from rankhoist.serve.board import AWAY, Board
from rankhoist.serve.compute import Compute, Job
from rankhoist.serve.config import Settings
from rankhoist.serve.desk import Desk
from rankhoist.serve.inputs import Batch, Limits, Signature
from rankhoist.serve.model import Scored, ServedModel
from rankhoist.serve.rank import best_first
from rankhoist.serve.service import Service
from rankhoist.serve.states import LARGE, States, apart, digest_of, room
from rankhoist.verify import mixes_rows

# -- mapped weights


def test_a_mapped_model_is_the_model(tmp_path):
    path = tmp_path / "ranker.rankhoist"
    hoisted = serving.hoisted_ranker()
    hoisted.save(path)
    _, version = unpack(path, tmp_path / "folder")
    mapped, given = load_mapped(tmp_path / "folder"), inputs(1, 9)
    for name, expected in serving.scores(hoisted, given).items():
        # The file aligns tensors to 8 bytes: vector instructions may sum in another order.
        np.testing.assert_allclose(serving.scores(mapped, given)[name], expected, rtol=1e-5, atol=1e-7)
    assert version == version_of(path)
    assert all(torch.equal(mapped.state_dict()[name], weight) for name, weight in hoisted.state_dict().items())


def test_the_version_is_that_of_the_contents(tmp_path):
    for name, scale in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        serving.hoisted_ranker(scale).save(tmp_path / name)
    a, b, c = (version_of(tmp_path / name) for name in "abc")
    assert a == b != c


# -- bounds of ids


class Lookups(nn.Module):
    """Ids in a list of which the first is of another table, in a matrix, shifted, and used as numbers only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.top = nn.Embedding(10, 2), nn.Embedding(20, 2), nn.Linear(13, 1)

    def forward(self, ids, X, shifted, number):
        lists = torch.cat([self.a(ids[:, :1]), self.b(ids[:, 1:])], 1).flatten(1)
        columns = self.a(X[:, 1].long())
        return self.top(torch.cat([lists, columns, X[:, :2], self.b(shifted + 5), number.unsqueeze(1).float()], 1))


def test_bounds_are_found_where_inputs_index_tables():
    example = (torch.randint(0, 10, (8, 3)), torch.rand(8, 3), torch.randint(0, 10, (8,)), torch.randint(0, 9, (8,)))
    hoisted = rankhoist.hoist(Lookups().eval(), example, context=["number"])
    none = torch.iinfo(torch.int64).max
    found = {name: bounds.tolist() for name, bounds in hoisted.vocabulary.below.items()}
    assert found == {"ids": [10, 20, 20], "X": [none, 10, none]}


def test_a_model_without_context_is_served():
    given = inputs(8, 8)
    model = ServedModel("ranker", "1", rankhoist.hoist(serving.Ranker().eval(), given, context=[]))
    model.warm_up()
    scored = model.score(serving.made_up(model.hoisted, 3))
    expected = model.hoisted(**{name: rows[:3] for name, rows in given.items()})
    np.testing.assert_allclose(scored.outputs["click"], expected["click"].numpy(), rtol=2e-5, atol=2e-6)


# -- requests together


def checked(model: ServedModel, rows: int, seed: int) -> Batch:
    tensors = {
        n: Tensor({"i": "INT64", "f": "FP32"}[t.numpy().dtype.kind], t.numpy())
        for n, t in inputs(1, rows, seed).items()
    }
    return model.signature.check(tensors, Limits(100))


def test_joined_requests_have_the_scores_of_each(tmp_path):
    model = ServedModel("ranker", "1", serving.hoisted_ranker())
    batches = [checked(model, rows, seed) for seed, rows in enumerate((4, 0, 7))]
    batch = joined(batches)
    assert batch.offsets == [0, 4, 4, 11]
    together = model.score(batch)
    for own, start, end in zip(batches, batch.offsets, batch.offsets[1:], strict=False):
        for name, expected in model.score(own).outputs.items():
            np.testing.assert_allclose(together.part(start, end).outputs[name], expected, rtol=2e-5, atol=2e-6)


def test_requests_are_joined_past_those_that_are_not():
    """A request with a key waits between requests without: these are scored together, and each has its own scores."""
    model = ServedModel("ranker", "1", serving.hoisted_ranker(), States(2**20, 60.0), batch_up_to=100)
    batches = [checked(model, rows, seed) for rows, seed in ((4, 0), (5, 1), (5, 1), (0, 2), (7, 3))]  # two are alike
    sizes = []

    async def ask() -> list[Scored]:
        compute = Compute(most=100)
        with compute._changed:  # nothing is taken before all wait
            jobs = [Job(model, batch, key="user" if i == 1 else None) for i, batch in enumerate(batches)]
            compute._jobs.extend(jobs)
            compute._changed.notify()
        results = await asyncio.wait_for(asyncio.gather(*(job.future for job in jobs)), 60)
        compute.close()
        return results

    together = model.score
    model.score = lambda batch, key=None: sizes.append(batch.requests) or together(batch, key)
    for batch, scored in zip(batches, asyncio.run(ask()), strict=True):
        for name, expected in together(batch).outputs.items():
            np.testing.assert_allclose(scored.outputs[name], expected, rtol=2e-5, atol=2e-6)
    assert sizes == [4, 1]


def test_joining_ends_before_a_deadline_and_where_another_waits():
    model = ServedModel("ranker", "1", serving.hoisted_ranker(), States(2**20, 60.0), batch_up_to=100)
    batch = checked(model, 4, 0)

    async def ask(**second: object) -> None:
        compute = Compute(most=100, delay=60.0)
        jobs = [
            Job(model, batch, deadline=second.pop("first", None)),
            *([Job(model, batch, **second)] if second else []),
        ]
        try:
            await asyncio.wait_for(asyncio.gather(*(compute.score(job) for job in jobs)), 30)
        finally:
            compute.close()

    asyncio.run(ask(first=time.perf_counter() + 4))
    asyncio.run(ask(key="user"))


def test_a_worker_ends_when_nothing_came_for_a_while():
    async def end() -> None:
        service = Service(Settings(), Compute())
        service._count(1)
        service._count(-1)
        ending = asyncio.get_running_loop().create_task(service.quiet(0.3))
        await asyncio.sleep(0)
        service._count(1)  # by a connection that was open
        await asyncio.sleep(0.6)
        assert not ending.done()
        service._count(-1)
        await asyncio.wait_for(ending, 30)
        service.compute.close()

    asyncio.run(end())


class Mixing(nn.Module):
    """A softmax over all rows of the call."""

    def forward(self, user, item):
        return torch.softmax((user * item).sum(1), 0)


class Centred(nn.Module):
    """A mean over all rows of the call: of users, of items or of what became of both."""

    def __init__(self, over: str) -> None:
        super().__init__()
        self.over, self.user, self.item = over, nn.Embedding(9, 3), nn.Embedding(9, 3)

    def forward(self, user, item):
        user, item = self.user(user), self.item(item)
        if self.over == "users":
            user = user - user.mean(0)
        x = (user * item).sum(1)
        return x if self.over == "nothing" else x - x.mean() if self.over == "rows" else x + user.sum(1)


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("over", ["users", "rows", "nothing"])
def test_rows_that_are_mixed_are_found_also_by_one_row_of_an_example(over: str, rows: int):
    torch.manual_seed(0)
    example = (torch.full((rows,), 8), torch.arange(8, 8 - rows, -1))  # rows of one user, as an example often has
    hoisted = rankhoist.hoist(Centred(over).eval(), example, context=["user"])
    assert mixes_rows(hoisted) == (over != "nothing")


@pytest.mark.parametrize("wanted", [None, 50])
def test_a_model_that_mixes_rows_is_not_joined(wanted: int | None):
    example = (torch.randn(8, 3), torch.randn(8, 3))
    mixing = ServedModel("m", "1", rankhoist.hoist(Mixing().eval(), example, context=["user"]))
    assert joined_up_to(mixing, 10_000, wanted) == 0
    assert joined_up_to(ServedModel("m", "1", serving.hoisted_ranker()), 10_000, 50) == 50


def test_a_model_without_an_example_that_could_tell_is_not_joined(monkeypatch):
    hoisted = serving.hoisted_ranker()
    zeros = {name: torch.zeros_like(rows) for name, rows in hoisted.example.items()}
    for example in ({}, zeros):
        monkeypatch.setattr(hoisted._inputs, "interface", replace(hoisted.interface, example=example))
        assert mixes_rows(hoisted)


def test_nothing_is_joined_without_room():
    assert joined_up_to(ServedModel("m", "1", serving.hoisted_ranker()), 3) == 0


def test_the_compute_thread_ends():
    compute = Compute()
    compute.close()
    assert not compute._thread.is_alive()


# -- workers side by side


def test_a_worker_is_crowded_where_it_has_a_queue_and_another_is_idle(tmp_path, monkeypatch):
    now = [1.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    Board.create(tmp_path / "board", 3)
    first, second, _ = boards = [Board(tmp_path / "board", i) for i in range(3)]
    assert not any(board.crowded() for board in boards)  # nobody is there
    first.write(1000)
    second.write(1)
    assert not any(board.crowded() for board in boards)  # nobody is idle
    second.write(0)
    assert first.crowded() and not second.crowded()
    assert not first.crowded()  # not so soon
    now[0] += 1
    assert first.crowded()
    first.write(AWAY)
    assert not first.crowded()


# -- states


def prepared(seed: int, requests: int = 1):
    hoisted = serving.hoisted_ranker()
    context = {name: inputs(requests, 1, seed)[name] for name in serving.CONTEXT}
    return digest_of(context), hoisted.prepare(context)


def same(one: RequestState | None, other: RequestState) -> bool:
    """The same values, in memory of its own, with axes in the same order."""
    assert one is not None and one.tensors.keys() == other.tensors.keys()
    pairs = [(one.tensors[n], t) for n, t in other.tensors.items()]
    used = [{t.untyped_storage().data_ptr() for t in side if t.numel()} for side in zip(*pairs, strict=True)]
    assert not used[0] & used[1]
    return all(torch.equal(a, b) for a, b in pairs)


def test_states_are_bounded_and_the_oldest_use_goes_first():
    (a, state), (b, other) = prepared(1), prepared(2)
    size = room(state)
    states = States(2 * size, 100)
    states.put("a", a, state)
    states.put("b", b, other)
    assert states.bytes == 2 * size > 0
    assert same(states.get("a", a), state)  # now b is the least recently used
    states.put("c", b, other)
    assert states.get("b", b) is None and same(states.get("a", a), state) and same(states.get("c", b), other)
    assert states.bytes == 2 * size


def test_a_state_that_is_too_large_is_not_kept():
    digest, state = prepared(1)
    states = States(room(state) - 1, 100)
    states.put("a", digest, state)
    assert states.get("a", digest) is None and states.bytes == 0


def test_states_expire():
    now = [0.0]
    digest, state = prepared(1)
    states = States(2**20, 10, clock=lambda: now[0])
    states.put("a", digest, state)
    now[0] = 9.0
    assert same(states.get("a", digest), state)
    now[0] = 11.0
    assert states.get("a", digest) is None and states.bytes == 0


def test_states_that_nobody_asks_for_again_are_dropped():
    now = [0.0]
    (a, state), (b, other) = prepared(1), prepared(2)
    states = States(2**20, 10, clock=lambda: now[0])
    states.put("a", a, state)
    now[0] = 11.0
    states.put("b", b, other)
    assert list(states._entries) == ["b"] and states.bytes == room(other)


@pytest.mark.parametrize("width", [40, LARGE], ids=["small", "large"])
def test_a_kept_state_is_copied_as_it_lies(width):
    wide = torch.randn(6, width)
    tensors = {
        0: wide[:, 10:20], 1: wide.t(), 2: torch.randn(1, 5, 1).expand(1, 5, 3000), 3: torch.empty(0, 4),
        4: torch.tensor([[True, False]]), 5: torch.arange(7)[None], 6: torch.tensor(2.5, dtype=torch.float64),
    }  # fmt: skip
    state = replace(prepared(1)[1], tensors=tensors)
    kept = apart(state)
    assert same(kept, state) and room(state) - 24 * width < 2 * mmap.PAGESIZE, "what is repeated lies there once"
    assert kept.tensors[1].stride() == (1, width) and kept.tensors[2].stride(2) == 0
    assert all((t.data_ptr() - kept.tensors[0].data_ptr()) % 64 == 0 for t in kept.tensors.values() if t.numel())
    assert {t.dtype for t in kept.tensors.values()} == {t.dtype for t in tensors.values()}


def test_the_memory_of_a_dropped_state_goes_back_to_the_system():
    state = replace(prepared(1)[1], tensors={0: torch.ones(1, 2**22)})
    process = psutil.Process()
    before = process.memory_info().rss
    kept = [apart(state)]
    assert process.memory_info().rss - before > 2**23
    kept.clear()
    assert process.memory_info().rss - before < 2**23


def test_a_state_of_nothing_has_its_price():
    assert room(replace(prepared(1)[1], tensors={})) == mmap.PAGESIZE


def test_another_context_under_a_key_is_an_error():
    (a, state), (b, _) = prepared(1), prepared(2)
    states = States(2**20, 10)
    states.put("key", a, state)
    with pytest.raises(RequestError, match="another context") as error:
        states.get("key", b)
    assert error.value.status == 409


def test_a_kept_state_of_another_plan_is_not_used():
    """The plan for one candidate is slow for many."""
    model = ServedModel("ranker", "1", serving.hoisted_ranker(), States(2**20, 60.0))
    plans, prepare = [], model._prepare
    model._prepare = lambda batch: plans.append(prepare(batch)) or plans[-1]
    for rows in (1, 60, 70, 1):
        batch = checked(model, rows, 0)
        scored = model.score(replace(batch, context=checked(model, 1, 0).context), "key")
        assert scored.outputs["click"].shape == (rows,)
    few, many, same = (model.hoisted.plans.ranges.choose(rows, 1) for rows in (1, 60, 70))
    assert few != many == same
    assert [state.plan for state in plans] == [few, many, few]


# -- JSON and dtypes


def test_columns_of_every_depth():
    assert column("x", [1, 2], (), "INT64").tolist() == [1, 2]
    assert column("x", [[[1.5], [2]]], (2, 1), "FP32").shape == (1, 2, 1)
    assert column("x", [], (3,), "FP32").shape == (0, 3)
    assert column("x", [[], []], (0,), "FP32").shape == (2, 0)
    assert column("x", [True], (), "BOOL").dtype == np.bool_


def test_bfloat16_is_rounded_to_nearest():
    values = [1.0, 1.00390625, -3.14159, 1e30, 0.0]
    bits = column("x", values, (), "BF16")
    expected = torch.tensor(values).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    assert bits.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_dtypes(dtype: torch.dtype):
    hoisted = serving.hoisted_ranker().to(dtype)
    model = ServedModel("ranker", "1", hoisted)
    datatype = {torch.float64: "FP64", torch.bfloat16: "BF16"}[dtype]
    assert model.signature.features["mood"].datatype == datatype
    assert [output.datatype for output in model.outputs] == [datatype, datatype]
    scored = model.score(serving.made_up(model.hoisted, 3))
    outputs = {name: Tensor(datatype, array) for name, array in scored.outputs.items()}
    binary, length = write_response(outputs, {}, dict.fromkeys(outputs, True))
    assert read_response(binary, str(length)).tensors["click"].array.tolist() == scored.outputs["click"].tolist()
    text, _ = write_response(outputs, {}, dict.fromkeys(outputs, False))
    assert read_response(text).tensors["click"].array.tolist() == scored.outputs["click"].tolist()


def test_nan_in_bfloat16_is_refused():
    hoisted = serving.hoisted_ranker().to(torch.bfloat16)
    signature = Signature.of(hoisted)
    tensors = {
        f.name: Tensor(f.datatype, np.zeros((1, *f.shape), np.uint16 if f.datatype == "BF16" else np.int64))
        for f in signature.features.values()
    }
    signature.check(tensors, Limits(10))
    tensors["price"].array[0, 1] = 0x7FC0
    with pytest.raises(RequestError, match="'price' has NaN or an infinity in row 0"):
        signature.check(tensors, Limits(10))


def test_ids_in_bfloat16_are_compared_as_numbers():
    model = ServedModel("packed", "1", serving.hoisted_packed().to(torch.bfloat16))

    def score(item: float) -> None:
        given = {"X.context": [[3.0]], "X.candidate": [[0.5, 4.0], [0.5, item]]}
        bits = {name: torch.tensor(rows).to(torch.bfloat16).view(torch.int16).numpy() for name, rows in given.items()}
        model.score(model.signature.check({n: Tensor("BF16", x.view(np.uint16)) for n, x in bits.items()}, Limits(10)))

    score(19.0)
    with pytest.raises(RequestError, match=r"'X.candidate' has id 20.0 in row 1, expected 0 to 19"):
        score(20.0)


def test_the_best_come_first_and_nan_last():
    scores = np.array([1.0, np.nan, 3.0, 1.0, -np.inf], np.float32)
    assert best_first(scores).tolist() == [2, 0, 3, 4, 1]


def test_a_tensor_of_no_rows_at_the_end_of_a_body():
    header = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[0,3],"parameters":{"binary_data_size":0}}]}'
    assert read_request(header, str(len(header))).tensors["x"].array.shape == (0, 3)


def test_every_reason_has_a_status():
    assert set(RETRY_AFTER) <= set(REASONS) and all(400 <= status <= 503 for status in REASONS.values())


def test_a_refused_request_keeps_nothing_of_its_connection():
    """Else a connection whose body does not come stays open until the collector of circles comes by."""

    class Connection:
        pass

    def refused() -> weakref.ref[Connection]:
        connection = Connection()
        held = weakref.ref(connection)
        try:
            with Desk(Settings()).asked("rank") as asked:
                asked.rows = 3
                raise RequestError("slow_body", "the body did not come within 0.5 seconds")
        except RequestError:
            return held

    gc.collect()
    gc.disable()
    try:
        assert refused()() is None
    finally:
        gc.enable()
