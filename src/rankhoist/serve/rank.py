"""The protocol that a person tries first: context and candidates as JSON, scores and their order back.

{"context": {"user": 7}, "candidates": {"item": [3, 5]}, "top_k": 1}        columns, or
{"context": {"user": 7}, "candidates": [{"item": 3}, {"item": 5}]}          rows
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from rankhoist_client import v2
from rankhoist_client.order import best_first
from rankhoist_client.refusal import RequestError

from rankhoist.serve.columns import read_columns
from rankhoist.serve.inputs import Signature
from rankhoist.serve.model import Scored, ServedModel

KEYS = ("context", "candidates", "top_k", "output", "context_key", "timeout_ms", "unknown_ids")


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
    tensors = read_columns(found.get("context", {}), "context", signature, "context")
    tensors |= read_columns(found.get("candidates"), "candidate", signature, "candidates")
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
