"""Only what is read of a value is computed, and it is what it was."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from rankhoist import Workload, hoist
from rankhoist.capture import Program, capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.demand import boxes, laws, narrowed
from rankhoist.compiler.demand.boxes import Part
from rankhoist.compiler.graph.work import original_work
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.rules import all_rules
from rankhoist.errors import HoistingWarning, WeightsError
from rankhoist.training import grouped

T, D, ROWS = 6, 8, 1000
G = torch.randn(1, 3, T, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CHOSEN = torch.tensor([5, 1])
LOCAL = torch.ones(T, T).tril().triu(-1).bool()
EXAMPLE = (torch.randn(5, 1).double(), torch.randn(5, T, D).double())


class Model(nn.Module):
    """A function of `x [rows, T, D]` and some layers; what it is told of a user it returns."""

    def __init__(self, function: Callable[[Model, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.one, self.two, self.wide = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 3 * D)
        self.norm, self.over = nn.LayerNorm(D), nn.LayerNorm([T, D])
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)
        self.gru, self.table = nn.GRU(D, D, batch_first=True), nn.Embedding(10, D)
        self.tokens = nn.Linear(T, T)
        self.flat = nn.Linear(T * D, 4)
        self.over_three, self.steps = nn.Conv1d(D, D, 3, padding=1), nn.Conv1d(D, D, 2, stride=2, dilation=2, groups=2)
        self.last_two, self.fixed = nn.Conv1d(D, D, 2, dilation=2), nn.BatchNorm1d(D)
        self.double().eval()

    def forward(self, user: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.function(self, x), user


def encoder(m: Model, x: Tensor) -> Tensor:
    return m.norm(x + m.attention(x, x, x, need_weights=False)[0])


def heads(m: Model, x: Tensor, causal: bool = False, mask: Tensor | None = None) -> Tensor:
    """Attention as it is often written: one projection, chunks, heads."""
    q, k, v = (t.view(-1, x.shape[1], 2, D // 2).transpose(1, 2) for t in m.wide(x).chunk(3, dim=-1))
    made = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return m.one(made.transpose(1, 2).reshape(-1, x.shape[1], D))


def paired(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))


def by_hand(m: Model, x: Tensor) -> Tensor:
    scores = torch.bmm(m.one(x), m.two(x).transpose(1, 2)).masked_fill(torch.ones(T, T).triu(1).bool(), -1e9)
    return torch.matmul(scores.softmax(-1), x)


# What is read, and the share of the multiply-adds that is left at most.
NARROWED: dict[str, tuple[Callable[[Model, Tensor], Tensor], float]] = {
    "linear": (lambda m, x: m.one(x)[:, 2], 1 / 6),
    "linear_columns": (lambda m, x: m.one(x)[..., 1:3], 1 / 4),
    "chunk": (lambda m, x: m.wide(x).chunk(3, -1)[1], 1 / 3),
    "split": (lambda m, x: m.wide(x).split([D, 2 * D], -1)[0], 1 / 3),
    "unbind": (lambda m, x: m.one(x).unbind(1)[-1], 1 / 6),
    "several_places": (lambda m, x: m.one(x)[:, 0] + m.one(x)[:, 4] * m.two(x)[:, -2:].sum(1), 1 / 3),
    "residual": (lambda m, x: (x + m.two(torch.relu(m.norm(m.one(x)))))[:, -1:], 1 / 6),
    "view": (lambda m, x: m.two(m.one(x).view(-1, 2, 3, 2, 4).permute(0, 2, 1, 3, 4).flatten(3)[:, 1]), 2 / 3),
    "folded_rows": (lambda m, x: m.one(x.transpose(0, 1).reshape(-1, D)).view(T, -1, D)[3], 1 / 6),
    "folded_columns": (lambda m, x: m.wide(x).view(-1, T, 3, 2, 4)[:, :, 2, 1], 1 / 6),
    "stack": (lambda m, x: torch.stack([m.one(x), m.two(x), x], 1)[:, 1, 0], 1 / 12),
    "cat": (lambda m, x: torch.cat([m.one(x[:, :2]), m.two(x)], 1)[:, 1:4], 3 / 8),
    "reduced": (lambda m, x: m.one(x).square().sum(-1)[:, 1], 1 / 6),
    "kept": (lambda m, x: m.one(x).amax(-1, keepdim=True)[:, 1], 1 / 6),
    "expanded": (lambda m, x: (m.one(x).unsqueeze(1).expand(-1, 4, -1, -1) + 1)[:, :, 0], 1 / 6),
    "embedding": (lambda m, x: m.one(m.table(x.abs().long().clamp(max=9)[..., 0]))[:, 1], 1 / 6),
    "softmax": (lambda m, x: m.one(x).softmax(-1)[:, 1], 1 / 6),
    "one_key": (lambda m, x: (y := m.one(x[:, :1]), F.scaled_dot_product_attention(m.two(x), y, y))[1], 1 / 7),
    "one_key_of_heads": (lambda m, x: heads(m, x[:, 2:3]), 1 / 2),
    "one_key_with_weights": (lambda m, x: (m.one(x) @ m.two(x[:, :1]).mT).softmax(-1) @ x[:, :1] + m.one(x), 6 / 7),
    "one_place": (lambda m, x: m.one(x[:, :1]).log_softmax(1) + m.two(x), 6 / 7),
    "encoder": (lambda m, x: encoder(m, x)[:, 0], 0.55),
    "two_encoders": (lambda m, x: encoder(m, encoder(m, x))[:, -1], 0.8),
    "heads": (lambda m, x: heads(m, x)[:, 3], 0.55),
    "causal_heads": (lambda m, x: heads(m, x, causal=True)[:, 3], 0.5),
    "masked_heads": (lambda m, x: heads(m, x, mask=torch.ones(T, T).tril().bool())[:, 3], 0.55),
    "by_hand": (lambda m, x: by_hand(m, x)[:, 2:4], 0.8),
    "transposed_tokens": (lambda m, x: m.tokens(m.one(x).transpose(1, 2)).transpose(1, 2)[:, 2], 1 / 6 + 0.6),
    "rotated": (lambda m, x: torch.view_as_real(paired(m.one(x)) * paired(m.two(x)).conj())[:, 3], 1 / 6),
    "einsum": (lambda m, x: torch.einsum("...td,ed->...te", m.one(x), m.two.weight)[:, 4, :4], 1 / 8),
    "einsum_of_three": (lambda m, x: torch.einsum("btd,bsd,de->bets", m.one(x), x, m.two.weight)[:, :, 3:4], 1 / 3),
    "einsum_broadcast": (lambda m, x: torch.einsum("btd,btd->bt", m.one(x), x[:, :1])[:, 3], 1 / 5),
    "einsum_diagonal": (lambda m, x: torch.einsum("bttd,uet->bed", m.one(x)[:, None] * x[..., None, :], G)[:, 1:2], 1),
    "windows": (lambda m, x: m.one(x).unfold(1, 2, 2)[:, 1], 1 / 3),
    "convolved": (lambda m, x: m.over_three(m.one(x).mT)[..., 2:4], 2 / 3),
    "convolved_ends": (lambda m, x: m.over_three(m.one(x).mT)[:, 1:3, -1] + m.over_three(m.two(x).mT)[:, :2, 0], 1 / 3),
    "convolved_apart": (lambda m, x: m.steps(m.one(x).mT)[..., 1], 1 / 2),
    "for_every_row": (lambda m, x: m.one(m.two.weight[None].repeat(len(x), 1, 1) + x[:, :1])[:, 2], 1 / D),
    "moved": (lambda m, x: F.pad(m.one(x).flip(1).roll(1, 1).repeat(1, 2, 1), (0, 0, 2, 1))[:, 3:5, 2:], 1 / 4),
    "every_second": (lambda m, x: m.one(m.two(x).relu())[:, ::2], 1 / 2),
    "every_second_of_five": (lambda m, x: m.one(x)[:, 1:][:, ::2][:, 1:], 1 / 2),
    "causal_windows": (lambda m, x: m.last_two(F.pad(m.last_two(F.pad(m.one(x).mT, (2, 0))), (2, 0)))[..., -1], 4 / 9),
    "windows_of_two_axes": (lambda m, x: F.conv2d(m.one(x)[:, None], G[None, :, :2, :3], padding=1)[:, 0, 3], 1 / 4),
    "pooled": (lambda m, x: F.avg_pool1d(F.max_pool1d(m.one(x).mT, 2, padding=1), 2)[..., 1], 2 / 3),
    "groups_of_folded_rows": (lambda m, x: F.group_norm(m.one(x).flatten(0, 1), 2).unflatten(0, (-1, T))[:, 2], 1 / 6),
    "batch_norm": (lambda m, x: m.fixed(m.one(x).mT)[..., 2], 1 / 6),
    "largest_of_place": (lambda m, x: m.one(x).max(-1).values[:, 2] + m.one(x).sort(-1).indices[:, 2, 0], 1 / 6),
    "columns_of_softmax": (lambda m, x: m.one(x).softmax(1)[:, 1, :2], 1 / 4),
    "chosen_places": (lambda m, x: m.one(x)[:, CHOSEN] + m.two(x).index_select(1, CHOSEN - 1)[..., [2]], 0.2),
    "local": (lambda m, x: heads(m, x, mask=LOCAL)[:, 3] + heads(m, x, mask=LOCAL.double().log())[:, 3], 0.3),
    "cast_to_what_it_is": (lambda m, x: m.two(m.one(x).double().relu().to(x.dtype))[:, 1], 1 / 6),
    "of_the_type_of": (lambda m, x: m.two((y := m.one(x)).relu().type_as(y))[:, 1], 1 / 6),
    "of_the_shape_of": (lambda m, x: (m.one(x[:, :1]).expand_as(y := m.two(x)) + y.view_as(x))[:, 1], 2 / 7),
    "behind_nothing": (lambda m, x: torch.cat([torch.tensor([], dtype=x.dtype), m.one(x)], 1)[:, 1], 1 / 6),
    "unread": (lambda m, x: torch.stack([m.one(x), m.two(x)])[1], 1 / 2),
}  # fmt: skip

# All places are needed, or cannot be told.
WHOLE: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "all_places": lambda m, x: m.one(x),
    "all_columns": lambda m, x: sum(m.wide(x).chunk(3, -1)),
    "mean_over_places": lambda m, x: m.one(x).mean(1),
    "softmax_over_places": lambda m, x: m.one(x).softmax(1)[:, 1],
    "one_place_hidden": lambda m, x: (
        m.one(x[:, :1]).masked_fill(x[:, :1] > 0, -torch.inf).softmax(1).nan_to_num() * m.two(x)
    ),
    "one_key_hidden": lambda m, x: F.scaled_dot_product_attention(m.one(x), *[m.two(x[:, :1])] * 2, x[..., :1] > 0),
    "sums_over_places": lambda m, x: m.one(x).cumsum(1)[:, -1],
    "norm_over_places": lambda m, x: m.over(m.one(x))[:, 0],
    "flattened": lambda m, x: m.flat(m.one(x).flatten(1)),
    "recurrent": lambda m, x: m.gru(m.one(x))[0][:, -1],
    "rows_and_places": lambda m, x: m.two.weight[None].repeat(len(x), 2, 1)[:, 2:4],
    "rolled_over_all": lambda m, x: m.one(x).roll(1)[:, 1],
    "mean_of_places_there": lambda m, x: F.avg_pool1d(m.one(x).mT, 3, 1, 1, count_include_pad=False)[..., 0],
    "places_twice": lambda m, x: m.one(x)[:, [2, 2, 3]],
    "uneven_parts": lambda m, x: F.adaptive_avg_pool1d(m.one(x).mT, 4)[..., 1],
    "some_channels_of_group_norm": lambda m, x: F.group_norm(m.one(x).mT, 2)[:, :4],
    "place_by_data": lambda m, x: m.one(x).gather(1, x[:, :1, :1].abs().long().clamp(max=T - 1).expand(-1, -1, D)),
    "largest_place": lambda m, x: m.one(x).max(1).values,
    "real_parts": lambda m, x: torch.view_as_real(paired(m.one(x)))[..., 0],
    "inside_of_windows": lambda m, x: m.one(x).unfold(1, 2, 2)[..., 1],
    "some_channels_of_groups": lambda m, x: m.steps(m.one(x).mT)[:, 1],
    "across_a_view": lambda m, x: m.one(x).view(-1, T * D)[:, 3:11],
    "an_input": lambda m, x: m.one(x[:, 1]),
}


def captured(function: Callable[[Model, Tensor], Tensor]) -> Program:
    return capture(Model(function), EXAMPLE, ["user"], all_rules())


def run(program: Program, x: Tensor) -> Tensor:
    """The graph as it stands, over all rows."""
    weights = {name: weight.tensor for name, weight in program.weights.items()}
    weights |= {"user": x[:, 0, :1], "x": x}
    given = [weights[n.name] for n in program.graph.find_nodes(op="placeholder")]
    made = fx.Interpreter(fx.GraphModule(nn.Module(), program.graph)).run(*given)
    return made[0]


def multiply_adds(program: Program) -> int:
    return sum(original_work(n, program.rows, ROWS).multiply_adds for n in program.graph.nodes)


@pytest.mark.parametrize("name", NARROWED)
def test_what_is_not_read_is_not_computed(name):
    function, share = NARROWED[name]
    program = captured(function)
    made = narrowed(program)
    assert made.captured is program
    assert multiply_adds(made) <= share * multiply_adds(program) + 1, name
    for rows in (1, 2, 7):
        x = torch.randn(rows, T, D).double()
        torch.testing.assert_close(run(made, x), run(program, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_read_stays_as_it_is(name):
    program = captured(WHOLE[name])
    assert narrowed(program) is program


def test_a_wrong_law_is_found(monkeypatch):
    """The check of the check: the place before."""
    moved = boxes.cut
    monkeypatch.setattr(boxes, "cut", lambda size, first, end: moved(size, max(first - 1, 0), max(end - 1, 1)))
    program = captured(NARROWED["residual"][0])
    x = torch.randn(3, T, D).double()
    with pytest.raises(AssertionError, match="not close"):
        torch.testing.assert_close(run(narrowed(program), x), run(program, x))


def test_a_broken_law_leaves_the_program_whole(monkeypatch):
    def broken(node, box):
        raise KeyError(node.name)

    monkeypatch.setitem(laws.LAWS, torch.ops.aten.linear.default, broken)
    program = captured(NARROWED["linear"][0])
    with pytest.warns(HoistingWarning, match="please report"):
        assert narrowed(program) is program


def test_a_fold_is_regrouped_where_it_is_a_box():
    rows = captured(WHOLE["all_places"]).rows
    assert boxes.regrouped(((Part(6, 2, 4),), (Part(rows),)), [6 * rows]) == ((Part(6, 2, 4), Part(rows)),)
    assert boxes.regrouped(((Part(6, 2, 4), Part(rows)),), [6, rows]) == ((Part(6, 2, 4),), (Part(rows),))
    assert boxes.regrouped(((Part(6, 2, 4),),), [3, 2]) == ((Part(3, 1, 2),), (Part(2),))
    assert boxes.regrouped(((Part(6, 2, 3),),), [3, 2]) == ((Part(3, 1, 2),), (Part(2, 0, 1),))
    assert boxes.regrouped(((Part(6, 1, 3),),), [3, 2]) is None
    assert boxes.regrouped(((Part(6, 2, 4),), (Part(rows),)), [3 * rows, 2]) is None


def test_boxes_of_one_tensor_become_one_where_that_holds_hardly_more():
    def places(*pairs):
        return [((Part(10, a, b),),) for a, b in pairs]

    assert boxes.merged(places((0, 1), (1, 3)), [10]) == places((0, 3))
    assert boxes.merged(places((0, 1), (9, 10)), [10]) == places((0, 1), (9, 10))
    assert boxes.merged(places((0, 4), (3, 9)), [10]) == places((0, 9))
    assert boxes.merged(places((0, 5), (5, 10)), [10]) == [((Part(10),),)]


class Ranker(nn.Module):
    """One layer of attention over a history and the item, of which the item's place is scored."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items, self.places = nn.Embedding(50, D), nn.Parameter(torch.randn(T, D))
        self.layer = nn.TransformerEncoderLayer(D, 2, 4 * D, batch_first=True)
        self.score = nn.Linear(D, 1)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        x = torch.cat([self.items(history), self.items(item)[:, None]], 1) + self.places
        return self.score(self.layer(x)[:, -1]).squeeze(-1)


@pytest.fixture(scope="module")
def ranker():
    return Ranker().double().eval()


@pytest.fixture(scope="module")
def example():
    return torch.randint(0, 50, (4, T - 1)), torch.randint(0, 50, (4,))


@pytest.fixture(scope="module")
def hoisted(ranker, example):
    return hoist(ranker, example, context=["history"])


def test_a_history_is_the_requests_where_the_item_alone_is_scored(ranker, example, hoisted):
    """Every place of the history attends to the item, but nobody reads what it finds."""
    history, items = torch.randint(0, 50, (2, T - 1)), torch.randint(0, 50, (9,))
    got = hoisted(history, items, request_offsets=[0, 3, 9])
    torch.testing.assert_close(got, ranker(history.repeat_interleave(torch.tensor([3, 6]), 0), items))
    total = hoisted.report().total()
    assert total.after.multiply_adds < total.before.multiply_adds / 5


def test_the_report_counts_the_work_of_the_author(ranker, example, hoisted):
    """Also of what nobody reads, by the names of the captured operators; levels below do not narrow."""
    program, report = hoisted.program, hoisted.report()
    assert program.wider is None
    assert report.total().before.multiply_adds * 1.01 > multiply_adds(program)
    assert {o.name for o in report.operators} - {"output"} <= {n.name for n in program.graph.nodes}
    assert attempt(Task(program, Level.FIRST, Workload())).interpreter.program is program
    assert re.search("linear", str(report))


def test_training_computes_what_is_read(ranker, example, hoisted):
    step = grouped(ranker.train(False), example, context=["history"], workload=Workload(40, 4))
    history, items = torch.randint(0, 50, (2, T - 1)), torch.randint(0, 50, (9,))
    step(history, items, request_offsets=[0, 3, 9]).square().sum().backward()
    got = {n: p.grad.clone() for n, p in ranker.named_parameters()}
    ranker.zero_grad()
    ranker(history.repeat_interleave(torch.tensor([3, 6]), 0), items).square().sum().backward()
    for name, parameter in ranker.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-9, atol=1e-11)


def test_a_weight_that_nobody_reads_has_its_gradient_of_zeros():
    """A program that is trained is not narrowed where a weight would go."""
    model = Model(NARROWED["unread"][0])
    program = capture(model, EXAMPLE, ["user"], all_rules(), training=True)
    assert narrowed(program) is program


class Chosen(nn.Module):
    """Buffers say which places are read, and which keys a query sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, D)
        self.register_buffer("places", CHOSEN)
        self.register_buffer("seen", LOCAL)

    def forward(self, user: Tensor, x: Tensor) -> Tensor:
        y = self.layer(x) * user[:, None]
        return y[:, self.places] + F.scaled_dot_product_attention(y, y, y, self.seen)[:, -1:]


@pytest.mark.parametrize("name", ["places", "seen"])
def test_what_decided_is_pinned(name):
    model = Chosen().double().eval()
    hoisted = hoist(model, EXAMPLE, context=["user"])
    torch.testing.assert_close(hoisted(EXAMPLE[0][:1], EXAMPLE[1]), model(EXAMPLE[0][:1].expand(5, 1), EXAMPLE[1]))
    state = model.state_dict()
    hoisted.update_weights(state)
    with pytest.raises(WeightsError, match=name):
        hoisted.update_weights(state | {name: state[name].flip(0)})
