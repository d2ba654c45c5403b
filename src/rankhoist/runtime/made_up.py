"""Rows that are nobody's: what a file holds in place of the example.

Whoever warms a model up, verifies it or asks whether it mixes rows needs rows that it takes, and not whose they are.
Ids are drawn within the tables that they index. Any other number is drawn from what is known of its place without
telling a value of it: its sign, whether it is whole, and the power of two below its largest.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from rankhoist.capture import InputSpec, Jagged
from rankhoist.runtime.inputs import Inputs
from rankhoist.runtime.scoring import Scoring
from rankhoist.runtime.vocabulary import FREE

ROWS = 64  # at most: enough for draws that differ
SEED = 0


def made_up_example(model: Scoring, bounds: dict[str, Tensor]) -> dict[str, Tensor | Jagged]:
    """As many rows as the example has, `[rows, *shape]` by input name; `bounds` as `vocabulary` finds them.

    Nothing where there is no example, or where the model takes no rows that can be made up: ids that it computes from
    its inputs have no bound that is known.
    """
    interface = model.interface
    for largest in (torch.inf, 1.0) if interface.example else ():
        generator = torch.Generator().manual_seed(SEED)
        rows = {
            spec.name: _rows(spec, interface.example[spec.name], bounds, largest, generator)
            for spec in interface.inputs.values()
        }
        if _takes(model, rows):
            return rows
    return {}


def _rows(
    spec: InputSpec, example: Tensor | Jagged, bounds: dict[str, Tensor], largest: float, generator: torch.Generator
) -> Tensor | Jagged:
    """Rows in place of an example's, or bags, whose sizes are made up as numbers are."""
    if isinstance(example, Tensor):
        return _drawn(example, _bounds(spec, bounds), largest, generator, min(len(example), ROWS))
    sizes = _drawn(example.lengths, torch.tensor(FREE), largest, generator, min(len(example), ROWS))
    own = [bounds.get(f"{spec.name}.values_{i}", torch.tensor(FREE)) for i in range(len(spec.bags))]
    columns = zip(example.values, own, strict=True)
    return Jagged.of([_drawn(x, b, largest, generator, int(sizes.sum())) for x, b in columns], sizes)


def _bounds(spec: InputSpec, known: dict[str, Tensor]) -> Tensor:
    """One bound per value of a row, those of both sides of a packed input in their places."""
    if spec.role != "packed":
        return known.get(spec.name, torch.tensor(FREE))
    bounds = torch.full(spec.shape, FREE)
    for side, columns in (("context", spec.columns), ("candidate", spec.candidate_columns)):
        bounds[list(columns)] = known.get(f"{spec.name}.{side}", torch.tensor(FREE))
    return bounds


def _drawn(example: Tensor, bounds: Tensor, largest: float, generator: torch.Generator, count: int) -> Tensor:
    """`count` rows in place of an example's; where no bound is known, no number is greater than `largest`."""
    if not count:
        return example.new_empty(0, *example.shape[1:])
    ids = bounds != FREE
    values = example.detach().cpu().double().reshape(len(example), math.prod(example.shape[1:])).nan_to_num(0, 0, 0)
    whole = (values == values.round()).all(0) | ids
    scale = _power_of_two(values.abs().amax(0)).clamp(max=largest)
    low = torch.where((values >= 1).all(0) & whole, 1.0, torch.where((values < 0).any(0) & ~ids, -scale, 0.0))
    high = torch.where(ids, bounds.clamp(max=_exact(example.dtype)), torch.where(whole, scale + 1, scale))
    made = low + torch.rand(count, len(low), generator=generator, dtype=torch.float64) * (high - low).clamp(min=0)
    made = torch.where(whole, made.floor().minimum((high - 1).clamp(min=0)), made)
    return made.reshape(count, *example.shape[1:]).to(example.dtype)


def _power_of_two(values: Tensor) -> Tensor:
    """The largest one that is not greater; 0 for 0."""
    mantissa, exponent = torch.frexp(values)
    return torch.where(values > 0, torch.ldexp(torch.ones_like(mantissa), exponent - 1), 0.0)


def _exact(dtype: torch.dtype) -> int:
    """Whole numbers below it are exact in a dtype."""
    if dtype.is_floating_point:
        return int(2 / torch.finfo(dtype).eps)
    return 2 if dtype == torch.bool else torch.iinfo(dtype).max


def _takes(model: Scoring, rows: dict[str, Tensor | Jagged]) -> bool:
    """Whether a model scores every row, each as a request and as a candidate."""
    inputs = Inputs(replace(model.interface, example=rows), model.dtype, model.device)
    count = len(next(iter(rows.values())))
    context, candidate = inputs.made_up("context", count), inputs.made_up("candidate", count)
    try:
        model.score(model.prepare(context), candidate, range(count + 1) if context else None)
    except Exception:  # what a model does not take it refuses in its own way
        return False
    return True
