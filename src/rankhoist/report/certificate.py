"""The certificate: what was compared, the worst difference found, and where."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rankhoist.report import markup
from rankhoist.report.markup import tag
from rankhoist.report.plain import decoded


@dataclass(frozen=True)
class Element:
    """One element of one output.

    Attributes:
        output: where the model's result holds the output: `output`, `output[1]`, `output['click']`.
        row: index on axis 0; None for an output without axes.
        index: the other indices.
        hoisted, truth: the two values.
        candidates, requests: the size of the call.
    """

    output: str
    row: int | None
    index: tuple[int, ...]
    hoisted: float
    truth: float
    candidates: int
    requests: int

    @property
    def place(self) -> str:
        """Where it is, in words."""
        row = "" if self.row is None else f" row {self.row}"
        index = f" index {list(self.index)}" if self.index else ""
        return f"{self.output}{row}{index} of N={self.candidates}, R={self.requests}"

    def __str__(self) -> str:
        return f"{self.place}: hoisted {self.hoisted:.9g}, truth {self.truth:.9g}"


@dataclass(frozen=True)
class Check:
    """One comparison over all batches.

    Attributes:
        name: `float64`, the model's own dtype, `prepare`, `opaque` or `capture` (see `rankhoist.verify.checks`).
        error: the largest error, relative to the largest absolute value of the same output over all batches.
        tolerance: the largest error that passes.
        original_error: the original's own error against the truth, its sums as its kernels add them or term by term,
            whichever is farther off; None where the truth is its own yardstick.
        worst: the element with that error; None where nothing differs at all.
        problem: what made the comparison impossible (an exception, another shape), or None.
    """

    name: str
    error: float
    tolerance: float
    original_error: float | None = None
    worst: Element | None = None
    problem: str | None = None

    @property
    def passed(self) -> bool:
        """No problem, and an error within the tolerance."""
        return self.problem is None and self.error <= self.tolerance

    def __str__(self) -> str:
        if self.problem:
            return f"{self.name:<9} FAILED {self.problem}"
        own = "" if self.original_error is None else f" (original {self.original_error:.1e})"
        text = f"{self.name:<9} {'passed' if self.passed else 'FAILED'}: error {self.error:.1e}{own}"
        text += f", allowed {self.tolerance:.1e}"
        return text if self.worst is None else f"{text}, at {self.worst.place if self.passed else self.worst}"


@dataclass(frozen=True)
class Certificate:
    """The result of `rankhoist.verify`; true exactly where every check passed.

    Attributes:
        level: of the plan that the hoisted model carries out.
        dtype, device: of the hoisted model.
        truth: what the results were compared with: `model in float64` or `captured graph in float64`.
        note: why the truth is not the model itself, or why nothing else was considered; otherwise empty.
        seed, trials, candidates, requests: the calls; each (N, R) was drawn `trials` times.
        checks: one entry per comparison.
        row_independent: a row's result does not change with the other rows of the call. Models that compare
            candidates with each other are legal, so this is a property and not a check.
        versions: of Python, torch and rankhoist.
        date: UTC, ISO 8601.
        conditional: laws that hold for some calls, which the stages tell; the plan without is checked, too.
        opaque: paths of modules that are kept as they are; that they compute every row by itself is tested, not proved.
    """

    level: str
    dtype: str
    device: str
    truth: str
    note: str
    seed: int
    trials: int
    candidates: tuple[int, ...]
    requests: tuple[int, ...]
    checks: tuple[Check, ...]
    row_independent: bool
    versions: dict[str, str]
    date: str
    opaque: tuple[str, ...] = ()
    conditional: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Every check passed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        lines = [
            *(str(check) for check in self.checks),
            f"truth: {self._truth}; rows {self._rows}",
            *self._told,
            f"N = {_listing(self.candidates)}; R = {_listing(self.requests)}; trials {self.trials}, seed {self.seed}",
            self._made_by,
        ]
        return "\n  ".join([f"{self._verdict}: level {self.level}, {self.dtype} on {self.device}", *lines])

    # -- in words

    @property
    def _verdict(self) -> str:
        return "PASSED" if self.passed else "FAILED"

    @property
    def _truth(self) -> str:
        return f"{self.truth} ({self.note})" if self.note else self.truth

    @property
    def _rows(self) -> str:
        return "do not depend on each other" if self.row_independent else "depend on each other"

    @property
    def _told(self) -> list[str]:
        """What holds for some calls only, or is not proved."""
        conditional = [f"conditional: {x}; told of every call, and checked without it" for x in self.conditional]
        return conditional + [f"opaque: {x}; that its rows are independent is tested, not proved" for x in self.opaque]

    @property
    def _made_by(self) -> str:
        return f"{', '.join(f'{name} {version}' for name, version in self.versions.items())}; {self.date}"

    def _repr_html_(self) -> str:
        """In a notebook: what was compared, as a table."""
        return markup.html(tag("div", *shown(self)))

    # -- as data

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; NaN and infinities, which JSON lacks, are strings."""
        checks = [{"passed": check.passed, **dataclasses.asdict(check)} for check in self.checks]
        data = {"passed": self.passed, **dataclasses.asdict(self), "checks": checks}
        plain = _plain(data)
        assert isinstance(plain, dict)
        return plain

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Certificate:
        """The inverse of `to_dict`; whether it passed is what its checks say.

        Raises:
            ArtifactError: the data is none that `to_dict` makes.
        """
        certificate: Certificate = decoded(Certificate, data)
        return certificate

    @staticmethod
    def from_json(text: str) -> Certificate:
        """The inverse of `to_json`."""
        return Certificate.from_dict(json.loads(text))


def shown(found: Certificate) -> list[markup.Element]:
    """What was compared, and how close it came, as part of a page."""
    verdict = found._verdict
    rows: list[list[markup.Element | str]] = [
        [c.name, "passed" if c.passed else f"FAILED {c.problem or ''}", f"{c.error:.1e}", f"{c.tolerance:.1e}"]
        for c in found.checks
    ]
    sizes = (", ".join(f"{n:,}" for n in given) for given in (found.candidates, found.requests))
    return [
        tag("p", tag("b", verdict, class_=f"verdict {verdict.lower()}"),
            f" level {found.level}, {found.dtype} on {found.device}; the truth is the {found._truth}."),
        markup.table(["check", "result", "largest error", "allowed"], rows, words=2),
        tag("p", "N = {}; R = {}".format(*sizes), f"; trials {found.trials}, seed {found.seed}; rows {found._rows}."),
        *(tag("p", line) for line in found._told),
        tag("p", found._made_by, class_="soft"),
    ]  # fmt: skip


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _listing(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
