"""Containers whose entries have names: named tuples, dataclasses, and mappings as those that transformers return."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

Path = tuple[Any, ...]


def entries(value: Any) -> dict[Any, Any] | None:
    """By name; None where it has no names."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(value._fields, value, strict=True))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    return None


def leaves_with_path(value: Any, path: Path = ()) -> list[tuple[Path, Any]]:
    """As torch's `tree_flatten_with_path`, which raises where whoever registered a container gave it no keys."""
    node = pytree.SUPPORTED_NODES.get(pytree._get_node_type(value))
    if node is None:
        return [(path, value)]
    children, _ = node.flatten_fn(value)
    keys = _keys(value, children)
    return [leaf for key, child in zip(keys, children, strict=True) for leaf in leaves_with_path(child, (*path, key))]


def key_text(key: Any) -> str:
    """A key, place or name in a path."""
    return next((str(getattr(key, a)) for a in ("key", "idx", "name") if hasattr(key, a)), str(key))


def _keys(value: Any, children: Sequence[Any]) -> list[Any]:
    own = {name: entry for name, entry in (entries(value) or {}).items() if entry is not None}
    if len(own) == len(children) and all(a is b for a, b in zip(own.values(), children, strict=True)):
        key = pytree.GetAttrKey if isinstance(value, tuple) else pytree.MappingKey
        return [key(name) for name in own]
    with_keys = pytree.SUPPORTED_NODES[pytree._get_node_type(value)].flatten_with_keys_fn
    return (
        [key for key, _ in with_keys(value)[0]] if with_keys else [pytree.SequenceKey(i) for i in range(len(children))]
    )


def results_registered(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a model returns dataclasses that torch did not know, and knows now."""
    with torch.no_grad():
        return dataclasses_registered(model(*args, **kwargs))


def dataclasses_registered(value: Any) -> bool:
    """Register dataclasses with torch's pytrees, by `torch.export.register_dataclass`; whether one was not before."""
    found = {type(x) for x in _dataclasses(value)}
    for kind in found:
        torch.export.register_dataclass(kind)
    return bool(found)


def _dataclasses(value: Any) -> Iterator[Any]:
    """Those that torch takes for leaves, with what is in them."""
    for leaf in pytree.tree_leaves(value):
        own = type(leaf).__module__.startswith(f"{__package__.partition('.')[0]}.")  # bags, and inputs in two parts
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type) and not own:
            yield leaf
            for entry in (entries(leaf) or {}).values():
                yield from _dataclasses(entry)
