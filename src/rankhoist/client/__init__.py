"""The client of a server of hoisted models: typed, small, numpy arrays in and out (extra `client`)."""

from rankhoist.errors import ExtraError

try:
    import httpx as _httpx  # noqa: F401
except ImportError:
    raise ExtraError("the client needs httpx: pip install 'rankhoist[client]'") from None

from rankhoist.client.client import AsyncClient, Client
from rankhoist.client.messages import Ranking

__all__ = ["AsyncClient", "Client", "Ranking"]
