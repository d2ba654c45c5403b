"""What no input and no training enters, known now: index lists and masks, which say what is read."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from rankhoist.capture import Program
from rankhoist.capture.operators import draws
from rankhoist.compiler.demand.made import is_tensor, sizes_of

LARGEST = 1 << 22  # elements; nothing larger is looked into


class Constants:
    """The values of captured nodes; `decided` are the weights that something was left out by, which may not change."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.decided: set[str] = set()
        self._known: dict[fx.Node, Tensor | None] = {}

    def value(self, node: fx.Node) -> Tensor | None:
        """Of a node that is made of what is fixed, or None."""
        if node not in self._known:
            self._known[node] = self._found(node)
        return self._known[node]

    def decides(self, node: fx.Node) -> None:
        """Something is left out by the value of a node."""
        waiting, seen = [node], {node}
        while waiting:
            own = waiting.pop()
            self.decided.update({own.name} & self.program.weights.keys())
            waiting += [x for x in own.all_input_nodes if x not in seen]
            seen.update(waiting)

    def _found(self, node: fx.Node) -> Tensor | None:
        if node.op == "placeholder":
            weight = self.program.weights.get(node.name)
            return weight.tensor.cpu() if weight and weight.fixed and not weight.tensor.is_meta else None
        sizes = sizes_of(node) if is_tensor(node) else [None]
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or draws(node):
            return None
        if not all(isinstance(n, int) for n in sizes) or node.meta["val"].numel() > LARGEST:
            return None
        if any(self.value(x) is None for x in node.all_input_nodes):
            return None
        args, kwargs = pytree.tree_map_only(fx.Node, self.value, (node.args, dict(node.kwargs)))
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        made = node.target(*args, **kwargs)
        return made if isinstance(made, Tensor) else None
