"""Whether modules that are kept as they are compute every row by itself, as whoever keeps them says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from rankhoist.report.certificate import Check
from rankhoist.runtime import HoistedModel
from rankhoist.runtime.opaque import Kept
from rankhoist.verify.batches import Batch
from rankhoist.verify.measure import FLOAT64_TOLERANCE, difference, scale_of
from rankhoist.verify.original import again, run_hoisted

ROWS = 16  # of a call that are also computed alone


def rows_apart(double: HoistedModel, batches: Sequence[Batch]) -> Check:
    """Every kept module on rows together, as calls of the batches give them, and on each of these rows alone.

    `double` is the hoisted model in float64.
    """
    worst = 0.0
    for name, kept in double.weights.opaque.items():
        for tensors, made in _calls(double, name, batches):
            for row in range(min(kept.call.rows(tensors), ROWS)):
                try:
                    alone = kept([_row(t, axis, row) for t, axis in zip(tensors, kept.call.axes, strict=True)])
                except Exception as error:
                    problem = f"{kept.call.module!r} of one row alone raises {type(error).__name__}: {error}"
                    return Check("opaque", 0.0, FLOAT64_TOLERANCE, problem=problem)
                pairs = zip(alone, made, kept.call.results, strict=True)
                worst = max(worst, *(_distance(a, _row(m, r.axis, row), m) for a, m, r in pairs))
    return Check("opaque", worst, FLOAT64_TOLERANCE)


def _calls(model: HoistedModel, name: str, batches: Sequence[Batch]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """What a call of a kept module is given and returns, in the batches."""
    own = again(model)
    found: list[tuple[list[Tensor], list[Tensor]]] = []

    class Recorded(Kept):
        def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
            made = super().__call__(tensors)
            found.append((list(tensors), made))
            return made

    kept = own.weights.opaque[name]
    recorded = Recorded(kept.call, kept.module, kept.dtypes)
    for arguments in (given for pair in own.weights.arguments for given in pair):
        arguments[:] = [recorded if a is kept else a for a in arguments]
    for batch in batches:
        run_hoisted(own, batch)
        yield from found
        found.clear()


def _row(tensor: Tensor, axis: int | None, row: int) -> Tensor:
    return tensor if axis is None else tensor.narrow(axis, row, 1)


def _distance(alone: Tensor, together: Tensor, all_rows: Tensor) -> float:
    """Relative to the largest number of all rows."""
    return difference([alone], [together], scale_of([all_rows])).error
