"""Models that cut the rows of a call into pieces of so many, as ghost batch norms do, and loops that save memory:

    torch.cat([norm(p) for p in x.chunk(math.ceil(len(x) / 128))])        torch.cat([net(p) for p in x.split(1000)])

How many pieces there are is a number to Python, which torch.export refuses but for calls of one piece. What it exports
for these is held beside the model on calls of several: where rows do not meet, `cat([f(p) for p in pieces]) = f(x)`.
Equal rows hide that they meet, as in `p - p.mean(0)`, so inputs that are the same in all rows of an example are varied.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rankhoist.capture.alike import at_rows, leaves_alike, rows_of
from rankhoist.capture.as_called import may_be_called
from rankhoist.capture.export import MAX_ROWS, export, quiet
from rankhoist.capture.varying import Axes
from rankhoist.errors import ExportError

TRIES = 3  # each is another export: an example of several pieces says more rows than those of one
FEWEST = 3  # rows of a piece: torch.export takes two for a constant
LONGEST = 2**12  # rows of a piece, so that calls of several are soon computed
BOUNDS = re.compile(r"rows = Dim\('rows'.*max=(\d+)\)| //? (\d+)\)")  # as torch says where it refuses


def in_pieces(
    model: nn.Module, bound: inspect.BoundArguments, varying: Axes, strict: bool
) -> torch.export.ExportedProgram:
    """A model's export, also where torch.export takes but calls of so many rows that they are one piece.

    Raises:
        ExportError: it refuses these as well, or the model computes something else of several pieces.
    """
    try:
        return export(model, bound, varying=varying, strict=strict)
    except ExportError as refusal:
        program = None if varying else _of_one_piece(model, bound, strict, refusal)
        if program is None:
            raise
        return program


def _of_one_piece(
    model: nn.Module, bound: inspect.BoundArguments, strict: bool, refusal: ExportError
) -> torch.export.ExportedProgram | None:
    for _ in range(TRIES):
        most = _rows_of_a_piece(refusal)
        if most is None:
            break
        try:
            program = export(model, bound, strict=strict, most=most)
        except ExportError as error:
            refusal = error
        else:
            _take_more(program, most)
            return program if _holds_of_more(model, bound, program, most) else None
    return None


def _rows_of_a_piece(refusal: ExportError) -> int | None:
    """The most rows that torch takes, or that the model divides by."""
    found = [int(most or divisor) for most, divisor in BOUNDS.findall(str(refusal.__cause__))]
    return min(found) if found and FEWEST <= min(found) <= LONGEST else None


def _take_more(program: torch.export.ExportedProgram, most: int) -> None:
    """Raise the number of rows that a program checks its calls for."""
    for symbol, own in program.range_constraints.items():
        if own.upper == most:
            program.range_constraints[symbol] = type(own)(own.lower, MAX_ROWS)


def _holds_of_more(
    model: nn.Module, bound: inspect.BoundArguments, program: torch.export.ExportedProgram, most: int
) -> bool:
    """Whether a program scores calls of several pieces as its model does: rows of the example, in no order."""
    if not may_be_called(model, program):
        return False
    given, random = (bound.args, bound.kwargs), torch.Generator().manual_seed(0)

    def drawn(count: int) -> Any:
        return at_rows(torch.randint(rows_of(given), (count,), generator=random).tolist(), given)

    try:
        with torch.no_grad(), quiet():
            run = program.module(check_guards=False)
            calls = [drawn(count) for count in (most + 1, 2 * most, 2 * most + 1, min(33 * most, 5 * LONGEST) - 1)]
            return all(_alike(run, model, call) for call in calls) and all(
                _alike(run, model, call) is not False for call in _varied(drawn(2 * most + 1), random)
            )
    except Exception:  # whatever it is, it is no proof
        return False


def _alike(run: Callable[..., Any], model: nn.Module, call: Any) -> bool | None:
    """Whether a program scores as its model does; None where that fails."""
    try:
        truth = model(*call[0], **call[1])
    except Exception:  # of values that it does not know, as ids that are in no table
        return None
    return leaves_alike(run(*call[0], **call[1]), truth)


def _varied(call: Any, random: torch.Generator) -> Iterator[Any]:
    """Calls of which one tensor has other numbers in every row, for each tensor a column of which is one number."""
    leaves, structure = pytree.tree_flatten(call)
    for n, x in enumerate(leaves):
        if isinstance(x, Tensor) and not x.is_complex() and bool((x == x[:1]).all(0).any()):
            yield pytree.tree_unflatten([*leaves[:n], _other(x, random), *leaves[n + 1 :]], structure)


def _other(x: Tensor, random: torch.Generator) -> Tensor:
    """Numbers of the size of a column's largest; whole ones from 0 to it, which are ids where it is one."""
    largest = x.double().nan_to_num(0, 0, 0).abs().amax(0).clamp(min=1)
    if x.is_floating_point() and not torch.equal(x, x.round()):
        return (torch.randn(x.shape, generator=random).double() * largest).to(x.dtype)
    return (torch.rand(x.shape, generator=random).double() * (largest + 1)).floor().to(x.dtype)
