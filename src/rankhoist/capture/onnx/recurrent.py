"""Recurrent layers of ONNX by those of PyTorch, which has the gates in another order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rankhoist.capture.onnx.elementwise import Operator
from rankhoist.capture.onnx.graph import Node
from rankhoist.capture.onnx.values import Value, tensor
from rankhoist.errors import UnsupportedModelError

Layer = Callable[..., tuple[Tensor, ...]]
ORDER = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 2, 3, 1)}  # z r h -> r z n; i o f c -> i f g o
ACTIVATIONS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


def _checked(node: Node, lengths: Value, peepholes: Value) -> None:
    directions = 2 if node.get("direction", "forward") == "bidirectional" else 1
    wanted = ACTIVATIONS[node.operator] * directions
    problems = {
        "runs backwards": node.get("direction", "forward") == "reverse",
        "reads lengths of its sequences": lengths is not None,
        "has peepholes": peepholes is not None,
        "clips its states": node.get("clip") is not None,
        "couples its gates": bool(node.get("input_forget", 0)),
        f"has other activations than {', '.join(wanted)}": node.get("activations", wanted) != wanted,
        "resets before its product (linear_before_reset=0)": node.operator == "GRU"
        and not node.get("linear_before_reset", 0),
        "has its rows first (layout=1)": bool(node.get("layout", 0)),
    }
    for problem, found in problems.items():
        if found:
            raise UnsupportedModelError(f"{node} {problem}, which is not read")


def _weights(node: Node, own: Tensor, state: Tensor, bias: Tensor | None) -> list[Tensor]:
    """Those of every direction, in the order of gates that PyTorch has."""
    order = ORDER[node.operator]
    hidden = state.shape[-1]

    def ordered(x: Tensor) -> Tensor:
        return torch.cat([x[hidden * gate : hidden * (gate + 1)] for gate in order])

    flat = []
    for k in range(own.shape[0]):
        flat += [ordered(own[k]), ordered(state[k])]
        if bias is not None:
            flat += [ordered(half) for half in bias[k].chunk(2)]
    return flat


def _layer(
    node: Node, value: Value, own: Value, state: Value, bias: Value = None, lengths: Value = None, *start: Value
) -> tuple[Tensor, ...]:
    """`[T, rows, width] -> [T, directions, rows, hidden]`, and the last states `[directions, rows, hidden]`."""
    first, cell, peepholes = (*start, None, None, None)[:3]
    _checked(node, lengths, peepholes)
    x, w = tensor(value), tensor(state)
    directions, hidden = w.shape[0], w.shape[-1]
    flat = _weights(node, tensor(own), w, None if bias is None else tensor(bias))
    zeros = x.new_zeros(directions, x.shape[1], hidden)
    states = [zeros if s is None else tensor(s) for s in (first, cell)]
    rest = (flat, bias is not None, 1, 0.0, False, directions == 2, False)
    made: tuple[Tensor, ...]
    if node.operator == "LSTM":
        made = torch.lstm(x, states, *rest)
    else:
        made = (torch.gru if node.operator == "GRU" else torch.rnn_tanh)(x, states[0], *rest)
    steps = made[0].reshape(x.shape[0], x.shape[1], directions, hidden).transpose(1, 2)
    return (steps, *made[1:])


OPERATORS: dict[str, Operator] = dict.fromkeys(("RNN", "GRU", "LSTM"), _layer)
