"""The models that `rankhoist train` knows, each built from the schema of a data set.

All take named features with B rows and return logits `[B]`; context features come first in every model. `rdcn-fixed`
is the ablation without a context stream (rDCN** of arXiv 2605.27450).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from rankhoist.lab.data import Feature, LabelledRows
from rankhoist.nn import DLRM, MLP, RDCN, DCNv2, DeepFM, FeatureEmbedding, Field, RankAwareAttention
from rankhoist.nn.embedding import concatenate

CROSS_LAYERS = 3
DENSE_WIDTH = 24  # of what numbers are mapped to for cross networks
COMMON_WIDTH = 40  # where all fields have one
HEADS = 4
HIDDEN = (256, 128)


class CrossedStreams(nn.Module):
    """Embeddings, RDCN and MLP side by side: `logit = w . [rdcn(c, k), mlp([c; k])] + b`.

    c `[B, C]` are the concatenated context fields, k `[B, T]` those of the candidate. DCNv2 in its parallel structure
    with another cross network, so that the two differ in nothing else.
    """

    def __init__(
        self,
        context_fields: Sequence[Field],
        candidate_fields: Sequence[Field],
        *,
        cross_layers: int,
        hidden: Sequence[int],
        evolve_context: bool = True,
    ) -> None:
        super().__init__()
        self.context_fields = len(context_fields)
        self.embedding = FeatureEmbedding([*context_fields, *candidate_fields])
        context, width = sum(self.embedding.widths[: self.context_fields]), self.embedding.width
        self.cross = RDCN(context, width - context, cross_layers, evolve_context=evolve_context)
        self.mlp = MLP(width, hidden, batch_norm=True)
        self.head = nn.Linear(width + self.mlp.width, 1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Named features with B rows -> logits `[B]`."""
        vectors = self.embedding(features)
        context, candidate = concatenate(vectors[: self.context_fields]), concatenate(vectors[self.context_fields :])
        deep = self.mlp(torch.cat([context, candidate], dim=1))
        logits: Tensor = self.head(torch.cat([self.cross(context, candidate), deep], dim=1))
        return logits.squeeze(1)


class AttendedFields(nn.Module):
    """Fields as tokens, rank-aware attention, MLP: `logit = w . mlp(attended candidate tokens) + b`.

    The head reads the candidate tokens `[B, F_k, d]` alone: they have read the context in every layer.
    """

    def __init__(
        self,
        context_fields: Sequence[Field],
        candidate_fields: Sequence[Field],
        *,
        layers: int,
        hidden: Sequence[int],
    ) -> None:
        super().__init__()
        width, self.context_fields = candidate_fields[0].width, len(context_fields)
        self.embedding = FeatureEmbedding([*context_fields, *candidate_fields])
        # Attention sees sets; a vector of its own tells a field from the others.
        self.field = nn.Parameter(torch.randn(len(self.embedding.fields), width) * 0.1)
        self.attention = RankAwareAttention(width, HEADS, layers, hidden=2 * width)
        self.mlp = MLP(len(candidate_fields) * width, hidden, batch_norm=True)
        self.head = nn.Linear(self.mlp.width, 1)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Named features with B rows -> logits `[B]`."""
        tokens = torch.stack(self.embedding(features), dim=1) + self.field
        context, candidate = tokens[:, : self.context_fields], tokens[:, self.context_fields :]
        _, attended = self.attention.streams(context, candidate)
        logits: Tensor = self.head(self.mlp(attended.flatten(1)))
        return logits.squeeze(1)


class DotFields(nn.Module):
    """DLRM on features of both sides in one mapping."""

    def __init__(self, context_fields: Sequence[Field], candidate_fields: Sequence[Field], hidden: Sequence[int]):
        super().__init__()
        self.dlrm = DLRM(context_fields, candidate_fields, hidden=hidden)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Named features with B rows -> logits `[B]`."""
        logits: Tensor = self.dlrm(features, features)
        return logits


def build_model(
    name: str, data: LabelledRows, seed: int = 0, *, scale: float = 1.0, hidden: Sequence[int] = HIDDEN
) -> nn.Module:
    """An untrained model; at scale 1 the cross networks of `data.demo` have 416 context and 152 candidate columns.

    scale   of the widths of embeddings and hidden layers
    hidden  widths of the MLP; none where empty (the cross networks then feed the head alone)
    """
    if name not in MODELS:
        raise ValueError(f"no model named {name!r}; choose from {', '.join(MODELS)}")
    with seeded(seed):
        return MODELS[name](data, scale, [round(scale * width) for width in hidden])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator inside, restore it after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _dcnv2(data: LabelledRows, scale: float, hidden: Sequence[int]) -> nn.Module:
    context, candidate = _cross_fields(data, scale)
    return DCNv2([*context, *candidate], cross_layers=CROSS_LAYERS, hidden=hidden)


def _rdcn(data: LabelledRows, scale: float, hidden: Sequence[int], *, evolve_context: bool) -> nn.Module:
    fields = _cross_fields(data, scale)
    return CrossedStreams(*fields, cross_layers=CROSS_LAYERS, hidden=hidden, evolve_context=evolve_context)


def _deepfm(data: LabelledRows, scale: float, hidden: Sequence[int]) -> nn.Module:
    context, candidate = _common_fields(data, scale)
    return DeepFM([*context, *candidate], hidden=hidden)


def _dlrm(data: LabelledRows, scale: float, hidden: Sequence[int]) -> nn.Module:
    return DotFields(*_common_fields(data, scale), hidden)


def _attention(data: LabelledRows, scale: float, hidden: Sequence[int]) -> nn.Module:
    return AttendedFields(*_common_fields(data, scale), layers=2, hidden=hidden)


MODELS: dict[str, Callable[[LabelledRows, float, Sequence[int]], nn.Module]] = {
    "dcnv2": _dcnv2,
    "rdcn": partial(_rdcn, evolve_context=True),
    "rdcn-fixed": partial(_rdcn, evolve_context=False),
    "deepfm": _deepfm,
    "dlrm": _dlrm,
    "attention": _attention,
}


def _cross_fields(data: LabelledRows, scale: float) -> tuple[list[Field], list[Field]]:
    """Context and candidate fields, as wide as what they number is varied."""
    return _fields(data, lambda feature: round(scale * _cross_width(feature)))


def _cross_width(feature: Feature) -> int:
    """What the data set says; else `6 size^(1/4)` (Deep & Cross Network, arXiv 1708.05123, section 4.1)."""
    return DENSE_WIDTH if feature.kind == "dense" else feature.width or round(6 * feature.size**0.25)


def _common_fields(data: LabelledRows, scale: float) -> tuple[list[Field], list[Field]]:
    """Context and candidate fields of one width, a multiple of the attention heads."""
    width = HEADS * max(1, round(scale * COMMON_WIDTH / HEADS))
    return _fields(data, lambda feature: width)


def _fields(data: LabelledRows, width: Callable[[Feature], int]) -> tuple[list[Field], list[Field]]:
    fields = {"context": [], "candidate": []}  # type: dict[str, list[Field]]
    for feature in data.schema:
        field = Field(feature.name, feature.kind, feature.size, width(feature), feature.vocabulary)
        fields[feature.side].append(field)
    return fields["context"], fields["candidate"]
