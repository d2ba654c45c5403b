"""Archives of torch.export (`.pt2`), read without what torch tells its own developers."""

from __future__ import annotations

import contextlib
import logging
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils import _pytree as pytree

from rankhoist.errors import CaptureError, CarriedDataWarning
from rankhoist.mistakes import in_one_line


@contextlib.contextmanager
def muted(*names: str) -> Iterator[None]:
    """Without what these loggers say."""
    logs = [logging.getLogger(name) for name in names]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def read(path: Path) -> torch.export.ExportedProgram:
    """The program in an archive.

    Raises:
        CaptureError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise CaptureError(
                    f"{path} is not a readable torch.export archive (.pt2): it is no zip file, or a part of one"
                )
        with muted("torch.export", "torch._export"):
            return torch.export.load(path)
    except OSError as error:
        raise CaptureError(f"{path} cannot be read: {error.strerror or error}") from error
    except CaptureError:
        raise
    except Exception as error:
        raise CaptureError(f"{path} is not a readable torch.export archive (.pt2): {in_one_line(error)}") from error


def carried(path: Path) -> torch.export.ExportedProgram:
    """The same; warns where more data than the example's rows is in it."""
    exported = read(path)
    rows = [x for x in pytree.tree_leaves(exported.example_inputs) if isinstance(x, torch.Tensor)]
    if more := _behind(rows):
        warnings.warn(
            f"{path} carries {more:,} bytes of data behind its example inputs, beside their rows: torch.export.save "
            "stores all that they are views of. Export with copies of the rows, rows[:8].clone(), to save it without",
            CarriedDataWarning,
            stacklevel=5,
        )
    return exported


def _behind(rows: list[torch.Tensor]) -> int:
    """Bytes in the memory of these tensors that none of them shows."""
    memory = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in rows}
    for x in {(x.data_ptr(), x.shape, x.stride(), x.dtype): x for x in rows}.values():
        memory[x.untyped_storage().data_ptr()] -= x.numel() * x.element_size()
    return sum(max(rest, 0) for rest in memory.values())
