"""The report as plain data, as a file keeps it: operators, the graph, costs, and the totals of all.

It knows neither the plan that it is made of (see `make`) nor what can be made of it (see `report`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rankhoist.compiler.algebra.workload import Workload
from rankhoist.compiler.targets import ALIKE
from rankhoist.errors import ArtifactError
from rankhoist.report.text import spelled
from rankhoist.report.tuning import Tuning

# -- operators


@dataclass(frozen=True)
class Amount:
    """Work: multiply-adds of products, and bytes written."""

    multiply_adds: int = 0
    bytes: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.multiply_adds + other.multiply_adds, self.bytes + other.bytes)

    def __mul__(self, times: int) -> Amount:
        return Amount(self.multiply_adds * times, self.bytes * times)

    def __bool__(self) -> bool:
        return bool(self.multiply_adds or self.bytes)


@dataclass(frozen=True)
class Operator:
    """One operator of the captured graph.

    Attributes:
        name: of the graph's node, e.g. `linear_1`; `output` is what the results need after the last operator.
        operator: e.g. `aten.linear.default`; empty for `output`.
        module: path of the module that calls it; the empty string is the model itself.
        rates: the rates of its result's parts, e.g. `("request", "pair")`.
        level: the lowest level that leaves less of its own work in the candidate stage; None where none does.
        reason: why work of it stays in the candidate stage; None where none does.
        before: work per candidate in the original, which does nothing per request.
        request, candidate: work per request and per candidate in the plan.
    """

    name: str
    operator: str
    module: str
    rates: tuple[str, ...]
    level: str | None
    reason: str | None
    before: Amount
    request: Amount
    candidate: Amount

    @property
    def works(self) -> bool:
        """Whether it costs anything, before or after; views do not."""
        return bool(self.before or self.request or self.candidate)

    @property
    def elsewhere(self) -> bool:
        """Whether what is left of its work counts for another operator: an equal one, or one that evaluates it."""
        return bool(self.before) and not self.request and not self.candidate


# -- the graph

KINDS = ("input", "operator", "output")
RATES = ("weight", "request", "item", "pair")
CHOICES = ("", "pushed", "materialised")


@dataclass(frozen=True)
class Vertex:
    """An input, an operator that makes tensors, or (the last) the outputs.

    Attributes:
        name: of the input, or of the operator as in `Operator.name`.
        kind: one of `KINDS`.
        operator, module: as in `Operator`; empty for others.
        rates: the rates of the parts of its result.
        shape: of its result over N rows, e.g. `("N", "20", "64")`.
        dtype: of its result, e.g. `float32`.
        reads: the numbers of the vertices that it reads, all lower than its own.
        weights: names of the weights that it reads.
        choice: where the plan could choose: `pushed` (kept as a sum of products, which a later operator evaluates)
            or `materialised` (evaluated at once).
        rule: the law that was applied; empty where the original operator runs over all rows.
    """

    name: str
    kind: str
    operator: str
    module: str
    rates: tuple[str, ...]
    shape: tuple[str, ...]
    dtype: str
    reads: tuple[int, ...]
    weights: tuple[str, ...]
    choice: str
    rule: str


@dataclass(frozen=True)
class Graph:
    """Vertices in the order of the program."""

    vertices: tuple[Vertex, ...]

    def check(self) -> None:
        """That a graph from a file is one.

        Raises:
            ArtifactError: a kind, a rate or a choice is none, or a vertex reads one that does not come before it.
        """
        for number, v in enumerate(self.vertices):
            known = v.kind in KINDS and set(v.rates) <= {*RATES} and v.choice in CHOICES
            if not known or any(source >= number for source in v.reads):
                raise ArtifactError(f"vertex {number} of its report's graph is none")


# -- costs


@dataclass(frozen=True)
class Line:
    """Predicted milliseconds and multiply-adds of a call, for each number of candidates."""

    milliseconds: tuple[float, ...]
    multiply_adds: tuple[int, ...]


@dataclass(frozen=True)
class Span:
    """From `first` candidates on, up to the next span, a call is scored by a plan of `level`."""

    first: int
    plan: int
    level: str


@dataclass(frozen=True)
class Curves:
    """Cost of a call of `requests` requests against its candidates.

    Attributes:
        machine: what the times are predicted for.
        candidates: the numbers of candidates, ascending.
        original, chosen: the model as trained, and the plan that scores so many candidates.
        spans: which plan that is.
    """

    machine: str
    requests: int
    candidates: tuple[int, ...]
    original: Line
    chosen: Line
    spans: tuple[Span, ...]

    @property
    def pays_from(self) -> int | None:
        """The smallest number of candidates from which on the hoisted model is predicted to be clearly faster."""
        faster = [o > ALIKE * c for o, c in zip(self.original.milliseconds, self.chosen.milliseconds, strict=True)]
        slower = [i for i, fast in enumerate(faster) if not fast]
        first = slower[-1] + 1 if slower else 0
        return self.candidates[first] if first < len(self.candidates) else None

    @property
    def verdict(self) -> str:
        """Whether it pays, in a sentence."""
        if self.pays_from is None:
            return "Nothing pays: predicted to be no faster than the original at any number of candidates."
        return f"Predicted to be faster than the original from {spelled(self.pays_from, 'candidate')} on."

    def check(self) -> None:
        """That curves from a file are some.

        Raises:
            ArtifactError: lines of other lengths, a number out of order, times that are none.
        """
        counts = self.candidates
        rising = list(counts) == sorted({*counts}) and len(counts) > 1 and counts[0] > 0
        lines = [line for x in (self.original, self.chosen) for line in (x.milliseconds, x.multiply_adds)]
        positive = all(0 <= t < 1e12 for x in (self.original, self.chosen) for t in x.milliseconds)
        if not rising or not positive or not self.spans or any(len(line) != len(counts) for line in lines):
            raise ArtifactError("the curves of its report are none")


# -- laws


@dataclass(frozen=True)
class LawUse:
    """Where a law was applied, and why it was not where an operator has it.

    Attributes:
        name: what `without` switches off.
        level: the lowest level that allows it.
        applied: operators of the captured graph, by name.
        declined: the reason, and how many operators it holds for.
        conditional: it holds for some calls, which the stages tell; another plan scores the others.
    """

    name: str
    level: str
    applied: tuple[str, ...]
    declined: dict[str, int]
    conditional: bool = False


# -- items


@dataclass(frozen=True)
class Kept:
    """What a store keeps of an item: of which input or operator, its shape without the items' axis, and its bytes."""

    name: str
    shape: tuple[str, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Items:
    """Calls whose items have a store, by the plan for the workload.

    Attributes:
        room: how many bytes of an item a store may keep.
        kept: what it keeps.
        request, item, pair: work per request, per item of the store, and per candidate.
        milliseconds, milliseconds_without: predicted for a call, with the store and without one.
    """

    room: int
    kept: tuple[Kept, ...]
    request: Amount
    item: Amount
    pair: Amount
    milliseconds: float
    milliseconds_without: float

    @property
    def bytes(self) -> int:
        """Of an item."""
        return sum(k.bytes for k in self.kept)


# -- all of it


@dataclass(frozen=True)
class Module:
    """Work of one call of the workload in all operators of one module."""

    path: str
    before: Amount
    after: Amount


@dataclass(frozen=True)
class Record:
    """What a plan does with every captured operator, for one workload.

    `graph` and `curves` are None in a file of an older version, and `laws` is empty. `tuning` is None where nothing was
    measured, `items` where no input is marked as the item's. `opaque` are modules that are kept as they are.
    """

    level: str
    workload: Workload
    operators: tuple[Operator, ...]
    graph: Graph | None = None
    curves: Curves | None = None
    laws: tuple[LawUse, ...] = ()
    tuning: Tuning | None = None
    items: Items | None = None
    opaque: tuple[str, ...] = ()

    def before(self, operator: Operator) -> Amount:
        """Work of an operator in one call of the original."""
        return operator.before * self.workload.candidates

    def after(self, operator: Operator) -> Amount:
        """Work of an operator in one call of the hoisted model, both stages."""
        return operator.request * self.workload.requests + operator.candidate * self.workload.candidates

    def modules(self) -> list[Module]:
        """Totals per module, in the order of their first operators."""
        paths = dict.fromkeys(o.module for o in self.operators if o.works)
        return [self._sum(path, (o for o in self.operators if o.module == path)) for path in paths]

    def total(self) -> Module:
        """The whole model."""
        return self._sum("", self.operators)

    def _sum(self, path: str, chosen: Iterable[Operator]) -> Module:
        own = list(chosen)
        return Module(path, sum(map(self.before, own), Amount()), sum(map(self.after, own), Amount()))

    def blocking(self) -> list[Operator]:
        """The operators with work left per candidate, most expensive first; each has a `reason`."""
        stayed = [o for o in self.operators if o.candidate]
        return sorted(stayed, key=lambda o: (o.candidate.multiply_adds, o.candidate.bytes), reverse=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **dataclasses.asdict(self),
            "modules": [dataclasses.asdict(m) for m in self.modules()],
            "total": dataclasses.asdict(self.total()),
            "blocking": [{"name": o.name, "reason": o.reason} for o in self.blocking()],
        }
