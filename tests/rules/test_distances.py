"""Distances of points, or of coordinates of points, of both sides."""

from __future__ import annotations

import pytest
import torch
from helpers import Function, check_model
from torch import Tensor

from rules.cases import (
    FIELDS,
    HISTORY,
    ROWS,
    C,
    Equal,
    K,
    NearMiss,
    behind,
    both,
    declines,
    equal_at_every_level,
    fields,
    numbers,
)

randn = numbers(23)

FEW, MANY = (dict(w=randn(n, C + K)) for n in (3, 30))  # of many, torch multiplies matrices


def to(c: Tensor, k: Tensor, w: Tensor, **how: object) -> Tensor:
    return torch.cdist(both(c, k), w, **how)


def prototypes(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    return torch.exp(-torch.cdist(w, both(c, k)).square().mT)


def of_tokens(c: Tensor, k: Tensor, **how: object) -> Tensor:
    """From every field to every other, a part of whose coordinates is the candidate's."""
    x = torch.cat([fields(c, k), k[:, :1].expand(-1, fields(c, k).shape[1], -1)], 2)
    return torch.cdist(x, x[:, ::2] + 1, **how).flatten(1)


EQUAL: dict[str, Equal] = {
    "few_points": (to, ROWS, FEW),
    "many_points": (to, ROWS, MANY),
    "many_points_by_differences": (
        lambda c, k, w: to(c, k, w, compute_mode="donot_use_mm_for_euclid_dist"),
        ROWS,
        MANY,
    ),
    "few_points_by_products": (lambda c, k, w: to(c, k, w, compute_mode="use_mm_for_euclid_dist"), ROWS, FEW),
    "prototypes": (prototypes, ROWS, MANY),
    "point_by_point": (lambda c, k, w: torch.cdist(both(c, k)[None], w[None])[0], ROWS, MANY),
    "of_tokens": (of_tokens, FIELDS, {}),
    "history_and_target": (
        lambda c, k: (lambda x: torch.cdist(x, x + 1).softmax(2) @ x)(behind(c, k)).sum(1),
        HISTORY,
        {},
    ),
    "many_to_themselves": (
        lambda c, k: torch.cdist(behind(c.repeat(1, 5, 1), k), behind(c.repeat(1, 5, 1), k)).sum(1),
        HISTORY,
        {},
    ),
    "target_to_itself": (lambda c, k: torch.cdist(behind(c, k), behind(c, k)).flatten(1), HISTORY, {}),
    "another_power": (lambda c, k, w: to(c, k, w, p=1.0), ROWS, MANY),
}

NEAR_MISSES: dict[str, NearMiss] = {
    "coordinates_are_rows": (
        lambda c, k: torch.cdist(k.t()[None], c.t()[None, :4]).sum() * k,
        "cdist",
        ("works along the row axis: axis 2 of [1, 4, rows]", "are not on axis 0"),
        {},
    ),
}

test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)


@pytest.mark.parametrize("name, law", [("many_points", True), ("another_power", False)])
def test_a_request_brings_its_part_of_the_squares(name: str, law: bool):
    """Of 30 distances, a candidate multiplies its own coordinates and squares them; else all of them."""
    call, inputs, weights = EQUAL[name]
    own = check_model(Function(call, **weights).eval(), *inputs)["kept"]
    assert sum(n.work.multiply_adds for n in own.plan.nodes if n.rate.per_candidate) == (
        30 * K + K if law else 30 * (C + K)
    )


def test_distances_within_a_history_are_the_requests():
    """Of 7 x 7 distances of 4 coordinates, as their author wrote it, a candidate has its own 13, by differences."""
    call, inputs, weights = EQUAL["target_to_itself"]
    models = check_model(Function(call, **weights).eval(), *inputs)
    counts = {level: models[level].plan.cost.multiply_adds for level in ("expand", "request")}
    assert counts == dict.fromkeys(counts, 1000 * 7 * 7 * 4)
    own = [n for n in models["kept"].plan.nodes if n.rate.per_candidate and "square" in str(n.op)]
    assert sum(n.work.elements for n in own) <= 13 * 4
