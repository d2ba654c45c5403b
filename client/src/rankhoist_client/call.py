"""A call and how it goes: tries, pauses between them, and what an answer means; without input or output of its own.

`steps` is a generator that both clients drive: it says what to do next (`Send`, `Wait`) and is told what came of it.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from rankhoist_client.errors import CallError, DeadlineError, UnavailableError

UNAVAILABLE = (429, 503)  # HTTP statuses
PAUSE = 0.05  # seconds before the second try where the server does not say; doubled before each further one
LONGEST = 500  # characters of a reason that is no JSON


@dataclass(frozen=True)
class Call:
    """One HTTP request."""

    method: str
    path: str
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Send:
    """Send the call now; `seconds` are left for it."""

    seconds: float


@dataclass(frozen=True)
class Wait:
    """Do nothing for so many seconds."""

    seconds: float


Step = Send | Wait
Steps = Generator[Step, httpx.Response | httpx.TransportError | None, httpx.Response]


def steps(call: Call, seconds: float, retries: int) -> Steps:
    """Until the call is answered, refused, or out of time.

    Tried again is only what the server has not begun: the connection was refused, or the answer was 429 or 503. A
    connection that breaks off later is not: the call may be what broke it.
    """
    end = time.monotonic() + seconds
    for attempt in range(retries + 1):
        answer = yield Send(max(end - time.monotonic(), 0.0))
        assert answer is not None, "a Send is answered"
        try:
            return checked(call, answer)
        except UnavailableError:
            pause = _pause(answer, attempt)
            if attempt == retries or pause is None or time.monotonic() + pause >= end:
                raise
        yield Wait(pause)
    raise AssertionError("the last try returns or raises")


def _pause(answer: httpx.Response | httpx.TransportError, attempt: int) -> float | None:
    """Seconds before another try; None where another try is not safe."""
    if isinstance(answer, httpx.Response):
        try:
            return max(float(answer.headers["Retry-After"]), 0.0)
        except (KeyError, ValueError):  # not said, or said as a date
            pass
    elif not isinstance(answer, httpx.ConnectError):
        return None
    return float(PAUSE * 2**attempt)


def checked(call: Call, answer: httpx.Response | httpx.TransportError) -> httpx.Response:
    """The answer, if it is a good one.

    Raises:
        UnavailableError: there is no connection, or 429 or 503.
        DeadlineError: no answer in time.
        CallError: any other refusal.
    """
    what = f"{call.method} {call.path}"
    if isinstance(answer, httpx.TimeoutException):
        raise DeadlineError(f"{what}: no answer in time ({type(answer).__name__})")
    if isinstance(answer, httpx.TransportError):
        raise UnavailableError(f"{what}: {answer or type(answer).__name__}")
    if answer.is_success:
        return answer
    about = _refusal(answer)
    reason = str(about.get("reason", ""))
    kind = (
        DeadlineError if reason == "deadline" else UnavailableError if answer.status_code in UNAVAILABLE else CallError
    )
    message = f"{what}: {answer.status_code} {answer.reason_phrase}: {about['error']}"
    raise kind(message, answer.status_code, reason, about.get("input"))


def _refusal(answer: httpx.Response) -> dict[str, Any]:
    """`{"error": "...", "reason": ..., "input": ...}`; of another server, or a proxy, the beginning of what it said."""
    try:
        return {"error": "", **answer.json()}
    except (ValueError, TypeError):
        return {"error": answer.text[:LONGEST]}
