"""A request for scores, from its arrival to its answer: how far it has come, and when."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rankhoist.serve.metrics import Stages
from rankhoist.serve.model import ServedModel

if TYPE_CHECKING:
    from opentelemetry.trace import Span


@dataclass
class Asked:
    """A request for scores, as far as it has come. Its `model` may become known late, or never.

    Of a refusal it has the `reason` and what was `said`: the error itself holds all that was under way, the connection
    among it, which would close late.
    """

    protocol: str
    name: str = ""
    model: ServedModel | None = None
    start: float | None = None  # when the whole body was there
    rows: int | None = None  # candidates
    stages: Stages = field(default_factory=dict)
    status: int = 500
    reason: str = "internal"
    said: str = ""
    span: Span | None = None
    headers: Mapping[str, str] = field(default_factory=dict)  # of the answer

    def ended(self, stage: str, start: float) -> None:
        """A stage ends now."""
        end = time.perf_counter()
        self.stages[stage] = start, end
        if self.model is not None:
            self.model.metrics.stage[stage].observe(end - start)
