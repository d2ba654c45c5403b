"""Which results may be written over an operand that nobody reads again: no allocation, and memory that is in the cache.

`f(x, ...)` may become `f_(x, ...)` where x is new, has the rows, shape and dtype of the result, and is read here alone.
In training a gradient is one more reader: that of `f_` must do without x, and that of what made x without its result.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import Any

from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import Node, Rate, aten
from rankhoist.compiler.graph.operators import row


def overwritten(nodes: Sequence[Node], outputs: Sequence[Any], training: bool = False) -> dict[int, int]:
    """Node number -> position of the argument to write over. `nodes` is all that `outputs` need, operands first.

    What is in an original layout may have other axes than its shape says: it is not written over, and written anew.
    """
    readers = collections.Counter(x.index for n in nodes for x in n.inputs)
    readers.update(o.index for o in outputs if isinstance(o, Node))
    whole = _with_rows(nodes)
    found: dict[int, int] = {}
    for n in nodes:
        known = row(n.op)
        if known.over is not None and n.rate is not Rate.WEIGHT and n.rows_first and (known.forgets or not training):
            places = (0, 1) if known.commutes and not n.kwargs else (0,)  # `alpha` scales the second
            place = next((i for i in places if _free(n, n.args[i], readers, whole, found, training)), None)
            if place is not None:
                found[n.index] = place
    return found


def overwritten_in_training(nodes: Sequence[Node], outputs: Sequence[Any]) -> dict[int, int]:
    """The same where gradients are computed afterwards."""
    return overwritten(nodes, outputs, training=True)


def _free(
    reader: Node, target: Any, readers: collections.Counter[int], whole: set[int], found: dict[int, int],
    training: bool,
) -> bool:  # fmt: skip
    """Whether `target` is new memory, whole and read once; views by reshape are looked through."""
    if not isinstance(target, Node) or target.shape != reader.shape or target.dtype != reader.dtype:
        return False
    source = target
    while source.op is aten.reshape.default and readers[source.index] == 1:
        source = source.args[0]
    made, memory = row(source.op), row(_memory(source, found).op)
    if training and (made.recalls or (source is not target and not memory.dense)):
        return False
    folds = row(reader.op).adds_onto and (training or len(reader.shape) != 1)  # it sees all axes but the last as one
    new = memory.dense if folds else made.new
    own = new and source.rows_first and source.index in whole and readers[source.index] == 1
    return own and source.rate.stage == reader.rate.stage and math.prod(source.shape) == math.prod(reader.shape)


def _memory(node: Node, found: dict[int, int]) -> Node:
    """What made the memory that a node is written to."""
    while node.index in found or node.op is aten.reshape.default:
        node = node.args[found.get(node.index, 0)]
    return node


def _with_rows(nodes: Sequence[Node]) -> set[int]:
    """Nodes whose tensor has all rows of its stage: one request's row that is to broadcast has not."""
    found: set[int] = set()
    for n in nodes:
        if n.op == "input" or n.op in (kernels.repeat_rows, kernels.gathered):
            found.add(n.index)
        elif n.op is kernels.spread or isinstance(n.op, str):
            continue
        elif any(x.index in found and x.rate.stage == n.rate.stage for x in n.inputs):
            found.add(n.index)
    return found
