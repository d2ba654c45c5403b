"""The client of a server of hoisted models, under the name that it has beside the rest; see `rankhoist_client`."""

from rankhoist_client import AsyncClient, Client, Jagged, Ranking

__all__ = ["AsyncClient", "Client", "Jagged", "Ranking"]
