"""What a model's Python has where it asks: values of the frames of its own lines, of the files that these are in, and
of the objects that they hold.

Two exports that go on from the same lines with the same values compute the same. Tensors and sizes are of the graph:
they are the same where their terms are, so the graph is given all of them (`shortcuts.MARK`).
"""

from __future__ import annotations

import copyreg
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from rankhoist.capture.own_lines import TORCH, is_own
from rankhoist.capture.read_again import read_again

EXPORTER = str(Path(TORCH, "export"))
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, range, slice)
FEW = 1000  # values of a container that a file names: what is longer is a table, which nobody writes anew
EMPTY: tuple[Any, ...] = ([], (), range(0), {}.values())
ITERATORS: tuple[type[Any], ...] = (enumerate, zip, map, filter, reversed, *(type(iter(x)) for x in EMPTY))
PARTS = {*vars(nn.Module())}  # weights, and what torch keeps; the modules within are looked into
PYTHONS = object.__basicsize__ + 2 * torch.tensor(0, dtype=torch.int64).element_size()  # bytes of an object of a class
# that is written in Python, without slots: all it holds is in its `__dict__`


@dataclass
class State:
    """Lines with forms of what names have, and those of files; the graph has the rest, in this order."""

    lines: list[tuple[CodeType, int, dict[str, Any]]]
    spaces: list[dict[str, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    sizes: list[Any] = field(default_factory=list)


def state_of(frame: FrameType | None) -> State:
    """From the innermost frame to that of the exporter, as far as anybody may read it again."""
    state, spaces = State([]), dict[int, dict[str, Any]]()
    form = _Forms(state)
    while frame is not None and not frame.f_code.co_filename.startswith(EXPORTER):
        if is_own(frame.f_code.co_filename):
            read = read_again(frame)
            own = {name: form.of(value) for name, value in sorted(frame.f_locals.items()) if read(name)}
            state.lines.append((frame.f_code, frame.f_lineno, own))
            spaces[id(frame.f_globals)] = frame.f_globals
        frame = frame.f_back
    state.spaces = [form.of_names(space, space.get("__name__")) for space in spaces.values()]
    return state


class StandsFor:
    """An object of ours that a model has in the place of another value: the same where what it is made of is."""

    def __init__(self, of: Any) -> None:
        self.of = of


class _Forms:
    """Of values. One that was met already is told by when it was."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._met: dict[int, int] = {}
        self._kept: list[Any] = []  # made meanwhile: nothing else comes to their places

    def of_names(self, space: Mapping[str, Any], file: Any) -> dict[str, Any]:
        """Of what a file, or a class in it, names, as far as a function may write it anew."""

        def own(value: Any) -> Any:
            if isinstance(value, type):
                return self.of_names(vars(value), file) if value.__module__ == file else _Same(value)
            few = isinstance(value, dict | list | tuple | set | deque) and len(value) <= FEW
            here = type(value).__module__ == file and not isinstance(value, nn.Module)
            return self.of(value) if few or here or isinstance(value, (*PLAIN, FakeTensor)) else _Same(value)

        return {name: own(value) for name, value in space.items() if not name.startswith("__")}

    def of(self, value: Any) -> Any:
        if isinstance(value, PLAIN):
            return type(value), repr(value)
        if isinstance(value, FakeTensor):
            self._state.tensors.append(value)
            memory = value.untyped_storage()._cdata  # a write to one of it is seen in others
            return "a tensor", self._met.setdefault(memory, len(self._met))
        if isinstance(value, torch.SymInt):
            self._state.sizes.append(value)
            return "a size"
        if isinstance(value, torch.SymFloat | torch.SymBool):
            return _Same(value)
        if id(value) in self._met:
            return "met", self._met[id(value)]
        self._met[id(value)] = len(self._met)
        return self._of_object(value)

    def _of_object(self, value: Any) -> Any:
        """By what it holds, where that is known; itself otherwise, which is another in every export if made there."""
        every = self._every
        match value:
            case StandsFor():
                return type(value), self.of(value.of)
            case nn.Module():
                own = {name: x for name, x in vars(value).items() if name not in PARTS} | value._modules
                return _Same(value), every(own.keys()), every(own.values())
            case dict():
                return type(value), every(value.keys()), every(value.values())
            case list() | tuple() | set() | frozenset() | deque():
                return type(value), every(value)
            case FunctionType():
                cells = [cell.cell_contents for cell in value.__closure__ or ()]
                return value.__code__, every(cells), self.of(value.__defaults__), self.of(value.__kwdefaults__)
            case MethodType():
                return value.__func__, self.of(value.__self__)
            case _ if isinstance(value, ITERATORS):  # of a comprehension, which has it by no name
                self._kept.append(value.__reduce__())
                return type(value), every(self._kept[-1])
            case partial():
                return self.of(value.func), self.of(value.args), self.of(value.keywords)
        if slots := copyreg._slotnames(type(value)):  # type: ignore[attr-defined]
            return (
                type(value),
                every(getattr(value, name, None) for name in slots),
                self.of(getattr(value, "__dict__", None)),
            )
        if hasattr(value, "__dict__") and type(value).__basicsize__ <= PYTHONS and not isinstance(value, type):
            return type(value), self.of(vars(value))
        return _Same(value)

    def _every(self, values: Iterable[Any]) -> list[Any]:
        return [self.of(own) for own in values]


class _Same:
    """A value that is equal to itself alone, and stays there meanwhile."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value
