"""The client of a server of hoisted models: typed, small, numpy arrays in and out (extra `client`)."""

from rankhoist.errors import ExtraError

try:
    from rankhoist.client.client import AsyncClient, Client
    from rankhoist.client.messages import Ranking
except ModuleNotFoundError as error:
    raise ExtraError(f"the client needs {error.name}: pip install 'rankhoist[client]'") from None

__all__ = ["AsyncClient", "Client", "Ranking"]
