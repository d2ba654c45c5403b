"""Ids outside of their tables are refused, by whatever runs the stages.

Those of an input are compared with its bounds before a compiled or exported stage runs; such a stage counts those that
it computes itself (see `rankhoist.compiler.emit.lookups`). PyTorch's own operators refuse what they are given: run
eagerly, stages are searched only after one has failed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankhoist.compiler.emit import Stage, Stages
from rankhoist.compiler.emit.lookups import search
from rankhoist.errors import InputError, RankhoistError, VocabularyError
from rankhoist.runtime.inputs import Inputs
from rankhoist.runtime.vocabulary import FREE, Vocabulary, vocabulary
from rankhoist.runtime.weights import Weights

EAGER, GRAPHS = "eager", "graphs"
PLAIN = (EAGER, GRAPHS)  # backends that run PyTorch's own operators, which refuse ids themselves


@dataclass(frozen=True)
class Bounds:
    """Of one input: each value is `lowest` or more and less than `below`, for all values of a row or one by one
    `[*shape]`.

    `name` is what the user calls it. Of values in bags, `lengths` is the tensor that says whose they are.
    """

    lowest: Tensor
    below: Tensor
    name: str = ""
    lengths: str = ""

    @staticmethod
    def of(lowest: Tensor, below: Tensor, shape: Sequence[int], name: str = "", lengths: str = "") -> Bounds:
        """From one pair per value, as one pair where all are the same."""
        if not all(bool((t == t[0]).all()) for t in (lowest, below)):
            return Bounds(lowest.reshape(*shape), below.reshape(*shape), name, lengths)
        return Bounds(lowest[0], below[0], name, lengths)

    def holds(self, rows: Tensor) -> bool:
        """Whether all ids are inside: one pass."""
        if not rows.numel():
            return True
        if self._pair is not None and not rows.is_floating_point():
            low, high = torch.aminmax(rows)
            return low.item() >= self._pair[0] and high.item() < self._pair[1]
        return not bool(self._wrong(rows).any())

    @cached_property
    def _pair(self) -> tuple[int, int] | None:
        return None if self.below.dim() else (int(self.lowest), int(self.below))

    def _wrong(self, rows: Tensor) -> Tensor:
        """A fraction is cut off when it becomes an id, so that -0.5 is 0."""
        lowest, below = self.lowest.to(rows.device), self.below.to(rows.device)
        if rows.is_floating_point():
            lowest, below = lowest.double() - 1, below.double()
            return (below < FREE) & ~((rows > lowest) & (rows < below))
        return (rows < lowest) | (rows >= below)

    def explain(self, rows: Tensor, inputs: Mapping[str, Tensor]) -> VocabularyError:
        """What is wrong with the ids of one of the inputs."""
        place = tuple(int(i) for i in self._wrong(rows).nonzero()[0])
        lowest, below = (t.expand(rows.shape[1:])[place[1:]] for t in (self.lowest, self.below))
        row = place[0]
        if self.lengths:
            row = int(torch.searchsorted(inputs[self.lengths].cumsum(0), row, right=True))
        return VocabularyError(
            f"input {self.name!r} has id {rows[place].item()} in row {row}, expected {int(lowest)} to {int(below) - 1}"
        )

    def to_data(self) -> dict[str, Any]:
        """As data for JSON, without names; null is no bound."""
        return {"lowest": _numbers(self.lowest.tolist()), "below": _numbers(self.below.tolist())}

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> Bounds:
        """The inverse of `to_data`."""
        free = {"lowest": -FREE, "below": FREE}
        lowest, below = (torch.tensor(_numbers(data[key], number), dtype=torch.int64) for key, number in free.items())
        return Bounds(lowest, below)


def _numbers(value: Any, free: int | None = None) -> Any:
    if isinstance(value, list):
        return [_numbers(v, free) for v in value]
    if free is not None:
        return free if value is None else value
    return None if abs(value) == FREE else value


Ids = dict[str, dict[str, Bounds]]  # side -> tensor that a stage reads -> its bounds


def ids_of(vocabulary: Vocabulary, inputs: Inputs) -> Ids:
    """Bounds by side and by what stages call the tensors of inputs."""
    found: Ids = {}
    for side, tensors in inputs.tensors.items():
        found[side] = {}
        for stage, given in tensors.items():
            own = next((n for n in (stage, f"{stage}.{side}") if n in vocabulary.below), None)
            if own is not None and given.row.dtype != torch.bool:
                pair = vocabulary.lowest[own], vocabulary.below[own]
                if given.row.varying:  # the widest: which position is which depends on the length
                    pair = pair[0].amin()[None], pair[1].amax()[None]
                found[side][stage] = Bounds.of(*pair, given.row.shape, given.name, given.lengths)
    return found


def check(bounds: Mapping[str, Bounds], inputs: Mapping[str, Tensor]) -> None:
    """Refuse ids outside of their tables.

    Raises:
        VocabularyError: there is one; says which.
    """
    for name, own in bounds.items():
        if not own.holds(inputs[name]):
            raise own.explain(inputs[name], inputs)


class Feed(NamedTuple):
    """What a stage is called with: its arguments in order, and by name the inputs of a side that are among them."""

    arguments: Sequence[Any]
    side: str
    inputs: Mapping[str, Tensor]


class Guard:
    """What a hoisted model refuses of ids, found out when it is asked for first.

    `weights` are the version in use: all have tables of the same sizes, and an old one is not to be kept alive.
    """

    def __init__(self, inputs: Inputs, stages: Stages, weights: Weights) -> None:
        self._inputs, self._stages, self.weights = inputs, stages, weights

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What ids its inputs may hold."""
        return vocabulary(self._inputs.interface, self._stages, self.weights)

    @cached_property
    def bounds(self) -> Ids:
        """The same by side and name."""
        return ids_of(self.vocabulary, self._inputs)

    def check(self, backend: str, side: str, inputs: Mapping[str, Tensor]) -> None:
        """Refuse ids where PyTorch's own operators, which do so themselves, do not run the stages.

        Raises:
            VocabularyError: there is one; says which.
        """
        if backend not in PLAIN:
            check(self.bounds[side], inputs)

    def run(
        self, plan: int, stage: Stage, feed: Feed, run: Callable[..., tuple[Any, ...]] | None = None
    ) -> tuple[Any, ...]:
        """What a stage of a plan returns, run by `run` if given; where an id is outside of its table, it says so.

        Raises:
            VocabularyError: there is such an id.
        """
        try:
            return (run or stage.run)(*feed.arguments)
        except (IndexError, RuntimeError) as error:
            raise self.explained(error, plan, stage, feed) from None

    def watched(self, run: Callable[..., tuple[Any, ...]], feed: Feed) -> tuple[Any, ...]:
        """The same of a graph that belongs to no plan without a store: of it, inputs alone are looked into.

        Raises:
            VocabularyError: one has an id outside of a table.
        """
        try:
            return run(*feed.arguments)
        except (IndexError, RuntimeError):
            if self._inputs.device.type == "cpu":
                self.check_all(feed.side, feed.inputs)
            raise

    def check_all(self, side: str, inputs: Mapping[str, Tensor]) -> None:
        """Refuse ids that no stage may look up before they are kept.

        Raises:
            VocabularyError: there is one; says which.
        """
        check({name: own for name, own in self.bounds[side].items() if name in inputs}, inputs)

    def explained(self, error: Exception, plan: int, stage: Stage, feed: Feed) -> Exception:
        """The error of a stage that failed of an input elsewhere, or of an id outside of its table, in words; any other
        as it is.
        """
        own = self._inputs.device
        named = [(f"{feed.side} input {name!r} is", t) for name, t in feed.inputs.items()]
        prepared = [("what was prepared is", t) for t in feed.arguments[3:] if isinstance(t, Tensor)]
        for what, t in [*named, *prepared]:
            if t.device.type != own.type or own.index not in (None, t.device.index):
                return InputError(f"{what} on {t.device}, and the model on {own}: move one to the other")
            if t.layout != torch.strided:
                return InputError(f"{what} {t.layout}, expected a dense tensor: to_dense()")
        if isinstance(error, RankhoistError) or own.type != "cpu":
            return error
        try:
            check(self.bounds[feed.side], feed.inputs)
        except VocabularyError as explained:
            return explained
        found = search(stage.module, feed.arguments)
        return error if found is None else self.vocabulary.explain(plan, *found)
