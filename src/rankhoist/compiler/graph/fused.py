"""One kernel for what takes several operators: on a GPU, where Triton is installed; elsewhere the operators themselves.

    [N, B, E, k] x [R, B, k, n] by the row's owner (+ start [R, n] or [R, E, n] of its owner, or + what is there)
        -> a function of it
    [N, h, Q, d] over keys and values of the row's owner, and over its own, merged by log-sum-exp

    [..., n] -> its layer norm, or root-mean-square norm
    [R, ...] -> [N, ...] by owner

N rows of R owners in order; one matrix may be that of all rows. Products in half precision, and in TF32 where PyTorch's
own switch says so, are tiles of ours, unless so much is summed over that the vendor's are faster. So are float32's by
the matrix of an owner, which the vendor's takes padded; by one matrix of all rows the vendor's stays. What follows it
is one kernel instead of three.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from rankhoist.compiler.graph.padded import Padded, by_block

# Rows, columns, and what is summed over at once: of seven tilings on an H200 the best, or within a tenth of it, for 64
# to 1024 summed over, by one matrix and by one of each request; and of three in float32.
SHARED_TILE = {"M": 128, "N": 128, "K": 64}
OWN_TILE = {"M": 128, "N": 64, "K": 64}
FLOAT32_TILE = {"M": 64, "N": 128, "K": 32}
LEAST = 16  # of each, for tensor cores
DEEP = 256  # summed over at most: of more, the vendor's product and a pass over it took less, on an H200
PASS = 1024  # elements of a program that only passes over memory
NORMED = 4096  # columns of a row at most that is normalised in one tile
QUERIES, KEYS, WIDEST = 64, 32, 256  # at once, and the widest that is kept of a query on the chip; not tuned
SHORT = (torch.bfloat16, torch.float16)


@cache
def available() -> bool:
    """Whether Triton is installed: it comes with builds of PyTorch for GPUs."""
    return importlib.util.find_spec("triton") is not None


def runs(x: Tensor) -> bool:
    """Whether kernels of ours take rows like these: on a GPU, outside of compilers and of autocast."""
    if torch.compiler.is_compiling() or not x.is_cuda or type(x) is not Tensor or not available():
        return False
    return x.dtype in (*SHORT, torch.float32) and not torch.is_autocast_enabled("cuda")


def multiplies(x: Tensor) -> bool:
    """Whether they multiply such rows by the one matrix of all: also where the vendor's product would copy them."""
    return runs(x) and (x.shape[-1] <= DEEP or x.stride(-1) != 1) and _short(x)


def _short(x: Tensor) -> bool:
    """Whether tensor cores multiply such numbers."""
    return x.dtype in SHORT or _precision() == "tf32"


def linear_from(x: Tensor, weight: Tensor, start: Tensor, owner: Tensor, activation: str = "") -> Tensor:
    """`[N, ..., k] x [n, k] + [R, n] (or [R, ..., n]) -> [N, ..., n]`."""
    made = x.new_empty(*x.shape[:-1], weight.shape[0])
    _rows(_apart(x), weight.t()[None, None], _apart(made), owner, start=start, activation=activation)
    return made


def request_linear(
    x: Tensor, m: Tensor, blocks: Padded, start: Tensor | None = None, onto: Tensor | None = None, activation: str = ""
) -> Tensor:
    """`[N, ..., k] x [R, k, n] (+ [R, n], or written over [N, ..., n] that it is added to) -> [N, ..., n]`."""
    made = x.new_empty(*x.shape[:-1], m.shape[-1]) if onto is None else onto
    m, start = by_block(m, blocks), start if start is None else by_block(start, blocks)
    _rows(_apart(x), m[:, None], _apart(made), blocks[1], blocks[0].shape[1], start, onto is not None, activation)
    return made


def request_matmul(x: Tensor, m: Tensor, blocks: Padded) -> Tensor:
    """`[N, B, m, k] x [R, B, k, n] -> [N, B, m, n]`."""
    made = x.new_empty(*x.shape[:-1], m.shape[-1])
    _rows(x, by_block(m, blocks), made, blocks[1], blocks[0].shape[1])
    return made


def attends(q: Tensor, v: Tensor) -> bool:
    """Whether they attend with such queries to such values."""
    return runs(q) and _short(q) and max(q.shape[-1], v.shape[-1]) <= WIDEST


def merged_attention(
    q: Tensor, k: Tensor, v: Tensor, own_k: Tensor, own_v: Tensor, scale: float, blocks: Padded | None
) -> Tensor:
    """`[N, h, Q, d]` over `[R, h, T, d]` and `[N, h, S, d]` -> `[N, h, Q, e]`, scores kept on the chip.

    Without blocks there is one request.
    """
    made = q.new_empty(*q.shape[:-1], v.shape[-1])
    if made.numel() == 0:
        return made
    from rankhoist.compiler.graph import tiles

    (count, heads, queries, width), result, requests = q.shape, v.shape[-1], k.shape[0]
    tile = {"M": _least(count * queries // requests, QUERIES), "K": _least(k.shape[2], KEYS)}
    if blocks is not None:
        k, v = by_block(k, blocks), by_block(v, blocks)
    owner, share = (q, 1) if blocks is None else (blocks[1], blocks[0].shape[1])
    sizes, unit = _in_units(width, result)
    outer, units = zip(*(_in_units(*t.stride()[:3]) for t in (q, k, v, own_k, own_v, made)), strict=True)
    named = dict(zip(("Q_UNIT", "K_UNIT", "V_UNIT", "A_UNIT", "B_UNIT", "O_UNIT"), units, strict=True))
    strides = [(*own, t.stride(3)) for own, t in zip(outer, (q, k, v, own_k, own_v, made), strict=True)]
    with torch.cuda.device_of(q):
        tiles.attend[(-(-count * queries // tile["M"]), heads)](
            q, k, v, own_k, own_v, owner, made, scale, count, queries, k.shape[2], own_k.shape[2], *sizes, share,
            *strides[0], *strides[1], *strides[2], *strides[3], *strides[4], *strides[5][:3],
            SIZE_UNIT=unit, **named,
            SHARED=blocks is None, PRECISION=_precision(), WIDEN=not q.is_cuda,
            D=_least(width, WIDEST), E=_least(result, WIDEST), **tile,
        )  # fmt: skip
    return made


def finished(made: Tensor, start: Tensor, owner: Tensor, activation: str = "") -> Tensor:
    """`[N, ..., n] + [R, n]` (or `[R, ..., n]`) through a function, written over `made`, which is contiguous."""
    if made.numel() == 0:
        return made
    from rankhoist.compiler.graph import tiles

    each, ((columns,), unit) = math.prod(made.shape[1:-1]), _in_units(made.shape[-1])
    (*outer, last), s_unit = _strides(start)
    with torch.cuda.device_of(made):
        tiles.finish[(-(-made.numel() // PASS),)](
            made, start, owner, made.numel(), each, columns, *outer, last,
            SIZE_UNIT=unit, S_UNIT=s_unit, ACTIVATION=activation, SIZE=PASS,
        )  # fmt: skip
    return made


def norms(x: Tensor, shape: Sequence[int]) -> bool:
    """Whether they normalise such rows: PyTorch's own kernel takes ten times as long for narrow ones."""
    return len(shape) == 1 and shape[0] <= NORMED and runs(x)


def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool) -> Tensor:
    """Layer norm of `[..., n]`, or where it is not `centred` root-mean-square norm."""
    x, made = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    if made.numel() == 0:
        return made
    from rankhoist.compiler.graph import tiles

    width = x.shape[-1]
    count, ((columns,), unit), (rows, wide) = x.numel() // width, _in_units(width), _passed(width, NORMED)
    with torch.cuda.device_of(x):
        tiles.norm[(-(-count // rows),)](
            x, x if weight is None else weight, x if bias is None else bias, made, count, columns, eps, SIZE_UNIT=unit,
            WEIGHT=weight is not None, BIAS=bias is not None, CENTRED=centred, ROWS=rows, WIDTH=wide,
        )  # fmt: skip
    return made


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:  # fmt: skip
    """ATen's own, by our kernel where that is faster."""
    if norms(x, shape):
        return norm(x, weight, bias, eps, centred=True)
    return torch.layer_norm(x, shape, weight, bias, eps, cudnn_enable)


def rms_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """The same of root-mean-square norm."""
    if eps is not None and norms(x, shape):
        return norm(x, weight, None, eps, centred=False)
    return torch.rms_norm(x, shape, weight, eps)


def repeats(x: Tensor) -> bool:
    """Whether they repeat such rows: PyTorch's own kernel does so at the memory's speed where rows are aligned."""
    return x.dim() > 1 and math.prod(x.shape[1:]) * x.element_size() % 16 != 0 and runs(x)


def repeat(x: Tensor, owner: Tensor) -> Tensor:
    """`[R, ...] -> [N, ...]` by owner."""
    x, made = x.contiguous(), x.new_empty(owner.shape[0], *x.shape[1:])
    if made.numel() == 0:
        return made
    from rankhoist.compiler.graph import tiles

    width = math.prod(x.shape[1:])
    ((columns,), unit), (rows, wide) = _in_units(width), _passed(width, PASS)
    with torch.cuda.device_of(x):
        tiles.repeat[(-(-owner.shape[0] // rows), -(-width // wide))](
            x, owner, made, owner.shape[0], columns, SIZE_UNIT=unit, ROWS=rows, WIDTH=wide
        )
    return made


def _passed(width: int, most: int) -> tuple[int, int]:
    """How many rows a program passes over, and how many columns of them, the power of two that holds all or `most`."""
    wide = min(1 << (width - 1).bit_length(), most)
    return max(PASS * 4 // wide, 1), wide


def _rows(
    x: Tensor, m: Tensor, out: Tensor, owner: Tensor, share: int = 1, start: Tensor | None = None, onto: bool = False,
    activation: str = "",
) -> None:  # fmt: skip
    """`x [N, B, E, k]`, `m [R, B, k, n]`, `out [N, B, E, n]`; the owner of a row is `owner // share`."""
    (count, batch, each, inner), columns = x.shape, m.shape[-1]
    if out.numel() == 0:
        return
    from rankhoist.compiler.graph import tiles

    requests, shared = m.shape[0], m.shape[0] == 1
    fewest = count * each if shared else count * each // requests
    most = FLOAT32_TILE if x.dtype is torch.float32 else SHARED_TILE if shared else OWN_TILE
    tile = {"M": _least(fewest, most["M"]), "N": _least(columns, most["N"]), "K": _least(inner, most["K"])}
    grid = (-(-count * each // tile["M"]), -(-columns // tile["N"]), batch)
    ((inner,), k_unit), ((columns,), n_unit) = _in_units(inner), _in_units(columns)
    (x_strides, x_unit), (m_strides, m_unit) = (_in_units(*t.stride()[:2]) for t in (x, m))
    ((x_each,), each_unit), ((x_inner,), step_unit) = (_in_units(x.stride(axis)) for axis in (2, 3))
    ((m_inner,), inner_unit), ((m_column,), column_unit) = (_in_units(m.stride(axis)) for axis in (2, 3))
    s_strides, s_unit = ((0, 0, 0), 1) if start is None else _strides(start)
    o_strides, o_unit = _in_units(*out.stride()[:3])
    with torch.cuda.device_of(x):
        tiles.rows[grid](
            x, m, out if start is None else start, owner, out, count, each, inner, columns, share,
            *x_strides, x_each, x_inner, *m_strides, m_inner, m_column, *s_strides, *o_strides,
            K_UNIT=k_unit, N_UNIT=n_unit, X_UNIT=x_unit, EACH_UNIT=each_unit, STEP_UNIT=step_unit, M_UNIT=m_unit,
            INNER_UNIT=inner_unit, COLUMN_UNIT=column_unit, S_UNIT=s_unit, O_UNIT=o_unit,
            SHARED=shared, START=start is not None, ONTO=onto, ACTIVATION=activation, PRECISION=_precision(),
            WIDEN=not x.is_cuda, **tile,
        )  # fmt: skip


def _strides(start: Tensor) -> tuple[tuple[int, ...], int]:
    """Of `[R, n]` or `[R, ..., n]` by owner and part of a row, in units, and by column; and the unit."""
    own = (start.stride(0), 0, start.stride(1)) if start.dim() == 2 else start.flatten(1, -2).stride()
    outer, unit = _in_units(*own[:2])
    return (*outer, own[2]), unit


def _in_units(*numbers: int) -> tuple[tuple[int, ...], int]:
    """Numbers as multiples of a power of two, and it: see `tiles`. 1 is one 1, which Triton knows itself."""
    unit = 16
    while any(n % unit for n in numbers):
        unit //= 2
    return tuple(n // unit for n in numbers), unit


def _least(size: int, most: int) -> int:
    """The power of two that holds as many, within limits."""
    return max(LEAST, min(most, 1 << max(size - 1, 0).bit_length()))


def _precision() -> str:
    """How float32 is multiplied, by PyTorch's own switch."""
    matmul: Any = torch.backends.cuda.matmul
    return "tf32" if matmul.fp32_precision == "tf32" else "ieee"


def _apart(x: Tensor) -> Tensor:
    """`[N, ..., k] -> [N, 1, E, k]`: a view, but for rows that are no view of it."""
    return x.reshape(x.shape[0], 1, math.prod(x.shape[1:-1]), x.shape[-1])
