"""A module exported once, with one symbolic row count for all inputs; or the module that stood in the way."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn.modules import transformer
from torch.utils import _pytree as pytree

from rankhoist.capture.all_answers import of_all_answers
from rankhoist.capture.archive import muted
from rankhoist.capture.asked import Asked
from rankhoist.capture.chosen import loops_over_chosen
from rankhoist.capture.even import EvenParts
from rankhoist.capture.fixing import Fixed, noting
from rankhoist.capture.inputs import CONSTANTS, named_leaves
from rankhoist.capture.loops import loops_are_mapped
from rankhoist.capture.named import results_registered
from rankhoist.capture.one_row import results_are_moved
from rankhoist.capture.opaque import keepable
from rankhoist.capture.other_words import OtherWords
from rankhoist.capture.python_len import lengths_are_sizes
from rankhoist.capture.recurrent import of_any_length
from rankhoist.capture.refusal import failing_module, line_of, refused
from rankhoist.capture.shortcuts import Answers, answered
from rankhoist.capture.signature import by_name, naming
from rankhoist.capture.stated import Stated
from rankhoist.capture.stateless import written
from rankhoist.capture.unread import unread
from rankhoist.capture.varying import Axes, fitted, told, traceable
from rankhoist.errors import ExportError, UnsupportedModelError
from rankhoist.mistakes import in_one_line

MAX_ROWS = 2**24
DECORATED = torch.utils._contextlib.__file__  # where a decorator enters a mode
UNKNOWN_RESULT = "in output, which is not a known type"  # as torch.export says it
TALKATIVE = ("torch._guards", "torch.fx", "torch._dynamo", "torch._subclasses")  # before they refuse


def export(
    model: nn.Module,
    bound: inspect.BoundArguments,
    training: bool = False,
    varying: Axes | None = None,
    strict: bool = False,
    most: int = MAX_ROWS,
) -> torch.export.ExportedProgram:
    """Export with at least two rows: a size of one would be taken for a constant. What is no tensor is a constant.

    `varying` are the symbols of other axes, by input; `strict`, the model's bytecode is read; calls have `most` rows
    at most.

    Raises:
        ExportError: `torch.export` refuses the model; says in which module and why.
    """

    leaves = named_leaves(bound.arguments)
    own = {id(leaves[name]): axes for name, axes in (varying or {}).items()}

    def several(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        leaf = traceable(leaf, own.get(id(leaf), ()))
        if most < MAX_ROWS:
            leaf = leaf[:3]
        return leaf.repeat_interleave(3, 0) if leaf.shape[0] == 1 else leaf.clone()  # one tensor given twice is two

    args, kwargs = pytree.tree_map(several, (bound.args, bound.kwargs))
    rows = torch.export.Dim("rows", min=2, max=most)
    dynamic = _sizes(by_name(bound), lambda x: {0: rows, **own.get(id(x), {})} if isinstance(x, torch.Tensor) else None)
    try:
        with naming(model, bound):
            return exported(model, model, args, kwargs, dynamic, leaves, bound, training, strict)
    except ExportError as error:
        if not varying:
            raise
        fewer = fitted(varying, error)
        if fewer is None:
            raise ExportError(told(varying, error)) from error.__cause__
        return export(model, bound, training, fewer, strict)


def _sizes(value: Any, of: Callable[[Any], Any]) -> Any:
    """What `of` says of every leaf, in the containers that torch.export takes: a list for one that is not Python's."""

    def other(x: Any) -> bool:
        return type(x) in pytree.SUPPORTED_NODES and type(x) not in pytree.BUILTIN_TYPES

    def own(x: Any) -> Any:
        return [_sizes(part, of) for part in pytree.SUPPORTED_NODES[type(x)].flatten_fn(x)[0]] if other(x) else of(x)

    return pytree.tree_map(own, value, is_leaf=other)


def exported(
    called: nn.Module,
    model: nn.Module,
    args: Any,
    kwargs: Any,
    dynamic: Any,
    leaves: Mapping[str, Any],
    bound: inspect.BoundArguments,
    training: bool = False,
    only_strict: bool = False,
) -> torch.export.ExportedProgram:
    """What is `called`, which is the model or calls it, with sizes that are `dynamic`; `leaves` are those of its call.

    Raises:
        InputError: the model itself fails on its example.
        ExportError: `torch.export` refuses the model.
    """
    # Floats of weights stay names in the graph, but where Python compares them or computes with them. Python's own
    # `int(x.shape[0])` is a number to whoever runs the model, and so is `len(x)` outside of its modules' files, and
    # `type(x)` is no Tensor. Where they stand in the way, the strict exporter reads the model's bytecode instead.
    first: Exception | None = None
    fixed: list[Fixed] = []
    for floats, strict in ((False, True),) if only_strict else ((False, False), (True, False), (False, True)):
        if first is not None and not (_read_anew(first) if strict else _reads_floats(first)):
            continue

        def once(answers: Answers | None, floats: bool = floats, strict: bool = strict) -> torch.export.ExportedProgram:
            own = _no_own_gradients() if training else contextlib.nullcontext()
            mode = contextlib.nullcontext() if strict else _symbolic(model, training, floats, answers)
            as_they_were = contextlib.nullcontext() if answers is None else written(model)  # for the next export
            with quiet(), noting([] if strict else fixed), own, of_any_length(), unread(), as_they_were, mode:
                return torch.export.export(called, args, kwargs, dynamic_shapes=dynamic, strict=strict)

        try:
            return once(None) if strict or training else of_all_answers(once)
        except Exception as error:
            first = first or error
    assert first is not None
    if UNKNOWN_RESULT in str(first) and results_registered(model, bound.args, bound.kwargs):
        return exported(called, model, args, kwargs, dynamic, leaves, bound, training, only_strict)
    if not training and not _untraced(first) and (refusal := refused(model, bound.args, bound.kwargs, leaves)):
        raise refusal from first
    raise ExportError(_why_not_exported(model, bound, first, fixed) + _constants(leaves)) from first


@contextlib.contextmanager
def _no_own_gradients() -> Iterator[None]:
    """A graph of operators shows no gradient that the model's author computes, changes or leaves out in Python."""

    def refuse(what: str) -> Any:
        raise UnsupportedModelError(f"{what}, which the captured graph does not show")

    def function(context: Any) -> Any:
        refuse("a torch.autograd.Function computes its own gradient")

    def hook(x: torch.Tensor, call: Any) -> Any:
        refuse("Tensor.register_hook is told a gradient, and may change it")

    def enter(mode: Any) -> Any:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename == DECORATED:
            frame = frame.f_back
        if frame is None or not frame.f_globals.get("__name__", "").startswith("torch."):  # the exporter uses it itself
            refuse("torch.inference_mode leaves gradients out (Tensor.detach is seen)")
        return entered(mode)

    entered = torch.inference_mode.__enter__
    begun = mock.patch("torch.autograd.function.BackwardCFunction.__init__", function)  # each makes one first
    told = mock.patch.object(torch.Tensor, "register_hook", hook)
    with begun, told, mock.patch.object(torch.inference_mode, "__enter__", enter):
        yield


@contextlib.contextmanager
def _symbolic(model: nn.Module, training: bool, floats: bool, answers: Answers | None) -> Iterator[None]:
    """With functions of torch that would fix the number of rows in other words, checks of data as assertions, the
    values of weights where Python asks for them, and answers where it asks whether there is anything.
    """
    questions = contextlib.nullcontext() if answers is None else answered(answers)
    loops = contextlib.nullcontext() if answers is None else loops_over_chosen(answers)
    with (
        lengths_are_sizes(model), loops_are_mapped(model), results_are_moved(), EvenParts(), OtherWords(), questions,
        Asked(model, training, floats), Stated(), loops,
    ):  # fmt: skip
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what torch says to its own developers (the graph so far, twice), without its look into a mask, and
    without its one operator for a whole layer of an encoder, of which nothing is known.

    What a model's own library logs meanwhile, by `logging.warning`, is of the export, too: nobody asked for that way.
    Errors are raised all the same.

    `nn.TransformerEncoder` compares a mask that it is given with a causal one, which cannot be exported. The answer is
    a hint: without it the mask is added as it is.
    """
    graph = mock.patch.object(
        importlib.import_module("torch.export._trace"), "print", lambda *lines, file: None, create=True
    )
    hint = mock.patch.object(transformer, "_detect_is_causal_mask", lambda mask, causal=None, size=None: bool(causal))
    whole = mock.patch.object(torch.backends.mha, "_is_fastpath_enabled", False)
    with warnings.catch_warnings(), graph, hint, whole, _nothing_logged(), muted(*TALKATIVE):
        warnings.simplefilter("ignore")
        yield


class _OfOthers(logging.Filter):
    """Lets pass what other threads log."""

    def __init__(self) -> None:
        super().__init__()
        self._own = threading.get_ident()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._own


@contextlib.contextmanager
def _nothing_logged() -> Iterator[None]:
    """Without what this thread gives to the root logger, and without the handler that a first such record adds."""
    root, others = logging.getLogger(), _OfOthers()
    handlers = list(root.handlers)
    root.addFilter(others)
    try:
        yield
    finally:
        root.removeFilter(others)
        if not handlers:
            root.handlers.clear()


def _reads_values(error: Exception) -> bool:
    return "data-dependent" in str(error) or "GuardOnDataDependent" in type(error).__name__


def _reads_floats(error: Exception) -> bool:
    return _reads_values(error) and "zuf" in str(error)  # as torch names them


def _fixes_rows(error: Exception) -> bool:
    said = ("specialized", "Constraints violated", "constant")
    return not (_reads_values(error) or _untraced(error)) and any(words in str(error) for words in said)


def _read_anew(error: Exception) -> bool:
    """Whether the model's bytecode tells more: sizes are fixed, or it refuses what stands in for a tensor."""
    return _fixes_rows(error) or "FakeTensor" in str(error)


def _untraced(error: Exception) -> bool:
    """Something is written to that no graph shows; the strict exporter would make a weight of it."""
    return "fake tensor in the exported program constant" in str(error)


def _why_not_exported(model: nn.Module, bound: inspect.BoundArguments, error: Exception, fixed: list[Fixed]) -> str:
    said, _, _ = str(error).strip().partition("\n\n")  # what follows is for torch's own developers
    (path, kind), line = failing_module(model, error), line_of(error)
    if _reads_values(error):
        cause = "its control flow, or a size, depends on the values of tensors"
    elif _fixes_rows(error):
        cause = "it fixes the number of rows (reads the batch size as a Python number, or relates rows to each other)"
        if fixed and "varying_" not in said:  # what torch says of lengths is read again
            path, kind = fixed[0].module(model)
            said, line = "", f"\nIt is {fixed[0].line}"
    elif _untraced(error):
        cause = "it makes or writes a tensor where no graph shows it"
        said = ""
    elif type(error).__name__ == "UncapturedHigherOrderOpError":
        cause = "control flow in it decides for all rows of a call at once, where torch.where decides row by row"
    else:
        cause = in_one_line(error, 1500).rstrip(".")
        said = said.partition("\n")[2]  # the first line is the cause
    advice = f"{_register(str(error))}{_cut(str(error))}{line}"
    return (
        f"torch.export refuses the model in module {path!r} ({kind}): {cause}. {_help(keepable(model, bound, path))}"
        + (f"\n{said[:1500]}" if said else "")
        + advice
    )


def _register(said: str) -> str:
    """Advice, where a type is unknown to torch, and no dataclass."""
    known = "is not a known type" in said or "register a pytree" in said
    return "\nRegister it before: torch.utils._pytree.register_pytree_node(...), or return a dict." if known else ""


def _cut(said: str) -> str:
    """Advice, where a tensor is made a Python number, as the length of the longest sequence of a call is."""
    return (
        "\nA tensor is made a Python number. If it cuts sequences to the longest of a call, leave that out: what is "
        "behind them is hidden by a mask anyway, or the score would depend on the other rows of a call"
        if "Could not extract specialized integer" in said
        else ""
    )


def _help(path: str) -> str:
    """What can be done; `path` is a module that can be kept as it is."""
    rest = (
        "Hoist the largest submodule that exports and keep this one outside, or rewrite it without Python control flow "
    )
    if not path:
        return rest + "on data."
    return (
        f"hoist(..., opaque=[{path!r}]) helps if {path!r} reads inputs of one side only and computes every row by "
        f"itself: it is kept as it is, and called once per request or per candidate. {rest}on data."
    )


def _constants(leaves: Mapping[str, Any]) -> str:
    """The arguments that may have been meant to be tensors."""
    found = [f"{n} = {v!r}" for n, v in leaves.items() if isinstance(v, CONSTANTS)]
    return f"\nWhat is no tensor is a constant of the model: {', '.join(found)}" if found else ""
