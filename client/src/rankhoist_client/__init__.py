"""The client of a server of hoisted models: typed, small, numpy arrays in and out; and what both ends agree on.

It needs numpy, httpx and orjson, and no torch: a gateway installs `rankhoist-client`, or `rankhoist[client]`, which
brings the same. The server takes its wire format (`v2`, `columns`, `order`, `refusal`) and its errors from here.
"""

from typing import TYPE_CHECKING, Any

from rankhoist_client.errors import CallError, DeadlineError, ExtraError, InputError, RankhoistError, UnavailableError

if TYPE_CHECKING:
    from rankhoist_client.client import AsyncClient, Client
    from rankhoist_client.jagged import Jagged
    from rankhoist_client.messages import Ranking

__all__ = [
    "AsyncClient",
    "CallError",
    "Client",
    "DeadlineError",
    "InputError",
    "Jagged",
    "RankhoistError",
    "Ranking",
    "UnavailableError",
]


def __getattr__(name: str) -> Any:
    """The client itself is loaded when it is asked for: errors and wire format do without its HTTP library."""
    if name not in ("AsyncClient", "Client", "Jagged", "Ranking"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from rankhoist_client import client, jagged, messages
    except ModuleNotFoundError as error:
        raise ExtraError(f"the client needs {error.name}: pip install 'rankhoist[client]'") from None
    found = vars({"Ranking": messages, "Jagged": jagged}.get(name, client))[name]
    globals()[name] = found
    return found
