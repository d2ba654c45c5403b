"""Packed sequences: what recurrent layers make of them, row by row, is computed of padded ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import assert_equal, hoisted_at, rates_of, repeated
from torch import Tensor, nn
from torch.nn.utils import rnn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import rankhoist
from rankhoist.capture import capture
from rankhoist.capture.packed import packed_as_padded
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Rate
from rankhoist.errors import ExportError, UnsupportedModelError

IDS, WIDTH, LENGTH = 30, 4, 6
OFFSETS = [0, 3, 3, 8]


class Reader(nn.Module):
    """What `read` makes of a history with as many events as its length, times the item."""

    def __init__(self, read: Callable[..., Tensor], layer: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.ids, self.items, self.read, self.layer = nn.Embedding(IDS, WIDTH), nn.Embedding(IDS, width), read, layer

    def forward(self, history: Tensor, length: Tensor, item: Tensor) -> Tensor:
        return (self.read(self.layer, self.ids(history), length) * self.items(item)).sum(1)


def rows(count: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Of the context and of the candidates."""
    return (torch.randint(IDS, (count, LENGTH)), 1 + torch.randperm(count) % LENGTH), torch.randint(IDS, (count,))


def hoisted_and_equal(model: nn.Module) -> rankhoist.HoistedModel:
    model = model.double().eval()
    context, item = rows(LENGTH)
    program = capture(model, (*context, item), ["history", "length"])
    made = hoisted_at(program, Level.REQUEST)
    context, item = rows(len(OFFSETS) - 1)[0], rows(OFFSETS[-1])[1]
    want = model(*(repeated(x, OFFSETS) for x in context), item)
    assert_equal(made(*context, item, request_offsets=OFFSETS), want)
    return made


def last(layer: nn.Module, x: Tensor, length: Tensor) -> Tensor:
    states = layer(pack_padded_sequence(x, length.cpu(), batch_first=True, enforce_sorted=False))[1]
    return torch.cat([s for state in (states if isinstance(states, tuple) else [states]) for s in state], 1)


@pytest.mark.parametrize(
    "kind", [nn.GRU, nn.LSTM, nn.RNN, lambda *given, **o: nn.RNN(*given, nonlinearity="relu", **o)]
)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}, {"bias": False, "num_layers": 2}])
def test_states_after_the_last_event_of_each_row(kind, options):
    """Of an LSTM the cells, too."""
    layer = kind(WIDTH, 3, batch_first=True, **options)
    states = 2 if isinstance(layer, nn.LSTM) else 1
    directions = 2 if layer.bidirectional else 1
    made = hoisted_and_equal(Reader(last, layer, states * directions * layer.num_layers * 3))
    assert not [n for n in made.plan.nodes if n.rate.per_candidate and n.work.multiply_adds], "once per request"


def test_states_of_a_projection():
    hoisted_and_equal(Reader(last, nn.LSTM(WIDTH, 5, batch_first=True, proj_size=3, bidirectional=True), 16))


def summed(layer: nn.Module, x: Tensor, length: Tensor) -> Tensor:
    steps, _ = layer(pack_padded_sequence(x, length.cpu(), batch_first=True, enforce_sorted=False))
    return pad_packed_sequence(steps, batch_first=True)[0].sum(1)


def steps_first(layer: nn.Module, x: Tensor, length: Tensor) -> Tensor:
    steps, _ = layer(rnn.pack_padded_sequence(x.transpose(0, 1), length.cpu(), enforce_sorted=False))
    return rnn.pad_packed_sequence(steps, total_length=LENGTH + 2, padding_value=2.0)[0].sum(0)


def sorted_before(layer: nn.Module, x: Tensor, length: Tensor) -> Tensor:
    length, order = length.sort(descending=True)
    steps, _ = layer(pack_padded_sequence(x[order], length.cpu(), batch_first=True))
    steps, given = pad_packed_sequence(steps, batch_first=True, total_length=LENGTH)
    at = (given - 1).view(-1, 1, 1).expand(-1, 1, WIDTH).to(steps.device)
    return steps.gather(1, at).squeeze(1)[order.argsort()]


def between(layer: nn.Module, x: Tensor, length: Tensor) -> Tensor:
    """Positions are computed, each by itself, while they are packed; the layer begins with a state of its own."""
    packed = pack_padded_sequence(x, length.cpu(), batch_first=True, enforce_sorted=False)
    packed = PackedSequence(packed.data.relu(), packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
    return layer(packed, x.mean(1).unsqueeze(0))[1][0]


@pytest.mark.parametrize("read", [summed, steps_first, sorted_before, between])
def test_steps_are_read(read):
    """Also where the model's author sorts the rows and puts them back."""
    made = hoisted_and_equal(Reader(read, nn.GRU(WIDTH, WIDTH, batch_first=read is not steps_first)))
    assert rates_of(made, "gru") == {Rate.REQUEST}


def test_steps_of_both_directions():
    hoisted_and_equal(Reader(summed, nn.LSTM(WIDTH, 2, 2, batch_first=True, bidirectional=True)))


@pytest.mark.parametrize(("read", "kind", "width"), [(last, nn.LSTM, 2), (between, nn.GRU, WIDTH)])
def test_histories_of_any_length(read, kind, width):
    """Those of several requests have one length in a call, and each row as many events as it says."""
    model = Reader(read, kind(WIDTH, width, batch_first=True)).double().eval()
    context, item = rows(LENGTH)
    program = capture(model, (*context, item), ["history", "length"], dynamic={"history": {1: (1, 50)}})
    made = hoisted_at(program, Level.REQUEST)
    assert not [n for n in made.plan.nodes if n.rate.per_candidate and n.work.multiply_adds], "once per request"
    for length in (1, 4, 20):
        history, item = torch.randint(IDS, (3, length)), rows(OFFSETS[-1])[1]
        context = history, torch.tensor([length, 1, 1 + length // 2])
        want = model(*(repeated(x, OFFSETS) for x in context), item)
        assert_equal(made(*context, item, request_offsets=OFFSETS), want, f"length {length}")


def test_padding_is_never_read():
    """It may be infinite, as what a division by a length of nothing leaves."""

    def read(layer: nn.Module, x: Tensor, length: Tensor) -> Tensor:
        beyond = torch.arange(x.shape[1]) >= length.unsqueeze(1)
        return last(layer, x.masked_fill(beyond.unsqueeze(2), float("inf")), length)

    hoisted_and_equal(Reader(read, nn.LSTM(WIDTH, 3, batch_first=True, bidirectional=True), 12))


def test_the_whole_way(tmp_path):
    model = Reader(last, nn.GRU(WIDTH, WIDTH, batch_first=True)).double().eval()
    context, item = rows(LENGTH)
    made = rankhoist.hoist(model, (*context, item), context=["history", "length"])
    assert rankhoist.verify(made, model, candidates=(1, 7), requests=(1, 3)).passed
    made.save(tmp_path / "packed.rankhoist")
    again = rankhoist.load(tmp_path / "packed.rankhoist")
    one = [x[:1] for x in context]
    assert_equal(again(*one, item), model(*(x.expand(LENGTH, *x.shape[1:]) for x in one), item))


# -- what is not a row's own


def averaged(layer: nn.Module, x: Tensor, length: Tensor) -> Tensor:
    """Over as many positions as the longest row of the call has."""
    steps, _ = layer(pack_padded_sequence(x, length.cpu(), batch_first=True, enforce_sorted=False))
    return pad_packed_sequence(steps, batch_first=True)[0].mean(1)


def test_a_score_that_depends_on_the_longest_row_of_a_call_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"a score depends on the other rows of a call"):
        hoisted_and_equal(Reader(averaged, nn.GRU(WIDTH, WIDTH, batch_first=True)))


def looped(layer: nn.Module, x: Tensor, length: Tensor) -> Tensor:
    packed = pack_padded_sequence(x, length.cpu(), batch_first=True, enforce_sorted=False)
    return packed.data[: int(packed.batch_sizes[1])]


def test_sizes_of_a_packed_sequence_are_not_read():
    with pytest.raises(ExportError, match="reads batch_sizes of a packed sequence, where rows meet"):
        hoisted_and_equal(Reader(looped, nn.Identity()))


def test_functions_of_torch_are_as_they_were():
    before = pack_padded_sequence.__code__, pad_packed_sequence.__code__, torch._VF.gru
    with pytest.raises(RuntimeError, match="within"), packed_as_padded():
        assert pack_padded_sequence.__code__ is not before[0]
        raise RuntimeError("within")
    assert (pack_padded_sequence.__code__, pad_packed_sequence.__code__, torch._VF.gru) == before
    assert not hasattr(torch.nn.modules.rnn, "int")
