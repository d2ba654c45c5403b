"""Lookups in emitted graphs: which ids index which tables, and how a compiled stage looks out for ids outside of them.

PyTorch refuses such an id wherever it meets one. Compiled and exported code reads another row, or zeros, or ends in an
error of its own. There, a lookup whose ids are computed on the way is spelled so that it reads a row that exists, and
says how many of its ids were outside: whoever runs the stage refuses the call then.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx

from rankhoist.compiler.emit import pooled
from rankhoist.compiler.graph import kernels
from rankhoist.compiler.graph.node import aten
from rankhoist.errors import VocabularyError

OUTSIDE = "ids.outside"  # a result of a stage: int64, of each guarded lookup the number of its ids that were outside
# The place of the ids among the arguments; of `index` there are several.
LOOKUPS = {
    aten.embedding.default: 1, aten.index_select.default: 2, aten.embedding_bag.default: 1, aten.gather.default: 2,
    aten.embedding_bag.padding_idx: 1, aten._embedding_bag.default: 1, aten._embedding_bag_forward_only.default: 1,
    aten.take.default: 1, aten.one_hot.default: 0, kernels.read_tables: 1, aten.index.Tensor: 1,
    pooled.embedding_bag: 1,
}  # fmt: skip


class Use(NamedTuple):
    """Ids, by their path among the arguments of a lookup: less than `size`, and not negative unless they may `wrap`.

    `size` is one per table where the last axis of the ids goes over tables.
    """

    path: tuple[int, ...]
    size: Any
    wrap: bool = False


def paths(target: Any, args: Sequence[Any]) -> list[tuple[int, ...]]:
    """Where ids are among the arguments of a lookup."""
    if target is aten.index.Tensor:
        return [(1, k) for k, place in enumerate(args[1]) if place is not None]
    return [(LOOKUPS[target],)]


def uses(target: Any, args: Sequence[Any]) -> Iterator[Use]:
    """What a lookup's arguments index; `args` are tensors, or stand for them."""
    if target is aten.index.Tensor:
        table, places = args
        if not any(isinstance(p, Tensor) and p.dtype in (torch.bool, torch.uint8) for p in places):
            yield from (Use(path, table.shape[path[1]], wrap=True) for path in paths(target, args))
    elif target is aten.one_hot.default:
        if args[1] >= 0:
            yield Use((0,), args[1])
    elif target is aten.take.default:
        yield Use((1,), math.prod(args[0].shape), wrap=True)
    elif target is kernels.read_tables:
        yield Use((1,), args[3])
    else:
        axis = args[1] if target in (aten.gather.default, aten.index_select.default) else 0
        yield Use((LOOKUPS[target],), args[0].shape[axis])


def at(args: Sequence[Any], path: Sequence[int]) -> Any:
    """The argument at a path."""
    found: Any = args
    for place in path:
        found = found[place]
    return found


def outside(ids: Tensor, use: Use) -> Tensor:
    """Which ids are outside of their tables."""
    wrong: Tensor = (ids < (-use.size if use.wrap else 0)) | (ids >= use.size)
    return wrong


def guarded(target: Callable[..., Any]) -> Callable[..., tuple[Any, Tensor]]:
    """The lookup of the ids that are inside of their tables, and how many are not."""

    def lookup(*args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        inside, counts = list(args), []
        for use in uses(target, args):
            ids = at(args, use.path)
            wrong = outside(ids, use)
            counts.append(wrong.sum())
            inside = _put(inside, use.path, ids.masked_fill(wrong, 0))
        made = target(*inside, **kwargs)
        none = at(args, paths(target, args)[0]).new_zeros((), dtype=torch.int64)
        return made, torch.stack(counts).sum() if counts else none

    return lookup


def guard(graph: fx.Graph, node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Spell a lookup of a graph so; returns its result and its count."""
    node.target = guarded(cast(Callable[..., Any], node.target))
    return graph.call_function(operator.getitem, (node, 0)), graph.call_function(operator.getitem, (node, 1))


def count(graph: fx.Graph, counts: Sequence[fx.Node]) -> None:
    """The counts of all guarded lookups as one more result of a graph."""
    last: Any = graph.output_node()
    with graph.inserting_before(last):
        last.args = ((*last.args[0], graph.call_function(torch.stack, (list(counts),))),)


def check_counts(guards: Sequence[str], counts: Tensor) -> None:
    """Refuse ids that a stage has computed and counted as outside of their tables.

    Raises:
        VocabularyError: there is one; says from which inputs it is computed.
    """
    if bool(counts.any()):
        raise VocabularyError(guards[int(counts.nonzero()[0])])


def _put(args: Sequence[Any], path: Sequence[int], value: Any) -> list[Any]:
    """The arguments with another one at a path."""
    place, *inner = path
    return [(_put(a, inner, value) if inner else value) if i == place else a for i, a in enumerate(args)]


class Search(fx.Interpreter):
    """Runs a stage operator by operator until ids are outside of their tables.

    Attributes:
        found: if anything is wrong: the lookup, one such id, and the bounds that it should be within.
    """

    found: tuple[str, Any, range] | None = None

    def run_node(self, n: fx.Node) -> Any:
        """An operator, unless something has been found."""
        if self.found is None and n.target in LOOKUPS:
            args, _ = self.fetch_args_kwargs_from_env(n)
            for use in uses(n.target, args):
                ids = at(args, use.path)
                wrong = outside(ids, use)
                if bool(wrong.any()):
                    size = int(torch.as_tensor(use.size).expand(ids.shape)[wrong][0])
                    self.found = n.name, ids[wrong][0].item(), range(-size if use.wrap else 0, size)
                    raise StopIteration
        return super().run_node(n)


def search(module: fx.GraphModule, arguments: Sequence[Any]) -> tuple[str, Any, range] | None:
    """The first lookup of a stage with an id outside of its table, that id, and its bounds."""
    interpreter = Search(module)
    interpreter.extra_traceback = False
    try:
        with torch.no_grad():
            interpreter.run(*arguments)
    except Exception:  # it ends at what was found, or at what is none of ours
        return interpreter.found
    return None
