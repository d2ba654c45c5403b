"""A model that asks whether it is traced, or what type a tensor is, and computes something else then:

    scale = 1 if torch.compiler.is_compiling() else torch.sqrt(1 - gate**2)        x = x if type(x) is Tensor else x[0]

What is exported is the model as it is traced, and what its callers know is the model as it is called. So a program is
held beside its model on rows of the example. Where they differ, the model is exported once more, told that nobody
traces it; torch's own questions are answered as ever. Then its bytecode is read, in which a stand-in is a Tensor.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import sys
from collections.abc import Callable, Container, Iterator
from typing import Any
from unittest import mock

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from rankhoist.capture.alike import at_rows, leaves_alike, rows_of
from rankhoist.capture.export import quiet
from rankhoist.capture.operators import is_view
from rankhoist.capture.own_lines import is_own
from rankhoist.errors import UnsupportedModelError

QUESTIONS = ("is_compiling", "is_exporting", "is_dynamo_compiling")  # of torch.compiler
FEW = 3  # rows of the example, more than `torch.export` takes for a constant


def as_called(
    model: nn.Module, bound: inspect.BoundArguments, export: Callable[[bool], torch.export.ExportedProgram]
) -> torch.export.ExportedProgram:
    """What `export` makes of a model that computes what the model does when it is called; it is told whether it is to
    read the bytecode.

    Raises:
        UnsupportedModelError: it computes something else whatever it is told.
    """
    program = export(False)
    same = _same(model, bound, program)
    if same:
        _check_one_row(model, bound, program)
    if same is not False:
        return program
    for mode, strict in ((_not_traced, False), (contextlib.nullcontext, True)):
        with contextlib.suppress(Exception), mode():
            again = export(strict)
            if _same(model, bound, again):
                return again
    raise UnsupportedModelError(
        "the graph that torch.export makes of the model scores rows of the example otherwise than the model does: it "
        "computes something else where it is traced (torch.compiler.is_compiling(), torch.jit.is_tracing(), a class "
        "that it looks at). Make it compute the same, or hoist the part that does"
    )


@contextlib.contextmanager
def _not_traced() -> Iterator[None]:
    """For who asks from files that are not torch's."""

    def told(asked: Callable[[], bool]) -> Callable[[], bool]:
        return lambda: not is_own(sys._getframe(1).f_code.co_filename) and asked()

    with contextlib.ExitStack() as stack:
        for name in QUESTIONS:
            stack.enter_context(mock.patch.object(torch.compiler, name, told(getattr(torch.compiler, name))))
        yield


def may_be_called(model: nn.Module, program: torch.export.ExportedProgram) -> bool:
    """Whether a model can be tried on its example: not on a GPU, see `refused`, and not where it writes to buffers,
    for these are the user's.
    """
    given_to_it = set(program.graph_signature.user_inputs)
    graphs = (m.graph for m in program.graph_module.modules() if isinstance(m, fx.GraphModule))
    writes = any(_writes(node, given_to_it) for graph in graphs for node in graph.nodes)
    return not writes and all(t.device.type == "cpu" for t in (*model.parameters(), *model.buffers()))


def _same(model: nn.Module, bound: inspect.BoundArguments, program: torch.export.ExportedProgram) -> bool | None:
    """Whether a program and its model score rows of the example alike; None where that is not known.

    Who draws random numbers, writes to buffers or fails is refused for that.
    """
    if not may_be_called(model, program):
        return None
    given = bound.args, bound.kwargs
    rows = list(itertools.islice(itertools.cycle(range(rows_of(given))), FEW))

    def scores(run: Callable[..., Any]) -> Any:
        args, kwargs = at_rows(rows, given)
        return run(*args, **kwargs)

    try:
        with torch.no_grad(), quiet():
            made, truth = scores(program.module(check_guards=False)), scores(model)
            if leaves_alike(made, truth):
                return True
            return False if leaves_alike(scores(model), truth) else None
    except Exception:  # whatever it is, it is told where it matters
        return None


def _check_one_row(model: nn.Module, bound: inspect.BoundArguments, program: torch.export.ExportedProgram) -> None:
    """That a row alone is scored as among others, which torch.export takes for granted. A model may fail there, or
    return it without an axis.

    Raises:
        UnsupportedModelError: it computes something else.
    """

    def scores(run: Callable[..., Any]) -> Any:
        args, kwargs = at_rows([0], (bound.args, bound.kwargs))
        return pytree.tree_map_only(torch.Tensor, torch.ravel, run(*args, **kwargs))

    try:
        with torch.no_grad(), quiet():
            run = program.module(check_guards=False)
            truth, made = scores(model), scores(run)
            same = leaves_alike(made, truth)
            settled = same or (leaves_alike(scores(model), truth) and leaves_alike(scores(run), made))
    except Exception:  # of one row; what does not take the example at all is told elsewhere
        return
    if settled and not same:  # who draws random numbers or keeps something is refused for that
        raise UnsupportedModelError(
            "the model scores one row alone otherwise than among others: it asks for their number (`if len(x) == 1:`), "
            "or a `squeeze()` loses the axis of rows: write `squeeze(1)`, and make it compute the same of every number"
        )


def _writes(node: fx.Node, given: Container[Any]) -> bool:
    """Whether it writes to what is there before the call, and was not `given` to it: a weight."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return False
    written: Any = node
    while isinstance(op := written.target, torch._ops.OpOverload) and (op._schema.is_mutable or is_view(op)):
        written = written.args[0] if written.args else None
        if not isinstance(written, fx.Node):
            return True
    return written.op != "call_function" and written.name not in given
