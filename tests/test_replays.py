"""Recorded calls: padded to buckets, replayed over buffers that stay, and equal; what cannot be is run as it is.

Without a GPU the recorder is a stand-in, which runs the same function over the same buffers: a result that is not
copied out, or padding that reaches somebody, shows there, too. What needs CUDA itself is marked.
"""

from __future__ import annotations

import copy
import random
import threading
from typing import Any

import pytest
import torch
from helpers import assert_equal, repeated
from test_backends import CASES, Case, Crossed
from torch import Tensor, nn

from rankhoist import HoistedModel, hoist
from rankhoist.compiler.targets.recorder import StandIn
from rankhoist.errors import HoistingWarning, VocabularyError
from rankhoist.runtime import halves, replays
from rankhoist.runtime.buckets import Bucket, rounded
from rankhoist.runtime.offsets import Blocks

gpu = pytest.param("cuda", marks=[
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
])  # fmt: skip
devices = pytest.mark.parametrize("device", ["cpu", gpu])


def graphs(name: str, device: str = "cpu") -> tuple[Case, nn.Module, HoistedModel]:
    """A case of `test_backends` whose calls are recorded, in float64."""
    case = CASES[name]
    model, hoisted = (copy.deepcopy(one).double().to(device) for one in case.make())
    return case, model, hoisted.to_backend("graphs")


def rows(draw: Any, count: int, device: str = "cpu") -> Tensor:
    made = draw(count).to(device)
    return made.double() if made.is_floating_point() else made


def counts(hoisted: HoistedModel) -> tuple[int, int, int]:
    own = hoisted._replays("").counts
    return own.replayed, own.as_they_are, own.recorded


# -- buckets


def test_sizes_of_buckets():
    sizes = sorted({rounded(n) for n in range(200)})
    assert sizes[:20] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56]
    assert [rounded(n) for n in (1000, 5000, 32_000)] == [1024, 5120, 32_768]
    for n in [*range(1, 3000), 10**6]:
        assert n <= rounded(n) <= 1.25 * n and rounded(rounded(n)) == rounded(n)


def test_what_a_bucket_holds():
    bucket = Bucket(4, 40, 16)
    assert bucket.holds(Bucket(4, 40, 16)) and bucket.holds(Bucket(2, 11, 5))
    assert not bucket.holds(Bucket(5, 40, 16)) and not bucket.holds(Bucket(4, 41, 16))
    assert not bucket.holds(Bucket(4, 40, 17)), "a block that is longer"
    assert not bucket.holds(Bucket(4, 9, 4)), "four times the rows and more are waste"
    assert not bucket.holds(Bucket(1, 40)) and not Bucket(1, 40).holds(Bucket(2, 40)), "one request gathers nothing"
    assert not Bucket(8, 60, 60).fits and not Bucket(1, 2**18).fits and not Bucket(0, 0).fits


@pytest.mark.parametrize("seed", range(8))
def test_a_padded_call_is_a_call(seed):
    """Rows stand where they stood; every index is one that there is, also of what is padding."""
    chance = random.Random(seed)
    offsets = [0, *sorted(chance.choices(range(40), k=chance.randint(2, 6))), 40]
    blocks = Blocks(offsets, 40)
    bucket = Bucket.needed(len(offsets) - 1, 40, blocks, True).whole
    bucket = Bucket(bucket.requests + 2, bucket.candidates + 9, bucket.longest + 1)
    owner, (slots, place) = bucket.read(torch.tensor(bucket.bounds(blocks)))
    assert torch.equal(owner[:40], blocks.owner) and set(owner[40:].tolist()) == {bucket.requests - 1}
    assert slots.shape == (bucket.requests, bucket.longest) and int(slots.max()) < bucket.candidates == len(place)
    assert torch.equal(slots.reshape(-1)[place[:40]], torch.arange(40)) and int(place.max()) < slots.numel()


# -- equal


@devices
@pytest.mark.parametrize("name", CASES)
def test_replays_score_as_the_original(name, device):
    """One request and several, whole and in two halves, in buckets and out of them."""
    case, model, hoisted = graphs(name, device)
    chance = random.Random(0)
    drawn = [[0, *sorted(chance.choices(range(40), k=chance.randint(2, 6)))] for _ in range(8)]
    for offsets in ([0, 1], [0, 2], [0, 9], [0, 10], [0, 0], [0, 0, 0], [0, 20, 61, 90], *drawn):
        user, item = rows(case.user, len(offsets) - 1, device), rows(case.item, offsets[-1], device)
        expected = model(*case.whole(repeated(user.cpu(), offsets).to(device), item))
        assert_equal(case.call(hoisted, user, item, offsets), expected, f"whole, {offsets}")
        assert_equal(case.run(hoisted, user, item, offsets), expected, f"halves, {offsets}")
    replayed, as_they_are, recorded = counts(hoisted)
    assert replayed > recorded > 10 and as_they_are < 12


@devices
def test_sizes_are_free_inside_a_bucket(device):
    case, model, hoisted = graphs("crossed", device)
    case.call(hoisted, rows(case.user, 1, device), rows(case.item, 1000, device), [0, 1000])
    before = counts(hoisted)[2]
    for count in (1024, 897, 950):
        user, item = rows(case.user, 1, device), rows(case.item, count, device)
        assert_equal(case.call(hoisted, user, item, [0, count]), model(user.expand(count), item))
    assert counts(hoisted)[2] == before == 1 and counts(hoisted)[:2] == (4, 0)


@devices
def test_what_was_returned_outlives_the_next_replay(device):
    """Scores, and a prepared state, whose tensors the next request's replay must not write over."""
    case, model, hoisted = graphs("crossed", device)
    users, item = rows(case.user, 2, device), rows(case.item, 9, device)
    expected = [model(u.expand(9), item) for u in users.split(1)]
    whole = [hoisted(u, item) for u in users.split(1)]
    states = [hoisted.prepare({"user": u}) for u in users.split(1)]
    halves = [hoisted.score(s, {"item": item}) for s in states]
    for made in (whole, halves, [hoisted.score(s, {"item": item}) for s in states]):
        assert_equal(made[0], expected[0])
        assert_equal(made[1], expected[1])
    assert states[0].padded == 1 and not users[0].equal(users[1])


def test_the_stand_in_writes_over_its_results():
    x = torch.zeros(2)
    recording = StandIn().record(lambda: (x + 1, 5))
    first = recording.outputs[0]
    x.fill_(3)
    recording.replay()
    assert first is recording.outputs[0] and first.tolist() == [4, 4] and recording.outputs[1] == 5


@pytest.mark.parametrize("inside", [True, False])
def test_recorded_inside_of_inference_mode_or_outside(inside):
    case, model, hoisted = graphs("unit")
    user, item = rows(case.user, 1), rows(case.item, 9)
    for mode in (inside, not inside):
        with torch.inference_mode(mode):
            assert_equal(hoisted(user, item), model(user.expand(9, -1, -1), item))
            assert_equal(case.run(hoisted, user, item, [0, 9]), model(user.expand(9, -1, -1), item))
    assert counts(hoisted)[1] == 0


class Odd(nn.Module):
    """Results without rows, with rows behind another axis, and of the context alone."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(6, 3)

    def forward(self, user: Tensor, item: Tensor) -> dict[str, Any]:
        y = self.out(torch.cat([user, item], 1))
        return {"across": y.t(), "bias": self.out.bias, "user": user * 2, "three": 3}


def test_rows_are_found_wherever_they_are_in_a_result():
    torch.manual_seed(0)
    model = Odd().eval()
    hoisted = hoist(model, (torch.randn(5, 4), torch.randn(5, 2)), context=["user"]).to_backend("graphs")
    for offsets in ([0, 9], [0, 4, 4, 11]):
        user, item = torch.randn(len(offsets) - 1, 4), torch.randn(offsets[-1], 2)
        expected = model(repeated(user, offsets), item)
        assert_equal(hoisted(user, item, request_offsets=offsets), expected)
    assert counts(hoisted) == (2, 0, 2)


# -- warm-up


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as a device where a warm-up records."""
    monkeypatch.setattr(halves, "RECORDING", ("cpu",))


def test_a_warm_up_records_and_nothing_else_does(recording):
    case = CASES["crossed"]
    model, hoisted = (copy.deepcopy(one) for one in case.make())
    hoisted.warm_up(candidates=[100], requests=[1, 4])
    assert hoisted.backend == "graphs" and counts(hoisted)[2] == 8, (
        "a call and its stages, and of several longer blocks, too"
    )
    before = counts(hoisted)
    for offsets in ([0, 100], [0, 60], [0, 30, 60, 90], [0, 25, 50, 75, 100]):
        user, item = case.user(len(offsets) - 1), case.item(offsets[-1])
        assert_equal(case.call(hoisted, user, item, offsets), model(*case.whole(repeated(user, offsets), item)))
    assert counts(hoisted) == (before[0] + 4, before[1], 8)
    for offsets in ([0, 5000], [0, 5], [0, 10, 20], [0, 90, 95, 98, 100]):  # too large, too small, or too long a block
        user, item = case.user(len(offsets) - 1), case.item(offsets[-1])
        assert_equal(case.call(hoisted, user, item, offsets), model(*case.whole(repeated(user, offsets), item)))
    assert counts(hoisted) == (before[0] + 4, before[1] + 4, 8)
    assert hoisted.to_backend("eager")._replays("") is None


# -- what is refused, and what fails


def test_a_wrong_id_is_refused_and_harms_no_later_call():
    case, model, hoisted = graphs("crossed")
    user, item = rows(case.user, 1), rows(case.item, 9)
    hoisted(user, item)
    wrong = torch.cat([item, torch.full((7,), 60)])
    with pytest.raises(VocabularyError, match="input 'item' has id 60 in row 9, expected 0 to 59"):
        hoisted(user, wrong)
    with pytest.raises(VocabularyError):
        case.run(hoisted, user, wrong, [0, 16])
    for count in (9, 10):
        assert_equal(hoisted(user, item[:count]), model(user.expand(len(item[:count])), item[:count]))
    assert counts(hoisted)[0] >= 3


def refusing(error: Exception) -> Any:
    def record(self: StandIn, function: Any) -> Any:
        raise error

    return record


@pytest.mark.parametrize("error", [RuntimeError("operation not permitted"), torch.OutOfMemoryError("no memory")])
def test_what_cannot_be_recorded_runs_as_it_is_and_says_so_once(monkeypatch, error):
    case, model, hoisted = graphs("first")
    monkeypatch.setattr(StandIn, "record", refusing(error))
    user, item = rows(case.user, 1), rows(case.item, 9)
    with pytest.warns(HoistingWarning, match=f"not as recorded graphs. .*{error}") as told:
        for _ in range(3):
            assert_equal(hoisted(user, item), model(user.expand(9, -1), item))
            assert_equal(case.run(hoisted, user, item, [0, 9]), model(user.expand(9, -1), item))
    assert len(told) == 1 and counts(hoisted)[0] == counts(hoisted)[2] == 0


def test_running_out_of_memory_in_a_replay_is_the_callers_to_know(monkeypatch):
    case, _, hoisted = graphs("first")
    user, item = rows(case.user, 1), rows(case.item, 9)
    expected = hoisted(user, item)
    entry = next(iter(hoisted._replays("")._entries.values()))
    with monkeypatch.context() as during:
        during.setattr(entry.recording, "replay", lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("none left")))
        with pytest.raises(torch.OutOfMemoryError):
            hoisted(user, item)
    assert_equal(hoisted(user, item), expected, "the next call works")


class Centred(nn.Module):
    """Rows meet."""

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        x = (user * item).sum(1)
        return x - x.mean()


class Square(nn.Module):
    """A result with rows on both axes."""

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        x = user * item
        return torch.matmul(x, x.t())


@pytest.mark.parametrize("model", [Centred(), Square()])
def test_a_model_that_mixes_rows_is_not_padded(model):
    torch.manual_seed(0)
    hoisted = hoist(model.eval(), (torch.randn(8, 3), torch.randn(8, 3)), context=["user"]).to_backend("graphs")
    user, item = torch.randn(1, 3), torch.randn(9, 3)
    with pytest.warns(HoistingWarning, match="change with other rows of the call|for 2 rows and"):
        assert_equal(hoisted(user, item), model(user.expand(9, -1), item))
    assert counts(hoisted)[0] == 0


def test_under_autocast_it_runs_as_it_is():
    case = CASES["first"]
    _, hoisted = (copy.deepcopy(one) for one in case.make())
    hoisted.to_backend("graphs")
    user, item = case.user(1), case.item(9)
    with torch.autocast("cpu", torch.bfloat16):
        assert hoisted(user, item).dtype == torch.bfloat16
    assert hoisted(user, item).dtype == torch.float32 and counts(hoisted) == (1, 1, 1)


# -- weights, bounds, threads


@devices
def test_new_weights_are_recorded_anew(device):
    case, _, hoisted = graphs("crossed", device)
    user, item = rows(case.user, 1, device), rows(case.item, 9, device)
    before = hoisted.prepare({"user": user})
    old = hoisted.score(before, {"item": item})
    hoisted(user, item)
    torch.manual_seed(1)
    other = Crossed().eval().double().to(device)
    hoisted.update_weights(other.state_dict())
    made = counts(hoisted)
    assert_equal(hoisted(user, item), other(user.expand(9), item))
    assert_equal(case.run(hoisted, user, item, [0, 9]), other(user.expand(9), item))
    assert counts(hoisted) == (made[0] + 3, made[1], made[2]), "it was warm"
    assert_equal(hoisted.score(before, {"item": item}), old, "a state keeps its weights")


def test_few_are_kept_and_those_used_last(monkeypatch):
    monkeypatch.setattr(replays, "COUNT", 3)
    case, _, hoisted = graphs("first")
    own = hoisted._replays("")
    user = rows(case.user, 1)

    def call(count: int) -> None:
        hoisted(user, rows(case.item, count))

    for count in (10, 20, 40, 80):
        call(count)
    assert [k.bucket.candidates for k in own._entries] == [10, 20, 40], "none of them was unused for long"
    monkeypatch.setattr(replays, "PATIENCE", 2)
    call(10), call(40), call(80)
    assert [k.bucket.candidates for k in own._entries] == [10, 40, 80]
    own.warm_up(hoisted.plans.at(160, 1).plan, 1, 160)
    assert len(own) == 3 and max(k.bucket.candidates for k in own._entries) == 160, "what is asked for has room"
    own.limit = own.bytes
    monkeypatch.setattr(replays, "PATIENCE", 0)
    call(10_000)
    assert len(own) <= 3 and own.bytes <= own.limit, "too large to be kept"


@devices
def test_several_threads_get_their_own_scores(device):
    case, model, hoisted = graphs("crossed", device)
    problems: list[BaseException] = []

    def calls(seed: int) -> None:
        try:
            chance = random.Random(seed)
            stream = torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else torch.no_grad()
            with stream:
                for _ in range(15):
                    count = chance.randint(1, 60)
                    user = torch.tensor([chance.randrange(40)], device=device)
                    item = torch.tensor([chance.randrange(60) for _ in range(count)], device=device)
                    assert_equal(hoisted(user, item), model(user.expand(count), item))
                    assert_equal(case.run(hoisted, user, item, [0, count]), model(user.expand(count), item))
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=calls, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems[0]


def test_no_model_is_kept_alive():
    import gc
    import weakref

    case, _, hoisted = graphs("first")
    hoisted(rows(case.user, 1), rows(case.item, 9))
    gone = weakref.ref(hoisted._replays(""))
    gc.disable()
    try:
        del hoisted
        assert gone() is None
    finally:
        gc.enable()
