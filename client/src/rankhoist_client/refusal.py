"""Why a request is not answered with scores: a status, a reason for programs and a message for people."""

from __future__ import annotations

from rankhoist_client.errors import ServeError

REASONS = {
    "malformed": 400,  # the body is not what the protocol says
    "unknown_input": 400,
    "missing_input": 400,
    "dtype": 400,
    "shape": 400,
    "ragged": 400,  # a column whose rows differ in length, or columns of different lengths
    "not_finite": 400,
    "out_of_vocabulary": 400,
    "unknown_item": 400,  # an id that the catalogue does not have
    "unknown_output": 400,
    "parameter": 400,
    "forbidden": 403,
    "not_found": 404,
    "method": 405,
    "slow_body": 408,  # it did not come in time
    "context_conflict": 409,  # a context key that was used with another context
    "too_large": 413,
    "encoding": 415,
    "queue_full": 429,
    "deadline": 503,  # it passed while the request waited
    "not_ready": 503,
    "out_of_memory": 503,  # of the device, for this call; smaller ones, or later ones, may be scored
    "internal": 500,
}
LONGEST = 1000, 200  # characters of a message and of a feature's name: both may quote a request of megabytes
RETRY_AFTER = {"queue_full": 1, "deadline": 1, "not_ready": 2, "out_of_memory": 1}  # seconds


class RequestError(ServeError):
    """A request is refused; `reason` is one of `REASONS`, `input` the feature that it is about, if it is about one."""

    def __init__(self, reason: str, message: str, input: str | None = None) -> None:
        most, most_of_name = LONGEST
        super().__init__(message if len(message) <= most else f"{message[:most]}...")
        self.reason, self.input = reason, input if input is None else input[:most_of_name]

    @property
    def status(self) -> int:
        """The HTTP status."""
        return REASONS[self.reason]

    def to_dict(self) -> dict[str, str]:
        """The body of the answer: `error` is what clients of the protocol v2 show."""
        about = {} if self.input is None else {"input": self.input}
        return {"error": str(self), "reason": self.reason, **about}
