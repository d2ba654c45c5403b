"""A stage in another runtime: exported at its first call, with the weights of that call inside.

New weights are a new export, at the first call that brings them. A call without rows, which runtimes differ about, and
what the runtime declines, a stage or a call, run eagerly; of a stage it is said once.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rankhoist.compiler.emit import Stage
from rankhoist.compiler.emit.lookups import check_counts
from rankhoist.compiler.targets.exported import (
    BOUNDS,
    OWNER,
    REQUESTS,
    ROWS,
    SLOTS,
    Call,
    DeclinedError,
    Exported,
    Moving,
    Runtime,
    blocks_of_rows,
    export,
    refused,
)
from rankhoist.errors import BackendError, HoistingWarning


class Session(NamedTuple):
    """A stage that was exported: what runs it (None: it is declined), its description, the weights inside of it."""

    call: Call | None
    stage: Exported
    weights: list[Tensor]


class InSessions:
    """A stage through a runtime; `state` are the nodes with a row per request, `None` for a request stage."""

    def __init__(self, runtime: Runtime, stage: Stage, state: Collection[int] | None) -> None:
        self.runtime, self.stage, self.eager, self.is_request = runtime, stage, stage.run, state is None
        self.of_state = [state is not None and i in state for i in stage.nodes]
        self.moves = [*self.of_state, *[True] * len(stage.leaves)]
        self.trivial = not stage.leaves or not any(n.op == "call_function" for n in stage.module.graph.nodes)
        self._made: dict[bool, Session] = {}
        self._lock = threading.Lock()

    def __call__(self, rows: int, owner: Tensor | None, offsets: Tensor | None, *given: Any) -> tuple[Any, ...]:
        several = owner is not None
        if self.trivial or rows < 1 or not all(isinstance(t, Tensor) for t in given):
            return self.eager(rows, owner, offsets, *given)
        weights = [t for t, moves in zip(given, self.moves, strict=True) if not moves]
        moving = [t for t, moves in zip(given, self.moves, strict=True) if moves]
        session = self._made.get(several)
        if session is None or any(a is not b for a, b in zip(session.weights, weights, strict=True)):
            session = self._session(several, given, weights)
        if session.call is None:
            return self.eager(rows, owner, offsets, *given)
        named = dict(zip((n for n in session.stage.inputs if n not in (OWNER, SLOTS)), moving, strict=True))
        if OWNER in session.stage.inputs or SLOTS in session.stage.inputs:
            assert owner is not None and offsets is not None, "several requests have both"
            named |= blocks_of_rows(offsets, owner)
        try:
            made = list(session.call([named[name] for name in session.stage.inputs]))
        except DeclinedError:
            return self.eager(rows, owner, offsets, *given)
        if session.stage.guards:
            check_counts(session.stage.guards, made.pop())
        for at in sorted(session.stage.constants):
            made.insert(at, session.stage.constants[at])
        return tuple(made)

    def _session(self, several: bool, given: Sequence[Tensor], weights: list[Tensor]) -> Session:
        """Export and load, others wait: a call that holds older weights may come between, and makes its own again."""
        with self._lock:
            made = self._made.get(several)
            if made is None or any(a is not b for a, b in zip(made.weights, weights, strict=True)):
                made = self._made[several] = self._exported(several, given, weights)
            return made

    def _exported(self, several: bool, given: Sequence[Tensor], weights: list[Tensor]) -> Session:
        name = "request" if self.is_request else "candidate"
        with torch.no_grad():
            stage = export(name, self.stage, several, self._arguments(several, given), "output")
        try:
            return Session(self.runtime(stage, torch.get_num_threads()), stage, weights)
        except DeclinedError as why:
            warnings.warn(f"the {name} stage runs by PyTorch's own operators: {why}", HoistingWarning, stacklevel=2)
            return Session(None, stage, weights)
        except BackendError:
            raise
        except Exception as error:
            raise refused(f"the {name} stage", error) from error

    def _arguments(self, several: bool, given: Sequence[Tensor]) -> list[Moving | Tensor]:
        """Weights as they are; of what moves, rows of this call repeated to the sizes to export with."""
        requests = len(BOUNDS) - 1

        def rows_of(t: Tensor, count: int) -> Tensor:
            return t.index_select(0, torch.arange(count) % t.shape[0])

        made: list[Moving | Tensor] = []
        for i, (t, moves) in enumerate(zip(given, self.moves, strict=True)):
            if not moves:
                made.append(t)
            elif i < len(self.of_state):
                many = {0: REQUESTS} if several else None
                made.append(Moving(f"state.{i}", rows_of(t, requests if several else 1), many))
            elif self.is_request:
                made.append(Moving(f"input.{i}", rows_of(t, requests), {0: REQUESTS}))
            else:
                made.append(Moving(f"input.{i}", rows_of(t, int(BOUNDS[-1])), {0: ROWS}))
        return made
