"""Steps: what a model may do next, one file per family of operators. The order of families is written here only."""

from __future__ import annotations

from random_models.steps import (
    attention,
    integers,
    lengths,
    linear,
    lookup,
    masks,
    norm,
    pointwise,
    reduce,
    sequences,
    shape,
    stacked,
    unruled,
)
from random_models.steps.mixing import MIX_ROWS

FAMILIES = [
    linear,
    shape,
    pointwise,
    reduce,
    attention,
    norm,
    lookup,
    masks,
    sequences,
    lengths,
    stacked,
    integers,
    unruled,
]
STEPS = [step for family in FAMILIES for step in family.STEPS for _ in range(step.weight)]
STEPS_IN_TRAINING = [*STEPS, *[norm.IN_TRAINING] * norm.IN_TRAINING.weight]

__all__ = ["FAMILIES", "MIX_ROWS", "STEPS", "STEPS_IN_TRAINING"]
