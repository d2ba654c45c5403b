"""The cheapest order of a product of several factors.

It depends on the factors' rates, labels and sizes alone: terms that are alike in these have one order, which is
remembered. A sum of thousands of terms has few kinds of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import or_

from rankhoist.compiler.algebra.forms import Factor, Label
from rankhoist.compiler.algebra.workload import Workload
from rankhoist.compiler.graph.lengths import usually
from rankhoist.compiler.graph.node import Rate, join

EXACT = 8  # of so many factors all orders are tried: 3 ** 8 / 2 products
READ = 16  # units of an element that is read at a place: it comes from memory, and goes there for what multiplies it
KINDS = 100_000  # orders that are remembered
NEVER = 1 << 100  # the cost of what is not done, in units

Labels = int  # a set of labels: bit i stands for label i
Tree = int | tuple["Tree", "Tree"]  # a factor by its place, or the product of two trees


@dataclass(frozen=True)
class Kind:
    """What the order of a product depends on; labels are numbered as they first occur.

    Attributes:
        rates, labels: of every factor.
        sizes: of every label.
        places: of every factor, the label that it chooses from, if it is a choice of places.
        visible: labels of the result; the others are summed.
    """

    rates: tuple[Rate, ...]
    labels: tuple[Labels, ...]
    sizes: tuple[int, ...]
    places: tuple[Labels, ...]
    visible: Labels


@dataclass(frozen=True)
class Part:
    """Some of the factors, multiplied: at which rate, which labels are left, at what cost in units, and how; `place` is
    the label that one factor chooses from.
    """

    rate: Rate
    labels: Labels
    cost: int
    tree: Tree
    place: Labels = 0


def cheapest(factors: Sequence[Factor], visible: Collection[Label], workload: Workload) -> Part:
    """All factors, by the cheapest tree of pairwise products."""
    numbers: dict[Label, int] = {}
    for label in itertools.chain.from_iterable(f.labels for f in factors):
        numbers.setdefault(label, len(numbers))
    own = tuple(_union(1 << numbers[x] for x in f.labels) for f in factors)
    seen = _union(1 << number for x, number in numbers.items() if x in visible)
    places = tuple(0 if f.place is None else 1 << numbers[f.place] for f in factors)
    kind = Kind(tuple(f.node.rate for f in factors), own, usually([x.size for x in numbers]), places, seen)
    return _ordered(kind, workload)


def searched() -> int:
    """How many orders were searched for so far."""
    return _ordered.cache_info().misses


@lru_cache(KINDS)
def _ordered(kind: Kind, workload: Workload) -> Part:
    parts = []
    for i, (rate, labels, place) in enumerate(zip(kind.rates, kind.labels, kind.places, strict=True)):
        others = _union(x for k, x in enumerate(kind.labels) if k != i)
        parts.append(Part(rate, labels if place else labels & (kind.visible | others), 0, i, place))
    costs = _Costs(kind, workload)
    while len(parts) > EXACT:
        parts = _joined(parts, costs)
    return _exact(parts, costs)


class _Costs:
    """Units of pairwise products."""

    def __init__(self, kind: Kind, workload: Workload) -> None:
        self.visible, self.sizes, self.workload = kind.visible, kind.sizes, workload
        self._known: dict[Labels, int] = {}

    def size(self, labels: Labels) -> int:
        """Elements per row of a tensor with these labels."""
        if labels not in self._known:
            self._known[labels] = math.prod(n for i, n in enumerate(self.sizes) if labels >> i & 1)
        return self._known[labels]

    def of(self, left: Part, right: Part, rate: Rate, labels: Labels) -> int:
        """Of both sides, and of multiply-adds and written elements of their product, which sums all but `labels`.

        A product with a choice of places is a read, of what all other factors with that label have come to.
        """
        union, place = left.labels | right.labels, left.place | right.place
        if place and (labels & place or not left.labels & right.labels & place):
            return NEVER
        union &= ~place
        units = (READ if place else 1) * self.size(labels) + (self.size(union) if union != labels else 0)
        read = 0
        if not self.workload.before(rate):
            # What is multiplied out beforehand is free to compute but not to read: weights once, items for every row.
            rows = {Rate.WEIGHT: 1, Rate.ITEM: self.workload.candidates}
            early = [side for side in (left, right) if self.workload.before(side.rate)]
            read = sum(rows[side.rate] * self.size(side.labels) for side in early)
        return left.cost + right.cost + self.workload.of_size(rate, self.size(labels)) * units + read

    def elements(self, part: Part) -> int:
        """Elements that whoever needs the part reads."""
        rows = self.workload.candidates if part.rate.per_candidate else max(self.workload.of(part.rate), 1)
        return rows * self.size(part.labels & ~part.place)


def _exact(parts: Sequence[Part], costs: _Costs) -> Part:
    """The best of all trees, from small subsets to large: that of a subset is made of those of two halves."""
    full = (1 << len(parts)) - 1
    best = {1 << i: part for i, part in enumerate(parts)}
    for subset in range(1, full + 1):
        if subset not in best:
            inside, others = _split(parts, subset)
            rate, labels = join(p.rate for p in inside), _left(inside, others, costs)
            sides = [(best[left], best[subset ^ left]) for left in _halves(subset)]
            cost, at = min((costs.of(*pair, rate, labels), i) for i, pair in enumerate(sides))
            best[subset] = Part(rate, labels, cost, (sides[at][0].tree, sides[at][1].tree))
    return best[full]


def _joined(parts: Sequence[Part], costs: _Costs) -> list[Part]:
    """One part fewer: the product of the two that costs least, beside the elements which it saves others to read.

    Against all orders of 75 random products of 9 to 11 factors that was the best in 71 once `EXACT` parts were left;
    the greedy search of opt_einsum, whose cost can be ours while that of its exact ones and of cotengra cannot, in 5.
    """

    def joined(chosen: int) -> Part:
        (left, right), others = _split(parts, chosen)
        rate, labels = join((left.rate, right.rate)), _left((left, right), others, costs)
        return Part(rate, labels, costs.of(left, right, rate, labels), (left.tree, right.tree))

    def worth(chosen: int) -> int:
        sides, made = _split(parts, chosen)[0], joined(chosen)
        return made.cost + costs.elements(made) - sum(side.cost + costs.elements(side) for side in sides)

    best = min((1 << i | 1 << k for i, k in itertools.combinations(range(len(parts)), 2)), key=worth)
    return [*_split(parts, best)[1], joined(best)]


def _split(parts: Sequence[Part], subset: int) -> tuple[list[Part], list[Part]]:
    """The parts of a subset, and the others."""
    inside = [p for i, p in enumerate(parts) if subset >> i & 1]
    return inside, [p for i, p in enumerate(parts) if not subset >> i & 1]


def _left(inside: Iterable[Part], others: Iterable[Part], costs: _Costs) -> Labels:
    """Labels of a partial product: those that are visible, or that a factor outside still needs."""
    return _union(p.labels for p in inside) & (costs.visible | _union(p.labels for p in others))


def _halves(subset: int) -> Iterable[int]:
    """Every way to cut a set in two, each once."""
    left = (subset - 1) & subset
    while left > subset ^ left:
        yield left
        left = (left - 1) & subset


def _union(sets: Iterable[Labels]) -> Labels:
    return reduce(or_, sets, 0)
