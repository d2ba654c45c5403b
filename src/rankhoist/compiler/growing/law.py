"""A law: when a value of a family of operators is stable, and how its last positions are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from rankhoist.compiler.growing.known import Known, Says
from rankhoist.compiler.growing.step import Step

Path = tuple[int, ...]


def _nothing(known: Known, node: fx.Node) -> Says:
    return Says()


@dataclass(frozen=True)
class Law:
    """Of a family of operators.

    Attributes:
        says: what is known of a value; an operator without a law says nothing, and is computed anew.
        part: its last positions along an axis, None where this law knows no way but to compute all.
        whole: all of it, where it is not a matter of joining; None as for `part`.
    """

    says: Callable[[Known, fx.Node], Says] = _nothing
    part: Callable[[Step, fx.Node, int], fx.Node | None] | None = None
    whole: Callable[[Step, fx.Node], fx.Node | None] | None = None


NONE = Law()


def steady(known: Known, node: fx.Node) -> bool:
    """Whether all that it reads is stable."""
    return all(known[x].stable for x in node.all_input_nodes)


def operand(node: fx.Node, place: int = 0) -> fx.Node:
    """A value that it reads, by place."""
    return node.args[place]  # type: ignore[return-value]


def operands(args: Sequence[Any], path: Path = ()) -> Iterator[tuple[Path, fx.Node]]:
    """The nodes among arguments, and where each stands: the same one may stand twice."""
    for i, value in enumerate(args):
        if isinstance(value, fx.Node):
            yield (*path, i), value
        elif isinstance(value, list | tuple):
            yield from operands(value, (*path, i))


def replaced(args: Sequence[Any], new: Callable[[Path, fx.Node], Any], path: Path = ()) -> tuple[Any, ...]:
    """Arguments with other nodes, by where they stand."""
    return tuple(
        new((*path, i), v)
        if isinstance(v, fx.Node)
        else list(replaced(v, new, (*path, i)))
        if isinstance(v, list | tuple)
        else v
        for i, v in enumerate(args)
    )


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """An argument by place or by name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def axes_of(dims: Any, dim: int) -> list[int]:
    """Axes as numbers from the front; all of them where none are named."""
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return list(range(dim))
    return [d % dim for d in (dims if isinstance(dims, list | tuple) else [dims])]
