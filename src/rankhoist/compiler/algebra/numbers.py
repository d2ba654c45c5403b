"""Blocks that are one number, which is how a constant mask looks once it is cut like what it masks.

Law, for finite x: `x * 0 = 0`, `x + -inf = -inf`, `where(true, x, y) = x`, `exp(-inf) = 0`, and, where x is not 0,
`0 / x = 0`. A context token that may not look at the candidate does not depend on it: under a causal mask a history is
computed once per request. Joined with a mask that is known later, a constant is cut where it decides (see `known`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rankhoist.compiler.algebra import grid
from rankhoist.compiler.algebra.evaluator import Evaluator
from rankhoist.compiler.algebra.forms import (
    EXACT,
    Block,
    Factor,
    Form,
    Label,
    Labels,
    Positions,
    Span,
    Term,
    cells,
    one_block,
)
from rankhoist.compiler.algebra.known import ANY, MASKING, NEITHER, Known, Signs, known, real, result
from rankhoist.compiler.algebra.masks import BOTH, EITHER
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.graph.lengths import varies
from rankhoist.compiler.graph.node import aten, first_axis


@dataclass(frozen=True)
class Elementwise:
    """An elementwise operator on forms.

    Args:
        args: with `forms` at `places`.
        dtype: of the result.
    """

    op: Any
    args: Sequence[Value]
    kwargs: Mapping[str, Value]
    places: Sequence[int]
    forms: Sequence[Form]
    dtype: torch.dtype

    @property
    def packet(self) -> Any:
        """The operator without its overload."""
        return self.op.overloadpacket

    def arguments(self, shown: Iterable[Any]) -> list[Any]:
        """With something else in the places of the forms."""
        arguments = list(self.args)
        for place, own in zip(self.places, shown, strict=True):
            arguments[place] = own
        return arguments


def folded(evaluator: Evaluator, operation: Elementwise, blocks: Sequence[Block]) -> Block | None:
    """An operator on one cell, whose blocks are given, where a number decides what it gives; `None` where none does."""
    masking, dtype = operation.packet in MASKING, operation.dtype
    own = [(block, _number(evaluator, block, masking)) for block in blocks]
    numbers = operation.arguments(block if number is None else number for block, number in own)
    decisive = [block for block, number in own if number is not None]
    found = _found(operation, numbers) if decisive else None
    if found is None and masking:
        decided = _decided(evaluator, operation, blocks)
        number = None if decided is None else decided.number()
        found = None if number is None else _written(number, numbers, dtype)
        decisive = [b for b in blocks if b.settled and known(evaluator, b.factor.node) is not None]
    if isinstance(found, Block):
        kept = next(form.dtype for form, block in zip(operation.forms, blocks, strict=True) if block is found)
        made = found if kept == dtype else None
    elif found is None or not (dtype.is_floating_point or float(found).is_integer()):
        made = None
    else:
        made = one_block(Factor(evaluator.b.number(found, dtype), ()), blocks[0].labels)
    if made is not None:
        evaluator.pin([b.factor.node for b in decisive])
    return made


# -- one number in a block


def _found(operation: Elementwise, numbers: Sequence[Any]) -> Any:
    """What the operator gives where some operands are numbers: a number, or one of the operands; or None."""
    chosen = _chosen(operation.packet, numbers)
    if chosen is not None:
        return chosen
    if any(isinstance(x, Block) for x in numbers):
        return _law(operation, numbers)
    return _all_numbers(operation, numbers)


def _written(number: Any, numbers: Sequence[Any], dtype: torch.dtype) -> Any:
    """A number of `dtype` as the model's author wrote it, for models that move to another dtype; or None."""
    if number in EXACT or not dtype.is_floating_point:
        return number if number in EXACT else None
    given = [x for x in numbers if isinstance(x, int | float)]
    return next((x for x in given if torch.tensor(x, dtype=dtype).item() == number), None)


def _chosen(packet: Any, known: Sequence[Any]) -> Any:
    """The operand that a mask of one number takes everywhere, or None."""
    if packet is aten.where and len(known) == 3 and not isinstance(known[0], Block):
        return known[1] if known[0] else known[2]
    if packet is aten.masked_fill and not isinstance(known[1], Block):
        return known[2] if known[1] else known[0]
    return None


def _law(operation: Elementwise, known: Sequence[Any]) -> Any:
    """What one number beside another operand says of the result: that it is this operand, or 0; or None."""
    packet, kwargs, dtype = operation.packet, operation.kwargs, operation.dtype
    if len(known) != 2 or kwargs.get("alpha", 1) != 1 or kwargs.get("rounding_mode") is not None:
        return None
    x, y = known
    if packet is aten.sub and y == 0:
        return x
    if packet is aten.div and (y == 1 or x == 0):
        return x
    found = _of_either_side(packet, x, y, dtype)
    return _of_either_side(packet, y, x, dtype) if found is None else found


def _of_either_side(packet: Any, number: Any, other: Any, dtype: torch.dtype) -> Any:
    """The same where operands may change places."""
    true = number is True and dtype == torch.bool  # of whole numbers, it is the last bit
    neutral = (
        (packet is aten.mul and number == 1)
        or (packet is aten.add and number == 0)
        or (packet is aten.maximum and number == -math.inf)
        or (packet in BOTH and true)
        or (packet in EITHER and number == 0)
    )
    return other if neutral else None


def _all_numbers(operation: Elementwise, known: Sequence[Any]) -> float | None:
    """The operator on numbers alone, where the result has no digits to lose in another dtype."""
    if any(not isinstance(x, bool | int | float) for x in known) or not operation.forms:
        return None
    own = zip(operation.places, operation.forms, strict=True)
    given = operation.arguments(torch.tensor(known[place], dtype=form.dtype) for place, form in own)
    result = real(operation.op(*given, **operation.kwargs).item())
    return result if result in EXACT or result in known else None


def _number(evaluator: Evaluator, block: Block, masking: bool) -> Any:
    """The number that a block is; constants count where the operator may be masked by them."""
    if not block.settled:
        return None
    number = block.factor.number
    found = known(evaluator, block.factor.node) if number is None and masking else None
    return number if found is None else found.number()


# -- what a cell's blocks decide


def _decided(evaluator: Evaluator, operation: Elementwise, blocks: Sequence[Block]) -> Known | None:
    """What is known of the operator's result on one cell, along the blocks' labels."""
    if varies(operation.args):
        return None
    shown = operation.arguments(_shown(evaluator, block, blocks[0].visible) for block in blocks)
    return result(operation.op, shown, operation.kwargs)


def _shown(evaluator: Evaluator, block: Block, labels: Labels) -> Known:
    """What is known of a block, an axis per label: of size 1 where the block does not have it."""
    found = known(evaluator, block.factor.node) if block.settled else None
    if found is None or len(set(block.factor.labels)) < len(block.factor.labels):
        unknown = torch.zeros([1] * len(labels), dtype=torch.bool)
        dtype = block.terms[0].factors[0].node.dtype
        return Known(unknown.to(dtype), unknown, infinities(evaluator, block))
    own = block.factor.labels
    order = [own.index(x) for x in labels if x in own]
    rows = first_axis(block.factor.node)
    values, sure = (t[(0,) * rows].permute(order) for t in (found.values, found.sure))
    there = iter(values.shape)  # 1 along lengths that vary
    shape = [next(there) if x in own else 1 for x in labels]
    values, sure = (t.reshape(shape) for t in (values, sure))
    return Known(values, sure, found.infinities)


def infinities(evaluator: Evaluator, block: Block) -> Signs:
    """Of which signs infinities may be in a block, by what masks were filled with."""
    signs = NEITHER
    for term in block.terms:
        found = [known(evaluator, f.node) for f in term.factors]
        own = frozenset().union(*(k.infinities for k in found if k is not None))
        signs |= ANY if own and (len(found) > 1 or term.scale < 0) else own
    return signs


# -- cuts


def aligned(evaluator: Evaluator, operation: Elementwise) -> grid.Aligned:
    """Operands cut alike, and further where a constant decides over what exists per candidate.

    Law: positions of a dim may be cut anywhere. It costs nothing along a dim that no per-candidate block extends along.
    """
    forms = operation.forms
    found = grid.align(evaluator.b, forms)
    rates = {f.rate.per_candidate for f in forms}
    if operation.packet not in MASKING or len(rates) == 1:
        return found
    guides: list[Form] = []
    for dim in range(len(found.dims)):
        segments = _segments(evaluator, operation, found, dim)
        if segments is not None:
            guides.append(_guide(evaluator, found.layout, dim, segments))
            found = grid.align(evaluator.b, [*forms, *guides])
    blocks = {cell: own[: len(forms)] for cell, own in found.blocks.items()}
    return grid.Aligned(found.dims, found.layout, blocks)


def _segments(
    evaluator: Evaluator, operation: Elementwise, found: grid.Aligned, dim: int
) -> tuple[Positions, ...] | None:
    """The positions of a dim by where the result is decided; `None` if that cuts nothing, or is not free."""
    columns: list[list[np.ndarray]] = [[] for _ in found.dims[dim]]
    segments_now = found.dims[dim]
    if (dim,) not in found.layout or any(isinstance(s, Span) for s in segments_now):
        return None
    if len(segments_now) == sum(len(s) for s in segments_now):
        return None
    for cell, blocks in found.blocks.items():
        moving = [b for b in blocks if b.rate.per_candidate]
        labels = blocks[0].labels[dim]
        if any(x in f.labels for b in moving for t in b.terms for f in t.factors for x in labels):
            return None
        if moving:
            decided = _decided(evaluator, operation, blocks[: len(operation.forms)])
            columns[cell[dim]].append(_where_sure(decided, blocks[0].visible, labels))
    segments: list[Positions] = []
    for positions, own in zip(found.dims[dim], columns, strict=True):
        keys = [tuple(row) for row in np.stack(own, 1)] if own else [()] * len(positions)
        for key in dict.fromkeys(keys):
            segments.append(positions[[k == key for k in keys]])
    return tuple(segments) if len(segments) > len(found.dims[dim]) else None


def _where_sure(decided: Known | None, visible: Labels, labels: Labels) -> np.ndarray:
    """Per position of the labels: whether everything there is known."""
    size = math.prod(x.size for x in labels)
    if decided is None:
        return np.zeros(size, dtype=bool)
    sure = decided.sure.expand([1 if varies([x.size]) else x.size for x in visible])
    order = [i for i, x in enumerate(visible) if x in labels] + [i for i, x in enumerate(visible) if x not in labels]
    return sure.permute(order).reshape(size, -1).all(1).numpy()


def _guide(evaluator: Evaluator, layout: Any, dim: int, segments: tuple[Positions, ...]) -> Form:
    """A form of ones that is only cut."""
    one = Term((Factor(evaluator.b.number(1.0, torch.float32), ()),))
    blocks = {cell: Block(((Label(len(segments[cell[0]])),),), (one,)) for cell in cells((segments,))}
    axes = tuple((0,) if entry == (dim,) else () for entry in layout)
    return Form((segments,), blocks, axes, torch.float32)
