"""Compare results of the same batches from two sides, and say in a `Check` where they differ most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankhoist.errors import VerificationError
from rankhoist.report.certificate import Check, Element
from rankhoist.verify.batches import Batch
from rankhoist.verify.measure import Difference, Outputs, difference, half_of_the_digits, mismatch, scale_of, tolerance

Result = Outputs | str  # or how it failed
Leaves = list[Any]  # of one output, one per batch


@dataclass(frozen=True)
class Comparison:
    """What both sides made of each batch."""

    batches: Sequence[Batch]
    actual: Sequence[Result]
    expected: Sequence[Result]

    def problem(self, *, same_dtype: bool = False) -> str | None:
        """The first batch whose results cannot be compared element by element, and why."""
        for batch, a, e in zip(self.batches, self.actual, self.expected, strict=True):
            if isinstance(a, str) or isinstance(e, str):
                return f"for {batch}: {a if isinstance(a, str) else e}"
            reason = mismatch(a, e, same_dtype=same_dtype)
            if reason:
                return f"for {batch}: {reason}"
        return None

    def by_output(self) -> dict[str, tuple[Leaves, Leaves]]:
        """Output name -> its leaves on both sides; only where there is no problem."""
        actual, expected = ([r for r in side if isinstance(r, Outputs)] for side in (self.actual, self.expected))
        names = expected[0].names
        return {n: ([r.leaves[i] for r in actual], [r.leaves[i] for r in expected]) for i, n in enumerate(names)}

    def element(self, output: str, found: Difference) -> Element | None:
        """The element where a difference was found."""
        if found.at is None:
            return None
        at, index = found.at
        actual, expected = (float(side[at][index]) for side in self.by_output()[output])
        row, rest = (index[0], index[1:]) if index else (None, ())
        batch = self.batches[at]
        return Element(output, row, rest, actual, expected, batch.candidates, batch.requests)


@dataclass(frozen=True)
class Own:
    """What the original makes of each batch in its own dtype, and of some, by number, with its sums term by term."""

    results: Sequence[Outputs]
    term_by_term: Mapping[int, Outputs]

    def error(self, leaf: int, truths: Leaves, dtype: torch.dtype) -> float:
        """The larger error of the two in one output; more than half of the digits is no rounding, but a choice."""
        scale = scale_of(truths)
        error = difference([r.leaves[leaf] for r in self.results], truths, scale).error
        added = [r.leaves[leaf] for r in self.term_by_term.values()]
        other = difference(added, [truths[k] for k in self.term_by_term], scale).error
        return max(error, other) if other <= half_of_the_digits(dtype) else error


def exact(name: str, comparison: Comparison, allowed: float) -> Check:
    """Errors against one tolerance for all outputs."""
    problem = comparison.problem()
    if problem:
        return Check(name, math.inf, allowed, problem=problem)
    found = {output: difference(a, e, scale_of(e)) for output, (a, e) in comparison.by_output().items()}
    output = max(found, key=lambda o: found[o].error)
    return Check(name, found[output].error, allowed, worst=comparison.element(output, found[output]))


def rounded(name: str, truth: Comparison, own: Own, dtype: torch.dtype) -> Check:
    """Errors against the original's `own`; shows the output that comes closest to its tolerance, or exceeds it most."""
    by_itself = Comparison(truth.batches, truth.actual, own.results)
    problem = by_itself.problem(same_dtype=True)
    if problem:
        return Check(name, math.inf, tolerance(0.0, dtype), problem=problem)
    originals = by_itself.by_output()
    checks = []
    for leaf, (output, (actual, expected)) in enumerate(truth.by_output().items()):
        original = originals[output][1]
        accepted = [_accepted(*leaves) for leaves in zip(actual, expected, original, strict=True)]
        found = difference(actual, accepted, scale_of(expected))
        own_error = own.error(leaf, expected, dtype) if _floating(expected) else 0.0
        checks.append(Check(name, found.error, tolerance(own_error, dtype), own_error, truth.element(output, found)))
    return max(checks, key=lambda check: check.error / check.tolerance)


def _floating(leaves: Leaves) -> bool:
    return all(isinstance(x, Tensor) and x.is_floating_point() for x in leaves)


def _accepted(actual: Any, truth: Any, original: Any) -> Any:
    """An integer may come out as in the truth or as in the original: rounding decides which side of a tie it is."""
    if not isinstance(truth, Tensor) or truth.is_floating_point():
        return truth
    return torch.where(actual == original, actual, truth)


def check_numbers(truths: Sequence[Outputs], batches: Sequence[Batch]) -> None:
    """That there is something to compare: what is no number equals whatever is none.

    Raises:
        VerificationError: of an output no number is one, in any batch; says which inputs have such rows.
    """
    for i, name in enumerate(truths[0].names):
        leaves = [x for t in truths if isinstance(x := t.leaves[i], Tensor) and x.numel()]
        if leaves and all(bool(x.isnan().all()) for x in leaves):
            given = [pair for b in batches for side in (b.context, b.candidate) for pair in side.items()]
            found = dict.fromkeys(n for n, x in given if isinstance(x, Tensor) and bool(x.isnan().any()))
            where = f": input {', '.join(map(repr, found))} has rows with NaN" if found else ""
            raise VerificationError(
                f"the original's {name} is NaN for all rows that were drawn, so nothing is compared{where}. Pass rows "
                "of which it makes numbers, verify(..., inputs=rows)"
            )
