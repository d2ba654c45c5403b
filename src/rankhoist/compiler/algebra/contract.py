"""Sums of products become tensors.

Law: a block's value is a sum of einsums whose row label is absent from weight-rate operands and shared by all rows of a
request in request-rate ones. Any order of pairwise products gives the same value; the cheapest for the workload is
taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

from rankhoist.compiler.algebra import places, products
from rankhoist.compiler.algebra.forms import Block, Factor, Label, Term
from rankhoist.compiler.algebra.gathers import as_products
from rankhoist.compiler.algebra.order import Tree, cheapest
from rankhoist.compiler.algebra.products import size
from rankhoist.compiler.algebra.workload import Workload
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.lengths import usual
from rankhoist.compiler.graph.node import Rate, join


def settle(builder: Builder, block: Block, workload: Workload) -> Block:
    """Evaluate a block into one factor; labels that it does not depend on stay absent.

    What is added to a read is added before it, where that is less.
    """
    if block.settled:
        return block
    found = places.before(workload, [block]) if len(block.terms) > 1 else None
    if found is not None:
        chosen, (inner,) = found
        made = settle(builder, Block((*inner.labels, chosen.labels[-1:]), inner.terms), workload)
        return settle(builder, places.read(builder, made, chosen, block.labels), workload)
    sums = Sums(builder, workload, frozenset(block.visible))
    total = sums.total([sums.value(group) for group in sums.grouped(block.terms)])
    return Block(block.labels, (Term((total,)),))


def simplify(builder: Builder, block: Block, workload: Workload) -> Block:
    """A block to keep: one evaluated fixed term; in all others one per-candidate factor, like terms added up."""
    if block.settled:
        return block
    fixed = tuple(t for t in block.terms if not t.rate.per_candidate)
    if fixed:
        fixed = settle(builder, Block(block.labels, fixed), workload).terms
    sums = Sums(builder, workload, frozenset(block.visible))
    terms = [sums.with_one_moving(t) for t in block.terms if t.rate.per_candidate]
    groups = sums.grouped(terms, by_coefficient=True)
    return Block(block.labels, (*fixed, *(t for group in groups for t in sums.folded(group))))


@dataclass(frozen=True)
class Sums:
    """Terms as they are evaluated in a builder, for a workload: labels that are not `visible` are summed.

    The *moving* factors of a term are those per candidate; the others are its coefficient.
    """

    builder: Builder
    workload: Workload
    visible: frozenset[Label]

    def keeping(self, labels: Iterable[Label]) -> Sums:
        """The same, but these labels are not summed either."""
        return replace(self, visible=self.visible | {*labels})

    def split(self, term: Term) -> tuple[list[Factor], list[Factor]]:
        """The coefficient of a term, and its moving factors.

        What is kept of items is a coefficient, where something else is computed for each candidate and a store may
        hold what the coefficient is then. A choice of places is one where there are candidates' values: it is no value
        itself.
        """
        every = [f for f in term.factors if f.node.rate.per_candidate]
        every = [f for f in every if f.place is None] or every
        moving = [f for f in every if not self.workload.before(f.node.rate)]
        if moving and len(moving) < len(every):
            left = self.visible.union(*(f.labels for f in moving))
            held = {x for f in term.factors if f not in moving for x in f.labels if x in left}
            if not self.workload.holds(usual(size(held))):
                moving = every
        moving = moving or every
        return [f for f in term.factors if f not in moving], moving

    # -- like terms

    def grouped(self, terms: Sequence[Term], by_coefficient: bool = False) -> list[list[Term]]:
        """Terms whose moving factor is the same tensor in the same place: their coefficients add up.

        `by_coefficient`: only those which both do or both do not depend on the candidate.
        """
        groups: dict[object, list[Term]] = {}
        for i, term in enumerate(terms):
            fixed, moving = self.split(term)
            if len(moving) != 1 or len(term.factors) == 1:
                groups[i] = [term]
                continue
            (f,) = moving
            private = [x for x in f.labels if x not in self.visible]
            place = tuple(private.index(x) if x in private else id(x) for x in f.labels)
            kind = by_coefficient and any(f.node.rate.per_candidate for f in fixed)
            groups.setdefault((f.node.index, place, kind), []).append(term)
        return list(groups.values())

    def folded(self, terms: list[Term]) -> list[Term]:
        """`C_1 z + C_2 z = (C_1 + C_2) z`, where adding the coefficients is cheaper than multiplying each."""
        if len(terms) == 1:
            return terms
        terms = self._with_same_private_labels(terms)
        moving = self.split(terms[0])[1][0]
        outer = self.keeping(moving.labels)
        coefficients = [Term(tuple(self.split(t)[0]), t.scale) for t in terms]
        factors = [f for t in coefficients for f in t.factors]
        labels = {x for f in factors for x in f.labels if x in outer.visible} | {*moving.labels}
        rate, elements = join((moving.node.rate, *(f.node.rate for f in factors))), usual(size(labels - {moving.place}))
        joint = sum(outer.cost(t.factors) for t in coefficients) + self.workload.of_size(rate, elements) * elements
        if joint > sum(self.cost(t.factors) for t in terms):
            return terms
        return [Term((self.total([outer.product(t) for t in coefficients]), moving))]

    def _with_same_private_labels(self, terms: list[Term]) -> list[Term]:
        """Call the summed axes of the shared factor the same in all terms.

        A term's other summed labels get new names: they may be those that another term has on the shared factor.
        """
        first = self.split(terms[0])[1][0]
        result = []
        for term in terms:
            own = self.split(term)[1][0]
            names = {x: Label(x.size) for f in term.factors for x in f.labels if x not in self.visible}
            names |= dict(zip(own.labels, first.labels, strict=True))
            factors = tuple(Factor(f.node, tuple(names.get(x, x) for x in f.labels)) for f in term.factors)
            result.append(Term(factors, term.scale))
        return result

    # -- products

    def with_one_moving(self, term: Term) -> Term:
        """`(C_1 z_1)(C_2 z_2) = (C_1 C_2)(z_1 z_2)` where the product of what moves is small; else evaluated."""
        term = self.chosen_once(term)
        fixed, moving = self.split(term)
        if len(moving) < 2:
            return term
        if not self.small(term):
            return Term((self.product(term),))
        outer = self.keeping(x for f in fixed for x in f.labels)
        return Term((*fixed, outer.product(Term(tuple(moving)))), term.scale)

    def small(self, term: Term) -> bool:
        """Whether the moving factors multiply to something smaller than the block itself, coefficient or not: of
        `(x - mean) s` the candidate's part of `mean s` is a number.
        """
        fixed, moving = self.split(term)
        if all(f.place for f in moving):
            return False
        coefficient, own = ({x for f in factors for x in f.labels} for factors in (fixed, moving))
        left = [x for x in own if x in self.visible or x in coefficient]
        return bool(2 * size(left) <= size(self.visible))

    def product(self, term: Term) -> Factor:
        """One term, in its cheapest order."""
        term = self.chosen_once(term)
        factors = list(term.factors)
        cheap = min(range(len(factors)), key=lambda i: (factors[i].node.rate, math.prod(factors[i].node.shape)))
        early = term.scale != 1.0 and not factors[cheap].node.rate.per_candidate and len(factors) > 1
        if early:
            factors[cheap] = products.scaled(self.builder, factors[cheap], term.scale)
        factors = as_products(self.builder, factors, self.visible, self.workload)
        tree = cheapest(factors, self.visible, self.workload).tree
        result = products.sum_out(self.builder, self._carried_out(tree, factors), self.visible)
        return result if early else products.scaled(self.builder, result, term.scale)

    def chosen_once(self, term: Term) -> Term:
        """The same product, where that is cheaper with one choice for all that is read at the same places."""
        once = places.chosen_once(term)
        return once if once is not term and self.cost(once.factors) < self.cost(term.factors) else term

    def _carried_out(self, tree: Tree, factors: Sequence[Factor]) -> Factor:
        if isinstance(tree, int):
            return factors[tree]
        inside = set(_leaves(tree))
        outside = {x for i, f in enumerate(factors) if i not in inside for x in f.labels}
        left, right = (self._carried_out(side, factors) for side in tree)
        return products.product(self.builder, left, right, self.visible | outside)

    def cost(self, factors: Sequence[Factor]) -> int:
        """Units of their product; see `order`."""
        return cheapest(factors, self.visible, self.workload).cost

    # -- sums

    def value(self, terms: list[Term]) -> Factor:
        """The sum of a group: coefficients first where that is cheaper, one product per term otherwise."""
        return reduce(partial(products.add, self.builder), [self.product(t) for t in self.folded(terms)])

    def total(self, parts: Sequence[Factor]) -> Factor:
        """The sum, what is known first before the rest.

        What depends on items alone is added up by itself where it is stored: one tensor is read in place of several.
        """
        both, items = partial(products.add, self.builder), [f for f in parts if f.node.rate is Rate.ITEM]
        if self.workload.stored and len(items) > 1:
            parts = [*(f for f in parts if f not in items), reduce(both, items)]
        return reduce(both, sorted(parts, key=lambda f: (f.node.rate, len(f.labels))))


def _leaves(tree: Tree) -> list[int]:
    if isinstance(tree, int):
        return [tree]
    return [i for side in tree for i in _leaves(side)]
