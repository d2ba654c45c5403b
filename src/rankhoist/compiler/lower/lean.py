"""Fewer and larger operators for the same values: the last step before a plan is counted and emitted.

* `x + z W` is one product that starts from x (a weight, a request's row, or another product: sums of products pile up
  in one tensor);
* `x + a * b` is one pass over memory; where some are broadcast, written over one that is not;
* a number of each row times a row of weights, or of the request, is a product where that is faster (`outer.py`);
* a large result of small operands is made in the order in which it is read (`arranged.py`);
* linear maps of the same tensor are one product, cut apart by views; so are, per request, maps by the same weight;
* a chain of maps that ends with few columns is taken from its end (`chains.py`);
* several embedding tables are read by one gather (`tables.py`);
* sums and softmaxes over few elements run across them (`short.py`);
* `relu(x + z W)`, with x of the request, is one kernel where a machine has such;
* weights are padded to sizes that suit a kernel (`aligned.py`).

Only what has one reader is merged into its reader, so nothing is computed twice.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from rankhoist.compiler.graph import activations, kernels
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import OWNER, Node, Op, Rate, aten, first_axis, join, live_nodes
from rankhoist.compiler.graph.operators import row
from rankhoist.compiler.lower.aligned import aligned_product
from rankhoist.compiler.lower.arranged import arranged_before
from rankhoist.compiler.lower.chains import from_the_end
from rankhoist.compiler.lower.limits import Limits
from rankhoist.compiler.lower.outer import outer_product
from rankhoist.compiler.lower.short import across_rows, by_elements
from rankhoist.compiler.lower.tables import one_gather

PRODUCTS = {aten.linear.default, kernels.linear_from, kernels.request_linear}
FROM_A_ROW = {kernels.linear_from, kernels.request_linear_from}


def lean(builder: Builder, outputs: Sequence[Any], limits: Limits, reordered: bool = False) -> list[Any]:
    """`outputs` by fewer operators, where larger ones gain something; with chains of products in another order."""
    readers = None
    for make in (
        *([_reordered] if reordered else []),
        *([_short] if limits.short else []),
        *([_arranged] if limits.trained else []),
        _outer,
        _fused,
        _joined,
        _stacked,
        _gathered,
        *([_ended] if limits.ends else []),
        *([_aligned] if limits.aligned > 1 else []),
    ):
        readers = readers or _Readers(outputs, limits)
        made = _rebuilt(builder, outputs, readers, make)
        if any(new is not old for new, old in zip(made, outputs, strict=True)):
            outputs, readers = made, None
    return list(outputs)


Make = Callable[[Builder, Node, "_Readers", Callable[[Node], Node]], "Node | None"]


class _Readers:
    """Who reads what, before the rewrite."""

    def __init__(self, outputs: Sequence[Any], limits: Limits) -> None:
        kept = [o for o in outputs if isinstance(o, Node)]
        self.limits = limits
        self.nodes = live_nodes(kept)
        self.count = collections.Counter(x.index for n in self.nodes for x in n.inputs)
        self.count.update(o.index for o in kept)

    @functools.cached_property
    def groups(self) -> dict[int, list[Node]]:
        return _groups(self.nodes, self.limits.wide)

    @functools.cached_property
    def stacks(self) -> dict[int, list[Node]]:
        return _stacks(self.nodes, self.limits.small)

    def once(self, node: Node) -> bool:
        return self.count[node.index] == 1


def _rebuilt(builder: Builder, outputs: Sequence[Any], readers: _Readers, make: Make) -> list[Any]:
    """Every node anew over its rewritten operands, operands first; `make` may give another node for it."""
    done: dict[int, Node] = {}

    def value(node: Node) -> Node:
        if node.index not in done:
            builder.source = node.source
            done[node.index] = make(builder, node, readers, value) or builder.again(node, value)
        return done[node.index]

    for node in readers.nodes:
        value(node)
    return [value(o) if isinstance(o, Node) else o for o in outputs]


# -- rewrites with a file of their own


def _reordered(builder: Builder, node: Node, readers: _Readers, value: Callable[[Node], Node]) -> Node | None:
    """A chain from its short end."""
    return from_the_end(builder, node, readers.once, value)


def _short(builder: Builder, node: Node, readers: _Readers, value: Callable[[Node], Node]) -> Node | None:
    """Across such an axis rather than along it."""
    return by_elements(builder, node, readers.once, value) or across_rows(builder, node, value)


def _arranged(builder: Builder, node: Node, readers: _Readers, value: Callable[[Node], Node]) -> Node | None:
    """A permuted result of small operands."""
    return arranged_before(builder, node, readers.once, value)


def _aligned(builder: Builder, node: Node, readers: _Readers, value: Callable[[Node], Node]) -> Node | None:
    """A product by a padded weight."""
    return aligned_product(builder, node, readers.limits.aligned, value)


def _outer(builder: Builder, node: Node, readers: _Readers, value: Callable[[Node], Node]) -> Node | None:
    """A number of each row times a wide row, as a product."""
    return outer_product(builder, node, value) if node.shape[-1:] >= (readers.limits.outer,) else None


def _gathered(builder: Builder, node: Node, readers: _Readers, value: Callable[[Node], Node]) -> Node | None:
    """One gather for several tables."""
    return one_gather(builder, node, readers.limits, readers.once, value)


# -- sums


def _fused(builder: Builder, node: Node, readers: _Readers, value: Callable[[Node], Node]) -> Node | None:
    """A sum with a product as one operator."""
    if node.op is not aten.add.Tensor or node.kwargs or not all(isinstance(a, Node) for a in node.args):
        return None
    x, y = node.args
    if x is y:
        return None
    for total, part in ((x, y), (y, x)):
        made = _sum_with_product(builder, node, total, part, readers, value)
        if made is not None:
            return made
    for total, part in ((x, y), (y, x)):
        if part.op is aten.mul.Tensor and readers.once(part) and not part.kwargs:
            made = _sum_with_factors(builder, node, total, part.args, readers, value)
            if made is not None:
                return made
    return None


def _sum_with_factors(
    builder: Builder, node: Node, total: Node, factors: Sequence[Any], readers: _Readers, value: Callable[[Node], Node]
) -> Node | None:
    """`total + a * b` in one pass, written over one of them that is new and is not broadcast, if there is such."""
    operands: list[Any] = [total, *factors]
    if not node.dtype.is_floating_point or not all(isinstance(x, Node) and x.dtype == node.dtype for x in operands):
        return None
    if readers.limits.trained and not all(_whole(node, x) for x in operands):
        return None  # gradients of what broadcasts are those of the operators apart
    op: Op = aten.addcmul.default
    if not (_whole(node, total) and _over(total, readers)):
        for own, scale in (factors, factors[::-1]):
            if node.rate.per_candidate and _whole(node, own) and _over(own, readers):
                op, operands = kernels.scaled_from, [own, scale, total]
                break
    return builder.call(op, [value(x) for x in operands], node.rate, node.shape, node.dtype)


def _whole(node: Node, x: Node) -> bool:
    """A tensor of the result's shape and rows."""
    return x.shape == node.shape and _same_rows(x, node)


def _over(x: Node, readers: _Readers) -> bool:
    """Whether the result may be written over it: it is new, and read here alone, also by no gradient."""
    return not readers.limits.trained and readers.once(x) and x.rows_first and row(x.op).new


def _sum_with_product(
    builder: Builder, node: Node, total: Node, part: Node, readers: _Readers, value: Callable[[Node], Node]
) -> Node | None:
    """`total + z W`, where the product has the shape of the sum, and total that shape or one row's last axis."""
    inner = part.args[0] if part.op is aten.reshape.default and readers.once(part) else part
    if not isinstance(inner, Node) or not _plain_product(inner) or not readers.once(inner):
        return None
    biased = inner.op is kernels.linear_from or (inner.op is aten.linear.default and len(inner.args) != 2)
    if biased or math.prod(part.shape) != math.prod(node.shape) or not node.rows_first:
        return None
    product = value(inner)
    if product.op is not inner.op or total.dtype != inner.dtype or total.dtype != node.dtype:
        return None
    made: Node | None = None
    if total.shape == node.shape and _same_rows(total, product):
        made = _onto(builder, builder.reshape(value(total), inner.shape), product)
    elif math.prod(total.shape) == inner.shape[-1] and (total.shape[-1:] == inner.shape[-1:] or len(inner.shape) == 1):
        made = _from(builder, value(total), product, inner.shape[-1:])
    elif readers.limits.ends and total.op is kernels.spread and total.shape == node.shape and node.dtype == total.dtype:
        made = _from(builder, value(total), product, inner.shape)
    return None if made is None else builder.reshape(made, node.shape)


def _plain_product(node: Node) -> bool:
    """Rows times a matrix; no original operator over tensors whose first axis is not the rows."""
    if node.op not in PRODUCTS or not node.rows_first or node.rate is Rate.WEIGHT:
        return False
    return bool(node.args[1].rate <= Rate.REQUEST)


def _same_rows(x: Node, y: Node) -> bool:
    """Both have the rows of the request stage, or both those of the candidate stage, none of them broadcast."""
    rows = x.rate is not Rate.WEIGHT and x.rate.per_candidate == y.rate.per_candidate
    return rows and x.op is not kernels.spread


def _onto(builder: Builder, total: Node, product: Node) -> Node:
    """Another per-candidate tensor plus a product."""
    op = kernels.linear_onto if product.op is aten.linear.default else kernels.request_linear_onto
    rate = join((total.rate, product.rate))
    madds = product.work.multiply_adds
    return builder.call(op, (total, *product.args), rate, product.shape, product.dtype, multiply_adds=madds)


def _from(builder: Builder, start: Node, product: Node, own: Sequence[int]) -> Node | None:
    """A row of the model or of the request plus a product; of the request, also a tensor as large as a row's."""
    madds, shape, dtype = product.work.multiply_adds, product.shape, product.dtype
    if start.op is kernels.spread:
        start = start.args[0]
    if start.rate.per_candidate:
        return None
    start = builder.reshape(start, own)
    linear = product.op is aten.linear.default
    if len(own) > 1 and not linear:
        return None
    if start.rate is Rate.WEIGHT:
        if not linear:
            return None
        args = (*product.args, start)
        return builder.call(aten.linear.default, args, product.rate, shape, dtype, multiply_adds=madds)
    if not product.rate.per_candidate:
        return None
    if linear:
        args = (*product.args, start, OWNER)
        return builder.call(kernels.linear_from, args, Rate.PAIR, shape, dtype, multiply_adds=madds)
    x, m, offsets = product.args
    args = (x, m, start, OWNER, offsets)
    return builder.call(kernels.request_linear_from, args, Rate.PAIR, shape, dtype, multiply_adds=madds)


# -- products of the same tensor


def _groups(nodes: Sequence[Node], wide: int) -> dict[int, list[Node]]:
    """Linear maps of one tensor by weights, with the same kind of start: member -> all members."""
    found: dict[Any, list[Node]] = {}
    for n in nodes:
        if _plain_product(n) and n.op is not kernels.request_linear and n.shape[-1] < wide:
            weights = n.args[1:] if n.op is aten.linear.default else n.args[1:2]
            by_row = n.op is not kernels.linear_from or len(n.args[2].shape) == 1
            if by_row and all(w.rate is Rate.WEIGHT for w in weights):
                found.setdefault((n.args[0].index, n.op, len(n.args)), []).append(n)
    return {n.index: group for group in found.values() if len(group) > 1 for n in group}


def _joined(builder: Builder, node: Node, readers: _Readers, value: Callable[[Node], Node]) -> Node | None:
    """One product for all linear maps of a tensor; each is a slice of it."""
    group = readers.groups.get(node.index)
    if group is None:
        return None
    x = value(node.args[0])
    parts = [[value(a) for a in n.args[1:] if isinstance(a, Node)] for n in group]
    rest = [OWNER] if node.op is kernels.linear_from else []
    args = [x, *(builder.cat(list(column), 0) for column in zip(*parts, strict=True)), *rest]
    shape = [*node.shape[:-1], sum(n.shape[-1] for n in group)]
    madds = sum(n.work.multiply_adds for n in group)
    made = builder.call(node.op, args, node.rate, shape, node.dtype, multiply_adds=madds)  # type: ignore[arg-type]
    start = sum(n.shape[-1] for n in group[: group.index(node)])
    at = len(shape) - 1 + first_axis(made)
    cut = (made, at, start, start + node.shape[-1], 1)
    return builder.call(aten.slice.Tensor, cut, made.rate, node.shape, node.dtype, free=True)


# -- products by the same weight


def _stacks(nodes: Sequence[Node], small: int) -> dict[int, list[Node]]:
    """Maps of request tensors by one weight, as far from the end as each other: member -> all members.

    None of them reads another, and joining several such groups makes no cycle, for every path leads nearer to the end.
    """
    from_end: dict[int, int] = {}
    found: dict[Any, list[Node]] = {}
    for n in reversed(nodes):
        own = n.op is aten.linear.default and n.rate is Rate.REQUEST and _plain_product(n) and len(n.args) == 2
        step = from_end.get(n.index, 0)
        if own and len(n.shape) <= 2 and math.prod(n.shape[:-1]) * n.args[1].shape[1] <= small:
            found.setdefault((n.args[1].index, step), []).append(n)
            step += 1
        for x in n.inputs:
            from_end[x.index] = max(from_end.get(x.index, 0), step)
    return {n.index: group for group in found.values() if len(group) > 1 for n in group}


def _stacked(builder: Builder, node: Node, readers: _Readers, value: Callable[[Node], Node]) -> Node | None:
    """One product for all maps by a weight: `[x_1; x_2] W`, cut apart by views."""
    group = readers.stacks.get(node.index)
    if group is None:
        return None
    width, inner = node.args[1].shape
    heights = [math.prod(n.shape[:-1]) for n in group]
    rows = builder.cat([builder.reshape(value(n.args[0]), [h, inner]) for n, h in zip(group, heights, strict=True)], 0)
    args, shape = (rows, value(node.args[1])), [sum(heights), width]
    madds = sum(n.work.multiply_adds for n in group)
    made = builder.call(aten.linear.default, args, node.rate, shape, node.dtype, multiply_adds=madds)
    at = group.index(node)
    start = sum(heights[:at])
    cut = (made, 1, start, start + heights[at], 1)
    part = builder.call(aten.slice.Tensor, cut, made.rate, [heights[at], width], node.dtype, free=True)
    return builder.reshape(part, node.shape)


# -- what a kernel ends with


def _ended(builder: Builder, node: Node, readers: _Readers, value: Callable[[Node], Node]) -> Node | None:
    """A function of a product that starts from a request's row, by the kernel that makes it."""
    name = activations.NAMES.get(node.op)
    if name is None or len(node.args) > 1 or node.kwargs:
        return None
    inner = node.args[0]
    if inner.op not in FROM_A_ROW or inner.kwargs or inner.dtype != node.dtype or not readers.once(inner):
        return None
    args, madds, ends = value(inner).args, inner.work.multiply_adds, {"activation": name}
    return builder.call(inner.op, args, node.rate, node.shape, node.dtype, kwargs=ends, multiply_adds=madds)
