"""A target that is written into its history, at a place that the request says, as one behind the history.

Law: let `x = put(h, p, y)` be h but at place p, where it is y. What computes every place by itself keeps that:
`f(x) = put(f(h), p, f(y))`. An attention whose queries see no later key does up to place p: a query before p reads what
is before p, of h alone, and the query at p reads that and the key of y; of both, h's own key at p is hidden. Places
behind p are what they may be, if place p alone is read at last.

So a history is computed of h once per request, its next place in place p, and of what depends on y one place, as
`behind` writes them.

A key that is filled with a finite number is hidden as well from a query whose highest score lies far enough above it,
by `algebra/fills`. If that is so here of queries before p and of that at p, it is so in the original, layer by layer:
they see the same there. Their highest scores are further results, by which a plan tells whether it holds.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from torch import fx

from rankhoist.capture import Program
from rankhoist.capture.defaults import fill
from rankhoist.capture.operators import draws
from rankhoist.compiler.algebra.fills import GAP
from rankhoist.compiler.demand.behind import Behind, Supposed
from rankhoist.compiler.demand.constants import Constants
from rankhoist.compiler.demand.made import rates_of
from rankhoist.compiler.demand.puts import PUTS, READS, Spelled
from rankhoist.compiler.graph.decline import Decline


def behind(program: Program, supposing: bool = False) -> Program:
    """The same program with targets behind their histories; itself where it writes none into one. With `supposing`, on
    the condition that finite fills hide, too.
    """
    found = {n.target for n in program.graph.nodes}
    without: set[str] = set()
    if program.training:  # what is hidden may have no finite gradient, and 0 times that is none
        return program
    while not found.isdisjoint(PUTS) and not found.isdisjoint(READS):
        made, left = _without(program, without, -GAP if supposing else -math.inf)
        if not left:
            return made
        without |= left
    return program


def _without(program: Program, without: Collection[str], least: float) -> tuple[Program, set[str]]:
    """But for some of the targets; also those that somebody else reads where they are."""
    graph = fx.Graph()
    places: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(program.graph, places)  # all but its output
    outputs = [places[x] if isinstance(x, fx.Node) else x for x in program.outputs]
    last = graph.output(tuple(outputs))
    copy, constants = replace(program, graph=graph, outputs=outputs), Constants(program)
    spelled, rates, moved = Spelled(program.rows, constants), rates_of(program, graph), set[fx.Node]()
    supposed: list[Supposed] = []
    own = [put for put in map(spelled.put, graph.nodes) if put and put.node.name not in without]
    puts = [put for put in own if max(rates[put.history], rates[put.place]) < 2 == rates[put.value]]
    for node in list(graph.nodes) if puts else ():
        read = spelled.read(node)
        if read is not None:
            try:
                own_read = Behind(copy, constants, rates, puts, node, read, least)
                moved |= own_read.moved()
            except Decline:
                continue
            supposed += own_read.supposed
    last.args = ((*last.args[0], *(s.peaks for s in supposed)),)
    graph.eliminate_dead_code(lambda n: n.is_impure(impure_random=draws(n)))
    left = {node.name for node in moved.intersection(graph.nodes)}
    if not moved or left:
        return program, left
    fill(graph)
    asked = program.asked | constants.decided
    fills = tuple((s.name, s.number) for s in supposed)
    return replace(program, graph=graph, outputs=list(last.args[0]), asked=asked, wider=program, fills=fills), left
