"""What this machine needs for the operators that plans are made of, as measured once by `rankhoist calibrate`.

A profile is a table of seconds. Between its points, the logarithm of the time is linear in the logarithms of the sizes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankhoist.compiler.targets import profile_file
from rankhoist.compiler.targets.machine import with_threads
from rankhoist.errors import ProfileError

VERSION = 3
LANES = 16  # columns in one pass of a matrix product
COLUMNS = 4  # which a product of a batch takes about as long for as for one, as measured
WARM = 2**21  # bytes that stay in a core's cache
BUILT_IN = Path(__file__).with_name("profile.json")
BUILT_IN_BFLOAT16 = Path(__file__).with_name("profile-bfloat16.json")


@dataclass(frozen=True)
class Profile:
    """Seconds on one machine, in one dtype, with a fixed number of threads. Bytes are those of so many float32 numbers.

    Attributes:
        date, processor, torch: when and on what it was measured.
        threads: torch threads while measuring.
        call: one operator on a tiny tensor; `view`: one that only makes a view.
        row: one more run of neighbouring elements, for an operator that cannot take its whole tensor as one run.
        sizes: `{"m": [...], "k": [...], "n": [...], "batch": [...], "bytes": [...]}`, the points of the tables.
        product: `[m, k] x [k, n]`, `[len(m)][len(k)][len(n)]` seconds.
        batched: `batch` products `[m, k] x [k, n]` at the first three m, k and n, `[batch][m][k][n]` seconds.
        stream: an elementwise operator that writes so many bytes and reads twice as many.
        gather: reading rows of 256 bytes by index, so many bytes in all.
        pick: reading single elements by two indices, so many bytes in all.
        function: an exponential that writes so many bytes.
    """

    date: str
    processor: str
    torch: str
    threads: int
    call: float
    view: float
    row: float
    sizes: dict[str, list[int]]
    product: list[Any]
    batched: list[Any]
    stream: list[float]
    gather: list[float]
    pick: list[float]
    function: list[float]
    dtype: str = "float32"
    version: int = VERSION

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        profile_file.write(path, self)

    @staticmethod
    def load(path: Path) -> Profile:
        """Read it.

        Raises:
            ProfileError: the file is no profile, or one of another version.
        """
        data = profile_file.read(path)
        needed = [f.name for f in fields(Profile) if f.name != "dtype"]  # float32 was the only one
        missing = [name for name in needed if not isinstance(data, dict) or name not in data]
        if missing or data["version"] != VERSION:
            raise ProfileError(f"{path} is not a profile of version {VERSION}; run `rankhoist calibrate` again")
        return Profile(**{f.name: data[f.name] for f in fields(Profile) if f.name in data})

    @property
    def machine(self) -> str:
        """What it was measured on."""
        return with_threads(self.processor, self.threads)

    def summary(self) -> str:
        """What it says, in a few lines."""
        rate = 1024 * 256 * 256 / float(self.products(1, 1024, 256, 256)) / 1e9
        moved = 2**21 / float(self.streams(2**21)) / 1e9
        return (
            f"{self.processor}, {self.threads} thread(s), {self.dtype}, torch {self.torch}, {self.date}\n"
            f"an operator call {self.call * 1e6:.1f} us, a view {self.view * 1e6:.1f} us, "
            f"[1024, 256] x [256, 256] {rate:.1f} G multiply-adds/s, 2 MiB written at {moved:.1f} GB/s"
        )

    # -- seconds

    def products(self, batch: Any, m: Any, k: Any, n: Any) -> Any:
        """Seconds of `batch` products `[m, k] x [k, n]`."""
        n = filled(n)
        single = self._product_table(np.maximum(m, 1), k, n)
        few = np.minimum(np.asarray(batch) / self.sizes["batch"][0], 1.0)  # fewer than the table's: in proportion
        several = few * self._batched_table(np.maximum(batch, 1), np.maximum(m, 1), k, n)
        # Beyond the table each is a product of its own, and one of a column no product by a vector.
        alone = batch * (single if n >= COLUMNS else self._product_table(np.maximum(m, 1), k, COLUMNS))
        several = np.where(np.asarray(m) > self.sizes["batched_m"][-1], np.maximum(several, alone), several)
        return np.where(np.asarray(batch) <= 1, single, several)

    def streams(self, size: Any, over: bool = False) -> Any:
        """Seconds to write so many bytes elementwise; over memory in use they cost no more each than `WARM` do."""
        return self._warm("stream", size, over)

    def gathers(self, size: Any) -> Any:
        """Seconds to read so many bytes by row indices."""
        return self._curve("gather")(np.maximum(size, 1.0))

    def picks(self, size: Any) -> Any:
        """Seconds to read so many bytes, each element by indices of its own."""
        return self._curve("pick")(np.maximum(size, 1.0))

    def functions(self, size: Any, over: bool = False) -> Any:
        """Seconds to write so many bytes of an exponential or the like."""
        return self._warm("function", size, over)

    def _warm(self, name: str, size: Any, over: bool) -> Any:
        """New memory of many bytes comes from the system page by page, which costs more than to compute them."""
        size = np.maximum(size, 1.0)
        cold = self._curve(name)(size)
        return np.where(size > WARM, np.minimum(cold, self._curve(name)(WARM) * size / WARM), cold) if over else cold

    @functools.cached_property
    def _product_table(self) -> Table:
        return Table([self.sizes[x] for x in "mkn"], self.product)

    @functools.cached_property
    def _batched_table(self) -> Table:
        small = [self.sizes[f"batched_{x}"] for x in "mkn"]
        return Table([self.sizes["batch"], *small], self.batched)

    @functools.cache  # noqa: B019 (profiles are few and live as long as the process)
    def _curve(self, name: str) -> Table:
        return Table([self.sizes["bytes"]], getattr(self, name))

    def __hash__(self) -> int:
        return id(self)


def filled(n: int) -> int:
    """Columns of a product that take as long as `n` and leave no vector half empty.

    Measured: what is left of n after whole vectors takes a pass for each power of two in it, 30 columns as long as 64.
    """
    return n if n < LANES // 2 else LANES * (n // LANES + (n % LANES).bit_count())


class Table:
    """Multilinear interpolation of log(seconds) over log(sizes); beyond the table, in proportion to size."""

    def __init__(self, axes: Sequence[Sequence[int]], seconds: Any) -> None:
        self.axes = [np.log(np.asarray(a, float)) for a in axes]
        self.values = np.log(np.asarray(seconds, float))

    def __call__(self, *sizes: Any) -> Any:
        points = np.broadcast_arrays(*(np.log(np.asarray(s, float)) for s in sizes))
        beyond = sum(np.maximum(p - a[-1], 0.0) for p, a in zip(points, self.axes, strict=True))
        corners: list[tuple[Any, tuple[Any, ...]]] = [(1.0, ())]
        for p, a in zip(points, self.axes, strict=True):
            inside = np.clip(p, a[0], a[-1])
            low = np.clip(np.searchsorted(a, inside, side="right") - 1, 0, max(len(a) - 2, 0))
            high = np.minimum(low + 1, len(a) - 1)
            share = np.where(high > low, (inside - a[low]) / np.maximum(a[high] - a[low], 1e-12), 0.0)
            corners = [(w * f, (*at, i)) for w, at in corners for f, i in ((1 - share, low), (share, high))]
        return np.exp(sum(w * self.values[at] for w, at in corners) + beyond)


def path(target: str = "cpu-float32") -> Path:
    """Where a target's profile of this machine is: `$RANKHOIST_PROFILE`, or the user's cache folder."""
    named = os.environ.get("RANKHOIST_PROFILE")
    if named and target.startswith("cpu"):
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rankhoist"
    threads = f"profile-{torch.get_num_threads()}-threads"
    known = {"cpu-float32": f"{threads}.json", "cpu-bfloat16": f"{threads}-bfloat16.json"}
    return cache / known.get(target, f"profile-{target}.json")


def in_use(dtype: str = "float32") -> Path:
    """The file that `load_profile` reads."""
    own = path(f"cpu-{dtype}")
    return own if own.exists() else {"float32": BUILT_IN, "bfloat16": BUILT_IN_BFLOAT16}[dtype]


def load_profile(dtype: str = "float32") -> Profile:
    """This machine's profile for the present number of threads, or the built-in one."""
    file = in_use(dtype)
    return _read(file, file.stat().st_mtime_ns)


@functools.cache
def _read(file: Path, written: int) -> Profile:
    """Once per file and time of writing: `calibrate` may replace it while the process lives."""
    return Profile.load(file)
