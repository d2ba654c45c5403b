"""Deep learning recommendation model.

Maxim Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
arXiv 1906.00091.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from rankhoist.errors import InputError
from rankhoist.nn.embedding import FeatureEmbedding, Field
from rankhoist.nn.mlp import MLP
from rankhoist.nn.rows import Offsets, check, owners, spread


class DotPairs(nn.Module):
    """`<v_i, v_j>` for all i < j; vectors of context `[R, F_c, k]` and candidate `[N, F_k, k]` -> `[N, F (F - 1) / 2]`.

    F = F_c + F_k. Order: context with context, candidate with context (all contexts of the first candidate field, of
    the second, ...), candidate with candidate; within a source, rows of the upper triangle.

    Parameters: none. Cost, multiply-adds: F_c^2 k per request and F_k F k per candidate: within a source, one matrix
    product computes both orders of a pair. Source: arXiv 1906.00091; its split arXiv 2605.27450, Eq. 6.
    """

    def forward(self, context: Tensor, candidate: Tensor, request_offsets: Offsets | None = None) -> Tensor:
        """Plain rows or a grouped batch (`rankhoist.nn.rows`) -> `[N, F (F - 1) / 2]`.

        Raises:
            InputError: vectors of different widths, wrong row counts, or offsets that do not fit.
        """
        check("context", context, "fields", "width")
        check("candidate", candidate, "fields", context.shape[2])
        return self.per_row(context, candidate, owners(context, candidate, request_offsets))

    def per_row(self, context: Tensor, candidate: Tensor, owner: Tensor | None) -> Tensor:
        """The same, unchecked, with the request of each candidate known."""
        mixed = torch.bmm(candidate, spread(context, owner).transpose(1, 2))
        return torch.cat([spread(_own_pairs(context), owner), mixed.flatten(1), _own_pairs(candidate)], dim=1)


class DLRM(nn.Module):
    """Embeddings, bottom MLPs, dot pairs and a top MLP; named features of context and candidate -> logits `[N]`.

        logit = w . top([x_1 .. x_G, pairs(v_1 .. v_F)]) + b

    Every field has a vector v_i of the same width k. That of a dense group is x_g = bottom_g(values), from an MLP of
    its own: the paper has one group, and with one per source context and candidate values still meet in the pairs
    alone. Order of fields: those of the context, then those of the candidate.

    Parameters: embeddings of width k, those of the bottom MLPs, and those of the top MLP on G k + F (F - 1) / 2
    columns and its head. Cost: that of the parts; embeddings, bottom MLPs and pairs of context fields are computed
    once per request. Source: arXiv 1906.00091, section 2.

    Raises:
        ValueError: a side without fields, fields of one name, or of different or no width.
    """

    def __init__(
        self,
        context_fields: Sequence[Field],
        candidate_fields: Sequence[Field],
        *,
        bottom: Sequence[int] = (64,),
        hidden: Sequence[int] = (256, 128),
    ) -> None:
        super().__init__()
        fields = (*context_fields, *candidate_fields)
        self.names = tuple(field.name for field in context_fields), tuple(field.name for field in candidate_fields)
        width = _common_width(fields, *self.names)
        self.embedding = FeatureEmbedding(
            [replace(field, width=0) if field.kind == "dense" else field for field in fields]
        )
        self.bottoms = nn.ModuleDict({f.name: MLP(f.size, (*bottom, width)) for f in fields if f.kind == "dense"})
        self.pairs = DotPairs()
        self.top = MLP(len(self.bottoms) * width + math.comb(len(fields), 2), hidden)
        self.head = nn.Linear(self.top.width, 1)

    def forward(
        self,
        context: Mapping[str, Tensor],
        candidate: Mapping[str, Tensor],
        request_offsets: Offsets | None = None,
    ) -> Tensor:
        """Named features, plain rows or a grouped batch (`rankhoist.nn.rows`) -> logits `[N]`.

        Raises:
            InputError: a feature is missing, row counts differ, or the offsets do not fit.
        """
        sides = zip(("context", "candidate"), (context, candidate), self.names, strict=True)
        of_context, of_candidate = (_selected(side, features, names) for side, features, names in sides)
        vectors = self._vectors(of_context | of_candidate)
        shared, own = (torch.stack([vectors[name] for name in names], dim=1) for names in self.names)
        owner = owners(shared, own, request_offsets)
        pairs = self.pairs.per_row(shared, own, owner)
        dense = [spread(vectors[name], owner if name in self.names[0] else None) for name in self.bottoms]
        logits: Tensor = self.head(self.top(torch.cat([*dense, pairs], dim=1)))
        return logits.squeeze(1)

    def _vectors(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The vector of each field, `[R, k]` or `[N, k]`."""
        vectors = dict(zip((f.name for f in self.embedding.fields), self.embedding(features), strict=True))
        return vectors | {name: bottom(vectors[name]) for name, bottom in self.bottoms.items()}


def _own_pairs(vectors: Tensor) -> Tensor:
    """`[B, F, k] -> [B, F (F - 1) / 2]`."""
    row, column = torch.triu_indices(vectors.shape[1], vectors.shape[1], 1, device=vectors.device)
    return torch.bmm(vectors, vectors.transpose(1, 2))[:, row, column]


def _common_width(fields: Sequence[Field], *sides: Sequence[str]) -> int:
    if not all(sides):
        raise ValueError(f"DLRM needs fields of both context and candidate, got {[list(names) for names in sides]}")
    widths = {field.name: field.width for field in fields}
    if len(widths) != len(fields):
        raise ValueError(f"DLRM needs fields of different names, got {[field.name for field in fields]}")
    if len(set(widths.values())) != 1 or not fields[0].width:
        raise ValueError(f"DLRM needs one width above 0 for all fields, got {widths}")
    return fields[0].width


def _selected(side: str, features: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """The features of one side, of one row count; others in the mapping are not looked at."""
    missing = [name for name in names if name not in features]
    if missing:
        raise InputError(f"missing {side} features: {', '.join(missing)}; got {', '.join(features) or 'none'}")
    rows = {name: features[name].shape[0] for name in names}
    if any(count != rows[names[0]] for count in rows.values()):
        listing = ", ".join(f"{name}: {count}" for name, count in rows.items())
        raise InputError(f"the {side} features have different row counts ({listing})")
    return {name: features[name] for name in names}
