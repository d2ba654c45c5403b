"""What is sent, and what the answers must be."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from serving_fuzz.breakers import ANY, V1, V2
from serving_fuzz.requests import V1_FORMS, V2_FORMS, Sample, document_of
from serving_fuzz.wire import Reply

BUSY = 503


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
        breaker = draw.choice([*(V2 if "inputs" in document_of(request) else V1), *ANY])
        wrong = breaker(draw, request)
        yield Case(f"{form.__name__} {breaker.__name__}", request.encode(), wrong, request.cut is not None)


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
