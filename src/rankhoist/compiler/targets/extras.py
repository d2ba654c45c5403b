"""What is installed beside PyTorch: packages that an extra of this project brings."""

from __future__ import annotations

import importlib.util

from rankhoist.errors import BackendError


def present(*modules: str) -> bool:
    """Whether all of them are installed."""
    return not _missing(modules)


def need(extra: str, *modules: str) -> None:
    """Look for them.

    Raises:
        BackendError: one is not installed; says which extra has it.
    """
    missing = _missing(modules)
    if missing:
        raise BackendError(f"{', '.join(missing)} is not installed: pip install 'rankhoist[{extra}]'")


def _missing(modules: tuple[str, ...]) -> list[str]:
    return [m for m in modules if importlib.util.find_spec(m) is None]
