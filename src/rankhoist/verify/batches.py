"""Batches: R requests with ragged, also empty, blocks of candidates, drawn from rows of example inputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rankhoist.arguments import whole_numbers
from rankhoist.capture import InputSpec, Interface, Jagged, Split, Varying
from rankhoist.capture.inputs import common_rows
from rankhoist.errors import VerificationError

LARGEST = 20  # values in a bag
NOISE = 0.5  # standard deviations of the column, added to a float that was drawn


@dataclass(frozen=True)
class Batch:
    """One call of the hoisted model.

    Attributes:
        context: context inputs `[R, ...]` by name; of a packed input the context columns.
        candidate: candidate inputs `[N, ...]` by name; of a packed input the candidate columns.
        offsets: R + 1 boundaries of the requests' blocks of candidates.
    """

    context: dict[str, Any]
    candidate: dict[str, Any]
    offsets: tuple[int, ...]

    @property
    def candidates(self) -> int:
        return self.offsets[-1]

    @property
    def requests(self) -> int:
        return len(self.offsets) - 1

    def __str__(self) -> str:
        return f"N={self.candidates}, R={self.requests}"

    def reversed(self) -> Batch:
        """The same context with the candidates in reverse order."""
        return replace(self, candidate={name: rows.flip(0) for name, rows in self.candidate.items()})

    def cast(self, interface: Interface, dtype: torch.dtype) -> Batch:
        """For the hoisted model in `dtype`: inputs that were captured in the model's own dtype follow the model."""
        own = {spec.name for spec in interface.inputs.values() if spec.dtype == interface.dtype}

        def moved(side: dict[str, Any]) -> dict[str, Any]:
            return {
                name: rows.to(dtype) if name in own or isinstance(rows, Jagged) else rows for name, rows in side.items()
            }

        return replace(self, context=moved(self.context), candidate=moved(self.candidate))


def arguments(interface: Interface, leaves: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call, from its inputs by name."""
    return interface.call(leaves)


def whole_rows(interface: Interface, batch: Batch) -> dict[str, Any]:
    """The original's inputs `[N, ...]` by name: context repeated for each candidate, packed columns in their places.

    They are copies: a model may write into its inputs.
    """
    counts = torch.tensor(batch.offsets).diff()
    owner = torch.repeat_interleave(torch.arange(batch.requests), counts)

    def rows(spec: InputSpec) -> Any:
        if spec.role == "candidate":
            return batch.candidate[spec.name].clone()
        context = batch.context[spec.name]
        context = context[owner.to(context.device)]
        if spec.role == "context":
            return context
        packed = context.new_empty(batch.candidates, *spec.shape)
        packed[:, list(spec.columns)] = context
        packed[:, list(spec.candidate_columns)] = batch.candidate[spec.name]
        return packed

    return {spec.name: rows(spec) for spec in interface.inputs.values()}


def split_rows(interface: Interface, batch: Batch) -> dict[str, Any]:
    """The hoisted model's inputs by name: `[R, ...]`, `[N, ...]`, or both as a `Split`."""

    def given(spec: InputSpec) -> Any:
        if spec.role == "packed":
            return Split(batch.context[spec.name], batch.candidate[spec.name])
        return (batch.context if spec.role == "context" else batch.candidate)[spec.name]

    return {spec.name: given(spec) for spec in interface.inputs.values()}


def pool(interface: Interface, dtype: torch.dtype, device: torch.device, inputs: Any = None) -> dict[str, Any]:
    """Example rows by input name (default: those of the interface), for a model in this dtype and on this device.

    Raises:
        VerificationError: there are none.
    """
    if inputs is None:
        rows = dict(interface.example)
        if not rows:
            raise VerificationError("the program carries no example inputs to draw from; pass verify(..., inputs=...)")
    elif isinstance(inputs, Mapping):
        rows = interface.leaves((), inputs)
    else:
        rows = interface.leaves((inputs,) if isinstance(inputs, Tensor) else tuple(inputs), {})
    common_rows(rows)
    dtypes = {s.name: dtype if s.dtype == interface.dtype else s.dtype for s in interface.inputs.values()}
    own = {n: dtype if isinstance(rows[n], Jagged) else d for n, d in dtypes.items()}  # columns keep theirs
    return {name: rows[name].detach().to(device, d) for name, d in own.items()}


def draw_all(
    inputs: Sequence[InputSpec], pool: Mapping[str, Any], candidates: Sequence[int], requests: Sequence[int],
    trials: int, seed: int,
) -> list[Batch]:  # fmt: skip
    """So many batches per pair of sizes, of several requests mostly one without candidates.

    Raises:
        VerificationError: there are no sizes, or one is less than 1.
    """
    for name, numbers in (("trials", [trials]), ("candidates", candidates), ("requests", requests)):
        if min(whole_numbers(numbers, name), default=0) < 1:
            raise VerificationError(f"{name} must be 1 or more, got {list(numbers)}")
    sizes = enumerate(itertools.product(requests, candidates, range(trials)))
    return [draw(inputs, pool, n, r, empty=k % (r + 1), seed=seed + k) for k, (r, n, _) in sizes]


def draw(
    inputs: Iterable[InputSpec], pool: Mapping[str, Any], candidates: int, requests: int, empty: int, seed: int
) -> Batch:
    """A random batch.

    Every input (and each side of a packed one) takes its rows from the pool independently of the others, so that ids
    stay in their vocabularies while their combinations are new.

    Args:
        pool: example rows by input name, `[any, ...]`.
        empty: the request that owns no candidate; any other number leaves it to chance.
        seed: of everything that is drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    context: dict[str, Any] = {}
    candidate: dict[str, Any] = {}
    places: dict[str, torch.Tensor] = {}
    for spec in inputs:
        rows = pool[spec.name]
        for own in spec.varying:
            if own.length not in places:
                places[own.length] = _places(own, rows.shape[own.axis], generator)
            rows = rows.index_select(own.axis, places[own.length].to(rows.device))
        if spec.role == "packed":
            context[spec.name] = _drawn(rows[:, list(spec.columns)], requests, generator)
            candidate[spec.name] = _drawn(rows[:, list(spec.candidate_columns)], candidates, generator)
        elif spec.role == "context":
            context[spec.name] = _drawn(rows, requests, generator)
        else:
            candidate[spec.name] = _drawn(rows, candidates, generator)
    return Batch(context, candidate, _offsets(candidates, requests, empty, generator))


def _places(axis: Varying, size: int, generator: torch.Generator) -> torch.Tensor:
    """Positions of an example's axis that varies, with replacement, of a length drawn from what it may have.

    Up to twice as many as the example has, and 1 at least: of nothing many a model computes nothing.
    """
    low = max(axis.low, 1)
    high = max(low, 2 * size if axis.high is None else min(axis.high, 2 * size))
    length = int(torch.randint(low, high + 1, (1,), generator=generator)) if size else 0
    return torch.randint(max(size, 1), (length,), generator=generator)


def _drawn(rows: Any, count: int, generator: torch.Generator) -> Any:
    """`count` rows with replacement; floats get noise within the range of their column, bags other sizes."""
    if isinstance(rows, Jagged):
        return _bags(rows, count, generator)
    chosen = rows[torch.randint(len(rows), (count,), generator=generator).to(rows.device)]
    if not rows.is_floating_point():
        return chosen
    values = rows.double()
    low, high = values.amin(0), values.amax(0)
    # Whole numbers may be ids, flags or lengths that travel in a float matrix: noise would leave the vocabulary.
    fixed = (values == values.round()).all(0) | ~low.isfinite() | ~high.isfinite()
    noise = torch.randn(chosen.shape, generator=generator, dtype=torch.float64).to(rows.device)
    noisy = torch.clamp(chosen + NOISE * values.std(0, correction=0) * noise, low, high)
    return torch.where(fixed, chosen, noisy.to(rows.dtype))


def _bags(rows: Jagged, count: int, generator: torch.Generator) -> Jagged:
    """Bags of 0 to `LARGEST` values, each drawn with replacement from those of the example."""
    total = len(rows.values[0])
    lengths = torch.randint((LARGEST if total else 0) + 1, (count,), generator=generator)
    chosen = torch.randint(max(total, 1), (int(lengths.sum()),), generator=generator).to(rows.device)
    return Jagged.of([column[chosen] for column in rows.values], lengths.to(rows.device))


def _offsets(candidates: int, requests: int, empty: int, generator: torch.Generator) -> tuple[int, ...]:
    """Ragged blocks: every candidate picks its request, some requests being more popular than others."""
    popularity = torch.rand(requests, generator=generator) + 0.05
    if requests > 1 and 0 <= empty < requests:
        popularity[empty] = 0.0
    owner = torch.multinomial(popularity, candidates, replacement=True, generator=generator)
    ends = owner.bincount(minlength=requests).cumsum(0)
    return (0, *ends.tolist())
