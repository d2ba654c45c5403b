"""Which factor of a product is the rows of the matrix product that carries it out."""

from __future__ import annotations

import pytest
import torch

from rankhoist.compiler.algebra.forms import Factor, Label
from rankhoist.compiler.algebra.products import product
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.node import Rate

HEADS, QUERIES, KEYS, WIDTH = (Label(n) for n in (2, 3, 4, 5))


def factor(builder: Builder, name: str, *labels: Label) -> Factor:
    return Factor(builder.leaf("input", name, Rate.PAIR, [x.size for x in labels], torch.float32), labels)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("result", [(QUERIES, HEADS, WIDTH), (HEADS, WIDTH, QUERIES)])
def test_a_product_of_heads_has_its_axes_in_the_order_of_the_result(result: tuple[Label, ...], turned: bool):
    """Weights of an attention times its values, whichever stands first."""
    b = Builder()
    factors = factor(b, "weights", HEADS, QUERIES, KEYS), factor(b, "values", HEADS, KEYS, WIDTH)
    made = product(b, *(factors[::-1] if turned else factors), keep=result)
    assert [x for x in made.labels if x is not HEADS] == [x for x in result if x is not HEADS]


def test_what_is_computed_more_often_is_the_rows():
    b = Builder()
    keys = Factor(b.leaf("input", "keys", Rate.REQUEST, [2, 4, 5], torch.float32), (HEADS, KEYS, WIDTH))
    made = product(b, keys, factor(b, "queries", HEADS, QUERIES, WIDTH), keep=(HEADS, KEYS, QUERIES))
    assert made.labels == (HEADS, QUERIES, KEYS)
