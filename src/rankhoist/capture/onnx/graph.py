"""An ONNX file as data: its inputs, constants and nodes, in the operators of opset 13 and newer."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankhoist.errors import CaptureError, ExtraError, UnsupportedModelError
from rankhoist.mistakes import in_one_line

OLDEST = 13  # older files are converted by the `onnx` package
DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Node:
    """One operator of the file; an input or an output that is left out is the empty name."""

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)

    def get(self, attribute: str, default: Any = None) -> Any:
        """An attribute of the node."""
        return self.attributes.get(attribute, default)

    def __str__(self) -> str:
        return f"{self.operator} ({self.name or self.outputs[0]})"


@dataclass(frozen=True)
class Graph:
    """What a file holds. The sizes of inputs are whole numbers, or the names that the file has for them.

    `trained` are those of the `constants` that are floating, and finite: a mask of -inf is none.
    """

    inputs: dict[str, tuple[torch.dtype, tuple[int | str, ...]]]
    outputs: tuple[str, ...]
    constants: dict[str, np.ndarray]
    nodes: tuple[Node, ...]
    trained: frozenset[str]

    def example(self, rows: int) -> dict[str, torch.Tensor]:
        """Made-up inputs: ids are 0, anything else is drawn.

        Raises:
            CaptureError: an axis behind the rows has no size in the file.
        """
        made, generator = {}, torch.Generator().manual_seed(0)
        for name, (dtype, sizes) in self.inputs.items():
            if any(not isinstance(size, int) for size in sizes[1:]):
                raise CaptureError(
                    f"input {name!r} of the file has shape {shown(sizes)}: pass an example, which says how long the "
                    "axes behind the rows are"
                )
            shape = (rows, *(int(size) for size in sizes[1:]))
            drawn = torch.randn(shape, generator=generator)
            made[name] = drawn.to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
        return made


def shown(sizes: Collection[int | str]) -> str:
    """A shape as text."""
    return f"[{', '.join(str(size) or '?' for size in sizes)}]"


def read_graph(path: Path, known: Collection[str]) -> Graph:
    """The graph of a file; operators that are not `known` are replaced by what the standard says they are made of.

    Raises:
        CaptureError: it is no ONNX file, or the rows of an input are a fixed number.
        ExtraError: the extra `onnx` is not installed.
        UnsupportedModelError: it has operators that are not known; names all of them.
    """
    onnx = _onnx()
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:
        raise CaptureError(f"{path} is not a readable ONNX file: {in_one_line(error)}") from error
    graph = _with_known(onnx, _modern(onnx, model, path), known).graph
    constants, nodes = _constants(onnx, graph, path)
    outputs = tuple(o.name for o in graph.output)
    return Graph(_inputs(onnx, graph), outputs, constants, nodes, _trained(onnx, graph, constants))


def _onnx() -> Any:
    try:
        for part in ("checker", "inliner", "version_converter", "numpy_helper"):
            importlib.import_module(f"onnx.{part}")
        return importlib.import_module("onnx")
    except ImportError as error:
        raise ExtraError("an ONNX file needs an extra: pip install 'rankhoist[onnx]'") from error


def _modern(onnx: Any, model: Any, path: Path) -> Any:
    """Without functions of its own, in the operators of `OLDEST` and newer."""
    model = onnx.inliner.inline_local_functions(model)
    opset = next((x.version for x in model.opset_import if x.domain in DOMAINS), OLDEST)
    if opset >= OLDEST:
        return model
    try:
        return onnx.version_converter.convert_version(model, OLDEST)
    except Exception as error:
        raise UnsupportedModelError(
            f"{path} is of opset {opset}, and onnx cannot convert it to {OLDEST}: {in_one_line(error)}. Export it anew"
        ) from error


def _with_known(onnx: Any, model: Any, known: Collection[str]) -> Any:
    missing = {(n.domain, n.op_type) for n in model.graph.node if operator(n) not in known}
    if missing:
        model = onnx.inliner.inline_selected_functions(model, sorted(missing), inline_schema_functions=True)
    found = sorted(
        {f"{operator(n)} (node {n.name or n.output[0]!r})" for n in model.graph.node if operator(n) not in known}
    )
    if found:
        raise UnsupportedModelError(
            f"the ONNX file has operators that are not read: {', '.join(found[:5])}"
            f"{' and others' if len(found) > 5 else ''}. Hoist the model that the file was made from, or leave "
            "these operators out of the file"
        )
    return model


def operator(node: Any) -> str:
    """What an operator is called: of another domain than the standard's with the domain before it."""
    return node.op_type if node.domain in DOMAINS else f"{node.domain}.{node.op_type}"


def _inputs(onnx: Any, graph: Any) -> dict[str, tuple[torch.dtype, tuple[int | str, ...]]]:
    held = {x.name for x in graph.initializer}
    found = {}
    for given in graph.input:
        if given.name in held:
            continue
        kind = given.type.tensor_type
        sizes = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim)
        if not sizes or isinstance(sizes[0], int):
            raise CaptureError(
                f"input {given.name!r} of the file has shape {shown(sizes)}: its first axis must be the rows, of any "
                "number. Export the model with a dynamic batch axis"
            )
        found[given.name] = (as_tensor(np.zeros(0, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))).dtype, sizes)
    return found


def _constants(onnx: Any, graph: Any, path: Path) -> tuple[dict[str, np.ndarray], tuple[Node, ...]]:
    """Initialisers and `Constant` nodes, and the nodes that compute."""
    if graph.sparse_initializer:
        raise UnsupportedModelError(
            f"{path} has sparse weights, which are not read: {graph.sparse_initializer[0].values.name}"
        )
    constants = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
    nodes = []
    for n in graph.node:
        attributes = {a.name: _attribute(onnx, a) for a in n.attribute}
        if n.op_type == "Constant":
            (value,) = attributes.values()
            constants[n.output[0]] = np.asarray(value, np.float32 if isinstance(value, float) else None)
        else:
            nodes.append(Node(operator(n), n.name, tuple(n.input), tuple(n.output), attributes))
    return constants, tuple(nodes)


def _attribute(onnx: Any, attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, int | float | onnx.GraphProto):
        return value
    return [x.decode() if isinstance(x, bytes) else x for x in value]


def _trained(onnx: Any, graph: Any, constants: dict[str, np.ndarray]) -> frozenset[str]:
    floating = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    names = (x.name for x in graph.initializer if x.data_type in floating)
    return frozenset(name for name in names if np.isfinite(constants[name].astype(np.float64)).all())


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Its own memory; a dtype that numpy has no name for goes by float32."""
    try:
        return torch.from_numpy(np.array(array))
    except TypeError as error:
        if array.dtype.name != "bfloat16":
            raise UnsupportedModelError(
                f"the ONNX file holds values of dtype {array.dtype}, which are not read"
            ) from error
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
