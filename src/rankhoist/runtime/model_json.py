"""What a file says of a hoisted model beside graphs and tensors: its interface, its plans, its report."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from rankhoist.capture import InputSpec, Interface
from rankhoist.capture.signature import Arguments
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.plan import Cost, Plans, PlanSummary, Range, Ranges
from rankhoist.errors import ArtifactError
from rankhoist.report import Report
from rankhoist.runtime.blueprint import Blueprint
from rankhoist.runtime.plain import as_device, as_dtype, as_kind, counts, dtype_name, entries, entry, shown

ROLES = ("context", "candidate", "packed")
WIDEST = 2**20  # columns of a packed input, which are listed one by one
LEAF = "*"


@dataclass(frozen=True)
class Description:
    """What is known of a model without its graphs and tensors; `dtype` is the one that it computes in."""

    interface: Interface
    plans: Plans[PlanSummary]
    pinned: frozenset[str]
    report: Report
    dtype: torch.dtype


def to_data(blueprint: Blueprint, dtype: torch.dtype) -> dict[str, Any]:
    """A model's description as data for JSON.

    Raises:
        ArtifactError: its inputs or results are containers that a file cannot hold.
    """
    interface = blueprint.interface
    return {
        "dtype": dtype_name(dtype),
        "captured": {"dtype": dtype_name(interface.dtype), "device": str(interface.device)},
        "inputs": [_input(name, spec) for name, spec in interface.inputs.items()],
        "parameters": [
            {"name": p.name, "kind": p.kind.name, "optional": p.default is not p.empty}
            for p in interface.arguments.parameters
        ],
        "call": structure(interface.in_spec, "takes"),
        "result": structure(interface.out_spec, "returns"),
        "state": interface.state,
        "pinned": sorted(blueprint.pinned),
        "plans": [_plan(plan) for plan in blueprint.plans.plans],
        "ranges": [
            {"requests": requests, "candidates": [[r.first, r.plan] for r in row]}
            for requests, row in zip(blueprint.plans.ranges.requests, blueprint.plans.ranges.candidates, strict=True)
        ],
        "report": blueprint.report().to_dict(),
    }


def from_data(data: Any) -> Description:
    """The inverse of `to_data`, without the interface's example.

    Raises:
        ArtifactError: the data is none that `to_data` makes.
    """
    inputs = {entry(item, "placeholder", str): _as_input(item) for item in entries(data, "inputs", dict)}
    call, result = as_structure(entry(data, "call", dict)), as_structure(data.get("result"))
    if call.num_leaves != len(inputs):
        raise ArtifactError(f"it takes {call.num_leaves} tensors and lists {len(inputs)} inputs")
    parameters = [_as_parameter(item) for item in entries(data, "parameters", dict)]
    state = {name: as_kind(placeholder, str) for name, placeholder in entry(data, "state", dict).items()}
    captured = entry(data, "captured", dict)
    interface = Interface(
        inputs, result, call, Arguments(inspect.Signature(parameters)), state,
        as_dtype(entry(captured, "dtype", str)), as_device(entry(captured, "device", str)), {},
    )  # fmt: skip
    plans = tuple(_as_plan(item) for item in entries(data, "plans", dict))
    report = Report.from_dict(entry(data, "report", dict))
    return Description(
        interface, Plans(plans, _as_ranges(data, len(plans))), frozenset(entries(data, "pinned", str)),
        report, as_dtype(entry(data, "dtype", str)),
    )  # fmt: skip


# -- inputs


def _input(placeholder: str, spec: InputSpec) -> dict[str, Any]:
    return {
        "placeholder": placeholder,
        "name": spec.name,
        "shape": list(spec.shape),
        "dtype": dtype_name(spec.dtype),
        "role": spec.role,
        "columns": list(spec.columns),
    }


def _as_input(data: Any) -> InputSpec:
    name, role = entry(data, "name", str), entry(data, "role", str)
    shape, columns = counts(data, "shape"), counts(data, "columns")
    packed = len(shape) == 1 and shape[0] <= WIDEST and list(columns) == sorted({c for c in columns if c < shape[0]})
    if role not in ROLES or (role == "packed" and not packed):
        raise ArtifactError(f"its input {shown(name)} is {shown(role)} with columns that do not fit its shape")
    return InputSpec(name, shape, as_dtype(entry(data, "dtype", str)), role, columns)


def _as_parameter(data: Any) -> inspect.Parameter:
    kind = vars(inspect.Parameter).get(entry(data, "kind", str))
    if not isinstance(kind, type(inspect.Parameter.VAR_KEYWORD)):
        raise ArtifactError(f"it has a parameter of kind {shown(data['kind'])}")
    default = None if entry(data, "optional", bool) else inspect.Parameter.empty
    return inspect.Parameter(entry(data, "name", str), kind, default=default)


# -- structures of calls and results


def structure(spec: pytree.TreeSpec, verb: str) -> Any:
    """The containers that a model takes or returns, as data.

    Raises:
        ArtifactError: it `verb` a container that a file cannot hold.
    """

    def encoded(value: Any) -> Any:
        if type(value) is str:
            return value
        if type(value) in (list, tuple):
            return {type(value).__name__: [encoded(v) for v in value]}
        if type(value) in (dict, OrderedDict) and all(type(key) in (str, int) for key in value):
            return {type(value).__name__: [[key, encoded(v)] for key, v in value.items()]}
        raise ArtifactError(f"the model {verb} {type(value).__name__}; a file holds tuples, lists and dicts of tensors")

    return encoded(pytree.tree_unflatten([LEAF] * spec.num_leaves, spec))


def as_structure(data: Any) -> pytree.TreeSpec:
    """The inverse of `structure`; torch's own reader would import what the data names."""

    def decoded(value: Any) -> Any:
        if value == LEAF:
            return value
        if len(as_kind(value, dict)) != 1:
            raise ArtifactError("it has a container of no kind that there is")
        ((kind, items),) = value.items()
        items = as_kind(items, list)
        if kind in ("list", "tuple"):
            made = [decoded(item) for item in items]
            return tuple(made) if kind == "tuple" else made
        if kind in ("dict", "OrderedDict") and all(
            len(as_kind(x, list)) == 2 and type(x[0]) in (str, int) for x in items
        ):
            return {"dict": dict, "OrderedDict": OrderedDict}[kind]((key, decoded(item)) for key, item in items)
        raise ArtifactError(f"it has a container {shown(kind)}, which a file cannot hold")

    return pytree.tree_structure(decoded(data))


# -- plans


def _plan(plan: PlanSummary) -> dict[str, Any]:
    return {
        "level": plan.level.name.lower(),
        "asked": plan.asked.name.lower(),
        "candidates": plan.workload.candidates,
        "requests": plan.workload.requests,
        "multiply_adds": plan.cost.multiply_adds,
        "elements": plan.cost.elements,
        "seconds": plan.cost.seconds,
    }


def _as_plan(data: Any) -> PlanSummary:
    level, asked = (_as_level(entry(data, key, str)) for key in ("level", "asked"))
    workload = Workload(entry(data, "candidates", int), entry(data, "requests", int))
    cost = Cost(entry(data, "multiply_adds", int), entry(data, "elements", int), entry(data, "seconds", float))
    if min(workload.candidates, workload.requests) < 1:
        raise ArtifactError(f"it has a plan for {workload}")
    return PlanSummary(level, asked, workload, cost)


def _as_level(name: str) -> Level:
    if name not in (level.name.lower() for level in Level):
        raise ArtifactError(f"it has a level {shown(name)}")
    return Level[name.upper()]


def _as_ranges(data: Any, plans: int) -> Ranges:
    rows = entries(data, "ranges", dict)
    requests = tuple(entry(row, "requests", int) for row in rows)
    pairs = [
        [(as_kind(first, int), as_kind(plan, int)) for first, plan in entries(row, "candidates", list)] for row in rows
    ]
    rising = all(list(x) == sorted(set(x)) and x for x in (requests, *([first for first, _ in row] for row in pairs)))
    if not rising or not all(0 <= plan < plans for row in pairs for _, plan in row):
        raise ArtifactError("its ranges do not rise, or use a plan that there is not")
    return Ranges(requests, tuple(tuple(Range(*pair) for pair in row) for row in pairs))


def with_example(description: Description, example: dict[str, torch.Tensor]) -> Interface:
    """The interface with its example, rows of the inputs."""
    interface = description.interface
    for spec in interface.inputs.values():
        if example and (spec.name not in example or example[spec.name].shape[1:] != spec.shape):
            raise ArtifactError(f"its example does not fit input {shown(spec.name)}")
    return replace(interface, example=example)
