"""Scenarios: small models in the shapes that public rankers have, each over one context and one candidate tensor."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Scenario:
    """A model and the shapes of one row of its inputs: `context` and `candidate`."""

    name: str
    build: Callable[[], nn.Module]
    context: tuple[int, ...]
    candidate: tuple[int, ...]

    def model(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model in eval mode, weights from a fixed seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build().to(dtype).eval()

    def inputs(
        self, requests: int, candidates: int, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """Random `[R, *context]` and `[N, *candidate]`."""
        g = torch.Generator().manual_seed(seed)
        context = torch.randn(requests, *self.context, generator=g, dtype=dtype)
        return context, torch.randn(candidates, *self.candidate, generator=g, dtype=dtype)


class CrossLayers(nn.Module):
    """`x_{l+1} = x_0 * (W_l x_l + b_l) + x_l`, W full or of low rank, then a linear layer (DCNv2, arXiv 2008.13535)."""

    def __init__(self, width: int, layers: int, out: int, rank: int | None = None) -> None:
        super().__init__()
        self.maps = nn.ModuleList(
            nn.Linear(width, width)
            if rank is None
            else nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
            for _ in range(layers)
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
        sizes = [fields * (fields - 1) // 2, *widths]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.Linear(a, b), nn.ReLU()]
        self.top = nn.Sequential(*layers[:-1])

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        x = torch.cat([context, candidate], 1)
        gram = torch.bmm(x, x.transpose(1, 2))
        out: Tensor = self.top(gram[:, self.pairs[0], self.pairs[1]])
        return out


class TargetAttention(nn.Module):
    """A unit over `[q, k, q - k, q * k]` weighs the history (arXiv 1706.06978)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.unit = nn.Sequential(nn.Linear(4 * width, 80), nn.ReLU(), nn.Linear(80, 40), nn.ReLU(), nn.Linear(40, 1))

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        q = candidate.unsqueeze(1).expand(-1, context.shape[1], -1)
        weight = self.unit(torch.cat([q, context, q - context, q * context], -1))
        pooled: Tensor = (weight * context).sum(1)
        return pooled


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


SCENARIOS = [
    Scenario("cross_full", lambda: CrossLayers(1024, 3, 512), (900,), (124,)),
    Scenario("cross_low_rank", lambda: CrossLayers(1024, 3, 512, rank=64), (900,), (124,)),
    Scenario("dot_pairs_80_10", lambda: DotPairs(90, 512), (80, 32), (10, 32)),
    Scenario("dot_pairs_27_4", lambda: DotPairs(31, 512, 256, 1), (27, 128), (4, 128)),
    Scenario("target_attention", lambda: TargetAttention(64), (50, 64), (64,)),
    Scenario("norm_linear", lambda: NormLinear(1024, 512), (900,), (124,)),
    Scenario("token_attention", lambda: TokenAttention(32, 2), (40, 32), (8, 32)),
    Scenario("compressed_pairs", lambda: CompressedPairs(28, 128, 128), (24, 16), (4, 16)),
    Scenario("matrix_pairs", lambda: MatrixPairs(28, 16), (24, 16), (4, 16)),
    Scenario("bilinear_pairs", lambda: BilinearPairs(28, 16, 128), (24, 16), (4, 16)),
    Scenario("cross_wide_candidate", lambda: CrossLayers(1536, 3, 512), (1024,), (512,)),
]


def scenario(name: str) -> Scenario:
    """A scenario by name."""
    return next(s for s in SCENARIOS if s.name == name)
