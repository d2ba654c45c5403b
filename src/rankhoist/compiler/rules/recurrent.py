"""Recurrences along a sequence. Law: `f([c; k], h) = [y; f(k, h')]` with `y, h' = f(c, h)`.

All that later steps need of a history is the state after it, in every layer. So up to the first position that exists
per candidate a GRU, an LSTM or an RNN is the request's, and the candidate makes its own steps from there. A step whose
input and state are known at different rates is written out: `W x + V h` is a linear map of a concatenation, of which
the request's half is the request's. A backward direction is the same along the sequence in reverse: where the target
stands last, it begins there, and what is left of the history's half is its inputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rankhoist.compiler.algebra import grid, joins, moves, sequences
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import ROW, Elsewhere, Form
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import aten
from rankhoist.compiler.rules.law import law

STEPS = 64  # of one run of positions: more are left to PyTorch's own operator


# -- one step


@dataclass(frozen=True)
class Step:
    """One step of a cell: what the input and the state make of its gates, `[B, gates * H]` each, and the state."""

    call: Call
    inputs: Form
    kept: Form
    states: Sequence[Form]

    def gates(self, source: Form, first: int, last: int) -> Form:
        """Gates `first` to `last` (not included) of the input's or of the state's part."""
        dim, width = source.dim(1), self.states[-1].sizes[self.states[-1].dim(1)]
        return moves.take_dim(self.call.builder, source, dim, np.arange(first * width, last * width))

    def both(self, op: Callable[..., Any], first: int, last: int) -> Form:
        """A nonlinearity of the sum of both parts."""
        parts = (self.gates(source, first, last) for source in (self.inputs, self.kept))
        return self.call.each(op, self.call.each(aten.add.Tensor, *parts))


def _gru(step: Step) -> list[Form]:
    """`h' = n + z (h - n)`, `n = tanh(W x + r V h)`."""
    each, (state,) = step.call.each, step.states
    opened = step.both(aten.sigmoid.default, 0, 2)
    reset, update = (step.gates(opened, i, i + 1) for i in (0, 1))
    kept = each(aten.mul.Tensor, reset, step.gates(step.kept, 2, 3))
    new = each(aten.tanh.default, each(aten.add.Tensor, step.gates(step.inputs, 2, 3), kept))
    return [each(aten.add.Tensor, new, each(aten.mul.Tensor, update, each(aten.sub.Tensor, state, new)))]


def _lstm(step: Step) -> list[Form]:
    """`c' = f c + i tanh(g)`, `h' = o tanh(c')`."""
    each, cell = step.call.each, step.states[1]
    opened = step.both(aten.sigmoid.default, 0, 2)
    enter, forget = (step.gates(opened, i, i + 1) for i in (0, 1))
    new = each(aten.mul.Tensor, enter, step.both(aten.tanh.default, 2, 3))
    cell = each(aten.add.Tensor, each(aten.mul.Tensor, forget, cell), new)
    return [each(aten.mul.Tensor, step.both(aten.sigmoid.default, 3, 4), each(aten.tanh.default, cell)), cell]


CELLS: dict[str, Callable[[Step], list[Form]]] = {
    "gru": _gru,
    "lstm": _lstm,
    "rnn_tanh": lambda step: [step.both(aten.tanh.default, 0, 1)],
    "rnn_relu": lambda step: [step.both(aten.relu.default, 0, 1)],
}


def _written_out(call: Call, x: Form, states: Sequence[Form], params: Sequence[Form]) -> list[Form]:
    """The states after one step, `[B, H]`: params are two weights, biases if there are any, and a projection."""
    has_biases = len(params) > 3
    halves = [
        call.settled(_linear(call, value, params[i], params[i + 2] if has_biases else None))
        for i, value in enumerate((x, states[0]))
    ]
    made = CELLS[call.name.removesuffix("_cell")](Step(call, halves[0], halves[1], states))
    if len(params) % 2:
        made[0] = call.settled(_linear(call, made[0], params[-1], None))
    return made


def _linear(call: Call, x: Form, weight: Form, bias: Form | None) -> Form:
    made = call.contract((call.tidy(x), call.tidy(weight)), (["b", "k"], ["h", "k"]), ["b", "h"])
    return made if bias is None else grid.total(call.builder, [made, bias], made.dtype, (1.0, 1.0))


def cell(call: Call) -> Value:
    """`nn.GRUCell` and the like, where input and state, or tokens that are folded with the rows, are known at different
    rates.
    """
    x, *states = call.forms("input", "hx")
    if len({b.rate.per_candidate for f in (x, *states) for b in f.blocks.values()}) == 1:
        raise Elsewhere("input and state are known at one rate")
    if any(len(f.layout) != 2 or ROW not in f.layout[0] or len(f.layout[1]) != 1 for f in (x, *states)):
        raise Elsewhere(f"the rows of {x.axes} are not the first of two axes")
    made = _written_out(call, x, states, call.forms("w_ih", "w_hh", "b_ih", "b_hh"))
    return made if len(made) > 1 else made[0]


# -- layers


@dataclass(frozen=True)
class Layer:
    """One recurrent layer in one direction: `axis` is that of the steps, the rows are on the other one of 0 and 1."""

    call: Call
    params: Sequence[Form]
    axis: int

    def run(self, x: Form, states: Sequence[Form]) -> list[Form]:
        """The operator itself: what comes of every step, then the states after the last, `[1, B, H]`."""
        hidden: Value = list(states) if len(states) > 1 else states[0]
        params = list(self.params)
        made: list[Form] = self.call.again(input=x, hx=hidden, params=params, num_layers=1, bidirectional=False)
        return made

    def step(self, x: Form, states: Sequence[Form]) -> list[Form]:
        """The same for one position, written out."""
        call = self.call
        bare = [moves.drop_dim(call.builder, s, s.dim(0)) for s in states]
        after = _written_out(call, moves.drop_dim(call.builder, x, x.dim(self.axis)), bare, self.params)
        return [moves.with_axes(after[0], [self.axis]), *(moves.with_axes(s, [0]) for s in after)]

    def forward(self, x: Form, states: Sequence[Form]) -> list[Form]:
        """Run by run of positions that are known equally often."""
        made = []
        for part in self.parts(x, states):
            late = {f.rate.per_candidate for f in (part, *states)}
            one = part.sizes[part.dim(self.axis)] == 1
            y, *states = (self.step if one and len(late) > 1 else self.run)(part, states)
            made.append(y)
        return [joins.along_axis(self.call.builder, made, self.axis), *states]

    def parts(self, x: Form, states: Sequence[Form]) -> list[Form]:
        """What is given to `step` or `run`: positions one by one where their rate is not that of the state."""
        dim = x.dim(self.axis)
        late = sequences.per_candidate(x, dim)
        first = any(s.rate.per_candidate for s in states)
        state = np.concatenate([[first], first | np.logical_or.accumulate(late)])[:-1]  # before each step
        parts = []
        for kind, group in itertools.groupby(range(len(late)), key=lambda t: (late[t], state[t])):
            own = list(group)
            alone = kind[0] != kind[1] and len(own) <= STEPS
            parts += [[t] for t in own] if alone else [own]
        return [moves.take_dim(self.call.builder, x, dim, np.asarray(p)) for p in parts]

    def backward(self, x: Form, states: Sequence[Form]) -> list[Form]:
        """From the last step to the first."""
        made, *last = self.forward(self.turned(x), states)
        return [self.turned(made), *last]

    def turned(self, x: Form) -> Form:
        dim = x.dim(self.axis)
        return moves.take_dim(self.call.builder, x, dim, np.arange(x.sizes[dim])[::-1])


def recurrent(call: Call) -> Value:
    """Layer by layer, each direction by itself; the next layer reads both, side by side."""
    x, states, axis = _given(call)
    params, layers = call.forms("params"), call.number("num_layers")
    directions = 2 if call.value("bidirectional") else 1
    size = len(params) // (directions * layers)
    last = []
    for i in range(layers):
        made = []
        for k in range(directions * i, directions * (i + 1)):
            own = Layer(call, params[k * size : (k + 1) * size], axis)
            first = [moves.take_dim(call.builder, s, s.dim(0), np.asarray([k])) for s in states]
            y, *after = (own.backward if k % directions else own.forward)(x, first)
            made.append(y)
            last.append(after)
        x = joins.along_axis(call.builder, made, 2)
    return [x, *(joins.along_axis(call.builder, parts, 0) for parts in zip(*last, strict=True))]


def _given(call: Call) -> tuple[Form, Sequence[Form], int]:
    """Input, first states, and the axis of the steps; declines where all is known at one rate."""
    if call.value("batch_first") is None or (call.value("train") and call.value("dropout")):
        raise Elsewhere("packed sequences, or dropout in training mode")
    x, states, axis = call.form("input"), call.forms("hx"), 1 if call.value("batch_first") else 0
    if len(x.layout) != 3 or x.layout[1 - axis] != (ROW,) or any(s.layout[1] != (ROW,) for s in states):
        raise Elsewhere(f"rows of {x.axes} are not on axis {1 - axis}")
    late = sequences.per_candidate(x, x.dim(axis))
    if not late.any() and not any(s.rate.per_candidate for s in states):
        raise Elsewhere("all steps are the request's")
    if not x.mixed and late.all():
        raise Elsewhere("all steps are the candidate's")
    if any(s.rate.per_candidate for s in states):
        call.remark("its first state exists per candidate, so all later ones do")
    elif late[0]:
        call.remark("its first step reads the candidate, so all later ones do")
    return x, states, axis


LAWS = law("recurrences", Level.LINEAR, {
    "gru lstm rnn_tanh rnn_relu": recurrent,
    "gru_cell lstm_cell rnn_tanh_cell rnn_relu_cell": cell,
})  # fmt: skip
