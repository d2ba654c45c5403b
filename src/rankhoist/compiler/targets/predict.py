"""What an operator of the intermediate graph takes on a CPU, by the profile of its machine for a dtype.

The constants were set on 2026-11-22 beside the built-in profiles of that day (AMD EPYC, one thread, torch 2.13.0+cpu):
CALLS beside version 1 of the profile, PASSES beside version 2, NEAR and ARRANGING beside version 3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from rankhoist.compiler.graph.node import Node, Rate, aten
from rankhoist.compiler.graph.operators import Timed, row
from rankhoist.compiler.graph.products import Pair, by_vectors, pairs
from rankhoist.compiler.targets.profile import Profile

CALLS = 12  # what a call of a hoisted model costs before its first operator, in calls of operators
PASSES = 6  # of a softmax or a norm over each of its rows, as measured
NEAR = 3  # times as fast: elements picked by one index, whose neighbours are picked with them, as measured
JOINED = 3  # times as fast: a run of a join, which is only copied, as measured
FAR = 2  # times as long as the profile's gather: rows of a store are not in the cache, as measured
MISS, LINE = 5e-8, 64  # seconds until a row of a store comes that is as long as a line of the cache, as measured
SHORT = (torch.bfloat16, torch.float16)  # counted as float32, in their own profile
ARRANGING = 4  # calls that an original einsum or convolution makes around its product


def start(profile: Profile) -> float:
    """Seconds of a call before its first operator."""
    return CALLS * profile.call


def kind(node: Node) -> Any:
    """All that the prediction depends on."""
    operands = tuple(
        (a.sizes, a.rate) if isinstance(a, Node) else None for a in node.args if not isinstance(a, list | tuple)
    )
    moved = node.args[0].args[1] if transposed(node) else None
    return node.op, node.rate, node.sizes, node.dtype, node.work, operands, tuple(moved or ())


def transposed(node: Node) -> bool:
    return node.op is aten.reshape.default and node.args[0].op is aten.permute.default


def seconds(node: Node, profile: Profile, candidates: Any, requests: Any, *, over: bool = False) -> Any:
    """Seconds of one operator in one call; work on weights alone is done before. `over`: over its operand's memory."""
    if node.rate is Rate.WEIGHT:
        return 0.0
    if isinstance(node.op, str):
        return profile.view  # an input is looked at before it is used
    rows, timed = candidates if node.rate.per_candidate else requests, row(node.op).timed
    if timed is Timed.ROWS:
        moved = np.where(np.asarray(requests) > 1, profile.gathers(bytes_of(node, rows)), 0.0)
        return profile.view + moved
    if timed is Timed.RESHAPE:
        return profile.view + _copy(node, profile, rows)
    if timed is Timed.VIEW:
        return profile.view
    if node.work.multiply_adds:
        return profile.call + PRODUCTS.get(timed, _original)(node, profile, np.asarray(rows, float), requests)
    if timed is Timed.PICK:
        near = 1 if sum(place is not None for place in node.args[1]) > 1 else NEAR
        return profile.call + profile.picks(bytes_of(node, rows)) / near
    if timed is Timed.KEPT:
        size = bytes_of(node, rows)
        return profile.call + FAR * profile.gathers(size) + MISS * rows * (size >= LINE * np.asarray(rows))
    if timed is Timed.GATHER:
        return profile.call + profile.gathers(bytes_of(node, rows))
    runs = profile.row * _runs(node) * np.asarray(rows, float)
    if timed in (Timed.FUNCTION, Timed.SOFTMAX):
        return profile.call + profile.functions(bytes_of(node, rows), over) + runs
    read: Any = functools.reduce(np.maximum, (bytes_of(a, rows) for a in node.args if isinstance(a, Node)), 0.0)
    if node.work.elements == 0 and np.max(read) == 0:
        return profile.view
    if row(node.op).serial:
        return profile.call + row(node.op).serial * profile.functions(read)
    return profile.call + profile.streams(np.maximum(bytes_of(node, rows), read / 2), over) + runs


def _runs(node: Node) -> float:
    """Per row, how often an operator starts anew on neighbouring elements: where it joins, repeats or adds up."""
    if node.op in (aten.cat.default, aten.stack.default):
        along = node.args[1] % (len(node.sizes) + 1) - 1  # of a row
        return len(node.args[0]) * math.prod(node.sizes[:along]) / JOINED
    if row(node.op).timed is Timed.NORM:
        along = node.args[1]  # the axes of a row that are normalised, or into how many groups
        return PASSES * (along if isinstance(along, int) else math.prod(node.sizes[: len(node.sizes) - len(along)]))
    shapes = [a.sizes for a in node.args if isinstance(a, Node) and a.rate is not Rate.WEIGHT and a.sizes]
    largest = max(shapes, key=math.prod, default=())
    if row(node.op).timed is Timed.SOFTMAX:
        return PASSES * math.prod(largest[:-1])
    if not largest or all(s == node.sizes for s in shapes):
        return 0
    grows = math.prod(node.sizes) >= math.prod(largest)
    return _broadcast_runs(shapes, node.sizes) if grows else math.prod(largest[:-1])


def _broadcast_runs(shapes: Sequence[Sequence[int]], result: Sequence[int]) -> int:
    """Neighbouring axes that every operand has, or repeats, together are one axis of memory."""
    padded = [(1,) * (len(result) - len(s)) + tuple(s) for s in shapes]
    axes = [(size, tuple(s[i] == size for s in padded)) for i, size in enumerate(result) if size != 1]
    while len(axes) > 1 and axes[-1][1] == axes[-2][1]:
        axes[-2:] = [(axes[-2][0] * axes[-1][0], axes[-1][1])]
    return math.prod(size for size, _ in axes[:-1])


def bytes_of(node: Node, rows: Any) -> Any:
    """Of the node's tensor, had it so many rows (a weight has none), as a profile counts them."""
    size = math.prod(node.sizes) * (4 if node.dtype in SHORT else node.dtype.itemsize)
    return float(size) if node.rate is Rate.WEIGHT else size * np.asarray(rows, float)


def _copy(node: Node, profile: Profile, rows: Any) -> Any:
    """A reshape after a transposition copies, unless only axes of size 1 moved, came or went."""
    source = node.args[0]
    if not transposed(node) or wide(node.sizes) == wide(source.sizes):
        return 0.0
    axes, skip = list(source.args[1]), len(source.args[1]) - len(source.sizes)
    moved = [axis for i, axis in enumerate(axes) if i < skip or source.sizes[i - skip] != 1]
    if moved == sorted(moved):
        return 0.0
    whole = axes[-1] == len(axes) - 1  # whole last axes are copied, or single elements
    runs = profile.row * math.prod(source.sizes[:-1]) * np.asarray(rows, float)
    return profile.streams(bytes_of(node, rows)) + runs if whole else profile.functions(bytes_of(node, rows))


def wide(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


# -- products: rows and outer axes together are m; what is added to comes along in the same pass


def sizes(node: Node) -> tuple[int, int, int]:
    """Outer elements of a row, what each element of the result sums over, columns."""
    outer, n = max(math.prod(node.sizes[:-1]), 1), max(node.sizes[-1], 1) if node.sizes else 1
    return outer, max(node.work.multiply_adds // max(math.prod(node.sizes), 1), 1), n


def _by_weight(node: Node, profile: Profile, rows: Any, requests: Any) -> Any:
    outer, k, n = sizes(node)
    return profile.products(1, rows * outer, k, n)


def _batched(node: Node, profile: Profile, rows: Any, requests: Any) -> Any:
    """A matrix per row. Heads are cut out of wider tensors: what has more than one outer axis is copied before."""
    _, k, n = sizes(node)
    *batch, m = node.sizes[:-1] if len(node.sizes) > 1 else (1,)
    copied = [a for a in node.args if isinstance(a, Node) and a.rate.per_candidate and math.prod(a.sizes[:-2]) > 1]
    copies = sum(profile.streams(bytes_of(a, rows)) for a in copied)
    return profile.products(rows * math.prod(batch), m, k, n) + copies


def _of_request(node: Node, profile: Profile, rows: Any, requests: Any) -> Any:
    outer, k, n = sizes(node)
    requests = np.asarray(requests, float)
    each = rows / np.maximum(requests, 1)  # rows that share the matrix
    return requests * (profile.products(1, each * outer, k, n) + (requests > 1) * profile.call)


def _batched_weight(node: Node, profile: Profile, rows: Any, requests: Any) -> Any:
    if len(node.sizes) != 3:
        return _original(node, profile, rows, requests)
    (b, m), (_, k, n) = node.sizes[:2], sizes(node)
    if b > 1 and by_vectors(k, n, node.dtype):
        return _vectors(node, profile, rows)
    return profile.products(b, rows * m, k, n) + _transposed_copies(node, profile, rows)


def _batched_of_request(node: Node, profile: Profile, rows: Any, requests: Any) -> Any:
    if len(node.sizes) != 3:
        return _original(node, profile, rows, requests)
    (b, m), (_, k, n) = node.sizes[:2], sizes(node)
    requests = np.asarray(requests, float)
    each = rows / np.maximum(requests, 1)
    if b > 1 and by_vectors(k, n, node.dtype):
        return requests * _vectors(node, profile, each)
    return requests * profile.products(b, each * m, k, n) + _transposed_copies(node, profile, rows)


def _vectors(node: Node, profile: Profile, rows: Any) -> Any:
    """A pass that multiplies, and one that adds up."""
    read = bytes_of(node.args[0], rows)
    return profile.call + profile.streams(read) + profile.streams(read / 2) + profile.row * rows * math.prod(node.sizes)


def _transposed_copies(node: Node, profile: Profile, rows: Any) -> Any:
    (b, m), (_, k, n) = node.sizes[:2], sizes(node)
    return profile.streams(rows * b * m * k * 4.0) + profile.streams(rows * b * m * n * 4.0) if b > 1 else 0.0


def _original(node: Node, profile: Profile, rows: Any, requests: Any) -> Any:
    """As its author wrote it: at least, it reads its weights."""
    outer, k, n = sizes(node)
    weights = sum(math.prod(a.sizes) * 4.0 for a in node.args if isinstance(a, Node) and a.rate is Rate.WEIGHT)
    return np.maximum(profile.products(1, rows * outer, k, n), profile.streams(weights))


def _convolution(node: Node, profile: Profile, rows: Any, requests: Any) -> Any:
    """A linear map of the channels at every place."""
    if len(node.sizes) < 2:
        return _original(node, profile, rows, requests)
    _, k, _ = sizes(node)
    return profile.products(1, rows * math.prod(node.sizes[1:]), k, node.sizes[0]) + ARRANGING * profile.call


def _einsum(node: Node, profile: Profile, rows: Any, requests: Any) -> Any:
    seen = as_products(node, profile, rows)
    if seen is None:
        return _original(node, profile, rows, requests)
    copies = [math.prod(pair.shapes[i], start=4.0) for pair in _pairs(node, rows) for i in pair.arranged]
    return seen + ARRANGING * profile.call + sum(profile.functions(size) for size in copies)


def as_products(node: Node, profile: Any, rows: Any) -> Any:
    """An original einsum is one product for every operand but the first, batched over the axes that both factors and
    the result have; whatever has `products` may say how long these take.

    None where an operand is in a layout of its own, which its shape does not tell, or every row meets every other.
    """
    if not all(a.rows_first for a in node.args[1]):
        return None
    times = [_as_product(pair, profile, rows) for pair in _pairs(node, rows)]
    return None if not times or any(t is None for t in times) else sum(times)


def _pairs(node: Node, rows: Any) -> list[Pair]:
    return pairs(node.args[0], [[*([] if a.rate is Rate.WEIGHT else [rows]), *a.sizes] for a in node.args[1]])


def _as_product(pair: Pair, profile: Any, rows: Any) -> Any:
    (x, y), shapes = pair.axes, pair.shapes
    if shapes[0] and shapes[0][0] is not rows:
        x, y, shapes = y, x, shapes[::-1]  # the rows are on the left
    size = dict(zip(y, shapes[1], strict=True)) | dict(zip(x, shapes[0], strict=True))
    both = [name for name in x if name in y]
    if any(size[name] is rows for name in y if name not in both):
        return None
    batch = math.prod((size[name] for name in both if name in pair.result), start=1)
    m, n = (math.prod((size[name] for name in own if name not in both), start=1) for own in (x, y))
    k = math.prod((size[name] for name in both if name not in pair.result), start=1)
    return profile.products(batch, m, k, n)


def _attention(node: Node, profile: Profile, rows: Any, requests: Any) -> Any:
    """Two batched products and a softmax between them: a few calls in one, and a few passes over each row of scores."""
    q, k, v = (a.sizes for a in node.args[:3])
    if min(len(q), len(k), len(v)) < 2:
        return _original(node, profile, rows, requests)
    batch = rows * math.prod(q[:-2])
    softmax = profile.functions(batch * q[-2] * k[-2] * 4.0) + PASSES * (profile.call + batch * q[-2] * profile.row)
    scores = profile.products(batch, q[-2], q[-1], k[-2]) + softmax
    return scores + profile.products(batch, q[-2], k[-2], v[-1])


def _attention_of_request(node: Node, profile: Profile, rows: Any, requests: Any) -> Any:
    """The same for each request, with the queries of its candidates side by side, which are copied there."""
    (heads, queries, width), (_, keys, _), (_, _, result) = (a.sizes for a in node.args[:3])
    requests = np.asarray(requests, float)
    m = rows / np.maximum(requests, 1) * queries
    softmax = profile.functions(rows * heads * queries * keys * 4.0) + rows * heads * queries * PASSES * profile.row
    products = profile.products(heads, m, width, keys) + profile.products(heads, m, keys, result)
    copies = profile.streams(rows * heads * queries * width * 4.0)
    return requests * (products + PASSES * profile.call) + softmax + copies


def _attention_of_both(node: Node, profile: Profile, rows: Any, requests: Any) -> Any:
    """Products by matrices of the request, which copy rows there and back, those with a row's own, and one softmax of
    both scores side by side.
    """
    (heads, queries, width), (_, keys, _), (_, _, result), (_, own, _) = (a.sizes for a in node.args[:4])
    requests, scores = np.asarray(requests, float), rows * heads * queries * (keys + own) * 4.0
    m = rows / np.maximum(requests, 1) * queries
    shared = profile.products(heads, m, width, keys) + profile.products(heads, m, keys, result)
    each = profile.products(rows * heads, queries, width, own) + profile.products(rows * heads, queries, own, result)
    moved = profile.streams(rows * heads * queries * (width + 2 * result) * 4.0) + 4 * profile.streams(scores)
    softmax = profile.functions(scores) + rows * heads * queries * PASSES * profile.row
    return requests * (shared + 2 * (requests > 1) * profile.call) + each + moved + softmax + PASSES * profile.call


PRODUCTS: dict[Timed, Callable[[Node, Profile, Any, Any], Any]] = {
    Timed.PRODUCT: _by_weight,
    Timed.BATCHED: _batched,
    Timed.OF_REQUEST: _of_request,
    Timed.BATCHED_WEIGHT: _batched_weight,
    Timed.BATCHED_OF_REQUEST: _batched_of_request,
    Timed.ATTENTION: _attention,
    Timed.ATTENTION_OF_REQUEST: _attention_of_request,
    Timed.ATTENTION_OF_BOTH: _attention_of_both,
    Timed.CONVOLUTION: _convolution,
    Timed.EINSUM: _einsum,
}
