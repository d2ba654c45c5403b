"""Attention by its two products: on some machines they take less time than the operator for all of it.

    attention(q, k, v) = softmax(q k^T scale + mask) v

by definition, and 0 for what sees no key.
"""

from __future__ import annotations

from rankhoist.compiler.graph.attention import attention_by_products
from rankhoist.compiler.graph.node import Node, aten
from rankhoist.compiler.lower.rewriter import Rewriter


def by_products(rewriter: Rewriter, node: Node) -> Node | None:
    """The same attention of candidates' rows by products; None where it draws, or shares heads, or is none."""
    if node.op is not aten.scaled_dot_product_attention.default or len(node.args) != 6 or not node.rows_first:
        return None
    *operands, dropout, causal = node.args
    tensors = [x for x in operands if x is not None]
    if dropout or node.kwargs.keys() - {"scale"} or not all(x.rows_first for x in tensors):
        return None
    q, k, v = operands[:3]
    if not (q.rate.per_candidate and k.rate.per_candidate and v.rate.per_candidate):
        return None
    if not q.shape[:-2] == k.shape[:-2] == v.shape[:-2] or len(q.shape) < 2:
        return None
    given = [x if x is None else rewriter.value(x) for x in operands]
    args, madds = (*given, causal, node.kwargs.get("scale")), node.work.multiply_adds
    return rewriter.builder.call(attention_by_products, args, node.rate, node.shape, node.dtype, multiply_adds=madds)
