"""Operators that only move elements: joined, cut, folded, turned, repeated."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx

from random_models.draft import Draft, UnstableError, aten
from random_models.operands import floats, has_axes, like, sequence
from random_models.rows import Extent, product, varies
from random_models.steps.table import Made, Step, one_of

END = 2**63 - 1  # of a slice that has none

# -- several values become one


def concatenate(draft: Draft, x: fx.Node) -> Made:
    extent, axis = draft.extent(x), draft.axis(x)
    if extent[axis] > 8 and not varies(extent[axis]):
        raise UnstableError
    parts = [x, *(like(draft, extent, axis) for _ in range(draft.number(1, 2)))]
    if draft.number(0, 5) == 5 and extent[0] == -1:
        parts.append(_filled(draft, extent))
    if draft.number(0, 7) == 7 and not varies(extent[axis]):
        parts.append(draft.call(aten.slice.Tensor, x, axis, 0, 0, 1))
    joined = draft.call(aten.cat.default, draft.shuffled(parts), axis - (len(extent) if draft.flag() else 0))
    if draft.number(0, 3) == 3:
        shuffled = draft.shuffled(range(draft.extent(joined)[axis]))
        joined = draft.call(aten.index_select.default, joined, axis, draft.weight(torch.tensor(shuffled)))
    return joined


def _filled(draft: Draft, extent: Extent) -> fx.Node:
    sizes = [draft.size(n) if n < 0 else n for n in extent]
    options = {"dtype": torch.float64, "device": torch.device("cpu"), "pin_memory": False}
    return draft.call(aten.full.default, sizes, 0.5, **options)


def stack(draft: Draft, x: fx.Node) -> Made:
    extent = draft.extent(x)
    others = [like(draft, extent) for _ in range(draft.number(1, 2))]
    axis = draft.number(0, len(extent)) if draft.number(0, 3) == 3 else len(extent) - (len(extent) > 1)
    return draft.call(aten.stack.default, [x, *others], axis)


# -- some positions of an axis: (draft, x, axis, its size)


def select(draft: Draft, x: fx.Node, axis: int, size: int) -> Made:
    most = draft.places(size)
    return draft.call(aten.select.int, x, axis, draft.number(-most, most - 1))


def slice_axis(draft: Draft, x: fx.Node, axis: int, size: int) -> Made:
    most = draft.places(size)
    start = draft.number(0, most - 1)
    end = END if most < size and draft.flag() else draft.number(start + 1, most)
    return draft.call(aten.slice.Tensor, x, axis, start, end, draft.number(1, 2))


def split(draft: Draft, x: fx.Node, axis: int, size: int) -> Iterator[fx.Node]:
    first = draft.number(0, draft.places(size))
    parts = draft.call(aten.split_with_sizes.default, x, [first, draft.size(size - first)], axis)
    for i, n in enumerate((first, size - first)):
        if n:
            yield draft.call(operator.getitem, parts, i)


def index_select(draft: Draft, x: fx.Node, axis: int, size: int) -> Made:
    chosen = [draft.number(0, draft.places(size) - 1) for _ in range(draft.number(1, 4))]
    return draft.call(aten.index_select.default, x, axis, draft.weight(torch.tensor(chosen)))


def index(draft: Draft, x: fx.Node, axis: int, size: int) -> Made:
    most = draft.places(size)
    chosen = [draft.number(-most, most - 1) for _ in range(draft.number(1, 4))]
    return draft.call(aten.index.Tensor, x, [*[None] * axis, draft.weight(torch.tensor(chosen))])


def unbind(draft: Draft, x: fx.Node, axis: int, size: int) -> Iterator[fx.Node]:
    parts = draft.call(aten.unbind.int, x, axis)
    for i in range(min(size, 2)):
        yield draft.call(operator.getitem, parts, i)


PARTS = [
    select,
    slice_axis,
    split,
    index_select,
    index,
    lambda draft, x, axis, size: draft.call(aten.flip.default, x, [axis]),
    lambda draft, x, axis, size: draft.call(aten.roll.default, x, [draft.number(-2, 3)], [axis]),
    unbind,
]


def part(draft: Draft, x: fx.Node) -> Made:
    axis = draft.axis(x)
    return draft.pick(PARTS)(draft, x, axis, draft.extent(x)[axis])


def mostly_floats(draft: Draft) -> fx.Node:
    return draft.value(has_axes, floating=draft.number(0, 4) > 0)


# -- axes are merged, cut and folded


def merged(draft: Draft, x: fx.Node) -> Made:
    extent = draft.extent(x)
    axis = draft.number(0, len(extent) - 2)
    if extent[axis] < 0 and extent[axis + 1] < 0:
        raise UnstableError
    return draft.view(x, [*extent[:axis], extent[axis] * extent[axis + 1], *extent[axis + 2 :]])


def cut(draft: Draft, x: fx.Node) -> Made:
    extent = draft.extent(x)
    axis = draft.number(0, len(extent) - 1)
    size = abs(extent[axis])
    inner = draft.pick([d for d in range(1, size + 1) if size % d == 0])
    outer = size // inner
    pair = [outer, inner] if extent[axis] > 0 else [-outer, inner] if draft.flag() else [outer, -inner]
    return draft.view(x, [*extent[:axis], *pair, *extent[axis + 1 :]])


def flattened(draft: Draft, x: fx.Node) -> Made:
    extent = draft.extent(x)
    if extent[0] >= 0:
        raise UnstableError
    return draft.view(x, [extent[0], product(extent[1:])])


def folded(draft: Draft, x: fx.Node) -> Made:
    """Rows folded with the next axis, a linear layer, and unfolded again."""
    extent = draft.extent(x)
    if len(extent) < 3 or extent[0] != -1 or min(extent[1:]) < 1:
        raise UnstableError
    rows = draft.view(x, [-extent[1], *extent[2:]])
    out = draft.number(1, 3)
    made = draft.call(aten.linear.default, rows, draft.random(out, extent[-1], scale=0.7))
    if draft.flag():
        made = draft.call(aten.relu.default, made)
    return draft.view(made, [-1, *extent[1:-1], out])


def folded_behind(draft: Draft, x: fx.Node) -> Made:
    """Rows folded behind another axis, worked on, and unfolded again."""
    _, fields, width = draft.extent(x)
    rows = draft.view(draft.call(aten.transpose.int, x, 0, 1), [-fields, width])
    made = draft.call(aten.tanh.default, rows)
    if draft.flag():
        made = draft.call(aten.linear.default, rows, draft.random(2, width, scale=0.7))
    if draft.flag():
        made = draft.call(aten.mul.Tensor, made, rows if draft.extent(made)[-1] == width else made)
    unfolded = draft.view(made, [fields, -1, draft.extent(made)[1]])
    return draft.call(aten.transpose.int, unfolded, 0, 1) if draft.flag() else unfolded


# -- axes change places, come and go


def permute(draft: Draft, x: fx.Node) -> Made:
    depth = len(draft.extent(x))
    if draft.flag():
        return draft.call(aten.transpose.int, x, draft.number(0, depth - 1), -1)
    return draft.call(aten.permute.default, x, draft.shuffled(range(depth)))


def rows_first(draft: Draft, x: fx.Node) -> Made:
    """Back to rows on axis 0."""
    extent = draft.extent(x)
    at = next(i for i, n in enumerate(extent) if n < 0)
    x = draft.call(aten.permute.default, x, [at, *(i for i in range(len(extent)) if i != at)])
    return draft.view(x, [-1, -extent[at], *draft.extent(x)[1:]]) if extent[at] < -1 else x


def unsqueeze(draft: Draft, x: fx.Node) -> Made:
    depth = len(draft.extent(x))
    axis = draft.number(-depth - 1, depth) if draft.number(0, 3) == 3 else draft.number(1, depth)
    wide = draft.call(aten.unsqueeze.default, x, axis)
    if draft.flag():
        sizes = [-1] * (depth + 1)
        sizes[axis if axis >= 0 else axis + depth + 1] = draft.number(1, 3)
        wide = draft.call(aten.expand.default, wide, sizes)
    return wide


def squeeze(draft: Draft, x: fx.Node) -> Made:
    axis = draft.extent(x).index(1)
    return draft.call(aten.squeeze.dim, x, axis) if draft.flag() else draft.call(aten.squeeze.dims, x, [axis])


# -- elements stand in several places


def repeat(draft: Draft, x: fx.Node) -> Made:
    axis = draft.axis(x)
    size = draft.extent(x)[axis]
    if draft.flag():
        return draft.call(aten.repeat_interleave.self_int, x, draft.number(1, 2), axis)
    if draft.flag() and not varies(size):
        times = [1, *(draft.number(0, 2) for _ in range(size - 1))]
        counts = draft.weight(torch.tensor(times), trained=False)
        return draft.call(aten.repeat_interleave.self_Tensor, x, counts, axis, output_size=sum(times))
    return draft.call(aten.repeat.default, x, [2 if i == axis else 1 for i in range(len(draft.extent(x)))])


def pad(draft: Draft, x: fx.Node) -> Made:
    amounts = [draft.number(-1, 2), draft.number(0, 2)]
    if draft.extent(x)[-1] + sum(amounts) < 1:
        raise UnstableError
    return draft.call(aten.constant_pad_nd.default, x, amounts, 0.5)


def learned_tokens(draft: Draft, x: fx.Node) -> Made:
    """Weights that stand in every row: queries or latents that a model learns, repeated for the batch."""
    inner = draft.extent(x)[1:]
    token = draft.random(*inner) if draft.flag() else draft.call(aten.unsqueeze.default, draft.random(*inner), 0)
    tokens = draft.call(aten.expand.default, token, [draft.size(-1), *inner])
    return draft.call(aten.alias.default, tokens) if draft.flag() else tokens


STEPS = [
    Step(6, concatenate, floats(has_axes)),
    Step(2, stack, floats(lambda e: len(e) < 3)),
    Step(4, part, mostly_floats),
    Step(3, one_of([merged, cut, flattened, folded]), floats(has_axes)),
    Step(1, folded_behind, floats(sequence)),
    Step(2, permute, floats(has_axes)),
    Step(1, rows_first, floats(lambda e: len(e) > 1 and e[0] >= 0 and min(e) < 0)),
    Step(2, unsqueeze, floats(lambda e: len(e) < 3)),
    Step(1, squeeze, floats(lambda e: 1 in e)),
    Step(1, repeat, floats(lambda e: len(e) > 1 and max(e) < 4)),
    Step(1, pad, floats(lambda e: len(e) > 1 and 0 < e[-1] < 5)),
    Step(2, learned_tokens, floats(lambda e: len(e) > 1 and e[0] == -1 and all(n > 0 for n in e[1:]))),
]
