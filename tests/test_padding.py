"""A constant mask joined with a mask of ids, the target's id among them: the history is computed once all the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, assert_equal, check_model, hoisted_at, repeated
from torch import Tensor, nn

from rankhoist import hoist
from rankhoist.capture import capture
from rankhoist.compiler.algebra.known import Known, result
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.rules import all_rules

T, D, N = 51, 4, 7  # tokens (the candidate is the last), width, candidates
G = torch.Generator().manual_seed(7)
HIDDEN = torch.ones(T, T, dtype=torch.bool).triu(1)
BIAS = torch.zeros(T, T, dtype=torch.float64).masked_fill(HIDDEN, -torch.inf)
TRIANGLE = torch.ones(T, T, dtype=torch.float64).tril()

HISTORY = torch.randint(1, 20, (3, T - 1), generator=torch.Generator().manual_seed(2))
HISTORY[1, 30:] = 0
HISTORY[2, 1::3] = 0
TARGET = torch.tensor([3, 9, 0, 1, 4, 0, 7])


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def softmax_of(hide: Callable[[Tensor, Tensor], Tensor]) -> Attention:
    return lambda q, k, v, pad: torch.softmax(hide(q @ k.mT / 2, pad), -1) @ v


def bias_of(pad: Tensor, fill: float = -torch.inf) -> Tensor:
    """`[B, 1, T]`."""
    return torch.zeros(pad.shape, dtype=torch.float64).masked_fill(pad, fill)[:, None]


def of_heads(q: Tensor, k: Tensor, v: Tensor, pad: Tensor) -> Tensor:
    """Heads folded with the rows, and a mask `[B * heads, T, T]`."""
    q, k, v = (x.view(-1, T, 2, D // 2).transpose(1, 2).reshape(-1, T, D // 2) for x in (q, k, v))
    mask = (HIDDEN | pad[:, None, None]).expand(-1, 2, -1, -1).reshape(-1, T, T)
    out = torch.softmax((q @ k.mT).masked_fill(mask, -torch.inf), -1) @ v
    return out.view(-1, 2, T, D // 2).transpose(1, 2).reshape(-1, T, D)


def of_heads_by_four_axes(q: Tensor, k: Tensor, v: Tensor, pad: Tensor) -> Tensor:
    """Hugging Face: `[B, 1, T, T]`, true where a query may look."""
    q, k, v = (x.view(-1, T, 2, D // 2).transpose(1, 2) for x in (q, k, v))
    mask = ~HIDDEN[None, None].expand(q.shape[0], 1, -1, -1) & ~pad[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(-1, T, D)


def lengths(pad: Tensor) -> Tensor:
    """Padding at the end, from the number of entries of the history alone; the target is always seen."""
    count = (~pad[:, :-1]).sum(1, keepdim=True)
    places = torch.arange(T)
    return ((places >= count) & (places < T - 1))[:, None]


IDIOMS: dict[str, Attention] = {
    "or": lambda q, k, v, pad: F.scaled_dot_product_attention(q, k, v, ~(HIDDEN | pad[:, None])),
    "and": lambda q, k, v, pad: F.scaled_dot_product_attention(q, k, v, ~HIDDEN & ~pad[:, None]),
    "added_one_by_one": softmax_of(lambda x, pad: x + BIAS + bias_of(pad)),
    "biases_added_first": softmax_of(lambda x, pad: x + (BIAS + bias_of(pad))),
    "filled_twice": softmax_of(lambda x, pad: x.masked_fill(HIDDEN, -torch.inf).masked_fill(pad[:, None], -torch.inf)),
    "padding_filled_first": softmax_of(
        lambda x, pad: x.masked_fill(pad[:, None], -torch.inf).masked_fill(HIDDEN, -torch.inf)
    ),
    "where": softmax_of(lambda x, pad: torch.where(HIDDEN | pad[:, None], -torch.inf, x)),
    "where_of_where": softmax_of(
        lambda x, pad: torch.where(pad[:, None], -torch.inf, torch.where(HIDDEN, -torch.inf, x))
    ),
    "zero_in_a_product": softmax_of(
        lambda x, pad: x.masked_fill((TRIANGLE * (~pad[:, None]).double()) == 0, -torch.inf)
    ),
    "expanded": softmax_of(lambda x, pad: x.masked_fill(pad[:, None].expand(-1, T, -1) | HIDDEN, -torch.inf)),
    "fewer_digits_for_padding": softmax_of(lambda x, pad: x + bias_of(pad, -1e9) + BIAS),
    "heads_folded": of_heads,
    "four_axes": of_heads_by_four_axes,
    "multiplied": lambda q, k, v, pad: (F.silu(q @ k.mT) * (TRIANGLE * (~pad[:, None]))) @ v,
    "lengths": softmax_of(lambda x, pad: x.masked_fill(HIDDEN | lengths(pad), -torch.inf)),
    "lengths_added": softmax_of(lambda x, pad: x + bias_of(lengths(pad)[:, 0]) + BIAS),
}


def sequence(attend: Attention, layers: int = 2) -> Callable[..., Tensor]:
    """Layers of attention over history and target; the score is read from the target alone."""

    def call(c: Tensor, k: Tensor, e: Tensor, w: Tensor, n: Tensor) -> Tensor:
        ids = torch.cat([c, k[:, None]], 1)
        x = F.embedding(ids, e)
        for _ in range(layers):
            q, y, v = (F.layer_norm(x, [D], n) @ w).chunk(3, -1)
            x = x + attend(q, y, v, ids == 0)
        return x[:, -1]

    return call


def model_of(attend: Attention) -> nn.Module:
    return Function(sequence(attend), e=randn(20, D), w=randn(D, 3 * D), n=randn(D)).eval()


def saving(models: dict[str, object], level: str) -> float:
    return models["expand"].plan.cost.multiply_adds / models[level].plan.cost.multiply_adds  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", IDIOMS)
def test_a_history_is_computed_once_under_a_joined_mask(name):
    models = check_model(model_of(IDIOMS[name]), HISTORY, TARGET)
    assert saving(models, "first") > 20
    assert saving(models, "full") > 20
    assert saving(models, "linear") < 4


SEEN = HIDDEN.clone()
SEEN[:-1:2, -1] = False  # half of the history sees the target
NEAR_MISSES: dict[str, Attention] = {
    "half_of_it_sees": softmax_of(lambda x, pad: x.masked_fill(SEEN | pad[:, None], -torch.inf)),
    "plus_infinity": softmax_of(lambda x, pad: x + (BIAS + bias_of(pad, torch.inf))),
    "no_number": softmax_of(lambda x, pad: x + (BIAS + bias_of(pad, torch.nan))),
    "minus_a_padding_bias": softmax_of(lambda x, pad: x + (BIAS - bias_of(pad))),
    "infinity_times_zero": lambda q, k, v, pad: ((q @ k.mT + bias_of(pad)) * TRIANGLE).clamp(-9, 9) @ v,
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_what_may_see_the_target_is_not_hoisted(name):
    models = check_model(model_of(NEAR_MISSES[name]), HISTORY, TARGET)
    assert saving(models, "first") < 5


def test_a_query_that_sees_nothing_before_the_target():
    """Padding in front: zero by PyTorch's own attention, no number by a softmax."""
    left = HISTORY.clone()
    left[:, :3] = 0
    for name in ("or", "filled_twice"):
        models = check_model(model_of(IDIOMS[name]), left, TARGET)
        assert saving(models, "first") > 20, name


@pytest.mark.parametrize("first", [False, True])
def test_pytorchs_own_encoder_with_both_masks(first):
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ids = nn.Embedding(20, D, padding_idx=0)
            layer = nn.TransformerEncoderLayer(D, 2, 8, batch_first=True, norm_first=first)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
            ids = torch.cat([context, candidate[:, None]], 1)
            mask = HIDDEN if first else BIAS
            padding = ids == 0 if first else bias_of(ids == 0)[:, 0]
            return self.layers(self.ids(ids), mask=mask, src_key_padding_mask=padding)[:, -1]

    models = check_model(Encoder().double().eval(), HISTORY, TARGET)
    assert saving(models, "full") > 20


def test_a_trained_mask_hides_nothing_for_sure():
    def call(c: Tensor, k: Tensor, bias: Tensor, **own: Tensor) -> Tensor:
        return sequence(softmax_of(lambda x, pad: x + (bias + bias_of(pad))))(c, k, **own)

    models = check_model(
        Function(call, bias=BIAS.clone(), e=randn(20, D), w=randn(D, 3 * D), n=randn(D)).eval(), HISTORY, TARGET
    )
    assert saving(models, "first") < 4


def test_only_constants_of_the_mask_are_fixed():
    """The embedding that the padding is compared with may still be trained."""
    model = model_of(IDIOMS["biases_added_first"])
    hoisted = hoist(model, (HISTORY[[0, 1, 2, 0]], TARGET[:4]), context=["context"])
    with torch.no_grad():
        model.e.mul_(0.5)
    hoisted.update_weights(model.state_dict())
    assert_equal(hoisted(HISTORY[:1], TARGET), model(repeated(HISTORY[:1], [0, N]), TARGET))


# -- element by element

X, PAD = torch.tensor([[1.0, -torch.inf, 0.0]]), torch.tensor([[True, False, True]])


def of(values: Tensor, sure: list[bool], infinities: frozenset[int] = frozenset()) -> Known:
    chosen = torch.tensor([sure])
    return Known(values.masked_fill(~chosen, 0), chosen, infinities)


UNKNOWN = of(torch.zeros(1, 3), [False] * 3)
ELEMENTS = {
    "hidden": (aten.add.Tensor, [of(X, [True] * 3), UNKNOWN], [False, True, False]),
    "nor_by_minus_infinity": (
        aten.add.Tensor, [of(X, [True] * 3), of(X, [False] * 3, frozenset({-1}))], [False, True, False],
    ),
    "unless_by_plus_infinity": (aten.add.Tensor, [of(X, [True] * 3), of(X, [False] * 3, frozenset({1}))], [False] * 3),
    "zero": (aten.mul.Tensor, [of(X, [True] * 3), UNKNOWN], [False, False, True]),
    "zero_times_infinity": (aten.mul.Tensor, [of(X, [True] * 3), of(X, [False] * 3, frozenset({-1}))], [False] * 3),
    "true_or": (aten.bitwise_or.Tensor, [of(PAD, [True] * 3), of(PAD, [False] * 3)], [True, False, True]),
    "false_and": (aten.bitwise_and.Tensor, [of(PAD, [True] * 3), of(PAD, [False] * 3)], [False, True, False]),
    "same_either_way": (aten.masked_fill.Scalar, [of(X, [True] * 3), of(PAD, [False] * 3), -math.inf],
                        [False, True, False]),
    "known_partly": (aten.masked_fill.Scalar, [UNKNOWN, of(PAD, [True, True, False]), 7.0], [True, False, False]),
}  # fmt: skip


@pytest.mark.parametrize("name", ELEMENTS)
def test_which_elements_are_known(name):
    op, operands, expected = ELEMENTS[name]
    found = result(op, operands, {})
    assert (found.sure[0].tolist() if found else [False] * 3) == expected


def test_below_level_first_the_history_is_not_hoisted():
    model = model_of(IDIOMS["or"])
    program = capture(model, (HISTORY[[0, 1, 2, 0]], TARGET[:4]), ["context"], all_rules())
    costs = {level: hoisted_at(program, level).plan.cost.multiply_adds for level in (Level.EXPAND, Level.REQUEST)}
    assert costs[Level.REQUEST] > costs[Level.EXPAND] / 2
