"""Features in JSON, in columns or in rows, as tensors of the dtype that they must have, and not checked yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rankhoist_client import v2
from rankhoist_client.columns import bags, column
from rankhoist_client.refusal import RequestError

from rankhoist.serve import lengths
from rankhoist.serve.bags import cuts_of, values_of
from rankhoist.serve.features import Feature
from rankhoist.serve.inputs import Signature


def read_columns(given: Any, side: str, signature: Signature, key: str) -> dict[str, v2.Tensor]:
    """The features of one side, which were given under a key of the request.

    Raises:
        RequestError: they are malformed; the feature and the row are named.
    """
    if side == "context" and not isinstance(given, dict):
        raise RequestError("malformed", f"{key!r} is not an object of features")
    columns = given if side == "context" else _columns(given, signature, key)
    tensors = {}
    for name, values in columns.items():
        feature = _feature(signature, name, side)
        if feature.jagged:
            array, cut = _bags(feature, values)
            tensors[values_of(name)] = v2.Tensor(feature.datatype, array)
            tensors[cuts_of(name)[0]] = v2.Tensor("INT64", cut)
        else:
            tensors[name] = v2.Tensor(feature.datatype, _array(feature, values))
    return tensors


def _feature(signature: Signature, name: str, side: str) -> Feature:
    feature = signature.features.get(name)
    if feature is None:
        known = ", ".join(f.name for f in signature.features.values() if f.side == side)
        raise RequestError("unknown_input", f"unknown {side} feature {name[:60]!r}; the features are {known}", name)
    if feature.side != side:
        raise RequestError(
            "unknown_input", f"{name!r} is a {feature.side} feature, given with the {side} features", name
        )
    return feature


def _array(feature: Feature, values: Any) -> NDArray[Any]:
    """A column of candidates, or the one row of the context, which may stand alone or in a list."""
    if feature.side == "candidate":
        return column(feature.name, values, lengths.of_lists(feature, values), feature.datatype)
    rows = values if _depth(values) > len(feature.shape) else [values]
    array = column(feature.name, rows, lengths.of_lists(feature, rows), feature.datatype)
    if len(array) != 1:
        raise RequestError("shape", f"context feature {feature.name!r} has {len(array)} rows, expected 1", feature.name)
    return array


def _bags(feature: Feature, values: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """A list of values for every candidate, or the one of the context, which may stand alone or in a list."""
    alone = feature.side == "context" and _depth(values) <= 1 + len(feature.shape)
    array, cut = bags(feature.name, [values] if alone else values, feature.shape, feature.datatype)
    if feature.side == "context" and len(cut) != 1:
        message = f"context feature {feature.name!r} has {len(cut)} rows, expected 1: a list of its values"
        raise RequestError("shape", message, feature.name)
    return array, cut


def _depth(values: Any) -> int:
    depth = 0
    while isinstance(values, list):
        depth, values = depth + 1, values[0] if values else None
    return depth


def _columns(rows: Any, signature: Signature, key: str) -> Mapping[str, Any]:
    """Columns by name, from columns or from rows."""
    if isinstance(rows, dict):
        return rows
    if not isinstance(rows, list) or not {dict}.issuperset(map(type, rows)):
        raise RequestError("malformed", f"{key!r} is neither an object of columns nor a list of objects")
    if not rows:  # no row says which features it has
        return {f.name: [] for f in signature.features.values() if f.side == "candidate"}
    for row, given in enumerate(rows):
        if given.keys() != rows[0].keys():
            name = sorted(given.keys() ^ rows[0].keys())[0]
            raise RequestError("ragged", f"row {row} of the {key} and row 0 differ in feature {name[:60]!r}", name)
    return {name: [row[name] for row in rows] for name in rows[0]}
