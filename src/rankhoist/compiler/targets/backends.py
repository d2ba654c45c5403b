"""Backends: what runs a stage. `eager` calls PyTorch operator by operator, `inductor` compiles with torch.compile,
`onnx` and `openvino` are these runtimes (see `sessions`). What the first two run may be recorded: `graphs`,
`inductor-graphs`.

A backend turns a stage into a function with the arguments of `Stage.run`. The compiled one keeps the row counts
symbolic and is compiled on made-up rows, before the first call is answered: what it is called with decides nothing, so
no number of candidates or requests compiles anything anew. Compiled apart, at most once each:

    request stage      one request (all sizes known) | several
    candidate stage    one request (nothing gathered) | several

Eagerly run: no row at all, one candidate, and on a CPU several requests where candidates meet a matrix of their
request. There the eager loop over requests was faster than padded blocks in one `bmm`: 1.0 and 2.4 ms for 3 requests of
1000 candidates in all, 1.2 and 2.8 ms for 8 (two cross layers of 192 columns, one thread, torch 2.13). For one request
the same model took 0.76 ms eagerly and 0.79 ms compiled: on a CPU measure before choosing.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from rankhoist.compiler.emit import Stage
from rankhoist.compiler.emit.lookups import check_counts
from rankhoist.compiler.emit.traceable import slots_of, traceable
from rankhoist.compiler.graph.padded import Padded
from rankhoist.compiler.targets import differs, onnx, openvino
from rankhoist.compiler.targets.sessions import InSessions
from rankhoist.errors import BackendError

Run = Callable[..., tuple[Any, ...]]
ROWS, REQUESTS = 11, 3  # to compile with: sizes that are equal would be taken for the same
BOUNDS = (0, 2, 7, ROWS)  # of their blocks, the longest of 5


def backend_of(name: str) -> Callable[[Stage, Collection[int] | None], Run]:
    """A backend by name: (stage, nodes of the state that a candidate stage is passed) -> function."""
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}; backends are {', '.join(BACKENDS)}")
    return BACKENDS[name]


def _eager(stage: Stage, state: Collection[int] | None) -> Run:
    return stage.run


class Compiled:
    """A stage through torch.compile; `state` are the nodes with a row per request, `None` for a request stage."""

    def __init__(self, stage: Stage, state: Collection[int] | None) -> None:
        self.stage, self.eager = stage, stage.run
        self.per_request = [state is not None and i in state for i in stage.nodes]
        self.is_request = state is None
        self.trivial = not stage.leaves or not any(n.op == "call_function" for n in stage.module.graph.nodes)
        self.by_blocks = bool(next(n for n in stage.module.graph.nodes if n.name == "offsets").users)
        self._made: dict[bool, Run] = {}
        self._lock = threading.Lock()

    def __call__(
        self, rows: int, owner: Tensor | None, offsets: Tensor | Padded | None, *given: Any
    ) -> tuple[Any, ...]:
        several = rows > 1 if self.is_request else owner is not None
        slots = offsets[0] if isinstance(offsets, tuple) and len(offsets) == 2 else None
        eagerly = self.trivial or rows < (1 if self.is_request else 2) or (several and self.by_blocks and slots is None)
        if eagerly or not all(type(t) is Tensor for t in given):
            return self.eager(rows, owner, offsets, *given)
        return (self._made.get(several) or self._make(several, given))(owner, slots, given)

    def _make(self, several: bool, given: Sequence[Tensor]) -> Run:
        """Compile, at the first call; others wait."""
        with self._lock:
            if several not in self._made:
                self._made[several] = self._compiled(several, given)
            return self._made[several]

    def _compiled(self, several: bool, given: Sequence[Tensor]) -> Run:
        spelled = traceable(self.stage, several)
        forward = spelled.module.forward  # the module's own call explains errors by Python that would be compiled, too
        checks = Distribution._validate_args  # of the whole process: the call switches them off
        compiled = torch.compile(forward, fullgraph=True)
        Distribution.set_default_validate_args(checks)
        owner, slots, made_up = self._made_up(several, given)
        moving = [*self.per_request, *[True] * len(self.stage.leaves)]
        strides = [t.stride() if moves else None for t, moves in zip(made_up, moving, strict=True)]

        def run(owner: Tensor | None, slots: Tensor | None, given: Sequence[Tensor]) -> tuple[Any, ...]:
            given = [t if s is None else _strided(t, s) for t, s in zip(given, strides, strict=True)]
            made: tuple[Any, ...] = compiled(*(owner, slots)[: len(spelled.arguments)], *given)
            if spelled.guards:
                *results, counts = made
                check_counts(spelled.guards, counts)
                made = tuple(results)
            return tuple(map(_plain, made)) if self.is_request else made

        try:
            run(owner, slots, made_up)
        except Exception as error:
            raise _explained(error, "request" if self.is_request else "candidate") from error
        return run

    def _made_up(self, several: bool, given: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Owners, padded blocks, and rows of a call repeated to the sizes to compile for, with the row axes, and the
        length of blocks, marked as symbolic.
        """
        requests = REQUESTS if several else 1
        rows = requests if self.is_request else ROWS

        def grown(t: Tensor, count: int) -> Tensor:
            t = t.index_select(0, torch.arange(count, device=t.device) % t.shape[0])
            if count > 1:
                torch._dynamo.mark_dynamic(t, 0)
            return t

        counts = [requests if own else 0 for own in self.per_request] + [rows] * len(self.stage.leaves)
        made = [grown(t, count) if count else t for t, count in zip(given, counts, strict=True)]
        bounds = torch.tensor(BOUNDS)
        owner = torch.repeat_interleave(torch.arange(REQUESTS), bounds.diff()).to(given[-1].device)
        slots = slots_of(bounds).to(given[-1].device)
        torch._dynamo.mark_dynamic(owner, 0)
        torch._dynamo.mark_dynamic(slots, [0, 1])
        return owner, slots, made


def _strided(t: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Rows as they lie in memory when they are whole: another layout would be compiled anew."""
    return t if t.stride() == strides else t.clone(memory_format=torch.contiguous_format)


def _plain(value: Any) -> Any:
    """The state, laid out so that no score copies it."""
    return _strided(value, torch.empty(value.shape, device="meta").stride()) if isinstance(value, Tensor) else value


def _explained(error: Exception, stage: str) -> BackendError:
    """Why a stage did not compile, and what helps."""
    cause: BaseException | None = error
    while cause is not None and "InvalidCxxCompiler" not in type(cause).__name__ + str(cause):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        return BackendError(
            "backend 'inductor' found no working C++ compiler; install one (Debian, Ubuntu: apt install g++; macOS: "
            "xcode-select --install; or name it in the environment variable CXX), or use backend='eager'"
        )
    return BackendError(
        f"backend 'inductor' does not compile the {stage} stage; use backend='eager'. {type(error).__name__}: "
        f"{str(error).strip()[:1500]}"
    )


BACKENDS: dict[str, Callable[[Stage, Collection[int] | None], Run]] = {
    "eager": _eager, "inductor": Compiled, "onnx": functools.partial(InSessions, onnx.session),
    "openvino": functools.partial(InSessions, openvino.session), "graphs": _eager, "inductor-graphs": Compiled,
}  # fmt: skip
RECORDED = ("graphs", "inductor-graphs")  # what they run is recorded, and replayed as one: see `recorder`


def installed(device: torch.device, dtype: torch.dtype) -> list[str]:
    """The backends that this machine has for a device and a dtype, `eager` first, then those that start sooner; what is
    compiled and recorded before what is compiled alone, which takes as long to compile and longer to run.
    """
    takes = {"onnx": (torch.float32, torch.float64), "openvino": differs.DTYPES}  # on a CPU
    on_cpu = [name for name, dtypes in takes.items() if dtype in dtypes]
    found = {"cpu": [*on_cpu, "inductor"], "cuda": ["graphs", "inductor-graphs", "inductor"]}
    return ["eager", *(name for name in found.get(device.type, ["inductor"]) if here(name, device))]


def here(backend: str, device: torch.device) -> bool:
    """Whether this machine has what a backend needs: the packages of its extra, or a compiler."""
    if backend.startswith("inductor"):
        return device.type != "cpu" or _compiles()
    return {"onnx": onnx.installed, "openvino": openvino.installed}.get(backend, lambda: True)()


@functools.cache
def _compiles() -> bool:
    """Whether there is a C++ compiler, which torch looks for in its own way."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except RuntimeError:
        return False
