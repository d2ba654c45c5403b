"""The CPU, in float32 and in bfloat16: products are faster there by another factor than all else, so plans differ.

Its limits were set on 2026-11-22, beside the built-in profiles of that day (AMD EPYC, one thread, torch 2.13.0+cpu).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from rankhoist.compiler.lower.limits import Limits
from rankhoist.compiler.targets import predict
from rankhoist.compiler.targets.profile import BUILT_IN, BUILT_IN_BFLOAT16, Profile, load_profile
from rankhoist.compiler.targets.target import Target

CPU = Target(
    name="cpu-float32",
    device="cpu",
    dtype=torch.float32,
    limits=Limits(wide=256, small=2**16, tables=3, copied=2**26, short=True),
    profile=Profile.load(BUILT_IN),
    start=predict.start,
    kind=predict.kind,
    seconds=predict.seconds,
)


CPU_BFLOAT16 = replace(
    CPU,
    name="cpu-bfloat16",
    dtype=torch.bfloat16,
    profile=Profile.load(BUILT_IN_BFLOAT16),
    tried=(replace(CPU.limits, attended=True),),  # up to 3 times as fast, as measured, and slower for few rows
)


def this_machine(dtype: torch.dtype = torch.float32) -> Target:
    """The target that plans are made for where none is named: the CPU, by the profile measured here if there is one."""
    if dtype == torch.bfloat16:
        return replace(CPU_BFLOAT16, profile=load_profile("bfloat16"))
    return replace(CPU, profile=load_profile())
