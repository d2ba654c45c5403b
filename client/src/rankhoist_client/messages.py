"""The calls a server knows, and what its answers say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt

from rankhoist_client.call import Call
from rankhoist_client.errors import CallError, InputError, ServeError
from rankhoist_client.jagged import Jagged, apart
from rankhoist_client.order import best_first
from rankhoist_client.v2 import CONTENT_TYPE, HEADER_LENGTH, Tensor, read_response, readable, write_request

Array = npt.NDArray[Any]
Features = Mapping[str, npt.ArrayLike | Tensor | Jagged]
Protocol = Literal["binary", "json"]
Rows = Sequence[Mapping[str, Any]]  # candidates one by one

OFFSETS = "request_offsets"


@dataclass(frozen=True)
class Ranking:
    """What a model says of the candidates.

    Attributes:
        outputs: every output of the model by name, `[N, ...]`, in the order of the candidates; with `top_k`, `[k, ...]`
            of the best candidates, best first.
        order: `[N]` or `[k]` numbers of the candidates, best first; None of several requests, and where the output has
            more than one value per candidate.
    """

    outputs: dict[str, Array]
    order: npt.NDArray[np.int64] | None

    @property
    def scores(self) -> Array:
        """The model's only output.

        Raises:
            InputError: the model has several.
        """
        if len(self.outputs) != 1:
            raise InputError(f"the model has several outputs; take one of outputs: {', '.join(self.outputs)}")
        return next(iter(self.outputs.values()))


@dataclass(frozen=True)
class Question:
    """What a ranking is asked for, beside the features; see `Client.rank`."""

    model: str
    top_k: int | None = None
    output: str | None = None
    context_key: str | None = None
    request_offsets: npt.ArrayLike | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no server takes.

        Raises:
            InputError: the model has no name, or `top_k` is no number from 1 on.
        """
        if not isinstance(self.model, str):
            raise InputError(f"model is {type(self.model).__name__}, expected its name on the server")
        whole = isinstance(self.top_k, int | np.integer) and not isinstance(self.top_k, bool)
        if self.top_k is not None and not (whole and self.top_k > 0):
            raise InputError(f"top_k is {self.top_k!r}, expected a whole number from 1 on")


def base_url(given: str) -> httpx.URL:
    """Where a server is.

    Raises:
        InputError: it is no URL.
    """
    try:
        return httpx.URL(given)
    except (TypeError, httpx.InvalidURL) as error:
        raise InputError(f"{given!r} is no URL of a server, such as http://127.0.0.1:8000: {error}") from None


def rank_binary(asked: Question, context: Features, candidates: Features | Rows) -> Call:
    """A v2 request with binary tensors.

    Raises:
        InputError: binary tensors have no place for what is given.
    """
    if not isinstance(candidates, Mapping):
        raise InputError("candidates are {name: [N, ...]} in the binary protocol; rows need protocol='json'")
    both = context.keys() & candidates.keys()
    if both:
        raise InputError(f"in both context and candidates: {', '.join(sorted(both))}")
    if asked.request_offsets is not None and asked.top_k is not None:
        raise InputError("top_k is of one request; request_offsets make several")
    given = apart({**context, **candidates}).items()
    inputs = {name: value if isinstance(value, Tensor) else np.asarray(value) for name, value in given}
    if asked.request_offsets is not None:
        inputs[OFFSETS] = np.asarray(asked.request_offsets, np.int64)
    microseconds = None if asked.deadline is None else 1e6 * asked.deadline
    content, length = write_request(inputs, _said(context_key=asked.context_key, timeout=microseconds))
    headers = {HEADER_LENGTH: str(length), "Content-Type": CONTENT_TYPE}
    return Call("POST", f"{_model(asked.model)}/infer", content, headers)


def rank_json(asked: Question, context: Features, candidates: Features | Rows) -> Call:
    """The JSON that a person writes; features may be lists.

    Raises:
        InputError: several requests, which this protocol does not have.
    """
    if asked.request_offsets is not None:
        raise InputError("request_offsets need protocol='binary'")
    milliseconds = None if asked.deadline is None else 1e3 * asked.deadline
    options = _said(top_k=asked.top_k, output=asked.output, context_key=asked.context_key, timeout_ms=milliseconds)
    content = json.dumps({"context": context, "candidates": candidates, **options}, default=_plain).encode()
    return Call("POST", f"/v1/models/{quote(asked.model, safe='')}/rank", content, {"Content-Type": "application/json"})


def _said(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _plain(value: Any) -> Any:
    """Arrays, bags and other mappings than dicts, as JSON knows them."""
    if isinstance(value, Jagged):
        return value.rows()
    return dict(value) if isinstance(value, Mapping) else np.asarray(value).tolist()


def ranking_binary(asked: Question, answer: httpx.Response) -> Ranking:
    """Of an answer to `rank_binary`; the order is made here, the protocol has none.

    Raises:
        CallError: the answer is none.
        InputError: there is no such output.
    """
    try:
        message = read_response(answer.content, answer.headers.get(HEADER_LENGTH))
    except ServeError as error:
        raise CallError(f"{answer.url}: the answer is no v2 response: {error}", answer.status_code) from error
    outputs = {name: readable(tensor) for name, tensor in message.tensors.items()}
    name = next(iter(outputs)) if asked.output is None else asked.output
    if name not in outputs:
        raise InputError(f"unknown output {name!r}; the outputs are {', '.join(outputs)}")
    if asked.request_offsets is not None or math.prod(outputs[name].shape[1:]) != 1:
        return Ranking(outputs, None)
    order = best_first(outputs[name].reshape(-1))[: asked.top_k]
    return Ranking(outputs if asked.top_k is None else {n: x[order] for n, x in outputs.items()}, order)


def ranking_json(answer: httpx.Response) -> Ranking:
    """Of an answer to `rank_json`."""
    about = document(answer)
    try:
        scores, order = about["scores"], np.array(about["order"], np.int64)
        outputs = scores if isinstance(scores, dict) else {"scores": scores}
        return Ranking({name: np.array(x) for name, x in outputs.items()}, order)
    except (KeyError, ValueError, TypeError) as error:
        raise CallError(f"{answer.url}: the answer is no ranking: {error!r}", answer.status_code) from error


def metadata(model: str | None) -> Call:
    """Of a model, or of the server."""
    return Call("GET", "/v2" if model is None else _model(model))


def document(answer: httpx.Response) -> dict[str, Any]:
    """The JSON object of an answer."""
    try:
        found = answer.json()
    except ValueError as error:
        raise CallError(f"{answer.url}: the answer is no JSON: {error}", answer.status_code) from error
    if not isinstance(found, dict):
        raise CallError(f"{answer.url}: the answer is no JSON object", answer.status_code)
    return found


def metrics() -> Call:
    """What the server measures."""
    return Call("GET", "/metrics")


def live() -> Call:
    """Whether the server runs."""
    return Call("GET", "/v2/health/live")


def ready(model: str | None) -> Call:
    """Whether the server or a model takes calls."""
    return Call("GET", "/v2/health/ready" if model is None else f"{_model(model)}/ready")


@contextmanager
def unhealthy_is_false() -> Iterator[None]:
    """A health call that is refused or not answered is an answer: no."""
    try:
        yield
    except CallError:
        return


def _model(name: str) -> str:
    return f"/v2/models/{quote(name, safe='')}"
