"""The Open Inference Protocol v2 over gRPC: the models, limits and batches of the worker that answers over HTTP, too.

    ServerLive, ServerReady, ModelReady, ServerMetadata, ModelMetadata, ModelInfer,
    RepositoryIndex, RepositoryModelLoad, RepositoryModelUnload

Every worker listens on the same port for itself: the system spreads connections over them, and one that is old is
ended, for its client to connect anew, perhaps to another worker. Scores are returned as raw contents.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from rankhoist_client import v2
from rankhoist_client.refusal import RequestError

from rankhoist.serve.asked import Asked
from rankhoist.serve.config import Settings
from rankhoist.serve.grpc_messages import MESSAGES, SERVICE
from rankhoist.serve.model import ServedModel
from rankhoist.serve.service import AS_SAVED, SERVER, Service

log = logging.getLogger(__name__)

AGE = 60_000  # milliseconds of a connection
AHEAD = 2**18  # bytes of a call that may come before they are read: a thousand candidates at once
FRAME = 2**20  # bytes that may come as one: in the usual pieces of 16 KB, they cost the twentieth part of a call
TEXT = 2000  # bytes of a refusal: it is sent as a header
Answer = Callable[[Any], Awaitable[Any]]  # to a call, by what is known of it: its message
Codes = grpc.StatusCode
CODES = {
    400: Codes.INVALID_ARGUMENT, 403: Codes.PERMISSION_DENIED, 404: Codes.NOT_FOUND, 405: Codes.UNIMPLEMENTED,
    408: Codes.DEADLINE_EXCEEDED, 409: Codes.FAILED_PRECONDITION, 413: Codes.INVALID_ARGUMENT,
    415: Codes.UNIMPLEMENTED, 429: Codes.RESOURCE_EXHAUSTED, 500: Codes.INTERNAL, 503: Codes.UNAVAILABLE,
}  # fmt: skip
# Where values are that are not raw; halves are always raw.
CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
}  # fmt: skip


class GrpcServer:
    """What a worker answers over gRPC."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._server = grpc.aio.server(options=_options(service.settings))
        answers: dict[str, Answer] = {
            "ServerLive": self._live, "ServerReady": self._server_ready, "ServerMetadata": self._about,
            "ModelReady": self._ready, "ModelMetadata": self._metadata, "ModelInfer": self._infer,
            "RepositoryIndex": self._index, "RepositoryModelLoad": self._load, "RepositoryModelUnload": self._unload,
        }  # fmt: skip
        handlers = {
            name: grpc.stream_unary_rpc_method_handler(self._handler(name, answer)) for name, answer in answers.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    async def start(self) -> None:
        """Listen on the port of the settings."""
        host, port = self.service.settings.host, self.service.settings.grpc_port
        self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """Take no more calls, and answer those that were taken."""
        await self._server.stop(seconds)

    # -- calls

    def _handler(self, name: str, answer: Answer) -> Callable[[Any, Any], Awaitable[bytes]]:
        """As a stream, which has one message: it is read when there is room for it, and as long as that may take."""

        async def handle(_: Any, context: Any) -> bytes:
            start, refusal, made = time.perf_counter(), None, b""
            try:
                made = (await answer(context)).SerializeToString()
            except RequestError as error:
                refusal = error.with_traceback(None)  # which holds this call, and all that it has read
            except Exception as error:
                log.exception("request failed", extra={"path": name})
                refusal = RequestError("internal", f"the server failed: {type(error).__name__}")
            if self.service.settings.access_log:
                status, seconds = refusal.status if refusal else 200, round(time.perf_counter() - start, 6)
                log.info("request", extra={"path": name, "status": status, "seconds": seconds, "bytes": len(made)})
            if refusal is not None:
                await context.abort(
                    _code(refusal), _said(refusal), (*context.trailing_metadata(), ("reason", refusal.reason))
                )
            return made

        return handle

    async def _read(self, name: str, context: Any) -> bytes:
        """The bytes of the request."""
        data: bytes = await _in_time(context.read(), self.service.settings.body_seconds)
        if data is grpc.aio.EOF:
            raise RequestError("malformed", f"the call has no {name}")
        return data

    async def _request(self, name: str, context: Any) -> Any:
        return _decoded(name, await self._read(name, context))

    # -- about the server and its models

    async def _live(self, context: Any) -> Any:
        return MESSAGES["ServerLiveResponse"](live=True)

    async def _server_ready(self, context: Any) -> Any:
        return MESSAGES["ServerReadyResponse"](ready=self.service.ready)

    async def _ready(self, context: Any) -> Any:
        """Not ready is an answer, of a model that there is not, too."""
        request = await self._request("ModelReadyRequest", context)
        model = self.service.models.get(request.name)
        known = model is not None and request.version in ("", model.version)
        return MESSAGES["ModelReadyResponse"](ready=known and self.service.ready)

    async def _about(self, context: Any) -> Any:
        return MESSAGES["ServerMetadataResponse"](**SERVER)

    async def _metadata(self, context: Any) -> Any:
        request = await self._request("ModelMetadataRequest", context)
        about = self.service.model(request.name, request.version or None).metadata()
        for tensor in about["inputs"]:
            del tensor["parameters"]  # the messages have no place for them
        return MESSAGES["ModelMetadataResponse"](**about)

    async def _index(self, context: Any) -> Any:
        request = await self._request("RepositoryIndexRequest", context)
        return MESSAGES["RepositoryIndexResponse"](models=await self.service.index(request.ready))

    async def _load(self, context: Any) -> Any:
        request = await self._request("RepositoryModelLoadRequest", context)
        if request.parameters:
            raise RequestError("parameter", AS_SAVED)
        await self.service.load(request.model_name)
        return MESSAGES["RepositoryModelLoadResponse"]()

    async def _unload(self, context: Any) -> Any:
        request = await self._request("RepositoryModelUnloadRequest", context)
        await self.service.unload(request.model_name)
        return MESSAGES["RepositoryModelUnloadResponse"]()

    # -- scores

    async def _infer(self, context: Any) -> Any:
        desk = self.service.desk
        headers = dict(context.invocation_metadata()) if desk.tracing is not None else {}
        with desk.asked("grpc", headers=headers) as asked:
            context.set_trailing_metadata((*asked.headers.items(),))
            with self.service.place():
                data = await self._read("ModelInferRequest", context)
                asked.start, left = time.perf_counter(), context.time_remaining()
                return await self._scored(asked, data, None if left is None else max(1e3 * left, 1e-3))

    async def _scored(self, asked: Asked, data: bytes, timeout: float | None) -> Any:
        assert asked.start is not None, "it was read"
        request = _decoded("ModelInferRequest", data)
        asked.model = model = self.service.model(request.model_name, request.model_version or None)
        asked.name = model.name
        outputs = await self.service.infer(asked, model, _message(request), asked.start, timeout)
        end = time.perf_counter()
        response = _response(model, request.id, outputs)
        asked.ended("encode", end)
        return response


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.http2.lookahead_bytes", AHEAD),
        ("grpc.http2.max_frame_size", FRAME),
        ("grpc.http2.bdp_probe", 0),  # pings that would find the same out
        ("grpc.max_send_message_length", -1),  # as long as so many candidates make it
        ("grpc.max_concurrent_streams", 2 * settings.max_queue),  # the second half is told that the queue is full
        ("grpc.compression_enabled_algorithms_bitset", 1),  # none: what arrives is as large as it says
        ("grpc.max_connection_age_ms", AGE),
        ("grpc.max_connection_age_grace_ms", AGE),
    ]


async def _in_time(reading: Awaitable[bytes], seconds: float) -> bytes:
    """The message, if it comes in time; a task of its own for that would cost a tenth of a small call."""
    task, late = asyncio.current_task(), False

    def end() -> None:
        nonlocal late
        late = True
        assert task is not None, "calls are tasks"
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, end)
    try:
        return await reading
    except asyncio.CancelledError:
        if late:
            raise RequestError("slow_body", f"the message did not come within {seconds:g} seconds") from None
        raise
    finally:
        timer.cancel()


# -- messages


def _decoded(name: str, data: bytes) -> Any:
    try:
        return MESSAGES[name].FromString(data)
    except DecodeError:
        raise RequestError("malformed", f"the message is no {name}") from None


def _message(request: Any) -> v2.Message:
    """As it is over HTTP."""
    raw, inputs = request.raw_input_contents, request.inputs
    if raw and len(raw) != len(inputs):
        raise RequestError("malformed", f"{len(inputs)} inputs have {len(raw)} raw contents")
    tensors: dict[str, v2.Tensor] = {}
    for i, entry in enumerate(inputs):
        if entry.name in tensors:
            raise RequestError("malformed", f"{entry.name!r} is given twice", entry.name)
        v2.check_parameters(entry.name, _values(entry.parameters))
        tensors[entry.name] = _tensor(entry, raw[i] if raw else None)
    for output in request.outputs:
        v2.check_parameters(output.name, _values(output.parameters))
    head = {"parameters": _values(request.parameters)}
    return v2.Message(tensors, head, {output.name: True for output in request.outputs} or None)


def _tensor(entry: Any, raw: bytes | None) -> v2.Tensor:
    shape = list(entry.shape)
    if raw is None:
        values = list(getattr(entry.contents, CONTENTS.get(entry.datatype, "bytes_contents")))
        return v2.listed_tensor(entry.name, entry.datatype, shape, values)
    if entry.HasField("contents"):
        raise RequestError("malformed", f"{entry.name!r} has raw contents and others", entry.name)
    return v2.raw_tensor(entry.name, entry.datatype, shape, raw)


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without those that have no value."""
    kinds = {name: value.WhichOneof("parameter_choice") for name, value in parameters.items()}
    return {name: getattr(parameters[name], kind) for name, kind in kinds.items() if kind is not None}


def _response(model: ServedModel, id: str, outputs: Mapping[str, v2.Tensor]) -> Any:
    tensors = [{"name": n, "datatype": t.datatype, "shape": t.array.shape} for n, t in outputs.items()]
    raw = [np.ascontiguousarray(t.array).tobytes() for t in outputs.values()]
    return MESSAGES["ModelInferResponse"](
        model_name=model.name, model_version=model.version, id=id, outputs=tensors, raw_output_contents=raw
    )


# -- refusals


def _code(refusal: RequestError) -> grpc.StatusCode:
    return Codes.DEADLINE_EXCEEDED if refusal.reason == "deadline" else CODES[refusal.status]


def _said(refusal: RequestError) -> str:
    """In ASCII: what else there is would be sent as several characters each."""
    return str(refusal).encode("ascii", "backslashreplace")[:TEXT].decode()
