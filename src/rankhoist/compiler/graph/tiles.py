"""Kernels in Triton: one program makes one tile of the result. Only `fused` imports this, where Triton is installed.

Products sum in float32 whatever they are given, and round once, when a tile is written.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """A float32 tile through a function of `kernels.ACTIVATIONS`, or as it is."""
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "sigmoid":
        x = tl.sigmoid(x)
    elif ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return x


@triton.jit
def rows(
    x, m, start, owner, out, count, each, inner, columns, share,
    x_row, x_batch, x_each, x_inner, m_owner, m_batch, m_inner, m_column, s_owner, s_each, s_column,
    o_row, o_batch, o_each,
    SHARED: tl.constexpr, START: tl.constexpr, ONTO: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Rows times a matrix of all, or of their owner: see `fused`. `WIDEN`: Triton's interpreter multiplies no bfloat16.

    The rows of an owner are neighbours: a tile meets the matrices of its first row's owner to its last row's.
    """
    at = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    column = tl.program_id(1) * N + tl.arange(0, N)
    batch = tl.program_id(2).to(tl.int64)
    inside, within = at < count * each, column < columns
    row, part = at // each, at % each
    own = tl.load(owner + row, mask=inside, other=0) // share
    x_at = x + row * x_row + batch * x_batch + part * x_each
    if SHARED:
        first, last = 0, 0
    else:
        last = tl.max(own, 0)
        first = tl.min(tl.where(inside, own, last), 0)
    total = tl.zeros((M, N), tl.float32)
    for request in range(first, last + 1):
        mine = inside if SHARED else inside & (own == request)
        if tl.sum(mine.to(tl.int32)) > 0:  # an owner without rows has a matrix that nobody reads
            m_at = m + request * m_owner + batch * m_batch + column * m_column
            for k in range(0, inner, K):
                step = k + tl.arange(0, K)
                left = tl.load(
                    x_at[:, None] + step[None, :] * x_inner, mask=mine[:, None] & (step < inner)[None, :], other=0.0
                )
                right = tl.load(
                    m_at[None, :] + step[:, None] * m_inner, mask=(step < inner)[:, None] & within[None, :], other=0.0
                )
                if WIDEN:
                    left, right = left.to(tl.float32), right.to(tl.float32)
                total = tl.dot(left, right, total, input_precision=PRECISION)
    both = inside[:, None] & within[None, :]
    if START:
        total += tl.load(
            start + (own * s_owner + part * s_each)[:, None] + column[None, :] * s_column, mask=both, other=0.0
        )
    o_at = out + (row * o_row + batch * o_batch + part * o_each)[:, None] + column[None, :]
    if ONTO:
        total += tl.load(o_at, mask=both, other=0.0)
    tl.store(o_at, activated(total, ACTIVATION).to(out.dtype.element_ty), mask=both)


@triton.jit
def finish(
    out, start, owner, elements, each, columns, s_owner, s_each, s_column, ACTIVATION: tl.constexpr, SIZE: tl.constexpr
):
    """`out [rows * each, columns]` plus the `start` of the row's owner, through a function, written over it."""
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside, column = at < elements, at % columns
    row = at // columns
    own, part = tl.load(owner + row // each, mask=inside, other=0), row % each
    total = tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(start + own * s_owner + part * s_each + column * s_column, mask=inside, other=0.0)
    tl.store(out + at, activated(total, ACTIVATION).to(out.dtype.element_ty), mask=inside)
