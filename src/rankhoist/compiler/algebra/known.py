"""What is known of a mask before any input is, element by element.

Law: `true | x = true`, `false & x = false`, `where(c, x, x) = x`; for x without NaN or the infinity that undoes it,
`x + -inf = -inf` and `x * 0 = 0`. So a constant mask joined with a mask of ids still hides what it hid. What is
computed from inputs is taken to be finite; which infinities a mask was filled with is looked up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankhoist.compiler.algebra.evaluator import Evaluator
from rankhoist.compiler.algebra.masks import BOTH, EITHER, number_of
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.lengths import varies
from rankhoist.compiler.graph.node import Node, Rate, StageArgument, aten, first_axis

MASKING = {aten.where, aten.masked_fill, aten.mul, aten.add, aten.sub, *BOTH, *EITHER}
MOVES = {  # as graphs have them: every value stays what it is
    aten.reshape.default, aten.permute.default, aten.slice.Tensor, aten.select.int, aten.expand.default,
    aten.index_select.default, aten.cat.default, kernels.spread, kernels.repeat_rows,
    aten.view.default, aten.unsqueeze.default, aten.squeeze.dim, aten.transpose.int,  # of weights
}  # fmt: skip
SELECTS = {aten.where, aten.masked_fill, aten.add, aten.maximum, aten.minimum, aten._to_copy}
FAILS = {aten.floor_divide, aten.remainder, aten.fmod}  # on whole numbers, where what is unknown may be 0
LARGEST = 1 << 24  # elements of a row: nothing larger is looked into

Reader = Callable[[Node], Tensor]
Signs = frozenset[int]  # of infinities; NaN counts as both
NEITHER, ANY = frozenset[int](), frozenset({-1, 1})


@dataclass(frozen=True)
class Known:
    """Of a node, over one row: its values, which of them hold whatever the inputs are, and the infinities filled in.

    `values` is 0 where not `sure`. Both have the shape of the node, after a row axis of 1 where it has rows.
    """

    values: Tensor
    sure: Tensor
    infinities: Signs

    def number(self) -> Any:
        """The one number that all elements are for sure, or None."""
        if not self.values.numel() or not bool(self.sure.all()):
            return None
        first = self.values.flatten()[0]
        return real(first.item()) if bool((self.values == first).all()) else None


def real(number: Any) -> Any:
    """A number as it is written without an imaginary part, or None where it has one."""
    return number if not isinstance(number, complex) else None if number.imag else number.real


def known(evaluator: Evaluator, node: Node) -> Known | None:
    """What is known of a node; `None` if nothing is."""
    memo = evaluator.memo.known
    if node.index not in memo:
        memo[node.index] = _found(evaluator, node)
    found: Known | None = memo[node.index]
    return found


def _found(evaluator: Evaluator, node: Node) -> Known | None:
    if node.rate is Rate.WEIGHT and (value := evaluator.fixed_value(node)) is not None:
        return all_of(value)
    if isinstance(node.op, str):
        return None
    if varies(node.shape) or any(varies(x.shape) for x in node.inputs):
        return _of_any_length(evaluator, node)
    if not by_rows(node) or math.prod(node.sizes) > LARGEST:
        return None
    if node.op not in MOVES and not by_elements(node.op):
        return None
    found = {x.index: known(evaluator, x) for x in node.inputs}
    given = {x.index: found[x.index] or _nothing(x) for x in node.inputs}
    if node.op in MOVES:
        return _moved(node, given) if any(found.values()) else None
    operands = [given[a.index] if isinstance(a, Node) else a for a in node.args]
    return result(node.op, operands, node.kwargs)


def by_rows(node: Node) -> bool:
    """Whether it is made of one row in the same way as of many, rows on axis 0 of all that it reads."""
    return node.rows_first and all(x.rows_first for x in node.inputs)


def all_of(value: Tensor) -> Known:
    """Where every element is what it is."""
    return Known(value, torch.ones((), dtype=torch.bool).expand(value.shape), _signs(value))


def _nothing(node: Node) -> Known:
    shape = [1] * first_axis(node) + list(node.shape)
    empty = torch.zeros((), dtype=torch.bool).expand(shape)
    return Known(empty.to(node.dtype), empty, NEITHER)


def _of_any_length(evaluator: Evaluator, node: Node) -> Known | None:
    """No element is looked at: either all are one number, or an infinity may be among them."""
    shape = [1] * first_axis(node) + [1 if varies([size]) else size for size in node.shape]
    number = number_of(evaluator.memo, node)
    if number is not None:
        return all_of(torch.full(shape, number, dtype=node.dtype))
    given = [known(evaluator, x) for x in node.inputs]
    filled = any(isinstance(a, float) and _infinities(a) for a in node.args) or any(k and k.infinities for k in given)
    if not filled or not node.dtype.is_floating_point:
        return None
    unknown = torch.zeros((), dtype=torch.bool).expand(shape)
    return Known(unknown.to(node.dtype), unknown, ANY)


def by_elements(op: Any) -> bool:
    """Whether `result` is told of such an operator."""
    if not isinstance(op, torch._ops.OpOverload) or op.overloadpacket in FAILS:
        return False
    return torch.Tag.pointwise in op.tags or op.overloadpacket in MASKING | {aten._to_copy}


def _moved(node: Node, given: Mapping[int, Known]) -> Known:
    """Elements are known wherever they go."""

    def values(x: Node) -> Tensor:
        return given[x.index].values

    def sure(x: Node) -> Tensor:
        return given[x.index].sure

    signs = frozenset().union(*(given[x.index].infinities for x in node.inputs))
    return Known(moved(node, values, values), moved(node, sure, values), signs)


def moved(node: Node, read: Reader, index: Reader) -> Tensor:
    """One of `MOVES` over one row: of what is read for what it moves, and for its other operands."""
    first, *others = node.args
    what = [read(x) for x in first] if isinstance(first, list | tuple) else read(first)
    op: Any = aten.reshape.default if node.op is aten.view.default else node.op  # it may lie in memory in another way
    made: Tensor = op(what, *(_over_one_row(a, index) for a in others))
    return made


def _over_one_row(argument: Any, index: Reader) -> Any:
    if isinstance(argument, Node):
        return index(argument)
    if isinstance(argument, StageArgument):
        return 1 if argument.name == "rows" else None
    if isinstance(argument, list | tuple):
        return [_over_one_row(a, index) for a in argument]
    return argument


# -- one operator


def result(op: Any, operands: Sequence[Any], kwargs: Mapping[str, Any]) -> Known | None:
    """What is known of an elementwise result: `operands` are `Known`, and numbers; they broadcast."""
    tensors = [x for x in operands if isinstance(x, Known)]
    if not any(bool(x.sure.any()) for x in tensors) and not any(_infinities(x) for x in operands):
        return None
    values = op(*(x.values if isinstance(x, Known) else x for x in operands), **_anywhere(kwargs))
    sure = torch.ones((), dtype=torch.bool)
    for x in tensors:
        sure = sure & x.sure
    decided = _decided(op.overloadpacket, operands) if not {"alpha", "rounding_mode"} & kwargs.keys() else None
    sure = (sure if decided is None else sure | decided).expand(values.shape)
    held = NEITHER if not values.dtype.is_floating_point else _held(op.overloadpacket, operands)
    held = _signs(values) if bool(sure.all()) else held
    return Known(values.masked_fill(~sure, 0), sure, held)


def _anywhere(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in kwargs.items() if k != "device"}


def _decided(packet: Any, operands: Sequence[Any]) -> Tensor | None:
    """Where some operands alone say what comes out."""
    if packet is aten.masked_fill:
        x, condition, y = operands
        return _one_of(condition, y, x)
    if packet is aten.where and len(operands) == 3:
        return _one_of(*operands)
    if packet is aten.sub and len(operands) == 2:
        x, y = operands
        return _sure(x) & (_values(x) == -math.inf) if -1 not in _infinities(y) else None
    if packet not in MASKING or len(operands) != 2:
        return None
    x, y = operands
    return _absorbs(packet, x, y) | _absorbs(packet, y, x)


def _one_of(condition: Known, yes: Any, no: Any) -> Tensor:
    """`where`: the side that is taken is known, or both are and the same."""
    taken = condition.sure & torch.where(condition.values, _sure(yes), _sure(no))
    return taken | (_sure(yes) & _sure(no) & (_values(yes) == _values(no)))


def _absorbs(packet: Any, x: Any, other: Any) -> Tensor:
    """Where x decides, whatever the other operand is."""
    values = _values(x)
    if packet is aten.add:
        allowed, found = 1 not in _infinities(other), values == -math.inf
    elif packet is aten.mul or packet in BOTH:
        allowed, found = not _infinities(other), values == 0
    else:
        allowed, found = values.dtype == torch.bool, values == 1  # of whole numbers, true is the last bit
    return _sure(x) & found & allowed


def _held(packet: Any, operands: Sequence[Any]) -> Signs:
    """Infinities of the result that come from those of the operands."""
    signs = [_infinities(x) for x in operands]
    together = frozenset().union(*signs)
    if packet in SELECTS or not together:
        return together
    if packet is aten.sub:
        return signs[0] | _flipped(signs[1])
    return _flipped(signs[0]) if packet is aten.neg else ANY


def _flipped(signs: Signs) -> Signs:
    return frozenset(-s for s in signs)


def _infinities(x: Any) -> Signs:
    if isinstance(x, Known):
        return x.infinities
    if not isinstance(x, float) or math.isfinite(x):
        return NEITHER
    return ANY if math.isnan(x) else frozenset({1 if x > 0 else -1})


def _signs(value: Tensor) -> Signs:
    if not value.dtype.is_floating_point:
        return NEITHER
    if bool(value.isnan().any()):
        return ANY
    return frozenset(s for s in (-1, 1) if bool((value == s * math.inf).any()))


def _values(x: Any) -> Tensor:
    return x.values if isinstance(x, Known) else torch.tensor(x)


def _sure(x: Any) -> Tensor:
    return x.sure if isinstance(x, Known) else torch.ones((), dtype=torch.bool)
