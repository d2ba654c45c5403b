"""Fourier transforms `[N, ...] -> [N, ...]` also of no row at all, of which MKL makes none: it is PyTorch's on CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from rankhoist.compiler.graph.node import Op

NAMES = (
    "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 "
    "fft_fftn fft_ifftn fft_rfftn fft_irfftn _fft_c2c _fft_r2c _fft_c2r"
).split()


def of_any_rows(transform: Op) -> Callable[..., Tensor]:
    """The same; no row is none of one."""

    def transformed(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        made: Tensor = transform(x if len(x) else x.new_zeros(1, *x.shape[1:]), *args, **kwargs)
        return made if len(x) else made[:0]

    return transformed
