"""Loops over what was chosen, as experts whom rows of the call choose: data says how many turns there are.

    for e in mask.any(1).nonzero(): out[mask[e]] += experts[e](x[mask[e]])         for e in best.unique().tolist(): ...

Here there is a turn for every number that may be among them, and each asks whether it is (`shortcuts`), as in
`mask.any(1)[e]` or `(best == e).any()`. Those that are come in the order of the model's, and one that is not has to
change nothing. Counts of a fixed length, `for e, count in enumerate(mask.sum(0).tolist()): if count == 0: continue`,
are numbers of a tensor, of which each is asked for by itself.
"""

from __future__ import annotations

import contextlib
import operator
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from rankhoist.capture.own_lines import own_frame
from rankhoist.capture.shortcuts import MOST, Answers
from rankhoist.capture.state import StandsFor
from rankhoist.capture.statements import goes_through
from rankhoist.errors import UnsupportedModelError

WHOLE = (torch.int64, torch.int32)
PLACES = {"nonzero", "argwhere", "where"}
COPIES = {"clone", "contiguous", "detach", "cpu", "to", "long", "int"}
SUBSETS = {*COPIES, "flatten", "ravel", "reshape", "view", "squeeze", "unsqueeze", "expand", "permute", "transpose",
           "select", "getitem", "gather"}  # fmt: skip
AXES = {"argmax": 0, "argmin": 0, "argsort": 0, "topk": 1, "sort": 0, "max": 0, "min": 0}  # which argument tells it
LAST = {"argsort", "topk", "sort"}  # where none does
UNIQUE = {"sorted": True, "return_inverse": False, "return_counts": False, "dim": None}
SAID = (
    "a list of what was found in a tensor is read elsewhere than by a loop, and data says how long it is: write "
    "`for number in found:`, without enumerate, sorted or a comprehension"
)
UNBOUNDED = (
    "a loop goes over the numbers that are in a tensor, and nothing says which there may be, as of an input's own ids: "
    "write `ids.clamp(0, n - 1).unique()`, or `for number in range(n):` with `if (ids == number).any():` in it"
)


@dataclass(frozen=True)
class Below:
    """A tensor's numbers are from 0 on and below a number."""

    most: int


@dataclass(frozen=True)
class Chosen:
    """Those of the numbers below `most` that a mask, `of`, is true at, or that are in a tensor; ascending."""

    of: Tensor
    written: int
    most: int
    places: bool

    def has(self, number: int) -> Tensor:
        """Whether it is one of them."""
        if self.of._version != self.written:
            raise UnsupportedModelError("a loop goes over what was found in a tensor that was written to since then")
        return self.of.select(0, number) if self.places else (self.of == number).any()


@dataclass(frozen=True)
class Unbounded:
    """Numbers that are in a tensor; nothing says which there may be."""


Known = TypeVar("Known", Below, Chosen, Unbounded)


@contextlib.contextmanager
def loops_over_chosen(answers: Answers) -> Iterator[None]:
    """While a model is exported with such answers."""
    plain, own = FakeTensor.tolist, _Loops(answers)

    def tolist(x: FakeTensor) -> Any:
        turns = own.listed(x)
        if turns is not None:
            return turns
        numbers = plain(x)
        if x.dim() == 1:
            read = x.clone()  # which nobody writes to
            answers.items |= {n.node.expr: read[i] for i, n in enumerate(numbers) if isinstance(n, torch.SymInt)}
        return numbers

    with mock.patch.object(FakeTensor, "tolist", tolist), own:
        yield


class _Loops(TorchFunctionMode):
    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self._answers = answers
        self._numbers: dict[int, Tensor] = {}  # of turns, and what is made of them alone
        self._known: dict[int, tuple[Tensor, int, Any]] = {}  # tensors are kept: none comes to their places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = func.__name__.strip("_"), kwargs or {}
        if name == "unbind" and args[1:] in ((), (0,)) and not given:
            chosen = self._of(args[0], Chosen)
            if chosen is not None and goes_through(own_frame(sys._getframe(1))):
                return self._rows(args[0], chosen)
            self._check(args[0], chosen)
        if name == "bincount" and (counted := self._counted(*args, **given)) is not None:
            return counted
        if name == "getitem" and self._numbers:
            args = (args[0], self._plain(args[1]))
        result = func(*args, **given)
        if self._numbers and isinstance(result, Tensor):
            tensors = [x for x in pytree.tree_leaves((args, given)) if isinstance(x, Tensor)]
            if tensors and all(id(x) in self._numbers for x in tensors):
                self._numbers[id(result)] = result
        self._note(name, args, given, result)
        return result

    def _counted(self, input: Tensor, weights: Any = None, minlength: int = 0) -> Tensor | None:
        """How often there is every number below `minlength`, where all are known to be, so data does not say."""
        below = self._of(input, Below)
        known = weights is None and below is not None and below.most <= minlength
        return F.one_hot(input.long(), minlength).sum(0) if known else None

    def listed(self, x: Tensor) -> Any:
        """In the place of a list of a tensor's numbers; None where they are not known."""
        chosen = self._of(x, Chosen)
        if chosen is None:
            self._check(x, chosen)
            return None
        return _Listed(x, lambda: (n if x.dim() == 1 else [n] for n in self._turns(chosen)))

    def _check(self, x: Tensor, chosen: Chosen | None) -> None:
        """That it is not known to be gone through in vain."""
        if chosen is not None or self._of(x, Unbounded) is not None:
            raise UnsupportedModelError(UNBOUNDED if chosen is None else SAID)

    def _rows(self, x: Tensor, chosen: Chosen) -> Iterator[Tensor]:
        """In the place of a tensor's rows, which are in its memory."""
        written = x._version
        for number in self._turns(chosen):
            row = torch.full([1] * (x.dim() - 1), number, dtype=x.dtype, device=x.device)
            self._numbers[id(row)], own = row, row._version
            yield row
            if (row._version, x._version) != (own, written):
                raise UnsupportedModelError("a loop writes to the numbers that it goes through")

    def _turns(self, chosen: Chosen) -> Iterator[int]:
        for number in range(chosen.most):
            frame = own_frame(sys._getframe(1))
            if frame is not None and self._answers.to(None, False, frame, chosen.has(number)):
                yield number

    def _plain(self, index: Any) -> Any:
        """An index, with numbers of turns as such: torch reads them as data."""
        if isinstance(index, tuple):
            return tuple(map(self._plain, index))
        return operator.index(index) if id(index) in self._numbers and not index.dim() else index

    # -- what is known of tensors

    def _of(self, x: Any, kind: type[Known]) -> Known | None:
        found, written, known = self._known.get(id(x), (None, 0, None))
        return known if isinstance(known, kind) and found is not None and found._version == written else None

    def _note(self, name: str, args: Any, given: Any, result: Any) -> None:
        """Of a result; of several, the places come last."""
        made = result[-1] if isinstance(result, tuple) and result else result
        x, *others = args if args and isinstance(args[0], Tensor) else (None,)
        if x is None or not isinstance(made, Tensor) or made.dtype not in WHOLE or any(made is own for own in args):
            return
        if (name in ("max", "min") and made is result) or x.is_inference():  # of two tensors; writes are not counted
            return
        known = self._chosen(name, x, others, given, made) or self._below(name, x, others, given)
        if known is not None:
            self._known[id(made)] = made, made._version, known

    def _chosen(self, name: str, x: Tensor, others: Any, given: Any, made: Tensor) -> Chosen | Unbounded | None:
        if name in PLACES and not others and given.keys() <= {"as_tuple"}:
            most = x.shape[0] if x.dim() == 1 else None
            return Chosen(x, x._version, most, True) if isinstance(most, int) and most <= MOST else None
        if name == "unique" and not others and UNIQUE | given == UNIQUE:
            below = self._of(x, Below)
            if below is not None:
                return Chosen(x, x._version, below.most, False)
            return Unbounded() if isinstance(made, FakeTensor) else None
        chosen = self._of(x, Chosen) if name in SUBSETS else None
        return chosen if chosen is not None and _in_order(x, others, made) else None

    def _below(self, name: str, x: Tensor, others: Any, given: Any) -> Below | None:
        if name in COPIES and x.dtype == torch.bool:
            return Below(2)
        if name in SUBSETS:
            return self._of(x, Below)
        if name in AXES:
            axis = given.get("dim", others[AXES[name]] if len(others) > AXES[name] else -1 if name in LAST else None)
            return _below(x.shape[axis]) if isinstance(axis, int) and x.dim() else None
        if name in ("remainder", "mod") and x.dtype in WHOLE and len(others) == 1:
            return _below(others[0])
        if name == "clamp" and x.dtype in WHOLE:
            low, high = (given.get(word, n) for word, n in zip(("min", "max"), (*others, None, None), strict=False))
            return _below(high + 1) if isinstance(low, int) and low >= 0 and isinstance(high, int) else None
        return None


def _below(most: Any) -> Below | None:
    return Below(most) if isinstance(most, int) and 0 < most <= MOST else None


def _in_order(x: Tensor, others: Any, made: Tensor) -> bool:
    """Whether a view or a copy of a tensor has all of its numbers, one behind the other on the first axis, and no other
    tensor says which.
    """
    sizes = [[s.node.expr if isinstance(s, torch.SymInt) else s for s in own.shape] for own in (x, made)]
    told = any(
        isinstance(own, Tensor | list) for own in pytree.tree_leaves((*others,), is_leaf=lambda n: type(n) is list)
    )
    return not told and sizes[1] in ([sizes[0][0]], [sizes[0][0], 1])


class _Listed(StandsFor):
    """In the place of a list: a loop goes through it, and nothing else does."""

    def __init__(self, of: Tensor, turns: Callable[[], Iterator[Any]]) -> None:
        super().__init__(of)
        self._turns = turns

    def __iter__(self) -> Iterator[Any]:
        if not goes_through(own_frame(sys._getframe(1))):
            raise UnsupportedModelError(SAID)
        return self._turns()

    def __len__(self) -> int:
        raise UnsupportedModelError(SAID)

    def __getitem__(self, place: Any) -> Any:
        raise UnsupportedModelError(SAID)
