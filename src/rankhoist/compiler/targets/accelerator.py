"""What an accelerator needs for the kernels that plans are made of: a measured table per dtype.

The built-in table is of one H200 of 2026-11-27 (torch 2.11, CUDA 13), kernels alone, replayed as CUDA graphs; what wins
and what loses was the same on an H100. `rankhoist calibrate --device cuda --dtype bfloat16` measures another.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from rankhoist.compiler.targets import profile_file
from rankhoist.compiler.targets.profile import Table
from rankhoist.errors import ProfileError

BUILT_IN = Path(__file__).with_name("cuda.json")
VERSION = 1
WIDTH = 64  # of the rows of the curves `sum`, `softmax`, `norm` and `gather`
WIDE = 1024  # of those of the curves called `..._wide`
CURVES = (
    "stream", "addcmul", "function", "gather", "sum", "softmax", "softmax_wide", "norm", "norm_wide", "join",
    "transpose",
)  # fmt: skip


@dataclass(frozen=True)
class Accelerator:
    """Seconds on one device, in one dtype.

    Attributes:
        date, processor, torch, device, dtype: when and on what it was measured, and in which dtype.
        call, view: an operator called from Python on a tiny tensor, and one that only makes a view.
        kernel: one more tiny kernel in a recorded graph; `replay`: such a graph of one, launched.
        copy: a few KiB from pinned memory to the device.
        sizes, product, batched: as in `Profile`; `batched` stands where its three sizes are small.
        curves: name -> seconds by bytes: written by `stream`, `addcmul`, `function` and `transpose`; of each of two
            operands for `join`; of the rows read for all others, which are `WIDTH` wide, or `WIDE`.
    """

    date: str
    processor: str
    torch: str
    device: str
    dtype: str
    call: float
    view: float
    kernel: float
    replay: float
    copy: float
    sizes: dict[str, list[int]]
    product: list[Any]
    batched: list[Any]
    curves: dict[str, list[float]]
    version: int = VERSION

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        profile_file.write(path, self)

    @staticmethod
    def load(path: Path) -> Accelerator:
        """Read it.

        Raises:
            ProfileError: the file is no profile of an accelerator, or one of another version.
        """
        return _of(profile_file.read(path), path)

    @property
    def machine(self) -> str:
        """What it was measured on."""
        return f"{self.processor}, {self.dtype}"

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return 4 if self.dtype == "float32" else 2

    def summary(self) -> str:
        """What it says, in a few lines."""
        rate = 2**14 * 1024 * 1024 / float(self.products(1, 2**14, 1024, 1024)) / 1e12
        moved = 2**26 / float(self.curve("stream", 2**26)) / 1e9
        return (
            f"{self.processor}, {self.dtype}, torch {self.torch}, {self.date}\n"
            f"an operator call {self.call * 1e6:.1f} us, a recorded kernel {self.kernel * 1e6:.2f} us, "
            f"[16384, 1024] x [1024, 1024] {rate:.1f} T multiply-adds/s, 64 MiB written at {moved:.0f} GB/s"
        )

    # -- seconds of kernels

    def products(self, batch: Any, m: Any, k: Any, n: Any) -> Any:
        """`batch` products `[m, k] x [k, n]`; large ones take as long as one product of as many rows."""
        batch, m, k, n = (np.maximum(np.asarray(x, float), 1.0) for x in (batch, m, k, n))
        whole = self._product_table(batch * m, k, n)
        small = (m <= WIDTH) & (k <= WIDTH) & (n <= WIDTH)
        matrices = self.curve("stream", batch * k * n * self.itemsize / 2)  # they are read, at least
        return np.where(
            batch <= 1, whole, np.where(small, self._batched_table(batch, m, k, n), np.maximum(whole, matrices))
        )

    def curve(self, name: str, size: Any) -> Any:
        """By bytes."""
        return self._tables[name](np.maximum(size, 1.0))

    def rows(self, name: str, rows: Any, width: Any) -> Any:
        """Of rows that are read, reduced or normalised: their number decides as much as their width."""
        narrow = self.curve(name, np.asarray(rows, float) * WIDTH * self.itemsize)
        if f"{name}_wide" in self.curves:
            wide = self.curve(f"{name}_wide", np.asarray(rows, float) * max(width, WIDE) * self.itemsize)
        else:
            wide = self.curve("stream", np.asarray(rows, float) * max(width, WIDE) * self.itemsize)
        share = min(max(np.log(max(width, 1) / WIDTH) / np.log(WIDE / WIDTH), 0.0), 1.0)
        return np.maximum(narrow, wide) if share == 1.0 else narrow ** (1 - share) * np.maximum(narrow, wide) ** share

    @functools.cached_property
    def _product_table(self) -> Table:
        return Table([self.sizes[x] for x in "mkn"], self.product)

    @functools.cached_property
    def _batched_table(self) -> Table:
        return Table([self.sizes[x] for x in ("batch", "batched_m", "batched_k", "batched_n")], self.batched)

    @functools.cached_property
    def _tables(self) -> dict[str, Table]:
        return {name: Table([self.sizes["bytes"]], seconds) for name, seconds in self.curves.items()}

    def __hash__(self) -> int:
        return id(self)


def _of(data: Any, path: Path) -> Accelerator:
    missing = [f.name for f in fields(Accelerator) if not isinstance(data, dict) or f.name not in data]
    if missing or data["version"] != VERSION or not set(CURVES) <= set(data["curves"]):
        raise ProfileError(
            f"{path} is no profile of an accelerator, version {VERSION}; run `rankhoist calibrate` again"
        )
    return Accelerator(**{f.name: data[f.name] for f in fields(Accelerator)})


@functools.cache
def built_in(dtype: str) -> Accelerator:
    """The H200's, in `float32` or `bfloat16`."""
    return next(_of(data, BUILT_IN) for data in json.loads(BUILT_IN.read_text()) if data["dtype"] == dtype)
