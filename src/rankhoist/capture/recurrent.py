"""Recurrent layers over a sequence of symbolic length: torch's own shape rule unrolls them, which fixes the length."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._decomp import decomposition_table

aten = torch.ops.aten


def _shapes(
    x: Tensor, state: Tensor, params: list[Tensor], has_biases: bool, num_layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> Any:  # fmt: skip
    """Of what every step returns, and of the state after the last."""
    return x.new_empty(*x.shape[:-1], state.shape[-1] * (2 if bidirectional else 1)), torch.empty_like(state)


def _two_states(x: Tensor, states: list[Tensor], *rest: Any) -> Any:
    steps, hidden = _shapes(x, states[0], *rest)
    return steps, hidden, torch.empty_like(states[1])


LAYERS = {
    aten.gru.input: _shapes, aten.rnn_tanh.input: _shapes, aten.rnn_relu.input: _shapes, aten.lstm.input: _two_states,
}  # fmt: skip


@contextlib.contextmanager
def of_any_length() -> Iterator[None]:
    """While torch traces a model: recurrent layers are known by the sizes of what they return."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(decomposition_table, LAYERS))  # read where the layer is in a graph
        for op, rule in LAYERS.items():
            stack.enter_context(mock.patch.dict(op.py_kernels, dict.fromkeys(op.py_kernels, rule)))  # and before
            stack.callback(op._dispatch_cache.clear)
            op._dispatch_cache.clear()
        yield
