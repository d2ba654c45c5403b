"""A model becomes a grouped one: captured in the mode it is in, planned for forward and backward."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rankhoist.capture import Context, Dynamic, capture
from rankhoist.capture.bags import BagNames
from rankhoist.capture.wrappers import Method, unwrapped
from rankhoist.compiler.algebra.workload import Level, Workload, parse_level, workload_of
from rankhoist.compiler.plan import Task, make_plan, single
from rankhoist.compiler.rules import all_rules
from rankhoist.compiler.targets import this_machine
from rankhoist.compiler.targets.training import training
from rankhoist.errors import CaptureError, UnsupportedModelError
from rankhoist.runtime import HoistedModel
from rankhoist.runtime.blueprint import Blueprint
from rankhoist.training.model import GroupedModel

DROPOUT = ("rows", "request")
USUAL = Workload(candidates=3200, requests=32)


def grouped(
    model: nn.Module, example: Any, *, context: Context, item: Context | None = None,
    workload: Workload | None = None, level: str = "full", dropout: str = "rows", dynamic: Dynamic | None = None,
    jagged: BagNames | None = None,
) -> GroupedModel:  # fmt: skip
    """A module with the parameters of `model`, themselves, that is trained on one row of context per request.

    The model is captured in the mode that it is in, and in another one at the first call in that mode: give it in
    training mode, so that what cannot be trained is refused here.

    Args:
        model: the module to train. Modules that stay in eval mode (frozen batch norms) are captured so.
        example: the tuple of positional inputs (or the dict of keyword inputs), rows on axis 0 of every tensor.
        context: names or globs of the inputs that belong to the request; for a packed input a mapping
            `{name: columns}`. All else is the candidate's.
        item: the same of the inputs that an item has wherever it is a candidate, as `hoist` is told for a store.
            Weights change in every step, so nothing of an item is stored: such an input is the candidate's, with one
            row for each, also where a batch holds an item twice. It is checked, so that scoring may be told the same.
        workload: candidates and requests of a batch that the plan is made for (default 3200 and 32).
        level: what may be hoisted: `expand`, `lookup`, `request`, `linear`, `first` or `full`.
        dropout: of values that are the request's: `rows` draws a mask for every row, as training on rows does, so that
            what follows is computed per row; `request` draws one mask per request, which is another regulariser.
        dynamic: axes of context inputs whose length varies from batch to batch; see `hoist`.
        jagged: for values in bags, what cuts them, by the names of inputs; see `hoist`.

    Raises:
        CaptureError: see `rankhoist.errors`; a model that cannot be trained so is refused with the path of the module
            that stands in the way.

    Example:
        >>> model = nn.Bilinear(8, 4, 1)  # scores a user [rows, 8] and an item [rows, 4]
        >>> step = grouped(model, (torch.randn(5, 8), torch.randn(5, 4)), context=["input1"])
        >>> loss = step(torch.randn(2, 8), torch.randn(50, 4), request_offsets=[0, 20, 50]).square().mean()
        >>> loss.backward()  # into model.weight.grad
    """
    if dropout not in DROPOUT:
        raise CaptureError(f"unknown dropout {dropout!r}; it is drawn per one of {', '.join(DROPOUT)}")
    model = unwrapped(model)
    if isinstance(model, HoistedModel | GroupedModel):
        raise CaptureError(f"the model is a {type(model).__name__} already: give grouped the one that it was made of")
    if isinstance(model, Method):
        raise CaptureError("a module is trained, not a method of one: make a module whose forward calls it")
    build = Build(
        example, dict(context=context, item=item, jagged=jagged, dynamic=dynamic), parse_level(level),
        workload_of(workload, USUAL), dropout, _floating(model).dtype,
    )  # fmt: skip
    made = GroupedModel(model, build)
    made.graph  # noqa: B018 - what cannot be captured is refused now
    return made


@dataclass(frozen=True)
class Build:
    """How a mode of a model becomes a graph, as its author asked for it. A pickled model takes it along.

    Attributes:
        inputs: what is said of them.
        dtype: of the example's floating numbers.
    """

    example: Any
    inputs: dict[str, Any]
    level: Level
    workload: Workload
    dropout: str
    dtype: torch.dtype

    def __call__(self, model: nn.Module) -> Blueprint:
        """Of the mode that the model is in, in its dtype and on its device.

        Autocast is whoever's who calls the graph: it is off here, for a graph would keep its casts.
        """
        _check_statistics(model)
        now = _floating(model)  # the model may have moved since
        moved = pytree.tree_map_only(
            Tensor, lambda t: t.to(now.device, now.dtype if t.dtype == self.dtype else t.dtype), self.example
        )
        with torch.autocast(now.device.type, enabled=False):
            captured = capture(model, moved, known=all_rules(), training=True, **self.inputs)
        program = replace(captured, dropout=self.dropout)
        task = Task(program, self.level, self.workload, training(this_machine()))
        return Blueprint.of(program, single(make_plan(task)))


def _check_statistics(model: nn.Module) -> None:
    """That no module takes its statistics from several processes, or weighs them by a number that steps change.

    Raises:
        UnsupportedModelError: says which module does.
    """
    for name, module in model.named_modules():
        if module.training and getattr(module, "momentum", 0.1) is None and getattr(module, "track_running_stats", 0):
            raise UnsupportedModelError(
                f"module {name!r} ({type(module).__name__}, momentum=None) averages its statistics over all steps, by "
                "a weight that it reads from a tensor in each: give it a momentum, such as 0.1"
            )
        if isinstance(module, nn.SyncBatchNorm):
            raise UnsupportedModelError(
                f"module {name!r} (SyncBatchNorm) takes its statistics from the rows of all processes. Grouped batches "
                "have them from those of one: use BatchNorm, or train this model on rows."
            )


def _floating(model: nn.Module) -> Tensor:
    """A tensor in the dtype and on the device of the model."""
    return next((t for t in model.parameters() if t.is_floating_point()), torch.empty(0))
