"""A made-up request of a model, as JSON that works when it is pasted: ids inside their tables, and no real user's data.

Values count on, so that rows differ. An id whose table is not known is 1.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rankhoist_client.v2 import TEXT

from rankhoist.runtime.vocabulary import FREE
from rankhoist.serve.features import Feature
from rankhoist.serve.inputs import Signature
from rankhoist.serve.model import ServedModel

CANDIDATES = 3
BAGS = (2, 1, 3)  # values of their rows
LENGTH = 3  # of axes that vary, where that is within their bounds
LARGEST = 97  # ids are below: exact in every floating dtype
EIGHTHS = 8  # numbers are 0, 1/8, ..., 7/8: exact, too, and as short in JSON


def rank_example(model: ServedModel) -> dict[str, Any] | None:
    """For `/v1/models/NAME/rank`; None where no output puts candidates in an order."""
    orders = [output.name for output in model.outputs if output.orders]
    if not orders:
        return None
    sides: dict[str, dict[str, Any]] = {"context": {}, "candidate": {}}
    for feature in model.signature.features.values():
        rows = _rows(model, feature)
        sides[feature.side][feature.name] = rows[0] if feature.side == "context" else rows
    example = {"context": sides["context"], "candidates": sides["candidate"]}
    return example if model.outputs[0].orders else example | {"output": orders[0]}


def infer_example(model: ServedModel) -> dict[str, Any]:
    """For `/v2/models/NAME/infer`, without binary data."""
    inputs = []
    for feature in model.signature.features.values():
        given = [_values(model, feature), np.asarray(_sizes(feature))] if feature.jagged else [_values(model, feature)]
        for (name, tensor), values in zip(feature.tensors.items(), given, strict=False):
            entry = {"name": name, "shape": list(values.shape), "datatype": tensor.datatype}
            inputs.append(entry | {"data": values.reshape(-1).tolist()})
    return {"inputs": inputs}


def items_example(model: ServedModel) -> dict[str, Any]:
    """For `/v1/models/NAME/items`: an item that the catalogue does not have."""
    assert model.items is not None, "it has a catalogue"
    ids, feature = model.items.store.ids, model.items.feature
    new = [f"{ids[-1]}-2"] if feature.datatype == TEXT else [int(ids[-1]) + 1]
    others = Signature.of_items(model.hoisted, feature).features.values()
    return {"items": {feature.name: new, **{f.name: _rows(model, f)[:1] for f in others if not f.names_items}}}


def _rows(model: ServedModel, feature: Feature) -> list[Any]:
    """The rows of a feature, some of its values each where it is jagged."""
    values: list[Any] = _values(model, feature).tolist()
    if not feature.jagged:
        return values
    ends = list(itertools.accumulate(_sizes(feature), initial=0))
    return [values[a:b] for a, b in itertools.pairwise(ends)]


def _sizes(feature: Feature) -> tuple[int, ...]:
    """Of the bags of a jagged feature."""
    return BAGS[:1] if feature.side == "context" else BAGS


def _values(model: ServedModel, feature: Feature) -> NDArray[Any]:
    """The values of a feature; of one that names items, the first ids of the catalogue."""
    if not feature.names_items or model.items is None:
        return _readable(feature)
    ids = model.items.store.ids
    found: NDArray[Any] = ids[np.arange(CANDIDATES) % len(ids)]
    return found


def _readable(feature: Feature) -> NDArray[Any]:
    """`[1, *shape]` or `[CANDIDATES, *shape]`; of a jagged feature the values of all rows."""
    rows = 1 if feature.side == "context" else CANDIDATES
    lengths = {v.length: min(max(LENGTH, v.low), LENGTH if v.high is None else v.high) for v in feature.varying}
    shape = (sum(_sizes(feature)) if feature.jagged else rows, *feature.row(lengths))
    count = np.arange(math.prod(shape)).reshape(shape)
    if feature.datatype == "BOOL":
        return np.asarray(count % 2 == 0)
    bounds = np.asarray(FREE if feature.bounds is None else feature.bounds)
    bounds = np.broadcast_to(bounds.reshape(feature.shape) if bounds.ndim else bounds, shape)
    floating = feature.datatype.startswith(("FP", "BF"))
    free = count % EIGHTHS / EIGHTHS if floating else np.ones(shape, np.int64)
    values: NDArray[Any] = np.where(bounds == FREE, free, count % np.minimum(bounds, LARGEST))
    return values
