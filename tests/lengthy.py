"""What tests of axes that vary share: models that read a history of any length, and the comparison over whole rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from helpers import LEVELS, assert_equal, reasons
from torch import Tensor, nn

import rankhoist
from rankhoist import HoistedModel, Workload
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.rules import all_rules

IDS, WIDTH, DOUBLE = 40, 6, torch.float64
ROWS = 7
NOT_EMPTY = ("first_columns", "last_step", "last_of_gru", "convolved")  # of no position they compute nothing
OFFSETS = ([0, ROWS], [0, 3, 3, ROWS])  # one request, and three of which one is empty


class Reader(nn.Module):
    """A history of ids and an item; what is done with both is `read`, over embeddings of a width."""

    def __init__(self, read: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.read, self.table = read, nn.Embedding(IDS, WIDTH)
        self.parts = nn.ModuleDict(parts)
        self.top = nn.Linear(2 * WIDTH, 1)
        self.double().eval()

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        h, q = self.table(history), self.table(item)
        found = self.read(h, q, history, **self.parts)
        return self.top(torch.cat([found, q], 1)).squeeze(1)


# -- a history by itself


def pooled(h: Tensor, q: Tensor, ids: Tensor) -> Tensor:
    return h.mean(1)


def masked(h: Tensor, q: Tensor, ids: Tensor) -> Tensor:
    seen = (ids > 3).to(h.dtype)[..., None]
    return (h * seen).sum(1) / seen.sum(1).clamp(min=1)


def highest(h: Tensor, q: Tensor, ids: Tensor) -> Tensor:
    return F.pad(h, (0, 0, 1, 0)).amax(1) * h.cumsum(1).tanh().sum(1)


def first_columns(h: Tensor, q: Tensor, ids: Tensor) -> Tensor:
    """Of the first event, by an index with fewer places than the history."""
    return h.gather(2, (ids[:, :1, None] + torch.arange(WIDTH)) % WIDTH)[:, 0] * h.tanh().sum(1)


def last_of_gru(h: Tensor, q: Tensor, ids: Tensor, gru: nn.GRU) -> Tensor:
    return gru(h)[1][-1]


def last_step(h: Tensor, q: Tensor, ids: Tensor, gru: nn.GRU) -> Tensor:
    return gru(h)[0][:, -1] + h.flip(1)[:, 0]


def encoded(h: Tensor, q: Tensor, ids: Tensor, places: nn.Embedding, layer: nn.Module) -> Tensor:
    length = ids.shape[1]
    mask = torch.ones(length, length, dtype=torch.bool).triu(1)
    return layer(h + places.weight[:length] + places(torch.arange(length)), src_mask=mask).mean(1)


def heads(h: Tensor, q: Tensor, ids: Tensor, maps: nn.Linear) -> Tensor:
    rows, length, _ = h.shape
    key, value = (x.view(rows, length, 2, 3).transpose(1, 2) for x in maps(h).chunk(2, -1))
    scores = (key @ key.transpose(-1, -2)) / math.sqrt(3)
    return (scores.softmax(-1) @ value).transpose(1, 2).reshape(rows, length, WIDTH).sum(1)


def convolved(h: Tensor, q: Tensor, ids: Tensor, kernel: nn.Conv1d) -> Tensor:
    return kernel(h.transpose(1, 2)).relu().sum(2)


def filled(h: Tensor, q: Tensor, ids: Tensor) -> Tensor:
    return h.mean(1) + (h.masked_fill((ids == 0)[..., None], -math.inf) * torch.zeros(())).sum(1)


# -- with the candidate


def activation_unit(h: Tensor, q: Tensor, ids: Tensor, unit: nn.Module) -> Tensor:
    q = q[:, None].expand(-1, h.shape[1], -1)
    scores = unit(torch.cat([q, h, q - h, q * h], -1)).squeeze(-1)
    weights = scores.masked_fill(ids == 0, -1e9).softmax(1)
    return (weights[:, None] @ h).squeeze(1)


def target_attention(h: Tensor, q: Tensor, ids: Tensor, maps: nn.Linear) -> Tensor:
    key, value = maps(h).chunk(2, -1)
    return F.scaled_dot_product_attention(q[:, None], key, value).squeeze(1)


def behind(h: Tensor, q: Tensor, ids: Tensor, layer: nn.Module) -> Tensor:
    return layer(torch.cat([h, q[:, None]], 1))[:, -1]


def products(h: Tensor, q: Tensor, ids: Tensor) -> Tensor:
    return torch.einsum("btd,bd,bte->be", h, q, h.sigmoid()) / (1 + ids.shape[1])


def encoder() -> nn.Module:
    """One layer of attention."""
    return nn.TransformerEncoderLayer(WIDTH, 2, 8, 0.0, batch_first=True)


def read_in_each(h: Tensor, q: Tensor, ids: Tensor) -> Tensor:
    """Columns that every event chooses, and the item behind them."""
    index = torch.cat([ids, (q[:, :1].abs() * 9).long()], 1)[..., None] + torch.arange(WIDTH)
    return torch.cat([h, q[:, None]], 1).gather(2, index % WIDTH).exp().sum(1)


ALONE: dict[str, tuple[Callable[..., Tensor], Callable[[], dict[str, nn.Module]]]] = {
    "pooled": (pooled, dict),
    "masked": (masked, dict),
    "filled": (filled, dict),
    "highest": (highest, dict),
    "first_columns": (first_columns, dict),
    "last_of_gru": (last_of_gru, lambda: {"gru": nn.GRU(WIDTH, WIDTH, batch_first=True)}),
    "last_step": (last_step, lambda: {"gru": nn.GRU(WIDTH, WIDTH, batch_first=True)}),
    "encoded": (encoded, lambda: {"places": nn.Embedding(60, WIDTH), "layer": encoder()}),
    "heads": (heads, lambda: {"maps": nn.Linear(WIDTH, 2 * WIDTH)}),
    "convolved": (convolved, lambda: {"kernel": nn.Conv1d(WIDTH, WIDTH, 3, padding=1)}),
}
TOGETHER: dict[str, tuple[Callable[..., Tensor], Callable[[], dict[str, nn.Module]]]] = {
    "activation_unit": (
        activation_unit,
        lambda: {"unit": nn.Sequential(nn.Linear(4 * WIDTH, 5), nn.PReLU(), nn.Linear(5, 1))},
    ),
    "target_attention": (target_attention, lambda: {"maps": nn.Linear(WIDTH, 2 * WIDTH)}),
    "behind": (behind, lambda: {"layer": encoder()}),
    "products": (products, dict),
    "read_in_each": (read_in_each, dict),
}


def reader(name: str) -> Reader:
    """A model by name."""
    torch.manual_seed(0)
    read, parts = (ALONE | TOGETHER)[name]
    return Reader(read, **parts())


def rows_of(length: int, requests: int = 1, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A history each, and candidates."""
    generator = torch.Generator().manual_seed(seed)
    history = torch.randint(IDS, (requests, length), generator=generator)
    return {"history": history}, {"item": torch.randint(IDS, (ROWS,), generator=generator)}


def check(
    model: nn.Module, dynamic: Mapping[str, object], lengths: Sequence[int], example: int = 9,
    levels: Sequence[Level] = LEVELS, sides: Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]] = rows_of,
) -> list[HoistedModel]:  # fmt: skip
    """Equal over whole rows at all levels (with every form kept) and lengths, for one request and for several."""
    context, candidate = sides(example, ROWS)
    program = capture(model, context | candidate, list(context), all_rules(), dynamic=dynamic)
    made = [HoistedModel(program, attempt(Task(program, level, Workload()))) for level in levels]
    for length in lengths:
        for offsets in OFFSETS:
            owner = torch.repeat_interleave(torch.arange(len(offsets) - 1), torch.tensor(offsets).diff())
            context, candidate = sides(length, len(offsets) - 1, seed=length)
            with torch.no_grad():
                want = model(**{n: x[owner] for n, x in context.items()}, **candidate)
            for hoisted in made:
                state = hoisted.prepare(context)
                assert {len(t) for t in state.tensors.values()} <= {len(offsets) - 1}, "a state has a row per request"
                got = hoisted.score(state, candidate, offsets)
                assert_equal(got, want, f"{hoisted.level}, length {length}, {offsets}")
                assert not [r for r in reasons(hoisted) if "please report" in r], reasons(hoisted)
    return made


class Attends(nn.Module):
    """A history with times, one more of its own length, and for each candidate a number for every event."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.top = nn.Embedding(IDS, WIDTH), nn.Linear(2 * WIDTH, 1)
        self.double().eval()

    def forward(
        self, history: Tensor, times: Tensor, other: Tensor, item: Tensor, matches: Tensor
    ) -> dict[str, Tensor]:
        h, q = self.table(history) + times[..., None], self.table(item)
        weights = ((h * q[:, None]).sum(2) + matches).softmax(1)
        seen = (weights[:, None] @ h).squeeze(1) + self.table(other).sum(1)
        return {"scores": self.top(torch.cat([seen, q], 1)).squeeze(1), "weights": weights}


def attends(length: int, other: int, requests: int = 1, rows: int = ROWS, seed: int = 0) -> tuple[dict, dict]:
    """What it reads: context and candidates."""
    generator = torch.Generator().manual_seed(seed)
    context = {
        "history": torch.randint(IDS, (requests, length), generator=generator),
        "times": torch.rand(requests, length, generator=generator, dtype=DOUBLE),
        "other": torch.randint(IDS, (requests, other), generator=generator),
    }
    item = torch.randint(IDS, (rows,), generator=generator)
    return context, {"item": item, "matches": torch.rand(rows, length, generator=generator, dtype=DOUBLE)}


class AttendedScores(Attends):
    """The same without the weights."""

    def forward(self, history: Tensor, times: Tensor, other: Tensor, item: Tensor, matches: Tensor) -> Tensor:
        return super().forward(history, times, other, item, matches)["scores"]


def hoisted_attends(kind: type[Attends] = Attends) -> HoistedModel:
    """It, hoisted for histories of 1 to 50 and others of 0 to 30."""
    context, candidates = attends(9, 4, ROWS)
    length = torch.export.Dim("T", min=1, max=50)
    dynamic = {"history": {1: length}, "times": {1: length}, "matches": {1: length}, "other": {1: (0, 30)}}
    return rankhoist.hoist(kind(), context | candidates, context=[*context], dynamic=dynamic)


def attended(
    context: dict[str, Tensor], candidates: dict[str, Tensor], offsets: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """What it returns over whole rows."""
    bounds = torch.tensor([0, len(candidates["item"])] if offsets is None else offsets)
    owner = torch.repeat_interleave(torch.arange(len(bounds) - 1), bounds.diff())
    with torch.no_grad():
        return Attends()(**{n: x[owner] for n, x in context.items()}, **candidates)
