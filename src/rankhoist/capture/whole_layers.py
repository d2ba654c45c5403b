"""A model of which PyTorch computes whole attention layers by one operator where gradients are off.

That operator is not exported, and nothing is known of it. It answers otherwise than the layer's own lines do: padding
comes out as 0, if no row of a call has it before what is none, and a query that sees nothing is NaN. A hoisted model
computes what the lines say, so a model with two answers is refused, until its author has chosen one.
"""

from __future__ import annotations

import inspect
from typing import Any
from unittest import mock

import torch
from torch import nn

from rankhoist.capture.alike import at_rows, leaves_alike, rows_of
from rankhoist.capture.as_called import may_be_called
from rankhoist.capture.export import quiet
from rankhoist.errors import UnsupportedModelError

ROWS = 64  # of the example, at most


def check_whole_layers(model: nn.Module, bound: inspect.BoundArguments, program: torch.export.ExportedProgram) -> None:
    """Hold a model beside itself on rows of its example, with that operator and without.

    Raises:
        UnsupportedModelError: its scores differ.
    """
    if may_be_called(model, program) and _answers_differ(model, bound):
        raise UnsupportedModelError(
            "the model has two answers for rows of the example: where gradients are off, PyTorch computes whole "
            "attention layers by one operator, of which padding comes out as 0, or a query that sees nothing as NaN. "
            "Hoisted scores are those of the layers' own lines. Call torch.backends.mha.set_fastpath_enabled(False) "
            "before hoist, and wherever else the model is scored (or give an encoder enable_nested_tensor=False, or "
            "every query something to see)"
        )


def _answers_differ(model: nn.Module, bound: inspect.BoundArguments) -> bool:
    given, enabled = (bound.args, bound.kwargs), torch.backends.mha.get_fastpath_enabled()
    rows = list(range(min(rows_of(given), ROWS)))

    def scores() -> Any:
        args, kwargs = at_rows(rows, given)
        return model(*args, **kwargs)

    whole = mock.patch.object(torch.backends.mha, "get_fastpath_enabled", return_value=enabled)
    try:
        with torch.no_grad(), quiet():
            with whole as asked:
                truth = scores()
            if not (enabled and asked.called) or leaves_alike(scores(), truth):
                return False
            with whole:
                return leaves_alike(scores(), truth)
    except Exception:  # whatever it is, it is told where it matters
        return False
