"""Inputs: their names, what one of them is, and the check of what a caller passes."""

from __future__ import annotations

import collections
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, NamedTuple

import torch

from rankhoist.arguments import as_a_tensor
from rankhoist.capture.jagged import Jagged
from rankhoist.capture.named import key_text, leaves_with_path
from rankhoist.capture.varying import Varying, with_lengths
from rankhoist.errors import InputError

Context = Sequence[str] | str | Mapping[str, "Sequence[int] | slice | bool"]


@dataclass(frozen=True)
class Split:
    """A packed input given in its two parts.

    Args:
        context: `[R, context columns]`, the context columns in their original order.
        candidate: `[N, candidate columns]`, the other columns in their original order.
    """

    context: torch.Tensor
    candidate: torch.Tensor


class Part(NamedTuple):
    """The tensor that one side gives of an input: what follows the input's name, and its columns (None: it is all)."""

    side: str
    suffix: str
    columns: tuple[int, ...] | None


@dataclass(frozen=True)
class Column:
    """What a jagged input has of each value: `[total, *shape]`."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class InputSpec:
    """One input tensor of the model: `[rows, *shape]`.

    `columns` lists the context columns: all of them for a context input (`None` where the input has no column
    axis), none for a candidate input, some for a packed one. What is left, all of it (`item`) or `item_columns`, is
    known of the item alone; the rest belongs to the pair of request and item. `bags` are what a jagged input has of
    each value; its `dtype` is that of the first, its `shape` empty. Axes that are `varying` have the size of the
    example in `shape`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    role: str  # "context" | "candidate" | "packed"
    columns: tuple[int, ...] = ()
    item: bool = False
    item_columns: tuple[int, ...] = ()
    bags: tuple[Column, ...] = ()
    varying: tuple[Varying, ...] = ()

    def leaves(self, side: str) -> tuple[str, ...]:
        """What is put behind its name for the tensors that a stage of one side reads."""
        own = dict.fromkeys(part.suffix for part in (*self.parts, *self.parts_with_store) if part.side == side)
        if not own or not self.bags:
            return tuple(own)
        return (".lengths", *(f".values_{i}" for i in range(len(self.bags))))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Its shape, with -1 for axes that vary."""
        return with_lengths(self.shape, self.varying, lambda _: -1)

    @property
    def candidate_columns(self) -> tuple[int, ...]:
        """The columns of a packed input that belong to the candidate, in order."""
        context = set(self.columns)
        return tuple(c for c in range(self.shape[0]) if c not in context)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its tensors in a call without a store: of `context` and of `candidate`."""
        if self.role != "packed":
            return (Part(self.role, "", None),)
        return Part("context", ".context", self.columns), Part("candidate", ".candidate", self.candidate_columns)

    @property
    def parts_with_store(self) -> tuple[Part, ...]:
        """Its tensors where items have a store: of `context`, `item` and `pair`."""
        if self.role == "context" or not (self.columns or self.item_columns):
            return (Part("context" if self.role == "context" else "item" if self.item else "pair", "", None),)
        item = self.candidate_columns if self.item else self.item_columns
        pair = tuple(c for c in self.candidate_columns if c not in item)
        parts = Part("context", ".context", self.columns), Part("item", ".item", item), Part("pair", ".pair", pair)
        return tuple(part for part in parts if part.columns)


@dataclass(frozen=True)
class Constant:
    """An argument that is no tensor (a temperature, a flag, None): the model is hoisted for this value of it.

    `place` is where it stands among the leaves of a call.
    """

    name: str
    place: int
    value: float | bool | str | None


CONSTANTS = (int, float, bool, str, type(None))


def constants_in(leaves: Mapping[str, Any]) -> tuple[Constant, ...]:
    """Those of a call's leaves that are no tensors."""
    found = enumerate(leaves.items())
    return tuple(Constant(name, place, value) for place, (name, value) in found if isinstance(value, CONSTANTS))


def with_others(leaves: Sequence[Any], others: Mapping[int, Any]) -> list[Any]:
    """All leaves of a call, from those that are inputs, in order, and the others by place."""
    result = list(leaves)
    for place in sorted(others):
        result.insert(place, others[place])
    return result


_LEAF = (torch.Tensor, Split, Jagged)


def named_leaves(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves of nested arguments by input name: the parameter name, or the key path inside a container.

    A key is enough where it is unique; otherwise the parameter name stands before it (`user.age`, `item.age`).
    """
    if len(arguments) == 1:
        (only,) = arguments.values()
        if isinstance(only, dict) and all(isinstance(k, str) and isinstance(v, _LEAF) for k, v in only.items()):
            return dict(only)  # one dict of tensors, as every call of a model with many features: no paths needed
    paths = {".".join([a, *path]): leaf for a, value in arguments.items() for path, leaf in _leaves(value)}
    return dict(zip(_names(paths), paths.values(), strict=True))


def _names(paths: Iterable[str]) -> list[str]:
    short = [p.split(".", 1)[-1] for p in paths]
    count = collections.Counter(short)
    return [s if count[s] == 1 else p for p, s in zip(paths, short, strict=True)]


def opened_names(given: Context, arguments: Mapping[str, Any]) -> Context:
    """`context` or `item`, with the inputs inside of a container where it is named: `user`, or paths as `user.*`."""
    paths = [".".join([a, *path]) for a, value in arguments.items() for path, _ in _leaves(value)]
    names = _names(paths)

    def inside(pattern: Any) -> list[Any]:
        if not isinstance(pattern, str) or pattern in names:
            return [pattern]
        at = paths if pattern.partition(".")[0] in arguments else [] if matching(pattern, names) else names
        found = {*matching(pattern, at), *matching(f"{pattern}.*", at)}
        return [name for name, path in zip(names, at, strict=False) if path in found] or [pattern]

    if isinstance(given, Mapping):
        return {name: columns for pattern, columns in given.items() for name in inside(pattern)}
    if not isinstance(given, Iterable):
        return given  # which is refused by its name
    return [name for pattern in ([given] if isinstance(given, str) else given) for name in inside(pattern)]


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a name or a glob stands for."""
    return [name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]


def _leaves(value: Any) -> Iterable[tuple[list[str], Any]]:
    """Those of one argument, with their key paths; most are tensors or a dict of them, which takes no search."""
    if isinstance(value, _LEAF):
        return [([], value)]
    if type(value) is dict and all(isinstance(v, _LEAF) for v in value.values()):
        return [([str(k)], v) for k, v in value.items()]
    return [([key_text(k) for k in path], leaf) for path, leaf in leaves_with_path(value)]


def missing_inputs(
    names: Sequence[str], leaves: Mapping[str, Any], what: str = "inputs", given: Mapping[str, Any] | None = None
) -> InputError:
    """What to raise where inputs of these names are not among the leaves of a call, of what is `given` by name."""
    for name in names:
        value = (given or {}).get(name)
        if isinstance(value, list | tuple) and all(isinstance(x, int | float) for x in value):
            return InputError(f"input {name!r} is {type(value).__name__}, expected a tensor{as_a_tensor(value)}")
        parts = [leaf for leaf in leaves if leaf.startswith(f"{name}.")]
        if parts:
            more = f" and {len(parts) - 1} more" if len(parts) > 1 else ""
            own = as_a_tensor([]) if all(isinstance(leaves[part], int | float) for part in parts) else ""
            return InputError(
                f"input {name!r} is a container ({parts[0]}{more}), expected a tensor with rows on axis 0{own}"
            )
    advice = "".join(
        f". Register the type of {name!r}: torch.export.register_dataclass({type(leaf).__name__})"
        for name, leaf in leaves.items()
        if is_dataclass(leaf)
    )
    return InputError(f"missing {what}: {', '.join(names)}; got {', '.join(leaves) or 'none'}{advice}")


def common_rows(leaves: Mapping[str, Any]) -> int:
    """The row count that all example tensors share; explains what is wrong otherwise."""
    leaves = {name: leaf for name, leaf in leaves.items() if not isinstance(leaf, CONSTANTS)}
    if not leaves:
        raise InputError("the example holds no tensor at all; pass a tuple of tensors, or a dict of keyword inputs")
    meta = {name: leaf.is_meta for name, leaf in leaves.items() if isinstance(leaf, torch.Tensor)}
    for name, leaf in leaves.items():
        if not isinstance(leaf, torch.Tensor | Jagged):
            kind = type(leaf).__name__
            own = as_a_tensor(leaf)
            if isinstance(leaf, Mapping):
                own = ". A dict is taken apart: dict(x)"
            raise InputError(f"input {name!r} is {kind}, expected a tensor with rows on axis 0{own}")
        if isinstance(leaf, torch.Tensor) and leaf.layout != torch.strided and not leaf.is_nested:
            raise InputError(f"input {name!r} is {leaf.layout}, expected a dense tensor: to_dense()")
        if meta.get(name) and not all(meta.values()):
            raise InputError(f"input {name!r} is on the meta device and has no values, which others have")
        if isinstance(leaf, torch.Tensor) and leaf.is_nested:
            raise InputError(
                f"input {name!r} is a nested tensor, which torch.export does not take apart: give the model its values "
                "and offsets, x.values() and x.offsets(), as two inputs, named in jagged={values: offsets}"
            )
        if leaf.dim() == 0:
            raise InputError(f"input {name!r} is a scalar tensor, expected rows on axis 0")
    rows = {name: leaf.shape[0] for name, leaf in leaves.items()}
    if len(set(rows.values())) > 1:
        listing = ", ".join(f"{name}: {count}" for name, count in rows.items())
        advice = "Values in bags, with lengths or offsets, are named in jagged={values: lengths}"
        if len({*rows.values()} - {1}) == 1:
            advice = "An example is rows as the model was trained on: one row of context is repeated, x.expand(N, ...)"
        raise InputError(
            f"the example's inputs have different row counts ({listing}); axis 0 must be the same row. {advice}"
        )
    count = int(next(iter(rows.values())))
    if count == 0:
        raise InputError("the example has no rows; pass at least one")
    return count


def own_rows(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The example in memory of its own: a view of a data set would keep, and save, all of the data set."""
    return {n: x.detach().clone() if isinstance(x, torch.Tensor | Jagged) else x for n, x in leaves.items()}
