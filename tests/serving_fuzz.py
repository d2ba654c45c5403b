"""Requests to a server, most broken on purpose, by structure: headers, shapes, dtypes, bytes, JSON, HTTP itself.

A request starts out valid. A breaker changes one thing about it, and says whether what comes out is surely wrong (then
the server must refuse it, with a 4xx) or may still be right by chance.
"""

from __future__ import annotations

import copy
import json
import random
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BINARY, JSON = "application/octet-stream", "application/json"
DATATYPES = {"FP32": "<f4", "INT64": "<i8", "INT32": "<i4", "BOOL": "?", "FP64": "<f8"}
BUSY = 503
LIMIT = 2**18  # bytes of a body; of the valid ones a hundredth


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


# -- valid requests, in every form


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


# -- breakers: (random, valid request) -> whether the result is surely wrong; they change the request in place

Breaker = Callable[[random.Random, Request], bool]

HUGE = [2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, 2**64, 10**30]
JUNK = [None, True, -1, 0.5, 1e308, "", "x", "\u0000", [], [[]], {}, {"a": 1}, *HUGE]
NAMES = ["", "x", "\u0000", "request_offsets", "context", "../../etc/passwd", "a" * 10_000, "__class__", "\U0001f600"]


def drop_input(draw: random.Random, request: Request) -> bool:
    own = _inputs(request)
    i = draw.randrange(len(own))
    own.pop(i)
    if request.tensors is not None:
        request.tensors.pop(i)
    return True


def rename_input(draw: random.Random, request: Request) -> bool:
    entry = draw.choice(_inputs(request))
    new = draw.choice(NAMES)
    changed = entry["name"] != new
    entry["name"] = new
    return changed


def duplicate_input(draw: random.Random, request: Request) -> bool:
    own = _inputs(request)
    i = draw.randrange(len(own))
    own.append(copy.deepcopy(own[i]))
    if request.tensors is not None:
        request.tensors.append(request.tensors[i])
    return True


def unnamed_input(draw: random.Random, request: Request) -> bool:
    draw.choice(_inputs(request))["name"] = draw.choice(JUNK[:-2])
    return True


def wrong_datatype(draw: random.Random, request: Request) -> bool:
    entry = draw.choice(_inputs(request))
    new = draw.choice([*DATATYPES, "BYTES", "FP16", "BF16", "UINT8", "fp32", "", None, 7])
    changed = entry["datatype"] != new
    entry["datatype"] = new
    # JSON values and integers may be taken as another dtype of the same kind
    return changed and request.tensors is not None


def wrong_size_in_shape(draw: random.Random, request: Request) -> bool:
    shape = draw.choice(_inputs(request))["shape"]
    i = draw.randrange(len(shape))
    new = draw.choice([0, 1, 2, shape[i] + 1, shape[i] - 1, -1, *HUGE, 0.5, "3", None])
    changed = new is not True and shape[i] != new
    shape[i] = new
    return changed


def wrong_shape(draw: random.Random, request: Request) -> bool:
    entry = draw.choice(_inputs(request))
    old = entry["shape"]
    entry["shape"] = draw.choice([*JUNK, [*old, 1], old[1:], [draw.choice(HUGE)] * draw.randrange(1, 70), old[::-1]])
    return entry["shape"] not in (old, [*old, 1], old[1:])


def huge_shape_that_fits_no_memory(draw: random.Random, request: Request) -> bool:
    for entry in _inputs(request):
        entry["shape"] = [2**31 - 1, *entry["shape"][1:]]
        if request.tensors is not None:
            entry["parameters"] = {"binary_data_size": draw.choice([2**40, 2**62, 0])}
    return True


def huge_shape_of_nothing(draw: random.Random, request: Request) -> bool:
    """No values at all, in a shape that no memory holds without its zero."""
    i = draw.randrange(len(_inputs(request)))
    entry = _inputs(request)[i]
    entry["shape"] = [0, *draw.choices([1, 2**16, 2**31 - 1], k=draw.randrange(2, 8))]
    draw.shuffle(entry["shape"])
    if request.tensors is None:
        entry["data"] = draw.choice([[], [[]] * 5])
    else:
        request.tensors[i], entry["parameters"] = b"", {"binary_data_size": 0}
    return True


def wrong_binary_size(draw: random.Random, request: Request) -> bool:
    if request.tensors is None:
        return wrong_shape(draw, request)
    parameters = draw.choice(_inputs(request))["parameters"]
    old = parameters["binary_data_size"]
    parameters["binary_data_size"] = draw.choice([*JUNK, old + 1, old - 1, old * 2, -old])
    return parameters["binary_data_size"] is not None and parameters["binary_data_size"] != old


def cut_tensors(draw: random.Random, request: Request) -> bool:
    if not request.tensors:
        return cut_document(draw, request)
    request.tensors[-1] = request.tensors[-1][: draw.randrange(len(request.tensors[-1]))]
    return True


def more_bytes(draw: random.Random, request: Request) -> bool:
    extra = draw.choice([b"\0", b" x", b"{}", b"GET / HTTP/1.1\r\n\r\n", draw.randbytes(1000)])
    if request.tensors is None:
        request.document = json.dumps(request.document).encode() + extra
    else:
        request.tensors.append(extra)
    return True


def not_finite(draw: random.Random, request: Request) -> bool:
    """NaN or infinity in a float input; in JSON, as the names that Python writes and no JSON has."""
    bad = draw.choice([float("nan"), float("inf"), float("-inf")])
    entries = _inputs(request)
    floats = [i for i, e in enumerate(entries) if e["datatype"] == "FP32"]
    i = draw.choice(floats)
    if request.tensors is None:
        entries[i]["data"][draw.randrange(len(entries[i]["data"]))] = bad
    else:
        at = 4 * draw.randrange(len(request.tensors[i]) // 4)
        request.tensors[i] = request.tensors[i][:at] + struct.pack("<f", bad) + request.tensors[i][at + 4 :]
    return True


def out_of_vocabulary(draw: random.Random, request: Request) -> bool:
    bad = draw.choice([-1, -(2**63), 2**63 - 1, 10_000, 2**31, 2**32])
    entries = _inputs(request)
    i = draw.choice([i for i, e in enumerate(entries) if e["datatype"] == "INT64"])
    if request.tensors is None:
        entries[i]["data"][draw.randrange(len(entries[i]["data"]))] = bad
    else:
        at = 8 * draw.randrange(len(request.tensors[i]) // 8)
        request.tensors[i] = request.tensors[i][:at] + struct.pack("<q", bad) + request.tensors[i][at + 8 :]
    return True


def wrong_offsets(draw: random.Random, request: Request) -> bool:
    rows = max(e["shape"][0] for e in _inputs(request))
    bad = draw.choice([[], [0], [rows], [1, rows], [0, rows + 1], [0, -1], [0, rows, 0], [0] * 9 + [rows], [2**62, 0]])
    own = _inputs(request)
    at = next((i for i, e in enumerate(own) if e["name"] == "request_offsets"), len(own))
    entry = {"name": "request_offsets", "shape": [len(bad)], "datatype": "INT64"}
    data = np.array(bad, np.int64).tobytes()
    entry |= {"data": bad} if request.tensors is None else {"parameters": {"binary_data_size": len(data)}}
    own[at : at + 1] = [entry]
    if request.tensors is not None:
        request.tensors[at : at + 1] = [data]
    return True


def wrong_header_length(draw: random.Random, request: Request) -> bool:
    length = len(json.dumps(request.document))
    new = draw.choice(
        [0, 1, length - 1, length + 1, length * 2, -1, 2**31, 2**64, "x", "1e3", " ", f"+{length}", "0x10"]
    )
    request.headers["Inference-Header-Content-Length"] = str(new)
    return request.tensors is not None and str(new).strip() not in ("", f"+{length}")


def wrong_json_values(draw: random.Random, request: Request) -> bool:
    if request.tensors is not None:
        return wrong_datatype(draw, request)
    entry = draw.choice(_inputs(request))
    old = entry["data"]
    i = draw.randrange(len(old))
    replaced = [[*old[:i], bad, *old[i + 1 :]] for bad in ("7", None, 10**400, [1], {})]
    entry["data"] = draw.choice([None, "x", {}, 7, old[:-1], [*old, old[0]], [old, old], *replaced])
    return True


def wrong_parameters(draw: random.Random, request: Request) -> bool:
    name = draw.choice(["context_key", "timeout", "binary_data_output", "id", "x" * 1000, "sequence_id"])
    _document(request).setdefault("parameters", {})
    parameters = _document(request)["parameters"]
    _document(request)["parameters"] = draw.choice([{**parameters, name: draw.choice(JUNK)}, *JUNK])
    return False


def wrong_outputs(draw: random.Random, request: Request) -> bool:
    junk = draw.choice(JUNK)
    _document(request)["outputs"] = draw.choice([junk, [junk], [{"name": junk}], [{"name": "x", "parameters": junk}]])
    return False


def wrong_section(draw: random.Random, request: Request) -> bool:
    """A part of the document is something else."""
    document = _document(request)
    name = draw.choice([n for n in ("inputs", "context", "candidates") if n in document])
    document[name] = draw.choice([*JUNK, [1], [None], ["x"], {"x": None}])
    return (name, document[name]) != ("candidates", [])  # no rows are no candidates


def extra_sections(draw: random.Random, request: Request) -> bool:
    _document(request)[draw.choice(["top_k", "context_key", "output", "timeout_ms", "x"])] = draw.choice(JUNK)
    return False


# of /v1: {"context": {...}, "candidates": {...} or [...]}


def wrong_column(draw: random.Random, request: Request) -> bool:
    document = _document(request)
    side = draw.choice(["context", "candidates"])
    part = document[side] if isinstance(document[side], dict) else draw.choice(document[side])
    name = draw.choice(list(part))
    match draw.randrange(4):
        case 0:
            del part[name]
        case 1:
            part[draw.choice(NAMES)] = part.pop(name)
        case 2:
            part[name] = draw.choice([None, "x", {}, {"a": 1}, [[[[]]]], 10**400, [None], [{}]])
        case 3:
            part["surplus"] = part[name]
    return True


def ragged(draw: random.Random, request: Request) -> bool:
    """A column one shorter than the others, or a row of it."""
    candidates = _document(request)["candidates"]
    if isinstance(candidates, list):
        lists = [n for n, x in candidates[0].items() if isinstance(x, list)]
        row = draw.choice(candidates)
        row[draw.choice(lists)].append(1)
        return True
    name = draw.choice(list(candidates))
    if draw.random() < 0.5 and isinstance(candidates[name][0], list):
        draw.choice(candidates[name]).pop()
    else:
        candidates[name] = candidates[name][:-1]
    return True


def wrong_value(draw: random.Random, request: Request) -> bool:
    """One value somewhere in the candidates is of another kind."""
    candidates = _document(request)["candidates"]
    rows = candidates if isinstance(candidates, list) else list(candidates.values())
    target = draw.choice(rows)
    key: Any = draw.choice(list(target)) if isinstance(target, dict) else draw.randrange(len(target))
    if isinstance(target[key], list):
        target, key = target[key], draw.randrange(len(target[key]))
    target[key] = draw.choice([None, "1", [], {}, True, 10**400, float("nan"), float("inf"), -(10**18)])
    return target[key] is None or isinstance(target[key], str | dict | list)


# of any body


def cut_document(draw: random.Random, request: Request) -> bool:
    text = json.dumps(request.document).encode()
    request.document = text[: draw.randrange(len(text))]
    return True


def flip_document(draw: random.Random, request: Request) -> bool:
    text = bytearray(json.dumps(request.document).encode())
    for _ in range(draw.choice([1, 1, 3, 20])):
        text[draw.randrange(len(text))] = draw.randrange(256)
    request.document = bytes(text)
    return False


def flip_tensors(draw: random.Random, request: Request) -> bool:
    if not request.tensors:
        return flip_document(draw, request)
    i = draw.randrange(len(request.tensors))
    data = bytearray(request.tensors[i])
    for _ in range(draw.choice([1, 4, 50])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    request.tensors[i] = bytes(data)
    return False


def bad_utf8(draw: random.Random, request: Request) -> bool:
    text = json.dumps(request.document).encode()
    at = text.index(b'"') + 1
    request.document = text[:at] + draw.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80"]) + text[at:]
    return True


def deep(draw: random.Random, request: Request) -> bool:
    depth = draw.choice([200, 2_000, 50_000])
    opening, closing = draw.choice([(b"[", b"]"), (b'{"a":', b"}")])
    value = opening * depth + b"1" + closing * depth
    text = json.dumps(request.document).encode()
    request.document = draw.choice([value, text[:-1] + b',"x":' + value + b"}"])
    return request.document is value


def not_an_object(draw: random.Random, request: Request) -> bool:
    request.document = draw.choice([b"", b"null", b"[]", b"1", b'"x"', b"\0", b"NaN", b"[" * 10, draw.randbytes(300)])
    request.tensors = [] if request.tensors is not None else None
    return True


# of HTTP


def closed_early(draw: random.Random, request: Request) -> bool:
    """The body ends before the length that was promised."""
    request.cut = draw.choice([0, 1, draw.randrange(200)])
    return True


def promised_too_much(draw: random.Random, request: Request) -> bool:
    request.headers["Content-Length"] = str(draw.choice([2**31, 2**40, 10**12]))
    request.cut = draw.choice([0, 100])
    return True


def over_the_limit(draw: random.Random, request: Request) -> bool:
    """Nothing is wrong with it but its size. The server may close the connection before all of it was sent."""
    request.document, request.tensors = json.dumps(request.document).encode() + b" " * LIMIT, None
    request.headers["Transfer-Encoding"] = draw.choice(["", "chunked"])
    if request.headers["Transfer-Encoding"]:
        request.document = f"{len(request.document):x}\r\n".encode() + request.document + b"\r\n0\r\n\r\n"
        request.headers["Content-Length"] = ""
    request.cut = len(request.document)
    return True


def wrong_content_length(draw: random.Random, request: Request) -> bool:
    request.headers["Content-Length"] = draw.choice(["-1", "x", "1e9", "99999999999999999999999", "1, 2"])
    request.cut = 0
    return True


def wrong_transfer(draw: random.Random, request: Request) -> bool:
    request.headers["Transfer-Encoding"] = draw.choice(["chunked", "gzip", "x"])
    request.headers["Content-Length"] = ""
    request.cut = draw.randrange(50)
    return True


def wrong_encoding(draw: random.Random, request: Request) -> bool:
    request.headers["Content-Encoding"] = draw.choice(["gzip", "br", "zstd", "x"])
    return True


def wrong_path(draw: random.Random, request: Request) -> bool:
    odd = ["nobody", "..", "%00", "%ff%fe", "a" * 5000, "..%2f..%2fetc%2fpasswd", "%F0%9F%98%80", "models"]
    request.path = request.path.replace(request.path.split("/")[3], draw.choice(odd))
    if draw.random() < 0.3:
        request.path = draw.choice(
            ["/", "//", "/v2/models", "/v3", "/metrics/x", "/v2/models//infer", "/?x=" + "y" * 999]
        )
    return True


def wrong_method(draw: random.Random, request: Request) -> bool:
    request.method = draw.choice(["PUT", "DELETE", "PATCH", "TRACE", "BREW"])
    return True


V2: list[Breaker] = [
    drop_input, rename_input, duplicate_input, unnamed_input, wrong_datatype, wrong_size_in_shape, wrong_shape,
    huge_shape_that_fits_no_memory, huge_shape_of_nothing, wrong_binary_size, cut_tensors, more_bytes, not_finite,
    out_of_vocabulary, wrong_offsets, wrong_header_length, wrong_json_values, wrong_parameters, wrong_outputs,
    flip_tensors,
]  # fmt: skip
V1: list[Breaker] = [wrong_column, ragged, wrong_value, extra_sections, more_bytes]
ANY: list[Breaker] = [
    wrong_section, cut_document, flip_document, bad_utf8, deep, not_an_object, closed_early, promised_too_much,
    over_the_limit, wrong_content_length, wrong_transfer, wrong_encoding, wrong_path, wrong_method,
]  # fmt: skip


def _document(request: Request) -> dict[str, Any]:
    assert isinstance(request.document, dict)
    return request.document


def _inputs(request: Request) -> list[dict[str, Any]]:
    return _document(request)["inputs"]


# -- a run


@dataclass(frozen=True)
class Case:
    """What is sent, and what the answer must be: `scores` of a valid request, else `wrong` says if it is surely so.

    After one that `ends` nothing more is sent, and the server may close the connection without an answer.
    """

    kind: str
    data: bytes
    wrong: bool
    ends: bool
    scores: np.ndarray | None = None


def cases(model: str, samples: list[Sample], seed: int, count: int) -> Iterator[Case]:
    """So many malformed requests, and a valid one after every two of them."""
    draw = random.Random(seed)
    for i in range(count + count // 2):
        sample = draw.choice(samples)
        form = draw.choice(V2_FORMS + (V1_FORMS if sample.offsets is None else []))
        request = form(model, sample)
        if i % 3 == 2:
            yield Case(form.__name__, request.encode(), False, False, sample.scores)
            continue
        breaker = draw.choice([*(V2 if "inputs" in _document(request) else V1), *ANY])
        wrong = breaker(draw, request)
        yield Case(f"{form.__name__} {breaker.__name__}", request.encode(), wrong, request.cut is not None)


@dataclass(frozen=True)
class Reply:
    """An HTTP answer; `closed` where the server ends the connection with it."""

    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool


class Wire:
    """A connection that sends any bytes, and opens anew when the last answer ended it."""

    def __init__(self, host: str, port: int, timeout: float = 30.0) -> None:
        self._address, self._timeout = (host, port), timeout
        self._socket: socket.socket | None = None

    def exchange(self, data: bytes, ends: bool) -> Reply | None:
        """The answer; None where the server closed the connection without one. After `ends`, nothing more is sent."""
        if self._socket is None:
            self._socket = socket.create_connection(self._address, self._timeout)
        reply = None
        try:
            self._socket.sendall(data)
            if ends:
                self._socket.shutdown(socket.SHUT_WR)
            reply = self._read()
        except TimeoutError:
            raise
        except OSError:  # the server closed the connection before it had all of it
            pass
        if reply is None or reply.closed or ends:
            self.close()
        return reply

    def _read(self) -> Reply | None:
        assert self._socket is not None
        received = b""
        while b"\r\n\r\n" not in received:
            part = self._socket.recv(65536)
            if not part:
                return None
            received += part
        head, _, body = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            part = self._socket.recv(65536)
            if not part:
                return None
            body += part
        return Reply(int(first.split()[1]), headers, body, headers.get("connection", "").lower() == "close")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def verdict(case: Case, reply: Reply | None) -> str | None:
    """What is wrong with the answer, if anything."""
    if reply is None:
        return None if case.ends else "the connection was closed without an answer"
    if reply.status >= 500 and reply.status != BUSY:
        return f"{reply.status}: {reply.body[:200]!r}"
    if case.scores is not None:
        return _compare(case, reply)
    if reply.status == 200 and case.wrong:
        return f"answered with 200, and is surely wrong: {reply.body[:200]!r}"
    return None


def _compare(case: Case, reply: Reply) -> str | None:
    if reply.status != 200:
        return f"a valid request was refused: {reply.status} {reply.body[:200]!r}"
    found = scores_of(reply)
    assert case.scores is not None
    if found.shape != case.scores.shape or not np.allclose(found, case.scores, rtol=1e-4, atol=1e-5):
        return "a valid request was answered with wrong scores"
    return None


def scores_of(reply: Reply) -> np.ndarray:
    """The only output, from any form of answer."""
    length = reply.headers.get("inference-header-content-length")
    document = json.loads(reply.body if length is None else reply.body[: int(length)])
    if "scores" in document:
        return np.array(document["scores"], np.float32)
    (output,) = document["outputs"]
    if length is None:
        return np.array(output["data"], np.float32).reshape(output["shape"])
    return np.frombuffer(reply.body, "<f4", offset=int(length)).reshape(output["shape"])
