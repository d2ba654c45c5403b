"""Calls over tensors that stand still: the same objects again and again, into which their owner writes.

Who serves from a GPU often copies what comes to tensors that stay. A call of the same tensors as before, with the same
boundaries, is recorded over these themselves, as a CUDA graph made by hand is: nothing is copied in, no row is padded,
and what boundaries say is known. It is a recording beside those of other calls, which are for any tensors.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rankhoist.capture import Split
from rankhoist.compiler.plan import Way
from rankhoist.runtime.recorded import Recorded
from rankhoist.runtime.replays import Replays

TIMES = 3  # that a call comes before it has a recording of its own
RECENT = 8  # calls that are remembered until they come again
KEPT = 4  # recordings, which keep their tensors alive

PLAIN = (Tensor, str, int, float, type(None))
Call = tuple[list[Any], list[int] | None]  # tensors and what is passed with them; boundaries


def call_of(args: Sequence[Any], offsets: Any) -> Call | None:
    """A call's tensors, and what else it is given; None where they are held by what is not looked into."""
    if offsets is not None and type(offsets) is not list:
        return None
    given: list[Any] = []
    for own in args:
        if isinstance(own, dict):
            for pair in own.items():
                given += pair
        elif isinstance(own, Split):
            given += (own.context, own.candidate)
        else:
            given.append(own)
    for x in given:
        if not isinstance(x, PLAIN):
            return None
    return given, offsets


@dataclass(frozen=True)
class Standing:
    """A call with a recording of its own.

    Attributes:
        given, offsets: what it is called with.
        places: where its tensors lie, and how: one may be given other memory.
        way: how it is scored; its backend is the one that recorded it.
    """

    given: list[Any]
    offsets: list[int] | None
    places: list[Any]
    way: Way
    replays: Replays
    entry: Recorded

    @staticmethod
    def of(call: Call, way: Way, replays: Replays, entry: Recorded) -> Standing:
        given, offsets = call
        return Standing(given, None if offsets is None else [*offsets], _places(given), way, replays, entry)

    def is_for(self, call: Call) -> bool:
        """Whether another call is this one."""
        given, offsets = call
        if len(given) != len(self.given) or offsets != self.offsets:
            return False
        for own, other in zip(self.given, given, strict=True):
            if own is not other and (isinstance(own, Tensor) or isinstance(other, Tensor) or own != other):
                return False
        return _places(given) == self.places


class Recent:
    """Calls that came lately, and how often; their tensors are not kept alive."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, tuple[list[Any], list[int]]] = {}  # the latest comes last

    def often(self, call: Call) -> bool:
        """Whether it came just as often as it takes."""
        given, offsets = call
        key = tuple([id(x) for x in given if isinstance(x, Tensor)]), offsets and tuple(offsets)
        refs, times = self._calls.pop(key, ([], [0]))
        if len(refs) != len(given) or not all(map(_is, refs, given)):  # others, perhaps where those were
            refs, times = [weakref.ref(x) if isinstance(x, Tensor) else x for x in given], [0]
        self._calls[key] = refs, times
        for old in list(self._calls)[:-RECENT]:
            self._calls.pop(old, None)
        times[0] += 1
        return times[0] == TIMES


def _is(ref: Any, x: Any) -> bool:
    return ref() is x if isinstance(ref, weakref.ref) else not isinstance(x, Tensor) and ref == x


def _places(given: Sequence[Any]) -> list[Any]:
    return [(x.data_ptr(), x.shape, x.stride()) for x in given if isinstance(x, torch.Tensor)]
