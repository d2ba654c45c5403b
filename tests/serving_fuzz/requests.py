"""Valid requests in every form that a server takes, in parts that can be broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BINARY, JSON = "application/octet-stream", "application/json"
DATATYPES = {"FP32": "<f4", "INT64": "<i8", "INT32": "<i4", "BOOL": "?", "FP64": "<f8"}


@dataclass
class Request:
    """A request in its parts, so that each can be broken.

    `document` is the JSON, or bytes where it is none any more; `tensors` are the bytes after it, of v2 in binary.
    """

    path: str
    document: dict[str, Any] | bytes
    tensors: list[bytes] | None = None
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=dict)  # in place of the right ones
    cut: int | None = None  # bytes of the body that are sent; then the connection is closed

    def encode(self) -> bytes:
        """The bytes on the connection."""
        text = self.document if isinstance(self.document, bytes) else json.dumps(self.document).encode()
        body = text + b"".join(self.tensors or [])
        headers = {"Host": "fuzz", "Content-Length": str(len(body))}
        headers["Content-Type"] = JSON if self.tensors is None else BINARY
        if self.tensors is not None:
            headers["Inference-Header-Content-Length"] = str(len(text))
        headers = {name: value for name, value in (headers | self.headers).items() if value}
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body[: self.cut]


@dataclass(frozen=True)
class Sample:
    """A valid request and the scores `[N]` that it must be answered with."""

    context: dict[str, np.ndarray]
    candidates: dict[str, np.ndarray]
    scores: np.ndarray
    offsets: tuple[int, ...] | None = None

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        own = {} if self.offsets is None else {"request_offsets": np.array(self.offsets, np.int64)}
        return {**self.context, **self.candidates, **own}


def document_of(request: Request) -> dict[str, Any]:
    assert isinstance(request.document, dict)
    return request.document


def inputs_of(request: Request) -> list[dict[str, Any]]:
    return document_of(request)["inputs"]


# -- in every form


def v2_binary(model: str, sample: Sample) -> Request:
    entries = [_entry(name, x) | {"parameters": {"binary_data_size": x.nbytes}} for name, x in sample.inputs.items()]
    document = {"inputs": entries, "parameters": {"binary_data_output": True}}
    return Request(f"/v2/models/{model}/infer", document, [x.tobytes() for x in sample.inputs.values()])


def v2_json(model: str, sample: Sample) -> Request:
    entries = [_entry(name, x) | {"data": x.reshape(-1).tolist()} for name, x in sample.inputs.items()]
    return Request(f"/v2/models/{model}/infer", {"inputs": entries})


def v1_columns(model: str, sample: Sample) -> Request:
    document = {
        "context": {name: x.tolist() for name, x in sample.context.items()},
        "candidates": {name: x.tolist() for name, x in sample.candidates.items()},
    }
    return Request(f"/v1/models/{model}/rank", document)


def v1_rows(model: str, sample: Sample) -> Request:
    request = v1_columns(model, sample)
    assert isinstance(request.document, dict)
    columns = request.document["candidates"]
    request.document["candidates"] = [
        dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
    ]
    return request


V2_FORMS: list[Callable[[str, Sample], Request]] = [v2_binary, v2_json]
V1_FORMS = [v1_columns, v1_rows]  # of one request


def _entry(name: str, x: np.ndarray) -> dict[str, Any]:
    datatype = next(n for n, kind in DATATYPES.items() if x.dtype == np.dtype(kind))
    return {"name": name, "shape": list(x.shape), "datatype": datatype}
