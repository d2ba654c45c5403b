"""Branches that leave work out where a mask is true nowhere, as experts whom no row chooses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equal, repeated
from torch import Tensor, nn

import rankhoist
from rankhoist.errors import ExportError

EXPERTS, WIDTH = 2, 4
OFFSETS = [0, 1, 1, 9]
Step = Callable[["Model", Tensor, Tensor, int, Tensor], Tensor]


class Model(nn.Module):
    """Every step writes what an expert makes of its rows."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(5, WIDTH) for _ in range(EXPERTS))
        self.step = step

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = torch.cat([context, candidate], 1)
        best = (candidate[:, 0] * 5).long().remainder(EXPERTS)
        out = x.new_ones(x.shape[0], WIDTH)
        for i in range(EXPERTS):
            out = self.step(self, x, best, i, out)
        return out.sum(1)


def any_of(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    own = best == i
    if own.any():
        made = m.experts[i](x[own])
        out[own] = made.relu()
    return out


def copied(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    own = best == i
    if own.any():
        out = out.clone()
        out[own] = m.experts[i](x)[own]
    return out


def none_of(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    own = best == i
    if not torch.any(own):
        return out
    return torch.where(own[:, None], m.experts[i](x), out)


def all_of_others(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    if (best != i).all():
        return out
    out[best == i] = m.experts[i](x[best == i])
    return out


def sums(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    own = best == i
    if own.float().sum() == 0:
        return out
    return out.masked_scatter(own[:, None], m.experts[i](x[own]))


def expanded(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    own = (best == i).unsqueeze(1)
    if own.any():
        out = out.masked_scatter(own.expand_as(out), m.experts[i](x[own.squeeze(1)]))
    return out


def items(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    own = best == i
    if own.sum().item() >= 1:
        out[own] += m.experts[i](x[own])
    return out


def numbers_of(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    rows = torch.where(best == i)[0]
    if rows.numel() == 0:
        return out
    return out.index_add(0, rows, m.experts[i](x[rows]))


def sizes(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    chosen = x[best == i]
    if chosen.size(0):
        out[best == i] = m.experts[i](chosen)
    return out


def lengths(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    rows = (best == i).nonzero(as_tuple=True)[0]
    if len(rows) > 0:
        out = out.index_copy(0, rows, m.experts[i](x[rows]))
    return out


def no_length(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    rows = (best == i).nonzero()[:, 0]
    if not len(rows):
        pass
    else:
        out[rows] = torch.cat([m.experts[i](x[rows]), out[:0]])
    return out


def of_two(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    share, chosen = F.softmax(x[:, :3], 1).topk(2, -1)
    place, rows = torch.where(F.one_hot(chosen, 3).permute(2, 1, 0)[i])
    if rows.shape[0] == 0:
        return out
    made = m.experts[i](x[None, rows].reshape(-1, 5)) * share[rows, place, None]
    return out.index_add(0, rows, made)


@torch.no_grad()
def without_gradients(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    own = best == i
    if own.any():
        out = torch.where(own[:, None], m.experts[i](x), out)
    return out


EQUAL: list[Step] = [
    any_of, copied, none_of, all_of_others, sums, expanded, items, numbers_of, sizes, lengths, no_length, of_two,
    without_gradients,
]  # fmt: skip


@pytest.mark.parametrize("step", EQUAL, ids=lambda step: step.__name__)
def test_what_is_left_out_is_nothing(step: Step):
    model = Model(step).double().eval()
    context, candidate = torch.randn(3, 2).double(), torch.randn(9, 3).double()
    hoisted = rankhoist.hoist(model, (context[[0, 1, 1, 2]], candidate[:4]), context=["context"], level="lookup")
    assert_equal(hoisted(context, candidate, request_offsets=OFFSETS), model(repeated(context, OFFSETS), candidate))
    for row in candidate:
        assert_equal(hoisted(context[:1], row[None]), model(context[:1], row[None]))


class Groups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.channels = nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + self.channels(x[:, :, None] * torch.arange(3.0).to(x)).sum(2)


class Kept(nn.Module):
    """Statistics that were kept."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.plain = nn.BatchNorm1d(4), nn.BatchNorm1d(2, affine=False)
        self.channels = nn.InstanceNorm1d(2, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.view(-1, 2, 2)
        return self.norm(x) + (self.plain(pairs) + self.channels(pairs)).flatten(1)


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.product, self.places = nn.Bilinear(4, 4, 4), nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, x + 1) + self.places(x[:, None])[:, 0]


@pytest.mark.parametrize("kind", [Groups, Kept, Product])
def test_layers_take_rows_of_which_data_says_how_many_there_are(kind: type[nn.Module]):
    def step(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
        own = best == i
        if own.any():
            out[own] = m.layer(m.experts[i](x[own]))
        return out

    model = Model(step).double().eval()
    model.layer = kind().double().eval()
    for x in [*model.parameters(), *model.buffers()]:
        if x.is_floating_point():
            x.data = torch.rand_like(x) + 0.5
    context, candidate = torch.randn(3, 2).double(), torch.randn(9, 3).double()
    hoisted = rankhoist.hoist(model, (context[[0, 1, 1, 2]], candidate[:4]), context=["context"])
    assert_equal(hoisted(context, candidate, request_offsets=OFFSETS), model(repeated(context, OFFSETS), candidate))


# -- near misses


def counted(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    own, count = best == i, 1
    if own.any():
        count += 1
    return out / count


def otherwise(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    own = best == i
    if own.any():
        out[own] = m.experts[i](x[own])
    else:
        out = out + 1
    return out


def of_shares(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    own = best == i
    if own.float().mean() > 0.5:
        out[own] = m.experts[i](x[own])
    return out


def of_more_than_one(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    own = best == i
    if own.sum() > 1:
        out[own] = m.experts[i](x[own])
    return out


def of_numbers(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    """Their sum may be 0, and none of them."""
    own = best - 1
    if own.sum() != 0:
        out = torch.where(own[:, None] != 0, m.experts[i](x), out)
    return out


def of_parts(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    """Numbers below 1 are cut to 0, and are none."""
    own = x[:, 2] / 3
    if own.long().any():
        out = torch.where(own[:, None] != 0, m.experts[i](x), out)
    return out


def complement(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    """Of a number it is true, but for -1."""
    own = best == i
    if not ~own.sum():
        out[own] = m.experts[i](x[own])
    return out


def of_another(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    if (best == 0).any():
        out[best == i] = m.experts[i](x[best == i])
    return out


def by_zero(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    """0 times what is not finite is no 0."""
    own = best == i
    if own.any():
        out = out + own[:, None] * m.experts[i](x)
    return out


def largest(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    """Nothing has no maximum."""
    own = best == i
    if own.any():
        out[own] = m.experts[i](x[own]) + x[own].amax(0).detach()[:WIDTH] * 0
    return out


def another_result(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    own, zeros = best == i, torch.zeros_like(out)
    if not own.any():
        return zeros
    out[own] = m.experts[i](x[own])
    return out


def listed(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    parts, own = [out], best == i
    if own.any():
        parts.append(m.experts[i](x))
    return torch.stack(parts).mean(0)


def kept(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    """What is left there is read behind it."""
    own, last = best == i, out
    if own.any():
        last = m.experts[i](x)
        out[own] = last[own]
    return out + last


@torch.no_grad()
def twice(m: Model, x: Tensor, best: Tensor, i: int, out: Tensor) -> Tensor:
    """Its graph is one within the graph."""
    own = best == i
    if own.any():
        out = torch.where(own[:, None], m.experts[i](x), out) * 2
    return out


REFUSED: list[Step] = [
    counted, otherwise, of_shares, of_more_than_one, of_numbers, of_another, by_zero, largest, another_result, listed,
    kept, twice, of_parts, complement,
]  # fmt: skip


@pytest.mark.parametrize("step", REFUSED, ids=lambda step: step.__name__)
def test_what_is_no_shortcut_is_refused(step: Step):
    rows: tuple[Any, ...] = (torch.randn(4, 2), torch.randn(4, 3))
    with pytest.raises(ExportError, match="its control flow, or a size, depends on the values"):
        rankhoist.hoist(Model(step).eval(), rows, context=["context"], level="expand")


class Flagged(nn.Module):
    """What it does where nobody was chosen is seen in no graph that leaves one expert out."""

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        out, found = torch.zeros_like(candidate), False
        for bound in (0.0, 1.0):
            own = candidate[:, 0] > bound
            if own.any():
                found = True
                out[own] = candidate[own] * context[own]
        return out.sum(1) if found else out.sum(1) - 1


class Early(nn.Module):
    """What it returns where there is nothing reads what another question has left out."""

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = candidate * context
        made = last = x.relu()
        if (candidate[:, 0] > 0).any():
            last = x
        own = candidate[:, 1] > 0
        if own.any():
            return torch.where(own[:, None], made, x).sum(1)
        return last.sum(1)


class Another(nn.Module):
    """The same, of a name that has another value where there is work."""

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = candidate * context
        made = last = x.relu()
        if (candidate[:, 0] > 0).any():
            last = x
        own = (candidate[:, 1] > 0)[:, None]
        if own.any():
            last = torch.where(own, made, x)
        else:
            return last
        return last.clone()


class First(nn.Module):
    """The same, out of a loop."""

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = candidate * context
        made = last = x.relu()
        if (candidate[:, 0] > 0).any():
            last = x
        for bound in (0.0,):
            own = candidate[:, 1] > bound
            if not own.any():
                continue
            return torch.where(own[:, None], made, x).sum(1)
        return last.sum(1)


@pytest.mark.parametrize("kind", [Early, Another, First])
def test_a_result_that_is_read_for_nothing_alone_is_no_shortcut(kind: type[nn.Module]):
    """Neither question shows it alone."""
    with pytest.raises(ExportError, match="its control flow, or a size, depends on the values"):
        rankhoist.hoist(kind().eval(), (torch.randn(4, 3), torch.randn(4, 3)), context=["context"], level="expand")


class Overwritten(nn.Module):
    """Whatever one question leaves out, the last one that does not writes the same over it; two leave another value."""

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = candidate * context
        self.put(x)
        for column in range(3):
            if (candidate[:, column] > 0).any():
                self.put(x if column else x + 1)
        return self.got().sum(1)

    def put(self, x: Tensor) -> None:
        self.made = x

    def got(self) -> Tensor:
        return self.made


class Listed(Overwritten):
    def put(self, x: Tensor) -> None:
        self.every = [x]

    def got(self) -> Tensor:
        return self.every[0]


class Held(nn.Module):
    """The same, in a name."""

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = made = candidate * context
        for column in range(3):
            if (candidate[:, column] > 0).any():
                made = x if column else x + 1
        return made.sum(1)


class Viewed(nn.Module):
    """The same, in memory that a name shares, or does not."""

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = candidate * context
        made = x.clone()
        for column in range(3):
            if (candidate[:, column] > 0).any():
                made = made.clone() if column else x
        x.mul_(2)
        return made.sum(1)


@pytest.mark.parametrize("kind", [Flagged, Overwritten, Listed, Held, Viewed])
def test_other_values_that_are_left_there_are_no_shortcut(kind: type[nn.Module]):
    with pytest.raises(ExportError, match="its control flow, or a size, depends on the values"):
        rankhoist.hoist(kind().eval(), (torch.randn(4, 3), torch.randn(4, 3)), context=["context"], level="expand")


class Inline(nn.Module):
    """What a turn of a loop leaves, the next one gives other values, and nobody reads it behind."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = candidate * context
        out = torch.zeros_like(x)
        for column, expert in enumerate(self.experts):
            own = candidate[:, column] > 0
            if own.any():
                layer, rows = expert, own.nonzero()[:, 0]
                made = layer(x[rows])
                out = out.index_add(0, rows, made)
        return out.sum(1)


def test_what_is_left_in_names_that_nobody_reads_again_may_differ():
    model = Inline().double().eval()
    context, candidate = torch.randn(3, 3).double(), torch.randn(9, 3).double()
    hoisted = rankhoist.hoist(model, (context[[0, 1, 1, 2]], candidate[:4]), context=["context"])
    assert_equal(hoisted(context, candidate, request_offsets=OFFSETS), model(repeated(context, OFFSETS), candidate))
    for row in candidate:
        assert_equal(hoisted(context[:1], row[None]), model(context[:1], row[None]))
