"""What made a result: the versions that certificates and files name."""

from __future__ import annotations

import platform
from importlib import metadata

import torch


def versions() -> dict[str, str]:
    """Of rankhoist, torch and Python."""
    try:
        own = metadata.version("rankhoist")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        own = "unknown"
    return {"rankhoist": own, "torch": str(torch.__version__), "python": platform.python_version()}
