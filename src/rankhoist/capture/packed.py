"""Packed sequences as padded ones: what packs them, recurrent layers over them, and what pads them.

A packed sequence has the steps of all rows sorted by length, so that no layer computes a step that a row has not. Row
by row it is this, for a row `x` of length n among T positions and a layer `f` with states `S_0, S_1, ...`:

* steps read what is before them, so the first n steps of `f(x)` are those of `f(x[:n])`, and the last state is `S_n`;
* the cell of an LSTM is `c' = f c + i g`: with gates `i = sigmoid(-1e4) = 0` and `f = sigmoid(1e4) = 1` beyond n it
  stays `c_n`, so that it is there after T steps;
* a backward direction is a forward one over the first n steps in reverse, whose results are turned back;
* padded without a `total_length`, a result is as long as the longest row of a call. A score that is its row's own is
  the same beside a row of length T; `check_alike` holds the model beside what is made here, row by row.

PyTorch refuses a row of length 0. Here it has the state that it began with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

from rankhoist.capture.calling import calling
from rankhoist.errors import UnsupportedModelError

SHUT = 1e4  # of what a gate is the sigmoid of: 0 or 1, also in half precision
OPERATORS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
Operator = Callable[..., tuple[Tensor, ...]]


@dataclass
class Met:
    """Whether a model has packed sequences."""

    sequences: bool = False


_MET = Met()


@contextlib.contextmanager
def packed_as_padded() -> Iterator[Met]:
    """While a model is exported."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(calling({rnn.pack_padded_sequence: _pack, rnn.pad_packed_sequence: _pad}))
        for name in OPERATORS:
            stack.enter_context(mock.patch.object(torch._VF, name, _of_both(getattr(torch._VF, name))))
        # What calls these compares a state's rows with the first batch size as an int: a symbolic one stays what it is.
        stack.enter_context(mock.patch.object(torch.nn.modules.rnn, "int", lambda size: size, create=True))
        _MET.sequences = False
        yield _MET


def _pack(input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> Any:
    from rankhoist.capture.packed import Steps  # its code runs in another module

    return Steps.packed(input, lengths, batch_first)


def _pad(sequence: Any, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None) -> Any:
    from rankhoist.capture.packed import Steps

    return Steps.of(sequence.data, sequence.batch_sizes).padded(batch_first, padding_value, total_length)


def _of_both(operator: Operator) -> Operator:
    """An operator over padded steps, and over packed ones: `data, batch_sizes, states, weights, ...`."""

    def call(x: Tensor, sizes: Any, *rest: Any) -> tuple[Tensor, ...]:
        if not isinstance(sizes, Order):
            return operator(x, sizes, *rest)
        y, *states = Steps.of(x, sizes).through(operator, *rest)
        return sizes.flat(y), *states

    return call


class Order:
    """In place of the batch sizes of a packed sequence, which belong to all rows together: nobody may read another than
    the first, which is the number of rows.
    """

    device = torch.device("cpu")

    def __init__(self, given: Tensor, places: Any) -> None:
        self.given, self.places = given, places
        self._made: list[tuple[Tensor, Tensor]] = []

    def flat(self, x: Tensor) -> Tensor:
        """Steps `[rows, T, *]` as a packed sequence has them, `[rows * T, *]`."""
        made = x.reshape(-1, *x.shape[2:])
        self._made.append((made, x))
        return made

    def steps(self, data: Tensor) -> Tensor:
        """What they were: reshaped back, they might be of one T alone, so that is for what somebody else has made."""
        x = next((x for made, x in self._made if made is data), None)
        return data.reshape(self.given.shape[0], self.places, *data.shape[1:]) if x is None else x

    def __getitem__(self, at: Any) -> Any:
        return self.given.shape[0] if type(at) is int and at == 0 else self._refuse()

    def _refuse(self, *_: Any) -> Any:
        raise UnsupportedModelError(
            "the model reads batch_sizes of a packed sequence, where rows meet. Let a recurrent layer of PyTorch run "
            "over it, or a loop over padded steps with a mask"
        )

    __getattr__ = __iter__ = __len__ = __int__ = __index__ = _refuse


@dataclass(frozen=True)
class Steps:
    """Rows of steps `x [rows, T, *]` of which the first `lengths [rows]` are there; `given` are these as they came."""

    x: Tensor
    lengths: Tensor
    given: Tensor
    valid: Tensor = field(init=False)

    def __post_init__(self) -> None:
        places = torch.arange(self.x.shape[1], device=self.x.device)
        object.__setattr__(self, "valid", places < self.lengths.unsqueeze(1))

    @staticmethod
    def packed(x: Tensor, lengths: Any, batch_first: bool) -> PackedSequence:
        """As `pack_padded_sequence`, whatever the order of rows."""
        _MET.sequences = True
        if not isinstance(lengths, Tensor):
            lengths = torch.tensor(lengths)
        x = x if batch_first else x.transpose(0, 1)
        return Steps(x, lengths.to(x.device, torch.int64), lengths.to(torch.int64)).as_packed()

    @staticmethod
    def of(data: Tensor, order: Any) -> Steps:
        """Those of a sequence that `packed` made, its `data` as they are or computed position by position."""
        if not isinstance(order, Order):
            raise UnsupportedModelError("a packed sequence is made by other means than pack_padded_sequence")
        x = order.steps(data)
        return Steps(x, order.given.to(x.device), order.given)

    def as_packed(self) -> PackedSequence:
        """A sequence with all positions, row by row."""
        order = Order(self.given, self.x.shape[1])
        return PackedSequence(order.flat(self.x), order, None, None)  # type: ignore[arg-type]

    def padded(self, batch_first: bool, value: float, total: int | None) -> tuple[Tensor, Tensor]:
        """As `pad_packed_sequence`, with all positions."""
        x = self.x.masked_fill(~self._along(self.valid, self.x), value)
        if total is not None and total != x.shape[1]:
            short = total - x.shape[1]
            x = torch.cat([x, x.new_full((x.shape[0], short, *x.shape[2:]), value)], 1) if short > 0 else x[:, :total]
        return x if batch_first else x.transpose(0, 1), self.given

    def through(
        self, operator: Operator, states: Any, weights: list[Tensor], biases: bool, layers: int, dropout: float,
        training: bool, both: bool,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """As a recurrent operator: what comes of every step, not flat, and the states after the last of each row."""
        given = [states] if isinstance(states, Tensor) else list(states)
        directions = 2 if both else 1
        count = len(weights) // (layers * directions)  # of weights of a layer in one direction
        steps, last = self, []
        for i in range(layers):
            made = []
            for k in range(directions):
                at = directions * i + k
                own, first = weights[count * at : count * (at + 1)], [s[at] for s in given]
                y, *after = steps.one_direction(operator, own, first, biases, backward=k == 1)
                made.append(y)
                last.append(after)
            y = torch.cat(made, -1)
            if training and i + 1 < layers:
                y = nn.functional.dropout(y, dropout)
            steps = Steps(y, self.lengths, self.given)
        return steps.x, *(torch.stack(own) for own in zip(*last, strict=True))

    def one_direction(
        self, operator: Operator, weights: list[Tensor], first: list[Tensor], biases: bool, backward: bool
    ) -> list[Tensor]:
        """What comes of every step, `[rows, T, H]`, and the states after the last, `[rows, H]` each."""
        x = self.turned(self.x) if backward else self.x
        if len(first) == 2:  # a cell beside the state
            x = torch.cat([x.masked_fill(~self.valid.unsqueeze(2), 0), (~self.valid).unsqueeze(2).to(x.dtype)], 2)
            gates = weights[0].new_tensor([-SHUT, SHUT, 0, 0]).repeat_interleave(first[1].shape[-1])  # i, f, g, o
            weights = [torch.cat([weights[0], gates.unsqueeze(1)], 1), *weights[1:]]
        states: Any = [s.unsqueeze(0) for s in first]
        states = states if len(states) > 1 else states[0]
        y, _, *cell = operator(x, states, weights, biases, 1, 0.0, False, False, True)
        reached = torch.cat([first[0].unsqueeze(1), y], 1)
        own = self.lengths.view(-1, 1, 1).expand(-1, 1, y.shape[2])
        return [self.turned(y) if backward else y, reached.gather(1, own).squeeze(1), *(c.squeeze(0) for c in cell)]

    def turned(self, x: Tensor) -> Tensor:
        """The steps that are there in reverse."""
        places = torch.arange(x.shape[1], device=x.device)
        index = torch.where(self.valid, self.lengths.unsqueeze(1) - 1 - places, places)
        return x.gather(1, self._along(index, x).expand(x.shape))

    @staticmethod
    def _along(places: Tensor, x: Tensor) -> Tensor:
        return places.view(*places.shape, *[1] * (x.dim() - 2))
