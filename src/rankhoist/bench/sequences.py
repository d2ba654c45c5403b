"""Small rankers along a history: attention under masks, recurrences, windows, a search."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankhoist.bench.models import layers

BUCKETS = 32  # of time between two events


class PaddedHistory(nn.Module):
    """Causal layers over ids of which 0 is padding (SASRec, arXiv 1808.09781, as a ranker)."""

    def __init__(self, ids: int, tokens: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.item, self.position = nn.Embedding(ids, width, padding_idx=0), nn.Embedding(tokens, width)
        one = nn.TransformerEncoderLayer(width, heads, width, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(one, depth, enable_nested_tensor=False)
        self.register_buffer("hidden", torch.ones(tokens, tokens, dtype=torch.bool).triu(1))
        self.top = nn.Linear(width, 1)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        ids = torch.cat([context, candidate.unsqueeze(1)], 1)
        x = self.item(ids) + self.position.weight
        x = self.layers(x, mask=self.hidden, src_key_padding_mask=ids == 0)
        score: Tensor = self.top(x[:, -1])
        return score


class EncodedHistory(nn.Module):
    """Layers in which history and target all attend to each other; the target's place is scored."""

    def __init__(self, tokens: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.position = nn.Parameter(0.1 * torch.randn(tokens, width))
        one = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True)
        self.layers = nn.TransformerEncoder(one, depth, enable_nested_tensor=False)
        self.top = nn.Linear(width, 1)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = self.layers(torch.cat([context, candidate.unsqueeze(1)], 1) + self.position)
        score: Tensor = self.top(x[:, -1])
        return score


class RecurrentHistory(nn.Module):
    """A GRU over history and target (GRU4Rec, arXiv 1511.06939, as a ranker)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.steps, self.top = nn.GRU(width, width, batch_first=True), nn.Linear(width, 1)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x, _ = self.steps(torch.cat([context, candidate.unsqueeze(1)], 1))
        score: Tensor = self.top(x[:, -1])
        return score


class InterestHistory(nn.Module):
    """A GRU over the history, whose states the target weighs (DIEN, arXiv 1809.03672, before its second GRU)."""

    def __init__(self, width: int, *sizes: int) -> None:
        super().__init__()
        self.steps, self.keys = nn.GRU(width, width, batch_first=True), nn.Linear(width, width, bias=False)
        self.top = layers(2 * width, *sizes)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        states, _ = self.steps(context)
        weights = torch.softmax((self.keys(states) @ candidate.unsqueeze(2)).squeeze(2), 1)
        interest = (weights.unsqueeze(1) @ states).squeeze(1)
        score: Tensor = self.top(torch.cat([interest, candidate], 1))
        return score


class WindowedHistory(nn.Module):
    """Windows over history and target, the largest of each (Caser, WSDM 2018, its horizontal filters)."""

    def __init__(self, width: int, filters: int, *windows: int) -> None:
        super().__init__()
        self.filters = nn.ModuleList(nn.Conv1d(width, filters, w) for w in windows)
        self.top = nn.Linear(filters * len(windows) + width, 1)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = torch.cat([context, candidate.unsqueeze(1)], 1).transpose(1, 2)
        largest = [torch.relu(own(x)).amax(2) for own in self.filters]
        score: Tensor = self.top(torch.cat([*largest, candidate], 1))
        return score


class TimedHistory(nn.Module):
    """Layers of gated attention without softmax, biased by time between events (HSTU, arXiv 2402.17152)."""

    seen: Tensor

    def __init__(self, tokens: int, width: int, depth: int) -> None:
        super().__init__()
        self.mixed = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(depth))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.bias = nn.Parameter(0.1 * torch.randn(depth, BUCKETS))
        self.register_buffer("seen", torch.ones(tokens, tokens).tril() / tokens)
        self.top = nn.Linear(width, 1)

    def forward(self, history: Tensor, times: Tensor, item: Tensor, time: Tensor) -> Tensor:
        x, at = torch.cat([history, item.unsqueeze(1)], 1), torch.cat([times, time.unsqueeze(1)], 1)
        apart = (at.unsqueeze(2) - at.unsqueeze(1)).abs().clamp(max=BUCKETS - 1)
        for i, (mixed, out) in enumerate(zip(self.mixed, self.out, strict=True)):
            u, v, q, k = F.silu(mixed(self.norms[2 * i](x))).chunk(4, -1)
            weights = F.silu(q @ k.transpose(1, 2) + self.bias[i][apart]) * self.seen
            x = x + out(self.norms[2 * i + 1](weights @ v) * u)
        score: Tensor = self.top(x[:, -1])
        return score


class SearchedHistory(nn.Module):
    """The entries of a long history nearest to the target, then attention to these (SIM, arXiv 2006.05639)."""

    def __init__(self, width: int, nearest: int, *sizes: int) -> None:
        super().__init__()
        self.keys, self.values, self.nearest = nn.Linear(width, width), nn.Linear(width, width), nearest
        self.top = layers(2 * width, *sizes)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        keys, values = self.keys(context), self.values(context)
        scores, chosen = (keys @ candidate.unsqueeze(2)).squeeze(2).topk(self.nearest, 1)
        found = values.gather(1, chosen.unsqueeze(2).expand(-1, -1, values.shape[2]))
        interest = (torch.softmax(scores, 1).unsqueeze(1) @ found).squeeze(1)
        score: Tensor = self.top(torch.cat([interest, candidate], 1))
        return score
