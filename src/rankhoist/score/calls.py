"""Ragged calls: the requests of a block together, up to a budget of candidates per call (0: each request alone), and
those alone that have another length, where one varies.

Small requests share a call, for what a call costs besides its work is then paid once for all of them. A request with
more candidates than the budget has a call of its own, and a very large one several with one state.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rankhoist.errors import ScoringError
from rankhoist.runtime import HoistedModel
from rankhoist.runtime.outputs import made_up_outputs
from rankhoist.score.culprit import explained
from rankhoist.score.layouts import Block, Ints
from rankhoist.score.lengths import by_length
from rankhoist.score.stocked import Stocked
from rankhoist.verify import mixes_rows

LEAST = 1000  # candidates of a call by default: more gain nothing, measured with requests of 10 and 100 candidates
LARGE = 16  # budgets; larger requests are scored in calls of that size
PROBE = 7  # candidates of the call that finds out what a model returns


@dataclass(frozen=True)
class Output:
    """One output of the model as a column: a number, or a list of `width` numbers, per candidate.

    `dtype`: all floats are written as float32, integers and truths as what they are.
    """

    name: str
    width: int | None
    dtype: str = "float32"

    @property
    def type(self) -> pa.DataType:
        """Of the column."""
        one = pa.type_for_alias(self.dtype)
        return one if self.width is None else pa.list_(one, self.width)

    def column(self, values: Tensor) -> pa.Array:
        """Scores `[N]`, `[N, 1]` or `[N, width]`."""
        flat = pa.array(values.detach().to(getattr(torch, self.dtype)).cpu().contiguous().view(-1).numpy())
        return flat if self.width is None else pa.FixedSizeListArray.from_arrays(flat, self.width)


def outputs_of(model: HoistedModel) -> list[Output]:
    """What a model returns, named as the server does.

    Raises:
        ScoringError: something is no row of numbers per candidate.
    """
    made = []
    for name, value, sizes in made_up_outputs(model, PROBE):
        if not isinstance(value, Tensor) or value.dim() not in (1, 2) or len(value) != PROBE:
            shape = list(value.shape) if isinstance(value, Tensor) else value
            raise ScoringError(f"output {name!r} of the model is {shape}, not a number or a list for each candidate")
        if -1 in sizes:
            raise ScoringError(f"output {name!r} of the model is as long as an input that varies: it is no column")
        dtype = "float32" if value.is_floating_point() else str(value.dtype).removeprefix("torch.")
        made.append(Output(name, None if value.dim() == 1 or value.shape[1] == 1 else value.shape[1], dtype))
    return made


def budget_of(model: HoistedModel, wanted: int | None) -> int:
    """The budget asked for, or what the model was planned for; 0, one request per call, if the model mixes rows.

    A model whose scores of a request depend on what else is in the call scores as if served one request at a time.
    """
    return 0 if mixes_rows(model) else wanted or max(model.plan.workload.candidates, LEAST)


@dataclass(frozen=True)
class Calls:
    """Calls of a model with about `budget` candidates each; with 0, of one request each."""

    model: HoistedModel
    budget: int

    def scores(self, block: Block, stocked: Stocked | None = None) -> list[Tensor]:
        """The model's outputs for all candidates of a block, `[N, ...]` each; where they are items of a store, by that.

        Raises:
            ScoringError: the model refuses a row, or lengths of a row differ that have to be one; says which.
        """
        if not self.model.interface.varying or not block.offsets[-1]:
            return self._together(block, stocked)
        parts = list(by_length(block, self.model.interface))
        made = [self._together(own, stocked) for own, _ in parts]
        back = torch.cat([rows for _, rows in parts]).argsort()
        return [torch.cat(columns)[back] for columns in zip(*made, strict=True)]

    def _together(self, block: Block, stocked: Stocked | None) -> list[Tensor]:
        """The same of requests that may share calls."""
        made: list[list[Tensor]] = []
        for first, end in groups(block.offsets, self.budget):
            low, high = int(block.offsets[first]), int(block.offsets[end])
            try:
                made += self._call(block, range(first, end), stocked)
            except (IndexError, RuntimeError) as error:
                if isinstance(error, IndexError) and (whole := block.whole()) is not None:
                    raise explained(self.model, whole, range(first, end), error) from error
                place = f"{block.where(low)} and the {high - low - 1} candidates after it"
                raise ScoringError(f"{place} cannot be scored: {error}") from error
        return [torch.cat(parts) for parts in zip(*made, strict=True)]

    def _call(self, block: Block, requests: range, stocked: Stocked | None) -> Iterator[list[Tensor]]:
        """Outputs of some requests: of several in one call, of one in several calls where it is very large."""
        model, own = self.model, slice(requests.start, requests.stop)
        bounds = block.offsets[requests.start : requests.stop + 1]
        low, high = int(bounds[0]), int(bounds[-1])
        several = len(requests) > 1 and bool(block.context)
        step = high - low if several else min(LARGE * self.budget or high - low, high - low)
        context, offsets = {n: t[own] for n, t in block.context.items()}, None
        if several:
            offsets = torch.from_numpy(bounds - low)
        state = model.prepare(context, candidates=step, store=None if stocked is None else stocked.store)
        for start in range(low, high, step):
            own = slice(start, min(start + step, high))
            if stocked is None:
                result = model.score(state, {n: t[own] for n, t in block.candidate.items()}, offsets)
            else:
                pairs, rows = {n: t[own] for n, t in stocked.pairs.items()}, stocked.rows[own]
                result = model.score(state, None, offsets, store=stocked.store, rows=rows, pair_inputs=pairs)
            yield pytree.tree_leaves(result)


def groups(offsets: Ints, budget: int) -> Iterator[tuple[int, int]]:
    """Requests `[first, end)` of each call; calls without candidates are left out."""
    bounds, first = offsets.tolist(), 0
    for end in range(1, len(bounds)):
        if end == len(bounds) - 1 or bounds[end + 1] - bounds[first] > budget:
            if bounds[end] > bounds[first]:
                yield first, end
            first = end
