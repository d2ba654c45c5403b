"""A model while it is drawn: numbers are drawn, operators recorded, and what hangs on the last digits is left out.

Every operator is run twice as it is recorded:

* on tensors without data with `ROWS` rows, which tells its shape: a multiple of `ROWS` is a multiple of the row count;
* on `sample`, the very rows that the properties are checked with, so that a step which would be numerically unstable
  (values that grow, comparisons of nearly equal numbers) can be tamed or left out.

Where a length varies, it is another number in the dry run than in the sample: a step that needs a number for it fails
in one of them, and is left out.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from random_models.model import replaced, whole_rows
from random_models.rows import (
    BAGS,
    CANDIDATES,
    LENGTH,
    LENGTHS,
    OFFSETS,
    REQUESTS,
    ROWS,
    Extent,
    extent_of,
    length,
    per_length,
    size_of,
    symbolic,
    varies,
)
from rankhoist import Jagged
from rankhoist.capture import InputSpec
from rankhoist.capture.inputs import Column
from rankhoist.capture.program import Weight
from rankhoist.capture.varying import Varying

aten = torch.ops.aten
LARGE = 20.0  # values above are scaled down
LARGEST = 500  # numbers along an axis of a weight; with more, it has a size that varies
GAP = 1e-6  # operators that jump (comparisons, rounding, order) need operands further apart than this


class UnstableError(Exception):
    """The step that was drawn is left out: its result would hang on the last digits."""


@dataclass
class Draft:
    """Records operators; `values` are the tensors that later steps may read."""

    number: Callable[[int, int], int]  # draws from low to high, both included
    generator: torch.Generator
    graph: fx.Graph = field(default_factory=fx.Graph)
    weights: dict[str, Weight] = field(default_factory=dict)
    inputs: dict[str, InputSpec] = field(default_factory=dict)
    bags: dict[str, str] = field(default_factory=dict)
    totals: list[int] = field(default_factory=list)  # values in bags of the sample, by jagged input
    context: dict[str, Any] = field(default_factory=dict)
    candidate: dict[str, Any] = field(default_factory=dict)
    values: list[fx.Node] = field(default_factory=list)
    dry: dict[fx.Node, Any] = field(default_factory=dict)
    sample: dict[fx.Node, Any] = field(default_factory=dict)
    mixed: set[fx.Node] = field(default_factory=set)
    stacked: set[fx.Node] = field(default_factory=set)
    sizes: dict[int, fx.Node] = field(default_factory=dict)

    # -- drawing

    def flag(self) -> bool:
        return bool(self.number(0, 1))

    def shuffled(self, items: Sequence[Any]) -> list[Any]:
        left, result = list(items), []
        while left:
            result.append(left.pop(self.number(0, len(left) - 1)))
        return result

    def pick(self, items: Sequence[Any]) -> Any:
        if not items:
            raise UnstableError
        return items[self.number(0, len(items) - 1)]

    def value(self, where: Callable[[Extent], bool] = lambda _: True, floating: bool = True) -> fx.Node:
        """A tensor recorded before, the latest for the simplest draw."""
        good = [v for v in self.values if self.is_float(v) is floating and where(self.extent(v))][::-1]
        unread = [v for v in good if not v.users]
        return self.pick(unread if unread and self.number(0, 2) else good)

    def axis(self, x: fx.Node, least: int = 1) -> int:
        """An axis of x without rows."""
        return int(self.pick([i for i, n in enumerate(self.extent(x)) if n >= least][::-1]))

    def places(self, size: int) -> int:
        """How many positions an axis has for sure."""
        return max(min(LENGTHS) + per_length(size)[1], 1) if varies(size) else size

    # -- what is known of a value

    def extent(self, x: fx.Node) -> Extent:
        return extent_of(self.dry[x].shape)

    def is_float(self, x: fx.Node) -> bool:
        return bool(self.dry[x].is_floating_point())

    # -- recording

    def placeholder(self, name: str, dry: Tensor, sample: Tensor) -> fx.Node:
        first = next((n for n in self.graph.nodes if n.op != "placeholder"), None)
        with self.graph.inserting_before(first) if first else nullcontext():
            node = self.graph.placeholder(name)
        self.dry[node], self.sample[node] = dry, sample
        node.meta["val"] = symbolic(dry)
        return node

    def weight(self, tensor: Tensor, in_state_dict: bool = True, trained: bool = True) -> fx.Node:
        self._check_small(tensor.shape)
        name = f"w{len(self.weights)}"
        self.weights[name] = Weight(name, tensor, in_state_dict, trained)
        return self.placeholder(name, tensor.to("meta"), tensor)

    def random(self, *shape: int, scale: float = 1.0) -> fx.Node:
        return self.weight(self.normal(*shape) * scale)

    def normal(self, *shape: int) -> Tensor:
        self._check_small(shape)
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def _check_small(self, shape: Sequence[int]) -> None:
        """That no size of a weight is one that varies."""
        if max(shape, default=0) > LARGEST:
            raise UnstableError

    def input(self, role: str, tensor: Tensor, columns: tuple[int, ...] = (), varying: bool = False) -> fx.Node:
        """An input by the values of its rows; `columns` are the context columns of a packed one.

        One that is `varying` has any number of positions along axis 1.
        """
        name = f"{role}_{len(self.inputs)}"
        shape = tuple(tensor.shape[1:])
        axes = (Varying(1, str(length()), min(LENGTHS), None),) if varying else ()
        self.inputs[name] = spec = InputSpec(name, shape, tensor.dtype, role, columns, varying=axes)
        context, candidate = tensor[:REQUESTS], tensor[REQUESTS:]
        if role == "packed":
            context, candidate = context[:, list(columns)], candidate[:, list(spec.candidate_columns)]
        if role != "candidate":
            self.context[name] = context.contiguous()
        if role != "context":
            self.candidate[name] = candidate.contiguous()
        if varying:
            shape = (LENGTH, *shape[1:])
        return self.placeholder(name, _empty(tensor, ROWS, *shape), self.example(name))

    def jagged(self, role: str, lengths: Tensor, *columns: Tensor) -> list[fx.Node]:
        """A jagged input by the lengths and the values of its bags: a node for these lengths, and for each column."""
        name, total = f"{role}_{len(self.inputs)}", BAGS[len(self.totals)]
        own = tuple(Column(f"{name}.{i}", tuple(c.shape[1:]), c.dtype) for i, c in enumerate(columns))
        self.inputs[name] = InputSpec(name, (), own[0].dtype, role, bags=own)
        rows = Jagged(*columns, lengths=lengths)
        side = self.context if role == "context" else self.candidate
        side[name] = rows[:REQUESTS] if role == "context" else rows[REQUESTS:]
        sample = self.example(name)
        self.totals.append(len(sample.values[0]))
        made = [self.placeholder(name, _empty(lengths, ROWS), sample.lengths)]
        self.bags[name] = f"{name}.lengths"
        for i, (column, values) in enumerate(zip(columns, sample.values, strict=True)):
            made.append(self.placeholder(f"{name}_{i}", _empty(column, total, *column.shape[1:]), values))
            self.bags[f"{name}_{i}"] = f"{name}.values_{i}"
        return made

    def example(self, name: str) -> Any:
        """The rows of an input that the sample has."""
        rows = _sample_candidates()
        candidate = {n: t[rows] for n, t in self.candidate.items()}
        return whole_rows(self.inputs[name], self.context, candidate, _sample_owners())

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Record one operator."""
        dry, sample = self._results(target, args, kwargs)
        node = self.graph.call_function(target, args, kwargs)
        self.dry[node], self.sample[node] = dry, sample
        node.meta["val"] = symbolic(dry)
        if any(operand in self.mixed for operand in node.all_input_nodes):
            self.mixed.add(node)
        return node

    def _results(self, target: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Of the dry run and of the sample."""
        dry_kwargs = kwargs | ({"device": "meta"} if "device" in kwargs else {})
        if not self.varies:
            dry = target(*replaced(args, self.dry), **replaced(dry_kwargs, self.dry))
            return dry, target(*replaced(args, self.sample), **replaced(kwargs, self.sample))
        try:
            sample = target(*replaced(args, self.sample), **replaced(kwargs, self.sample))
            dry = target(*replaced(args, self.dry), **replaced(dry_kwargs, self.dry))
        except (RuntimeError, IndexError):
            raise UnstableError from None
        if isinstance(dry, Tensor):
            self._check_same(dry, sample)
        return dry, sample

    def _check_same(self, dry: Tensor, sample: Tensor) -> None:
        """That a result of the sample has the sizes that the dry run tells, and the shortest history leaves some."""
        rows = len(_sample_owners())
        longest, shortest = ([size_of(n, rows, length, self.totals) for n in dry.shape] for length in LENGTHS)
        if longest != [*sample.shape] or min(shortest, default=1) < min(longest, default=1) < 2:
            raise UnstableError

    @property
    def varies(self) -> bool:
        """Whether an input has a length that varies."""
        return any(spec.varying for spec in self.inputs.values())

    def size(self, n: int) -> Any:
        """A size as a graph has it: a number, or what is computed of the rows and of a length."""
        if n not in self.sizes:
            self.sizes[n] = self._size(n)
        return self.sizes[n]

    def _size(self, n: int) -> Any:
        if n == -1:
            return self.call(aten.sym_size.int, next(x for x in self.graph.nodes if x.name in self.inputs), 0)
        if n < 0:
            return self.call(operator.mul, self.size(-1), self.size(-n))
        count, more = per_length(n)
        if not count:
            return n
        if n == LENGTH:
            name = next(name for name, spec in self.inputs.items() if spec.varying)
            return self.call(aten.sym_size.int, next(x for x in self.graph.nodes if x.name == name), 1)
        whole = self.call(operator.mul, self.size(LENGTH), count) if count > 1 else self.size(LENGTH)
        return self.call(operator.add, whole, more) if more else whole

    def shape(self, extent: Sequence[int]) -> list[Any]:
        """Sizes for a view; the one with rows is -1 in some."""
        implied = self.flag()
        return [-1 if n < 0 and implied else self.size(n) for n in extent]

    def view(self, x: fx.Node, extent: Sequence[int]) -> fx.Node:
        return self.call(aten.reshape.default, x, self.shape(extent))

    def add(self, x: fx.Node) -> fx.Node:
        """Keep a result for later steps, scaled down where it is large."""
        self.check_finite(x)
        if self.dry[x].dtype == torch.float32:  # its rounding would hide errors of float64
            raise UnstableError
        if self.is_float(x):
            largest = float(self.sample[x].abs().amax()) if self.sample[x].numel() else 0.0
            if largest > LARGE:
                x = self.call(aten.mul.Tensor, x, 2.0 ** -int(largest).bit_length())
        self.values.append(x)
        return x

    # -- stability

    def check_finite(self, x: fx.Node) -> None:
        if not bool(self.sample[x].isfinite().all()):
            raise UnstableError

    def check_apart(self, x: fx.Node, y: Any) -> None:
        """x and y are nowhere nearly equal (and none hangs on rows that the sample does not have)."""
        if x in self.mixed or (isinstance(y, fx.Node) and y in self.mixed):
            raise UnstableError
        other = self.sample[y] if isinstance(y, fx.Node) else y
        if bool(((self.sample[x] - other).abs() < GAP).any()):
            raise UnstableError

    def check_spread(self, x: fx.Node, axes: Sequence[int]) -> None:
        """No division by a standard deviation of nearly 0."""
        if float(self.sample[x].std(list(axes), correction=0).amin()) < 1e-2:
            raise UnstableError


def _empty(tensor: Tensor, *shape: int) -> Tensor:
    """For a dry run."""
    return torch.empty(shape, dtype=tensor.dtype, device="meta")


@cache
def _sample_owners() -> Tensor:
    """Request 0 with all candidates, then request 2 with its own."""
    return torch.tensor([0] * CANDIDATES + [2] * (OFFSETS[3] - OFFSETS[2]))


@cache
def _sample_candidates() -> Tensor:
    return torch.cat([torch.arange(CANDIDATES), torch.arange(OFFSETS[2], OFFSETS[3])])
