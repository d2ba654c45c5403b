"""A random model: its graph, inputs for it, and the truth that any hoisted form of it is held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from random_models.printing import code
from random_models.rows import LENGTHS
from rankhoist import Split
from rankhoist.capture import InputSpec, Program
from rankhoist.capture.jagged import flat

Inputs = Mapping[str, Any]  # tensors or bags by name


@dataclass(repr=False)
class RandomModel:
    """A drawn model, with inputs of `REQUESTS` requests and `CANDIDATES` candidates.

    Attributes:
        program: what `capture` would have made of it.
        context, candidate: inputs by name, tensors or bags; a packed input is in both.
        mixes_rows: an operator lets rows meet.
        kinds: what is in it, for counts.
    """

    program: Program
    context: dict[str, Any]
    candidate: dict[str, Any]
    mixes_rows: bool
    kinds: frozenset[str]

    def rows(self, context: Inputs, candidate: Inputs, owner: Tensor) -> dict[str, Any]:
        """Whole rows for the original model: row i has the context of request `owner[i]`."""
        return {s.name: whole_rows(s, context, candidate, owner) for s in self.program.inputs.values()}

    def original(self, context: Inputs, candidate: Inputs, owner: Tensor) -> list[Any]:
        """The outputs of the recorded graph, over `len(owner)` rows: that is the truth."""
        inputs = flat(self.rows(context, candidate, owner))
        values: dict[fx.Node, Any] = {}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                weight = self.program.weights.get(node.name)
                values[node] = weight.tensor if weight else inputs[self.program.bags.get(node.name, node.name)]
            elif node.op == "call_function":
                values[node] = node.target(*replaced(node.args, values), **replaced(node.kwargs, values))
        return [values[o] if isinstance(o, fx.Node) else o for o in self.program.outputs]

    def calls(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Context and candidates; and the same with the shortest history, where lengths vary."""
        whole = (self.context, self.candidate)
        varying = {s.name for s in self.program.inputs.values() if s.varying}
        if not varying:
            return [whole]
        context, candidate = (
            {n: x[:, : min(LENGTHS)] if n in varying else x for n, x in side.items()} for side in whole
        )
        return [whole, (context, candidate)]

    def call(self, context: Inputs, candidate: Inputs) -> dict[str, Any]:
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


def whole_rows(spec: InputSpec, context: Inputs, candidate: Inputs, owner: Tensor) -> Any:
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
