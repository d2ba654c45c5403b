"""Kernels of stages that are trained: what joins requests with candidates has a lean gradient.

Both `owner` and `offsets` are `Counts` here. Where all requests have as many candidates, rows `[N, ...]` are a view
`[R, N / R, ...]`, products by a matrix per request are one `bmm`, and the gradient of a context row is a sum along an
axis. Otherwise rows are split by request once per operator: a slice per request would have a gradient as large as all
rows each.

Results are new, or were handed over to be written over, and no views to autograd: a function that is written over one
would copy its gradient. Nothing here keeps a result for its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rankhoist.compiler.graph import kernels, padded
from rankhoist.compiler.graph.node import aten
from rankhoist.errors import InputError


@dataclass(frozen=True)
class Counts:
    """How many candidates each request of a call has; `each` is this number where it is the same for all."""

    numbers: Sequence[int]
    each: int | None

    @staticmethod
    def of(offsets: Tensor) -> Counts:
        """From the R + 1 boundaries of the requests' blocks."""
        numbers = offsets.diff().tolist()
        return Counts(numbers, numbers[0] if numbers and len(set(numbers)) == 1 else None)


def spread(x: Tensor, counts: Counts) -> Tensor:
    """`[R, ...]` -> `[N, ...]`, or `[1, ...]` for a single request, which broadcasts against rows."""
    return x if len(counts.numbers) == 1 else _repeated(x, counts)


def repeat_rows(x: Tensor, counts: Counts, rows: int) -> Tensor:
    """`[R, ...]` -> `[N, ...]`: every row of its own (a view when R = 1)."""
    return x.expand(rows, *x.shape[1:]) if len(counts.numbers) == 1 else _repeated(x, counts)


def _repeated(x: Tensor, counts: Counts) -> Tensor:
    if not counts.numbers:
        return x  # of no request, which no split makes
    if counts.each is not None:
        return x.unsqueeze(1).expand(-1, counts.each, *x.shape[1:]).flatten(0, 1)
    rows = [row.expand(n, *x.shape[1:]) for row, n in zip(x.split(1), counts.numbers, strict=True)]
    return torch.cat(rows)


def repeat_bags(values: Tensor, lengths: Tensor, counts: Counts, rows: int) -> Tensor:
    """The bags of R requests once per row of each; see `kernels.repeat_bags`."""
    owner = None if len(counts.numbers) == 1 else _owner(counts, values.device)
    return kernels.repeat_bags(values, lengths, owner, rows)


def _owner(counts: Counts, device: torch.device) -> Tensor:
    """Each row's request, `[N]`."""
    numbers = torch.tensor(counts.numbers, device=device)
    return torch.arange(len(numbers), device=device).repeat_interleave(numbers)


def broadcast(op: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, first: bool, counts: Counts) -> Tensor:
    """An elementwise `op`, perhaps written over x; one operand is `[N, ...]` (the `first`?), the other `[R, ...]`."""
    if len(counts.numbers) == 1:
        return op(x, y)
    if counts.each is None:
        return op(x, _repeated(y, counts)) if first else op(_repeated(x, counts), y)
    rows, own = (x, y) if first else (y, x)
    blocks, own = _shaped(rows, [len(counts.numbers), counts.each, *rows.shape[1:]]), own.unsqueeze(1)
    made = op(blocks, own) if first else op(own, blocks)
    return _shaped(made, [rows.shape[0], *made.shape[2:]]) if made.is_contiguous() else made.flatten(0, 1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`[..., k] x [n, k] + [n] -> [..., n]`; torch's own is a view where there are more than two axes."""
    if x.dim() <= 2:
        return F.linear(x, weight, bias)
    return _shaped(F.linear(x.reshape(-1, x.shape[-1]), weight, bias), [*x.shape[:-1], weight.shape[0]])


def linear_from(x: Tensor, weight: Tensor, start: Tensor, counts: Counts) -> Tensor:
    """`start` of the row's request plus a weight times the row: `[N, ..., k] x [n, k] + [R, n] -> [N, ..., n]`."""
    if len(counts.numbers) == 1:
        return F.linear(x, weight, start[0])
    return _plus_start(F.linear(x, weight), start, counts)


def _plus_start(y: Tensor, start: Tensor, counts: Counts) -> Tensor:
    """Written over y."""
    start = start.view(len(start), *[1] * (y.dim() - 2), start.shape[-1])
    return broadcast(aten.add_.Tensor, y, start, True, counts)


def linear_onto_(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`[N, ..., n] + [N, ..., k] x [n, k] -> [N, ..., n]`, written over `total`."""
    flat = _shaped(total, [-1, total.shape[-1]])
    return _shaped(flat.addmm_(x.reshape(-1, x.shape[-1]), weight.t()), total.shape)


def request_linear(x: Tensor, m: Tensor, counts: Counts) -> Tensor:
    """Rows times the matrix of their request: `[N, ..., k] x [R, k, n] -> [N, ..., n]`."""
    if len(counts.numbers) == 1:
        return torch.matmul(x, m[0])
    if counts.each is not None:
        return _shaped(torch.bmm(_blocks(x, m), m), [*x.shape[:-1], m.shape[-1]])
    parts = [torch.matmul(rows, own) for rows, own in zip(x.split(counts.numbers), m.unbind(), strict=True)]
    return _under(parts, [*x.shape[:-1], m.shape[-1]], x, m)


def _under(parts: Sequence[Tensor], shape: Sequence[int], *read: Tensor) -> Tensor:
    """Rows under rows; of no request nothing, of which what was `read` has a gradient all the same: zeros."""
    return torch.cat([*parts]) if parts else sum(t.sum() for t in read).expand(shape)  # type: ignore[union-attr]


def request_linear_from(x: Tensor, m: Tensor, start: Tensor, owner: Counts, counts: Counts) -> Tensor:
    """`start` of the row's request plus the row times its matrix: `[N, ..., k] x [R, k, n] + [R, n] -> [N, ..., n]`."""
    if counts.each is not None:
        made = torch.baddbmm(start.unsqueeze(1), _blocks(x, m), m)
        return _shaped(made, [*x.shape[:-1], m.shape[-1]])
    return _plus_start(request_linear(x, m, counts), start, owner)


def request_linear_onto(total: Tensor, x: Tensor, m: Tensor, counts: Counts) -> Tensor:
    """`[N, ..., n] + [N, ..., k] x [R, k, n] -> [N, ..., n]`."""
    if counts.each is not None:
        return _shaped(torch.baddbmm(_blocks(total, m), _blocks(x, m), m), total.shape)
    return total + request_linear(x, m, counts)


def request_linear_onto_(total: Tensor, x: Tensor, m: Tensor, counts: Counts) -> Tensor:
    """The same, written over `total`."""
    if counts.each is not None:
        blocks = _shaped(total, [len(m), _rows(total, m), m.shape[-1]])
        return _shaped(blocks.baddbmm_(_blocks(x, m), m), total.shape)
    return total.add_(request_linear(x, m, counts))


def _blocks(x: Tensor, m: Tensor) -> Tensor:
    """Rows `[N, ..., k]` by request, all of which have as many: `[R, rows, k]`."""
    return x.reshape(len(m), _rows(x, m), x.shape[-1])


def _rows(x: Tensor, m: Tensor) -> int:
    """Of each request, which is told: of no columns, any number of rows would do."""
    return math.prod(x.shape[:-1]) // len(m)


def _shaped(x: Tensor, shape: Sequence[int]) -> Tensor:
    """A view that is none to autograd; whoever writes over it hands over `x`."""
    return aten._unsafe_view.default(x, list(shape))  # type: ignore[no-any-return]


def request_rows(x: Tensor, index: Tensor, counts: Counts) -> Tensor:
    """Rows of tables of the row's request: `[R, B, T, D]` at `[N, B, K]` -> `[N, B, K, D]`."""
    if len(counts.numbers) == 1:
        return kernels.request_rows(x, index, None)
    return kernels.request_rows(x, index, _owner(counts, x.device))


def request_matmul(x: Tensor, m: Tensor, counts: Counts) -> Tensor:
    """Rows times the matrix of their request: `[N, B, m, k] x [R, B, k, n] -> [N, B, m, n]`."""
    if len(counts.numbers) == 1:
        return kernels.batched_matmul(x, m[0])
    pairs = zip(x.split(counts.numbers), m.unbind(), strict=True)
    parts = [kernels.batched_matmul(rows, own) for rows, own in pairs]
    return _under(parts, [*x.shape[:-1], m.shape[-1]], x, m)


def request_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, counts: Counts) -> Tensor:
    """Queries over keys and values of their request: `[N, h, Q, d], [R, h, T, d], [R, h, T, e] -> [N, h, Q, e]`."""
    if counts.each is not None:
        return padded.attended(q.unflatten(0, (k.shape[0], counts.each)), k, v, scale).flatten(0, 1)
    triples = zip(q.split(counts.numbers), k.unbind(), v.unbind(), strict=True)
    parts = [padded.attended(rows[None], a[None], b[None], scale)[0] for rows, a, b in triples if len(rows)]
    return _under(parts, [*q.shape[:-1], v.shape[-1]], q, k, v)


def merged_attention(
    q: Tensor, k: Tensor, v: Tensor, own_k: Tensor, own_v: Tensor, scale: float, counts: Counts
) -> Tensor:
    """See `kernels.merged_attention`."""
    return padded.over_both(request_matmul, q, k, v, own_k, own_v, scale, counts)


def norm_by_counts(
    x: Tensor, counts: Counts, weight: Tensor | None, bias: Tensor | None, eps: float, axis: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.norm_by_counts`."""
    _check_several([sum(counts.numbers), *x.shape[1:]])
    return kernels.norm_by_counts(x, torch.tensor([0, *counts.numbers]).cumsum(0), weight, bias, eps, axis)


def batch_norm(x: Tensor, *given: Any) -> Any:
    """The operator by vectors without strides, which torch's gradient on a CPU would read as if they had none."""
    return aten.batch_norm.default(x, *_in_rows(given))


def batch_norm_of_batch(x: Tensor, *given: Any) -> Any:
    """The same, by the statistics of the batch."""
    _check_several(x.shape)
    return aten._native_batch_norm_legit.no_stats(x, *_in_rows(given))


def batch_norm_of_batch_and_running(x: Tensor, *given: Any) -> Any:
    """The same, which returns new running statistics, too."""
    _check_several(x.shape)
    return aten._native_batch_norm_legit_functional.default(x, *_in_rows(given))


def _check_several(shape: Sequence[int]) -> None:
    """As layers of torch do, which a graph of operators leaves out.

    Raises:
        InputError: a channel has no two values, so that they have no variance.
    """
    values = math.prod([shape[0], *shape[2:]])
    if values < 2:
        raise InputError(
            f"a batch norm in training mode has {values} values per channel in a batch of {shape[0]} candidates, and "
            "takes the variance of two or more: leave such a batch out"
        )


def _in_rows(given: Sequence[Any]) -> list[Any]:
    return [a.contiguous() if isinstance(a, Tensor) else a for a in given]
