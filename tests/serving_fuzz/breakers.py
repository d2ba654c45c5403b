"""Breakers: (random, valid request) -> whether the result is surely wrong. They change the request in place."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from serving_fuzz.requests import DATATYPES, Request, document_of, inputs_of

LIMIT = 2**18  # bytes of a body; of the valid ones a hundredth

Breaker = Callable[[random.Random, Request], bool]

HUGE = [2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, 2**64, 10**30]
JUNK = [None, True, -1, 0.5, 1e308, "", "x", "\u0000", [], [[]], {}, {"a": 1}, *HUGE]
NAMES = ["", "x", "\u0000", "request_offsets", "context", "../../etc/passwd", "a" * 10_000, "__class__", "\U0001f600"]


def drop_input(draw: random.Random, request: Request) -> bool:
    own = inputs_of(request)
    i = draw.randrange(len(own))
    own.pop(i)
    if request.tensors is not None:
        request.tensors.pop(i)
    return True


def rename_input(draw: random.Random, request: Request) -> bool:
    entry = draw.choice(inputs_of(request))
    new = draw.choice(NAMES)
    changed = entry["name"] != new
    entry["name"] = new
    return changed


def duplicate_input(draw: random.Random, request: Request) -> bool:
    own = inputs_of(request)
    i = draw.randrange(len(own))
    own.append(copy.deepcopy(own[i]))
    if request.tensors is not None:
        request.tensors.append(request.tensors[i])
    return True


def unnamed_input(draw: random.Random, request: Request) -> bool:
    draw.choice(inputs_of(request))["name"] = draw.choice(JUNK[:-2])
    return True


def wrong_datatype(draw: random.Random, request: Request) -> bool:
    entry = draw.choice(inputs_of(request))
    new = draw.choice([*DATATYPES, "BYTES", "FP16", "BF16", "UINT8", "fp32", "", None, 7])
    changed = entry["datatype"] != new
    entry["datatype"] = new
    # JSON values and integers may be taken as another dtype of the same kind
    return changed and request.tensors is not None


def wrong_size_in_shape(draw: random.Random, request: Request) -> bool:
    shape = draw.choice(inputs_of(request))["shape"]
    i = draw.randrange(len(shape))
    new = draw.choice([0, 1, 2, shape[i] + 1, shape[i] - 1, -1, *HUGE, 0.5, "3", None])
    changed = new is not True and shape[i] != new
    shape[i] = new
    return changed


def wrong_shape(draw: random.Random, request: Request) -> bool:
    entry = draw.choice(inputs_of(request))
    old = entry["shape"]
    entry["shape"] = draw.choice([*JUNK, [*old, 1], old[1:], [draw.choice(HUGE)] * draw.randrange(1, 70), old[::-1]])
    return entry["shape"] not in (old, [*old, 1], old[1:])


def huge_shape_that_fits_no_memory(draw: random.Random, request: Request) -> bool:
    for entry in inputs_of(request):
        entry["shape"] = [2**31 - 1, *entry["shape"][1:]]
        if request.tensors is not None:
            entry["parameters"] = {"binary_data_size": draw.choice([2**40, 2**62, 0])}
    return True


def huge_shape_of_nothing(draw: random.Random, request: Request) -> bool:
    """No values at all, in a shape that no memory holds without its zero."""
    i = draw.randrange(len(inputs_of(request)))
    entry = inputs_of(request)[i]
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
    parameters = draw.choice(inputs_of(request))["parameters"]
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
    entries = inputs_of(request)
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
    entries = inputs_of(request)
    i = draw.choice([i for i, e in enumerate(entries) if e["datatype"] == "INT64"])
    if request.tensors is None:
        entries[i]["data"][draw.randrange(len(entries[i]["data"]))] = bad
    else:
        at = 8 * draw.randrange(len(request.tensors[i]) // 8)
        request.tensors[i] = request.tensors[i][:at] + struct.pack("<q", bad) + request.tensors[i][at + 8 :]
    return True


def wrong_offsets(draw: random.Random, request: Request) -> bool:
    rows = max(e["shape"][0] for e in inputs_of(request))
    bad = draw.choice([[], [0], [rows], [1, rows], [0, rows + 1], [0, -1], [0, rows, 0], [0] * 9 + [rows], [2**62, 0]])
    own = inputs_of(request)
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
    entry = draw.choice(inputs_of(request))
    old = entry["data"]
    i = draw.randrange(len(old))
    replaced = [[*old[:i], bad, *old[i + 1 :]] for bad in ("7", None, 10**400, [1], {})]
    entry["data"] = draw.choice([None, "x", {}, 7, old[:-1], [*old, old[0]], [old, old], *replaced])
    return True


def wrong_parameters(draw: random.Random, request: Request) -> bool:
    name = draw.choice(["context_key", "timeout", "binary_data_output", "id", "x" * 1000, "sequence_id"])
    document_of(request).setdefault("parameters", {})
    parameters = document_of(request)["parameters"]
    document_of(request)["parameters"] = draw.choice([{**parameters, name: draw.choice(JUNK)}, *JUNK])
    return False


def wrong_outputs(draw: random.Random, request: Request) -> bool:
    junk = draw.choice(JUNK)
    document_of(request)["outputs"] = draw.choice([junk, [junk], [{"name": junk}], [{"name": "x", "parameters": junk}]])
    return False


def wrong_section(draw: random.Random, request: Request) -> bool:
    """A part of the document is something else."""
    document = document_of(request)
    name = draw.choice([n for n in ("inputs", "context", "candidates") if n in document])
    document[name] = draw.choice([*JUNK, [1], [None], ["x"], {"x": None}])
    return (name, document[name]) != ("candidates", [])  # no rows are no candidates


def extra_sections(draw: random.Random, request: Request) -> bool:
    document_of(request)[draw.choice(["top_k", "context_key", "output", "timeout_ms", "x"])] = draw.choice(JUNK)
    return False


# of /v1: {"context": {...}, "candidates": {...} or [...]}


def wrong_column(draw: random.Random, request: Request) -> bool:
    document = document_of(request)
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
    candidates = document_of(request)["candidates"]
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
    candidates = document_of(request)["candidates"]
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
