"""An ONNX graph as a module of PyTorch: what `torch.export` captures of it are PyTorch's own operators."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from rankhoist.capture.onnx import elementwise, layers, recurrent, shapes
from rankhoist.capture.onnx.graph import Graph, Node, as_tensor, read_graph
from rankhoist.capture.onnx.values import Value, as_value, is_whole, tensor
from rankhoist.errors import InputError, RankhoistError, UnsupportedModelError
from rankhoist.mistakes import in_one_line

OPERATORS = elementwise.OPERATORS | shapes.OPERATORS | layers.OPERATORS | recurrent.OPERATORS
ROWS = 3  # of a made-up example


class OnnxModel(nn.Module):
    """Scores of an ONNX graph: `{input: [rows, ...]} -> output`, or a dict of outputs where there are several.

    Its parameters have the names of the file's initialisers, with `_` for what no name in Python may have.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.numbers: dict[str, np.ndarray] = {}
        self.places: dict[str, str] = {}
        for name, array in graph.constants.items():
            known = as_value(array)
            if known is not None:
                self.numbers[name] = known
            else:
                self._hold(name, as_tensor(array), name in graph.trained)
        self.eval()

    def _hold(self, name: str, value: Tensor, trained: bool) -> None:
        place = re.sub(r"\W", "_", name) or "weight"
        while hasattr(self, place):
            place += "_"
        self.places[name] = place
        if trained:
            self.register_parameter(place, nn.Parameter(value, requires_grad=False))
        else:
            self.register_buffer(place, value, persistent=False)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """All nodes in the order of the file."""
        values: dict[str, Value] = {"": None, **self.numbers, **{n: inputs[n] for n in self.graph.inputs}}
        values |= {name: getattr(self, place) for name, place in self.places.items()}
        for node in self.graph.nodes:
            made = _run(node, [values[name] for name in node.inputs])
            values.update(zip(node.outputs, made if isinstance(made, tuple | list) else (made,), strict=False))
        results = {name: tensor(values[name]) for name in self.graph.outputs}
        return results if len(results) > 1 else next(iter(results.values()))

    def example(self, given: Any) -> dict[str, Tensor]:
        """An example as the dict that a call takes; made up where none is given.

        Raises:
            InputError: it has not the file's inputs.
        """
        names = list(self.graph.inputs)
        if given is None:
            return self.graph.example(ROWS)
        if isinstance(given, Sequence) and len(given) == 1 and isinstance(given[0], Mapping):
            given = given[0]
        if not isinstance(given, Mapping):
            given = dict(zip(names, given if isinstance(given, Sequence) else [given], strict=False))
        if set(given) != set(names):
            raise InputError(f"the ONNX file has the inputs {', '.join(names)}; the example has {', '.join(given)}")
        return {name: given[name] for name in names}


def _run(node: Node, values: list[Value]) -> Any:
    given = [v for v in values if v is not None]
    whole = node.operator in shapes.WHOLE and given and all(map(is_whole, given))
    try:
        return (shapes.WHOLE if whole else OPERATORS)[node.operator](node, *values)
    except (TypeError, ValueError, IndexError, KeyError, NotImplementedError) as error:
        if isinstance(error, RankhoistError):
            raise
        raise UnsupportedModelError(f"{node} of the ONNX file cannot be read: {in_one_line(error)}") from error


def read(path: Path) -> OnnxModel:
    """The model of a file.

    Raises:
        CaptureError: it is no ONNX file, or the rows of an input are a fixed number.
        ExtraError: the extra `onnx` is not installed.
        UnsupportedModelError: it has operators that are not read.
    """
    return OnnxModel(read_graph(path, OPERATORS.keys() | {"Constant"}))
