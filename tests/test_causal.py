"""Constant masks: what may not look at the candidate is computed once per request, however the mask is spelled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, assert_equal, check_model, hoisted_at, rates_of
from torch import Tensor, nn

from rankhoist import hoist
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.rules import all_rules
from rankhoist.errors import RankhoistError

T, D, N = 9, 4, 7  # tokens (the candidate is the last), width, candidates
G = torch.Generator().manual_seed(5)
HIDDEN = torch.ones(T, T, dtype=torch.bool).triu(1)
BIAS = torch.zeros(T, T, dtype=torch.float64).masked_fill(HIDDEN, -torch.inf)
TRIANGLE = torch.ones(T, T, dtype=torch.float64).tril()

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


HISTORY, TARGET = randn(3, T - 1, D), randn(N, D)


def softmax_of(hide: Callable[[Tensor], Tensor]) -> Attention:
    return lambda q, k, v: torch.softmax(hide(q @ k.mT / 2), -1) @ v


def padded(x: Tensor) -> Tensor:
    """Entries that are no history, all of some; never the target."""
    return torch.cat([x[:, :-1, 0] < 0, torch.zeros_like(x[:, :1, 0], dtype=torch.bool)], 1)[:, None]


def seeing_itself(x: Tensor) -> Tensor:
    """Scores and a mask of places and padding, in which every place sees itself."""
    mask = BIAS + torch.zeros_like(x[:, :1]).masked_fill(padded(x), -torch.inf)
    torch.diagonal(mask, dim1=1, dim2=2).zero_()
    return x + mask


IDIOMS: dict[str, Attention] = {
    "is_causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "boolean_mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, ~HIDDEN),
    "float_mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, BIAS),
    "causal_and_padding": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, ~HIDDEN & ~padded(k)),
    "seeing_itself": softmax_of(seeing_itself),
    "masked_fill": softmax_of(lambda x: x.masked_fill(HIDDEN, -torch.inf)),
    "more_digits": lambda q, k, v: (
        (q @ k.mT / 2).float().masked_fill(HIDDEN, -torch.inf).softmax(-1, torch.float64).float().double() @ v
    ),
    "expanded": softmax_of(lambda x: x.masked_fill(HIDDEN[None].expand(x.shape[0], -1, -1), -torch.inf)),
    "made_in_forward": softmax_of(lambda x: x.masked_fill(torch.triu(torch.ones(T, T), 1) == 1, -torch.inf)),
    "where": softmax_of(lambda x: torch.where(HIDDEN, -torch.inf, x)),
    "added": softmax_of(lambda x: x + BIAS),
    "onto_a_product": lambda q, k, v: torch.softmax(torch.baddbmm(BIAS, q, k.mT), -1) @ v,
    "multiplied": lambda q, k, v: (F.silu(q @ k.mT) * TRIANGLE) @ v,
    "multiplied_by_booleans": lambda q, k, v: (torch.sigmoid(q @ k.mT) * ~HIDDEN) @ v,
}


def sequence(attend: Attention, layers: int = 2) -> Callable[..., Tensor]:
    """Layers of attention over history and target; the score is read from the target alone."""

    def call(c: Tensor, k: Tensor, w: Tensor, n: Tensor) -> Tensor:
        x = torch.cat([c, k[:, None]], 1)
        for _ in range(layers):
            q, y, v = (F.layer_norm(x, [D], n) @ w).chunk(3, -1)
            x = x + attend(q, y, v)
        return x[:, -1]

    return call


def weights() -> dict[str, Tensor]:
    return {"w": randn(D, 3 * D), "n": randn(D)}


@pytest.mark.parametrize("name", IDIOMS)
def test_a_history_that_never_sees_the_target_is_computed_once(name):
    models = check_model(Function(sequence(IDIOMS[name]), **weights()).eval(), HISTORY, TARGET)
    before = models["expand"].plan.cost.multiply_adds
    for level in ("first", "full"):
        assert models[level].plan.cost.multiply_adds < before / 4, level
    assert models["request"].plan.cost.multiply_adds > before / 2


SEEN_BY_ONE = HIDDEN.clone()
SEEN_BY_ONE[2, -1] = False  # one entry of the history sees the target
ROWLESS = HIDDEN.clone()
ROWLESS[3] = True  # a query that sees nothing
BLIND = HIDDEN.clone()
BLIND[:-1] = True  # all of the history sees nothing


@pytest.mark.parametrize(
    "attend",
    [
        softmax_of(lambda x: x.masked_fill(SEEN_BY_ONE, -torch.inf)),
        lambda q, k, v: (F.silu(q @ k.mT) * TRIANGLE.clamp(min=1e-3)) @ v,
    ],
    ids=["one_entry_sees_it", "small_instead_of_zero"],
)
def test_what_sees_the_target_is_not_hoisted(attend):
    """But for what nobody reads, at level full."""
    models = check_model(Function(sequence(attend), **weights()).eval(), HISTORY, TARGET)
    assert models["first"].plan.cost.multiply_adds > models["expand"].plan.cost.multiply_adds / 4


@pytest.mark.parametrize(
    "attend",
    [
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, ~ROWLESS),
        softmax_of(lambda x: x.masked_fill(ROWLESS, -torch.inf)),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, ~BLIND),
        softmax_of(lambda x: x.masked_fill(BLIND, -torch.inf)),
    ],
    ids=["zero", "nan", "zero_for_all", "nan_for_all"],
)
def test_a_query_that_sees_nothing(attend):
    """Zero by PyTorch's own attention, not a number by a softmax of -inf alone."""

    def call(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
        x = torch.cat([c, k[:, None]], 1)
        return attend(*(x @ w).chunk(3, -1))[:, 2:]

    check_model(Function(call, w=randn(D, 3 * D)).eval(), HISTORY, TARGET)


def pairs(c: Tensor, k: Tensor) -> Tensor:
    x = torch.cat([c, k[:, None]], 1)
    return x @ x.mT


def with_ones(c: Tensor, k: Tensor) -> Tensor:
    return torch.cat([c, torch.ones_like(c[:, :1]), k[:, None]], 1)


ARITHMETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "zero_times_infinity": lambda c, k: pairs(c, k).masked_fill(HIDDEN, -torch.inf) * TRIANGLE,
    "infinity_minus_infinity": lambda c, k: pairs(c, k) + BIAS - BIAS,
    "number_minus_a_masked": lambda c, k: 1 - pairs(c, k) * TRIANGLE,
    "number_minus_twice_ones": lambda c, k: torch.rsub(with_ones(c, k), 1, alpha=2),
    "ones_plus_twice_a_number": lambda c, k: torch.ops.aten.add.Scalar(with_ones(c, k), -1, 2),
    "bits_of_whole_numbers": lambda c, k: (pairs(c, k) * 8).long() & ~HIDDEN | (TRIANGLE == 0),
}


@pytest.mark.parametrize("name", ARITHMETIC)
def test_numbers_in_arithmetic(name):
    check_model(Function(ARITHMETIC[name]).eval(), HISTORY, TARGET)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["added", "where"])
def test_a_mask_of_more_digits(name, dtype):
    """A block of the mask that is one number still takes part in type promotion."""

    def call(c: Tensor, k: Tensor) -> Tensor:
        x = pairs(c.to(dtype), k.to(dtype))
        return torch.softmax(x + BIAS if name == "added" else torch.where(HIDDEN, BIAS, x), -1)

    whole = HISTORY.round(), TARGET.round()  # exact in either dtype, and in any order
    check_model(Function(call).eval(), *whole)


class Masked(nn.Module):
    """Scores through a triangle that is a parameter, a buffer or a plain attribute."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.w = nn.Parameter(randn(D, 3 * D), requires_grad=False)
        if kind == "parameter":
            self.mask = nn.Parameter(TRIANGLE.clone(), requires_grad=False)
        elif kind == "buffer":
            self.register_buffer("mask", TRIANGLE.clone())
        else:
            self.mask = TRIANGLE.clone()

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = torch.cat([context, candidate[:, None]], 1)
        q, k, v = (x @ self.w).chunk(3, -1)
        return ((q @ k.mT).sigmoid() * self.mask @ v)[:, 1:].sum(1)


@pytest.mark.parametrize(("kind", "known"), [("parameter", False), ("buffer", True), ("attribute", True)])
def test_only_a_mask_that_no_training_changes_is_read(kind, known):
    model = Masked(kind).eval()
    program = capture(model, (HISTORY[torch.arange(4) % 3], TARGET[:4]), ["context"], all_rules())
    rates = rates_of(hoisted_at(program, Level.FULL), "mul.Tensor")
    assert (Rate.WEIGHT in rates) == known


def test_new_weights_may_change_a_trained_mask_but_no_other():
    example = HISTORY[torch.arange(4) % 3], TARGET[:4]
    trained, kept = Masked("parameter").eval(), Masked("buffer").eval()
    hoisted = hoist(trained, example, context=["context"])
    other = trained.state_dict() | {"mask": torch.ones(T, T, dtype=torch.float64)}
    hoisted.update_weights(other)
    trained.load_state_dict(other)
    assert_equal(hoisted(HISTORY[:1], TARGET), trained(HISTORY[:1].expand(N, -1, -1), TARGET))
    with pytest.raises(RankhoistError, match="mask"):
        hoist(kept, example, context=["context"]).update_weights(
            kept.state_dict() | {"mask": torch.ones(T, T, dtype=torch.float64)}
        )


def test_a_mask_changed_in_place_is_noticed():
    model = Masked("buffer").eval()
    hoisted = hoist(model, (HISTORY[torch.arange(4) % 3], TARGET[:4]), context=["context"])
    model.mask.fill_(1)
    with pytest.raises(RankhoistError, match="mask"):
        hoisted.update_weights(model.state_dict())


def test_what_a_norm_keeps_may_change_though_it_is_zero_at_first():
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(D, dtype=torch.float64))

        def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
            return ((context[:, 0] + self.mean) * candidate).sum(1)

    model = Shifted().eval()
    hoisted = hoist(model, (HISTORY[torch.arange(4) % 3], TARGET[:4]), context=["context"])
    model.mean += 1
    hoisted.update_weights(model.state_dict())
    assert_equal(hoisted(HISTORY[:1], TARGET), model(HISTORY[:1].expand(N, -1, -1), TARGET))


def test_a_constant_that_decides_nothing_may_change():
    class Warm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("temperature", torch.full((1, 1), 0.5, dtype=torch.float64))

        def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
            return (torch.cat([context[:, 0], candidate], 1) * self.temperature).tanh().sum(1)

    model = Warm().eval()
    hoisted = hoist(model, (HISTORY[torch.arange(4) % 3], TARGET[:4]), context=["context"])
    model.temperature = model.temperature * 3
    hoisted.update_weights(model.state_dict())
    assert_equal(hoisted(HISTORY[:1], TARGET), model(HISTORY[:1].expand(N, -1, -1), TARGET))


@pytest.mark.parametrize("how", ["guessed", "hinted"])
def test_pytorchs_own_encoder_with_a_mask(how):
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(D, 2, 8, batch_first=True, norm_first=how == "hinted")
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(T, dtype=context.dtype)
            hint = {"is_causal": True} if how == "hinted" else {}
            return self.layers(torch.cat([context, candidate[:, None]], 1), mask=mask, **hint)[:, -1]

    models = check_model(Encoder().double().eval(), HISTORY, TARGET)
    assert models["full"].plan.cost.multiply_adds < models["expand"].plan.cost.multiply_adds / 4


@pytest.mark.parametrize("norm", [F.layer_norm, F.rms_norm])
def test_tokens_are_normalised_at_their_own_rate(norm):
    def call(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
        return norm(torch.cat([c, k[:, None]], 1), [D], w).sum((1, 2))

    models = check_model(Function(call, w=randn(D)).eval(), HISTORY, TARGET)
    assert rates_of(models["linear"], "norm") == {Rate.REQUEST, Rate.ITEM}


def test_a_norm_with_weights_of_the_request_declines():
    def call(c: Tensor, k: Tensor) -> Tensor:
        return F.layer_norm(torch.cat([c[:, :, :1].expand(-1, -1, D), k[:, None]], 1), [D], c[0, 0]).sum((1, 2))

    model = Function(call).eval()
    hoisted = hoist(model, (HISTORY[torch.zeros(4, dtype=torch.long)], TARGET[:4]), context=["context"])
    assert_equal(hoisted(HISTORY[:1], TARGET), model(HISTORY[:1].expand(N, -1, -1), TARGET))
