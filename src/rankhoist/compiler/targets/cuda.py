"""A GPU: its operators called from Python, where launches decide, and recorded as a CUDA graph, where kernels do."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch

from rankhoist.compiler.graph import fused
from rankhoist.compiler.lower.limits import Limits
from rankhoist.compiler.targets import launched
from rankhoist.compiler.targets.accelerator import Accelerator
from rankhoist.compiler.targets.target import Target

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DOUBT = 1.25  # kernels are predicted within 0.5 and 2 of their times, and launches vary with the host
ALIGNED = 8  # numbers of 16 bits: what tensor cores are fed with at once, 16 bytes
# One larger kernel gains over several as long as none of them fills the device.
LIMITS = Limits(wide=1024, small=2**22, tables=2, copied=2**28)


@functools.cache
def cuda(profile: Accelerator, recorded: bool = False) -> Target:
    """A GPU as a target: `cuda-bfloat16`, or `cuda-bfloat16-graphs` where calls are recorded."""
    limits = replace(LIMITS, ends=fused.available())
    return Target(
        name=f"cuda-{profile.dtype}" + ("-graphs" if recorded else ""),
        device="cuda",
        dtype=DTYPES[profile.dtype],
        limits=limits,
        profile=profile,
        start=launched.start_recorded if recorded else launched.start_called,
        kind=launched.kind,
        seconds=launched.recorded if recorded else launched.called,
        doubt=DOUBT,
        tried=(replace(limits, aligned=ALIGNED),) if profile.itemsize == 2 else (),
    )
