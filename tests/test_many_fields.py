"""Models of many fields: what is like of a side's fields is one block, or each law is applied field by field."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, check_model
from torch import Tensor

from rankhoist.compiler.algebra.forms import Form

G = torch.Generator().manual_seed(0)
COUNT, WIDTH = 12, 3  # fields: 7 of the context, 5 of the candidate
CONTEXT, CANDIDATE = (torch.randn(n, m, WIDTH, generator=G, dtype=torch.float64) for n, m in ((3, 7), (7, 5)))
D = COUNT * WIDTH


def drawn(*sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=G, dtype=torch.float64)


def crossed(x: Tensor, m: Tensor) -> Tensor:
    """Two layers of a cross network: what it makes of its input's blocks meets every other."""
    z = x * F.linear(x, m) + x
    return (x * F.linear(z, m) + z).sum(1)


def fields(c: Tensor, k: Tensor) -> list[Tensor]:
    """The sides' fields take turns."""
    own = [c[:, i] for i in range(7)], [k[:, i] for i in range(5)]
    return [side[i] for i in range(7) for side in own if i < len(side)]


def normalised(c: Tensor, k: Tensor, m: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """All of them by one batch norm."""
    return crossed(F.batch_norm(torch.cat(fields(c, k), 1), t, s.square(), s, t), m)


def each_normalised(c: Tensor, k: Tensor, m: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Each by its own."""
    own = zip(fields(c, k), s.split(WIDTH), t.split(WIDTH), strict=True)
    return crossed(torch.cat([F.batch_norm(x, b, a.square(), a, b) for x, a, b in own], 1), m)


def each_scaled(c: Tensor, k: Tensor, m: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Each by a number of its own, and half of them by 0.5 as well."""
    own = [x * a for x, a in zip(fields(c, k), s, strict=False)]
    return crossed(torch.cat([x * 0.5 if i % 2 else x for i, x in enumerate(own)], 1), m)


def gated(c: Tensor, k: Tensor, m: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Each by a number that one field of the candidate decides, the same for all."""
    gate = torch.sigmoid(k[:, 0] @ s[:WIDTH]).unsqueeze(1)
    return crossed(torch.cat([x * gate for x in fields(c, k)], 1), m)


WAYS = {"normalised": (normalised, 2), "each": (each_normalised, 2), "scaled": (each_scaled, 4), "gated": (gated, 2)}


def blocks(form: object) -> int:
    return len(form.blocks) if isinstance(form, Form) else 0


@pytest.mark.parametrize("way", WAYS)
def test_the_fields_of_a_side_are_one_block(way: str):
    call, most = WAYS[way]
    weights = {"m": drawn(D, D) * 0.3, "s": drawn(D), "t": drawn(D)}
    models = check_model(Function(call, **weights).eval(), CONTEXT, CANDIDATE)
    kept = models["kept"]
    adds = [n for n in kept.program.graph.nodes if str(n.target) == "aten.add.Tensor"]
    assert adds and max(blocks(kept.plan.interpreter.values[n]) for n in adds) <= most


def pairs(c: Tensor, k: Tensor, w: Tensor, m: Tensor) -> Tensor:
    """Every field of the context times every field of the candidate, and a layer."""
    mapped = F.linear(c, w)
    return F.linear(torch.cat([mapped[:, i] * k[:, j] for i in range(7) for j in range(5)], 1), m)


def alone(c: Tensor, k: Tensor, w: Tensor, m: Tensor) -> Tensor:
    """The same of fields that no other pair has."""
    mapped = F.linear(c, w)
    return F.linear(torch.cat([mapped[:, i] * k[:, i] for i in range(5)], 1), m[:, : 5 * WIDTH])


@pytest.mark.parametrize("call, often", [(pairs, 5), (alone, 5)])
def test_what_meets_one_field_is_added_up_before(call: Callable[..., Tensor], often: int):
    """The layer costs a product per field of the candidate, and not one per pair."""
    weights = {"w": drawn(WIDTH, WIDTH), "m": drawn(4, 35 * WIDTH)}
    kept = check_model(Function(call, **weights).eval(), CONTEXT, CANDIDATE)["kept"]
    per_candidate = sum(n.work.multiply_adds for n in kept.plan.nodes if n.rate.per_candidate)
    assert per_candidate == often * WIDTH * 4
