"""Reading what a request has at places that a candidate chooses: nothing of the request is repeated for candidates.

Law: `(x repeated for every row)[n, i_n] = x[r(n), i_n]`, r(n) the request of row n.
"""

from __future__ import annotations

import math

import numpy as np

from rankhoist.compiler.algebra import moves
from rankhoist.compiler.algebra.evaluator import Evaluator
from rankhoist.compiler.algebra.forms import Form, plain, row_layout
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import OWNER, Rate


def of_request(evaluator: Evaluator, value: Form, index: Form, dim: int) -> Form:
    """`value.gather(dim, index)`, both with the rows first and then the same dims.

    Along dims that the index does not depend on, all of the value is read at once.
    """
    b, count = evaluator.b, len(value.dims)
    index = evaluator.settled(evaluator.tidy(index))
    together = [d for d in range(count) if d != dim and _constant_along(index, d)]
    each = [d for d in range(count) if d != dim and d not in together]
    for d in range(count):
        if d != dim:
            value = moves.take_dim(b, value, d, np.arange(index.sizes[d]))
        if d in together:
            index = moves.take_dim(b, index, d, np.zeros(1, dtype=np.int64))
    order, sizes = [*each, dim, *together], value.sizes
    lead, tail = ([sizes[d] for d in dims] for dims in (each, together))
    width, places = math.prod(tail), index.sizes[dim]
    x = b.reshape(b.permute(evaluator.node(value), order), [math.prod(lead), sizes[dim], width])
    at = b.reshape(b.permute(evaluator.node(index), order), [math.prod(lead), places])
    shape = [math.prod(lead), places, width]
    made = b.call(kernels.request_rows, (x, at, OWNER), Rate.PAIR, shape, value.dtype)
    made = b.permute(b.reshape(made, [*lead, places, *tail]), [order.index(d) for d in range(count)])
    return plain(made, value.dtype, row_layout(count))


def _constant_along(index: Form, dim: int) -> bool:
    labels = ((block.labels[dim], block.factor.labels) for block in index.blocks.values())
    return index.sizes[dim] > 0 and not any(x in there for own, there in labels for x in own)
