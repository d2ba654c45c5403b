"""Change the dtype or device that emitted graphs name, when the hoisted model moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from rankhoist.emit import Stages


def retarget(stages: Stages, names: Mapping[Any, Any]) -> None:
    """Replace dtypes and devices in the arguments of all graphs."""
    changed = {old: new for old, new in names.items() if old != new}
    if not changed:
        return
    for stage in stages.all:
        for node in stage.module.graph.nodes:
            node.args = _replaced(node.args, changed)
            node.kwargs = _replaced(dict(node.kwargs), changed)
        stage.renew()


def _replaced(value: Any, names: Mapping[Any, Any]) -> Any:
    if isinstance(value, tuple | list):
        return type(value)(_replaced(v, names) for v in value)
    if isinstance(value, dict):
        return {k: _replaced(v, names) for k, v in value.items()}
    if isinstance(value, fx.Node) or value.__hash__ is None:
        return value
    return names.get(value, value) if type(value) in {type(k) for k in names} else value
