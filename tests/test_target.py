"""A target that is written into its history, at a place that the request says: its history is computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equal, repeated
from torch import Tensor, fx, nn

import rankhoist
from rankhoist.capture import Program, capture
from rankhoist.compiler.demand.constants import Constants
from rankhoist.compiler.demand.made import rates_of
from rankhoist.compiler.demand.puts import Spelled
from rankhoist.compiler.demand.target import behind

T, D, ITEMS = 5, 4, 9
G = torch.Generator().manual_seed(3)
HIDDEN = torch.ones(T, T, dtype=torch.bool).triu(1)
BIAS = torch.zeros(T, T, dtype=torch.float64).masked_fill(HIDDEN, -torch.inf)
CONTEXT = torch.randint(1, ITEMS, (3, 1 + T), generator=G).double()
CONTEXT[:, 0] = torch.tensor([0.0, 2.0, T - 1.0])  # lengths
for row in CONTEXT:
    row[1 + int(row[0]) :] = 0  # padding
CANDIDATE = torch.randint(1, ITEMS, (8, 1), generator=G).double()

Attends = Callable[["Ranker", Tensor, Tensor, Tensor, Tensor], Tensor]
Writes = Callable[[Tensor, Tensor, Tensor], Tensor]
Reads = Callable[[Tensor, Tensor], Tensor]


def rows(x: Tensor) -> Tensor:
    return torch.arange(x.shape[0], device=x.device)


def columns(p: Tensor, x: Tensor) -> Tensor:
    """A place of every row, as an index of what x has there."""
    return p.view(-1, *[1] * (x.dim() - 1)).expand(-1, 1, *x.shape[2:])


def at(p: Tensor) -> Tensor:
    return torch.arange(T) == p[:, None]


def flags(p: Tensor, h: Tensor) -> Tensor:
    """1 at a place of every row, for as many axes as h has."""
    return F.one_hot(p, T).view(-1, T, *[1] * (h.dim() - 2)).to(h.dtype)


def assigned(h: Tensor, p: Tensor, y: Tensor) -> Tensor:
    h = h.clone()
    h[rows(h), p] = y
    return h


WRITES: dict[str, Writes] = {
    "assigned": assigned,
    "scattered": lambda h, p, y: h.scatter(1, columns(p, h), y.unsqueeze(1)),
    "chosen": lambda h, p, y: torch.where(at(p).view(-1, T, *[1] * (h.dim() - 2)), y.unsqueeze(1), h),
    "weighed": lambda h, p, y: h * (1 - flags(p, h)) + flags(p, h) * y.unsqueeze(1),
    "other_way": lambda h, p, y: torch.where((~at(p)).view(-1, T, *[1] * (h.dim() - 2)), h, y.unsqueeze(1)),
    "filled": lambda h, p, y: (
        y.unsqueeze(1).expand_as(h).masked_fill((torch.arange(T) != p[:, None]).view(-1, T, *[1] * (h.dim() - 2)), 0)
        + h.masked_fill(at(p).view(-1, T, *[1] * (h.dim() - 2)), 0)
    ),
}
READS: dict[str, Reads] = {
    "indexed": lambda x, p: x[rows(x), p],
    "gathered": lambda x, p: x.gather(1, columns(p, x)).squeeze(1),
    "taken": lambda x, p: torch.take_along_dim(x, p[:, None, None], 1)[:, 0],
    "summed": lambda x, p: (x * at(p)[..., None]).sum(1),
    "weighed": lambda x, p: (x * flags(p, x)).sum(1),
}


def padding(p: Tensor) -> Tensor:
    """Keys behind the target."""
    return torch.arange(T) > p[:, None]


def by_softmax(hide: Callable[[Tensor, Tensor], Tensor]) -> Attends:
    return lambda m, q, k, v, p: torch.softmax(hide(q @ k.mT / 2, p), -1) @ v


def biased(x: Tensor, p: Tensor) -> Tensor:
    pad = torch.zeros_like(x).masked_fill(padding(p)[:, None, None], -torch.inf)
    return x + (BIAS + pad)


ATTENDS: dict[str, Attends] = {
    "is_causal": lambda m, q, k, v, p: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "padding": lambda m, q, k, v, p: F.scaled_dot_product_attention(q, k, v, ~(HIDDEN | padding(p)[:, None, None])),
    "filled": by_softmax(lambda x, p: x.masked_fill(HIDDEN, -torch.inf)),
    "chosen": by_softmax(lambda x, p: torch.where(HIDDEN | padding(p)[:, None, None], -torch.inf, x)),
    "added": by_softmax(biased),
    "made_in_forward": by_softmax(lambda x, p: x.masked_fill(torch.ones(T, T).tril() == 0, -torch.inf)),
    "no_softmax": lambda m, q, k, v, p: (F.silu(q @ k.mT) * (~HIDDEN)) @ v,
    "averages": lambda m, q, k, v, p: (~HIDDEN).double() / torch.arange(1, T + 1)[:, None] @ v + q,
    "by_name": lambda m, q, k, v, p: torch.einsum(
        "bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).masked_fill(HIDDEN, -torch.inf).softmax(-1), v
    ),
    "by_distance": lambda m, q, k, v, p: F.scaled_dot_product_attention(q, k, v, m.distances + BIAS),
}


class Ranker(nn.Module):
    """Layers of attention over ids that a target is among."""

    def __init__(self, calls: Calls, layers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.calls, self.layers = calls, layers
        self.items, self.places = nn.Embedding(ITEMS, D), nn.Parameter(torch.randn(T, D))
        self.wide = nn.ModuleList(nn.Linear(D, 3 * D) for _ in range(layers))
        self.ahead = nn.ModuleList(nn.Linear(D, D) for _ in range(layers))
        self.distances, self.score = nn.Parameter(torch.randn(T, T)), nn.Linear(D, 1)
        layer = nn.TransformerEncoderLayer(D, 2, 8, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.double().eval()

    def forward(self, context: Tensor, candidate: Tensor) -> Any:
        return self.calls(self, context[:, 1:].long(), context[:, 0].long(), candidate[:, 0].long())

    def encoded(self, x: Tensor, p: Tensor, attends: Attends = ATTENDS["is_causal"]) -> Tensor:
        for wide, ahead in zip(self.wide, self.ahead, strict=True):
            q, k, v = (t.unsqueeze(1) for t in wide(x).chunk(3, -1))
            x = x + attends(self, q, k, v, p).squeeze(1)
            x = x + ahead(x).tanh()
        return x


Calls = Callable[["Ranker", Tensor, Tensor, Tensor], Any]


def scored(writes: Writes, reads: Reads, attends: Attends = ATTENDS["is_causal"]) -> Calls:
    def calls(m: Ranker, history: Tensor, p: Tensor, item: Tensor) -> Tensor:
        x = writes(m.items(history), p, m.items(item)) + m.places
        return m.score(reads(m.encoded(x, p, attends), p))

    return calls


def ids(writes: Writes) -> Calls:
    def calls(m: Ranker, history: Tensor, p: Tensor, item: Tensor) -> Tensor:
        return m.score(READS["indexed"](m.encoded(m.items(writes(history, p, item)) + m.places, p), p))

    return calls


def together(*calls: Calls) -> Calls:
    """All of them in one model: it is captured once."""
    return lambda *given: [c(*given) for c in calls]


def by_itself(m: Ranker, history: Tensor, p: Tensor, item: Tensor) -> Tensor:
    """An encoder whose padding is looked for among the ids: of an empty history, the target alone is none."""
    ids = assigned(history, p, item)
    made = m.encoder(m.items(ids), mask=HIDDEN, src_key_padding_mask=ids == 0)
    return m.score(made[rows(made), p])


def folded(m: Ranker, history: Tensor, p: Tensor, item: Tensor) -> Tensor:
    """Heads are rows, in scores and in their mask."""
    x = assigned(m.items(history), p, m.items(item)) + m.places
    q, k, v = (t.reshape(-1, T, 2, D // 2).transpose(1, 2).flatten(0, 1) for t in m.wide[0](x).chunk(3, -1))
    scores = torch.baddbmm(BIAS.expand(q.shape[0], -1, -1), q, k.mT) + torch.baddbmm(BIAS, k, q.mT)
    weights = scores.softmax(-1)
    made = torch.bmm(weights, v).view(-1, 2, T, D // 2).transpose(1, 2).flatten(2)
    return m.score(made[rows(made), p])


def of_two_tables(m: Ranker, history: Tensor, p: Tensor, item: Tensor) -> Tensor:
    """Ids and what is known of them, each written into its own history, and read behind every layer."""
    x = m.items(assigned(history, p, item)) * m.items(assigned(history % 4, p, item % 4)) + m.places
    first = m.encoded(x, p)
    return m.score(first[rows(x), p]) + m.score(m.encoded(first, p)[rows(x), p])


def by_a_count(m: Ranker, history: Tensor, p: Tensor, item: Tensor) -> Tensor:
    """The place is counted, twice."""
    x = m.encoded(m.items(assigned(history, (history > 0).sum(1), item)), p)
    return m.score(x[rows(x), (history > 0).sum(1)])


def of_keys_and_values(m: Ranker, history: Tensor, p: Tensor, item: Tensor) -> Tensor:
    """No projection: queries, keys and values are one."""
    x = assigned(m.items(history), p, m.items(item))
    for _ in range(2):
        x = F.scaled_dot_product_attention(x, x, x, is_causal=True).tanh()
    return m.score(x[rows(x), p])


def of_another(m: Ranker, history: Tensor, p: Tensor, item: Tensor) -> Tensor:
    """Layers that look at another sequence, too, all of which is the request's."""
    x, memory = assigned(m.items(history), p, m.items(item)), m.items(history.flip(1))
    x = x + F.scaled_dot_product_attention(x, memory, memory, (history > 0)[:, None] | ~HIDDEN)
    x = x + F.scaled_dot_product_attention(x, memory, memory) + (x @ memory.mT).softmax(-1) @ memory
    return m.score(m.encoded(x, p)[rows(x), p])


def of_weights_alone(m: Ranker, history: Tensor, p: Tensor, item: Tensor) -> Tensor:
    """What is put in is weighed by what the history makes of itself, and read nowhere else."""
    h = m.items(history)
    weights = (h @ h.mT).masked_fill(HIDDEN, -torch.inf).softmax(-1)
    return m.score((weights @ assigned(h, p, m.items(item)))[rows(h), p])


def of_first(m: Ranker, history: Tensor, p: Tensor, item: Tensor) -> Tensor:
    """A place in front of what the history begins with."""
    return scored(assigned, READS["indexed"])(m, history, p * 0, item)


OTHERS: list[Calls] = [
    by_itself,
    folded,
    of_two_tables,
    by_a_count,
    of_keys_and_values,
    of_another,
    of_weights_alone,
    of_first,
]
PAIRS = [("assigned", "indexed"), ("assigned", "gathered"), ("scattered", "taken"), ("chosen", "indexed"),
         ("chosen", "summed"), ("weighed", "weighed"), ("other_way", "indexed"), ("filled", "summed")]  # fmt: skip
PUT: dict[str, Calls] = {
    **{f"{w}_{r}": scored(WRITES[w], READS[r]) for w, r in PAIRS},
    **{f"ids_{name}": ids(writes) for name, writes in WRITES.items()},
    **{name: scored(assigned, READS["indexed"], attends) for name, attends in ATTENDS.items()},
    **{calls.__name__: calls for calls in OTHERS},
}


def program_of(m: nn.Module, context: list[str]) -> Program:
    return capture(m, (CONTEXT[[0, 1, 2, 1]], CANDIDATE[:4]), context)


def ran(program: Program, context: Tensor, candidate: Tensor) -> Any:
    """What its graph returns."""
    given = {"context": context, "candidate": candidate}
    leaves = [
        given[program.inputs[n.name].name] if n.name in program.inputs else program.weights[n.name].tensor
        for n in program.graph.find_nodes(op="placeholder")
    ]
    return [*fx.GraphModule(nn.Module(), program.graph)(*leaves)]


def written(program: Program) -> set[str]:
    """What puts something of a candidate into something."""
    puts = map(Spelled(program.rows, Constants(program)).put, program.graph.nodes)
    rates = rates_of(program, program.graph)
    return {put.node.name for put in puts if put and rates[put.value] > 1}


def test_target_is_moved_behind_its_history() -> None:
    model = Ranker(together(*PUT.values()))
    program = program_of(model, ["context"])
    moved = behind(program)
    assert len(written(program)) > len(PUT)
    assert not written(moved)
    for context in (CONTEXT[[0] * 8], CONTEXT[[1] * 8], CONTEXT[[2] * 8], CONTEXT[torch.arange(8) % 3]):
        for name, made, own in zip(PUT, ran(moved, context, CANDIDATE), model(context, CANDIDATE), strict=True):
            assert_equal(made, own, name)


def test_history_is_computed_once() -> None:
    """Of 5 places one is left for every candidate, and that attends to a key more."""
    model = Ranker(scored(assigned, READS["gathered"], ATTENDS["padding"]), layers=2)
    hoisted = rankhoist.hoist(model, (CONTEXT[[1] * 4], CANDIDATE[:4]), context=["context"])
    total = hoisted.report().total()
    own = 2 * (4 * D * D + 2 * (T + 1) * D) + D  # keys and values, a query and what is ahead; scores and a sum of 6
    history = T * D * (3 * D + D) + 2 * T * T * D + T * 2 * D * D  # the last layer's are keys and values alone
    assert total.after.multiply_adds < 1000 * own + 2 * history
    assert 1000 * own + 2 * history < total.before.multiply_adds / 4
    offsets = [0, 3, 3, len(CANDIDATE)]
    for context in (CONTEXT, CONTEXT.roll(1, 0)):
        assert_equal(hoisted(context[:1], CANDIDATE), model(repeated(context[:1], [0, 8]), CANDIDATE))
        assert_equal(hoisted(context, CANDIDATE, request_offsets=offsets), model(repeated(context, offsets), CANDIDATE))


# -- outside of the history


def at_places(places: list[int], *calls: Calls) -> tuple[Program, Ranker, tuple[Tensor, Tensor]]:
    model = Ranker(together(*calls))
    moved = behind(program_of(model, ["context"]))
    assert not written(moved)
    context = CONTEXT[[1] * len(places)].clone()
    context[:, 0] = torch.tensor(places)
    return moved, model, (context, CANDIDATE[: len(places)])


def test_places_outside() -> None:
    """Counted from the end by an index; nowhere for a choice, where a read from the end reads the history."""
    pairs = (
        ("assigned", "indexed"),
        ("assigned", "summed"),
        ("chosen", "indexed"),
        ("chosen", "summed"),
        ("filled", "summed"),
    )
    calls = [scored(WRITES[w], READS[r]) for w, r in pairs]
    moved, model, given = at_places([-1, -T, -2, 3], *calls)
    assert_equal(ran(moved, *given), model(*given))
    moved, model, given = at_places([T, 2 * T, -T - 1], calls[3], calls[4])
    assert_equal(ran(moved, *given), model(*given))


@pytest.mark.parametrize(
    "words",
    [("assigned", "indexed"), ("scattered", "indexed"), ("chosen", "gathered"), ("weighed", "weighed")],
    ids=str,
)
def test_an_error_remains_one(words: tuple[str, str]) -> None:
    moved, model, given = at_places([T, 0], scored(WRITES[words[0]], READS[words[1]]))
    for call in (model, partial(ran, moved)):
        with pytest.raises((IndexError, RuntimeError), match=r"out of (bounds|range)|smaller than num_classes"):
            call(*given)


def test_ids_at_the_place_are_not_looked_up() -> None:
    """What the target replaces may be no id, as -1 where a place is left for it."""
    moved, model, (context, candidate) = at_places([2, 2, 2], ids(assigned))
    context[:, 1 + 2] = -1
    assert_equal(ran(moved, context, candidate), model(context, candidate))


# -- near misses


def seen_by(mask: Tensor) -> Calls:
    return scored(assigned, READS["indexed"], lambda m, q, k, v, p: F.scaled_dot_product_attention(q, k, v, mask))


ONE_LOOKS_AHEAD = (~HIDDEN).index_put((torch.tensor([1]), torch.tensor([2])), torch.tensor(True))
NEAR_MISSES: dict[str, Calls] = {
    "all_see_the_target": scored(assigned, READS["indexed"], lambda m, *qkv: F.scaled_dot_product_attention(*qkv[:3])),
    "one_looks_ahead": seen_by(ONE_LOOKS_AHEAD),
    "padding_alone": scored(assigned, READS["indexed"], lambda m, q, k, v, p: F.scaled_dot_product_attention(
        q, k, v, ~padding(p)[:, None, None])),
    "trained_mask": scored(assigned, READS["indexed"], lambda m, q, k, v, p: F.scaled_dot_product_attention(
        q, k, v, m.distances)),
    "all_by_name": scored(assigned, READS["indexed"], lambda m, q, k, v, p: torch.einsum(
        "bhqd,bhkd,bhke->bhqe", q, k, v)),
    "transposed": scored(assigned, READS["indexed"], by_softmax(lambda x, p: x.masked_fill(HIDDEN.T, -torch.inf))),
    "softmax_over_queries": scored(assigned, READS["indexed"], lambda m, q, k, v, p: (
        (q @ k.mT).masked_fill(HIDDEN, -torch.inf).softmax(-2).nan_to_num() @ v)),
    "next_place": scored(assigned, lambda x, p: x[rows(x), (p + 1) % T]),
    "last_place": scored(assigned, lambda x, p: x[:, -1]),
    "read_by_others": scored(assigned, lambda x, p: x[rows(x), p] + x.mean(1)),
    "running_sum": scored(assigned, lambda x, p: x.cumsum(1)[rows(x), p]),
    "neighbour": scored(assigned, lambda x, p: x.roll(1, 1)[rows(x), p]),
    "turned_round": scored(assigned, lambda x, p: x.flip(1)[rows(x), p]),
    "mean_of_places": scored(assigned, lambda x, p: (x - x.mean(1, keepdim=True))[rows(x), p]),
    "across_columns": scored(assigned, lambda x, p: x.mT.reshape(-1, T, D)[rows(x), p]),
    "other_rows": scored(assigned, lambda x, p: (x - x.mean(0))[rows(x), p]),
    "added_up": scored(lambda h, p, y: h.index_put((rows(h), p), y, accumulate=True), READS["indexed"]),
    "flag_of_the_next": scored(
        lambda h, p, y: torch.where(at(p + 1)[..., None], y.unsqueeze(1), h), READS["summed"]),
    "weighed_by_another": scored(
        lambda h, p, y: h * (1 - flags(p, h)) + flags((p + 1) % T, h) * y.unsqueeze(1),
        lambda x, p: x[rows(x), (p + 1) % T]),
    "weighed_alike": scored(lambda h, p, y: h * flags(p, h) + flags(p, h) * y.unsqueeze(1), READS["indexed"]),
    "weighed_elsewhere": scored(
        lambda h, p, y: h * (1 - flags(p, h)) + (1 - flags(p, h)) * y.unsqueeze(1), READS["indexed"]),
    "weighed_by_more": scored(
        lambda h, p, y: h * (2 - flags(p, h)) + flags(p, h) * y.unsqueeze(1), READS["indexed"]),
    "place_of_the_candidate": lambda m, h, p, item: scored(assigned, READS["indexed"])(m, h, item % T, item),
    "history_of_the_candidate": lambda m, h, p, item: scored(assigned, READS["indexed"])(
        m, (h + item[:, None]) % ITEMS, p, item),
    "everywhere_the_candidate": scored(
        lambda h, p, y: assigned(h, p, y) * y.unsqueeze(1), READS["indexed"]),
    "two_places": scored(lambda h, p, y: assigned(assigned(h, p, y), (p + 1) % T, y), READS["indexed"]),
}  # fmt: skip


def test_near_misses() -> None:
    """All in one model: of each, the target stays where it was written."""
    model = Ranker(together(*NEAR_MISSES.values()))
    program = program_of(model, ["context"])
    assert written(behind(program)) == written(program)
