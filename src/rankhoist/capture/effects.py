"""Effects in a graph: what must happen in order hangs on tokens, which a graph that returns all it makes needs not."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import fx
from torch._higher_order_ops.effects import with_effects

from rankhoist.errors import UnsupportedModelError

aten = torch.ops.aten
ASSERTIONS = {aten._assert_async.msg, aten._assert_async.default}  # of a tensor: a hoisted model makes them, too
LEFT_OUT = {  # and why that is of no account
    aten._linalg_check_errors.default: "a matrix that has no inverse is not refused: its inverse is not finite",
    aten._print.default: "a hoisted model prints nothing",
}


def without_tokens(exported: torch.export.ExportedProgram) -> None:
    """Every operator that takes a token, and returns one before its results, is called without.

    Raises:
        UnsupportedModelError: an operator has another effect than an assertion.
    """
    graph, tokens = exported.graph, set(exported.graph_signature.input_tokens)
    for node in [n for n in graph.nodes if n.target is with_effects]:
        _call_plainly(graph, node)
    last = next(n for n in graph.nodes if n.op == "output")
    last.args = (tuple(o for o in last.args[0] if not isinstance(o, fx.Node) or o.name not in tokens),)
    for node in [n for n in graph.nodes if n.op == "placeholder" and n.name in tokens]:
        graph.erase_node(node)


def without_checks_of_kinds(graph: fx.Graph) -> None:
    """Without what holds a dtype or a device fixed that a cast had nothing to do for: it reads no element, and a
    hoisted model has another device, or another dtype, if it is told so.
    """
    for node in graph.find_nodes(op="call_function", target=aten._assert_tensor_metadata.default):
        graph.erase_node(node)


def _call_plainly(graph: fx.Graph, node: fx.Node) -> None:
    before, op, *args = cast(tuple[Any, ...], node.args)
    if op not in ASSERTIONS and op not in LEFT_OUT:
        raise UnsupportedModelError(
            f"{op} has an effect, which a hoisted model would have more often or not at all. Hoist the submodules "
            "before and after it."
        )
    with graph.inserting_before(node):
        graph.call_function(op, tuple(args), dict(node.kwargs)).meta |= {**node.meta, "val": None}
    for token in list(node.users):  # such an operator has no other result
        token.replace_all_uses_with(before)
        graph.erase_node(token)
    graph.erase_node(node)
