"""The pipeline: capture -> algebra and plan -> emit -> runtime."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from rankhoist.arguments import texts
from rankhoist.capture import BagNames, Context, Dynamic, Model, Program, capture
from rankhoist.compiler.algebra.workload import Workload, parse_level, workload_of
from rankhoist.compiler.plan import Task, make_plans, plans_with_store, safe_plan, watched
from rankhoist.compiler.rules import all_rules, check_names
from rankhoist.compiler.targets import Target, named, target_of, this_machine, with_replays
from rankhoist.errors import CaptureError, HoistingWarning, InputError, RankhoistError
from rankhoist.mistakes import is_mistake, told
from rankhoist.report.progress import late_progress
from rankhoist.runtime import HoistedModel
from rankhoist.verify.example import check_example


def hoist(
    model: Model | str | os.PathLike[str],
    example: Any,
    *,
    context: Context,
    item: Context | None = None,
    item_bytes: int | None = None,
    workload: Workload | None = None,
    level: str = "full",
    backend: str = "eager",
    without: Iterable[str] = (),
    targets: Iterable[str] = (),
    opaque: Sequence[str] = (),
    jagged: BagNames | None = None,
    dynamic: Dynamic | None = None,
    seconds: float | None = None,
) -> HoistedModel:
    """An equal model that computes context work once per request.

    Args:
        model: a module in eval mode, or a method of one (`model.predict`), an exported program, or the path of a `.pt2`
            archive of one or of an ONNX file.
        example: the tuple of positional inputs (or the dict of keyword inputs), rows on axis 0 of every tensor;
            None for a file, which has one or says what one is like.
        context: names or globs of the inputs that belong to the request; for a packed input `[rows, columns]` a mapping
            `{name: columns}`.
        item: the same of the inputs that an item has wherever it is a candidate, if its work is to be done once per
            item and kept in a store (see `HoistedModel.catalogue`); what is neither belongs to the pair of both.
        item_bytes: how much a store may keep of each item, where keeping less is slower (default: a quarter of this
            machine's memory for a million items).
        workload: the number of candidates and requests per call that the plan is made for (default 1000 and 1).
        level: what may be hoisted: `expand`, `lookup`, `request`, `linear`, `first` or `full`.
        backend: what runs the stages: `eager`, or what compiles them at their first call, as `inductor` does; see
            `HoistedModel.to_backend` for all.
        without: names of laws that are switched off, to see what they bring; the report names all.
        targets: where the model may go, beside where it is now (device and dtype): `cpu-float32`, `cpu-bfloat16`,
            `cuda-float32`, `cuda-bfloat16`. It has plans for all of them, and on a GPU for calls that are recorded as
            well (`cuda-float32-graphs`, ...), also when it was saved and loaded.
        opaque: paths of modules that are kept as they are, such as `user_tower.gru`: for those that do not export. One
            that reads inputs of one side is called once per request, or per candidate. That it computes every row by
            itself is yours to say; `verify` tests it.
        jagged: which inputs are values in bags, with no row of their own: `{values: offsets}`, offsets `[rows]` or
            `[rows + 1]`, or `{values: {"lengths": lengths}}`, lengths `[rows]`. The keys of a container of bags, as
            torchrec's `KeyedJaggedTensor`, are inputs by themselves and need not be named.
        dynamic: axes of context inputs whose length varies from call to call, as that of a history:
            `{"history": 1}`, or with bounds `{"history": {1: (2, 200)}}`. Inputs of the same length share a name,
            `{"history": {1: "T"}, "mask": {1: "T"}}`, or a `torch.export.Dim`. A length is 0 or more unless bounds say
            otherwise; plans are made for that of the example. An exported program has its own dynamic axes.
        seconds: of this thread that the search for plans may take; what it has not tried by then is left out. By
            default a search ends by itself, after 15 seconds of trying for one target. On a terminal, a search of over
            five seconds shows what it tries.

    Raises:
        BackendError: there is no such backend, or no such target.
        CaptureError: see `rankhoist.errors` for what can be wrong with a model, its example or its context.
        InputError: the model itself fails on the example, or an id of it is outside of its table (`VocabularyError`).

    Example:
        >>> import torch
        >>> model = torch.nn.Bilinear(8, 4, 1).eval()  # scores a user [rows, 8] and an item [rows, 4]
        >>> hoisted = hoist(model, (torch.randn(5, 8), torch.randn(5, 4)), context=["input1"])
        >>> hoisted(torch.randn(1, 8), torch.randn(1000, 4)).shape  # of one request, and of its candidates
        torch.Size([1000, 1])
    """
    if isinstance(model, HoistedModel):
        raise CaptureError("the model is hoisted already: give hoist the one that it was made of")
    program = capture(
        model, example, context, all_rules(), item=item, opaque=texts(opaque, "opaque"), jagged=jagged, dynamic=dynamic
    )
    hoisted = hoist_program(
        program, workload=workload, level=level, without=without, targets=targets, item_bytes=item_bytes,
        seconds=seconds,
    )  # fmt: skip
    check_example(hoisted, model)
    return hoisted.to_backend(backend)


def hoist_program(
    program: Program, *, workload: Workload | None = None, level: str = "full", target: Target | None = None,
    without: Iterable[str] = (), targets: Iterable[str] = (), item_bytes: int | None = None,
    seconds: float | None = None,
) -> HoistedModel:  # fmt: skip
    """The same for a program that is captured already: levels, workloads and targets are compared without a new export.

    `target` is what the plans are made for (default: where the program is, in its dtype), `targets` names others.
    """
    target = target or target_of(program.device, program.dtype) or this_machine()
    asked, off = workload_of(workload, Workload()), frozenset(texts(without, "without"))
    task = Task(program, parse_level(level), asked, target, off)
    check_names(task.without)
    others = [t for t in with_replays([target, *map(named, texts(targets, "targets"))]) if t.name != target.name]
    if seconds is not None and not (isinstance(seconds, int | float) and seconds > 0):
        raise InputError(f"the search for plans is given {seconds!r} seconds: give it more than 0, or None")
    try:
        with late_progress("hoisting") as shown, watched(seconds, shown):
            plans = make_plans(task, others)
            with_store = plans_with_store(plans, item_bytes)
        return HoistedModel(program, plans, with_store)
    except Exception as error:
        if isinstance(error, RankhoistError) or not is_mistake(error):
            raise
        reason = told("hoisting", error)
        warnings.warn(
            f"{reason}. The model runs as it was, all of it once per candidate", HoistingWarning, stacklevel=2
        )
        return HoistedModel(program, safe_plan(task, reason))
