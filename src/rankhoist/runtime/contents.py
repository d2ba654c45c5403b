"""What is in an artifact, for people: read from its descriptions, without its graphs and tensors."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rankhoist.capture import InputSpec
from rankhoist.compiler.plan import Range
from rankhoist.report import tuning
from rankhoist.report.text import table
from rankhoist.runtime import container, model_json
from rankhoist.runtime.model_json import Description
from rankhoist.runtime.plain import counts, dtype_name, entry, printable

SHOWN = ("dtype", "inputs", "plans", "ranges", "certificate")


@dataclass(frozen=True)
class Contents:
    """What a file says of itself (`manifest`) and of its model (`model`, and `description` in its own types)."""

    manifest: dict[str, Any]
    model: dict[str, Any]
    description: Description

    @property
    def certificate(self) -> dict[str, Any] | None:
        """The certificate that it was saved with, as plain data."""
        return entry(self.model, "certificate", dict) if self.model.get("certificate") is not None else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        example = {"rows": self._example_rows(), "made_up": self.description.interface.made_up}
        return self.manifest | {name: self.model.get(name) for name in SHOWN} | {"example": example}

    def __str__(self) -> str:
        return printable("\n".join([*self._title(), "", *self._inputs(), "", *self._plans(), "", *self._ranges()]))

    def _title(self) -> list[str]:
        manifest, report = self.manifest, self.description.report
        total = report.total()
        versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
        size = sum(member["bytes"] for member in manifest["members"].values())
        plan = self.description.plans.main
        requests = plan.workload.requests
        return [
            f"level {plan.asked.name.lower()}, {dtype_name(self.description.dtype)}, {size:,} bytes",
            f"format {manifest['format']}, written {manifest['date']} by {versions}",
            f"for {plan.workload.candidates} candidates of {requests} request{'s' if requests > 1 else ''} per call: "
            f"{plan.cost.multiply_adds:,} multiply-adds, the original {total.before.multiply_adds:,}",
            *self._store(),
            self._example(),
            *([tuning.title(report.tuning)] if report.tuning is not None else []),
        ]

    def _store(self) -> list[str]:
        items = self.description.report.items
        return [] if items is None else [f"for stores of items: {items.bytes:,} bytes of each"]

    def _example(self) -> str:
        """Whose rows are in the file."""
        rows = self._example_rows()
        if not rows:
            return "no example rows"
        made_up = self.description.interface.made_up
        return f"{rows} example rows, {'made up' if made_up else 'as they were given to hoist'}"

    def _example_rows(self) -> int:
        listed = entry(self.model, "example", dict)
        return counts(next(iter(listed.values())), "shape")[0] if listed else 0

    def _inputs(self) -> list[str]:
        specs = self.description.interface.inputs.values()
        rows = [[s.name, _role(s), _shape(s), ", ".join(map(dtype_name, _dtypes(s)))] for s in specs]
        return table(["input", "role", "shape", "dtype"], rows, left=4)

    def _plans(self) -> list[str]:
        plans = enumerate(self.description.plans.plans)
        rows = [[str(i), p.level.name.lower(), f"{p.cost.multiply_adds:,}", f"{p.cost.elements:,}"] for i, p in plans]
        return table(["plan", "level", "multiply-adds", "elements written"], rows, left=2)

    def _ranges(self) -> list[str]:
        ranges = self.description.plans.ranges
        rows = [[str(r), _runs(row)] for r, row in zip(ranges.requests, ranges.candidates, strict=True)]
        return table(["requests from", "plan for so many candidates per call"], rows, left=2)


def contents(path: str | os.PathLike[str]) -> Contents:
    """What is in a file.

    Raises:
        ArtifactError: as `load` does, as far as it is read.
    """
    with container.opened(path) as file:
        model = file.read_json("model.json")
        return Contents(file.manifest, model, model_json.from_data(model))


def _shape(spec: InputSpec) -> str:
    """Bags have as many values as they like, and axes that vary are as long as their bounds say."""
    free = {v.axis: v.text for v in spec.varying}
    own = [free.get(axis, size) for axis, size in enumerate(spec.shape, 1)]
    sizes = ["bag", *spec.bags[0].shape] if spec.bags else own
    return str(["rows", *sizes]).replace("'", "")


def _dtypes(spec: InputSpec) -> list[torch.dtype]:
    return [column.dtype for column in spec.bags] or [spec.dtype]


def _role(spec: InputSpec) -> str:
    """The sides that a candidate's input has where items have a store, behind its role."""
    sides = " and ".join(part.side for part in spec.parts_with_store if part.side != "context")
    return f"{spec.role} ({sides})" if spec.item or spec.item_columns else spec.role


def _runs(row: Sequence[Range]) -> str:
    """`0-2: plan 1, 3-365: plan 2 by inductor, from 366: plan 0`."""
    runs = [f"{a.first}-{b.first - 1}: {a.way}" for a, b in itertools.pairwise(row)]
    return ", ".join([*runs, f"from {row[-1].first}: {row[-1].way}"])
