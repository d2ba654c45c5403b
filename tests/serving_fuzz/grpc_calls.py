"""Calls of gRPC, most of them broken: fields of the message, bytes of it, the framing of messages, the method."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from rankhoist.serve.grpc_messages import MESSAGES, SERVICE
from serving_fuzz.breakers import HUGE, LIMIT, NAMES
from serving_fuzz.requests import DATATYPES, Sample

REFUSED = {"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"}
FORBIDDEN = dict.fromkeys(("RepositoryModelLoad", "RepositoryModelUnload"), "PERMISSION_DENIED")  # without --admin
BUSY = {"DEADLINE_EXCEEDED"}  # by a parameter of the message

Breaker = Callable[[random.Random, Any], bool]


@dataclass
class Call:
    """What is sent, and what must come back: `scores` of a valid call, else `wrong` says if it is surely so.

    One that is `refused_early` may lose its answer where the server ends an old connection at that moment.
    """

    kind: str
    messages: list[bytes]
    wrong: bool = False
    refused_early: bool = False
    scores: np.ndarray | None = None
    method: str = "ModelInfer"
    metadata: list[tuple[str, str]] = field(default_factory=list)

    def send(self, channel: grpc.Channel) -> tuple[str, bytes]:
        """Code and answer."""
        try:
            call = channel.stream_unary(f"/{SERVICE}/{self.method}")
            return "OK", call(iter(self.messages), timeout=60, metadata=self.metadata)
        except grpc.RpcError as error:
            return error.code().name, b""

    def verdict(self, code: str, answer: bytes) -> str | None:
        """What is wrong with the answer, if anything."""
        if self.scores is not None:
            return self._compared(code, answer)
        if code == "OK":
            return "answered, and is surely wrong" if self.wrong else None
        if code == FORBIDDEN.get(self.method):
            return None
        return None if code in REFUSED | BUSY or (self.refused_early and code == "UNAVAILABLE") else code

    def _compared(self, code: str, answer: bytes) -> str | None:
        if code != "OK":
            return f"a valid call was refused: {code}"
        response = MESSAGES["ModelInferResponse"].FromString(answer)
        found = np.frombuffer(response.raw_output_contents[0], "<f4").reshape(response.outputs[0].shape)
        assert self.scores is not None
        if found.shape != self.scores.shape or not np.allclose(found, self.scores, rtol=1e-4, atol=1e-5):
            return "a valid call was answered with wrong scores"
        return None


def calls(model: str, samples: list[Sample], seed: int, count: int) -> Iterator[Call]:
    """So many malformed calls, and a valid one after every two of them."""
    draw = random.Random(seed)
    for i in range(count + count // 2):
        sample = draw.choice(samples)
        form = draw.choice([raw, typed])
        message = form(model, sample)
        if i % 3 == 2:
            yield Call(form.__name__, [message.SerializeToString()], scores=sample.scores)
            continue
        breaker = draw.choice([*FIELDS, *BYTES])
        kind = f"grpc {form.__name__} {breaker.__name__}"
        if breaker in FIELDS:
            wrong = breaker(draw, message)
            yield Call(kind, [message.SerializeToString()], wrong)
        else:
            call = Call(kind, [message.SerializeToString()])
            call.wrong = breaker(draw, call)
            yield call


def raw(model: str, sample: Sample) -> Any:
    inputs = [{"name": n, "datatype": _datatype(x), "shape": x.shape} for n, x in sample.inputs.items()]
    contents = [x.tobytes() for x in sample.inputs.values()]
    return MESSAGES["ModelInferRequest"](model_name=model, inputs=inputs, raw_input_contents=contents)


def typed(model: str, sample: Sample) -> Any:
    fields = {"FP32": "fp32_contents", "INT64": "int64_contents", "BOOL": "bool_contents"}
    message = raw(model, sample)
    del message.raw_input_contents[:]
    for entry, x in zip(message.inputs, sample.inputs.values(), strict=True):
        getattr(entry.contents, fields[entry.datatype]).extend(x.reshape(-1).tolist())
    return message


def _datatype(x: np.ndarray) -> str:
    return next(n for n, kind in DATATYPES.items() if x.dtype == np.dtype(kind))


# -- fields


def drop_input(draw: random.Random, message: Any) -> bool:
    i = draw.randrange(len(message.inputs))
    del message.inputs[i]
    if message.raw_input_contents:
        del message.raw_input_contents[i]
    return True


def twice(draw: random.Random, message: Any) -> bool:
    i = draw.randrange(len(message.inputs))
    message.inputs.add().CopyFrom(message.inputs[i])
    if message.raw_input_contents:
        message.raw_input_contents.append(message.raw_input_contents[i])
    return True


def rename(draw: random.Random, message: Any) -> bool:
    entry, new = draw.choice(message.inputs), draw.choice(NAMES)
    changed: bool = entry.name != new
    entry.name = new
    return changed


def wrong_datatype(draw: random.Random, message: Any) -> bool:
    entry, new = draw.choice(message.inputs), draw.choice([*DATATYPES, "BYTES", "FP16", "BF16", "fp32", "", "x" * 9999])
    changed: bool = entry.datatype != new
    entry.datatype = new
    return changed


def wrong_shape(draw: random.Random, message: Any) -> bool:
    entry = draw.choice(message.inputs)
    sizes, new = list(entry.shape), list(entry.shape)
    for _ in range(draw.choice([1, 2])):
        new[draw.randrange(len(new))] = draw.choice([-1, 0, 1, 2, 2**63 - 1, -(2**63), *(h for h in HUGE if h < 2**63)])
    new += draw.choice([[], [], [1], [0] * 9])
    entry.shape[:] = new
    return sizes != new


def wrong_contents(draw: random.Random, message: Any) -> bool:
    """More bytes or values than the shape says, fewer, or both kinds."""
    i = draw.randrange(len(message.inputs))
    if not message.raw_input_contents:
        message.inputs[i].contents.fp64_contents.extend([1.0] * draw.choice([1, 100]))
        message.raw_input_contents.extend([b""] * draw.choice([1, len(message.inputs)]))
        return True
    data, more = message.raw_input_contents[i], draw.choice([b"\0", bytes(8), bytes(10_000)])
    message.raw_input_contents[i] = draw.choice([data + more, data[:-1] if data else b"x"])
    return True


def wrong_count(draw: random.Random, message: Any) -> bool:
    message.raw_input_contents.extend([b""] * draw.choice([1, 2, 1000]))
    return True


def wrong_values(draw: random.Random, message: Any) -> bool:
    """Ids that there are not, NaN, bytes that are no truth."""
    if not message.raw_input_contents:
        return wrong_count(draw, message)
    i = draw.randrange(len(message.inputs))
    data = message.raw_input_contents[i]
    message.raw_input_contents[i] = b"\xff" * len(data)
    return bool(data) and message.inputs[i].datatype != "BOOL"


def wrong_parameters(draw: random.Random, message: Any) -> bool:
    entry = draw.choice([message, draw.choice(message.inputs), message.outputs.add(name="scores")])
    name = draw.choice(["context_key", "timeout", "shared_memory_region", "classification", "x" * 999])
    kind = draw.choice(["bool_param", "int64_param", "string_param", "double_param", "uint64_param"])
    values = {"bool_param": True, "int64_param": -1, "string_param": "\0" * 400, "double_param": float("nan")}
    setattr(entry.parameters[name], kind, values.get(kind, 2**64 - 1))
    return False


def wrong_names(draw: random.Random, message: Any) -> bool:
    new = draw.choice(NAMES)
    which = draw.choice(["model_name", "model_version", "id"])
    setattr(message, which, new)
    return which == "model_name" or (which == "model_version" and new != "")


def wrong_output(draw: random.Random, message: Any) -> bool:
    message.outputs.add(name=draw.choice(NAMES))
    return True


# -- bytes and framing


def flip(draw: random.Random, call: Call) -> bool:
    data = bytearray(call.messages[0])
    for _ in range(draw.choice([1, 1, 3, 30])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    call.messages = [bytes(data)]
    return False


def cut(draw: random.Random, call: Call) -> bool:
    call.messages = [call.messages[0][: draw.randrange(len(call.messages[0]))]]
    return False  # what is left may be a message of several requests fewer


def noise(draw: random.Random, call: Call) -> bool:
    call.messages = [draw.randbytes(draw.choice([0, 1, 10, 1000, 100_000]))]
    return False


def deep(draw: random.Random, call: Call) -> bool:
    """Groups within groups, which no field has."""
    call.messages = [b"\x7b" * draw.choice([50, 5000, 100_000])]
    return True


def huge_length(draw: random.Random, call: Call) -> bool:
    """A field that says it has more bytes than there are."""
    call.messages = [call.messages[0] + b"\x3a" + b"\xff" * draw.choice([3, 4, 8, 9]) + b"\x01"]
    return True


def too_large(draw: random.Random, call: Call) -> bool:
    call.messages, call.refused_early = [call.messages[0] + bytes(LIMIT)], True
    return True


def no_message(draw: random.Random, call: Call) -> bool:
    call.messages = []
    return True


def several_messages(draw: random.Random, call: Call) -> bool:
    call.messages *= draw.choice([2, 20])
    return False


def another_method(draw: random.Random, call: Call) -> bool:
    names = [
        "ModelReady",
        "ModelMetadata",
        "ServerLive",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "ModelConfig",
        "x",
    ]
    call.method = draw.choice(names)
    return False


def odd_metadata(draw: random.Random, call: Call) -> bool:
    call.metadata = [(f"x-{i}", "v" * draw.choice([1, 100])) for i in range(draw.choice([1, 20]))]
    call.messages = [call.messages[0] + b"\x07"]
    return True


FIELDS: list[Breaker] = [
    drop_input, twice, rename, wrong_datatype, wrong_shape, wrong_contents, wrong_count, wrong_values, wrong_parameters,
    wrong_names, wrong_output,
]  # fmt: skip
BYTES: list[Breaker] = [
    flip, cut, noise, deep, huge_length, too_large, no_message, several_messages, another_method, odd_metadata,
]  # fmt: skip
