"""The few operators of emitted graphs that ATen does not have: they join request-rate with candidate-rate tensors.

`R` requests own contiguous blocks of the `N` rows. `owner` is the request of each row (`[N]`), or `None` when R = 1:
then one row broadcasts and nothing is gathered. `offsets` are the R + 1 block boundaries, or `None` when R = 1; or in
their place the padded blocks of all requests (see `padded`), which need no loop over requests.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rankhoist.compiler.graph import fused, padded
from rankhoist.compiler.graph.activations import through
from rankhoist.compiler.graph.padded import Padded
from rankhoist.compiler.graph.products import by_vectors

Offsets = Tensor | Padded | None
SIDE_BY_SIDE = 512  # elements of a softmax over few, from which on rows side by side take less time, as measured


def spread(x: Tensor, owner: Tensor | None) -> Tensor:
    """`[R, ...]` -> `[N, ...]`, or `[1, ...]` for a single request, which broadcasts against rows."""
    return x if owner is None else x.index_select(0, owner)


def repeat_rows(x: Tensor, owner: Tensor | None, rows: int) -> Tensor:
    """`[R, ...]` -> `[N, ...]`: every row of its own, for operators that cannot broadcast (a view when R = 1)."""
    if owner is not None:
        return fused.repeat(x, owner) if fused.repeats(x) else x.index_select(0, owner)
    return x if rows == 1 else x.expand(rows, *x.shape[1:])


def gathered(x: Tensor) -> Tensor:
    """`[M, ...]` of all items -> `[N, ...]` of a call's candidates. A stage is given the rows, read from a store."""
    return x


def opaque(module: Callable[[list[Tensor]], list[Tensor]], tensors: list[Tensor]) -> list[Tensor]:
    """A call of a module that is kept as it is: a value of its own, which a stage is given."""
    return module(tensors)


def repeat_bags(values: Tensor, lengths: Tensor, owner: Tensor | None, rows: int) -> Tensor:
    """The bags `[total, ...]` of R requests, `lengths [R]`, once per row of each: `[total of N rows, ...]`."""
    if owner is None:
        return values.repeat(rows, *[1] * (values.dim() - 1))
    own, starts = lengths.index_select(0, owner), (lengths.cumsum(0) - lengths).index_select(0, owner)
    moves = torch.repeat_interleave(starts - own.cumsum(0) + own, own)
    return values.index_select(0, moves + torch.arange(moves.shape[0], device=moves.device))


def bounds(lengths: Tensor, first: bool, last: bool) -> Tensor:
    """Where bags lie, `[..., rows]` -> `[..., rows + 1]`; perhaps without the `first` begin or the `last` end."""
    ends = lengths.cumsum(-1)
    if first and not last:
        return ends - lengths
    if first:
        ends = F.pad(ends, (1, 0))
    return ends if last else ends[..., :-1]


def number(x: Tensor) -> int | float:
    """The one number in a tensor."""
    return x.item()


def asserted(x: Tensor, condition: Tensor, message: str) -> Tensor:
    """`x`, if the condition holds."""
    torch._assert_async(condition, message)
    return x


def linear_from(x: Tensor, weight: Tensor, start: Tensor, owner: Tensor | None, activation: str = "") -> Tensor:
    """`start` of the row's request plus a weight times the row: `[N, ..., k] x [n, k] + [R, n] -> [N, ..., n]`.

    `start` may have all axes of the result, `[R, ..., n]`.
    """
    if owner is None:
        made = F.linear(x, weight, start[0]) if start.dim() == 2 else F.linear(x, weight).add_(start)
        return through(made, activation)
    if fused.multiplies(x):
        return fused.linear_from(x, weight, start, owner, activation)
    return _started(F.linear(x, weight), start, owner, activation)


def linear_onto(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`[N, ..., n] + [N, ..., k] x [n, k] -> [N, ..., n]`."""
    return torch.addmm(_flat(total), _flat(x), weight.t()).view(total.shape)


def linear_onto_(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The same, written over `total`."""
    flat = _flat(total)
    torch.addmm(flat, _flat(x), weight.t(), out=flat)
    return total


def scaled_from(x: Tensor, scale: Tensor, start: Tensor) -> Tensor:
    """`start + x * scale`, of which both may broadcast against x."""
    return torch.addcmul(start, x, scale)


def scaled_from_(x: Tensor, scale: Tensor, start: Tensor) -> Tensor:
    """The same, written over `x`."""
    return torch.addcmul(start, x, scale, out=x)


def softmax_of_few(x: Tensor) -> Tensor:
    """Softmax along the last axis, `[N, ..., n]`, side by side for many rows: a vector is wider than n."""
    if torch.compiler.is_compiling() or x.numel() < SIDE_BY_SIDE:
        return torch.softmax(x, -1)
    return torch.softmax(x.movedim(-1, 0).contiguous(), 0).movedim(0, -1)


def request_linear(x: Tensor, m: Tensor, offsets: Offsets) -> Tensor:
    """Rows times the matrix of their request: `[N, ..., k] x [R, k, n] -> [N, ..., n]`."""
    if offsets is None:
        return torch.matmul(x, m[0])
    if isinstance(offsets, tuple):
        return fused.request_linear(x, m, offsets) if fused.runs(x) else padded.linear(x, m, offsets)
    result = x.new_empty(*x.shape[:-1], m.shape[-1])
    for r, (a, b) in enumerate(itertools.pairwise(offsets.tolist())):
        torch.mm(_flat(x[a:b]), m[r], out=_flat(result[a:b]))
    return result


def request_linear_from(
    x: Tensor, m: Tensor, start: Tensor, owner: Tensor | None, offsets: Offsets, activation: str = ""
) -> Tensor:
    """`start` of the row's request plus the row times its matrix: `[N, ..., k] x [R, k, n] + [R, n] -> [N, ..., n]`."""
    if owner is None:
        return through(torch.addmm(start, _flat(x), m[0]).view(*x.shape[:-1], m.shape[-1]), activation)
    if isinstance(offsets, tuple) and fused.runs(x):
        return fused.request_linear(x, m, offsets, start, activation=activation)
    return _started(request_linear(x, m, offsets), start, owner, activation)


def request_linear_onto(total: Tensor, x: Tensor, m: Tensor, offsets: Offsets) -> Tensor:
    """`[N, ..., n] + [N, ..., k] x [R, k, n] -> [N, ..., n]`."""
    if offsets is None:
        return torch.addmm(_flat(total), _flat(x), m[0]).view(total.shape)
    return request_linear_onto_(total.clone(memory_format=torch.contiguous_format), x, m, offsets)


def request_linear_onto_(total: Tensor, x: Tensor, m: Tensor, offsets: Offsets) -> Tensor:
    """The same, written over `total`."""
    if isinstance(offsets, tuple):
        if fused.runs(x):
            return fused.request_linear(x, m, offsets, onto=total)
        return total.add_(padded.linear(x, m, offsets))
    bounds = [0, total.shape[0]] if offsets is None else offsets.tolist()
    for r, (a, b) in enumerate(itertools.pairwise(bounds)):
        flat = _flat(total[a:b])
        torch.addmm(flat, _flat(x[a:b]), m[r], out=flat)
    return total


def read_tables(table: Tensor, ids: Tensor, starts: Tensor, sizes: Tensor) -> Tensor:
    """Rows of F tables that lie one below the other in `table`: ids `[N, F]` -> `[N, F, D]`.

    An id that its own table lacks is an error: compiled code and other devices are given one that no table has.
    """
    return _rows_of(table, ids, starts, sizes, "an id is outside of its embedding table")


def _rows_of(rows: Tensor, index: Tensor, starts: Tensor, sizes: Tensor | int, problem: str) -> Tensor:
    """Rows of tables that lie one below the other; `starts` and `sizes` say of every index where its table does."""
    if torch.compiler.is_compiling() or index.device.type != "cpu":
        inside = (index >= 0) & (index < sizes)
        return F.embedding(torch.where(inside, index + starts, rows.shape[0]), rows)
    if index.shape[0]:
        low, high = torch.aminmax(index, dim=0)
        if bool((low < 0).any()) or bool((high >= sizes).any()):
            raise IndexError(problem)
    return F.embedding(index + starts, rows)


def request_rows(x: Tensor, index: Tensor, owner: Tensor | None) -> Tensor:
    """Rows of tables of the row's request: `[R, B, T, D]` at `[N, B, K]` -> `[N, B, K, D]`.

    An index that is out of range is an error, as in what this stands for.
    """
    _, tables, size, _ = x.shape
    if owner is None and tables == 1:
        return F.embedding(index, x[0, 0])
    starts = torch.arange(tables, device=x.device)[:, None] * size
    if owner is not None:
        starts = starts + owner[:, None, None] * (tables * size)
    return _rows_of(x.flatten(0, 2), index, starts, size, "an index is outside of what it reads")


def places(index: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """1 at the place that is read, else 0: `[..., K]` -> `[..., K, size]`. A product with it is a read instead."""
    return F.one_hot(index, size).to(dtype)


def request_matmul(x: Tensor, m: Tensor, offsets: Offsets) -> Tensor:
    """Rows times the matrix of their request: `[N, B, m, k] x [R, B, k, n] -> [N, B, m, n]`."""
    if offsets is None:
        return batched_matmul(x, m[0])
    if isinstance(offsets, tuple):
        return fused.request_matmul(x, m, offsets) if fused.runs(x) else padded.matmul(x, m, offsets)
    bounds = offsets.tolist()
    parts = [batched_matmul(x[a:b], m[r]) for r, (a, b) in enumerate(itertools.pairwise(bounds)) if a < b]
    return torch.cat(parts) if parts else x.new_empty(0, *x.shape[1:-1], m.shape[-1])


def request_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, offsets: Offsets) -> Tensor:
    """Queries over keys and values of their request: `[N, h, Q, d], [R, h, T, d], [R, h, T, e] -> [N, h, Q, e]`."""
    if offsets is None:
        return padded.attended(q[None], k, v, scale)[0]
    if isinstance(offsets, tuple):
        return padded.attention(q, k, v, scale, offsets)
    bounds = enumerate(itertools.pairwise(offsets.tolist()))
    own = [padded.attended(q[None, a:b], k[r : r + 1], v[r : r + 1], scale)[0] for r, (a, b) in bounds if a < b]
    return torch.cat(own) if own else q.new_empty(0, *q.shape[1:-1], v.shape[-1])


def merged_attention(
    q: Tensor, k: Tensor, v: Tensor, own_k: Tensor, own_v: Tensor, scale: float, offsets: Offsets
) -> Tensor:
    """Queries over keys of their request and over their own, by one softmax: `[N, h, Q, d]` over `[R, h, T, d]` and
    `[N, h, S, d]`, with values `[R, h, T, e]` and `[N, h, S, e]` -> `[N, h, Q, e]`.
    """
    if not isinstance(offsets, Tensor) and fused.attends(q, v):
        return fused.merged_attention(q, k, v, own_k, own_v, scale, offsets)
    return padded.over_both(request_matmul, q, k, v, own_k, own_v, scale, offsets)


def batched_matmul(x: Tensor, m: Tensor) -> Tensor:
    """One matrix per batch entry, the same for all rows: `[N, B, m, k] x [B, k, n] -> [N, B, m, n]`, as one product."""
    rows, batch, width, inner = x.shape
    if batch == 1:
        return torch.mm(x.reshape(rows * width, inner), m[0]).view(rows, 1, width, m.shape[-1])
    if by_vectors(inner, m.shape[-1], x.dtype) and x.device.type == "cpu":
        return (x * m.transpose(1, 2)).sum(-1, keepdim=True)
    flat = x.transpose(0, 1).reshape(batch, rows * width, inner)
    return torch.bmm(flat, m).view(batch, rows, width, m.shape[-1]).transpose(0, 1)


def norm_by_counts(
    x: Tensor, offsets: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm of `[R, ...]` along all axes but `axis`, where the row of a request counts once per candidate of it.

    Returns the rows, and mean and unbiased variance of the batch.
    """
    counts = offsets.diff().to(x).view(-1, *[1] * (x.dim() - 1))
    others = [i for i in range(x.dim()) if i != axis]
    total = counts.sum() * (x[:1].numel() // x.shape[axis])
    mean = (x * counts).sum(others, keepdim=True) / total
    centred = x - mean
    var = (centred.square() * counts).sum(others, keepdim=True) / total
    y = centred * (var + eps).rsqrt()
    if weight is not None and bias is not None:
        y = y * weight.view(mean.shape) + bias.view(mean.shape)
    return y, mean.detach().flatten(), (var.detach() * (total / (total - 1))).flatten()


def dropped(x: Tensor, share: float, mask: str) -> Tensor:
    """Dropout; `mask` is the name of what is drawn: two draws are never one."""
    return F.dropout(x, share)


def _flat(x: Tensor) -> Tensor:
    """`[..., k] -> [rows, k]`."""
    return x if x.dim() == 2 else x.flatten(0, -2)


def _started(made: Tensor, start: Tensor, owner: Tensor, activation: str) -> Tensor:
    """`[N, ..., n] + [R, n]` (or `[R, ..., n]`) of each row's request, through a function, written over `made`."""
    if fused.runs(made):
        return fused.finished(made, start, owner, activation)
    own = start.index_select(0, owner)
    own = own.view(owner.shape[0], *[1] * (made.dim() - own.dim()), *own.shape[1:])
    return through(made.add_(own), activation)
