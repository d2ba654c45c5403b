"""Parts of results, law by law: a random box of a result is what the law computes of parts of random operands."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from rankhoist.capture.defaults import fill
from rankhoist.compiler.demand import boxes
from rankhoist.compiler.demand.boxes import Box
from rankhoist.compiler.demand.constants import Constants
from rankhoist.compiler.demand.laws import part_of
from rankhoist.compiler.demand.made import Made, Take

aten = torch.ops.aten
TRIES = 150


def normal(*sizes: int) -> Tensor:
    return torch.randn(sizes, dtype=torch.float64)


def sizes_of(r: random.Random, axes: int) -> list[int]:
    return [r.randint(5, 9) for _ in range(axes)]


def pooled(r: random.Random, axes: int, *others: Any) -> tuple[Any, ...]:
    kernel = [r.randint(1, 3) for _ in range(axes)]
    padding = [r.randint(0, k // 2) for k in kernel]
    return normal(2, 3, *sizes_of(r, axes)), kernel, [r.randint(1, 3)], padding, *others


def convolved(r: random.Random, axes: int, padding: Any = None) -> tuple[Any, ...]:
    """As many zeros around it as there may be; stride and dilation are one for all axes."""
    kernel, groups = [r.choice([1, 3]) for _ in range(axes)], r.choice([1, 2])
    step = r.randint(1, 3) if padding is None else 1
    around = [r.randint(0, 2) for _ in kernel] if padding is None else padding
    weight = normal(4, 4 // groups, *kernel)
    return (
        normal(2, 4, *(n + 4 for n in sizes_of(r, axes))),
        weight,
        normal(4),
        [step],
        around,
        [r.randint(1, 2)],
        groups,
    )


def sized(*makers: Any) -> Callable[[random.Random], tuple[Any, ...]]:
    """A tensor of three axes and other arguments, drawn where they are functions."""
    return lambda r: (normal(*sizes_of(r, 3)), *(m(r) if callable(m) else m for m in makers))


def amount(r: random.Random) -> list[int]:
    return [r.randint(-1, 3) for _ in range(4)]


def local(r: random.Random) -> tuple[Any, ...]:
    """Queries that see a few keys before them; one in some calls sees none."""
    queries, keys, width = r.randint(5, 9), r.randint(5, 9), r.randint(1, 3)
    between = torch.arange(queries)[:, None] - torch.arange(keys)
    seen = (between >= (1 if r.random() < 0.2 else 0)) & (between < width + max(queries - keys, 0))
    mask = seen if r.random() < 0.5 else torch.zeros(queries, keys, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    return normal(2, queries, 3), normal(2, keys, 3), normal(2, keys, 4), mask, 0.0, False


def gathered(r: random.Random) -> tuple[Any, ...]:
    """An index of some places along an axis; now and then of fewer along another one, too."""
    sizes, dim = sizes_of(r, 3), r.randint(-3, 2)
    own = [*sizes]
    own[dim], own[(dim + 1) % 3] = r.randint(2, 9), sizes[(dim + 1) % 3] - (r.random() < 0.2)
    return normal(*sizes), dim, torch.randint(0, sizes[dim], own)


CALLS: dict[str, tuple[Any, Callable[[random.Random], tuple[Any, ...]]]] = {
    "flip": (aten.flip.default, sized([0, -1])),
    "roll": (aten.roll.default, sized(lambda r: [r.randint(-3, 3), 1], [1, -1])),
    "repeat": (aten.repeat.default, sized(lambda r: [1, r.randint(1, 3), 2])),
    "tile": (aten.tile.default, sized(lambda r: [r.randint(1, 3)])),
    "repeat_interleave": (aten.repeat_interleave.self_int, sized(lambda r: r.randint(1, 3), 1)),
    "repeat_interleave_flat": (
        aten.repeat_interleave.self_int,
        lambda r: (normal(*sizes_of(r, 1)), r.randint(1, 3)),
    ),
    "pad": (aten.pad.default, sized(amount, "constant", 0.5)),
    "pad_by_zero": (aten.pad.default, sized(amount)),
    "pad_by_copies": (aten.pad.default, sized([2, 1], lambda r: r.choice(["replicate", "reflect", "circular"]))),
    "constant_pad": (aten.constant_pad_nd.default, sized(amount, -2.0)),
    "index_select": (aten.index_select.default, sized(1, lambda r: torch.tensor(r.sample(range(5), r.randint(1, 5))))),
    "slice": (aten.slice.Tensor, sized(1, lambda r: r.randint(0, 3), 9, lambda r: r.randint(1, 3))),
    "gather": (aten.gather.default, gathered),
    "conv1d": (aten.conv1d.default, lambda r: convolved(r, 1)),
    "conv2d": (aten.conv2d.default, lambda r: convolved(r, 2)),
    "conv1d_same": (aten.conv1d.padding, lambda r: convolved(r, 1, "same")),
    "conv2d_valid": (aten.conv2d.padding, lambda r: convolved(r, 2, "valid")),
    "unfold": (aten.unfold.default, sized(1, lambda r: r.randint(1, 3), lambda r: r.randint(1, 2))),
    "max_pool1d": (aten.max_pool1d.default, lambda r: pooled(r, 1, [r.randint(1, 2)], r.choice([True, False]))),
    "max_pool2d": (aten.max_pool2d.default, lambda r: pooled(r, 2, [1], r.choice([True, False]))),
    "avg_pool1d": (aten.avg_pool1d.default, lambda r: pooled(r, 1, *r.choices([True, False], k=2))),
    "avg_pool2d": (aten.avg_pool2d.default, lambda r: pooled(r, 2, False, r.choice([True, False]), 3)),
    "softmax": (aten.softmax.int, sized(1)),
    "amax": (aten.amax.default, sized([1], lambda r: r.choice([True, False]))),
    "std": (aten.std.dim, sized([-1])),
    "rfft": (aten.fft_rfft.default, sized(None, 1)),
    "group_norm": (aten.group_norm.default, lambda r: (normal(*sizes_of(r, 1), 4, 3), 2, normal(4), normal(4))),
    "prelu": (aten.prelu.default, lambda r: (x := normal(*sizes_of(r, 3)), normal(r.choice([1, x.shape[1]])))),
    "linear": (aten.linear.default, lambda r: (normal(*sizes_of(r, 2), 3), normal(6, 3), normal(6))),
    "bilinear": (
        aten.bilinear.default,
        lambda r: (normal(4, 5, 2), normal(4, 5, 3), normal(6, 2, 3), r.choice([normal(6), None])),
    ),
    "attention": (aten.scaled_dot_product_attention.default, local),
    "cdist": (aten.cdist.default, lambda r: (normal(*sizes_of(r, 2), 3), normal(*sizes_of(r, 1), 3))),
}  # fmt: skip
SEVERAL: dict[str, tuple[Any, Callable[[random.Random], tuple[Any, ...]]]] = {
    "max": (aten.max.dim, sized(1)),
    "sort": (aten.sort.default, sized(1)),
    "topk": (aten.topk.default, sized(2, -1)),
    "cummax": (aten.cummax.default, sized(0)),
    "var_mean": (aten.var_mean.correction, sized([1])),
    "batch_norm": (
        aten._native_batch_norm_legit_no_training.default,
        lambda r: (normal(*(n := sizes_of(r, 3))), *(normal(n[1]).exp() for _ in range(4)), 0.1, 1e-5),
    ),
}


def called(op: Any, args: tuple[Any, ...], index: int | None = None) -> tuple[fx.Node, dict[fx.Node, Tensor], Tensor]:
    """A call in a graph, its operands and its result."""
    graph, operands = fx.Graph(), {}
    for x in args:
        if isinstance(x, Tensor):
            node = graph.placeholder(f"x{len(operands)}")
            node.meta["val"] = operands[node] = x
    placeholders = iter(operands)
    node = graph.call_function(op, tuple(next(placeholders) if isinstance(x, Tensor) else x for x in args))
    node.meta["val"] = made = op(*args)
    fill(graph)
    if index is not None:
        node = graph.call_function(operator.getitem, (node, index))
        node.meta["val"] = made = made[index]
    return node, operands, made


def cut(x: Tensor, box: Box) -> Tensor:
    shown = x.reshape([p.size for axis in box for p in axis])
    for dim, part in enumerate(p for axis in box for p in axis):
        shown = shown.narrow(dim, part.first, part.width)
    return shown.reshape([boxes.width(axis) for axis in box])


def computed(way: Any, operands: dict[fx.Node, Tensor]) -> Any:
    if isinstance(way, Take):
        return cut(operands[way.node], way.box)
    if isinstance(way, Made):
        return way.target(*computed(list(way.args), operands), **way.kwargs)
    return [computed(w, operands) for w in way] if isinstance(way, list | tuple) else way


def some_box(r: random.Random, sizes: list[int]) -> Box:
    ends = [sorted(r.sample(range(n + 1), 2)) if r.random() < 0.6 else (0, n) for n in sizes]
    return tuple(boxes.cut(n, *own) for n, own in zip(sizes, ends, strict=True))


def fixed(operands: dict[fx.Node, Tensor]) -> Constants:
    """Numbers and masks are known."""

    def weight(x: Tensor) -> Any:
        return SimpleNamespace(tensor=x, fixed=not (x.is_floating_point() and bool(x.isfinite().all())))

    program: Any = SimpleNamespace(weights={n.name: weight(x) for n, x in operands.items()})
    return Constants(program)


@pytest.mark.parametrize("name", [*CALLS, *SEVERAL])
def test_a_part_is_what_it_was(name):
    r, smaller = random.Random(name), 0
    torch.manual_seed(0)
    for _ in range(TRIES):
        op, make = (CALLS | SEVERAL)[name]
        node, operands, made = called(op, make(r), 0 if name in SEVERAL else None)
        box = some_box(r, list(made.shape))
        way = part_of(node, box, fixed(operands))
        if way is None:
            continue
        smaller += not boxes.all_of(box)
        torch.testing.assert_close(computed(way, operands), cut(made, box), rtol=1e-11, atol=1e-11, equal_nan=True)
    assert smaller > TRIES / 8
