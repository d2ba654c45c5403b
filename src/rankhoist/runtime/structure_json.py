"""The containers that a model takes or returns, as plain data.

    "*"                                                              a leaf
    {"list": [...]}, {"tuple": [...]}, {"dict": [[key, ...], ...]}   and OrderedDict
    {"namedtuple": [[name, ...], ...]}                               a named tuple, of a class of ours once it is loaded
    {"fields": [[name, ... or null], ...]}                           a dataclass or another mapping: `Fields`, then

A file says no class that would be imported, so results come with the names that the model gave them, and no methods.
"""

from __future__ import annotations

import functools
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from torch.utils import _pytree as pytree

from rankhoist.capture.named import entries
from rankhoist.errors import ArtifactError
from rankhoist.runtime.plain import as_kind, shown

LEAF = "*"
PLACES = {"list": list, "tuple": tuple}
KEYS = {"dict": dict, "OrderedDict": OrderedDict}


class Fields(SimpleNamespace):
    """What a loaded model returns in place of a dataclass: `result.click`, `result["click"]`."""

    def __getitem__(self, name: str) -> Any:
        return vars(self)[name]


def _flatten(fields: Fields) -> tuple[list[Any], tuple[tuple[str, bool], ...]]:
    own = vars(fields).items()
    return [x for _, x in own if x is not None], tuple((name, x is not None) for name, x in own)


def _unflatten(leaves: Iterable[Any], names: Iterable[tuple[str, bool]]) -> Fields:
    each = iter(leaves)
    return Fields(**{name: next(each) if there else None for name, there in names})


def _with_keys(fields: Fields) -> tuple[list[Any], tuple[tuple[str, bool], ...]]:
    leaves, names = _flatten(fields)
    return list(zip((pytree.MappingKey(name) for name, there in names if there), leaves, strict=True)), names


pytree.register_pytree_node(Fields, _flatten, _unflatten, flatten_with_keys_fn=_with_keys)


@functools.lru_cache(256)
def named_tuple(names: tuple[str, ...]) -> type[tuple[Any, ...]]:
    """A class like those of `collections.namedtuple`, which evaluates the names."""

    def text(self: tuple[Any, ...]) -> str:
        return f"Result({', '.join(f'{n}={x!r}' for n, x in zip(names, self, strict=True))})"

    made = {name: property(operator.itemgetter(i)) for i, name in enumerate(names)}
    own = {
        "_fields": names,
        "__new__": lambda cls, *values: tuple.__new__(cls, values),
        "_make": classmethod(tuple.__new__),
        "_asdict": lambda self: dict(zip(names, self, strict=True)),
        "__repr__": text,
    }
    return type("Result", (tuple,), made | own)


NAMES: dict[str, Callable[[list[tuple[str, Any]]], Any]] = {
    "namedtuple": lambda pairs: named_tuple(tuple(name for name, _ in pairs))(*(x for _, x in pairs)),
    "fields": lambda pairs: Fields(**dict(pairs)),
}


def structure(spec: pytree.TreeSpec, verb: str, named: bool = False) -> Any:
    """Of what a model takes or returns, as `verb` says; some of its classes may be others then, if they have names.

    Raises:
        ArtifactError: it is a container that a file cannot hold.
    """

    def encoded(value: Any) -> Any:
        kind = type(value).__name__
        if type(value) is str:
            return value
        if type(value) in PLACES.values():
            return {kind: [encoded(v) for v in value]}
        if type(value) in KEYS.values() and all(type(key) in (str, int) for key in value):
            return {kind: [[key, encoded(v)] for key, v in value.items()]}
        names = (vars(value) if isinstance(value, Fields) else entries(value)) if named else None
        if names is None or not all(_is_name(name) for name in names):
            raise ArtifactError(f"the model {verb} {kind}; a file holds tuples, lists and dicts of tensors")
        own = [[name, None if entry is None else encoded(entry)] for name, entry in names.items()]
        return {"namedtuple" if isinstance(value, tuple) else "fields": own}

    return encoded(pytree.tree_unflatten([LEAF] * spec.num_leaves, spec))


def as_structure(data: Any) -> pytree.TreeSpec:
    """The inverse of `structure`; torch's own reader would import what the data names."""
    return pytree.tree_structure(_decoded(data))


def _decoded(value: Any) -> Any:
    if value == LEAF:
        return value
    if len(as_kind(value, dict)) != 1:
        raise ArtifactError("it has a container of no kind that there is")
    ((kind, items),) = value.items()
    items = as_kind(items, list)
    if kind in PLACES:
        return PLACES[kind](_decoded(item) for item in items)
    if kind in (*KEYS, *NAMES) and all(len(as_kind(x, list)) == 2 and type(x[0]) in (str, int) for x in items):
        pairs = [(key, None if item is None and kind == "fields" else _decoded(item)) for key, item in items]
        if kind in KEYS:
            return KEYS[kind](pairs)
        if all(_is_name(key) for key, _ in pairs) and len(dict(pairs)) == len(pairs):
            return NAMES[kind](pairs)
    raise ArtifactError(f"it has a container {shown(kind)}, which a file cannot hold")


def _is_name(name: Any) -> bool:
    return type(name) is str and name.isidentifier() and not name.startswith("_")
