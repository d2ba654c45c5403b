"""Forms: what the compiler knows of a value.

A value has row axis and *dims*. Every dim is cut into *segments* (sets of positions), and every cell of the
resulting grid holds a *block*

    block  =  sum over terms of  scale * product of factors,      summed over labels that are not the block's own

A factor is a node whose axes carry labels, as in einsum. A label that a block has and a term has not means:
constant along it. So a concatenation is a grid of single factors, an affine form `a + sum_j M_j z_j` is a sum of
terms, a diagonal coefficient is a repeated label, "the same matrix for every field" is an absent one, and a
broadcast costs nothing.

`layout` says how the original tensor arranges the dims: one entry per original axis, each a tuple of dims and of `ROW`.
`[B * F, d]` is `((ROW, 0), (1,))`; a transpose or a fold of rows with another axis only changes the layout.

Invariant: terms without any per-candidate factor are evaluated at once, so a block has at most one of them, and it
comes first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
import torch

from rankhoist.compiler.algebra.text import form_text
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.decline import Decline as Decline
from rankhoist.compiler.graph.decline import Elsewhere as Elsewhere
from rankhoist.compiler.graph.lengths import Length, Sized
from rankhoist.compiler.graph.node import Node, Rate, aten, join

ROW = -1
ARITHMETIC = (  # dtypes of which sums are reordered
    torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex128, torch.complex64,
)  # fmt: skip
EXACT = (0, 1, math.inf, -math.inf)  # numbers that are the same in every dtype
Cell = tuple[int, ...]
Extent = tuple[Sized, bool]  # size of an original axis: (number, times the row count?)


@dataclass(frozen=True)
class Span:
    """So many positions of a dim whose length varies, from `first` on; the spans of a dim follow one another."""

    count: Sized
    first: Sized = 0

    @property
    def end(self) -> Sized:
        return self.first + self.count

    def _cut(self, *_: object) -> NoReturn:
        raise Decline(f"cuts an axis of length {self.count}, which varies")

    __len__ = __iter__ = __getitem__ = __array__ = __add__ = __radd__ = _cut


Positions = Any  # np.ndarray | Span


@dataclass(frozen=True, eq=False)
class Label:
    """One axis of factors, by identity."""

    size: Sized


Labels = tuple[Label, ...]


@dataclass(frozen=True)
class Factor:
    """A node; `labels` name its axes after the row axis."""

    node: Node
    labels: Labels

    @property
    def place(self) -> Label | None:
        """The axis that it chooses from, where it is `kernels.places`: 1 at one place of it, else 0."""
        return self.labels[-1] if self.node.op is kernels.places else None

    @property
    def number(self) -> float | None:
        """What `Builder.number` made it of."""
        return self.node.args[1] if self.node.op is aten.full.default and not self.node.args[0] else None


@dataclass(frozen=True)
class Term:
    """A product of factors and a number."""

    factors: tuple[Factor, ...]
    scale: float = 1.0

    @property
    def rate(self) -> Rate:
        return join(f.node.rate for f in self.factors)

    @property
    def zero(self) -> Factor | None:
        """A factor that is the number 0, which makes the term 0, if it has one (0 times infinity is no number)."""
        numbers = [(f, number) for f in self.factors if (number := f.number) is not None]
        if not all(abs(number) < math.inf for _, number in numbers):
            return None
        return next((f for f, number in numbers if number == 0), None)


@dataclass(frozen=True)
class Block:
    """One cell: `labels[d]` enumerate (row-major) the positions of the cell's segment of dim d.

    Terms that are 0 are left out; of a block with no other, a single 0 remains.
    """

    labels: tuple[Labels, ...]
    terms: tuple[Term, ...]

    def __post_init__(self) -> None:
        if zeros := [f for f in (t.zero for t in self.terms) if f is not None]:
            others = tuple(t for t in self.terms if t.zero is None)
            object.__setattr__(self, "terms", others or (Term((zeros[0],)),))

    @property
    def rate(self) -> Rate:
        return join(t.rate for t in self.terms)

    @cached_property
    def visible(self) -> Labels:
        return tuple(itertools.chain.from_iterable(self.labels))

    @property
    def settled(self) -> bool:
        """One factor and nothing else: a tensor that exists."""
        if len(self.terms) != 1 or self.terms[0].scale != 1.0 or len(self.terms[0].factors) != 1:
            return False
        own = set(self.visible)
        return all(label in own for label in self.terms[0].factors[0].labels)

    @property
    def factor(self) -> Factor:
        """The one factor of a settled block."""
        return self.terms[0].factors[0]


@dataclass(frozen=True)
class Form:
    """Dims cut into segments, and a block per cell of the grid."""

    dims: tuple[tuple[Positions, ...], ...]
    blocks: Mapping[Cell, Block]
    layout: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return form_text(self)

    @property
    def rate(self) -> Rate:
        return join(b.rate for b in self.blocks.values())

    @property
    def of_weights(self) -> bool:
        """Whether no input has a part in it."""
        return self.rate is Rate.WEIGHT

    @property
    def arithmetic(self) -> bool:
        """Whether sums and products of it may be reordered: floating numbers, complex ones too, none that are exact."""
        return self.dtype in ARITHMETIC

    @property
    def has_rows(self) -> bool:
        return any(ROW in entry for entry in self.layout)

    @cached_property
    def sizes(self) -> tuple[Sized, ...]:
        return tuple(sum(count(s) for s in segments) for segments in self.dims)

    def varies(self, dim: int) -> bool:
        """Whether the length of a dim does."""
        return isinstance(self.sizes[dim], Length)

    @property
    def extents(self) -> list[Extent]:
        """Sizes of the original axes."""
        sizes = self.sizes
        return [(math.prod(sizes[d] for d in entry if d != ROW), ROW in entry) for entry in self.layout]

    @property
    def axes(self) -> str:
        """The original axes to read, those that are folded as einops writes them: `[rows, (2 rows), 3]`."""
        sizes = self.sizes
        return f"[{', '.join(axis_text([d if d == ROW else sizes[d] for d in entry]) for entry in self.layout)}]"

    @property
    def mixed(self) -> bool:
        """Some blocks exist per request, others per candidate."""
        return len({b.rate.per_candidate for b in self.blocks.values()}) > 1

    @property
    def read(self) -> bool:
        """Whether some of it is what is read at places that a candidate chooses."""
        return any(f.place for b in self.blocks.values() for t in b.terms for f in t.factors)

    @property
    def terms(self) -> int:
        """Of the block that has most."""
        return max((len(b.terms) for b in self.blocks.values()), default=0)

    @property
    def settled(self) -> bool:
        return all(b.settled for b in self.blocks.values())

    def axis(self, dim: int) -> int:
        """The original axis that holds `dim`."""
        return next(i for i, entry in enumerate(self.layout) if dim in entry)

    def place(self, axis: int) -> int:
        """A non-negative original axis."""
        return axis + len(self.layout) if axis < 0 else axis

    def dim(self, axis: int) -> int:
        """The dim that is original axis `axis`; declines for the row axis and for rows folded with others."""
        own = self.place(axis)
        entry = self.layout[own]
        if ROW in entry:
            raise Decline(f"works along the row axis: axis {own} of {self.axes}")
        if len(entry) != 1:
            raise Decline(f"works along several folded axes: axis {own} of {self.axes}")
        return entry[0]

    def dims_of(self, axes: Sequence[int] | int | None) -> list[int]:
        """Dims of the given original axes (all axes for `None` or an empty list); declines for the row axis."""
        chosen = [axes] if isinstance(axes, int) else axes or range(len(self.layout))
        own = [self.place(a) for a in chosen]
        for axis in own:
            if ROW in self.layout[axis]:
                raise Decline(f"reduces over the rows: axis {axis} of {self.axes}")
        return [d for axis in own for d in self.layout[axis]]


def whole(size: Sized) -> tuple[Positions, ...]:
    """A dim of one segment."""
    return (Span(size) if isinstance(size, Length) else np.arange(size),)


def count(positions: Positions) -> Sized:
    """How many there are."""
    return positions.count if isinstance(positions, Span) else len(positions)


def same(x: Positions, y: Positions) -> bool:
    """Whether these are the same positions in the same order."""
    return bool(x == y) if isinstance(x, Span) or isinstance(y, Span) else np.array_equal(x, y)


def plain(node: Node, dtype: torch.dtype, layout: tuple[tuple[int, ...], ...]) -> Form:
    """A node as a form of one block."""
    labels = tuple(Label(size) for size in node.shape)
    block = Block(tuple((label,) for label in labels), (Term((Factor(node, labels),)),))
    return Form(tuple(whole(s) for s in node.shape), {(0,) * len(labels): block}, layout, dtype)


def row_layout(dims: int, *, rows: bool = True) -> tuple[tuple[int, ...], ...]:
    """Rows on axis 0, one original axis per dim."""
    return (((ROW,),) if rows else ()) + tuple((d,) for d in range(dims))


def one_block(factor: Factor, labels: tuple[Labels, ...]) -> Block:
    """A block that is one tensor."""
    return Block(labels, (Term((factor,)),))


def shape_text(shape: Sequence[Extent]) -> str:
    """Sizes of original axes to read: `[rows, 2 * rows, 3]`."""
    return "[" + ", ".join(("rows" if n == 1 else f"{n} * rows") if rows else str(n) for n, rows in shape) + "]"


def axis_text(sizes: Sequence[Sized]) -> str:
    """One original axis to read: `rows`, `3`, or, folded, `(rows 4)`; `sizes` has `ROW` for the rows."""
    parts = ["rows" if size == ROW else str(size) for size in sizes]
    return f"({' '.join(parts)})" if len(parts) > 1 else "".join(parts) or "1"


def cells(dims: Sequence[Sequence[Positions]]) -> Iterator[Cell]:
    """All cells of a grid."""
    return itertools.product(*(range(len(segments)) for segments in dims))


# -- labels


def rename(block: Block, names: Mapping[Label, Label]) -> Block:
    """Other labels for the same axes."""
    if not names:
        return block
    labels = tuple(tuple(names.get(x, x) for x in dim) for dim in block.labels)
    return Block(labels, tuple(_rename_term(t, names) for t in block.terms))


def _rename_term(term: Term, names: Mapping[Label, Label]) -> Term:
    factors = tuple(Factor(f.node, tuple(names.get(x, x) for x in f.labels)) for f in term.factors)
    return Term(factors, term.scale)


def fresh(block: Block) -> Block:
    """The same block under labels that nobody else has, so that it may meet itself in a product."""
    used = {x for t in block.terms for f in t.factors for x in f.labels} | set(block.visible)
    return rename(block, {x: Label(x.size) for x in used})


def map_factors(block: Block, change: Mapping[Label, object], build: Callable[[Factor], Factor]) -> Block:
    """Replace every factor that has one of the labels in `change` by `build(factor)`."""
    terms = []
    for term in block.terms:
        factors = tuple(build(f) if any(x in change for x in f.labels) else f for f in term.factors)
        terms.append(Term(factors, term.scale))
    return Block(block.labels, tuple(terms))


def with_labels(block: Block, dim: int, labels: Labels) -> Block:
    """The block with other labels on one dim."""
    return Block((*block.labels[:dim], labels, *block.labels[dim + 1 :]), block.terms)
