"""Reading what a request has at places that a candidate chooses: nothing of the request is repeated for candidates.

Law: `(x repeated for every row)[n, i_n] = x[r(n), i_n]`, r(n) the request of row n. That is a sum over places t with
one factor that is 1 at the place chosen and 0 elsewhere,

    x[i_n] = sum_t p[n, t] x_t,   p[n, t] = 1 where t = i_n,

which is kept unevaluated. So a map of what is read is a map of x first, where that is cheaper (see `order`), and

    f(x[i], y[i], c) = f(x, y, c)[i]   for f that treats every place alike, since sum_t p[n, t] = 1.

So are matrices that a candidate chooses among few of the weights, experts by a gate or by a domain:

    W[i_n] [c; z] = (W_c c)[i_n] + (W_k z)[i_n],   W_c c for all of them once per request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rankhoist.compiler.algebra import cuts, moves, places
from rankhoist.compiler.algebra.evaluator import Evaluator
from rankhoist.compiler.algebra.forms import Block, Elsewhere, Factor, Form, Label, Term, row_layout, whole
from rankhoist.compiler.algebra.products import size
from rankhoist.compiler.graph.lengths import usual


def of_request(evaluator: Evaluator, value: Form, index: Form, dim: int) -> Form:
    """`value.gather(dim, index)`, both with the rows first and then the same dims, unevaluated.

    Along dims that the index does not depend on, all of the value is read at once.
    """
    b, count = evaluator.b, len(value.dims)
    index = evaluator.settled(evaluator.tidy(index))
    together = [d for d in range(count) if d != dim and _constant_along(index, d)]
    for d in range(count):
        if d != dim:
            value = moves.take_dim(b, value, d, np.arange(index.sizes[d]))
        if d in together:
            index = moves.take_dim(b, index, d, np.zeros(1, dtype=np.int64))
    at = evaluator.node(index)
    apart = [d for d in range(count) if d not in together]
    at = b.reshape(at, [at.shape[d] for d in apart])
    own = [Label(at.shape[apart.index(d)] if d == dim else n) for d, n in enumerate(value.sizes)]
    place = Label(value.sizes[dim])
    chosen = Factor(b.places(at, place.size, value.dtype), (*(own[d] for d in apart), place))
    read = Factor(evaluator.node(value), tuple(place if d == dim else x for d, x in enumerate(own)))
    block = Block(tuple((x,) for x in own), (Term((chosen, read)),))
    return Form(tuple(whole(x.size) for x in own), {(0,) * count: block}, row_layout(count), value.dtype)


def _constant_along(index: Form, dim: int) -> bool:
    labels = ((block.labels[dim], block.factor.labels) for block in index.blocks.values())
    return index.sizes[dim] > 0 and not any(x in there for own, there in labels for x in own)


def of_table(evaluator: Evaluator, table: Form, ids: Form) -> Form:
    """`table[ids]`, the table a weight of few and long rows, unevaluated: candidates read no fewer than there are."""
    b, workload, node = evaluator.b, evaluator.workload, evaluator.node(table)
    ids = evaluator.settled(evaluator.tidy(ids))
    place, *rest = (Label(n) for n in node.shape)

    def read_often(at: Factor) -> bool:
        read = workload.candidates * usual(size(at.labels)) if at.node.rate.per_candidate else 0
        return bool(workload.requests * place.size <= read)

    def rows(block: Block) -> Block:
        chosen = b.places(block.factor.node, place.size, node.dtype)
        factors = Factor(chosen, (*block.factor.labels, place)), Factor(node, (place, *rest))
        return Block((*block.labels, *((x,) for x in rest)), (Term(factors),))

    often = any(read_often(block.factor) for block in ids.blocks.values())
    if not often or not table.arithmetic:
        raise Elsewhere(f"the rows of {table.axes} are more than candidates read")
    blocks = {cell + (0,) * len(rest): rows(block) for cell, block in ids.blocks.items()}
    depth = len(ids.dims)
    layout = (*ids.layout, *((depth + i,) for i in range(len(rest))))
    return Form((*ids.dims, *(whole(x.size) for x in rest)), blocks, layout, node.dtype)


# -- what is done to what is read


def through(evaluator: Evaluator, blocks: Sequence[Block], build: Callable[[Sequence[Block]], Block]) -> Block:
    """What `build` makes of blocks with the same labels: of what they are read from, where that is less, then read.

    There it is given blocks with one dim more, the places.
    """
    found = places.before(evaluator.workload, blocks)
    if found is None:
        return build(blocks)
    chosen, inner = found
    made = build([Block((*block.labels, (chosen.labels[-1],)), block.terms) for block in inner])
    return places.read(evaluator.b, made, chosen, tuple(own for own in made.labels if own != (chosen.labels[-1],)))


def along(evaluator: Evaluator, value: Form, dims: Sequence[int]) -> tuple[Form, Callable[[Form], Form]] | None:
    """What a form is read from, where that is less, its places where those are that are read; and what reads a result.

    None where no other dim holds what is read: an operator along `dims` would not treat all places alike.
    """
    found = places.before(evaluator.workload, list(value.blocks.values())) if len(value.blocks) == 1 else None
    if found is None:
        return None
    (block,), (chosen, (inner,)) = value.blocks.values(), found
    used = {x for t in inner.terms for f in t.factors for x in f.labels}
    read = [d for d, own in enumerate(block.labels) if own and set(own) <= {*chosen.labels} - used]
    if not read or any(x in chosen.labels for d in dims for x in block.labels[d]):
        return None
    at, place = read[0], chosen.labels[-1]
    segments = moves.replaced(value.dims, at, whole(place.size))
    given = {(0,) * len(segments): Block(moves.replaced(block.labels, at, (place,)), inner.terms)}

    def again(made: Form) -> Form:
        left = [d for d in range(len(segments)) if len(made.dims) == len(segments) or d not in dims]
        ((cell, result),) = made.blocks.items()
        own = Block(block.labels, (Term((chosen,)),))
        for d in range(len(segments)):
            own = cuts.flatten_labels(evaluator.b, own, d)
        names = {own.labels[d][0]: result.labels[i][0] for i, d in enumerate(left)}
        (flat,) = own.terms[0].factors
        k = left.index(at)
        labels = tuple(x if x in own.labels[at] else names.get(x, x) for x in flat.labels[:-1])
        renamed = Factor(flat.node, (*labels, names[own.labels[at][0]]))
        block_again = places.read(evaluator.b, result, renamed, moves.replaced(result.labels, k, own.labels[at]))
        return Form(moves.replaced(made.dims, k, value.dims[at]), {cell: block_again}, made.layout, made.dtype)

    return Form(segments, given, value.layout, value.dtype), again
