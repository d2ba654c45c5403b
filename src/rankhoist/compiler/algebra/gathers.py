"""Gathers at constant places, inside a product.

Law: `sum_p a_p z[i_p] = sum_j (sum_p a_p S_pj) z_j`, `S_pj` being 1 where `i_p = j` and 0 elsewhere: a gather is a
product with a constant. So pairs of fields that are chosen by index lists, multiplied and summed, cost a product per
field of the candidate and not one per pair: what meets its fields is added up field by field once per request.

Law: `sum_e w_he z[i_p]_e = (sum_e w_he z_e)[i_p]`. So what is done to every pair's one side is done to every field.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch

from rankhoist.compiler.algebra.forms import Factor, Label, Labels
from rankhoist.compiler.algebra.order import cheapest
from rankhoist.compiler.algebra.workload import Workload
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import aten


def as_products(
    builder: Builder, factors: Sequence[Factor], visible: Collection[Label], workload: Workload
) -> list[Factor]:
    """The same product, where that is cheaper with what was gathered per candidate in the place of a gather of it.

    The gather has to be along a label that is summed, and to repeat places: else the product has no fewer entries.
    """
    best = list(factors)
    for factor in factors:
        for label in factor.labels:
            spelled = (
                _spelled_out(builder, factor, label) if factor.node.rate.per_candidate and label not in visible else []
            )
            if spelled:
                other = [f for f in best if f is not factor] + spelled
                if len(other) > len(best) and _cost(other, visible, workload) < _cost(best, visible, workload):
                    best = other
    return best


def _cost(factors: Sequence[Factor], visible: Collection[Label], workload: Workload) -> int:
    return cheapest(factors, visible, workload).cost


def _spelled_out(builder: Builder, factor: Factor, label: Label) -> list[Factor]:
    """`S` and what was gathered from, at every place that is read; nothing where no place is read twice."""
    axis = factor.labels.index(label)
    source, index = builder.taken_from(factor.node, axis)
    places, at = np.unique(index, return_inverse=True)
    if len(places) == len(index):
        return []
    field = Label(len(places))
    chosen = builder.constant(torch.from_numpy(at[:, None] == np.arange(len(places))))
    kwargs, shape, dtype = {"dtype": factor.node.dtype}, chosen.shape, factor.node.dtype
    matrix = builder.call(aten._to_copy.default, (chosen,), chosen.rate, shape, dtype, kwargs=kwargs)
    labels = (*factor.labels[:axis], field, *factor.labels[axis + 1 :])
    return [Factor(matrix, (label, field)), Factor(builder.take(source, axis, places), labels)]


def before_gather(
    builder: Builder, x: Factor, y: Factor, keep: Collection[Label], product: Callable[..., Factor]
) -> Factor | None:
    """A product that sums, of what was gathered from per candidate, at every place that is read; and then the gather.

    The gather is along a label that the other factor lacks, and repeats places; None where there is no such. As many
    elements are gathered as the product would have written.
    """
    summed = any(label in y.labels and label not in keep for label in x.labels)
    for factor, other in ((x, y), (y, x)) if summed else ():
        for axis, label in enumerate(factor.labels):
            if not factor.node.rate.per_candidate or label not in keep or label in other.labels:
                continue
            source, index = builder.taken_from(factor.node, axis)
            places, at = np.unique(index, return_inverse=True) if len(index) else (index, index)
            if len(places) < len(index):
                field = Label(len(places))
                few = Factor(builder.take(source, axis, places), _renamed(factor.labels, label, field))
                made = product(builder, few, other, {*keep, field})
                return Factor(
                    builder.take(made.node, made.labels.index(field), at), _renamed(made.labels, field, label)
                )
    return None


def repeats(builder: Builder, factor: Factor, apart: Collection[Label]) -> bool:
    """Whether a candidate's values are gathered, some of them more than once, along a label that is not `apart`."""
    others = [axis for axis, label in enumerate(factor.labels) if label not in apart]
    indices = [builder.taken_from(factor.node, axis)[1] for axis in others] if factor.node.rate.per_candidate else []
    return any(len(index) and len(np.unique(index)) < len(index) for index in indices)


def _renamed(labels: Labels, old: Label, new: Label) -> Labels:
    return tuple(new if label is old else label for label in labels)
