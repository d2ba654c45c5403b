"""A certificate as the page shows it: the fields that it needs, each checked for its type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from rankhoist.report.plain import decoded


class HasData(Protocol):
    """A certificate, as far as a page needs it."""

    def to_dict(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Comparison:
    """See `rankhoist.verify.certificate.Check`."""

    name: str
    passed: bool
    error: float
    tolerance: float
    problem: str | None = None


@dataclass(frozen=True)
class Proof:
    """See `rankhoist.verify.Certificate`."""

    passed: bool
    level: str
    dtype: str
    device: str
    truth: str
    note: str
    seed: int
    trials: int
    candidates: tuple[int, ...]
    requests: tuple[int, ...]
    checks: tuple[Comparison, ...]
    row_independent: bool
    versions: dict[str, str]
    date: str

    @staticmethod
    def of(certificate: HasData) -> Proof:
        """Of a certificate, which may come from anybody's file.

        Raises:
            ArtifactError: a field is missing or has another type.
        """
        proof: Proof = decoded(Proof, certificate.to_dict())
        return proof
