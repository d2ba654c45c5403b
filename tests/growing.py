"""Reads of a history `[rows, T, WIDTH]` whose states grow by an event, near misses, and a model of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lengthy import ALONE, IDS, TOGETHER, WIDTH
from torch import Tensor, nn

Read = Callable[..., Tensor]
Parts = Callable[[], dict[str, nn.Module]]
INFINITE = -math.inf


class Reads(nn.Module):
    """Several reads of one history, each with a score of its own: exported once."""

    def __init__(self, reads: Mapping[str, tuple[Any, ...]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reads = [read for read, *_ in reads.values()]
        self.table, self.item = nn.Embedding(IDS, WIDTH), nn.Embedding(IDS, WIDTH)
        self.parts = nn.ModuleDict({name: nn.ModuleDict(parts()) for name, (_, parts, *_) in reads.items()})
        self.double().eval()

    def forward(self, history: Tensor, item: Tensor) -> tuple[Tensor, ...]:
        h, q = self.table(history), self.item(item)
        pairs = zip(self.reads, self.parts.values(), strict=True)
        return tuple((read(h, q, history, **parts) * q).sum(1) for read, parts in pairs)


class Head(nn.Module):
    """Attention as it is written out, `hidden` what a mask does to scores."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.norm = nn.Linear(WIDTH, 3 * WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, hidden: Callable[[Tensor], Tensor]) -> Tensor:
        q, k, v = self.maps(x).chunk(3, -1)
        return self.norm(x + hidden(q @ k.transpose(1, 2) / math.sqrt(WIDTH)).softmax(-1) @ v)


def attended(x: Tensor, hidden: Callable[[Tensor], Tensor]) -> Tensor:
    """The same without weights."""
    return hidden(x @ x.transpose(1, 2)).softmax(-1) @ x


def attending(hidden: Callable[[Tensor, Tensor], Tensor]) -> Read:
    """All that attention with a mask makes: `hidden(scores, ids)`."""

    def read(h: Tensor, q: Tensor, ids: Tensor) -> Tensor:
        return attended(h, lambda s: hidden(s, ids)).tanh().mean(1)

    return read


def deep(h: Tensor, q: Tensor, ids: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
    """Two layers, of which the last place is read."""
    return second(first(h, lambda s: compared(s, ids)), lambda s: compared(s, ids))[:, -1]


def places(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of queries `[T, 1]` and of keys `[1, T]`."""
    own = torch.arange(ids.shape[1])
    return own[:, None], own[None, :]


def square(ids: Tensor, value: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.full((ids.shape[1], ids.shape[1]), value, dtype=dtype)


# -- masks that hide what comes later


def compared(s: Tensor, ids: Tensor) -> Tensor:
    query, key = places(ids)
    return s.masked_fill((key > query) | (ids == 0)[:, None, :], INFINITE)


def windowed(s: Tensor, ids: Tensor) -> Tensor:
    query, key = places(ids)
    return torch.where((key <= query) & (query - key < 3), s, INFINITE)


def added(s: Tensor, ids: Tensor) -> Tensor:
    return s + square(ids, INFINITE).triu(1)


# -- masks that do not, or not provably


def earlier(s: Tensor, ids: Tensor) -> Tensor:
    query, key = places(ids)
    return s.masked_fill(key < query, INFINITE)


def one_too_late(s: Tensor, ids: Tensor) -> Tensor:
    return s.masked_fill(square(ids, 1, torch.bool).triu(2), INFINITE)


def finite(s: Tensor, ids: Tensor) -> Tensor:
    return s.masked_fill(square(ids, 1, torch.bool).triu(1), -1e9)


def times(s: Tensor, ids: Tensor) -> Tensor:
    return s * square(ids).tril()


def by_ids(s: Tensor, ids: Tensor) -> Tensor:
    return s.masked_fill(ids[:, None, :] > ids[:, :, None], INFINITE)


def nothing(s: Tensor, ids: Tensor) -> Tensor:
    return s


# -- other reads


def causal_kernel(h: Tensor, q: Tensor, ids: Tensor, maps: nn.Linear) -> Tensor:
    rows, length, _ = h.shape
    key, value = (x.view(rows, length, 2, 3).transpose(1, 2) for x in maps(h).chunk(2, -1))
    made = F.scaled_dot_product_attention(key, key, value, is_causal=True)
    return made.transpose(1, 2).reshape(rows, length, WIDTH).mean(1)


def recurrent(h: Tensor, q: Tensor, ids: Tensor, steps: nn.Module) -> Tensor:
    return steps(h)[0][:, -1]


def recurrent_twice(h: Tensor, q: Tensor, ids: Tensor, steps: nn.Module, more: nn.Module) -> Tensor:
    return more(steps(h)[0])[0].tanh().sum(1)


def scanned(h: Tensor, q: Tensor, ids: Tensor) -> Tensor:
    return h.cumsum(1).tanh()[:, -1] + h[:, 0] + h[:, -1:].sum(1)


def extremes(h: Tensor, q: Tensor, ids: Tensor) -> Tensor:
    seen = (ids > 3).any(1, keepdim=True) & (ids > 38).all(1, keepdim=True)
    return h.amax(1) - h.amin(1) + seen.to(h.dtype)


def counted(h: Tensor, q: Tensor, ids: Tensor, places: nn.Embedding) -> Tensor:
    length = ids.shape[1]
    return (h + places.weight[:length] + places(torch.arange(length))).sum(1) / (1 + length)


def causal_window(h: Tensor, q: Tensor, ids: Tensor, kernel: nn.Conv1d) -> Tensor:
    return kernel(F.pad(h.transpose(1, 2), (2, 0))).relu().sum(2)


def behind_a_token(h: Tensor, q: Tensor, ids: Tensor) -> Tensor:
    x = torch.cat([torch.ones_like(h[:, :1]), h], 1)
    mask = torch.full((x.shape[1], x.shape[1]), INFINITE, dtype=h.dtype).triu(1)
    return attended(x, lambda s: s + mask).tanh().sum(1)


def pooled_by_scores(h: Tensor, q: Tensor, ids: Tensor, scores: nn.Linear) -> Tensor:
    """The weights of all positions change, and nothing is multiplied for them."""
    return (scores(h).squeeze(-1).softmax(1)[:, None] @ h).squeeze(1)


def last_of_ids(h: Tensor, q: Tensor, ids: Tensor) -> Tensor:
    """At a place that is read from the history."""
    last = (ids > 3).sum(1).clamp(min=1) - 1
    return h.tanh()[torch.arange(ids.shape[0]), last]


# -- near misses


def both_ways(h: Tensor, q: Tensor, ids: Tensor, steps: nn.Module) -> Tensor:
    return steps(h)[0].sum(1)


def counted_from_the_end(h: Tensor, q: Tensor, ids: Tensor, places: nn.Embedding) -> Tensor:
    x = h + places(ids.shape[1] - 1 - torch.arange(ids.shape[1]))
    return attended(x, lambda s: compared(s, ids)).mean(1)


def before_a_token(h: Tensor, q: Tensor, ids: Tensor) -> Tensor:
    x = torch.cat([h, torch.ones_like(h[:, :1])], 1)
    mask = torch.full((x.shape[1], x.shape[1]), INFINITE, dtype=h.dtype).triu(1)
    return attended(x, lambda s: s + mask).tanh().sum(1)


def centred(h: Tensor, q: Tensor, ids: Tensor, maps: nn.Linear) -> Tensor:
    return maps(h - h.mean(1, keepdim=True)).tanh().sum(1)


def padded_behind(h: Tensor, q: Tensor, ids: Tensor, kernel: nn.Conv1d) -> Tensor:
    return kernel(F.pad(h.transpose(1, 2), (1, 1))).relu().sum(2)


def backwards(h: Tensor, q: Tensor, ids: Tensor, steps: nn.Module) -> Tensor:
    return steps(h.flip(1))[0][:, -1]


def scaled_by_length(h: Tensor, q: Tensor, ids: Tensor, maps: nn.Linear) -> Tensor:
    return maps(h * ids.shape[1]).tanh().sum(1)


def gru(**how: bool) -> dict[str, nn.Module]:
    return {"steps": nn.GRU(WIDTH, WIDTH // (1 + how.get("bidirectional", False)), batch_first=True, **how)}


def maps(times: int = 1) -> dict[str, nn.Module]:
    return {"maps": nn.Linear(WIDTH, times * WIDTH)}


def kernel() -> dict[str, nn.Module]:
    return {"kernel": nn.Conv1d(WIDTH, WIDTH, 3)}


GROWS: dict[str, tuple[Read, Parts]] = {
    **{n: ALONE[n] for n in ("masked", "encoded", "last_step")},
    **{m.__name__: (attending(m), dict) for m in (windowed, added)},
    "causal_kernel": (causal_kernel, lambda: maps(2)),
    "lstm": (recurrent, lambda: {"steps": nn.LSTM(WIDTH, WIDTH, 2, batch_first=True)}),
    "recurrent_twice": (recurrent_twice, lambda: gru() | {"more": nn.GRU(WIDTH, WIDTH, batch_first=True)}),
    "scanned": (scanned, dict),
    "extremes": (extremes, dict),
    "counted": (counted, lambda: {"places": nn.Embedding(60, WIDTH)}),
    "causal_window": (causal_window, kernel),
    "behind_a_token": (behind_a_token, dict),
    "deep": (deep, lambda: {"first": Head(), "second": Head()}),
    "pooled_by_scores": (pooled_by_scores, lambda: {"scores": nn.Linear(WIDTH, 1)}),
    "last_of_ids": (last_of_ids, dict),
}
WITH_ITEM = {n: TOGETHER[n] for n in ("activation_unit", "target_attention")}
CHANGES: dict[str, tuple[Read, Parts, str]] = {  # and the operator that is named
    **{m.__name__: (attending(m), dict, "softmax") for m in (earlier, one_too_late, finite, times, by_ids)},
    "nothing": (attending(nothing), dict, "softmax"),
    "both_ways": (both_ways, lambda: gru(bidirectional=True), "gru"),
    "backwards": (backwards, gru, "flip"),
    "counted_from_the_end": (
        counted_from_the_end, lambda: {"places": nn.Embedding(60, WIDTH)}, "add",
    ),
    "before_a_token": (before_a_token, dict, "cat"),
    "centred": (centred, maps, "mean"),
    "scaled_by_length": (scaled_by_length, maps, "mul"),
    "padded_behind": (padded_behind, kernel, "pad"),
}  # fmt: skip
