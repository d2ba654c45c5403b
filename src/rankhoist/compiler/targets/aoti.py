"""A stage compiled ahead of time by AOTInductor: a package that runs without Python's compiler stack.

Two things to know before serving such a package:

* A call holds the interpreter lock from beginning to end, as loaded by Python: threads of one process score one after
  another. Scale by processes, or load the packages from C++.
* A package holds native code, which runs when it is loaded. Load only packages that you made, or whose maker you trust.

It is compiled for this machine's kind of processor and for the installed torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rankhoist.compiler.targets.exported import Call, Exported

SUFFIX = ".pt2"


def write(stage: Exported, path: Path) -> None:
    """Compile a stage."""
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(stage.program, package_path=str(path))


def load(path: Path) -> Call:
    """Load a stage, which runs its native code."""
    loaded = torch._inductor.aoti_load_package(str(path))

    def call(inputs: list[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            made: Sequence[Tensor] = loaded(*(t.contiguous() for t in inputs))
        return made

    return call
