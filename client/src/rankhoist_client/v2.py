"""The Open Inference Protocol v2 (KServe) with the binary tensor extension: bytes to arrays and back.

    body = header (JSON, `Inference-Header-Content-Length` bytes) + tensors, one after the other

Both sides of a connection can use this file: nothing in it knows a server. A tensor's array is a view of the body.
Source: the protocol's inference API, and Triton's extension for binary tensor data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import ArrayLike, NDArray

from rankhoist_client.columns import DATATYPES, rounded, shaped
from rankhoist_client.refusal import RequestError

HEADER_LENGTH = "inference-header-content-length"
MOST = 2**31  # values of a tensor
ALIGNMENT = 8  # bytes that the header is padded to, so that arrays need no copy
CONTENT_TYPE = "application/octet-stream"
TEXT = "BYTES"  # the protocol's name of texts; in binary each has its length before it, 4 bytes


@dataclass(frozen=True)
class Tensor:
    """A tensor by the protocol's name of its dtype; the array of BF16 holds its bits as uint16, that of BYTES texts."""

    datatype: str
    array: NDArray[Any]


@dataclass(frozen=True)
class Message:
    """A request (its tensors are inputs) or a response (outputs).

    `head` is the header without its tensors. `wanted` are the outputs that a request asks for, `None` for all: name ->
    whether as binary data.
    """

    tensors: dict[str, Tensor]
    head: dict[str, Any] = field(default_factory=dict)
    wanted: dict[str, bool] | None = None

    @property
    def parameters(self) -> dict[str, Any]:
        """Of the whole message."""
        found: dict[str, Any] = self.head.get("parameters", {})
        return found


def read_request(body: bytes, header_length: str | None = None) -> Message:
    """A request from its body and the header of HTTP that says how long the JSON is (`None`: all of it).

    Raises:
        RequestError: it is malformed; the tensor is named.
    """
    header, start = _header(body, header_length)
    tensors = _tensors(header.pop("inputs", None), "inputs", body, start)
    outputs = header.pop("outputs", None)
    message = Message(tensors, header, None if outputs is None else _wanted(outputs))
    if not isinstance(message.parameters, dict):
        raise RequestError("malformed", "'parameters' is not an object")
    return message


def read_response(body: bytes, header_length: str | None = None) -> Message:
    """A response, in the same way."""
    header, start = _header(body, header_length)
    return Message(_tensors(header.pop("outputs", None), "outputs", body, start), header)


def write_request(
    inputs: Mapping[str, NDArray[Any] | Tensor], parameters: Mapping[str, Any] | None = None, id: str | None = None
) -> tuple[bytes, int]:
    """A request with binary tensors that asks for binary outputs: the body and the length of its header.

    An array of bfloat16 is one of `ml_dtypes`, or a `Tensor` that says so of its bits, as `bfloat16` makes it.
    """
    tensors = {name: x if isinstance(x, Tensor) else tensor_of(x) for name, x in inputs.items()}
    head = {} if id is None else {"id": id}
    head |= {"parameters": {"binary_data_output": True, **(parameters or {})}}  # type: ignore[dict-item]
    return _write("inputs", tensors, head, dict.fromkeys(tensors, True))


def write_response(
    outputs: Mapping[str, Tensor], head: Mapping[str, Any], binary: Mapping[str, bool]
) -> tuple[bytes, int | None]:
    """A response, each output in binary or not: the body, and the length of its header if any is."""
    body, length = _write("outputs", outputs, head, binary)
    return body, length if any(binary[name] for name in outputs) else None


def tensor_of(array: NDArray[Any]) -> Tensor:
    """An array by the protocol's name of its dtype.

    Raises:
        RequestError: it has none.
    """
    datatype = datatype_of(array)
    return Tensor(datatype, array.view(np.uint16) if datatype == "BF16" else array)


def bfloat16(numbers: ArrayLike) -> Tensor:
    """Numbers as BF16, rounded to nearest."""
    return Tensor("BF16", rounded(np.asarray(numbers, np.float32)))


def datatype_of(array: NDArray[Any]) -> str:
    """The protocol's name of an array's dtype.

    Raises:
        RequestError: it has none.
    """
    if array.dtype.name == "bfloat16":  # of ml_dtypes
        return "BF16"
    if array.dtype.kind == "U":
        return TEXT
    for name, kind in DATATYPES.items():
        if array.dtype == kind:
            return name
    raise RequestError("dtype", f"arrays of {array.dtype} cannot be sent")


def readable(tensor: Tensor) -> NDArray[Any]:
    """The array in a dtype that JSON can be written from: halves become float32."""
    if tensor.datatype == "BF16":
        return (tensor.array.astype(np.uint32) << 16).view(np.float32)
    return tensor.array.astype(np.float32) if tensor.datatype == "FP16" else tensor.array


def raw_tensor(name: str, datatype: str, shape: list[int], data: bytes) -> Tensor:
    """A tensor whose bytes are these.

    Raises:
        RequestError: there is no such dtype or shape, or it has another number of bytes.
    """
    return _binary(name, datatype, shape, data, 0, len(data))


def listed_tensor(name: str, datatype: Any, shape: Any, values: Any) -> Tensor:
    """A tensor of a list of values, in row-major order or nested.

    Raises:
        RequestError: there is no such dtype or shape, or it has another number of values, or other ones.
    """
    datatype, shape = _datatype(name, datatype), _shape(name, shape)
    if datatype == TEXT:
        return Tensor(TEXT, _texts(name, values, shape))
    return Tensor(datatype, shaped(name, values, shape, datatype))


def check_parameters(name: str, found: Mapping[str, Any]) -> None:
    """Refuse parameters of a tensor that would change what it is."""
    for unknown in ("shared_memory_region", "classification"):
        if unknown in found:
            raise RequestError("parameter", f"{name!r} asks for {unknown}, which this server does not have", name)


def _header(body: bytes, length: str | None) -> tuple[dict[str, Any], int]:
    """The JSON, and where the binary data begins."""
    end = len(body)
    if length is not None:
        if not (length.isascii() and length.isdigit() and len(length) < 16 and int(length) <= end):
            raise RequestError("malformed", f"{HEADER_LENGTH} is {length[:20]!r}, the body has {end} bytes")
        end = int(length)
    return read_object(memoryview(body)[:end]), end


def read_object(data: bytes | memoryview) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RequestError: it is none.
    """
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise RequestError("malformed", f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise RequestError("malformed", "the body is JSON, but no object")
    return found


def _tensors(entries: Any, what: str, body: bytes, start: int) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for entry in _objects(entries, what):
        name = _name(entry, what)
        if name in tensors:
            raise RequestError("malformed", f"{name!r} is given twice", name)
        datatype, shape = entry.get("datatype"), entry.get("shape")
        size = _parameters(name, entry).get("binary_data_size")
        if size is None:
            tensors[name] = listed_tensor(name, datatype, shape, entry.get("data"))
        else:
            tensors[name] = _binary(name, datatype, shape, body, start, size)
            start += size
    if start != len(body):
        raise RequestError("malformed", f"{len(body) - start} bytes after the last tensor belong to none")
    return tensors


def _binary(name: str, datatype: Any, shape: Any, body: bytes, start: int, size: Any) -> Tensor:
    """A tensor where it lies in the body; a copy only where it lies across the bounds of its numbers."""
    datatype, shape = _datatype(name, datatype), _shape(name, shape)
    if datatype == TEXT:
        if type(size) is not int or not 0 <= size <= len(body) - start:
            raise RequestError("malformed", f"{name!r} has binary_data_size {size!r:.20}, and the body ends", name)
        return Tensor(TEXT, _texts(name, _with_lengths(name, body[start : start + size]), shape))
    kind = np.dtype(DATATYPES[datatype])
    count = math.prod(shape)
    if type(size) is not int or size != count * kind.itemsize:
        expected = f"{datatype} {list(shape)} has {count * kind.itemsize}"
        raise RequestError("shape", f"{name!r} has binary_data_size {size!r:.20}, {expected}", name)
    if size > len(body) - start:
        raise RequestError("malformed", f"{name!r} has {size} bytes, and the body only {len(body) - start} more", name)
    array = np.frombuffer(body, kind, count, start).reshape(tuple(shape))
    return Tensor(datatype, array if array.flags.aligned else array.copy())


def _texts(name: str, values: Any, shape: list[int]) -> NDArray[Any]:
    """Texts in a list, or their bytes in UTF-8, as an array of objects: the longest decides no other's size."""
    if not isinstance(values, list) or len(values) != math.prod(shape):
        count = f"{len(values)} texts" if isinstance(values, list) else "no list of texts"
        raise RequestError("shape", f"{name!r} has {count}, its shape is {shape}", name)
    if not {str, bytes}.issuperset(map(type, values)):
        raise RequestError("dtype", f"{name!r} is {TEXT}, and has something else than texts", name)
    made = np.empty(len(values), object)
    try:
        made[:] = [x if isinstance(x, str) else x.decode() for x in values]
    except UnicodeDecodeError:
        raise RequestError("dtype", f"{name!r} is {TEXT}, and has bytes that are no UTF-8", name) from None
    return made.reshape(tuple(shape))


def _with_lengths(name: str, data: bytes) -> list[bytes]:
    """What stands behind lengths of 4 bytes each."""
    found, start = [], 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if end > len(data):
            raise RequestError("malformed", f"{name!r} ends within a text", name)
        found.append(data[start + 4 : end])
        start = end
    return found


def _in_binary(tensor: Tensor) -> Any:
    """The bytes of a tensor."""
    if tensor.datatype == TEXT:
        texts = [str(x).encode() for x in tensor.array.reshape(-1)]
        return b"".join(part for text in texts for part in (len(text).to_bytes(4, "little"), text))
    return np.ascontiguousarray(tensor.array).data.cast("B") if tensor.array.size else b""


def _wanted(entries: Any) -> dict[str, bool]:
    return {
        _name(entry, "outputs"): bool(_parameters(_name(entry, "outputs"), entry).get("binary_data", False))
        for entry in _objects(entries, "outputs")
    }


def _objects(entries: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(entries, list) or not {dict}.issuperset(map(type, entries)):
        raise RequestError("malformed", f"{what!r} is not a list of objects")
    return entries


def _name(entry: dict[str, Any], what: str) -> str:
    name = entry.get("name")
    if not isinstance(name, str):
        raise RequestError("malformed", f"an entry of {what!r} has no name")
    return name


def _parameters(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    found = entry.get("parameters", {})
    if not isinstance(found, dict):
        raise RequestError("malformed", f"the parameters of {name!r} are not an object", name)
    check_parameters(name, found)
    return found


def _datatype(name: str, given: Any) -> str:
    if not isinstance(given, str) or given not in (*DATATYPES, TEXT):
        known = ", ".join((*DATATYPES, TEXT))
        raise RequestError("dtype", f"{name!r} has datatype {given!r:.20}; there are {known}", name)
    return given


def _shape(name: str, given: Any) -> list[int]:
    """The sizes, whose product is small also where one of them is 0: numpy refuses what fits no address space."""
    wrong = not isinstance(given, list) or not all(type(n) is int and n >= 0 for n in given) or len(given) > 8
    if wrong or math.prod(max(n, 1) for n in given) >= MOST:
        message = f"{name!r} has shape {given!r:.40}, expected up to 8 sizes and less than 2**31 values"
        raise RequestError("shape", message, name)
    sizes: list[int] = given
    return sizes


def _write(
    what: str, tensors: Mapping[str, Tensor], head: Mapping[str, Any], binary: Mapping[str, bool]
) -> tuple[bytes, int]:
    entries, parts = [], []
    for name, tensor in tensors.items():
        entry: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": list(tensor.array.shape)}
        if binary[name]:
            parts.append(_in_binary(tensor))
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        elif tensor.datatype == TEXT:
            entry["data"] = [str(x) for x in tensor.array.reshape(-1)]
        else:
            entry["data"] = np.ascontiguousarray(readable(tensor).reshape(-1))
        entries.append(entry)
    header = orjson.dumps({**head, what: entries}, option=orjson.OPT_SERIALIZE_NUMPY)
    header += b" " * (-len(header) % ALIGNMENT if parts else 0)
    return b"".join([header, *parts]), len(header)
