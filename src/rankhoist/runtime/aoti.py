"""Both stages compiled ahead of time by AOTInductor, as packages that run without Python's compiler stack.

Two things to know before serving such a package:

* A call holds the interpreter lock from beginning to end, as loaded by Python: threads of one process score one after
  another. Scale by processes, or load the packages from C++.
* A package holds native code, which runs when it is loaded. Load only packages that you made, or whose maker you trust.

It is compiled for this machine's kind of processor and for the installed torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rankhoist.runtime.deploy import Call, Exported, Runner, write

if TYPE_CHECKING:
    from rankhoist.runtime.hoisted import HoistedModel


def package(hoisted: HoistedModel, folder: str | os.PathLike[str], several: bool = False) -> None:
    """Write `request.pt2`, `candidate.pt2` and the manifest; with `several`, `several.pt2` too."""
    write(hoisted, Path(folder), ".pt2", several, _write)


def load_package(folder: str | os.PathLike[str]) -> Runner:
    """Load a package, which runs its native code; a call of the result holds the interpreter lock."""
    return Runner(Path(folder), _load)


def _write(stage: Exported, path: Path) -> None:
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(stage.program, package_path=str(path))


def _load(path: Path) -> Call:
    loaded = torch._inductor.aoti_load_package(str(path))

    def call(inputs: list[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            made: Sequence[Tensor] = loaded(*(t.contiguous() for t in inputs))
        return made

    return call
