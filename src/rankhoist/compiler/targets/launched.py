"""What an operator of the intermediate graph takes on an accelerator: launches, or the kernels alone.

Called from Python, an operator takes as long as its launches or its kernels, whichever is longer; recorded, its
kernels decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from rankhoist.compiler.graph import fused, kernels
from rankhoist.compiler.graph.node import Node, Rate
from rankhoist.compiler.graph.operators import Timed, row
from rankhoist.compiler.targets.accelerator import WIDTH, Accelerator
from rankhoist.compiler.targets.predict import as_products, sizes, transposed, wide
from rankhoist.compiler.targets.predict import kind as kind_of

CALLS = 4  # what a call of a hoisted model costs before its first operator, in calls of operators
# Times as long as the vendor's product by one matrix: products of ours on an H200.
TILED = 1.5  # that add rows: 1.1 to 1.7 in bfloat16
OWNED = 2.5  # by the matrix of each request: 2.3 to 2.8 in bfloat16 (3.5 of 1024), 2.3 to 2.5 in float32

Kernels = tuple[Any, Any]  # launches, and seconds of what is launched


def kind(node: Node) -> Hashable:
    """All that the seconds depend on."""
    return kind_of(node), len(node.kwargs)


def start_called(profile: Accelerator) -> float:
    """Seconds of a call before its first operator."""
    return CALLS * profile.call


def start_recorded(profile: Accelerator) -> float:
    """Seconds of a replay beside its kernels; inputs are copied to where it reads them."""
    return profile.replay + profile.copy


def called(node: Node, profile: Accelerator, candidates: Any, requests: Any, *, over: bool = False) -> Any:
    """Seconds of one operator in one call from Python."""
    if node.rate is Rate.WEIGHT:
        return 0.0
    launches, seconds = _kernels(node, profile, candidates, requests)
    least = np.where(np.asarray(launches) > 0, np.asarray(launches) * profile.call, profile.view)
    return np.maximum(least, seconds)


def recorded(node: Node, profile: Accelerator, candidates: Any, requests: Any, *, over: bool = False) -> Any:
    """Seconds of one operator in a recorded graph."""
    if node.rate is Rate.WEIGHT:
        return 0.0
    launches, seconds = _kernels(node, profile, candidates, requests)
    return np.maximum(np.asarray(launches) * profile.kernel, seconds)


def _kernels(node: Node, profile: Accelerator, candidates: Any, requests: Any) -> Kernels:
    if isinstance(node.op, str):
        return 0, 0.0
    rows, timed = np.asarray(candidates if node.rate.per_candidate else requests, float), row(node.op).timed
    if timed is Timed.ROWS:
        several = np.asarray(requests) > 1
        return several, np.where(several, _gathered(node, profile, rows, math.prod(node.sizes)), 0.0)
    if timed is Timed.VIEW:
        return 0, 0.0
    if timed is Timed.RESHAPE:
        return _reshaped(node, profile, rows)
    if node.work.multiply_adds:
        return PRODUCTS.get(timed, _by_weight)(node, profile, rows, np.asarray(requests, float))
    if timed in (Timed.GATHER, Timed.KEPT, Timed.PICK):
        return 1, _gathered(node, profile, rows)
    return 1, _passes(node, profile, rows, timed)


def _passes(node: Node, profile: Accelerator, rows: Any, timed: Timed) -> Any:
    operands = [x for a in node.args for x in (a if isinstance(a, list | tuple) else [a]) if isinstance(x, Node)]
    read = max(operands, key=lambda x: math.prod(x.sizes), default=node)
    width, largest = read.sizes[-1] if read.sizes else 1, max(math.prod(read.sizes), 1)
    if timed is Timed.SOFTMAX:
        return profile.rows("softmax", rows * (largest // width), width)
    if timed is Timed.NORM:
        if row(node.op).spelled in (fused.layer_norm, fused.rms_norm) and fused.available() and width <= fused.NORMED:
            return profile.curve("stream", _bytes(read, profile, rows))
        return profile.rows("norm", rows * (largest // width), width)
    inner = node.sizes[-1:] != read.sizes[-1:] or width == 1
    if timed is Timed.REDUCE and inner:  # over an outer axis, neighbours are added side by side
        result = max(math.prod(node.sizes), 1)
        return profile.rows("sum", rows * result, largest // result)
    if timed is Timed.JOIN:
        return profile.curve("join", _bytes(node, profile, rows) / 2)
    if timed is Timed.FUNCTION:
        return profile.curve("function", _bytes(node, profile, rows))
    return profile.curve("stream", np.maximum(_bytes(node, profile, rows), _bytes(read, profile, rows) / 2))


def _gathered(node: Node, profile: Accelerator, rows: Any, width: int = 0) -> Any:
    """Rows read by index, `width` elements (a last axis) side by side: those of a narrow table cost as much each as of
    one that is `WIDTH` wide.
    """
    single = row(node.op).timed is Timed.PICK or not node.sizes
    width, size = 1 if single else max(width or node.sizes[-1], 1), _bytes(node, profile, rows)
    read = rows * (math.prod(node.sizes) / width)
    by_row = np.maximum(profile.curve("gather", read * WIDTH * profile.itemsize), profile.curve("stream", size))
    return np.minimum(profile.curve("gather", size), by_row)


def _reshaped(node: Node, profile: Accelerator, rows: Any) -> Kernels:
    """A view, but after a transposition: whole last axes are copied then, or single elements."""
    source = node.args[0]
    if not transposed(node) or not source.rows_first or wide(node.sizes) == wide(source.sizes):
        return 0, 0.0
    axes = list(source.args[1])
    name = "stream" if axes[-1] == len(axes) - 1 else "transpose"
    return 1, profile.curve(name, _bytes(node, profile, rows))


def _bytes(node: Node, profile: Accelerator, rows: Any) -> Any:
    """Of the node's tensor, in the target's dtype; a weight has no rows."""
    each = profile.itemsize if node.dtype.is_floating_point else node.dtype.itemsize
    size = math.prod(node.sizes) * each
    return float(size) if node.rate is Rate.WEIGHT else size * rows


# -- products


def _by_weight(node: Node, profile: Accelerator, rows: Any, requests: Any) -> Kernels:
    outer, k, n = sizes(node)
    product = profile.products(1, rows * outer, k, n)
    if node.op is not kernels.linear_from:
        return 1, product
    of_several = TILED * product if _tiled(profile, k) else product
    return _started(node, profile, rows, np.where(requests > 1, of_several, product), 1, requests)


def _started(node: Node, profile: Accelerator, rows: Any, product: Any, launches: Any, requests: Any) -> Kernels:
    """A product that starts from rows of requests, and may end with a function: one request's row is a bias.

    Of several, rows are gathered, added, and gone through; by kernels of ours in one pass, or in the product's own.
    """
    ends = len(node.kwargs)
    of_several = 2 + ends
    if fused.available():
        of_several = 0 if node.op is not kernels.linear_from or _tiled(profile, sizes(node)[1]) else 1
    passes = np.where(requests > 1, of_several, ends)
    return launches + passes, product + passes * _written(node, profile, rows)


def _tiled(profile: Accelerator, inner: int) -> bool:
    """Whether rows are multiplied by the one matrix of all by a kernel of ours, if something is added: see `fused`."""
    return profile.itemsize == 2 and fused.available() and inner <= fused.DEEP


def _batched(node: Node, profile: Accelerator, rows: Any, requests: Any) -> Kernels:
    _, k, n = sizes(node)
    *batch, m = node.sizes[:-1] if len(node.sizes) > 1 else (1,)
    return 1, profile.products(rows * math.prod(batch), m, k, n)


def _of_request(node: Node, profile: Accelerator, rows: Any, requests: Any) -> Kernels:
    """Several requests with a matrix each: tiles of ours, or a product of padded blocks, put in place and gathered."""
    outer, k, n = sizes(node)
    batch = math.prod(node.sizes[:-2]) if row(node.op).timed is Timed.BATCHED_OF_REQUEST else 1
    several, m = requests > 1, rows * outer / batch
    alone = profile.products(batch, m, k, n)
    if fused.available():
        matrices = profile.curve("stream", requests * batch * k * n * profile.itemsize / 2)
        launches, of_several = np.ones_like(several, int), np.maximum(OWNED * alone, matrices)
    else:
        moved = profile.curve("stream", rows * outer * k * profile.itemsize) + _written(node, profile, rows)
        blocks = profile.products(requests * batch, m / np.maximum(requests, 1), k, n)
        launches, of_several = np.where(several, 4, 1), blocks + moved
    product = np.where(several, of_several, alone)
    if node.op is not kernels.request_linear_from:
        return launches, product
    return _started(node, profile, rows, product, launches, requests)


def _batched_weight(node: Node, profile: Accelerator, rows: Any, requests: Any) -> Kernels:
    outer, k, n = sizes(node)
    batch = node.sizes[0] if len(node.sizes) == 3 else 1
    return 1, profile.products(batch, rows * outer / batch, k, n)


def _einsum(node: Node, profile: Accelerator, rows: Any, requests: Any) -> Kernels:
    seen = as_products(node, profile, rows)
    return _by_weight(node, profile, rows, requests) if seen is None else (3 * (len(node.args[1]) - 1), seen)


def _attention(node: Node, profile: Accelerator, rows: Any, requests: Any) -> Kernels:
    """Both products; what lies between them stays on the chip."""
    q, k, v = (a.sizes for a in node.args[:3])
    if min(len(q), len(k), len(v)) < 2:
        return _by_weight(node, profile, rows, requests)
    batch = rows * math.prod(q[:-2])
    scores = profile.products(batch, q[-2], q[-1], k[-2])
    return 1, scores + profile.products(batch, q[-2], k[-2], v[-1])


def _attention_of_request(node: Node, profile: Accelerator, rows: Any, requests: Any) -> Kernels:
    """The same over blocks of each request's queries, put side by side and, of several requests, back."""
    (heads, queries, width), (_, keys, _), (_, _, result) = (a.sizes for a in node.args[:3])
    m = rows / np.maximum(requests, 1) * queries
    products = profile.products(requests * heads, m, width, keys) + profile.products(requests * heads, m, keys, result)
    moved = profile.curve("stream", rows * heads * queries * width * profile.itemsize)
    return np.where(requests > 1, 4, 2), products + moved + np.where(requests > 1, 2, 0) * _written(node, profile, rows)


def _attention_of_both(node: Node, profile: Accelerator, rows: Any, requests: Any) -> Kernels:
    """One kernel of ours, which reads a row's own keys and values for each of its queries; or two products of padded
    blocks, two with a row's own, and between them scores side by side, scaled, through a softmax.
    """
    (heads, queries, width), (_, keys, _), (_, _, result), (_, own, _) = (a.sizes for a in node.args[:4])
    several, m, total = requests > 1, rows / np.maximum(requests, 1) * queries, rows * heads * queries
    shared = profile.products(requests * heads, m, width, keys) + profile.products(requests * heads, m, keys, result)
    if profile.itemsize == 2 and fused.available() and max(width, result) <= fused.WIDEST:
        each = profile.curve("stream", total * own * (width + result) * profile.itemsize / 2)
        return np.ones_like(several, int), TILED * shared + each
    each = profile.products(rows * heads, queries, width, own) + profile.products(rows * heads, queries, own, result)
    size = total * (keys + own) * profile.itemsize
    between = (
        profile.curve("join", size / 2) + profile.curve("stream", size) + profile.rows("softmax", total, keys + own)
    )
    moved = profile.curve("stream", total * (width + keys) * profile.itemsize) + 2 * _written(node, profile, rows)
    return np.where(several, 14, 8), shared + each + between + moved


def _written(node: Node, profile: Accelerator, rows: Any) -> Any:
    """One more pass over the result."""
    return profile.curve("stream", _bytes(node, profile, rows))


PRODUCTS: dict[Timed, Callable[[Node, Accelerator, Any, Any], Kernels]] = {
    Timed.BATCHED: _batched,
    Timed.OF_REQUEST: _of_request,
    Timed.BATCHED_OF_REQUEST: _of_request,
    Timed.BATCHED_WEIGHT: _batched_weight,
    Timed.EINSUM: _einsum,
    Timed.ATTENTION: _attention,
    Timed.ATTENTION_OF_REQUEST: _attention_of_request,
    Timed.ATTENTION_OF_BOTH: _attention_of_both,
}
