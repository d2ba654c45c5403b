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
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence

from rankhoist.errors import UnsupportedModelError

SHUT = 1e4  # of what a gate is the sigmoid of: 0 or 1, also in half precision
LAYERS: dict[str, Any] = {
    "LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu,
}  # fmt: skip


@dataclass
class Met:
    """Whether a model has packed sequences."""

    sequences: bool = False


_MET = Met()


@contextlib.contextmanager
def packed_as_padded() -> Iterator[Met]:
    """While a model is exported: whoever has imported the functions, by whatever name, calls those below."""
    with contextlib.ExitStack() as stack:
        for own, other in ((rnn.pack_padded_sequence, _pack), (rnn.pad_packed_sequence, _pad)):
            stack.callback(setattr, own, "__code__", own.__code__)
            own.__code__ = other.__code__
        for kind in (nn.LSTM, nn.GRU, nn.RNN):
            stack.enter_context(mock.patch.object(kind, "forward", _forward(kind.forward)))
        _MET.sequences = False
        yield _MET


def _pack(input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True) -> Any:
    from rankhoist.capture.packed import Steps  # its code stands in another module

    return Steps.packed(input, lengths, batch_first)


def _pad(sequence: Any, batch_first: bool = False, padding_value: float = 0.0, total_length: int | None = None) -> Any:
    from rankhoist.capture.packed import Steps

    return Steps.of(sequence).padded(batch_first, padding_value, total_length)


def _forward(forward: Any) -> Any:
    def of_both(self: nn.RNNBase, input: Any, hx: Any = None) -> Any:
        return Steps.of(input).through(self, hx) if isinstance(input, PackedSequence) else forward(self, input, hx)

    return of_both


class Order:
    """In place of the sizes and orders of a packed sequence, which belong to all rows together: nobody may read it."""

    device = torch.device("cpu")

    def __init__(self, given: Tensor, places: Any) -> None:
        self.given, self.places = given, places

    def _refuse(self, *_: Any) -> Any:
        raise UnsupportedModelError(
            "the model reads batch_sizes, sorted_indices or unsorted_indices of a packed sequence, where rows meet. "
            "Let nn.GRU, nn.LSTM or nn.RNN run over it, or a loop over padded steps with a mask"
        )

    __getattr__ = __getitem__ = __iter__ = __len__ = __int__ = __index__ = _refuse


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
    def of(sequence: PackedSequence) -> Steps:
        """Those of a sequence that `packed` made, its `data` as they are or computed position by position."""
        order = sequence.batch_sizes
        if not isinstance(order, Order):
            raise UnsupportedModelError("a packed sequence is made by other means than pack_padded_sequence")
        x = sequence.data.reshape(order.given.shape[0], order.places, *sequence.data.shape[1:])
        return Steps(x, order.given.to(x.device), order.given)

    def as_packed(self) -> PackedSequence:
        """A sequence with all positions, row by row."""
        order = Order(self.given, self.x.shape[1])
        return PackedSequence(self.x.reshape(-1, *self.x.shape[2:]), order, order, order)  # type: ignore[arg-type]

    def padded(self, batch_first: bool, value: float, total: int | None) -> tuple[Tensor, Tensor]:
        """As `pad_packed_sequence`, with all positions."""
        x = self.x.masked_fill(~self._along(self.valid, self.x), value)
        if total is not None and total != x.shape[1]:
            short = total - x.shape[1]
            x = torch.cat([x, x.new_full((x.shape[0], short, *x.shape[2:]), value)], 1) if short > 0 else x[:, :total]
        return x if batch_first else x.transpose(0, 1), self.given

    def through(self, layer: nn.RNNBase, hx: Any) -> tuple[PackedSequence, Any]:
        """As a recurrent layer: what comes of every step, and the states after the last of each row."""
        directions = 2 if layer.bidirectional else 1
        given = [hx] if isinstance(hx, Tensor) else list(hx or ())
        steps, last = self, []
        for i in range(layer.num_layers):
            made = []
            for k in range(directions):
                weights = [getattr(layer, name) for name in _names(layer, directions * i + k)]
                first = [s[directions * i + k] for s in given] or _zeros(layer, steps.x)
                y, *after = steps.one_direction(layer, weights, first, backward=k == 1)
                made.append(y)
                last.append(after)
            y = torch.cat(made, -1)
            if layer.training and i + 1 < layer.num_layers:
                y = nn.functional.dropout(y, layer.dropout)
            steps = Steps(y, self.lengths, self.given)
        states = [torch.stack(own) for own in zip(*last, strict=True)]
        return steps.as_packed(), tuple(states) if len(states) > 1 else states[0]

    def one_direction(
        self, layer: nn.RNNBase, weights: list[Tensor], first: list[Tensor], backward: bool
    ) -> list[Tensor]:
        """What comes of every step, `[rows, T, H]`, and the states after the last, `[rows, H]` each."""
        x = self.turned(self.x) if backward else self.x
        if layer.mode == "LSTM":
            x = torch.cat([x.masked_fill(~self.valid.unsqueeze(2), 0), (~self.valid).unsqueeze(2).to(x.dtype)], 2)
            shut = weights[0].new_tensor([-SHUT, SHUT, 0, 0]).repeat_interleave(layer.hidden_size)  # i, f, g, o
            weights = [torch.cat([weights[0], shut.unsqueeze(1)], 1), *weights[1:]]
        states: Any = [s.unsqueeze(0) for s in first]
        states = states if len(states) > 1 else states[0]
        y, _, *cell = LAYERS[layer.mode](x, states, weights, layer.bias, 1, 0.0, False, False, True)
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


def _names(layer: nn.RNNBase, number: int) -> list[str]:
    """Of the weights of one layer in one direction."""
    names = layer._flat_weights_names
    size = len(names) // (layer.num_layers * (2 if layer.bidirectional else 1))
    return names[number * size : (number + 1) * size]


def _zeros(layer: nn.RNNBase, x: Tensor) -> list[Tensor]:
    sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size]
    return [x.new_zeros(x.shape[0], size) for size in sizes[: 2 if layer.mode == "LSTM" else 1]]
