"""Products of factors, and the operators that carry them out.

Law: a block's value is a sum of einsums whose row label is absent from weight-rate operands and shared by all rows of a
request in request-rate ones. Any order of pairwise products gives the same value; the cheapest for the workload is
taken.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import reduce

from rankhoist.compiler.algebra import places
from rankhoist.compiler.algebra.forms import Block, Factor, Label, Labels, Term
from rankhoist.compiler.algebra.gathers import as_products, before_gather
from rankhoist.compiler.algebra.order import Tree, cheapest
from rankhoist.compiler.algebra.workload import Workload
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.lengths import Sized, usual
from rankhoist.compiler.graph.node import OFFSETS, OWNER, Node, Rate, aten, first_axis, join

# -- settle: a block becomes one tensor


def settle(builder: Builder, block: Block, workload: Workload) -> Block:
    """Evaluate a block into one factor; labels that it does not depend on stay absent.

    What is added to a read is added before it, where that is less.
    """
    if block.settled:
        return block
    visible = set(block.visible)
    found = places.before(workload, [block]) if len(block.terms) > 1 else None
    if found is not None:
        chosen, (inner,) = found
        made = settle(builder, Block((*inner.labels, chosen.labels[-1:]), inner.terms), workload)
        return settle(builder, places.read(builder, made, chosen, block.labels), workload)
    parts = [evaluate_group(builder, group, visible, workload) for group in group_terms(block.terms, visible, workload)]
    return Block(block.labels, (Term((_total(builder, parts, workload),)),))


def _total(builder: Builder, parts: list[Factor], workload: Workload) -> Factor:
    """The sum, what is known first before the rest.

    What depends on items alone is added up by itself where it is stored: one tensor is read in place of several.
    """
    items = [f for f in parts if f.node.rate is Rate.ITEM]
    if workload.stored and len(items) > 1:
        parts = [*(f for f in parts if f not in items), reduce(lambda x, y: add(builder, x, y), items)]
    return reduce(lambda x, y: add(builder, x, y), sorted(parts, key=lambda f: (f.node.rate, len(f.labels))))


def simplify(builder: Builder, block: Block, workload: Workload) -> Block:
    """A block to keep: one evaluated fixed term; in all others one per-candidate factor, like terms added up."""
    if block.settled:
        return block
    visible = set(block.visible)
    fixed = tuple(t for t in block.terms if not t.rate.per_candidate)
    if fixed:
        fixed = settle(builder, Block(block.labels, fixed), workload).terms
    terms = [one_moving(builder, t, visible, workload) for t in block.terms if t.rate.per_candidate]
    groups = group_terms(terms, visible, workload, by_coefficient=True)
    return Block(
        block.labels, (*fixed, *(t for group in groups for t in fold_group(builder, group, visible, workload)))
    )


def split(term: Term, visible: Collection[Label], workload: Workload) -> tuple[list[Factor], list[Factor]]:
    """The coefficient of a term, and its per-candidate factors.

    What is kept of items is a coefficient, where something else is computed for each candidate and a store may hold
    what the coefficient is then. A choice of places is one where there are candidates' values: it is no value itself.
    """
    every = [f for f in term.factors if f.node.rate.per_candidate]
    every = [f for f in every if f.place is None] or every
    moving = [f for f in every if not workload.before(f.node.rate)]
    if moving and len(moving) < len(every):
        left = set(visible).union(*(f.labels for f in moving))
        held = {x for f in term.factors if f not in moving for x in f.labels if x in left}
        if not workload.holds(usual(_size(list(held)))):
            moving = every
    moving = moving or every
    return [f for f in term.factors if f not in moving], moving


def one_moving(builder: Builder, term: Term, visible: Collection[Label], workload: Workload) -> Term:
    """`(C_1 z_1)(C_2 z_2) = (C_1 C_2)(z_1 z_2)` where the product of the per-candidate factors is small; else
    evaluated.
    """
    fixed, moving = split(term, visible, workload)
    if len(moving) < 2:
        return term
    if not small_product(term, visible, workload):
        return Term((evaluate(builder, term, visible, workload),))
    keep = set(visible) | {x for f in fixed for x in f.labels}
    return Term((*fixed, evaluate(builder, Term(tuple(moving)), keep, workload)), term.scale)


def small_product(term: Term, visible: Collection[Label], workload: Workload) -> bool:
    """Whether the per-candidate factors multiply to something smaller than the block itself."""
    if all(f.place for f in split(term, visible, workload)[1]):
        return False
    fixed, moving = ({x for f in factors for x in f.labels} for factors in split(term, visible, workload))
    left = [x for x in moving if x in visible or x in fixed]
    return bool(fixed) and 2 * _size(left) <= _size(list(visible))


def group_terms(
    terms: Sequence[Term], visible: Collection[Label], workload: Workload, by_coefficient: bool = False
) -> list[list[Term]]:
    """Terms whose per-candidate factor is the same tensor in the same place: their coefficients add up.

    `by_coefficient`: only those which both do or both do not depend on the candidate.
    """
    groups: dict[object, list[Term]] = {}
    for i, term in enumerate(terms):
        fixed, moving = split(term, visible, workload)
        kind = by_coefficient and any(f.node.rate.per_candidate for f in fixed)
        private = [x for x in moving[0].labels if x not in visible] if len(moving) == 1 else []
        if len(moving) == 1 and len(term.factors) > 1:
            f = moving[0]
            place = tuple(private.index(x) if x in private else id(x) for x in f.labels)
            groups.setdefault((f.node.index, place, kind), []).append(term)
        else:
            groups[i] = [term]
    return list(groups.values())


def evaluate_group(builder: Builder, terms: list[Term], visible: Collection[Label], workload: Workload) -> Factor:
    """The sum of a group: coefficients first where that is cheaper, one product per term otherwise."""
    folded = fold_group(builder, terms, visible, workload)
    return reduce(lambda x, y: add(builder, x, y), [evaluate(builder, t, visible, workload) for t in folded])


def fold_group(builder: Builder, terms: list[Term], visible: Collection[Label], workload: Workload) -> list[Term]:
    """`C_1 z + C_2 z = (C_1 + C_2) z`, where adding the coefficients is cheaper than multiplying each."""
    if len(terms) == 1:
        return terms
    terms = _same_private_labels(terms, visible, workload)
    moving = split(terms[0], visible, workload)[1][0]
    keep = set(visible) | set(moving.labels)
    coefficients = [Term(tuple(split(t, visible, workload)[0]), t.scale) for t in terms]
    labels = {x for t in coefficients for f in t.factors for x in f.labels if x in keep} | set(moving.labels)
    joint = sum(cheapest(t.factors, keep, workload).cost for t in coefficients)
    rate = join((moving.node.rate, *(f.node.rate for t in coefficients for f in t.factors)))
    size = usual(math.prod(x.size for x in labels if x is not moving.place))
    joint += workload.of_size(rate, size) * size
    if joint > sum(cheapest(t.factors, visible, workload).cost for t in terms):
        return terms
    total = _total(builder, [evaluate(builder, t, keep, workload) for t in coefficients], workload)
    return [Term((total, moving))]


def _same_private_labels(terms: list[Term], visible: Collection[Label], workload: Workload) -> list[Term]:
    """Call the summed axes of the shared factor the same in all terms.

    A term's other summed labels get new names: they may be those that another term has on the shared factor.
    """
    first = split(terms[0], visible, workload)[1][0]
    result = []
    for term in terms:
        own = split(term, visible, workload)[1][0]
        names = {x: Label(x.size) for f in term.factors for x in f.labels if x not in visible}
        names |= dict(zip(own.labels, first.labels, strict=True))
        factors = tuple(Factor(f.node, tuple(names.get(x, x) for x in f.labels)) for f in term.factors)
        result.append(Term(factors, term.scale))
    return result


def evaluate(builder: Builder, term: Term, visible: Collection[Label], workload: Workload) -> Factor:
    """One term, in its cheapest order."""
    factors = list(term.factors)
    cheap = min(range(len(factors)), key=lambda i: (factors[i].node.rate, math.prod(factors[i].node.shape)))
    early = term.scale != 1.0 and not factors[cheap].node.rate.per_candidate and len(factors) > 1
    if early:
        factors[cheap] = scaled(builder, factors[cheap], term.scale)
    factors = as_products(builder, factors, visible, workload)
    tree = cheapest(factors, visible, workload).tree
    result = sum_out(builder, _carry_out(builder, tree, factors, visible), visible)
    return result if early else scaled(builder, result, term.scale)


def scaled(builder: Builder, f: Factor, scale: float) -> Factor:
    """A number times a factor."""
    if scale == 1.0:
        return f
    return Factor(builder.pointwise(aten.mul.Tensor, (f.node, scale), f.node.dtype), f.labels)


def _carry_out(builder: Builder, tree: Tree, factors: Sequence[Factor], visible: Collection[Label]) -> Factor:
    if isinstance(tree, int):
        return factors[tree]
    inside = set(_leaves(tree))
    outside = {x for i, f in enumerate(factors) if i not in inside for x in f.labels}
    left, right = (_carry_out(builder, side, factors, visible) for side in tree)
    return product(builder, left, right, set(visible) | outside)


def _leaves(tree: Tree) -> list[int]:
    if isinstance(tree, int):
        return [tree]
    return [i for side in tree for i in _leaves(side)]


# -- operators


def arrange(builder: Builder, f: Factor, labels: Sequence[Label]) -> Node:
    """The factor with its axes in the order of `labels`, of size 1 where it lacks one."""
    own = [x for x in labels if x in f.labels]
    node = builder.permute(f.node, [f.labels.index(x) for x in own])
    return builder.reshape(node, [x.size if x in f.labels else 1 for x in labels])


def add(builder: Builder, x: Factor, y: Factor) -> Factor:
    """Sum of two factors; either may lack labels of the other."""
    labels = _union(x, y)
    node = builder.pointwise(aten.add.Tensor, (arrange(builder, x, labels), arrange(builder, y, labels)), x.node.dtype)
    return Factor(node, labels)


def _union(x: Factor, y: Factor) -> Labels:
    """All labels, in the order of the factor computed most often."""
    high, low = (x, y) if (x.node.rate, len(x.labels)) >= (y.node.rate, len(y.labels)) else (y, x)
    missing = tuple(label for label in low.labels if label not in high.labels)
    return (*missing, *high.labels) if len(low.labels) > len(high.labels) else (*high.labels, *missing)


def sum_out(builder: Builder, f: Factor, keep: Collection[Label]) -> Factor:
    """Sum over the labels that are not kept."""
    gone = [i for i, x in enumerate(f.labels) if x not in keep]
    if not gone:
        return f
    shape = [x.size for x in f.labels if x in keep]
    left = tuple(x for x in f.labels if x in keep)
    if all(f.labels[i].size == 1 for i in gone):
        return Factor(builder.reshape(f.node, shape), left)
    axes = [i + first_axis(f.node) for i in gone]
    node = builder.call(aten.sum.dim_IntList, (f.node, axes), f.node.rate, shape, f.node.dtype)
    return Factor(node, left)


def product(builder: Builder, x: Factor, y: Factor, keep: Collection[Label]) -> Factor:
    """`sum over labels not kept of x * y`, by one elementwise or matrix product, or by a read."""
    for chosen, value in ((x, y), (y, x)):
        if chosen.place in value.labels and chosen.place not in keep:
            return _read(builder, chosen, value, keep)
    found = before_gather(builder, x, y, keep, product)
    if found is not None:
        return found
    if (y.node.rate, len(y.labels)) > (x.node.rate, len(x.labels)):
        x, y = y, x
    x = sum_out(builder, x, set(keep) | set(y.labels))
    y = sum_out(builder, y, set(keep) | set(x.labels))
    inner = [label for label in x.labels if label in y.labels and label not in keep]
    if not inner:
        labels = _union(x, y)
        return Factor(
            builder.pointwise(
                aten.mul.Tensor, (arrange(builder, x, labels), arrange(builder, y, labels)), x.node.dtype
            ),
            labels,
        )
    batch = [label for label in x.labels if label in y.labels and label in keep]
    outer = [label for label in x.labels if label not in y.labels]
    width = [label for label in y.labels if label not in x.labels]
    if not batch and (y.node.rate is Rate.WEIGHT or (y.node.rate is Rate.REQUEST and x.node.rate.per_candidate)):
        return _linear(builder, x, y, outer, inner, width)
    return _matmul(builder, x, y, batch, outer, inner, width)


def _read(builder: Builder, chosen: Factor, value: Factor, keep: Collection[Label]) -> Factor:
    """`sum_t chosen[n, batch, outer, t] value[batch, t, width]` is what the value has at the places chosen."""
    place, own = chosen.labels[-1], chosen.labels[:-1]
    value = sum_out(builder, value, {*keep, *chosen.labels})
    batch, outer = ([x for x in own if (x in value.labels) is shared] for shared in (True, False))
    width = [x for x in value.labels if x not in chosen.labels]
    at = arrange(builder, Factor(chosen.node.args[0], own), [*batch, *outer])
    at = builder.reshape(at, [_size(batch), _size(outer)])
    table = builder.reshape(arrange(builder, value, [*batch, place, *width]), [_size(batch), place.size, _size(width)])
    shape = [_size(batch), _size(outer), _size(width)]
    if table.rate.per_candidate:
        at = builder.reshape(at, [*shape[:2], 1])
        at = builder.call(aten.expand.default, (at, [-1, *shape]), at.rate, shape, at.dtype, free=True)
        made = builder.call(aten.gather.default, (table, 2, at), join((table.rate, at.rate)), shape, table.dtype)
    else:
        args = (builder.rowwise(table, Rate.REQUEST), at, OWNER)
        made = builder.call(kernels.request_rows, args, Rate.PAIR, shape, table.dtype)
    labels = (*batch, *outer, *width)
    return sum_out(builder, Factor(builder.reshape(made, [x.size for x in labels]), labels), keep)


def _size(labels: Sequence[Label]) -> Sized:
    return math.prod(label.size for label in labels)


def _linear(
    builder: Builder, x: Factor, y: Factor, outer: list[Label], inner: list[Label], width: list[Label]
) -> Factor:
    """Rows times one matrix, of the model or of their request: `[rows, outer, inner]` -> `[rows, outer, width]`."""
    left = builder.reshape(arrange(builder, x, [*outer, *inner]), [*(o.size for o in outer), _size(inner)])
    shape = [*(o.size for o in outer), _size(width)]
    madds = _size(outer) * _size(inner) * _size(width)
    if y.node.rate is Rate.WEIGHT:
        weight = builder.reshape(arrange(builder, y, [*width, *inner]), [_size(width), _size(inner)])
        node = builder.call(aten.linear.default, (left, weight), x.node.rate, shape, x.node.dtype, multiply_adds=madds)
    else:
        matrix = builder.reshape(arrange(builder, y, [*inner, *width]), [_size(inner), _size(width)])
        args = (left, matrix, OFFSETS)
        node = builder.call(kernels.request_linear, args, Rate.PAIR, shape, x.node.dtype, multiply_adds=madds)
    labels = (*outer, *width)
    return Factor(builder.reshape(node, [label.size for label in labels]), labels)


def _matmul(
    builder: Builder,
    x: Factor,
    y: Factor,
    batch: list[Label],
    outer: list[Label],
    inner: list[Label],
    width: list[Label],
) -> Factor:
    """`[rows, batch, outer, inner] x [rows, batch, inner, width] -> [rows, batch, outer, width]`.

    A vector by a matrix that lies in memory as `[inner, outer]` comes before it: nothing is transposed.
    """
    if not width and y.node.rate.stage == x.node.rate.stage and x.labels == (*batch, *inner, *outer):
        x, y, outer, width = y, x, width, outer
    left = builder.reshape(arrange(builder, x, [*batch, *outer, *inner]), [_size(batch), _size(outer), _size(inner)])
    right = builder.reshape(arrange(builder, y, [*batch, *inner, *width]), [_size(batch), _size(inner), _size(width)])
    shape = [_size(batch), _size(outer), _size(width)]
    rate = join((x.node.rate, y.node.rate))
    work = _size(batch) * _size(outer) * _size(inner) * _size(width)
    if y.node.rate is Rate.REQUEST and x.node.rate.per_candidate:
        node = builder.call(
            kernels.request_matmul, (left, right, OFFSETS), rate, shape, x.node.dtype, multiply_adds=work
        )
    elif y.node.rate is Rate.WEIGHT and x.node.rate is not Rate.WEIGHT:
        node = builder.call(kernels.batched_matmul, (left, right), rate, shape, x.node.dtype, multiply_adds=work)
    else:
        node = builder.call(aten.matmul.default, (left, right), rate, shape, x.node.dtype, multiply_adds=work)
    labels = (*batch, *outer, *width)
    return Factor(builder.reshape(node, [label.size for label in labels]), labels)
