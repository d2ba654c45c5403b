"""The machine at hand: what a result that was measured on it must name."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Processor, threads, versions."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def name_of(device: torch.device | str = "cpu") -> str:
    """What runs a device's operators: the processor with its threads, or the accelerator."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return with_threads(_processor(), torch.get_num_threads())


def with_threads(processor: str, threads: int) -> str:
    """A processor as it is used: with another number of threads it is another machine."""
    return f"{processor}, {threads} thread{'s' * (threads > 1)}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
