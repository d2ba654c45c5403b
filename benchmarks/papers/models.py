"""The two families that RAD evaluates, over one context and one candidate tensor.

RAD does not give the widths of its fully connected layers; `flops.py` searches those whose totals come out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rankhoist.bench.models import DotPairs
from rankhoist.nn import MLP, RDCN, CrossNetV2

CONTEXT, CANDIDATE, LAYERS = 514, 577, 4  # columns of 26 context and 16 candidate features, cross layers
CROSS_HIDDEN = (512, 256, 128)
FIELDS, ITEMS, WIDTH = 27, 4, 128  # context and candidate fields, and their width
PAIRS_HIDDEN = (1024, 40)


class Joined(nn.Module):
    """A network over the columns of both sides."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        out: Tensor = self.net(torch.cat([context, candidate], 1))
        return out


class CrossRanker(nn.Module):
    """A cross network beside fully connected layers, and one score of both (DCNv2 as of arXiv 2008.13535, parallel).

    Parallel, since in a stacked model the layers read the last cross layer, in which every column has met the
    candidate: nothing of them could be split in DCNv2, but RAD's table has -36 % for them.
    """

    def __init__(self, cross: nn.Module, width: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.cross = cross
        self.mlp = Joined(MLP(width, hidden))
        self.head = nn.Linear(width + hidden[-1], 1)

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        out: Tensor = self.head(torch.cat([self.cross(context, candidate), self.mlp(context, candidate)], 1))
        return out


def dcnv2(
    context: int = CONTEXT, candidate: int = CANDIDATE, layers: int = LAYERS, hidden: tuple[int, ...] = CROSS_HIDDEN
) -> CrossRanker:
    """The model that people have."""
    width = context + candidate
    return CrossRanker(Joined(CrossNetV2(width, layers)), width, hidden)


def rdcn(
    context: int = CONTEXT, candidate: int = CANDIDATE, layers: int = LAYERS, hidden: tuple[int, ...] = CROSS_HIDDEN
) -> CrossRanker:
    """RAD's other model of the same widths, to be trained anew."""
    return CrossRanker(RDCN(context, candidate, layers), context + candidate, hidden)


def dlrm(fields: int = FIELDS, items: int = ITEMS, hidden: tuple[int, ...] = PAIRS_HIDDEN) -> DotPairs:
    """All pairs of fields by one Gram matrix, then layers: "vanilla" in RAD."""
    return DotPairs(fields + items, *hidden, 1)
