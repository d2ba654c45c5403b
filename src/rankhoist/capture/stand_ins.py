"""A module exported with others in place of parts that do not export; then it is held beside what it was."""

from __future__ import annotations

import inspect

import torch
from torch import nn

from rankhoist.capture.alike import at_rows, leaves_alike, rows_of
from rankhoist.capture.as_called import as_called
from rankhoist.capture.bags import JaggedCall
from rankhoist.capture.checks import check_exported
from rankhoist.capture.export import export
from rankhoist.capture.flex import flex_as_operators
from rankhoist.capture.packed import packed_as_padded
from rankhoist.capture.pieces import in_pieces
from rankhoist.capture.scripts import converted, scripts_converted
from rankhoist.capture.shortest import shortest
from rankhoist.capture.stateless import check_stateless, written
from rankhoist.capture.varying import Axes
from rankhoist.capture.whole_layers import check_whole_layers
from rankhoist.errors import UnsupportedModelError

ALONE = 8  # rows of the example that are computed each by itself


def exported(
    model: nn.Module, bound: inspect.BoundArguments, training: bool, jagged: JaggedCall | None, varying: Axes
) -> torch.export.ExportedProgram:
    """The module's graph, of one symbolic number of rows.

    Raises:
        CaptureError: see `capture`.
    """
    if isinstance(model, torch.jit.ScriptModule):
        model = converted(model, bound.args)
        bound = inspect.signature(model.forward).bind(*bound.args)
    with (
        scripts_converted(model, bound) as scripts,
        packed_as_padded() as met,
        flex_as_operators(),
        written(model) as attributes,
    ):
        if jagged is not None:
            program = jagged.export(model, bound, training)
        elif training:
            program = export(model, bound, training, varying)
        else:
            program = as_called(model, bound, lambda strict: in_pieces(model, bound, varying, strict))
        others = scripts or met.sequences
    if training:
        check_exported(program)
        return program
    check_stateless(model, bound, attributes)
    if jagged is None:
        with written(model):
            check_whole_layers(model, bound, program)
    if others and jagged is None:
        check_alike(model, bound, program)
    if varying:
        shortest(model, bound, program)
    return program


def check_alike(model: nn.Module, bound: inspect.BoundArguments, program: torch.export.ExportedProgram) -> None:
    """Hold a program beside its model, on all rows of the example and, where it takes them, on single ones.

    Raises:
        UnsupportedModelError: they differ.
    """
    given, run = (bound.args, bound.kwargs), program.module()
    count = rows_of(given)
    for rows in [list(range(count)) * 2, *([i, i] for i in range(min(count, ALONE)))]:
        args, kwargs = at_rows(rows, given)
        with torch.no_grad():
            made = run(*args, **kwargs)
            try:
                truth = model(*args, **kwargs)
            except Exception:  # whatever it is, it is the model's own failure
                continue
        if not leaves_alike(made, truth):
            raise UnsupportedModelError(
                "the model's packed sequences or scripts were taken for modules of PyTorch's operators, and on rows "
                f"{sorted({*rows})[:ALONE]} of the example scores differ: a score depends on the other rows of a call, "
                "as on the longest of their sequences. Pad to one length (total_length=)"
            )
