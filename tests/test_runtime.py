"""The hoisted model in use: calls, ragged requests, state, weights, dtypes, threads, what it allocates and what it
costs.
"""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import Function, assert_equal, hoisted_at, repeated
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rankhoist import HoistedModel, Split, hoist
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.errors import InputError, WeightsError

USERS, ITEMS, D = 40, 60, 8


class Ranker(nn.Module):
    """Embeddings, a cross layer, a norm, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(USERS, 3 * D), nn.Embedding(ITEMS, D)
        self.cross = nn.Linear(4 * D + 3, 4 * D + 3)
        self.hidden, self.norm, self.out = nn.Linear(4 * D + 3, 16), nn.BatchNorm1d(16), nn.Linear(16, 1)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.register_buffer("order", torch.arange(16).flip(0))

    def forward(self, user: torch.Tensor, dense: torch.Tensor, item: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.cat([self.user(user), self.item(item), dense], 1)
        x = x * self.cross(x) + x
        h = torch.relu(self.norm(self.hidden(x)))[:, self.order]
        return {"logit": self.out(h).squeeze(1), "hidden": h}


def inputs(requests: int, candidates: int, dtype: torch.dtype = torch.float32, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, USERS, (requests,), generator=g),
        torch.randn(requests, 3, generator=g).to(dtype),
        torch.randint(0, ITEMS, (candidates,), generator=g),
    )


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Ranker().eval()


@pytest.fixture(scope="module")
def program(model):
    return capture(model, inputs(5, 5), ["user", "dense"])


@pytest.fixture(params=["request", "linear", "full"])
def hoisted(request, program) -> HoistedModel:
    return hoisted_at(program, Level[request.param.upper()])


def truth(model, user, dense, item, offsets):
    return model(repeated(user, offsets), repeated(dense, offsets), item)


@pytest.mark.parametrize("offsets", [[0, 4], [0, 0], [0, 3, 3, 7], [0, 0, 5, 6, 6], [0, 1]])
def test_ragged_requests(model, hoisted, offsets):
    user, dense, item = inputs(len(offsets) - 1, offsets[-1])
    expected = truth(model, user, dense, item, offsets)
    assert_equal(hoisted(user, dense, item, request_offsets=offsets), expected)
    assert_equal(hoisted(user, dense, item, request_offsets=torch.tensor(offsets, dtype=torch.int32)), expected)


def test_offsets_are_read_on_the_cpu(model, hoisted):
    """Whatever the default device is; `meta` stands for one that is no CPU."""
    given, offsets = inputs(3, 7), [0, 3, 3, 7]
    expected = truth(model, *given, offsets)
    with torch.device("meta"):
        assert_equal(hoisted(*given, request_offsets=offsets), expected)


class Scattered(nn.Module):
    """Three tables in one gather, and columns of context and candidate that are no slices."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ITEMS, D) for _ in range(3))
        self.out = nn.Linear(3 * D + 6, 3)

    def forward(self, x: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([x, *(table(item[:, i]) for i, table in enumerate(self.tables))], 1))


class Ordered(Scattered):
    """Its results in the order of a buffer, whose values the plan reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([2, 0, 1]))

    def forward(self, x: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return super().forward(x, item).relu()[:, self.order]


def rows_of_scattered(rows: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 6, device=device), torch.zeros(rows, 3, device=device).random_(ITEMS).long()


CONTEXT_COLUMNS, CANDIDATE_COLUMNS = [0, 1, 4], [2, 3, 5]
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_constants_are_where_the_model_is():
    """`meta` stands for a device that is no CPU."""
    given = rows_of_scattered(4, "meta")
    hoisted = hoist(Scattered().eval().to("meta"), given, context={"x": CONTEXT_COLUMNS})
    constants = hoisted.weights.constants.values()
    assert len(constants) >= 3 and {t.device.type for t in constants} == {"meta"}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize("offsets", [[0, 9], [0, 3, 3, 7]])
def test_captured_on_a_device(device, offsets):
    torch.manual_seed(0)
    model = Ordered().eval().to(device)
    hoisted = hoist(model, rows_of_scattered(5, device), context={"x": CONTEXT_COLUMNS})
    x, item = rows_of_scattered(offsets[-1], device)
    firsts = [min(start, len(x) - 1) for start in offsets[:-1]]
    context = x[firsts][:, CONTEXT_COLUMNS]
    x[:, CONTEXT_COLUMNS] = repeated(context.cpu(), offsets).to(device)
    for given in (offsets, torch.tensor(offsets, device=device)):
        made = hoisted(Split(context, x[:, CANDIDATE_COLUMNS]), item, request_offsets=given)
        assert_equal(made, model(x, item))


def test_no_request_at_all(hoisted):
    user, dense, item = inputs(0, 0)
    out = hoisted(user, dense, item, request_offsets=[0])
    assert out["logit"].shape == (0,) and out["hidden"].shape == (0, 16)


def test_state_is_reusable_and_equals_a_call(model, hoisted):
    user, dense, item = inputs(1, 9)
    state = hoisted.prepare({"user": user, "dense": dense})
    whole = hoisted(user, dense, item)
    for part in (slice(0, 4), slice(4, 9), slice(0, 9)):
        expected = {k: v[part] for k, v in whole.items()}
        assert_equal(hoisted.score(state, {"item": item[part]}), expected)
        assert_equal(hoisted.score(state, [item[part]]), expected)
    assert state.requests == 1 and state.bytes > 0
    assert repr(state) == f"RequestState(requests=1, plan={state.plan}, {state.bytes:,} bytes)"  # and no numbers


def test_shuffled_candidates_shuffle_scores(hoisted):
    user, dense, item = inputs(1, 11)
    order = torch.randperm(11)
    out, shuffled = hoisted(user, dense, item), hoisted(user, dense, item[order])
    assert_equal(shuffled, {k: v[order] for k, v in out.items()})


def test_request_state_does_not_see_candidates(hoisted):
    """The stage that runs per request takes no candidate input, and its graph no candidate node."""
    names = {n.name for n in hoisted.stages.variants[0].request.module.graph.nodes if n.op == "placeholder"}
    assert "item" not in names and "user" in names


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(model, program, dtype):
    user, dense, item = inputs(1, 7, dtype)
    reference = Ranker().eval()
    reference.load_state_dict(model.state_dict())
    hoisted = hoisted_at(program, Level.FULL).to(dtype)
    expected = reference.to(dtype)(user.expand(7), dense.expand(7, -1), item)
    assert_equal(hoisted(user, dense, item), expected)
    with pytest.raises(InputError, match=r"'dense' has dtype torch.float32, expected"):
        hoisted(user, dense.float(), item)


@pytest.mark.parametrize(
    "move", [lambda m: m.to(torch.float64), lambda m: m.double(), lambda m: m.half().to(torch.float64)]
)
def test_complex_weights_keep_what_is_imaginary(move):
    turn = torch.polar(torch.ones(2), torch.rand(2))
    model = Function(lambda c, k, turn: torch.view_as_real(torch.view_as_complex(c * k) * turn), turn=turn).eval()
    context, candidate = torch.randn(1, 2, 2), torch.randn(7, 2, 2)
    hoisted = move(hoist(model, (context.expand(7, -1, -1), candidate), context=["context"]))
    context, candidate = context.double(), candidate.double()
    assert_equal(hoisted(context, candidate), model(context.expand(7, -1, -1), candidate))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masks_are_filled_with_the_end_of_the_dtype_it_moved_to(dtype):
    model = Function(lambda c, k: (c * k).masked_fill(c < 0, torch.finfo(c.dtype).min).softmax(1)).eval()
    context, candidate = torch.randn(1, 4), torch.randn(7, 4)
    hoisted = hoist(model, (context.expand(7, 4), candidate), context=["context"]).to(dtype)
    context, candidate = context.to(dtype), candidate.to(dtype)
    torch.testing.assert_close(
        hoisted(context, candidate), model(context.expand(7, 4), candidate), atol=0.01, rtol=0.01
    )


def test_back_in_its_own_dtype_the_model_still_rounds_where_it_did():
    """A dtype that the model names is not the one it was moved to in between."""
    model = Function(lambda c, k: (c + k).bfloat16().float()).eval()
    context, candidate = torch.randn(1, 4), torch.randn(7, 4)
    hoisted = hoist(model, (context.expand(7, 4), candidate), context=["context"])
    expected = hoisted(context, candidate)
    assert torch.equal(hoisted.bfloat16().float()(context, candidate), expected)
    assert torch.equal(expected, expected.bfloat16().float())


def test_captured_in_bfloat16(model):
    reference = Ranker().eval()
    reference.load_state_dict(model.state_dict())
    reference.bfloat16()
    user, dense, item = inputs(1, 7, torch.bfloat16)
    hoisted = hoist(reference, inputs(5, 5, torch.bfloat16), context=["user", "dense"])
    assert_equal(hoisted(user, dense, item), reference(user.expand(7), dense.expand(7, -1), item))


def test_a_copy_has_weights_of_its_own(model, program):
    hoisted = hoisted_at(program, Level.FULL)
    copied = copy.deepcopy(hoisted).double()
    user, dense, item = inputs(1, 5)
    before = hoisted(user, dense, item)
    copied.update_weights(other_weights(model).state_dict())
    assert copied(user, dense.double(), item)["logit"].dtype == torch.float64
    assert_equal(hoisted(user, dense, item), before)


def test_inference_mode_and_no_gradients(model, hoisted):
    user, dense, item = inputs(1, 5)
    expected = hoisted(user, dense, item)
    assert not expected["logit"].requires_grad
    with torch.inference_mode():
        assert_equal(hoisted(user, dense, item), expected)


def test_threads(model, hoisted):
    calls = [inputs(1, 50, seed=i) for i in range(24)]
    expected = [hoisted(*c) for c in calls]
    with ThreadPoolExecutor(8) as pool:
        for got, want in zip(pool.map(lambda c: hoisted(*c), calls), expected, strict=True):
            assert_equal(got, want)


def test_lookup_reads_tables_once_also_from_a_packed_matrix():
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.top = nn.Embedding(20, 4), nn.Linear(9, 1)

        def forward(self, X: torch.Tensor) -> torch.Tensor:
            ids = X[:, :2].long()
            return self.top(torch.cat([self.table(ids[:, 0]), self.table(ids[:, 1]), X[:, 2:]], 1))

    hoisted = hoist(Packed().eval(), (torch.rand(4, 3),), context={"X": [0]}, level="lookup")
    request, candidate = (
        sum("aten.embedding" in str(n.target) for n in stage.module.graph.nodes)
        for stage in (hoisted.stages.variants[0].request, hoisted.stages.variants[0].candidate)
    )
    assert (request, candidate) == (1, 1)


# -- weights


def other_weights(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    new = Ranker().eval()
    new.order.copy_(model.order)
    return new


def test_update_weights(model, program):
    hoisted = hoisted_at(program, Level.FULL)
    user, dense, item = inputs(1, 6)
    old = hoisted(user, dense, item)
    state = hoisted.prepare({"user": user, "dense": dense})
    new = other_weights(model)
    hoisted.update_weights(new.state_dict())
    assert_equal(hoisted(user, dense, item), new(user.expand(6), dense.expand(6, -1), item))
    assert_equal(hoisted.score(state, {"item": item}), old)  # a state keeps the weights it was made with
    assert_equal(dict(sorted(hoisted.state_dict().items())), dict(sorted(new.state_dict().items())))
    hoisted.update_weights(model.state_dict())
    assert_equal(hoisted(user, dense, item), old)


def test_what_nobody_holds_is_gone_at_once(model, program):
    """A version of the weights after an update, and a model, without waiting for the collector of circles."""
    hoisted = hoisted_at(program, Level.FULL)
    hoisted(*inputs(1, 6))
    gc.collect()
    gc.disable()
    try:
        old = weakref.ref(hoisted.weights)
        hoisted.update_weights(other_weights(model).state_dict())
        assert old() is None
        gone = weakref.ref(hoisted.weights), weakref.ref(hoisted)
        del hoisted
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


def test_update_weights_is_atomic_under_load(model, program):
    hoisted = hoisted_at(program, Level.FULL)
    user, dense, item = inputs(1, 20)
    new = other_weights(model)
    answers = [m(user.expand(20), dense.expand(20, -1), item)["logit"] for m in (model, new)]
    stop, wrong = threading.Event(), []

    def score() -> None:
        while not stop.is_set():
            out = hoisted(user, dense, item)["logit"]
            if min((out - a).abs().max().item() for a in answers) > 1e-4:
                wrong.append(out)

    threads = [threading.Thread(target=score) for _ in range(3)]
    for t in threads:
        t.start()
    for i in range(30):
        hoisted.update_weights((new, model)[i % 2].state_dict())
    stop.set()
    for t in threads:
        t.join()
    assert not wrong, "a call mixed two versions of the weights"


def test_weights_that_do_not_fit_change_nothing(model, program):
    hoisted = hoisted_at(program, Level.FULL)
    before = hoisted(*inputs(1, 4))
    state = dict(model.state_dict())
    with pytest.raises(WeightsError, match=r"lacks 1 weights: out\.bias"):
        hoisted.update_weights({k: v for k, v in state.items() if k != "out.bias"})
    with pytest.raises(WeightsError, match=r"'out.bias' has shape \[2\], expected \[1\]"):
        hoisted.update_weights(state | {"out.bias": torch.zeros(2)})
    with pytest.raises(WeightsError, match="'order' decides what is computed"):
        hoisted.update_weights(state | {"order": torch.arange(16)})
    assert_equal(hoisted(*inputs(1, 4)), before)


# -- bad calls


def test_call_errors(hoisted):
    user, dense, item = inputs(2, 4)
    with pytest.raises(InputError, match="the context has 2 rows; pass request_offsets with 3 boundaries"):
        hoisted(user, dense, item)
    with pytest.raises(InputError, match=r"request_offsets has shape \[2\], expected \[3\]"):
        hoisted(user, dense, item, request_offsets=[0, 4])
    for wrong in ([0, 5, 4], [0, 2, 3], [1, 2, 4], [0, -1, 4]):
        with pytest.raises(InputError, match="rise from 0 to 4"):
            hoisted(user, dense, item, request_offsets=wrong)
    with pytest.raises(InputError, match=r"context inputs have different row counts \(user: 1, dense: 2\)"):
        hoisted(user[:1], dense, item)
    with pytest.raises(InputError, match=r"'dense' has shape \[2, 2\], expected \[rows, 3\]"):
        hoisted(user, dense[:, :2], item, request_offsets=[0, 2, 4])
    with pytest.raises(InputError, match=r"'item' has dtype torch\.float32, expected torch\.int64"):
        hoisted(user[:1], dense[:1], item.float())
    with pytest.raises(InputError, match="signature"):
        hoisted(user[:1], dense[:1])
    with pytest.raises(InputError, match="missing context inputs: dense"):
        hoisted.prepare({"user": user})
    with pytest.raises(InputError, match="expected 1 candidate inputs"):
        hoisted.score(hoisted.prepare({"user": user[:1], "dense": dense[:1]}), [item, item])


# -- what it costs


class FirstLayer(nn.Module):
    """A linear layer over context and candidate columns in a given order."""

    def __init__(self, context: int, candidate: int, width: int, order: torch.Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(context + candidate, width)
        self.register_buffer("order", order)

    def forward(self, context: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.cat([context, candidate], 1)[:, self.order])


class Largest(TorchDispatchMode):
    """Records the sizes of all tensors that operators make."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        views = out._is_view() if isinstance(out, torch.Tensor) else True
        if isinstance(out, torch.Tensor) and not views:
            self.sizes.append(out.numel())
        return out


@pytest.mark.parametrize("layout", ["contiguous", "interleaved"])
def test_linear_over_concatenation_costs_what_the_formula_says(layout):
    """`Dc H + N Dk H` multiply-adds, and nothing of N x Dc elements (MaRI, arXiv 2602.23105)."""
    dc, dk, h, n = 48, 16, 8, 50
    order = torch.arange(dc + dk) if layout == "contiguous" else torch.randperm(dc + dk)
    model = FirstLayer(dc, dk, h, order).eval()
    context, candidate = torch.randn(1, dc), torch.randn(n, dk)
    hoisted = hoist(model, (context.expand(5, -1), candidate[:5]), context=["context"], level="linear")
    assert_equal(hoisted(context, candidate), model(context.expand(n, -1), candidate))
    with FlopCounterMode(display=False) as counter:
        hoisted(context, candidate)
    assert counter.get_total_flops() == 2 * (dc * h + n * dk * h)
    with Largest() as largest:
        hoisted(context, candidate)
    assert max(largest.sizes) < n * dc
    moved = [str(x.target) for x in hoisted.stages.variants[0].candidate.module.graph.nodes if x.op == "call_function"]
    assert not any("index_select" in x or "cat" in x for x in moved), "a layout costs nothing at run time"


def test_plan_counts_what_the_counter_counts(model, program):
    for level in Level:
        hoisted = hoisted_at(program, level)
        user, dense, item = inputs(1, 1000)
        with FlopCounterMode(display=False) as counter:
            hoisted(user, dense, item)
        assert counter.get_total_flops() == 2 * hoisted.plan.cost.multiply_adds, level


class Hashed(nn.Module):
    """Ids are multiplied: in 32 bits they would overflow, and the cast is none where the example has 64."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(97, 4)

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        return self.table((item.long() * 1_000_003 + user.long() * 7919) % 97).sum(1)


def test_whole_numbers_of_another_width_are_hashed_alike(tmp_path):
    model, item = Hashed().eval(), torch.randint(10**6, (9,))
    hoisted = hoist(model, (item[:4], item[:4]), context=["user"], item=["item"])
    user = torch.tensor([900_001])
    want = model(user.expand(9), item)
    assert_equal(hoisted(user.int(), item.int()), want)
    assert_equal(hoisted.score(hoisted.prepare([user.int()]), [item.int()]), want)
    store = hoisted.catalogue({"item": item.int()})
    assert_equal(hoisted.score(hoisted.prepare([user.int()], store=store), store=store, rows=range(9)), want)
