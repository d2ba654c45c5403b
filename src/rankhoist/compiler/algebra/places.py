"""Blocks that are read at places which a candidate chooses: what they are read from, and read from something else.

Law: `sum_t p_t = 1`, since p is 1 at one place, so `f(sum_t p_t x_t, c) = sum_t p_t f(x_t, c)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rankhoist.compiler.algebra.forms import Block, Factor, Labels, Term, rename
from rankhoist.compiler.algebra.workload import Workload
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.lengths import usual


def before(workload: Workload, blocks: Sequence[Block]) -> tuple[Factor, list[Block]] | None:
    """Which places all blocks are read at, if at all, and what they are read from.

    None where something else is the candidate's, or where there is less to compute of what is read.
    """
    chosen: Factor | None = None
    seen, inner = set(blocks[0].visible), []
    for block in blocks:
        terms = []
        for term in block.terms:
            late = [f for f in term.factors if f.node.rate.per_candidate]
            if late:
                chosen = chosen or late[0]
                if len(late) > 1 or len(term.factors) == 1 or not _same_places(late[0], chosen):
                    return None
                if not seen.issuperset(chosen.labels[:-1]):  # a sum of reads at several places
                    return None
                rest = Term(tuple(f for f in term.factors if f is not late[0]), term.scale)
                (term,) = rename(Block((), (rest,)), {late[0].labels[-1]: chosen.labels[-1]}).terms
            terms.append(term)
        inner.append(Block(block.labels, tuple(terms)))
    return (chosen, inner) if chosen is not None and _less(workload, chosen, inner) else None


def chosen_once(term: Term) -> Term:
    """What is read at the same places is multiplied there: `p_t p_s = 0` where s is not t, and `p_t p_t = p_t`."""
    for i, x in enumerate(term.factors):
        for k in range(i + 1, len(term.factors)):
            y = term.factors[k]
            if _same_places(y, x):
                rest = Term((*term.factors[:k], *term.factors[k + 1 :]), term.scale)
                return chosen_once(*rename(Block((), (rest,)), {y.labels[-1]: x.labels[-1]}).terms)
    return term


def _same_places(x: Factor, y: Factor) -> bool:
    if x.place is None or y.place is None or x.place.size != y.place.size:
        return False
    return x.labels[:-1] == y.labels[:-1] and x.node.args[0] is y.node.args[0]


def _less(workload: Workload, chosen: Factor, inner: Sequence[Block]) -> bool:
    """Whether all requests have no more elements at all places than all candidates at theirs."""
    seen = {*inner[0].visible, chosen.labels[-1]}
    before = {x for block in inner for t in block.terms for f in t.factors for x in f.labels} & seen
    after = (before | {*chosen.labels}) - {chosen.labels[-1]}
    sizes = [usual(math.prod(x.size for x in labels)) for labels in (before, after)]
    return bool(workload.requests * sizes[0] <= workload.candidates * sizes[1])


def read(builder: Builder, made: Block, chosen: Factor, labels: tuple[Labels, ...]) -> Block:
    """What was made of all places, read."""
    index, place = chosen.node.args[0], chosen.labels[-1]
    terms = []
    for term in made.terms:
        if any(place in f.labels for f in term.factors):
            node = builder.places(index, place.size, term.factors[0].node.dtype)
            term = Term((Factor(node, chosen.labels), *term.factors), term.scale)
        terms.append(term)
    return Block(labels, tuple(terms))
