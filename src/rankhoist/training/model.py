"""The grouped module: the parameters of a model, and a forward that computes context work once per request."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from rankhoist.capture import Interface
from rankhoist.compiler.graph.trained import Counts
from rankhoist.compiler.plan import PlanSummary
from rankhoist.report import Report
from rankhoist.runtime.blueprint import Blueprint
from rankhoist.runtime.offsets import Offsets, blocks_of
from rankhoist.runtime.tune import SECONDS
from rankhoist.training.captured import Captured
from rankhoist.training.graph import Graph, counts_of
from rankhoist.training.graphs import Graphs
from rankhoist.training.steps import tuned_steps

Mode = tuple[bool, ...]  # the training flag of every module
Build = Callable[[nn.Module], Blueprint]
CountsOf = Callable[["Offsets | None", int, int], Counts]


class GroupedModel(nn.Module):
    """The parameters, buffers and submodules of a model, themselves, and a forward over grouped batches.

    Call it as a hoisted model: context tensors have one row per request `[R, ...]`, candidate tensors one row per
    candidate `[N, ...]`, and `request_offsets` gives the R + 1 boundaries of the requests' blocks of candidates. The
    result has N rows. It is the model's on whole rows, and so are the gradients of a loss over it, and what batch norms
    remember, to rounding.

    Optimisers, checkpoints and wrappers see the model's own: `parameters()`, `state_dict()` and `train()` are those of
    the model. Each pattern of training flags has a graph of its own, made at its first call, and is tuned by itself; it
    is made anew at the next call where a module has been replaced, a setting such as the share of a dropout has
    changed, or weights that were one are no longer.
    """

    def __init__(self, model: nn.Module, build: Build) -> None:
        super().__init__()
        self.training = model.training
        # What follows is for Python, under `torch.compile` too: numbers in tensors, and how a model is captured. Said
        # here, for to say it imports the compiler, which takes seconds.
        self._counts: CountsOf = torch.compiler.disable(_counts)
        vars(self).update(original=model, build=torch.compiler.disable(build))  # no submodule: its parts are this one's
        self._asked = build
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self._graphs: dict[Mode, Graphs] = {}

    original: nn.Module
    build: Build

    def forward(self, *args: Any, request_offsets: Offsets | None = None, **kwargs: Any) -> Any:
        """What the model returns for context rows repeated per candidate: N rows.

        Raises:
            InputError: an input is missing or has the wrong kind, shape or row count; offsets do not fit.
            WeightsError: a mask or an index that the graph was made from has changed.
            CaptureError: at the first call in a mode, where the model cannot be trained so.
        """
        graphs = self.graphs
        return self._of_sides(graphs, *graphs.main.inputs.of_call(args, kwargs), request_offsets)

    def _of_sides(
        self, graphs: Graphs, context: dict[str, Any], candidate: dict[str, Any], request_offsets: Offsets | None
    ) -> Any:
        """The same of the inputs of each side by name."""
        inputs = graphs.main.inputs
        requests, rows = inputs.accept("context", context), inputs.accept("candidate", candidate)
        context, candidate = inputs.stage_inputs(context), inputs.stage_inputs(candidate)
        counts = self._counts(request_offsets, requests, rows)
        return graphs.at(rows, requests).run(context, candidate, requests, rows, counts)

    @property
    def graphs(self) -> Graphs:
        """Those of the mode in which every module is now, in the model's dtype and on its device."""
        modules = tuple(self.original.modules())
        mode = _mode(modules)
        found = self._graphs.get(mode)
        if found is None or not found.captured.holds(modules):
            found = Graphs.of(Graph.of(self.original, self.build(self.original)), Captured.of(self.original))
        self._graphs[mode] = made = found.here()
        return made

    @property
    def graph(self) -> Graph:
        """That of the plan for the workload, in the mode that it is in."""
        return self.graphs.main

    def tune(
        self, candidates: Sequence[int] = (), requests: Sequence[int] = (), seconds: float = SECONDS,
        progress: Callable[[str], Any] = lambda told: None,
    ) -> GroupedModel:  # fmt: skip
        """Time steps of the best plans here, the original on rows among them, and use what is fastest in this mode.

        A step is forward and backward, on made-up rows, the example's where it is known. Scores and gradients of each
        plan must be the original's before it is timed, in float64 on a copy of the model without dropout; then they
        take turns. What won computes batches of about the sizes measured, in the mode that the model is in, and is
        shown by `report`. Parameters and their `grad`, buffers and the state of random numbers stay as they were.

        Args:
            candidates, requests: of the batches to measure, every number of candidates (in all) with each of requests;
                by default those that it was grouped for.
            seconds: for all of it, beside the search for plans. What is not begun then is left out, and said so.
            progress: told of each step, in words.

        Raises:
            InputError: a number is below 1.
            VerificationError: no plan computes what the original does.
        """
        usual = self.plan.workload
        sizes = candidates or (usual.candidates,), requests or (usual.requests,)
        self._graphs[_mode(self.original.modules())] = tuned_steps(
            self.original, self.graphs, *sizes, seconds, progress
        )
        return self

    @property
    def interface(self) -> Interface:
        """How it is called."""
        return self.graph.inputs.interface

    @property
    def plan(self) -> PlanSummary:
        """The plan of the mode that it is in."""
        return self.graphs.plans.main

    def report(self) -> Report:
        """Per captured operator: its rate, its work before and after, and why what stayed per candidate stayed."""
        return self.graphs.report()

    def forget(self) -> None:
        """Capture the model anew at the next call: forward reads something that has changed, and that no call looks at
        (a whole number or a tensor that is a plain attribute).
        """
        self._graphs.clear()

    def train(self, mode: bool = True) -> GroupedModel:
        """The training flag of the model and of all its modules."""
        self.original.train(mode)
        self.training = mode
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """The model and how it was asked for: graphs are made anew where it is loaded."""
        return GroupedModel, (self.original, self._asked)

    def __deepcopy__(self, memo: dict[int, Any]) -> GroupedModel:
        """A copy of the model, grouped; graphs, which nobody changes, are shared."""
        made = GroupedModel(copy.deepcopy(self.original, memo), self._asked)
        modules = tuple(self.original.modules())
        good = {mode: graphs for mode, graphs in self._graphs.items() if graphs.captured.holds(modules)}
        made._graphs = {mode: graphs.copied(made.original) for mode, graphs in good.items()}
        return made


def _mode(modules: Iterable[nn.Module]) -> Mode:
    return tuple([m.training for m in modules])


def _counts(offsets: Offsets | None, requests: int, rows: int) -> Counts:
    return counts_of(blocks_of(offsets, requests, rows), rows)
