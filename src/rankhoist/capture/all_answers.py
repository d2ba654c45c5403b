"""A model exported as if there was work wherever its Python asks, if that is what it computes (see `shortcuts`)."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import fx
from torch.export import ExportedProgram

from rankhoist.capture.composites import written_anew
from rankhoist.capture.defaults import fill
from rankhoist.capture.effects import without_tokens
from rankhoist.capture.nowhere import same_where_nothing
from rankhoist.capture.one_number import written_out
from rankhoist.capture.recurrent import of_any_length
from rankhoist.capture.shortcuts import MARK, MOST, Answers
from rankhoist.capture.true_places import by_masks
from rankhoist.capture.unread import unread


def of_all_answers(export: Callable[[Answers | None], ExportedProgram]) -> ExportedProgram:
    """A model exported as if there was work wherever it asks, if that is what it computes; as it is otherwise.

    Args:
        export: with answers; or without, when torch.export refuses a question.
    """
    busy = Answers()
    program = export(busy)
    if busy.asked and (len(busy.asked) > MOST or not _holds(program, busy, export)):
        return export(None)
    for part in [m for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)]:
        for node in part.graph.find_nodes(op="call_function", target=MARK):
            for own in node.all_input_nodes:  # torch forgets some where it puts a part into a graph within
                own.users.setdefault(node)
            part.graph.erase_node(node)
    return program


def _holds(program: ExportedProgram, busy: Answers, export: Callable[[Answers], ExportedProgram]) -> bool:
    """Whether the model computes what was exported with answers, whatever the answers are."""
    try:
        first = _plain(program)
        for number in range(len(busy.asked)):
            idle = Answers(number)
            second = _plain(export(idle))
            goes_on = [q.state.lines for q in busy.asked] == [q.state.lines for q in idle.asked]
            if not (goes_on and same_where_nothing((first, second), (busy, idle), number)):
                return False
    except Exception:  # whatever it is, there is nothing to compare
        return False
    return True


def _plain(program: ExportedProgram) -> ExportedProgram:
    """In the words in which graphs are compared, without writes. The program itself is left as it is."""
    own = copy.copy(program)
    own._graph_module = fx.GraphModule(program.graph_module, copy.deepcopy(program.graph))
    graphs_within = any(n.op == "get_attr" for n in own.graph.nodes)
    if graphs_within or not written_anew(own.graph):
        with of_any_length(), unread():
            own = program.run_decompositions({})
        without_tokens(own)
    written_out(own.graph)
    by_masks(own.graph)
    fill(own.graph)
    return own
