"""What a file says of a hoisted model beside graphs and tensors: its interface, its plans, its report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from rankhoist.capture import InputSpec, Interface, Jagged, OpaqueCall
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.plan import Cost, Plans, PlanSummary, Range, Ranges, Way
from rankhoist.compiler.targets import CPU
from rankhoist.compiler.targets.backends import BACKENDS
from rankhoist.errors import ArtifactError, InputError
from rankhoist.report import Report
from rankhoist.runtime import interface_json, opaque
from rankhoist.runtime.blueprint import Blueprint
from rankhoist.runtime.plain import as_dtype, as_kind, dtype_name, entries, entry, shown


@dataclass(frozen=True)
class Description:
    """What is known of a model without its graphs and tensors; `dtype` is the one that it computes in."""

    interface: Interface
    plans: Plans[PlanSummary]
    pinned: frozenset[str]
    report: Report
    dtype: torch.dtype
    opaque: dict[str, OpaqueCall]
    with_store: Plans[PlanSummary] | None = None


def to_data(blueprint: Blueprint, dtype: torch.dtype) -> dict[str, Any]:
    """A model's description as data for JSON.

    Raises:
        ArtifactError: its inputs or results are containers that a file cannot hold.
    """
    interface, with_store = blueprint.interface, blueprint.with_store
    return {
        "dtype": dtype_name(dtype),
        **interface_json.to_data(interface),
        "state": interface.state,
        "made_up": interface.made_up,
        "pinned": sorted(blueprint.pinned),
        "opaque": opaque.to_data(blueprint.opaque),
        **_plans(blueprint.plans),
        "with_store": None if with_store is None else _plans(with_store),
        "report": blueprint.report().to_dict(),
    }


def from_data(data: Any) -> Description:
    """The inverse of `to_data`, without the interface's example.

    Raises:
        ArtifactError: the data is none that `to_data` makes.
    """
    state = {name: as_kind(placeholder, str) for name, placeholder in entry(data, "state", dict).items()}
    made_up = as_kind(data.get("made_up", False), bool)  # before there were made-up rows, files held those given
    interface = replace(interface_json.from_data(data, state), made_up=made_up)
    with_store = data.get("with_store")
    report = Report.from_dict(entry(data, "report", dict))
    return Description(
        interface, _as_plans(data), frozenset(entries(data, "pinned", str)),
        report, as_dtype(entry(data, "dtype", str)), opaque.from_data(entries({"opaque": [], **data}, "opaque", dict)),
        None if with_store is None else _as_plans(with_store),
    )  # fmt: skip


# -- plans


def _plans(plans: Plans[PlanSummary]) -> dict[str, Any]:
    return {
        "plans": [_plan(plan) for plan in plans.plans],
        "original": plans.original,
        "otherwise": plans.otherwise,
        "ranges": _ranges(plans.ranges),
        "predicted": None if plans.predicted is None else _ranges(plans.predicted),
        "target": plans.target,
        "elsewhere": {name: _ranges(ranges) for name, ranges in plans.elsewhere.items()},
    }


def _as_plans(data: Any) -> Plans[PlanSummary]:
    """Older files lack all but `plans` and `ranges`."""
    plans = tuple(_as_plan(item) for item in entries(data, "plans", dict))
    ranges = _as_ranges(data, "ranges", len(plans))
    predicted = None if data.get("predicted") is None else _as_ranges(data, "predicted", len(plans))
    original, otherwise = (_as_number(data, key, len(plans)) for key in ("original", "otherwise"))
    target = entry(data, "target", str) if "target" in data else CPU.name  # once the only one
    elsewhere = entry(data, "elsewhere", dict) if "elsewhere" in data else {}
    others = {name: _as_ranges(elsewhere, name, len(plans)) for name in elsewhere}
    return Plans(plans, ranges, original, predicted, target, others, otherwise)


def _as_number(data: Any, key: str, plans: int) -> int | None:
    """The number of one of the plans, or None."""
    number = None if data.get(key) is None else entry(data, key, int)
    if number is not None and not 0 <= number < plans:
        raise ArtifactError(f"its {key} is plan {number}, which there is not")
    return number


def _plan(plan: PlanSummary) -> dict[str, Any]:
    return {
        "level": plan.level.name.lower(),
        "asked": plan.asked.name.lower(),
        "candidates": plan.workload.candidates,
        "requests": plan.workload.requests,
        "item_bytes": plan.workload.item_bytes,
        "multiply_adds": plan.cost.multiply_adds,
        "elements": plan.cost.elements,
        "seconds": plan.cost.seconds,
    }


def _as_plan(data: Any) -> PlanSummary:
    level, asked = (_as_level(entry(data, key, str)) for key in ("level", "asked"))
    room = None if data.get("item_bytes") is None else entry(data, "item_bytes", int)
    workload = Workload(entry(data, "candidates", int), entry(data, "requests", int), room)
    cost = Cost(entry(data, "multiply_adds", int), entry(data, "elements", int), entry(data, "seconds", float))
    if min(workload.candidates, workload.requests) < 1:
        raise ArtifactError(f"it has a plan for {workload}")
    return PlanSummary(level, asked, workload, cost)


def _as_level(name: str) -> Level:
    if name not in (level.name.lower() for level in Level):
        raise ArtifactError(f"it has a level {shown(name)}")
    return Level[name.upper()]


def _ranges(ranges: Ranges) -> list[dict[str, Any]]:
    return [
        {"requests": requests, "candidates": [_range(r) for r in row]}
        for requests, row in zip(ranges.requests, ranges.candidates, strict=True)
    ]


def _as_ranges(data: Any, key: str, plans: int) -> Ranges:
    rows = entries(data, key, dict)
    requests = tuple(entry(row, "requests", int) for row in rows)
    given = [[_as_range(item) for item in entries(row, "candidates", list)] for row in rows]
    rising = all(list(x) == sorted(set(x)) and x for x in (requests, *([r.first for r in row] for row in given)))
    if not rising or not all(0 <= r.way.plan < plans for row in given for r in row):
        raise ArtifactError("its ranges do not rise, or use a plan that there is not")
    return Ranges(requests, tuple(map(tuple, given)))


def _range(r: Range) -> list[Any]:
    first, (plan, backend, chunk) = r
    return [first, plan, *([backend] if backend or chunk else []), *([chunk] if chunk else [])]


def _as_range(data: Any) -> Range:
    first, plan, *way = as_kind(data, list)
    backend, chunk, *more = way + ["", 0][len(way) :]
    if more or as_kind(backend, str) not in ("", *BACKENDS) or as_kind(chunk, int) < 0:
        raise ArtifactError(f"it has a range that is scored by {shown(backend)} on {shown(chunk)} rows")
    return Range(as_kind(first, int), Way(as_kind(plan, int), backend, chunk))


def with_example(description: Description, example: dict[str, torch.Tensor]) -> Interface:
    """The interface with its example, rows of the inputs by the names that stages read."""
    interface = description.interface
    if not example:
        return replace(interface, example={})
    rows = {spec.name: _rows(spec, example) for spec in interface.inputs.values()}
    if len({len(own) for own in rows.values()}) > 1:
        raise ArtifactError("its example has other rows for one input than for another")
    return replace(interface, example=rows)


def _rows(spec: InputSpec, example: dict[str, torch.Tensor]) -> torch.Tensor | Jagged:
    """The example's rows of one input."""
    try:
        if spec.bags:
            columns = [_column(example[f"{spec.name}.values_{i}"], c.shape) for i, c in enumerate(spec.bags)]
            return Jagged(*columns, lengths=example[f"{spec.name}.lengths"])
        return _column(example[spec.name], spec.shape)
    except (KeyError, InputError):
        raise ArtifactError(f"its example does not fit input {shown(spec.name)}") from None


def _column(given: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Rows `[any, *shape]`, as they should be."""
    if not given.dim() or given.shape[1:] != shape:
        raise InputError("it has another shape")
    return given
