"""What a call asks of a device beside its time: launches, and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


def launches(call: Callable[[], Any], device: torch.device) -> int:
    """Kernels and graphs that a call launches on a GPU; elsewhere PyTorch's operators that it calls from Python."""
    call()
    if device.type != "cuda":
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            call()
        return sum(event.cpu_parent is None and event.name.startswith("aten::") for event in seen.events() or [])
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize(device)
    return sum(int(event.count) for event in seen.key_averages() if event.key in LAUNCHES)


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Memory that a call takes on a GPU beyond what is there before it; None elsewhere, where nobody counts."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before
