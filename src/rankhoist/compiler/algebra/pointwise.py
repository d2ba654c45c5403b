"""Elementwise operators on forms. Law: `f` of blocks is the blocks of `f`, each at the rate of its own operands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any

import torch

from rankhoist.compiler.algebra import grid, reads
from rankhoist.compiler.algebra.contract import Sums
from rankhoist.compiler.algebra.evaluator import Evaluator
from rankhoist.compiler.algebra.forms import ARITHMETIC, Block, Elsewhere, Factor, Form, Labels, one_block
from rankhoist.compiler.algebra.numbers import Elementwise, aligned, folded
from rankhoist.compiler.algebra.products import arrange, size
from rankhoist.compiler.algebra.values import Value, as_form
from rankhoist.compiler.graph.lengths import Length
from rankhoist.compiler.graph.node import Op, aten

NUMBERS = int | float | bool | complex | Length


def elementwise(
    evaluator: Evaluator, op: Op, args: Sequence[Value], kwargs: Mapping[str, Value], dtype: torch.dtype
) -> Form:
    """`f(x, y, ...)`: block by block. A detachment changes nothing but gradients."""
    if op is aten.detach.default and not evaluator.program.training:
        return as_form(args[0])
    places = [i for i, a in enumerate(args) if not isinstance(a, NUMBERS | None | list | torch.dtype)]
    operation = _on(evaluator, op, args, kwargs, places, dtype)

    def build(blocks: list[Block]) -> Block:
        known = folded(evaluator, operation, blocks)
        return known if known is not None else _evaluated(evaluator, operation, blocks)

    return grid.map_blocks(aligned(evaluator, operation), dtype, build)


def arithmetic(
    evaluator: Evaluator, op: Op, args: Sequence[Value], kwargs: Mapping[str, Value], dtype: torch.dtype,
    build: Callable[[list[Block]], Block | None],
) -> Form:  # fmt: skip
    """The same where `build` says what becomes of a cell's unevaluated blocks: used where that can save work."""
    places = [i for i, a in enumerate(args[:2]) if not isinstance(a, int | float)]
    operation = _on(evaluator, op, args, kwargs, places, dtype)
    if dtype not in ARITHMETIC or any(f.dtype != dtype for f in operation.forms):
        raise Elsewhere(f"is no arithmetic of {dtype} alone: {', '.join(str(f.dtype) for f in operation.forms)}")

    def as_block(x: Any, like: Block) -> Block:
        return x if isinstance(x, Block) else one_block(Factor(evaluator.b.number(x, dtype), ()), like.labels)

    def choose(own: list[Block]) -> Block:
        known = folded(evaluator, operation, own)
        if known is not None:
            return known
        moving = any(block.rate.per_candidate for block in own)
        lazy = build([as_block(x, own[0]) for x in operation.arguments(own)[:2]]) if moving else None
        return lazy if lazy is not None and grid.worth_keeping(lazy, evaluator.workload) else evaluated(own)

    evaluated = partial(_evaluated, evaluator, operation)

    return grid.map_blocks(aligned(evaluator, operation), dtype, choose)


def plus(evaluator: Evaluator, x: Form, y: Form) -> Form:
    """`x + y` of one dtype inside a rule, unevaluated but where a number decides it."""
    operation = Elementwise(aten.add.Tensor, [x, y], {}, (0, 1), [x, y], x.dtype)

    def build(blocks: list[Block]) -> Block:
        known = folded(evaluator, operation, blocks)
        return known if known is not None else grid.add_blocks(blocks, (1.0, 1.0))

    return grid.map_blocks(aligned(evaluator, operation), x.dtype, build)


def product(evaluator: Evaluator, blocks: list[Block]) -> Block | None:
    """Terms times terms; `None` where the per-candidate factors of both sides make something as large as the block, or
    where there would be too many terms.
    """
    if evaluator.too_long([len(block.terms) for block in blocks]):
        return None
    block = grid.multiply_blocks(blocks)
    sums = Sums(evaluator.b, evaluator.workload, frozenset(block.visible))
    moving = [t for t in block.terms if sum(f.node.rate.per_candidate for f in t.factors) > 1]
    return block if all(map(sums.small, moving)) else None


def power(evaluator: Evaluator, powers: Sequence[int], blocks: list[Block]) -> Block | None:
    """The product of powers of blocks, 1 or -1; a reciprocal of what is known per candidate is a factor of what is not,
    `c / z = c (1 / z)`, where it is small.
    """
    for p, block in zip(powers, blocks, strict=True):
        divided = any(b.settled and b.rate.per_candidate for b in blocks if b is not block)  # is known per candidate
        if p < 0 and block.rate.per_candidate and (divided or not _narrow(block)):
            return None
    return product(evaluator, [b if p > 0 else _inverse(evaluator, b) for p, b in zip(powers, blocks, strict=True)])


def _narrow(block: Block) -> bool:
    """Whether it is the same along so many axes that it has half of the elements at most."""
    own = {x for term in block.terms for f in term.factors for x in f.labels} & {*block.visible}
    return bool(2 * size(own) <= size(block.visible))


def _inverse(evaluator: Evaluator, block: Block) -> Block:
    """1 / x of a block, evaluated."""
    f = evaluator.settle(block).factor
    return one_block(
        Factor(evaluator.b.pointwise(aten.reciprocal.default, (f.node,), f.node.dtype), f.labels), block.labels
    )


def cast(evaluator: Evaluator, value: Form, dtype: torch.dtype) -> Form:
    """All blocks in another dtype; a number that both have stays one."""
    if dtype == value.dtype:
        return value
    value = evaluator.tidy(value)
    operation = Elementwise(aten._to_copy.default, [value], {"dtype": dtype}, (0,), [value], dtype)
    blocks = {}

    def build(given: Sequence[Block]) -> Block:
        return one_block(_cast_factor(evaluator, evaluator.settle(given[0]).factor, dtype), given[0].labels)

    for cell, block in value.blocks.items():
        known = folded(evaluator, operation, [block])
        blocks[cell] = known if known is not None else reads.through(evaluator, [block], build)
    return Form(value.dims, blocks, value.layout, dtype)


def _on(
    evaluator: Evaluator, op: Op, args: Sequence[Value], kwargs: Mapping[str, Value], places: Sequence[int],
    dtype: torch.dtype,
) -> Elementwise:  # fmt: skip
    """An operator on the tensors at places of its arguments."""
    return Elementwise(op, args, kwargs, places, [evaluator.tidy(as_form(args[i])) for i in places], dtype)


def _evaluated(evaluator: Evaluator, operation: Elementwise, blocks: Sequence[Block]) -> Block:
    """The operator on one cell's blocks; on what these are read from, where that is less."""
    return reads.through(evaluator, blocks, partial(_called, evaluator, operation))


def _called(evaluator: Evaluator, operation: Elementwise, blocks: Sequence[Block]) -> Block:
    forms, factors = operation.forms, [evaluator.settle(block).factor for block in blocks]
    labels = _all_labels(blocks[0], factors)
    if not labels and len({f.dtype for f in forms}) > 1:
        factors = _promoted(evaluator, factors, forms)
    # A 0-dim tensor must stay one: it takes no part in type promotion.
    own = zip(factors, forms, strict=True)
    shown = operation.arguments(arrange(evaluator.b, x, labels) if f.layout else x.node for x, f in own)
    made = evaluator.b.pointwise(operation.op, shown, operation.dtype, _plain(operation.kwargs))
    return one_block(Factor(made, labels), blocks[0].labels)


def _promoted(evaluator: Evaluator, factors: Sequence[Factor], forms: Sequence[Form]) -> list[Factor]:
    """Each in the dtype that the operator would bring it to; it leaves 0-dim tensors aside, as blocks of a larger form
    may be.
    """

    def kind(dtype: torch.dtype) -> tuple[bool, ...]:
        return dtype == torch.bool, dtype.is_floating_point, dtype.is_complex

    result = []
    for factor, own in zip(factors, forms, strict=True):
        alike = [f.dtype for f in forms if f.layout and kind(f.dtype) == kind(own.dtype)]
        dtype = reduce(torch.promote_types, alike) if alike else own.dtype
        result.append(factor if dtype == own.dtype else _cast_factor(evaluator, factor, dtype))
    return result


def _cast_factor(evaluator: Evaluator, f: Factor, dtype: torch.dtype) -> Factor:
    node = evaluator.b.call(aten._to_copy.default, (f.node,), f.node.rate, f.node.shape, dtype, kwargs={"dtype": dtype})
    return Factor(node, f.labels)


def _all_labels(block: Block, factors: Sequence[Factor]) -> Labels:
    """Every label some factor has, in the order of the factor computed most often."""
    leader = max(factors, key=lambda f: (f.node.rate, len(f.labels)))
    have = {x for f in factors for x in f.labels}
    missing = [x for x in block.visible if x in have and x not in leader.labels]
    return (*missing, *leader.labels) if missing else leader.labels


def _plain(kwargs: Mapping[str, Value]) -> dict[str, Any]:
    return {k: v for k, v in kwargs.items() if k not in ("layout", "device", "pin_memory", "memory_format")}
