"""Fewer and larger operators for the same values: the last step before a plan is counted and emitted.

* `x + z W` is one product that starts from x, `x + a * b` one pass over memory (`sums.py`);
* a number of each row times a row of weights, or of the request, is a product where that is faster (`outer.py`);
* a large result of small operands is made in the order in which it is read (`arranged.py`);
* linear maps of the same tensor are one product, cut apart by views; so are, per request, maps by the same weight
  (`joined.py`);
* a chain of maps that ends with few columns is taken from its end (`chains.py`);
* several embedding tables are read by one gather (`tables.py`);
* sums and softmaxes over few elements run across them (`short.py`);
* `relu(x + z W)`, with x of the request, is one kernel where a machine has such (`sums.py`);
* weights are padded to sizes that suit a kernel (`aligned.py`);
* attention is its two products and a softmax, where an operator for all of it is slow (`attended.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.lower.aligned import aligned_product
from rankhoist.compiler.lower.arranged import arranged_before
from rankhoist.compiler.lower.attended import by_products
from rankhoist.compiler.lower.chains import from_the_end
from rankhoist.compiler.lower.joined import joined, stacked
from rankhoist.compiler.lower.limits import Limits
from rankhoist.compiler.lower.outer import outer_product
from rankhoist.compiler.lower.rewriter import Rewriter
from rankhoist.compiler.lower.short import across
from rankhoist.compiler.lower.sums import ended, fused
from rankhoist.compiler.lower.tables import one_gather


def lean(builder: Builder, outputs: Sequence[Any], limits: Limits, reordered: bool = False) -> list[Any]:
    """`outputs` by fewer operators, where larger ones gain something; with chains of products in another order."""
    rewriter = None
    for rewrite in (
        *([from_the_end] if reordered else []),
        *([across] if limits.short else []),
        *([arranged_before] if limits.trained else []),
        outer_product,
        fused,
        joined,
        stacked,
        one_gather,
        *([ended] if limits.ends else []),
        *([aligned_product] if limits.aligned > 1 else []),
        *([by_products] if limits.attended else []),
    ):
        rewriter = rewriter or Rewriter(builder, outputs, limits)
        made = rewriter.rewritten(rewrite)
        if any(new is not old for new, old in zip(made, outputs, strict=True)):
            outputs, rewriter = made, None
    return list(outputs)
