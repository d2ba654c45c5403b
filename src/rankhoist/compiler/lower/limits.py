"""From which size on one larger operator gains nothing over several: what `lean` is told about a machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes as measured on a machine.

    Attributes:
        wide: columns; a product with as many gains nothing by being joined to another.
        small: elements; larger operands cost more to put side by side than their product gains.
        tables: fewer embedding tables are read one by one.
        copied: bytes of embedding tables that may be copied for one gather.
        outer: columns; a number of each row times so many of a weight or of the request is a product.
        ends: whether a product's kernel may end with a function of its result (`graph.activations`).
        trained: whether gradients are computed afterwards, from the operands of what is multiplied.
        short: whether an operator is slow along an axis of few elements.
        aligned: what the sizes of weights are padded to a multiple of.
        attended: whether attention of rows is computed by its two products.
    """

    wide: int
    small: int
    tables: int
    copied: int
    outer: int = 2**62
    ends: bool = False
    trained: bool = False
    short: bool = False
    aligned: int = 1
    attended: bool = False
