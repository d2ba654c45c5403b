"""Mistakes of ours: exceptions that a part of the compiler did not mean to raise."""

from __future__ import annotations

import torch

OURS = {"builtins", "torch", "numpy", "sympy", "mpmath", "rankhoist"}  # whose exceptions a broken part raises


def is_mistake(error: Exception) -> bool:
    """Whether a broken part may have raised it. What interrupts one is not: a time limit, a lack of memory."""
    ours = type(error).__module__.split(".")[0] in OURS
    return ours and not isinstance(error, OSError | MemoryError | torch.OutOfMemoryError)


def first_line(error: BaseException) -> str:
    """What an exception says first; some say nothing."""
    return next(iter(str(error).strip().splitlines()), "")


def in_one_line(error: BaseException, most: int = 200) -> str:
    """Its kind and what it says first, so many characters at most."""
    line = first_line(error)[:most]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def told(what: str, error: Exception) -> str:
    """A mistake in words that ask for a report."""
    return f"{what} failed ({type(error).__name__}: {error}); please report it"
