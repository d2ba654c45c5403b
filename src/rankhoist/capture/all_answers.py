"""A model exported as if there was work wherever its Python asks, if that is what it computes (see `between`)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from torch import fx
from torch.export import ExportedProgram

from rankhoist.capture.between import same_whatever
from rankhoist.capture.composites import few_prepared, written_anew
from rankhoist.capture.defaults import fill
from rankhoist.capture.effects import without_tokens
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
    if not busy.asked:
        return program
    held = _held(program, busy, export) if len(busy.asked) <= MOST else None
    if held is None:
        return export(None)
    for part in [m for m in held.graph_module.modules() if isinstance(m, fx.GraphModule)]:
        for node in part.graph.find_nodes(op="call_function", target=MARK):
            for own in node.all_input_nodes:  # torch forgets some where it puts a part into a graph within
                own.users.setdefault(node)
            part.graph.erase_node(node)
    return held


def _held(
    program: ExportedProgram, busy: Answers, export: Callable[[Answers], ExportedProgram]
) -> ExportedProgram | None:
    """What was exported with answers, without writes, if the model computes that whatever the answers are."""
    try:
        idle = Answers(idle=True)
        first, second = _plain([program, export(idle)])
        return first if same_whatever((first, busy), (second, idle)) else None
    except Exception:  # whatever it is, there is nothing to compare
        return None


def _plain(programs: Sequence[ExportedProgram]) -> list[ExportedProgram]:
    """In the words in which graphs are compared, without writes. The programs themselves are left as they are."""
    made = [_copied(program) for program in programs]
    if not all(_without_writes(own.graph) for own in made):  # or they would be in different words
        made = [_functional(own) for own in programs]
    for own in made:
        without_tokens(own)
        written_out(own.graph)
        by_masks(own.graph)
        fill(own.graph)
    return made


def _functional(program: ExportedProgram) -> ExportedProgram:
    with of_any_length(), unread(), few_prepared(program):
        made: ExportedProgram = program.run_decompositions({})
        return made


def _copied(program: ExportedProgram) -> ExportedProgram:
    own = copy.copy(program)
    own._graph_module = fx.GraphModule(program.graph_module, copy.deepcopy(program.graph))
    return own


def _without_writes(graph: fx.Graph) -> bool:
    """Make them anew; False where that takes more."""
    return not any(n.op == "get_attr" for n in graph.nodes) and written_anew(graph)
