"""Small models in the shapes that public rankers have, each over one context and one candidate tensor."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def layers(*sizes: int) -> nn.Sequential:
    """Linear layers with a ReLU between them."""
    made: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        made += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*made[:-1])


class Layers(nn.Module):
    """A multilayer perceptron over all columns."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.top = layers(*sizes)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        out: Tensor = self.top(torch.cat([context, candidate], 1))
        return out


class CrossLayers(nn.Module):
    """`x_{l+1} = x_0 * (W_l x_l + b_l) + x_l`, W full or of low rank, then a linear layer (DCNv2, arXiv 2008.13535)."""

    def __init__(self, width: int, depth: int, out: int, rank: int | None = None) -> None:
        super().__init__()
        self.maps = nn.ModuleList(
            nn.Linear(width, width)
            if rank is None
            else nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            for _ in range(depth)
        )
        self.out = nn.Linear(width, out)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        first = x = torch.cat([context, candidate], 1)
        for layer in self.maps:
            x = first * layer(x) + x
        out: Tensor = self.out(x)
        return out


class DotPairs(nn.Module):
    """All pairs of fields by dot product, then a linear layer (DLRM, arXiv 1906.00091)."""

    pairs: Tensor

    def __init__(self, fields: int, *widths: int) -> None:
        super().__init__()
        self.register_buffer("pairs", torch.triu_indices(fields, fields, 1))
        self.top = layers(fields * (fields - 1) // 2, *widths)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = torch.cat([context, candidate], 1)
        gram = torch.bmm(x, x.transpose(1, 2))
        out: Tensor = self.top(gram[:, self.pairs[0], self.pairs[1]])
        return out


class TargetAttention(nn.Module):
    """A unit over `[q, k, q - k, q * k]` weighs the history (arXiv 1706.06978)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.unit = layers(4 * width, 80, 40, 1)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        q = candidate.unsqueeze(1).expand(-1, context.shape[1], -1)
        weight = self.unit(torch.cat([q, context, q - context, q * context], -1))
        pooled: Tensor = (weight * context).sum(1)
        return pooled


class TargetRanker(nn.Module):
    """Target attention over a history, then layers over profile, pooled history and candidate columns."""

    def __init__(self, width: int, columns: int, *sizes: int) -> None:
        super().__init__()
        self.width = width
        self.attention, self.top = TargetAttention(width), layers(columns, *sizes)

    def forward(self, history: Tensor, profile: Tensor, candidate: Tensor) -> Tensor:
        pooled = self.attention(history, candidate[:, : self.width])
        out: Tensor = self.top(torch.cat([profile, pooled, candidate], 1))
        return out


class NormLinear(nn.Module):
    """LayerNorm over mixed columns, then a linear layer."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, out)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        out: Tensor = self.out(self.norm(torch.cat([context, candidate], 1)))
        return out


class TokenAttention(nn.Module):
    """One self-attention layer over context and candidate tokens, residual, mean over tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = torch.cat([context, candidate], 1)
        pooled: Tensor = (x + self.attention(x, x, x, need_weights=False)[0]).mean(1)
        return pooled


class CompressedPairs(nn.Module):
    """Compressed interaction network (xDeepFM, arXiv 1803.05170)."""

    def __init__(self, fields: int, *widths: int) -> None:
        super().__init__()
        sizes = [fields, *widths]
        self.maps = nn.ModuleList(nn.Conv1d(a * fields, b, 1) for a, b in itertools.pairwise(sizes))
        self.out = nn.Linear(sum(widths), 1)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        first = x = torch.cat([context, candidate], 1)
        sums = []
        for layer in self.maps:
            outer = torch.einsum("bhd,bmd->bhmd", x, first)
            x = F.relu(layer(outer.reshape(outer.shape[0], -1, outer.shape[-1])))
            sums.append(x.sum(2))
        out: Tensor = self.out(torch.cat(sums, 1))
        return out


class MatrixPairs(nn.Module):
    """A matrix per pair of fields (FmFM, arXiv 2102.12994)."""

    pairs: Tensor

    def __init__(self, fields: int, width: int) -> None:
        super().__init__()
        self.register_buffer("pairs", torch.triu_indices(fields, fields, 1))
        self.matrices = nn.Parameter(torch.randn(fields * (fields - 1) // 2, width, width))

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = torch.cat([context, candidate], 1)
        left, right = x[:, self.pairs[0]], x[:, self.pairs[1]]
        return (torch.einsum("bpd,pde->bpe", left, self.matrices) * right).sum((1, 2))


class BilinearPairs(nn.Module):
    """Bilinear pairs of fields and of squeezed and excited fields (FiBiNET, arXiv 1905.09433)."""

    def __init__(self, fields: int, width: int, out: int) -> None:
        super().__init__()
        self.fields = fields
        self.matrix = nn.Linear(width, width, bias=False)
        self.excite = nn.Sequential(
            nn.Linear(fields, fields // 3), nn.ReLU(), nn.Linear(fields // 3, fields), nn.ReLU()
        )
        self.out = nn.Linear(fields * (fields - 1) * width, out)

    def _pairs(self, x: Tensor) -> Tensor:
        pairs = itertools.combinations(range(self.fields), 2)
        return torch.cat([self.matrix(x[:, i]) * x[:, j] for i, j in pairs], 1)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = torch.cat([context, candidate], 1)
        excited = x * self.excite(x.mean(2)).unsqueeze(2)
        out: Tensor = self.out(torch.cat([self._pairs(x), self._pairs(excited)], 1))
        return out


class FactorizedLayers(nn.Module):
    """Ids to embeddings; first order, all pairs by sums of squares, and layers (DeepFM, arXiv 1703.04247)."""

    def __init__(self, fields: int, width: int, ids: int, *sizes: int) -> None:
        super().__init__()
        self.register_buffer("starts", ids * torch.arange(fields))
        self.first, self.table = nn.Embedding(ids * fields, 1), nn.Embedding(ids * fields, width)
        self.top = layers(fields * width, *sizes)

    starts: Tensor

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        ids = torch.cat([context, candidate], 1) + self.starts
        x = self.table(ids)
        pairs = 0.5 * (x.sum(1).square() - x.square().sum(1)).sum(1, keepdim=True)
        out: Tensor = self.first(ids).sum(1) + pairs + self.top(x.flatten(1))
        return out


class CompressedLayers(nn.Module):
    """A compressed interaction network beside layers (xDeepFM, arXiv 1803.05170)."""

    def __init__(self, fields: int, width: int, *maps: int) -> None:
        super().__init__()
        self.pairs, self.top = CompressedPairs(fields, *maps), layers(fields * width, 400, 400, 1)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = torch.cat([context, candidate], 1)
        out: Tensor = self.pairs(context, candidate) + self.top(x.flatten(1))
        return out


class FieldAttention(nn.Module):
    """Self-attention between fields, several layers deep, then a linear layer (AutoInt, arXiv 1810.11921)."""

    def __init__(self, fields: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(depth))
        self.residuals = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(depth))
        self.out = nn.Linear(fields * width, 1)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = torch.cat([context, candidate], 1)
        for attention, residual in zip(self.attentions, self.residuals, strict=True):
            x = F.relu(attention(x, x, x, need_weights=False)[0] + residual(x))
        out: Tensor = self.out(x.flatten(1))
        return out


class DisentangledLayer(nn.Module):
    """Fields look at fields by a whitened pairwise and a unary softmax; residual.

    Heads are split off by a bare view, as in public code: every token of a head is a piece of another field.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.unary, self.residual = nn.Linear(width, heads), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, fields, width = x.shape
        split = (rows * self.heads, fields, width // self.heads)
        query, key, value = (f(x).view(split) for f in (self.query, self.key, self.value))
        query, key = query - query.mean(1, keepdim=True), key - key.mean(1, keepdim=True)
        pairs = torch.softmax(torch.bmm(query, key.transpose(1, 2)), 2)
        unary = torch.softmax(self.unary(x), 1).view(rows * self.heads, fields, 1).transpose(1, 2)
        out: Tensor = torch.bmm(pairs + unary, value).view(rows, fields, width) + self.residual(x)
        return out


class DisentangledFields(nn.Module):
    """Disentangled self-attention over embedded fields, in layers without a nonlinearity between them."""

    def __init__(self, fields: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(DisentangledLayer(width, heads) for _ in range(depth)))
        self.top = nn.Linear(fields * width, 1)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        out: Tensor = self.top(self.layers(torch.cat([context, candidate], 1)).flatten(1))
        return out


class HistoryTransformer(nn.Module):
    """A transformer layer over history and target, then layers over all tokens (BST, arXiv 1905.06874)."""

    def __init__(self, tokens: int, width: int, heads: int, *sizes: int) -> None:
        super().__init__()
        self.position = nn.Parameter(0.1 * torch.randn(tokens, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.forth, self.norms = layers(width, 4 * width, width), nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.top = layers(tokens * width, *sizes)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = torch.cat([context, candidate.unsqueeze(1)], 1) + self.position
        x = self.norms[0](x + self.attention(x, x, x, need_weights=False)[0])
        x = self.norms[1](x + self.forth(x))
        out: Tensor = self.top(x.flatten(1))
        return out


class CausalHistory(nn.Module):
    """Causal layers over history and target; the score is the target's (SASRec, arXiv 1808.09781, as a ranker)."""

    def __init__(self, tokens: int, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.position, self.heads = nn.Parameter(0.1 * torch.randn(tokens, width)), heads
        self.mixed = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.forth = nn.ModuleList(layers(width, 4 * width, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.top = nn.Linear(width, 1)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = torch.cat([context, candidate.unsqueeze(1)], 1) + self.position
        for i, (mixed, out, forth) in enumerate(zip(self.mixed, self.out, self.forth, strict=True)):
            parts = mixed(self.norms[2 * i](x)).chunk(3, -1)
            q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
            seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + out(seen.transpose(1, 2).flatten(2))
            x = x + forth(self.norms[2 * i + 1](x))
        score: Tensor = self.top(x[:, -1])
        return score


class MixedExperts(nn.Module):
    """Experts mixed by a gate per task, and a tower per task (MMoE); with `own` experts of each task, PLE."""

    def __init__(self, columns: int, tasks: int, shared: int, own: int = 0, hidden: int = 256, out: int = 128) -> None:
        super().__init__()
        self.shared = nn.ModuleList(layers(columns, hidden, out) for _ in range(shared))
        self.own = nn.ModuleList(nn.ModuleList(layers(columns, hidden, out) for _ in range(own)) for _ in range(tasks))
        self.gates = nn.ModuleList(nn.Linear(columns, shared + own) for _ in range(tasks))
        self.towers = nn.ModuleList(layers(out, 64, 1) for _ in range(tasks))

    def mixed(self, x: Tensor) -> list[Tensor]:
        """A score per task from all columns."""
        shared = [F.relu(expert(x)) for expert in self.shared]
        scores = []
        for gate, tower, experts in zip(self.gates, self.towers, self.own, strict=True):
            made = torch.stack([*shared, *(F.relu(expert(x)) for expert in experts)], 1)  # type: ignore[attr-defined]
            share = torch.softmax(gate(x), 1).unsqueeze(2)
            scores.append(torch.sigmoid(tower((share * made).sum(1))))
        return scores

    def forward(self, context: Tensor, candidate: Tensor) -> list[Tensor]:
        return self.mixed(torch.cat([context, candidate], 1))
