"""Functions that are told in words which axes they go through, as einx has them: `where("b n, b n d, -> b n d", ...)`.

They read all sizes as numbers, and so would fix that of the rows. What the words mean is a loop over each axis that no
bracket holds, around what the function does with the others:

    f("b X, b Y -> b Z", x, y)[i] = f("X, Y -> Z", x[i], y[i])        which `vmap` computes for any number of i

So an axis whose size is no number is left out of the words, and `vmap` goes through it. In a bracket, or twice in the
words of one tensor, it is no such loop: then the function is called as it is.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rankhoist.capture.own_lines import own_names

LIBRARY = "einx"
OF_SIZES = {"check", "matches", "solve", "solve_axes", "solve_shapes"}  # they make no tensor
PIECE = r"\([^()]*\)|\.\.\.|\w+|[\[\]]"  # axes that are joined to one, any axes, an axis, a bracket
READ = re.compile(rf"(\s|{PIECE})*")
NAMED = re.compile(r"[\w)\]]\.\.\.|\b_\d")  # axes of one name, and names that those without one get


@contextlib.contextmanager
def loops_are_mapped(model: nn.Module) -> Iterator[None]:
    """While a model is exported: by the library's own names, and by those in the files of a model's modules."""
    library = vars(sys.modules[LIBRARY]) if LIBRARY in sys.modules else {}
    others = {f: _mapped(f) for name, f in library.items() if name not in OF_SIZES and _is_told(f)}
    with contextlib.ExitStack() as stack:
        for names in [library, *own_names(model)] if others else []:
            for name, function in [*names.items()]:
                if inspect.isfunction(function) and function in others:
                    stack.callback(names.__setitem__, name, function)
                    names[name] = others[function]
        yield


def _is_told(function: Any) -> bool:
    return inspect.isfunction(function) and next(iter(inspect.signature(function).parameters), "") == "description"


def _mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(description: str, *tensors: Any, **others: Any) -> Any:
        loop = _loop(description, tensors)
        if loop is None:
            return function(description, *tensors, **others)
        rest = functools.partial(call, loop.rest, **{name: x for name, x in others.items() if name != loop.axis})
        return loop.run(rest, tensors)

    return call


class _Part(NamedTuple):
    """The words of one tensor without an axis, its place, and whether it leads a group, which is one axis."""

    rest: str
    at: int | None = None
    leads: bool = False

    def whole(self, x: Tensor) -> Tensor:
        return x.flatten(self.at, self.at + 1) if self.leads and self.at is not None else x


class _Loop(NamedTuple):
    axis: str
    inputs: list[_Part]
    results: list[_Part]
    arrow: str

    @property
    def rest(self) -> str:
        return self.arrow.join(",".join(part.rest for part in side) for side in (self.inputs, self.results))

    def run(self, rest: Callable[..., Any], tensors: Sequence[Any]) -> Any:
        """Several results in what the function has them in, a list or a tuple."""
        to: Any = tuple(part.at for part in self.results)
        found: Any = tuple

        def own(*parts: Any) -> Any:
            nonlocal found
            made = rest(*parts)
            found = type(made)
            return tuple(made) if found is list else made

        made = torch.vmap(own, tuple(part.at for part in self.inputs), to if len(to) > 1 else to[0])(*tensors)
        if isinstance(made, tuple):
            return found(part.whole(x) for part, x in zip(self.results, made, strict=True))
        return self.results[0].whole(made)


def _loop(words: str, tensors: Sequence[Any]) -> _Loop | None:
    """Over the first axis that has no number for a size, and is one; None where there is none."""
    inside, arrow, outside = _written_out(words, tensors).partition("->")
    for x, own in zip(tensors, inside.split(","), strict=False):
        for size, axis in zip(x.shape if isinstance(x, Tensor) else (), _axes(own), strict=False):
            if isinstance(size, torch.SymInt) and axis.isidentifier() and (loop := _over(axis, inside, arrow, outside)):
                return loop
    return None


def _over(axis: str, inside: str, arrow: str, outside: str) -> _Loop | None:
    of = [_without(part, axis) for part in inside.split(",")]
    to = [_without(part, axis) for part in outside.split(",")]
    if not arrow and all(part and part.at in (0, None) for part in of):
        to = [_Part("", 0)]  # it is the first one in what no words tell, too
    inputs, results = [part for part in of if part and not part.leads], [part for part in to if part]
    if len(inputs) < len(of) or len(results) < len(to) or any(part.at is None for part in results):
        return None
    return _Loop(axis, inputs, results, arrow)


def _written_out(words: str, tensors: Sequence[Any]) -> str:
    """With names for all axes; none, where they are not read here."""
    inputs, parts = words.partition("->")[0].split(","), re.split("->|,", words)
    if len(inputs) != len(tensors) or words.count("->") > 1 or NAMED.search(words):
        return ""
    if any(not READ.fullmatch(part) or part.count("[") != part.count("]") for part in parts):
        return ""
    more = {x.dim() - len(_axes(own)) + 1 for own, x in zip(inputs, tensors, strict=True) if "..." in _axes(own)}
    if len(more) != ("..." in words):
        return ""
    return words.replace("...", " ".join(f"_{n}" for count in more for n in range(count)))


def _axes(own: str) -> list[str]:
    return [piece for piece in re.findall(PIECE, own) if piece not in "[]"]


def _without(own: str, axis: str) -> _Part | None:
    """None where it is no loop."""
    pieces = re.findall(PIECE, own)
    found = [n for n, piece in enumerate(pieces) if axis in re.findall(r"\w+", piece)]
    if not found:
        return _Part(own)
    before, (first, *others), behind = pieces[: found[0]], pieces[found[0]].strip("()").split(), pieces[found[0] + 1 :]
    if len(found) > 1 or first != axis or axis in others or before.count("[") > before.count("]"):
        return None
    group = [f"({' '.join(others)})"] if others else []
    return _Part(" ".join([*before, *group, *behind]), len(_axes(" ".join(before))), bool(others))
