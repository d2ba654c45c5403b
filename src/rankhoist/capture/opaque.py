"""Modules that are kept as they are: the graph of a model has a call of them, `rankhoist.opaque`, and no operators.

What such a module returns is seen by one run of the model on its example; each result has the rows on one axis, and its
other sizes are fixed. That no row of a result reads another row is the word of whoever keeps the module.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rankhoist.capture.inputs import CONSTANTS
from rankhoist.errors import CaptureError, ExportError

ROWS = 13  # of the run: no other size is this by chance


@dataclass(frozen=True)
class Structure:
    """A nest of tensors: its containers, and the leaves that are no tensors, by place."""

    spec: pytree.TreeSpec
    constants: dict[int, Any]

    @staticmethod
    def of(value: Any) -> tuple[Structure, list[Tensor]]:
        """Of a nest, and its tensors in order."""
        leaves, spec = pytree.tree_flatten(value)
        constants = {i: leaf for i, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
        return Structure(spec, constants), [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        """The nest with other tensors."""
        leaves: list[Any] = list(tensors)
        for place, value in self.constants.items():
            leaves.insert(place, value)
        return pytree.tree_unflatten(leaves, self.spec)


@dataclass(frozen=True)
class Result:
    """One tensor that a module returns: its sizes without the rows, the axis of these, and its dtype."""

    shape: tuple[int, ...]
    axis: int
    dtype: torch.dtype

    def sizes(self, rows: Any) -> list[Any]:
        """The sizes for so many rows."""
        return [*self.shape[: self.axis], rows, *self.shape[self.axis :]]


@dataclass(frozen=True)
class OpaqueCall:
    """One call of a kept module.

    Attributes:
        module: its path in the model.
        kind: the name of its class.
        given: the structure of its `(args, kwargs)`; `axes` are where its tensors have rows, or None.
        returned: the structure of what it returns, whose tensors are `results`.
        multiply_adds: per row, as counted in the run.
    """

    module: str
    kind: str
    given: Structure
    axes: tuple[int | None, ...]
    returned: Structure
    results: tuple[Result, ...]
    multiply_adds: int

    def rows(self, tensors: Sequence[Tensor]) -> Any:
        """The row count of a call's tensors."""
        return next(t.shape[axis] for t, axis in zip(tensors, self.axes, strict=True) if axis is not None)


_CALLS: ContextVar[Mapping[str, OpaqueCall]] = ContextVar("calls")


@torch.library.custom_op("rankhoist::opaque", mutates_args=())
def opaque(call: str, multiply_adds: int, tensors: list[Tensor]) -> list[Tensor]:
    """Stands for a call of a kept module, by its name; emitted graphs call the module itself."""
    raise NotImplementedError(call)


@opaque.register_fake
def _fake(call: str, multiply_adds: int, tensors: list[Tensor]) -> list[Tensor]:
    known = _CALLS.get()[call]
    rows = known.rows(tensors)
    return [tensors[0].new_empty(r.sizes(rows), dtype=r.dtype) for r in known.results]


OPAQUE = torch.ops.rankhoist.opaque.default


@contextlib.contextmanager
def kept(model: Any, bound: inspect.BoundArguments | None, paths: Sequence[str]) -> Iterator[dict[str, OpaqueCall]]:
    """While a model is exported and its graph is made functional, modules at `paths` are calls of `OPAQUE`.

    Raises:
        CaptureError: there is no such module, it is not called, or what it takes or returns has no rows on one axis.
    """
    if not paths:
        yield {}
        return
    modules = dict(model.named_modules()) if isinstance(model, nn.Module) and bound is not None else {}
    for path in paths:
        if path not in modules or not path:
            names = ", ".join(name for name in modules if name) or "none: an exported program has no modules"
            raise CaptureError(f"opaque names {path!r}, which is no module of the model; there are {names}")
    assert bound is not None
    calls = _observed(model, bound, {path: modules[path] for path in paths})
    token = _CALLS.set(calls)
    try:
        for path in paths:
            own = {name: call for name, call in calls.items() if call.module == path}
            modules[path].forward = _stand_in(own)
        yield calls
    finally:
        _CALLS.reset(token)
        for path in paths:
            del modules[path].forward


def keepable(model: nn.Module, bound: inspect.BoundArguments, path: str) -> str:
    """The module at a path, or the next one around it, that takes and returns rows; empty where there is none."""
    while path:
        try:
            _observed(model, bound, {path: model.get_submodule(path)})
        except (CaptureError, AttributeError):
            path = path.rpartition(".")[0]
        else:
            break
    return path


def _stand_in(calls: Mapping[str, OpaqueCall]) -> Any:
    """A `forward` that puts calls, in turn, into the graph."""
    turns = itertools.cycle(calls.items())

    def forward(*args: Any, **kwargs: Any) -> Any:
        name, call = next(turns)
        given, tensors = Structure.of((args, kwargs))
        if given != call.given:
            raise ExportError(f"opaque module {call.module!r} is called in another way than on the example")
        return call.returned.filled(OPAQUE(name, call.multiply_adds, tensors))

    return forward


def _observed(
    model: nn.Module, bound: inspect.BoundArguments, modules: Mapping[str, nn.Module]
) -> dict[str, OpaqueCall]:
    """Every call of the modules, in one run of the model over `ROWS` rows."""

    def repeated(leaf: Any) -> Any:
        return leaf[torch.arange(ROWS, device=leaf.device) % len(leaf)] if isinstance(leaf, Tensor) else leaf

    args, kwargs = pytree.tree_map(repeated, (bound.args, bound.kwargs))
    observer = _Observer()
    try:
        with observer.of(modules), torch.no_grad():
            model(*args, **kwargs)
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"the model fails on rows of its example: {type(error).__name__}: {error}") from error
    unused = [path for path in modules if all(call.module != path for call in observer.calls.values())]
    if unused:
        raise CaptureError(f"opaque names {unused[0]!r}, which the model does not call")
    return observer.calls


class _Observer:
    """Notes what modules are given and return, and the work that they do."""

    def __init__(self) -> None:
        self.calls: dict[str, OpaqueCall] = {}
        self._counters: dict[str, Any] = {}

    @contextlib.contextmanager
    def of(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        hooks = []
        for path, module in modules.items():
            hooks += [
                module.register_forward_pre_hook(functools.partial(self._begins, path), with_kwargs=True),
                module.register_forward_hook(functools.partial(self._ends, path), with_kwargs=True),
            ]
        try:
            with torch.compiler.set_stance("force_eager"):  # a compiler gives up for good on what is counted
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begins(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        from torch.utils.flop_counter import FlopCounterMode  # here, for it imports Triton where that is installed

        self._counters[path] = FlopCounterMode(display=False)
        self._counters[path].__enter__()

    def _ends(self, path: str, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        self._counters[path].__exit__(None, None, None)
        work = self._counters[path].get_total_flops() // 2 // ROWS
        number = sum(call.module == path for call in self.calls.values())
        self.calls[f"{path}:{number}"] = _call(path, module, (args, kwargs), result, work)


def _call(path: str, module: nn.Module, given: Any, returned: Any, work: int) -> OpaqueCall:
    before, tensors = Structure.of(given)
    after, made = Structure.of(returned)
    axes = tuple(_axis(t) for t in tensors)
    if all(axis is None for axis in axes):
        raise CaptureError(f"opaque module {path!r} reads nothing that has rows; it is given {_shapes(tensors)}")
    if not made or any(_axis(t) is None for t in made):
        raise CaptureError(
            f"opaque module {path!r} returns {_shapes(made)} for {ROWS} rows: every result needs one axis of the rows. "
            "Keep a module around it whose results have one."
        )
    for leaf in [*before.constants.values(), *after.constants.values()]:
        if not isinstance(leaf, CONSTANTS):
            raise CaptureError(
                f"opaque module {path!r} takes or returns {type(leaf).__name__}, which is no tensor and no constant. "
                "Keep a module around it that does not."
            )
    results = [(list(t.shape), axis, t.dtype) for t in made if (axis := _axis(t)) is not None]
    return OpaqueCall(
        path, type(module).__name__, before, axes, after,
        tuple(Result((*s[:a], *s[a + 1 :]), a, dtype) for s, a, dtype in results), work,
    )  # fmt: skip


def _axis(tensor: Tensor) -> int | None:
    """The one axis of the rows."""
    found = [i for i, size in enumerate(tensor.shape) if size == ROWS]
    return found[0] if len(found) == 1 else None


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(str(list(t.shape)) for t in tensors) or "no tensor"
