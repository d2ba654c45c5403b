"""Emitted graphs as plain data, and back.

    {"inputs": ["rows", "owner", "offsets", ...], "outputs": [...],
     "nodes": [{"name": "linear", "call": "aten.linear.default", "args": [...], "kwargs": {...}, "shape": [8]}, ...]}

Numbers, strings, truth values, null and lists in arguments stand for themselves; anything else is an object with one
entry: `{"node": "linear"}`, `{"tuple": [...]}`, `{"number": "inf"}`, `{"dtype": "float32"}`, `{"device": "cpu"}`,
`{"layout": "strided"}`, `{"memory_format": "contiguous_format"}`.

Nothing in the data is evaluated or imported. What a node may call is looked up in a list; fx writes names of nodes and
of keyword arguments into the Python code that it generates, so these must be identifiers.
"""

from __future__ import annotations

import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from rankhoist.compiler.graph.operators import KERNELS, anew, row
from rankhoist.errors import ArtifactError
from rankhoist.runtime.plain import as_device, as_dtype, as_kind, counts, dtype_name, entries, entry, shown

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f"operator.{f.__name__}": f for f in (operator.add, operator.mul, operator.floordiv, operator.mod)},
    "operator.getitem": operator.getitem,
    **{f"kernels.{kernel.__name__}": kernel for kernel in KERNELS},
}
NAMES = {f: name for name, f in FUNCTIONS.items()}
CONSTANTS: dict[str, type] = {"layout": torch.layout, "memory_format": torch.memory_format}
UNCHECKED = re.compile("sparse|nested|jagged|mkldnn|fbgemm|backward")  # other layouts, and gradients
RETURNED = {"Tensor", "List[Tensor]", "int", "SymInt"}


def to_data(graph: fx.Graph) -> dict[str, Any]:
    """A graph of `call_function` nodes as data for JSON.

    Raises:
        ArtifactError: it calls a function, or has an argument, that a file cannot hold.
    """
    data: dict[str, Any] = {"inputs": [], "nodes": []}
    for node in graph.nodes:
        if node.op == "placeholder":
            data["inputs"].append(node.name)
        elif node.op == "output":
            data["outputs"] = [_encoded(value) for value in node.args[0]]
        else:
            data["nodes"].append(_node(node))
    return data


def to_graph(data: Any) -> fx.Graph:
    """The graph that `to_data` was given.

    Raises:
        ArtifactError: the data is none that `to_data` makes.
    """
    graph, nodes = fx.Graph(), dict[str, fx.Node]()
    for name in entries(data, "inputs", str):
        nodes[_new(name, nodes)] = graph.placeholder(name)
    for item in entries(data, "nodes", dict):
        args = tuple(_decoded(value, nodes) for value in entry(item, "args", list))
        kwargs = {_identifier(k): _decoded(v, nodes) for k, v in entry(item, "kwargs", dict).items()}
        name, target = entry(item, "name", str), function(entry(item, "call", str))
        nodes[_new(name, nodes)] = made = graph.create_node("call_function", target, args, kwargs, name)
        if "shape" in item:
            made.meta["shape"] = counts(item, "shape")
    graph.output(tuple(_decoded(value, nodes) for value in entry(data, "outputs", list)))
    return graph


# -- functions


def function(name: str) -> Callable[..., Any]:
    """The function of this name, if a graph in a file may call it.

    Those are the few that emitted graphs need beside ATen, and ATen operators that compute tensors, write to nothing
    that they are not given to write over, read no file, and look at indices and sizes before they follow them.
    """
    found = FUNCTIONS.get(name) or _aten(name)
    if found is None:
        raise ArtifactError(
            f"it calls {shown(name)}, which is no operator that PyTorch {torch.__version__} and a file may have"
        )
    return found


def _aten(name: str) -> torch._ops.OpOverload | None:
    match = re.fullmatch(r"aten\.([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)", name)
    packet = getattr(torch.ops.aten, match[1], None) if match else None
    if match is None or not isinstance(packet, torch._ops.OpOverloadPacket) or match[2] not in packet.overloads():
        return None
    found: torch._ops.OpOverload = getattr(packet, match[2])
    schema = found._schema
    tensors = bool(schema.returns) and all(str(r.type) in RETURNED for r in schema.returns)
    writes = schema.is_mutable and anew(found) is found
    reads_files = any(argument.name == "filename" for argument in schema.arguments)
    known = torch._C._dispatch_has_kernel(found.name())  # others belong to TorchScript
    return found if tensors and known and not writes and not reads_files and _checks(found) else None


def _checks(operator: torch._ops.OpOverload) -> bool:
    """Whether it refuses indices and sizes that lead out of its tensors."""
    name = operator._schema.name.removeprefix("aten::")
    private = re.match("_[^_]", name) is not None
    may_skip = any(argument.name == "unsafe" for argument in operator._schema.arguments)
    return not may_skip and not UNCHECKED.search(name) and (not private or row(operator).checked)


def _node(node: fx.Node) -> dict[str, Any]:
    name = NAMES.get(node.target) if callable(node.target) else None
    name = name or str(node.target)
    if node.op != "call_function" or function(name) is not node.target:
        raise ArtifactError(f"it calls {name}, which a file cannot hold")
    data = {
        "name": node.name,
        "call": name,
        "args": [_encoded(value) for value in node.args],
        "kwargs": {key: _encoded(value) for key, value in node.kwargs.items()},
    }
    return data | {"shape": list(node.meta["shape"])} if "shape" in node.meta else data


# -- names


def _identifier(name: str) -> str:
    if not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name):
        raise ArtifactError(f"it has {shown(name)} where a name is expected")
    return name


def _new(name: str, taken: Mapping[str, fx.Node]) -> str:
    if _identifier(name) in taken:
        raise ArtifactError(f"two nodes of a graph are called {shown(name)}")
    return name


# -- arguments


def _encoded(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, tuple):
        return {"tuple": [_encoded(v) for v in value]}
    if isinstance(value, list):
        return [_encoded(v) for v in value]
    if isinstance(value, torch.dtype):
        return {"dtype": dtype_name(value)}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for tag, kind in CONSTANTS.items():
        if isinstance(value, kind):
            return {tag: str(value).removeprefix("torch.")}
    if type(value) is float and not math.isfinite(value):
        return {"number": str(value)}
    if type(value) in (int, float, bool, str, type(None)):
        return value
    raise ArtifactError(
        f"it has the argument {shown(str(value))} of type {type(value).__name__}, which a file cannot hold"
    )


def _decoded(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if type(value) is list:
        return [_decoded(v, nodes) for v in value]
    if type(value) is not dict:
        return value
    if len(value) != 1:
        raise ArtifactError("it has an argument of no kind that there is")
    ((tag, content),) = value.items()
    if tag == "tuple":
        return tuple(_decoded(v, nodes) for v in as_kind(content, list))
    if tag == "node" and as_kind(content, str) in nodes:
        return nodes[content]
    if tag == "dtype":
        return as_dtype(content)
    if tag == "device":
        return as_device(content)
    if tag == "number" and content in ("inf", "-inf", "nan"):
        return float(content)
    found = vars(torch).get(as_kind(content, str)) if tag in CONSTANTS else None
    if found is not None and isinstance(found, CONSTANTS[tag]) and (tag != "layout" or found is torch.strided):
        return found
    raise ArtifactError(f"it has the argument {shown(tag)}: {shown(content)}, which means nothing here")
