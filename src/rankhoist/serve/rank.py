"""The protocol that a person tries first: context and candidates as JSON, scores and their order back.

{"context": {"user": 7}, "candidates": {"item": [3, 5]}, "top_k": 1}        columns, or
{"context": {"user": 7}, "candidates": [{"item": 3}, {"item": 5}]}          rows
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from rankhoist_client import v2
from rankhoist_client.columns import column
from rankhoist_client.order import best_first
from rankhoist_client.refusal import RequestError

from rankhoist.serve.inputs import Feature, Signature
from rankhoist.serve.model import Scored, ServedModel

KEYS = ("context", "candidates", "top_k", "output", "context_key", "timeout_ms")


@dataclass(frozen=True)
class RankRequest:
    """A request as it was read: its features are not checked yet."""

    tensors: dict[str, v2.Tensor]
    top_k: int | None
    output: str | None
    options: dict[str, Any]


def read_rank(body: bytes, signature: Signature) -> RankRequest:
    """A request from its body.

    Raises:
        RequestError: it is malformed; the feature and the row are named.
    """
    found = v2.read_object(body)
    unknown = sorted(found.keys() - set(KEYS))
    if unknown:
        raise RequestError("malformed", f"unknown key {unknown[0][:60]!r}; the keys are {', '.join(KEYS)}")
    context = found.get("context", {})
    if not isinstance(context, dict):
        raise RequestError("malformed", "'context' is not an object of features")
    candidates = _columns(found.get("candidates"), signature)
    tensors = {}
    for side, given in (("context", context), ("candidate", candidates)):
        for name, values in given.items():
            feature = _feature(signature, name, side)
            tensors[name] = v2.Tensor(feature.datatype, _array(feature, values))
    top_k, output = found.get("top_k"), found.get("output")
    if top_k is not None and not (type(top_k) is int and top_k > 0):
        raise RequestError("parameter", f"'top_k' is {top_k!r:.20}, expected a number from 1 on")
    if output is not None and not isinstance(output, str):
        raise RequestError("parameter", "'output' is not the name of an output")
    return RankRequest(tensors, top_k, output, found)


def write_rank(model: ServedModel, scored: Scored, request: RankRequest) -> bytes:
    """The answer: scores in the order of the candidates, and the candidates' numbers, best first.

    With `top_k`, both have k entries, best first.
    """
    name = _ordering(model, request.output)
    values = {o.name: v2.readable(v2.Tensor(o.datatype, scored.outputs[o.name])) for o in model.outputs}
    order = best_first(values[name].reshape(-1))
    if request.top_k is not None:
        order = order[: request.top_k]
        values = {key: array[order] for key, array in values.items()}
    shown = {key: np.ascontiguousarray(array.reshape(-1) if _one(array) else array) for key, array in values.items()}
    scores = shown[name] if len(shown) == 1 else shown
    answer = {"model": model.name, "version": model.version, "scores": scores, "order": order}
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)


def check_output(model: ServedModel, output: str | None) -> None:
    """Refuse an output that there is not, or that cannot be put in an order, before anything is computed."""
    _ordering(model, output)


def _ordering(model: ServedModel, output: str | None) -> str:
    """The name of the output that the candidates are put in order by: the first if none is asked for."""
    for found in model.outputs:
        if output in (None, found.name):
            if not found.orders:
                message = f"output {found.name!r} has {list(found.shape)} values per candidate, which have no order"
                raise RequestError("unknown_output", message)
            return found.name
    known = ", ".join(o.name for o in model.outputs)
    raise RequestError("unknown_output", f"unknown output {str(output)[:60]!r}; the outputs are {known}")


def _one(array: NDArray[Any]) -> bool:
    return array.ndim > 1 and all(size == 1 for size in array.shape[1:])


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
        return column(feature.name, values, feature.shape, feature.datatype)
    rows = values if _depth(values) > len(feature.shape) else [values]
    array = column(feature.name, rows, feature.shape, feature.datatype)
    if len(array) != 1:
        raise RequestError("shape", f"context feature {feature.name!r} has {len(array)} rows, expected 1", feature.name)
    return array


def _depth(values: Any) -> int:
    depth = 0
    while isinstance(values, list):
        depth, values = depth + 1, values[0] if values else None
    return depth


def _columns(candidates: Any, signature: Signature) -> Mapping[str, Any]:
    """Columns by name, from columns or from rows."""
    if isinstance(candidates, dict):
        return candidates
    if not isinstance(candidates, list) or not {dict}.issuperset(map(type, candidates)):
        raise RequestError("malformed", "'candidates' is neither an object of columns nor a list of objects")
    if not candidates:  # no row says which features it has
        return {f.name: [] for f in signature.features.values() if f.side == "candidate"}
    for row, given in enumerate(candidates):
        if given.keys() != candidates[0].keys():
            name = sorted(given.keys() ^ candidates[0].keys())[0]
            raise RequestError("ragged", f"row {row} of the candidates and row 0 differ in feature {name[:60]!r}", name)
    return {name: [row[name] for row in candidates] for name in candidates[0]}
