"""What a call asks of a device beside its time: launches, and memory."""

from __future__ import annotations

import itertools
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


def kernels(call: Callable[[], Any], device: torch.device) -> dict[str, tuple[int, float]]:
    """What a call runs on a GPU, the longest first: how often, and its microseconds in all; nothing elsewhere."""
    if device.type != "cuda":
        return {}
    call()
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize(device)
    own = [event for event in seen.key_averages() if event.self_device_time_total > 0]
    own.sort(key=lambda event: -event.self_device_time_total)
    return {event.key: (int(event.count), float(event.self_device_time_total)) for event in own}


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Memory that a call takes beyond what is there before it, by torch's own allocator."""
    if device.type != "cuda":
        call()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            call()
        return _most(seen)
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before


def _most(seen: profile) -> int:
    """The most that was allocated at a time, of what was allocated and freed while it was watched."""
    events: list[Any] = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes), default=0)
