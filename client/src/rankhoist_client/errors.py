"""The root of the exception tree, and what can go wrong between a client and its server.

`rankhoist.errors` is the whole tree; this much of it both ends of a connection know, and it needs no torch.
"""


class RankhoistError(Exception):
    """Base class of every error raised on purpose by rankhoist."""


class InputError(RankhoistError):
    """Inputs of a call have the wrong name, number, dtype, shape or row count."""


class ExtraError(RankhoistError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class ServeError(RankhoistError):
    """The server is configured wrongly or cannot start; or, as a subclass, it refuses a request."""


class CallError(RankhoistError):
    """A server refused a call, or its answer is none.

    Attributes:
        status: the HTTP status; None where there was no answer.
        reason: the server's word for why, such as "dtype" or "queue_full"; "" where it gave none.
        input: the feature that it is about, if it is about one.
    """

    def __init__(self, message: str, status: int | None = None, reason: str = "", input: str | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.input = status, reason, input


class UnavailableError(CallError):
    """A server cannot be reached, or does not take a call now (429, 503); later it may."""


class DeadlineError(CallError):
    """A call was not answered in time."""
