"""The layers that tell context from candidate: their formulas, plain rows and grouped batches, and what they cost."""

from functools import partial
from math import comb

import pytest
import torch
from helpers import assert_equal, check_model, repeated
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rankhoist import Workload
from rankhoist.capture import capture
from rankhoist.errors import InputError
from rankhoist.hoist import hoist_program
from rankhoist.nn import DLRM, RDCN, DotPairs, Field, RankAwareAttention, RankSplitLinear

OFFSETS = [0, 3, 3, 8]  # three requests, one without candidates
C, T = 5, 3  # widths of context and candidate
TOKENS = {"context": (4, 6), "candidate": (2, 6)}  # tokens, width

WIDE = {"context": (C,), "candidate": (T,)}
LAYERS = {
    "rdcn": (lambda: RDCN(C, T, 3), WIDE),
    "rdcn of rank 2": (lambda: RDCN(C, T, 2, low_rank=2), WIDE),
    "rdcn, fixed context": (lambda: RDCN(C, T, 3, evolve_context=False), WIDE),
    "attention": (lambda: RankAwareAttention(6, 2, hidden=7), TOKENS),
    "attention, 2 layers": (lambda: RankAwareAttention(6, 3, 2, hidden=7), TOKENS),
    "split linear": (lambda: RankSplitLinear(C, T, 4), WIDE),
    "dot pairs": (DotPairs, TOKENS),
}
STREAMS = [name for name, (build, _) in LAYERS.items() if hasattr(build(), "streams")]

CONTEXT_FIELDS = (Field("user", "id", 11, 4), Field("history", "ids", 13, 4, "item"), Field("profile", "dense", 3, 4))
CANDIDATE_FIELDS = (Field("item", "id", 13, 4, "item"), Field("price", "dense", 2, 4))


class Features(nn.Module):
    """DLRM on one tensor per side, as the layers take them: the columns of its features."""

    def __init__(self):
        super().__init__()
        self.model = DLRM(CONTEXT_FIELDS, CANDIDATE_FIELDS, bottom=(5,), hidden=(6,))

    def forward(self, context, candidate, request_offsets=None):
        return self.model(*named(context, candidate), request_offsets)


LAYERS["dlrm"] = (Features, {"context": (9,), "candidate": (3,)})


def named(context, candidate):
    """Columns of random numbers as named features; ids are made of the first columns."""
    ids = (context[:, :6].abs() * 4).long().clamp(max=10)
    user = {"user": ids[:, 0], "history": ids[:, 1:], "profile": context[:, 6:]}
    return user, {"item": (candidate[:, 0].abs() * 4).long().clamp(max=12), "price": candidate[:, 1:]}


def inputs(shapes, requests=3, candidates=8, seed=1):
    make = partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return make(requests, *shapes["context"]), make(candidates, *shapes["candidate"])


def built(name):
    build, shapes = LAYERS[name]
    return build().double(), shapes


def costs(model, shapes, *candidates):
    """Multiply-adds of one request at level `full`, for each number of candidates."""
    program = capture(model.double().eval(), inputs(shapes, 4, 4), ["context"])
    return [hoist_program(program, workload=Workload(n)).plan.cost.multiply_adds for n in candidates]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


class Head(nn.Module):
    """A linear layer to one score, over what a layer returns."""

    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.linear = layer, nn.Linear(width, 1)

    def forward(self, context, candidate):
        return self.linear(self.layer(context, candidate))


class CandidateStream(nn.Module):
    """What a layer returns for the candidates alone."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, context, candidate):
        return self.layer.streams(context, candidate)[1]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# --------------------------------------------------------------------------------------------------
# Formulas, row by row
# --------------------------------------------------------------------------------------------------


def matrices(net, depth):
    """(W_c, b_c, W_ct, W_t, b_t) of one layer, multiplied out; W_c is None without a context stream."""
    layer = net.candidate_layers[depth]
    narrow = torch.cat([layer.split.context.weight, layer.split.candidate.weight], dim=1)
    low_rank = isinstance(layer.widen, nn.Linear)
    joined, b_t = (layer.widen.weight @ narrow, layer.widen.bias) if low_rank else (narrow, layer.split.context.bias)
    if not net.context_layers:
        return None, None, joined[:, :C], joined[:, C:], b_t
    last = net.context_layers[depth][1] if low_rank else net.context_layers[depth]
    w_c = last.weight @ net.context_layers[depth][0].weight if low_rank else last.weight
    return w_c, last.bias, joined[:, :C], joined[:, C:], b_t


@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith("rdcn")])
def test_rdcn_is_its_formula(name):
    net, shapes = built(name)
    contexts, candidates = inputs(shapes, 8, 8)
    expected = []
    for c_0, t_0 in zip(contexts, candidates, strict=True):
        c, t = c_0, t_0
        for depth in range(len(net.candidate_layers)):
            w_c, b_c, w_ct, w_t, b_t = matrices(net, depth)
            before = c
            if w_c is not None:
                c = c_0 * (w_c @ c + b_c) + c
            t = t_0 * (w_ct @ before + w_t @ t + b_t) + t
        expected.append(torch.cat([c, t]))
    assert_equal(net(contexts, candidates), torch.stack(expected))
    assert (net.streams(contexts, candidates)[0] == contexts).all() == (not net.context_layers)


def normed(tokens, layer):
    centred = tokens - tokens.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def mapped(tokens, layer):
    return tokens @ layer.weight.T + layer.bias


def attended(own, source, tokens, heads):
    """Queries from `own` tokens; keys and values from `tokens`, pairs of (normed tokens, their projections)."""
    query = mapped(own, source.query)
    keys = torch.cat([mapped(x, s.key) for x, s in tokens])
    values = torch.cat([mapped(x, s.value) for x, s in tokens])
    parts = []
    for columns in torch.arange(query.shape[1]).chunk(heads):
        scores = query[:, columns] @ keys[:, columns].T / len(columns) ** 0.5
        weights = scores.exp() / scores.exp().sum(1, keepdim=True)
        parts.append(weights @ values[:, columns])
    return mapped(torch.cat(parts, dim=1), source.output)


@pytest.mark.parametrize("name", ["attention", "attention, 2 layers"])
def test_attention_is_its_formula(name):
    net, shapes = built(name)
    for parameter in net.parameters():  # biases and norms too must count
        nn.init.normal_(parameter, std=0.5)
    contexts, candidates = inputs(shapes, 8, 8)
    expected = []
    for c, k in zip(contexts, candidates, strict=True):
        for layer in net.layers:
            own, other = layer.context, layer.candidate
            c_in, k_in = normed(c, own.norm), normed(k, other.norm)
            c = c + attended(c_in, own, [(c_in, own)], own.heads)
            k = k + attended(k_in, other, [(c_in, own), (k_in, other)], own.heads)
            norm_c, first_c, _, second_c = own.feed_forward
            norm_k, first_k, _, second_k = other.feed_forward
            c = c + mapped(mapped(normed(c, norm_c), first_c).clamp(min=0), second_c)
            k = k + mapped(mapped(normed(k, norm_k), first_k).clamp(min=0), second_k)
        expected.append(torch.cat([c, k]))
    assert_equal(net(contexts, candidates), torch.stack(expected))


@pytest.mark.parametrize("bias", [True, False])
def test_split_linear_is_a_linear_over_the_concatenation(bias):
    context, candidate = inputs(WIDE, 8, 8)
    linear = nn.Linear(C + T, 4, bias=bias).double()
    split = RankSplitLinear.from_linear(linear, C)
    assert_equal(split(context, candidate), linear(torch.cat([context, candidate], dim=1)))
    back = split.to_linear()
    assert all(torch.equal(value, linear.state_dict()[key]) for key, value in back.state_dict().items())
    assert back.state_dict().keys() == linear.state_dict().keys()
    assert back.weight.data_ptr() != split.context.weight.data_ptr() != linear.weight.data_ptr()


def test_split_linear_starts_as_a_linear():
    """Its weights stay within the bound of the joined fan-in, and fill it."""
    split = RankSplitLinear(16, 9, 100)
    for weight in (split.context.weight, split.candidate.weight, split.context.bias):
        assert 0.95 * 25**-0.5 < weight.abs().max() <= 25**-0.5


def test_dot_pairs_are_all_pairs_in_the_documented_order():
    context, candidate = inputs({"context": (3, 4), "candidate": (2, 4)}, 5, 5)
    vectors = [*context.unbind(1), *candidate.unbind(1)]
    order = [(0, 1), (0, 2), (1, 2), (3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2), (3, 4)]
    expected = torch.stack([(vectors[i] * vectors[j]).sum(1) for i, j in order], dim=1)
    assert_equal(DotPairs()(context, candidate), expected)


def test_dlrm_is_bottom_pairs_and_top():
    model, shapes = built("dlrm")
    user, item = named(*inputs(shapes, 8, 8))
    dlrm, tables = model.model, model.model.embedding.tables
    clicked = tables["item"](user["history"]) * (user["history"] != 0).unsqueeze(2)
    history = clicked.sum(1) / (user["history"] != 0).sum(1, keepdim=True).clamp(min=1)
    profile, price = dlrm.bottoms["profile"](user["profile"]), dlrm.bottoms["price"](item["price"])
    c = torch.stack([tables["user"](user["user"]), history, profile], dim=1)
    k = torch.stack([tables["item"](item["item"]), price], dim=1)
    expected = dlrm.head(dlrm.top(torch.cat([profile, price, DotPairs()(c, k)], dim=1)))[:, 0]
    assert_equal(dlrm(user, item), expected)


def test_documented_parameter_counts():
    assert count(RDCN(C, T, 3)) == 3 * (C * C + C * T + T * T + C + T)
    assert count(RDCN(C, T, 3, evolve_context=False)) == 3 * (C * T + T * T + T)
    assert count(RDCN(C, T, 3, low_rank=2)) == 3 * (2 * (3 * C + 2 * T) + C + T)
    d, f = 6, 7
    assert count(RankAwareAttention(d, 2, 3, hidden=f)) == 3 * 2 * (4 * (d * d + d) + 4 * d + 2 * d * f + f + d)
    assert count(RankSplitLinear(C, T, 4)) == (C + T) * 4 + 4
    bottoms = (4 * 5 + 6 * 4) + (3 * 5 + 6 * 4)
    assert count(Features()) == (11 + 13) * 4 + bottoms + (2 * 4 + comb(5, 2) + 1) * 6 + 7


# --------------------------------------------------------------------------------------------------
# Plain rows and grouped batches
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_rows_and_grouped_batches_give_equal_results_and_gradients(name):
    model, shapes = built(name)
    context, candidate = (x.requires_grad_() for x in inputs(shapes))
    learned = dict(model.named_parameters())
    results, gradients = [], []
    for given in ((context, candidate, OFFSETS), (context, candidate, torch.tensor(OFFSETS))):
        results.append(model(*given))
    results.append(model(repeated(context, OFFSETS), candidate))
    weights = torch.randn_like(results[0])
    for result in results:
        loss = (result * weights).sum()
        gradients.append(torch.autograd.grad(loss, [context, candidate, *learned.values()]))
    for result, gradient in zip(results[:2], gradients[:2], strict=True):
        assert_equal(result, results[2])
        for label, a, b in zip(["context", "candidate", *learned], gradient, gradients[2], strict=True):
            assert_equal(a, b, label)
    assert not gradients[0][0][1].any(), "the request without candidates"
    assert all(gradient.any() for gradient in gradients[0]), "every parameter learns"


@pytest.mark.parametrize("name", STREAMS)
def test_the_context_stream_knows_no_candidate(name):
    model, shapes = built(name)
    context, candidate = inputs(shapes)
    candidate.requires_grad_()
    first, per_candidate = model.streams(context, candidate, OFFSETS)
    assert first.shape == context.shape and per_candidate.shape == candidate.shape
    assert torch.equal(first, model.streams(context, candidate * 7 - 1, OFFSETS)[0])
    assert not first.requires_grad or torch.autograd.grad(first.sum(), candidate, allow_unused=True) == (None,)
    joined = model(context, candidate, OFFSETS)
    assert_equal(joined, torch.cat([repeated(first, OFFSETS), per_candidate], dim=1))


@pytest.mark.parametrize("name", STREAMS)
def test_a_candidate_knows_its_request_and_no_other_candidate(name):
    model, shapes = built(name)
    context, candidate = (x.requires_grad_() for x in inputs(shapes))
    last = model.streams(context, candidate, OFFSETS)[1][3]  # the first candidate of the last request
    by_context, by_candidate = torch.autograd.grad(last.square().sum(), [context, candidate])
    assert [bool(g.any()) for g in by_context] == [False, False, True]
    assert [bool(g.any()) for g in by_candidate] == [n == 3 for n in range(8)]


def attention_cost(c, t, d, f):
    """Multiply-adds of one layer: per request, per candidate."""
    projections, feed_forward = 4 * d * d, 2 * d * f
    return c * (projections + 2 * c * d + feed_forward), t * (projections + 2 * (c + t) * d + feed_forward)


GROUPED_COSTS = {  # multiply-adds per request, per candidate
    "rdcn": (3 * (C * C + C * T), 3 * T * T),
    "rdcn of rank 2": (2 * 2 * 3 * C, 2 * 2 * 2 * T),
    "rdcn, fixed context": (3 * C * T, 3 * T * T),
    "attention": attention_cost(4, 2, 6, 7),
    "attention, 2 layers": tuple(2 * work for work in attention_cost(4, 2, 6, 7)),
    "split linear": (C * 4, T * 4),
    "dot pairs": (4 * 4 * 6, 2 * (4 + 2) * 6),
    "dlrm": (3 * 5 + 5 * 4 + 3 * 3 * 4, 2 * 5 + 5 * 4 + 2 * 5 * 4 + (2 * 4 + comb(5, 2) + 1) * 6),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_grouped_batch_does_context_work_once_per_request(name):
    model, shapes = built(name)
    per_request, per_candidate = GROUPED_COSTS[name]
    # Other kernels of attention are not counted.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(*inputs(shapes), OFFSETS)
    assert counter.get_total_flops() == 2 * (3 * per_request + 8 * per_candidate)


# --------------------------------------------------------------------------------------------------
# Hoisted like any other model
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_hoisted_equals_the_layer(name):
    model, shapes = built(name)
    context, candidate = inputs(shapes)
    hoisted = check_model(model.eval(), context, candidate)["full"]
    grouped = model(context, candidate, OFFSETS)
    assert_equal(hoisted(context, candidate, request_offsets=OFFSETS), grouped)


def rdcn_costs(c, t, layers):
    """Models, and their multiply-adds per request and per candidate."""
    context, candidate = c * c + c * t, t * t
    build = partial(RDCN, c, t, layers)
    return {
        "one layer": (lambda: RDCN(c, t, 1), context, candidate),
        "all layers": (build, layers * context, layers * candidate),
        "a head": (lambda: Head(build(), c + t), layers * context + c, layers * candidate + t),
        # Whoever reads the candidate stream alone does without the last map of the context.
        "candidate stream": (lambda: CandidateStream(build()), layers * context - c * c, layers * candidate),
        "fixed context": (partial(build, evolve_context=False), layers * c * t, layers * candidate),
        "rank 2": (partial(build, low_rank=2), layers * 2 * 3 * c, layers * 2 * 2 * t),
    }


RDCN_COSTS = rdcn_costs(12, 5, 3)


@pytest.mark.parametrize("name", RDCN_COSTS)
def test_hoisted_rdcn_costs_its_formula(name):
    build, per_request, per_candidate = RDCN_COSTS[name]
    shapes = {"context": (12,), "candidate": (5,)}
    assert costs(build(), shapes, 1, 1000) == [per_request + n * per_candidate for n in (1, 1000)]


@pytest.mark.parametrize(("depth", "reader"), [(1, "all tokens"), (2, "candidate tokens"), (3, "all tokens")])
def test_hoisted_attention_costs_its_formula(depth, reader):
    """Candidates do no work on context tokens but that of their own scores and values, `2 T C d`."""
    c, t, d, f = 12, 2, 8, 16
    per_request, per_candidate = (depth * work for work in attention_cost(c, t, d, f))
    net = RankAwareAttention(d, 2, depth, hidden=f)
    if reader == "candidate tokens":  # of the last layer's context, keys and values are left
        net, per_request = CandidateStream(net), per_request - attention_cost(c, t, d, f)[0] + 2 * c * d * d
    assert costs(net, {"context": (c, d), "candidate": (t, d)}, 1000) == [per_request + 1000 * per_candidate]


def test_hoisted_split_linear_and_dot_pairs_cost_their_formulas():
    c, t, k = 6, 3, 4
    assert costs(RankSplitLinear(C, T, 4), WIDE, 1, 1000) == [C * 4 + n * T * 4 for n in (1, 1000)]
    shapes = {"context": (c, k), "candidate": (t, k)}
    assert costs(DotPairs(), shapes, 1, 1000) == [c * c * k + n * t * (c + t) * k for n in (1, 1000)]


def test_hoisted_dlrm_costs_the_closed_form():
    """Pairs: `C(F_c, 2) k` per request, `(F_c F_k + C(F_k, 2)) k` per candidate (arXiv 2605.27450, Eq. 6)."""
    f_c, f_k, k, bottom, top = 3, 2, 4, 5, 6
    per_request = 3 * bottom + bottom * k + comb(f_c, 2) * k + (k + comb(f_c, 2)) * top
    pairs = f_c * f_k + comb(f_k, 2)
    per_candidate = 2 * bottom + bottom * k + pairs * k + (k + pairs) * top + top
    model, shapes = built("dlrm")
    assert costs(model, shapes, 1, 1000) == [per_request + n * per_candidate for n in (1, 1000)]


# --------------------------------------------------------------------------------------------------
# What does not fit
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_row_counts_and_offsets_that_do_not_fit(name):
    model, shapes = built(name)
    context, candidate = inputs(shapes)
    with pytest.raises(InputError, match="context has 3 rows and candidate 8; pass request_offsets with 4 boundaries"):
        model(context, candidate)
    with pytest.raises(InputError, match=r"request_offsets has shape \[3\], expected \[4\] for 3 requests"):
        model(context, candidate, OFFSETS[1:])
    for wrong in ([0, 3, 3, 7], [1, 3, 3, 8], [0, 5, 3, 8]):
        with pytest.raises(InputError, match="must rise from 0 to 8"):
            model(context, candidate, wrong)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "dlrm"])
def test_shapes_that_do_not_fit(name):
    model, shapes = built(name)
    context, candidate = inputs(shapes, 8, 8)
    with pytest.raises(InputError, match=r"candidate has shape \[8, .*\], expected \[rows, .*\d\]"):
        model(context, candidate[..., 1:])
    with pytest.raises(InputError, match=r"context has shape \[8.*\], expected \[rows, .*\]"):
        model(context[..., 0], candidate)


def test_dlrm_says_which_features_do_not_fit():
    model = Features().model
    user, item = named(*inputs(LAYERS["dlrm"][1], 8, 8, seed=2))
    with pytest.raises(InputError, match="missing candidate features: price; got item"):
        model(user, {"item": item["item"]})
    with pytest.raises(InputError, match=r"context features have different row counts \(user: 3, history: 8"):
        model(user | {"user": user["user"][:3]}, item)


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match="multiple of heads, got 6 and 4"):
        RankAwareAttention(6, 4)
    for width in (0, 8):
        with pytest.raises(ValueError, match=f"0 < {width} < 8 is false"):
            RankSplitLinear.from_linear(nn.Linear(8, 2), width)
    with pytest.raises(ValueError, match="one width above 0"):
        DLRM(CONTEXT_FIELDS, (Field("item", "id", 13, 5),))
    with pytest.raises(ValueError, match="different names"):
        DLRM(CONTEXT_FIELDS, CONTEXT_FIELDS[:1])
    with pytest.raises(ValueError, match=r"both context and candidate, got \[\[\], \['item', 'price'\]\]"):
        DLRM((), CANDIDATE_FIELDS)
