"""Kernels in Triton: one program makes one tile of the result. Only `fused` imports this, where Triton is installed.

Products sum in float32 whatever they are given, and round once, when a tile is written.

Triton reads as many elements at once as it knows sizes and strides to be multiples of; of numbers that are no multiples
of 16 it knows nothing. So they are given in units, the largest power of two up to 16 that divides them, and the units
(named `..._UNIT`) are constants.
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
    K_UNIT: tl.constexpr, N_UNIT: tl.constexpr, X_UNIT: tl.constexpr, EACH_UNIT: tl.constexpr, STEP_UNIT: tl.constexpr,
    M_UNIT: tl.constexpr, INNER_UNIT: tl.constexpr, COLUMN_UNIT: tl.constexpr, S_UNIT: tl.constexpr,
    O_UNIT: tl.constexpr,
    SHARED: tl.constexpr, START: tl.constexpr, ONTO: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    WIDEN: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Rows times a matrix of all, or of their owner: see `fused`. `WIDEN`: Triton's interpreter multiplies no bfloat16.

    The rows of an owner are neighbours: a tile meets the matrices of its first row's owner to its last row's.
    """
    inner, columns = inner * K_UNIT, columns * N_UNIT
    x_row, x_batch = x_row * X_UNIT, x_batch * X_UNIT
    x_each, x_inner = x_each * EACH_UNIT, x_inner * STEP_UNIT
    m_owner, m_batch = m_owner * M_UNIT, m_batch * M_UNIT
    m_inner, m_column = m_inner * INNER_UNIT, m_column * COLUMN_UNIT
    s_owner, s_each = s_owner * S_UNIT, s_each * S_UNIT
    o_row, o_batch, o_each = o_row * O_UNIT, o_batch * O_UNIT, o_each * O_UNIT
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
            made = tl.zeros((M, N), tl.float32)
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
                made = tl.dot(left, right, made, input_precision=PRECISION)
            total = tl.where(mine[:, None], made, total)  # 0 times what is no number in another's matrix is none
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
    out, start, owner, elements, each, columns, s_owner, s_each, s_column,
    SIZE_UNIT: tl.constexpr, S_UNIT: tl.constexpr, ACTIVATION: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """`out [rows * each, columns]` plus the `start` of the row's owner, through a function, written over it."""
    columns, s_owner, s_each = columns * SIZE_UNIT, s_owner * S_UNIT, s_each * S_UNIT
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside, column = at < elements, at % columns
    row = at // columns
    own, part = tl.load(owner + row // each, mask=inside, other=0), row % each
    total = tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(start + own * s_owner + part * s_each + column * s_column, mask=inside, other=0.0)
    tl.store(out + at, activated(total, ACTIVATION).to(out.dtype.element_ty), mask=inside)


@triton.jit
def attend(
    q, k, v, own_k, own_v, owner, out, scale, count, queries, keys, own_keys, width, result, share,
    q_row, q_head, q_query, q_width, k_owner, k_head, k_key, k_width, v_owner, v_head, v_key, v_width,
    a_row, a_head, a_key, a_width, b_row, b_head, b_key, b_width, o_row, o_head, o_query,
    SIZE_UNIT: tl.constexpr, Q_UNIT: tl.constexpr, K_UNIT: tl.constexpr, V_UNIT: tl.constexpr, A_UNIT: tl.constexpr,
    B_UNIT: tl.constexpr, O_UNIT: tl.constexpr,
    SHARED: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr, M: tl.constexpr, K: tl.constexpr,
    D: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Queries over keys of their owner, some at a time, then over a row's own, one at a time: see `fused`.

    Of what was seen so far a query keeps the highest score, the sum of `exp(score - highest)`, and as much of the
    values; where a score is higher, what is kept is scaled down to it.
    """
    width, result = width * SIZE_UNIT, result * SIZE_UNIT
    q_row, q_head, q_query = q_row * Q_UNIT, q_head * Q_UNIT, q_query * Q_UNIT
    k_owner, k_head, k_key = k_owner * K_UNIT, k_head * K_UNIT, k_key * K_UNIT
    v_owner, v_head, v_key = v_owner * V_UNIT, v_head * V_UNIT, v_key * V_UNIT
    a_row, a_head, a_key = a_row * A_UNIT, a_head * A_UNIT, a_key * A_UNIT
    b_row, b_head, b_key = b_row * B_UNIT, b_head * B_UNIT, b_key * B_UNIT
    o_row, o_head, o_query = o_row * O_UNIT, o_head * O_UNIT, o_query * O_UNIT
    at = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    head = tl.program_id(1).to(tl.int64)
    inside, row, part = at < count * queries, at // queries, at % queries
    wide, broad = tl.arange(0, D), tl.arange(0, E)
    in_width, in_result = wide < width, broad < result
    here, made_here = inside[:, None] & in_width[None, :], inside[:, None] & in_result[None, :]
    query = tl.load(
        q + (row * q_row + head * q_head + part * q_query)[:, None] + wide[None, :] * q_width, mask=here, other=0.0
    )
    if WIDEN:
        query = query.to(tl.float32)
    own = row * 0
    first, last = 0, 0
    if not SHARED:
        own = tl.load(owner + row, mask=inside, other=0) // share
        last = tl.max(own, 0)
        first = tl.min(tl.where(inside, own, last), 0)
    highest = tl.full((M,), float("-inf"), tl.float32)
    total, made = tl.zeros((M,), tl.float32), tl.zeros((M, E), tl.float32)
    for request in range(first, last + 1):
        mine = inside & (own == request)
        if tl.sum(mine.to(tl.int32)) > 0:
            for start in range(0, keys, K):
                step = start + tl.arange(0, K)
                there = step < keys
                key = tl.load(
                    k + request * k_owner + head * k_head + step[None, :] * k_key + wide[:, None] * k_width,
                    mask=in_width[:, None] & there[None, :], other=0.0,
                )  # fmt: skip
                value = tl.load(
                    v + request * v_owner + head * v_head + step[:, None] * v_key + broad[None, :] * v_width,
                    mask=there[:, None] & in_result[None, :], other=0.0,
                )  # fmt: skip
                if WIDEN:
                    key, value = key.to(tl.float32), value.to(tl.float32)
                score = tl.dot(query, key, input_precision=PRECISION) * scale
                score = tl.where(mine[:, None] & there[None, :], score, float("-inf"))
                peak = tl.maximum(highest, tl.max(score, 1))
                base = tl.where(peak == float("-inf"), 0.0, peak)  # nothing was seen: -inf - -inf is no number
                shrunk, weight = tl.exp(highest - base), tl.exp(score - base[:, None])
                seen = made * shrunk[:, None] + tl.dot(weight.to(value.dtype), value, input_precision=PRECISION)
                made = tl.where(mine[:, None], seen, made)  # another's values may be no numbers
                total = total * shrunk + tl.sum(weight, 1)
                highest = peak
    for step in range(0, own_keys):
        key = tl.load(
            own_k + (row * a_row + head * a_head + step * a_key)[:, None] + wide[None, :] * a_width,
            mask=here,
            other=0.0,
        )
        value = tl.load(
            own_v + (row * b_row + head * b_head + step * b_key)[:, None] + broad[None, :] * b_width, mask=made_here,
            other=0.0,
        )  # fmt: skip
        score = tl.sum(query.to(tl.float32) * key.to(tl.float32), 1) * scale
        peak = tl.maximum(highest, score)
        base = tl.where(peak == float("-inf"), 0.0, peak)
        shrunk, weight = tl.exp(highest - base), tl.exp(score - base)
        made = made * shrunk[:, None] + weight[:, None] * value.to(tl.float32)
        total = total * shrunk + weight
        highest = peak
    tl.store(
        out + (row * o_row + head * o_head + part * o_query)[:, None] + broad[None, :],
        (made / total[:, None]).to(out.dtype.element_ty), mask=made_here,
    )  # fmt: skip


@triton.jit
def norm(
    x, weight, bias, out, count, width, eps,
    SIZE_UNIT: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, CENTRED: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Rows `[count, width]` of whole tiles, less their mean if `CENTRED`, over the root of their mean square."""
    width = width * SIZE_UNIT
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    within = column < width
    both, at = (row < count)[:, None] & within[None, :], row[:, None] * width + column[None, :]
    made = tl.load(x + at, mask=both, other=0.0).to(tl.float32)
    if CENTRED:
        made = tl.where(both, made - (tl.sum(made, 1) / width)[:, None], 0.0)
    made = made * tl.rsqrt(tl.sum(made * made, 1) / width + eps)[:, None]
    if WEIGHT:
        made = made * tl.load(weight + column, mask=within, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        made += tl.load(bias + column, mask=within, other=0.0).to(tl.float32)[None, :]
    tl.store(out + at, made.to(out.dtype.element_ty), mask=both)


@triton.jit
def repeat(x, owner, out, count, width, SIZE_UNIT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """`out [count, width]` is `x [R, width]` by owner."""
    width = width * SIZE_UNIT
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column, inside = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH), row < count
    own, both = tl.load(owner + row, mask=inside, other=0), inside[:, None] & (column < width)[None, :]
    made = tl.load(x + own[:, None] * width + column[None, :], mask=both, other=0.0)
    tl.store(out + row[:, None] * width + column[None, :], made, mask=both)
