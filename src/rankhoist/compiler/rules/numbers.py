"""Blocks that are one number, which is how a constant mask looks once it is cut like what it masks.

Law, for finite x: `x * 0 = 0`, `x + -inf = -inf`, `where(true, x, y) = x`, `exp(-inf) = 0`, and, where x is not 0,
`0 / x = 0`. A context token that may not look at the candidate does not depend on it: under a causal mask a history is
computed once per request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from rankhoist.compiler.algebra.forms import Block, Factor, one_block
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.ir import Node, Rate, aten
from rankhoist.compiler.algebra.values import Value

BOTH = {aten.bitwise_and, aten.logical_and, aten.__and__}
EITHER = {aten.bitwise_or, aten.logical_or, aten.__or__}
MASKING = {aten.where, aten.masked_fill, aten.mul, aten.add, aten.sub, *BOTH, *EITHER}


def folded(
    interpreter: Interpreter, op: Any, args: Sequence[Value], kwargs: dict[str, Value], blocks: Sequence[Block],
    places: Sequence[int], dtypes: Sequence[torch.dtype], dtype: torch.dtype,
) -> Block | None:  # fmt: skip
    """The elementwise operator on one cell where a number decides what it gives; `None` where none does.

    Args:
        blocks: of the operands at `places` of `args`, which have `dtypes`; `dtype` is the result's.
    """
    known: list[Any] = list(args)
    for place, block in zip(places, blocks, strict=True):
        number = _number(interpreter, block, op.overloadpacket in MASKING)
        known[place] = block if number is None else number
    if all(isinstance(x, Block) for x in known):
        return None
    found: Any = _chosen(op.overloadpacket, known)
    if found is None and any(isinstance(x, Block) for x in known):
        found = _law(op.overloadpacket, known, kwargs, dtype)
    elif found is None:
        found = _all_numbers(op, known, kwargs, dict(zip(places, dtypes, strict=True)))
    if isinstance(found, Block):
        kept = dtypes[next(i for i, block in enumerate(blocks) if block is found)]
        result = found if kept == dtype else None
    elif found is None or not (dtype.is_floating_point or float(found).is_integer()):
        result = None
    else:
        result = one_block(Factor(interpreter.b.number(found, dtype), ()), blocks[0].labels)
    if result is not None:
        interpreter.pin(
            [b.factor.node for b, place in zip(blocks, places, strict=True) if not isinstance(known[place], Block)]
        )
    return result


def _chosen(packet: Any, known: Sequence[Any]) -> Any:
    """The operand that a mask of one number takes everywhere, or None."""
    if packet is aten.where and len(known) == 3 and not isinstance(known[0], Block):
        return known[1] if known[0] else known[2]
    if packet is aten.masked_fill and not isinstance(known[1], Block):
        return known[2] if known[1] else known[0]
    return None


def _law(packet: Any, known: Sequence[Any], kwargs: dict[str, Value], dtype: torch.dtype) -> Any:
    """What one number beside a finite operand says of the result: that it is an operand, or a number; or None."""
    if len(known) != 2 or kwargs.get("alpha", 1) != 1 or kwargs.get("rounding_mode") is not None:
        return None
    x, y = known
    if packet is aten.sub and (y == 0 or x == -math.inf):
        return x
    if packet is aten.div and (y == 1 or x == 0):
        return x
    found = _of_either_side(packet, x, y, dtype)
    return _of_either_side(packet, y, x, dtype) if found is None else found


def _of_either_side(packet: Any, number: Any, other: Any, dtype: torch.dtype) -> Any:
    """The same where operands may change places."""
    if packet is aten.mul and number in (0, 1):
        return other if number == 1 else 0.0
    if packet is aten.add and number in (0, -math.inf):
        return other if number == 0 else number
    if packet is aten.maximum and number == -math.inf:
        return other
    true = number is True and dtype == torch.bool  # of whole numbers, it is the last bit
    if packet in BOTH and (true or number == 0):
        return other if true else number
    if packet in EITHER and (true or number == 0):
        return number if true else other
    return None


def _all_numbers(
    op: Any, known: Sequence[Any], kwargs: dict[str, Value], dtypes: dict[int, torch.dtype]
) -> float | None:
    """The operator on numbers alone, where the result has no digits to lose in another dtype."""
    if any(not isinstance(x, bool | int | float) for x in known) or not dtypes:
        return None
    given = [torch.tensor(x, dtype=dtypes[i]) if i in dtypes else x for i, x in enumerate(known)]
    result = op(*given, **{k: v for k, v in kwargs.items() if v is not None}).item()
    exact = result in (0, 1, math.inf, -math.inf) or result in known
    return result if exact else None


def _number(interpreter: Interpreter, block: Block, masking: bool) -> Any:
    """The number that a block is; constants count where the operator may be masked by them."""
    if not block.settled or block.rate is not Rate.WEIGHT:
        return None
    number = block.factor.number
    return _of_constant(interpreter, block.factor.node) if number is None and masking else number


def _of_constant(interpreter: Interpreter, node: Node) -> Any:
    """The one number that a tensor of constants is full of."""
    if node.index not in interpreter.memo.numbers:
        value = interpreter.fixed_value(node)
        uniform = value is not None and value.numel() > 0 and bool((value == value.flatten()[0]).all())
        interpreter.memo.numbers[node.index] = value.flatten()[0].item() if uniform and value is not None else None
    return interpreter.memo.numbers[node.index]
