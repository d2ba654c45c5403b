"""What a model's own Python asks of its weights: whether a buffer is true, which of several parts weighs most, how many
there are of something.

    if self.warm: ...        self.layers[int(self.gates.argmax())](x)        range(int(self.depth))
    x[:, self.places.numpy()]        for group in self.groups.unique(): ...        F.one_hot(self.groups)

No input has a say in it, so the answer is that of the weights at hand, and the graph goes on from there. It holds for
these values alone: those that were asked are pinned, and an update that changes them is refused.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from rankhoist.capture.looked_at import LookedAt

NUMBERS: set[Any] = {  # which Python wants there and then
    Tensor.__bool__, Tensor.__int__, Tensor.__index__, Tensor.__float__, Tensor.__contains__, Tensor.__array__,
    Tensor.numpy,
}  # fmt: skip
VALUES: set[Any] = {  # what a graph can hold, if of floats: numbers, and as many places as numbers say
    Tensor.item, Tensor.tolist, F.one_hot, torch.unique, Tensor.unique, torch.unique_consecutive,
    Tensor.unique_consecutive, torch.bincount, Tensor.bincount, torch.repeat_interleave, Tensor.repeat_interleave,
    torch.nonzero, Tensor.nonzero, torch.argwhere, Tensor.argwhere,
}  # fmt: skip
SIZES = (torch.SymInt, torch.SymFloat, torch.SymBool)

_ASKED: ContextVar[set[str]] = ContextVar("asked")


@contextlib.contextmanager
def asked() -> Iterator[set[str]]:
    """The names of the weights that are asked meanwhile."""
    names: set[str] = set()
    token = _ASKED.set(names)
    try:
        yield names
    finally:
        _ASKED.reset(token)


class _Made(NamedTuple):
    """How a tensor was made: which result of a function it was, of what, and how often all were written to by then."""

    result: Tensor
    place: int
    func: Any
    given: tuple[Any, dict[str, Any]]
    written: list[int]


class Asked(TorchFunctionMode):
    """While a model is exported: what it asks of weights alone is answered by their values.

    Args:
        model: with weights that have values, before they are exchanged for those that have none.
        training: then a parameter has no value to rely on.
        floats: numbers that Python has no need of yet are answered, too, of which the graph otherwise has names.
    """

    def __init__(self, model: nn.Module, training: bool, floats: bool = False) -> None:
        super().__init__()
        self._model, self._training, self._floats = model, training, floats
        self._values = {name: x.detach() for name, x in self._weights()}
        self._made: dict[int, _Made] = {}

    def _weights(self) -> list[tuple[str, Tensor]]:
        """By name, as they are now."""
        every = self._model.named_buffers(remove_duplicate=False)
        trained = self._model.named_parameters(remove_duplicate=False)
        return list(every if self._training else itertools.chain(every, trained))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = args, kwargs or {}
        if func in NUMBERS or (func in VALUES and (self._floats or not _tensors(given)[0].is_floating_point())):
            with contextlib.suppress(_UnknownError):
                return self._answer(func, given)
        if func is Tensor.numpy and not self._training:
            return LookedAt()
        result = func(*given[0], **given[1])
        if isinstance(result, Tensor | tuple | list | dict):  # most calls are questions, as that for a dtype
            taken = _tensors(given)
            for place, x in enumerate(pytree.tree_leaves(result)):
                if isinstance(x, Tensor) and all(x is not t for t in taken):
                    self._made[id(x)] = _Made(x, place, func, given, _written([x, *taken]))
        return result

    def _answer(self, func: Any, given: Any) -> Any:
        names = {id(weight): name for name, weight in self._weights()}
        used: set[str] = set()
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _disable_current_modes():
            before = torch.get_rng_state()
            args, kwargs = self._of_values(given, names, used)
            answer = func(*args, **kwargs)
            if not torch.equal(before, torch.get_rng_state()):
                raise _UnknownError  # a number that is drawn is another in the next call
        _ASKED.get().update(used)
        return answer

    def _value(self, x: Tensor, names: dict[int, str], used: set[str]) -> Tensor:
        """Of a tensor that is made of weights alone, whose names are added to `used`."""
        if id(x) in names and not any(_written([x])):
            used.add(names[id(x)])
            return self._values[names[id(x)]]
        if type(x) is Tensor and not self._training:
            return x  # a plain attribute has its value still
        made = self._made.get(id(x))
        if made is None or made.written != _written([x, *_tensors(made.given)]):
            raise _UnknownError
        args, kwargs = self._of_values(made.given, names, used)
        value: Tensor = pytree.tree_leaves(made.func(*args, **kwargs))[made.place]
        return value

    def _of_values(self, given: Any, names: dict[int, str], used: set[str]) -> Any:
        """What a function is given, with values in the place of tensors."""
        if any(isinstance(leaf, SIZES) for leaf in pytree.tree_leaves(given)):
            raise _UnknownError
        return pytree.tree_map_only(Tensor, lambda t: self._value(t, names, used), given)


class _UnknownError(Exception):
    """An input, or the number of rows, has a say in it, or it was written over."""


def _tensors(nest: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(nest) if isinstance(x, Tensor)]


def _written(tensors: list[Tensor]) -> list[int]:
    return [0 if x.is_inference() else x._version for x in tensors]
