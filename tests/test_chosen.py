"""Loops over what was chosen, of which data says how many turns there are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equal, repeated
from torch import Tensor, nn

import rankhoist
from rankhoist.errors import ExportError

EXPERTS, WIDTH = 2, 4
OFFSETS = [0, 1, 1, 9]
Mix = Callable[["Model", Tensor, Tensor, Tensor], Tensor]


class Model(nn.Module):
    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(5, WIDTH) for _ in range(EXPERTS))
        self.gate, self.mix = nn.Linear(5, EXPERTS + 1), mix

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        """A third expert that nobody is, so that some rows choose one of two, and others both."""
        x = torch.cat([context, candidate], 1)
        share, best = self.gate(x).softmax(1).topk(2, -1)
        return self.mix(self, x, share, best.clamp(0, EXPERTS - 1)).sum(1)


def zeros(x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[0], WIDTH)


def rows_of_numbers(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    mask, out = F.one_hot(best, EXPERTS).permute(2, 1, 0), zeros(x)
    hit = torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero()
    for e in hit:
        layer = m.experts[e]
        place, rows = torch.where(mask[e].squeeze(0))
        made = layer(x[None, rows].reshape(-1, 5)) * share[rows, place, None]
        out.index_add_(0, rows, made)
    return out


def first_of_rows(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    mask, out = F.one_hot(best, EXPERTS + 1).permute(2, 1, 0), zeros(x)
    hit = torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero()
    for e in hit[:]:
        e = e[0]
        if e == EXPERTS:
            continue
        with torch.no_grad():
            _, rows = torch.where(mask[e])
        out.index_add_(0, rows, m.experts[e](x[rows]) * share[rows, e, None])
    return out


def numbers(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    mask, out = F.one_hot(best, EXPERTS).bool(), zeros(x)
    for e in mask.any(dim=(0, 1)).nonzero().flatten():
        own = mask[..., e].any(1)
        out = torch.where(own[:, None], m.experts[e.item()](x), out)
    return out


def listed(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    mask, out = F.one_hot(best[:, 0], EXPERTS), zeros(x)
    hit = torch.where(mask.count_nonzero(0))[0].tolist()
    for e in hit:
        own = mask[:, e] > 0
        out[own] = m.experts[e](x[own])
    return out


def values(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    out = zeros(x)
    for e in best.unique():
        rows, place = torch.where(best == e)
        out.index_add_(0, rows, m.experts[e](x[rows]) * share[rows, place, None])
    return out


def values_in_a_list(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    own, out = (x[:, 3] > 0).long(), zeros(x)
    for e in torch.unique(own).tolist():
        out[own == e] = m.experts[e](x[own == e])
    return out


def counts(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    mask, out = F.one_hot(best[:, 0], EXPERTS), zeros(x)
    for e, count in enumerate(mask.sum(0).tolist()):
        if count == 0:
            continue
        rows = torch.where(mask[:, e])[0]
        out[rows] = m.experts[e](x[rows])
    return out


def sorted_rows(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    order = best[:, 0].argsort()
    parts = x[order].split(torch.bincount(best[:, 0], minlength=EXPERTS).tolist())
    return torch.cat([m.experts[e](part) for e, part in enumerate(parts)])[order.argsort()]


EQUAL: list[Mix] = [
    sorted_rows,
    counts,
    rows_of_numbers,
    first_of_rows,
    numbers,
    listed,
    values,
    values_in_a_list,
]


@pytest.mark.parametrize("mix", EQUAL, ids=lambda mix: mix.__name__)
def test_a_turn_for_what_nobody_chose_changes_nothing(mix: Mix):
    model = Model(mix).double().eval()
    context, candidate = torch.randn(3, 2).double(), torch.randn(9, 3).double()
    hoisted = rankhoist.hoist(model, (context[[0, 1, 1, 2]], candidate[:4]), context=["context"], level="lookup")
    assert_equal(hoisted(context, candidate, request_offsets=OFFSETS), model(repeated(context, OFFSETS), candidate))
    for row in candidate:
        assert_equal(hoisted(context[:1], row[None]), model(context[:1], row[None]))


# -- near misses


def counted(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    out, count = zeros(x), 0
    for e in best[:, 0].unique().tolist():
        out[best[:, 0] == e] = m.experts[e](x[best[:, 0] == e])
        count += 1
    return out / count


def kept_in_a_list(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    parts = [zeros(x)]
    for e in best[:, 0].unique().tolist():
        parts.append(torch.where((best[:, 0] == e)[:, None], m.experts[e](x), parts[0]))
    return torch.stack(parts).mean(0)


def only_one(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    out = zeros(x)
    for e in best[:, 0].unique().tolist():
        out[best[:, 0] == e] = m.experts[e](x[best[:, 0] == e])
        break
    return out


def last_of_all(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    out, e = zeros(x), 0
    for e in best[:, 0].unique().tolist():
        out[best[:, 0] == e] = m.experts[e](x[best[:, 0] == e])
    return out + e


def in_any_case(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    out = zeros(x)
    for e in best[:, 0].unique().tolist():
        out = out * 0.5 + torch.where((best[:, 0] == e)[:, None], m.experts[e](x), 0.0)
    return out


def with_places(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    """How many turns there were before is no number of an expert."""
    out = zeros(x)
    for i, e in enumerate(best[:, 0].unique()):
        out = torch.where((best[:, 0] == e)[:, None], m.experts[i](x), out)
    return out


def in_other_words(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    return torch.stack([torch.where((best[:, 0] == e)[:, None], m.experts[e](x), 0.0) for e in best.unique()]).sum(0)


def counts_of_others(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    mask, out = F.one_hot(best[:, 0], EXPERTS), zeros(x)
    for e, count in enumerate(mask.sum(0).tolist()):
        if count == 0:
            continue
        rows = torch.where(mask[:, 1 - e])[0]
        out[rows] = m.experts[e](x[rows])
    return out


def counts_that_are_used(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    mask, out = F.one_hot(best[:, 0], EXPERTS), zeros(x)
    for e, count in enumerate(mask.sum(0).tolist()):
        if count > 1:
            out = torch.where(mask[:, e, None] > 0, m.experts[e](x), out)
    return out


def counted_too_short(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    """There are as many as the largest says."""
    out = zeros(x)
    for e, count in enumerate(torch.bincount(best[:, 0], minlength=EXPERTS - 1).tolist()):
        if count:
            out = torch.where((best[:, :1] == e), m.experts[e](x), out)
    return out


def how_many(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    return m.experts[0](x) * len(best.unique().tolist())


def of_another(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    out = zeros(x)
    for e in best[:, 0].unique().tolist():
        out[best[:, 1] == e] = m.experts[e](x[best[:, 1] == e])
    return out


def that_cancel(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    """A sum of 0 is not one of zeros."""
    scores, out = (x[:, :EXPERTS] * 2).long(), zeros(x)
    for e in (scores.sum(0) != 0).nonzero().flatten().tolist():
        out = torch.where(scores[:, e, None] != 0, m.experts[e](x), out)
    return out


def of_no_known_number(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    own, out = x[:, 3].long().abs(), zeros(x)
    for e in own.unique().tolist():
        out[own == e] = m.experts[e % EXPERTS](x[own == e])
    return out


def of_ids_in_a_list(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    """-1 would be the last expert."""
    ids, out = (x[:, 3] * 0).long(), zeros(x)
    for e in torch.unique(ids):
        out[ids == e] = m.experts[int(e)](x[ids == e])
    return out


def largest_values(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    """What is largest is no place of it."""
    own, out = x[:, :2].long().max(1)[0], zeros(x)
    for e in own.unique():
        out = torch.where(own[:, None] == e, x[:, :WIDTH], out)
    return out


def backwards(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    out = zeros(x)
    for e in best.unique().flip(0).tolist():
        out = torch.where((best == e).any(1)[:, None], m.experts[e](x), out)
    return out


def written_before(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    flags, out = F.one_hot(best[:, 0], EXPERTS).bool().any(0), zeros(x)
    hit = flags.nonzero()
    flags.logical_not_()
    for e in hit:
        out = torch.where(flags[e], m.experts[e](x), out)
    return out


def written_in_it(m: Model, x: Tensor, share: Tensor, best: Tensor) -> Tensor:
    hit, out = best[:, 0].unique(), zeros(x)
    for e in hit:
        out = torch.where((best[:, 0] == e)[:, None], m.experts[e](x), out)
        e += 1
    return out + hit.sum()


REFUSED: list[Mix] = [
    counted_too_short,
    counts_of_others, counts_that_are_used,
    counted, kept_in_a_list, only_one, last_of_all, in_any_case, with_places, in_other_words, how_many, of_another,
    that_cancel, of_no_known_number, of_ids_in_a_list, largest_values, backwards, written_before, written_in_it,
]  # fmt: skip


@pytest.mark.parametrize("mix", REFUSED, ids=lambda mix: mix.__name__)
def test_a_turn_that_changes_something_is_refused(mix: Mix):
    rows = torch.randn(4, 2), torch.randn(4, 3)
    with pytest.raises(ExportError, match="refuses the model in module"):
        rankhoist.hoist(Model(mix).eval(), rows, context=["context"], level="expand")


SAID = {
    of_no_known_number: r"write `ids.clamp\(0, n - 1\).unique\(\)`",
    of_ids_in_a_list: r"write `ids.clamp\(0, n - 1\).unique\(\)`",
    with_places: "write `for number in found:`",
    in_other_words: "write `for number in found:`",
    how_many: "write `for number in found:`",
}


@pytest.mark.parametrize("mix", SAID, ids=lambda mix: mix.__name__)
def test_what_to_write_instead_is_said(mix: Mix):
    with pytest.raises(ExportError, match=SAID[mix]):
        rankhoist.hoist(Model(mix).eval(), (torch.randn(4, 2), torch.randn(4, 3)), context=["context"])
