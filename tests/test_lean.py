"""Fewer operators for the same values: what is merged, what is not, and that nothing is computed twice."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equal, repeated
from torch import Tensor, nn

from rankhoist import HoistedModel, Workload
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph import attention, kernels
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Rate, aten
from rankhoist.compiler.lower.attended import by_products
from rankhoist.compiler.lower.rewriter import Rewriter
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.plan.ranges import make_plans
from rankhoist.compiler.targets import CPU, Target, named
from rankhoist.compiler.targets.training import training
from rankhoist.errors import VocabularyError

OFFSETS = [0, 3, 3, 7]


class Calls(nn.Module):
    """A model from a function of (context, candidate) and its weights."""

    def __init__(self, call, **weights):
        super().__init__()
        self.call = call
        self.weights = nn.ParameterDict({k: nn.Parameter(torch.randn(*s)) for k, s in weights.items()})

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        return self.call(context, candidate, self.weights)


def emitted(
    model: nn.Module, context: Tensor, candidate: Tensor, level: Level = Level.FULL, target: Target = CPU
) -> list[str]:
    """Operators of the candidate stage, after the check that scores are equal for one and for several requests."""
    model = model.double().eval()
    rows = torch.arange(len(candidate)) % len(context)
    program = capture(model, (context[rows], candidate), ["context"])
    hoisted = HoistedModel(program, attempt(Task(program, level, Workload(), target)))
    assert_equal(hoisted(context[:1], candidate), model(context[:1].expand(7, *context.shape[1:]), candidate))
    expected = model(repeated(context, OFFSETS), candidate)
    assert_equal(hoisted(context, candidate, request_offsets=OFFSETS), expected)
    graph = hoisted.stages.variants[0].candidate.module.graph
    return [getattr(n.target, "__name__", "") for n in graph.nodes if n.op == "call_function"]


def dense(*shapes: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(n, w, generator=g, dtype=torch.float64) for n, w in zip((3, 7), shapes, strict=True)]


def test_sums_of_products_pile_up_in_one_tensor():
    """Two atoms, one product by weights and one by a matrix of the request, a start per request: three operators."""

    def call(c, k, w):
        z = torch.tanh(k @ w["a"])
        return c @ w["d"] + k @ w["b"] + torch.einsum("nk,nkj->nj", z, (c @ w["e"]).view(-1, 5, 4))

    found = emitted(Calls(call, a=(6, 5), b=(6, 4), d=(8, 4), e=(8, 20)), *dense(8, 6))
    assert not [x for x in found if x.startswith("add")], found
    assert "request_linear_from" in found or "request_linear_onto_" in found, found


def test_a_product_with_two_readers_is_computed_once():
    def call(c, k, w):
        shared = torch.relu(k) @ w["b"]
        return torch.sigmoid(shared + c @ w["d"]) * torch.tanh(shared - k @ w["b"])

    found = emitted(Calls(call, b=(6, 4), d=(8, 4)), *dense(8, 6), level=Level.REQUEST)
    assert len([x for x in found if "linear" in x or "matmul" in x or x.startswith("mm")]) == 2, found


def test_products_of_one_tensor_are_one_product():
    def call(c, k, w):
        x = torch.cat([c, k], 1)
        return torch.stack([torch.relu(x @ w[name]).sum(1) for name in ("a", "b", "d")], 1)

    found = emitted(Calls(call, a=(14, 4), b=(14, 5), d=(14, 6)), *dense(8, 6))
    assert found.count("linear_from") == 1 and found.count("linear.default") == 0, found


def test_an_addition_to_a_product_is_one_pass():
    found = emitted(Calls(lambda c, k, w: torch.relu(k) + torch.sigmoid(k) * torch.tanh(k)), *dense(8, 6))
    assert [x for x in found if x.startswith("addcmul")] and not [x for x in found if x.startswith(("add.", "mul."))]


def outer(c: Tensor, k: Tensor, w: dict[str, Tensor]) -> Tensor:
    """A number of the row times a vector of the model, and times one of its request, on top of a product."""
    return torch.cat([c, k], 1) @ w["a"] + k.sum(1, keepdim=True) * w["m"] + k.amax(1, keepdim=True) * c.tanh()


def test_an_addition_to_an_outer_product_is_one_pass_over_the_sum():
    found = emitted(Calls(outer, a=(14, 8), m=(8,)), *dense(8, 6))
    assert len([x for x in found if x.startswith("addcmul")]) == 2, found
    assert not [x for x in found if x.startswith("mul.")], found


def test_a_product_is_added_over_rows_that_are_new():
    """Rows of one axis lie as the product sees them; of more, they may not, and the sum is new memory."""

    def flat(c, k, w):
        return k.sum(1, keepdim=True) * c.tanh() + torch.relu(k) @ w["a"]

    def deep(c, k, w):
        return k[:, :, None] * c.tanh()[:, None] + torch.softmax(k[:, :, None] * w["b"], 2) @ w["a"]

    assert "linear_onto_" in emitted(Calls(flat, a=(6, 8)), *dense(8, 6))
    found = emitted(Calls(deep, a=(5, 8), b=(5,)), *dense(8, 6))
    assert "linear_onto" in found and "linear_onto_" not in found, found


def test_whole_numbers_are_added_as_they_are():
    """`addcmul` of integers is another operator, and mixed dtypes are promoted pair by pair."""
    call = Calls(lambda c, k, w: (k > 0).long() + (k > 1).long() * (k > 2).long() + k * torch.relu(k).double())
    assert not [x for x in emitted(call, *dense(8, 6)) if x.startswith("addcmul")]


class Tables(nn.Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(5 + i, w) for i, w in enumerate(widths))

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        rows = [table(candidate[:, i]) for i, table in enumerate(self.tables)]
        return torch.relu(torch.cat([*rows, context], 1))


def ids(*high: int) -> tuple[Tensor, Tensor]:
    return dense(4, 1)[0], torch.stack([torch.arange(7) % h for h in high], 1)


def test_several_tables_are_read_by_one_gather():
    found = emitted(Tables([4, 4, 4, 4]), *ids(5, 6, 7, 8), level=Level.REQUEST)
    assert found.count("read_tables") == 1 and not [x for x in found if x.startswith("embedding")], found


@pytest.mark.parametrize("why", ["two tables", "other widths", "large tables"])
def test_tables_stay_apart(why):
    limits = replace(CPU.limits, copied=100) if why == "large tables" else CPU.limits
    widths = {"two tables": [4, 4], "other widths": [4, 3, 5], "large tables": [4, 4, 4]}[why]
    target = replace(CPU, limits=limits)
    found = emitted(Tables(widths), *ids(*range(5, 5 + len(widths))), level=Level.REQUEST, target=target)
    assert "read_tables" not in found


def test_the_target_says_what_is_worth_joining():
    """Two tables are read by one gather where the CPU wants three; products of few columns stay apart."""

    def call(c, k, w):
        x = torch.cat([c, k], 1)
        return torch.stack([torch.relu(x @ w[name]).sum(1) for name in ("a", "b")], 1)

    target = replace(CPU, limits=replace(CPU.limits, tables=2, wide=4))
    assert "read_tables" in emitted(Tables([4, 4]), *ids(5, 6), level=Level.REQUEST, target=target)
    assert emitted(Calls(call, a=(14, 4), b=(14, 5)), *dense(8, 6), target=target).count("linear_from") == 2


@pytest.mark.parametrize("wrong", [-1, 5])
def test_an_id_that_its_own_table_lacks_is_an_error(wrong):
    model = Tables([4, 4, 4]).double().eval()
    context, candidate = ids(5, 6, 7)
    program = capture(model, (context[:1].expand(7, -1), candidate), ["context"])
    hoisted = HoistedModel(program, attempt(Task(program, Level.REQUEST, Workload())))
    candidate[3, 0] = wrong
    with pytest.raises(IndexError):
        model(context[:1].expand(7, -1), candidate)
    with pytest.raises(VocabularyError, match=f"input 'candidate' has id {wrong} in row 3, expected 0 to 4"):
        hoisted(context[:1], candidate)


def test_neighbours_cut_out_of_one_tensor_are_one_cut():
    """A layout that interleaves pieces of context and candidate leaves no copy: the candidate is read where it is."""
    context, candidate = dense(12, 12)

    def call(c, k, w):
        pieces = [x for pair in zip(c.split(3, 1), k.split(3, 1), strict=True) for x in pair]
        return torch.cat(pieces, 1) @ w["w"]

    assert emitted(Calls(call, w=(24, 5)), context, candidate) == ["linear_from"]


def test_cuts_that_are_no_neighbours_stay_apart():
    context, candidate = dense(4, 12)

    def call(c, k, w):
        return torch.cat([c, k[:, 6:9], k[:, 3:6], k[:, 9:12], k[:, :3]], 1).relu() @ w["w"]

    operators = emitted(Calls(call, w=(16, 5)), context, candidate)
    assert operators.count("cat.default") == 1 and operators.count("slice.Tensor") == 4


def test_a_scale_and_a_shift_are_one_pass_over_what_they_change():
    """`tanh(k B) s + c A`, where s is a number of the row: written over the only tensor that is not broadcast."""

    def call(c, k, w):
        return torch.tanh(torch.tanh(k @ w["b"]) * k[:, :1] + c @ w["a"])

    found = emitted(Calls(call, a=(8, 40), b=(6, 40)), *dense(8, 6))
    assert "scaled_from_" in found and not [x for x in found if x.startswith(("add", "mul"))], found


def test_nothing_is_written_over_what_another_reads():
    def call(c, k, w):
        own = torch.tanh(k @ w["b"])
        return own * k[:, :1] + c @ w["a"], own

    model = Calls(lambda c, k, w: torch.cat(call(c, k, w), 1), a=(8, 40), b=(6, 40))
    assert not [x for x in emitted(model, *dense(8, 6)) if x.startswith("scaled_from")]


def gated(c: Tensor, k: Tensor, w: nn.ParameterDict, count: int, width: int, of: int = 1) -> Tensor:
    """Experts weighed by a gate."""
    x = torch.cat([c, k], 1)
    experts = torch.stack([torch.relu(x @ w["w"][i, :, :width]) for i in range(count)], 1)
    shares = torch.softmax(x @ w["g"][:, :count], 1).unsqueeze(2)
    mixed = shares * experts
    return torch.cat([mixed.sum(1), *[mixed.amax(1)] * (of - 1)], 1)


def test_experts_are_weighed_one_by_one():
    """Neither are they set side by side, nor does a pass run along the four of them."""
    found = emitted(Calls(partial(gated, count=4, width=32), w=(4, 14, 32), g=(14, 4)), *dense(8, 6))
    assert found.count("addcmul_.default") == 3 and found.count("softmax_of_few") == 1, found
    assert not [x for x in found if x.startswith(("cat", "stack", "sum", "softmax."))], found


@pytest.mark.parametrize("why", ["many", "narrow", "read twice", "other target"])
def test_experts_stay_side_by_side(why):
    count, width, of = {"many": (9, 32, 1), "narrow": (4, 31, 1), "read twice": (4, 32, 2)}.get(why, (4, 32, 1))
    target = replace(CPU, limits=replace(CPU.limits, short=why != "other target"))
    model = Calls(partial(gated, count=count, width=width, of=of), w=(count, 14, width), g=(14, count))
    assert "sum.dim_IntList" in emitted(model, *dense(8, 6), target=target), why


@pytest.mark.parametrize(("columns", "axis"), [(8, -1), (4, 1)])
def test_softmaxes_that_a_vector_holds_or_that_run_elsewhere_stay(columns, axis):
    def call(c, k, w):
        return torch.softmax((torch.cat([c, k], 1) @ w["w"]).view(-1, 2, columns), axis).flatten(1)

    assert "softmax_of_few" not in emitted(Calls(call, w=(14, 2 * columns)), *dense(8, 6))


@pytest.mark.parametrize("shape", [(0, 3), (5, 3), (400, 3), (300, 2, 5)])
def test_a_softmax_of_few_elements_is_that_of_each_row(shape):
    x = 30 * torch.randn(shape, dtype=torch.float64)
    assert_equal(kernels.softmax_of_few(x), torch.softmax(x, -1))


def padded_weights(out: int, function=torch.relu) -> list[list[int]]:
    """Sizes of the weights, in memory, of a layer over 16 + 95 columns, padded to multiples of 8."""

    def call(c, k, w):
        return function(torch.cat([c, k], 1) @ w["a"] + w["b"])

    target = replace(CPU, limits=replace(CPU.limits, aligned=8, ends=True))
    model = Calls(call, a=(111, out), b=(out,)).double().eval()
    context, candidate = dense(16, 95)
    program = capture(model, (context[torch.arange(7) % 3], candidate), ["context"])
    plan = attempt(Task(program, Level.FULL, Workload(), target))
    hoisted = HoistedModel(program, plan)
    hoisted.update_weights(model.state_dict())
    assert_equal(hoisted(context[:1], candidate), model(context[:1].expand(7, -1), candidate))
    assert_equal(hoisted(context, candidate, request_offsets=OFFSETS), model(repeated(context, OFFSETS), candidate))
    weights = [n.args[1] for n in plan.nodes if n.op in (aten.linear.default, kernels.linear_from)]
    assert [w.shape[1] for w in weights] == [16, 95] and all(w.rate is Rate.WEIGHT for w in weights)
    return [list((w.args[0] if w.op is aten.slice.Tensor else w).shape) for w in weights]


@pytest.mark.parametrize("function", [torch.relu, torch.sigmoid, torch.tanh], ids=lambda f: f.__name__)
def test_weights_are_padded_for_tensor_cores(function):
    """Biases and starts of requests with them; in memory alone along what is summed over, so that no row is copied."""
    assert padded_weights(101, function) == [[104, 16], [104, 96]]


def test_what_is_aligned_or_narrow_is_not_padded():
    assert padded_weights(104) == [[104, 16], [104, 96]] and padded_weights(3) == [[3, 16], [3, 96]]


def test_only_tune_tries_padded_weights():
    """They are among the plans for 16 bits on a GPU, and score nothing by prediction."""
    model = Calls(lambda c, k, w: torch.relu(torch.cat([c, k], 1) @ w["a"]), a=(300, 101)).eval()
    program = capture(model, (torch.randn(7, 100), torch.randn(7, 200)), ["context"])
    for name, several in (("cuda-bfloat16-graphs", True), ("cuda-float32-graphs", False)):
        plans = make_plans(Task(program, Level.FULL, Workload(5000, 8), named(name)))
        padded = [i for i, p in enumerate(plans.plans) if any(n.op is aten.constant_pad_nd.default for n in p.nodes)]
        assert bool(padded) is several
        assert not {way.plan for way in plans.ranges.ways} & {*padded}


ATTENDED, SHARED = replace(CPU, limits=replace(CPU.limits, attended=True)), {"enable_gqa": True}
MASKS = {
    "none": lambda rows, queries, keys: None,
    "numbers": lambda rows, queries, keys: torch.randn(queries, keys, dtype=torch.float64),
    "of each row": lambda rows, queries, keys: torch.arange(rows * keys).view(rows, 1, 1, keys) % 3 > 0,
    "of one row": lambda rows, queries, keys: torch.arange(keys).view(1, 1, 1, keys) > 0,
    "of nothing": lambda rows, queries, keys: torch.arange(queries).view(queries, 1).expand(queries, keys) % 2 > 0,
    "of nothing, in numbers": lambda rows, queries, keys: torch.full((queries, keys), -math.inf, dtype=torch.float64),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize(("queries", "keys"), [(4, 4), (1, 6), (5, 2)])
def test_attention_by_products_is_attention(mask, rows, queries, keys, monkeypatch):
    """With any mask, causal or not, also of queries that see no key; rows that are left for the last turn as well."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(rows, length, 2, width, generator=g, dtype=torch.float64).transpose(1, 2)
        for length, width in ((queries, 3), (keys, 3), (keys, 7))
    )
    seen = MASKS[mask](rows, queries, keys)
    for scores in (attention.SCORES, 2 * 2 * queries * keys):  # all of it, and two rows at a time
        monkeypatch.setattr(attention, "SCORES", scores)
        for causal, scale in ((False, None), (False, 0.3), *([(True, 0.3)] if seen is None else [])):
            expected = F.scaled_dot_product_attention(q, k, v, seen, 0.0, causal, scale=scale)
            assert_equal(attention.attention_by_products(q, k, v, seen, causal, scale), expected)


def test_compilers_and_gradients_get_attention_as_one_operator():
    class Attention(nn.Module):
        def forward(self, q, k, v):
            return attention.attention_by_products(q, k, v, None, True, None)

    given = [torch.randn(3, 2, 4, 5, dtype=torch.float64) for _ in range(3)]
    exported = torch.export.export(Attention(), tuple(given)).graph
    assert aten.scaled_dot_product_attention.default in [n.target for n in exported.nodes]
    assert torch.autograd.gradcheck(Attention(), [x.requires_grad_() for x in given])


def attends(*options: str):
    """Attention of context and candidates, two heads 4 wide."""

    def call(c, k, w):
        x = torch.cat([c.unflatten(1, (3, 8)), k.unsqueeze(1)], 1)
        q, k, v = ((x @ w[name]).unflatten(2, (2, 4)).transpose(1, 2) for name in "qkv")
        given = {}
        if "mask" in options:
            given["attn_mask"] = x.sum(2)[:, None, None] > 0
        if "shared" in options:
            k, v, given = k[:, :1], v[:, :1], SHARED
        if "broadcast" in options:
            q = w["own"].expand(len(x), 2, 1, 4)
        if "causal" in options:
            given |= {"is_causal": True, "scale": 0.3}
        return F.scaled_dot_product_attention(q, k, v, **given).flatten(1)

    return Calls(call, **dict.fromkeys("qkv", (8, 8)), own=(2, 1, 4))


@pytest.mark.parametrize("options", [(), ("mask",), ("causal",), ("broadcast",)], ids=str)
def test_attention_is_taken_by_its_products(options):
    found = emitted(attends(*options), *dense(24, 8), level=Level.REQUEST, target=ATTENDED)
    assert "attention_by_products" in found and "scaled_dot_product_attention.default" not in found, found


@pytest.mark.parametrize(("dropout", "options", "taken"), [(0.0, {}, True), (0.5, {}, False), (0.0, SHARED, False)])
def test_attention_that_draws_or_shares_heads_is_one_operator(dropout, options, taken):
    b = Builder()
    x = b.leaf("input", "x", Rate.PAIR, [2, 5, 4], torch.float64)
    args = (x, x, x, None, dropout, False)
    node = b.call(aten.scaled_dot_product_attention.default, args, Rate.PAIR, x.shape, x.dtype, kwargs=options)
    (made,) = Rewriter(b, [node], ATTENDED.limits).rewritten(by_products)
    assert made.op is (attention.attention_by_products if taken else node.op)


def of_context(c, k, w):
    """Attention once per request."""
    x = c.unflatten(1, (3, 8))
    return F.scaled_dot_product_attention(x, x, x).flatten(1).sum(1, keepdim=True) * k


def of_own_queries(c, k, w):
    """Queries without rows."""
    x = torch.cat([c.unflatten(1, (3, 8)), k.unsqueeze(1)], 1)
    return F.scaled_dot_product_attention(w["own"], x, x).flatten(1)


@pytest.mark.parametrize(
    "model", [attends("shared"), Calls(of_context), Calls(of_own_queries, own=(5, 8))], ids=["shared", "context", "own"]
)
def test_attention_of_shared_heads_of_a_context_or_of_queries_without_rows_stays(model):
    emitted(model, *dense(24, 8), level=Level.REQUEST, target=ATTENDED)
    rows = [torch.randn(7, width, dtype=torch.float64) for width in (24, 8)]
    program = capture(model, tuple(rows), ["context"])
    found = [n.op for n in attempt(Task(program, Level.REQUEST, Workload(), ATTENDED)).nodes]
    assert aten.scaled_dot_product_attention.default in found and attention.attention_by_products not in found


def test_only_tune_tries_attention_by_products():
    """In two plans at most, on a CPU in bfloat16; a model without attention has none more."""
    for model, name, several in (
        (attends("causal"), "cpu-bfloat16", True),
        (attends("causal"), "cpu-float32", False),
        (Calls(lambda c, k, w: torch.relu(torch.cat([c, k], 1) @ w["a"]), a=(32, 5)), "cpu-bfloat16", False),
    ):
        program = capture(model.eval(), (torch.randn(7, 24), torch.randn(7, 8)), ["context"])
        plans = make_plans(Task(program, Level.FULL, Workload(100), named(name)))
        found = [i for i, p in enumerate(plans.plans) if any(n.op is attention.attention_by_products for n in p.nodes)]
        assert several * 1 <= len(found) <= several * 2, (name, found)
        assert not {way.plan for way in plans.ranges.ways} & {*found}
        without = make_plans(Task(program, Level.FULL, Workload(100), replace(named(name), tried=())))
        assert len(plans.plans) == len(without.plans) + len(found)


def test_a_step_of_training_is_not_tried_by_products():
    """What pads weights is tried there, too, with what else holds in training."""
    assert not training(named("cpu-bfloat16")).tried
    own = training(named("cuda-bfloat16"))
    assert [limits == replace(own.limits, aligned=8) for limits in own.tried] == [True]
