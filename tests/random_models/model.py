"""A random model: its graph, inputs for it, and the truth that any hoisted form of it is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from random_models.printing import code
from rankhoist import Split
from rankhoist.capture import InputSpec, Program


@dataclass(repr=False)
class RandomModel:
    """A drawn model, with inputs of `REQUESTS` requests and `CANDIDATES` candidates.

    Attributes:
        program: what `capture` would have made of it.
        context, candidate: inputs by name; a packed input is in both.
        mixes_rows: an operator lets rows meet.
    """

    program: Program
    context: dict[str, Tensor]
    candidate: dict[str, Tensor]
    mixes_rows: bool

    def rows(self, context: Mapping[str, Tensor], candidate: Mapping[str, Tensor], owner: Tensor) -> dict[str, Tensor]:
        """Whole rows for the original model: row i has the context of request `owner[i]`."""
        return {s.name: whole_rows(s, context, candidate, owner) for s in self.program.inputs.values()}

    def original(self, context: Mapping[str, Tensor], candidate: Mapping[str, Tensor], owner: Tensor) -> list[Any]:
        """The outputs of the recorded graph, over `len(owner)` rows: that is the truth."""
        inputs = self.rows(context, candidate, owner)
        values: dict[fx.Node, Any] = {}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                weight = self.program.weights.get(node.name)
                values[node] = weight.tensor if weight else inputs[self.program.inputs[node.name].name]
            elif node.op == "call_function":
                values[node] = node.target(*replaced(node.args, values), **replaced(node.kwargs, values))
        return [values[o] if isinstance(o, fx.Node) else o for o in self.program.outputs]

    def call(self, context: Mapping[str, Tensor], candidate: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments for the hoisted model."""
        split = {n: Split(context[n], candidate[n]) for n in context.keys() & candidate.keys()}
        return {**context, **candidate, **split}

    def __repr__(self) -> str:
        return f"RandomModel(mixes_rows={self.mixes_rows}):\n{code(self.program)}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


def replaced(arguments: Any, values: Mapping[fx.Node, Any]) -> Any:
    """Arguments of a node, with values in place of nodes."""
    return fx.node.map_arg(arguments, values.__getitem__)


def whole_rows(
    spec: InputSpec, context: Mapping[str, Tensor], candidate: Mapping[str, Tensor], owner: Tensor
) -> Tensor:
    """An input as the original model takes it, `[len(owner), *spec.shape]`."""
    if spec.role == "candidate":
        return candidate[spec.name]
    repeated = context[spec.name][owner]
    if spec.role == "context":
        return repeated
    whole = repeated.new_empty(len(owner), *spec.shape)
    whole[:, list(spec.columns)] = repeated
    whole[:, list(spec.candidate_columns)] = candidate[spec.name]
    return whole
