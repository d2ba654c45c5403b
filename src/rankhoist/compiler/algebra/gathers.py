"""Gathers at constant places, inside a product.

Law: `sum_p a_p z[i_p] = sum_j (sum_p a_p S_pj) z_j`, `S_pj` being 1 where `i_p = j` and 0 elsewhere: a gather is a
product with a constant. So pairs of fields that are chosen by index lists, multiplied and summed, cost a product per
field of the candidate and not one per pair: what meets its fields is added up field by field once per request.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from rankhoist.compiler.algebra.forms import Factor, Label
from rankhoist.compiler.algebra.order import cheapest
from rankhoist.compiler.algebra.workload import Workload
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import aten


def as_products(b: Builder, factors: Sequence[Factor], visible: Collection[Label], workload: Workload) -> list[Factor]:
    """The same product, where that is cheaper with what was gathered per candidate in the place of a gather of it.

    The gather has to be along a label that is summed, and to repeat places: else the product has no fewer entries.
    """
    best = list(factors)
    for factor in factors:
        for label in factor.labels:
            spelled = _spelled_out(b, factor, label) if factor.node.rate.per_candidate and label not in visible else []
            if spelled:
                other = [f for f in best if f is not factor] + spelled
                if len(other) > len(best) and _cost(other, visible, workload) < _cost(best, visible, workload):
                    best = other
    return best


def _cost(factors: Sequence[Factor], visible: Collection[Label], workload: Workload) -> int:
    return cheapest(factors, visible, workload).cost


def _spelled_out(b: Builder, factor: Factor, label: Label) -> list[Factor]:
    """`S` and what was gathered from, at every place that is read; nothing where no place is read twice."""
    axis = factor.labels.index(label)
    source, index = b.taken_from(factor.node, axis)
    places, at = np.unique(index, return_inverse=True)
    if len(places) == len(index):
        return []
    field = Label(len(places))
    chosen = b.constant(torch.from_numpy(at[:, None] == np.arange(len(places))))
    kwargs, shape, dtype = {"dtype": factor.node.dtype}, chosen.shape, factor.node.dtype
    matrix = b.call(aten._to_copy.default, (chosen,), chosen.rate, shape, dtype, kwargs=kwargs)
    labels = (*factor.labels[:axis], field, *factor.labels[axis + 1 :])
    return [Factor(matrix, (label, field)), Factor(b.take(source, axis, places), labels)]
