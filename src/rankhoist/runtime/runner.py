"""What `export_onnx` and `package` wrote, loaded: called like the hoisted model, which need not be at hand."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rankhoist.arguments import path_of
from rankhoist.compiler.emit.lookups import OUTSIDE, check_counts
from rankhoist.compiler.targets import aoti, onnx
from rankhoist.compiler.targets.exported import Load, blocks_of_rows
from rankhoist.errors import InputError
from rankhoist.runtime.ids import check
from rankhoist.runtime.inputs import Inputs
from rankhoist.runtime.manifest import Manifest
from rankhoist.runtime.offsets import Offsets
from rankhoist.runtime.scoring import Candidates, RequestState, Scoring
from rankhoist.runtime.weights import Weights


class Runner(Scoring):
    """Scores with exported stages, called like the hoisted model that they come from. Tensors in and out, on the CPU.

    It holds one plan. Several requests per call need an export with `several=True`.
    """

    def __init__(self, folder: Path, load: Load) -> None:
        manifest = Manifest.read(folder)
        self._inputs = Inputs(manifest.interface, manifest.dtype, torch.device("cpu"))
        self._weights = Weights({}, {}, (), {}, self.interface, [])  # those of exported stages are inside of them
        self._stages, self._constants, self._ids = manifest.stages, manifest.constants, manifest.ids
        self._calls = {name: load(folder / stage.file) for name, stage in manifest.stages.items()}

    def __call__(self, *args: Any, request_offsets: Offsets | None = None, **kwargs: Any) -> Any:
        """Scores of N candidates; see `forward`."""
        return self.forward(*args, request_offsets=request_offsets, **kwargs)

    def _prepare(self, context: dict[str, Tensor], requests: int, candidates: int | None) -> RequestState:
        check(self._ids["context"], context)
        if not requests:  # stages run on one row at least
            made = self._run("request", self._one("context"), checked=False)
        else:
            made = self._run("request", context)
        return RequestState(requests, {i: t.contiguous() for i, t in enumerate(made)}, self._weights)

    def _score(self, state: RequestState, candidates: Candidates) -> Any:
        candidate, rows, blocks = candidates
        check(self._ids["candidate"], candidate)
        outputs = [name for name in self._stages["request"].outputs if name != OUTSIDE]
        tensors = dict(zip(outputs, state.tensors.values(), strict=True))
        if not rows:
            return self._result(self._of_no_rows(tensors))
        given = tensors | candidate
        if blocks is None:
            return self._result(self._run("candidate", given))
        if "several" not in self._stages:
            raise InputError(f"{state.requests} requests per call need an export with several=True")
        return self._result(self._run("several", given | blocks_of_rows(blocks.offsets, blocks.owner)))

    def _of_no_rows(self, state: dict[str, Tensor]) -> list[Tensor]:
        """Scores of one candidate that is made up, without its row."""
        one = {name: t[:1] for name, t in state.items()}
        made = self._run("candidate", one | self._one("candidate"), checked=False)
        axes = self._stages["candidate"].row_axes
        return [t if axis < 0 else t.narrow(axis, 0, 0) for t, axis in zip(made, axes, strict=True)]

    def _one(self, side: str) -> dict[str, Tensor]:
        """One row that is made up."""
        return self._inputs.stage_inputs(self.made_up(side, 1))

    def _run(self, name: str, given: Mapping[str, Tensor], checked: bool = True) -> Sequence[Tensor]:
        stage = self._stages[name]
        made = self._calls[name]([given[i] for i in stage.inputs])
        if not stage.guards:
            return made
        *made, counts = made
        if checked:  # not of rows that are made up
            check_counts(stage.guards, counts)
        return made

    def _result(self, made: Sequence[Tensor]) -> Any:
        leaves: list[Any] = list(made)
        for i in sorted(self._constants):
            leaves.insert(i, self._constants[i])
        return self.interface.result(leaves)


def load_onnx(folder: str | os.PathLike[str], providers: Sequence[str] = (), threads: int = 0) -> Runner:
    """Run an export with ONNX Runtime, which releases the interpreter lock.

    Args:
        providers: execution providers by name; the CPU's by default.
        threads: inside one operator; 0 leaves it to ONNX Runtime.

    Raises:
        BackendError: the extra `onnx` is not installed, the folder holds no export that this version reads, or ONNX
            Runtime lacks what a stage needs, as it does for many operators in other dtypes than float32.
    """
    return Runner(path_of(folder, "folder"), onnx.loader(providers, threads))


def load_package(folder: str | os.PathLike[str]) -> Runner:
    """Load a package, which runs its native code; a call of the result holds the interpreter lock.

    Raises:
        BackendError: the folder holds no export that this version reads.
    """
    return Runner(path_of(folder, "folder"), aoti.load)
