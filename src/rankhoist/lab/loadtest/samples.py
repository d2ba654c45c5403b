"""What a load test saw: when each request was due, sent and answered, and the figures drawn from that."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
CURVE = (0, 10, 25, 50, 75, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.99)  # percentiles of the plot

Floats = npt.NDArray[np.float64]


@dataclass
class Samples:
    """Seconds of the test's clock, one entry per request.

    due     when the request was meant to be sent: as soon as a connection was free (closed loop), or by the schedule
            (open loop), whatever the server kept the generator waiting for
    sent    when it was sent
    done    when its answer was there, or it failed
    failed  the kind of error, or None where it was answered
    """

    due: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    failed: list[str | None] = field(default_factory=list)

    def add(self, due: float, sent: float, done: float, failed: str | None = None) -> None:
        """One request."""
        self.due.append(due)
        self.sent.append(sent)
        self.done.append(done)
        self.failed.append(failed)

    def since(self, start: float) -> Samples:
        """Of the requests due from then on."""
        kept = [i for i, due in enumerate(self.due) if due >= start]
        due, sent, done = ([column[i] for i in kept] for column in (self.due, self.sent, self.done))
        return Samples(due, sent, done, [self.failed[i] for i in kept])

    def latest(self, count: int) -> Samples:
        """Of the last so many requests that ended."""
        return Samples(self.due[-count:], self.sent[-count:], self.done[-count:], self.failed[-count:])

    def errors(self) -> dict[str, int]:
        """How many requests failed, by kind."""
        return dict(Counter(kind for kind in self.failed if kind is not None))

    def figures(self) -> dict[str, Any]:
        """Requests, requests per second, errors by kind, and latency in ms of the answered: from `due` to `done`."""
        due, done, good = np.array(self.due), np.array(self.done), self._good()
        seconds = float(done.max() - due.min()) if len(due) else 0.0
        latency = 1e3 * (done - due)[good]
        return {
            "requests": len(due), "answered": int(good.sum()), "errors": self.errors(),
            "seconds": seconds, "requests_per_second": float(good.sum()) / seconds if seconds else 0.0,
            "latency_ms": _latency(latency), "curve_ms": _percentiles(latency, _seen(len(latency))),
        }  # fmt: skip

    def lateness(self) -> dict[str, float]:
        """How long after `due` requests were sent, in ms: waiting for a free connection, and the generator itself."""
        return _percentiles(1e3 * (np.array(self.sent) - np.array(self.due)), (50.0, 99.0))

    def per_second(self) -> list[dict[str, float]]:
        """Answers, errors and latency in ms by the second in which they came, but for the last, incomplete one."""
        if not self.due:
            return []
        due, done, good = np.array(self.due), np.array(self.done), self._good()
        second = (done - due.min()).astype(int)
        rows = []
        for s in range(int(second.max())):
            latency = 1e3 * (done - due)[(second == s) & good]
            errors = int(((second == s) & ~good).sum())
            rows.append({"second": s, "answers": len(latency), "errors": errors, **_percentiles(latency, (50.0, 99.0))})
        return rows

    def _good(self) -> npt.NDArray[np.bool_]:
        return np.array([kind is None for kind in self.failed], bool)


def _latency(values: Floats) -> dict[str, float]:
    if not len(values):
        return {}
    return {**_percentiles(values, PERCENTILES), "mean": float(values.mean()), "max": float(values.max())}


def _seen(count: int) -> tuple[float, ...]:
    """The percentiles that so many requests can tell: at least one of them lies beyond."""
    return tuple(p for p in CURVE if (1 - p / 100) * count >= 1)


def _percentiles(values: Floats, wanted: tuple[float, ...]) -> dict[str, float]:
    if not len(values):
        return {}
    return {f"p{p:g}": float(x) for p, x in zip(wanted, np.percentile(values, wanted), strict=True)}
