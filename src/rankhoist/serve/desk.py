"""Where requests for scores are received: each is counted and timed, logged where it was slow, and traced."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rankhoist_client.refusal import RequestError

import rankhoist.serve.metrics as metrics
from rankhoist.serve.asked import Asked
from rankhoist.serve.config import Settings
from rankhoist.serve.model import ServedModel

if TYPE_CHECKING:
    from rankhoist.serve.tracing import Tracing

log = logging.getLogger(__name__)


class Desk:
    """One for each process; `tracing` is there where the settings want it."""

    def __init__(self, settings: Settings) -> None:
        self._slow = float("inf") if settings.slow_ms is None else settings.slow_ms / 1e3
        self.tracing = _tracing() if settings.traces else None

    @contextmanager
    def asked(
        self, protocol: str, model: ServedModel | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[Asked]:
        """Follow a request that came with these headers; how it ends is its status: 200, or that of a refusal."""
        asked = Asked(protocol, model.name if model else "", model)
        if self.tracing is not None:
            asked.span, asked.headers = self.tracing.begin(protocol, headers or {})
        try:
            yield asked
            asked.status = 200
        except RequestError as refusal:
            asked.status, asked.reason, asked.said = refusal.status, refusal.reason, str(refusal)
            raise
        finally:
            self._answered(asked)

    def _answered(self, asked: Asked) -> None:
        metrics.counted(asked.name, asked.protocol, asked.status).inc()
        example = self.tracing.end(asked) if self.tracing is not None else None
        if asked.start is None:  # refused before it was read
            return
        seconds = time.perf_counter() - asked.start
        if asked.model is not None and asked.status == 200:
            asked.model.metrics.latency.observe(seconds, example)
        if seconds > self._slow:
            stages = {f"{stage}_ms": round(1e3 * (b - a), 3) for stage, (a, b) in asked.stages.items()}
            about = {"model": asked.name, "protocol": asked.protocol, "status": asked.status, "candidates": asked.rows}
            log.warning("slow request", extra={**about, "ms": round(1e3 * seconds, 3), **stages, **(example or {})})

    def close(self) -> None:
        """Send the traces that are left."""
        if self.tracing is not None:
            self.tracing.close()


def _tracing() -> Tracing:
    from rankhoist.serve.tracing import Tracing  # its packages are of another extra

    return Tracing()
