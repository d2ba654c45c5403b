"""From named features to one vector per field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

# Rows never trained (a user or item first seen later) then stay close to zero, that is, to "nothing known".
EMBEDDING_DEVIATION = 0.01


@dataclass(frozen=True)
class Field:
    """How one named feature becomes a vector of `width`.

    id      int64 `[B]`, numbers below `size`: a row of the table
    ids     int64 `[B, T]`, 0 = padding: the mean of the rows of its entries, zero for an empty list
    dense   float32 `[B, size]`, or `[B]` of size 1: `x V` with V `[size, width]`, or x itself where `width` is 0
    table   fields of the same table share its weights; the field's own name where empty
    """

    name: str
    kind: Literal["id", "ids", "dense"]
    size: int
    width: int
    table: str = ""

    @property
    def output_width(self) -> int:
        """Columns of the field's vector."""
        return self.width or self.size


class FeatureEmbedding(nn.Module):
    """`{name: [B, ...]} -> F tensors [B, width_f]`, in the order of `fields`.

    Number 0 is padding in a list, which leaves it out of the mean; in an id it is a number like any other.

    Parameters: sum of size * width over the tables and the projected dense fields.
    Cost per row: T * width additions for a list, size * width multiply-adds for a projected dense field.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        super().__init__()
        self.fields = tuple(fields)
        self.widths = tuple(field.output_width for field in self.fields)
        self.tables = nn.ModuleDict()
        self.projections = nn.ModuleDict()
        for field in self.fields:
            if field.kind == "dense":
                self._add_projection(field)
            else:
                self._add_table(field)

    @property
    def width(self) -> int:
        """D, the sum of the fields' widths."""
        return sum(self.widths)

    def forward(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """One `[B, width_f]` per field."""
        return [self._embed(field, features[field.name]) for field in self.fields]

    def _embed(self, field: Field, value: Tensor) -> Tensor:
        if field.kind == "dense":
            value = value.unsqueeze(1) if value.dim() == 1 else value
            projected: Tensor = self.projections[field.name](value) if field.width else value
            return projected
        rows: Tensor = self.tables[field.table or field.name](value)
        return rows if field.kind == "id" else masked_mean(rows, value != 0)

    def _add_projection(self, field: Field) -> None:
        if field.width:
            self.projections[field.name] = nn.Linear(field.size, field.width, bias=False)

    def _add_table(self, field: Field) -> None:
        name = field.table or field.name
        if name not in self.tables:
            table = nn.Embedding(field.size, field.width)
            nn.init.normal_(table.weight, std=EMBEDDING_DEVIATION)
            self.tables[name] = table
        weight = self.tables[name].get_parameter("weight")
        if weight.shape != (field.size, field.width):
            raise ValueError(
                f"field {field.name!r} wants table {name!r} of {[field.size, field.width]}, "
                f"but an earlier field made it {list(weight.shape)}; fields that share a table must agree"
            )


def masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """`[B, T, k]`, bool `[B, T]` -> `[B, k]` mean over the entries where the mask holds, 0 where there are none."""
    weight = mask.to(rows.dtype)
    count = weight.sum(dim=1, keepdim=True).clamp(min=1.0)
    return (rows * weight.unsqueeze(-1)).sum(dim=1) / count


def concatenate(fields: Sequence[Tensor]) -> Tensor:
    """F tensors `[B, width_f]` -> `[B, D]`."""
    return torch.cat(list(fields), dim=1)
