"""`rankhoist client`: ask a server to rank, what its models take, whether it is well."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from rankhoist.cli.arguments import DONE, FAILED, command, count, new_file, write_json
from rankhoist.errors import CommandError

if TYPE_CHECKING:
    from rankhoist_client import Client, Ranking

URL = "http://127.0.0.1:8000"
SHOWN = 10  # candidates, without --top-k
KEYS = {"context", "candidates", "top_k", "output", "context_key", "deadline"}  # of a request in a file

EXAMPLES = """\
examples:
  rankhoist client health
  rankhoist client metadata ranker --url http://ranker.internal:8000
  rankhoist client rank ranker request.json --top-k 5
  rankhoist client rank ranker - --deadline 0.05 --json scores.json

request.json holds {"context": {...}, "candidates": {...}}, the candidates by column or one by one:
  {"context": {"user": 7}, "candidates": [{"item": 1}, {"item": 5}]}"""


def add(commands: Any) -> None:
    text = "ask a server: rank, show what a model takes, health"
    parser = command(commands, "client", _health, text, EXAMPLES)
    actions = parser.add_subparsers(title="what to ask", metavar="ACTION", required=True)
    rank = actions.add_parser("rank", help="rank the candidates of a request in a JSON file")
    rank.add_argument("model", metavar="MODEL", help="its name on the server")
    rank.add_argument("file", metavar="FILE", help="the request; - reads it from standard input")
    rank.add_argument("--top-k", metavar="K", type=count, help="only the best K")
    rank.add_argument("--context-key", metavar="KEY", help="names the context, whose work the server may then reuse")
    rank.add_argument("--deadline", metavar="S", type=float, help="seconds after which nobody works on it any more")
    rank.add_argument("--json", metavar="FILE", type=new_file, help="write scores and order there as well")
    rank.set_defaults(command=_rank)
    metadata = actions.add_parser("metadata", help="what a model, or the server, takes and returns, as JSON")
    metadata.add_argument("model", metavar="MODEL", nargs="?", help="its name on the server")
    metadata.set_defaults(command=_metadata)
    health = actions.add_parser("health", help="exit code 0 if it takes calls, 1 if not")
    health.add_argument("model", metavar="MODEL", nargs="?", help="its name on the server")
    health.set_defaults(command=_health)
    for action in (rank, metadata, health):
        action.add_argument("--url", metavar="URL", default=URL, help="of the server (default: %(default)s)")


def _client(url: str) -> Client:
    from rankhoist_client import Client  # needs the extra `client`

    return Client(url, protocol="json")


def _rank(args: argparse.Namespace) -> int:
    request = _request(args.file)
    flags = {"top_k": args.top_k, "context_key": args.context_key, "deadline": args.deadline}
    request |= {name: value for name, value in flags.items() if value is not None}
    with _client(args.url) as client:
        ranking = client.rank(args.model, **request)
    Console().print(_table(ranking, args.model, "top_k" in request))
    order = None if ranking.order is None else ranking.order.tolist()
    write_json(args.json, {"outputs": {n: x.tolist() for n, x in ranking.outputs.items()}, "order": order})
    return DONE


def _request(file: str) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        request = json.loads(text)
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror or error}") from error
    except ValueError as error:
        raise CommandError(f"{file} is no JSON: {error}") from error
    if not isinstance(request, dict) or not {"context", "candidates"} <= request.keys() <= KEYS:
        known = ", ".join(sorted(KEYS))
        raise CommandError(f'{file} is no request {{"context": ..., "candidates": ...}}; its keys may be {known}')
    return request


def _table(ranking: Ranking, model: str, only_best: bool) -> Table:
    """The best candidates; what was cut to them by `top_k` is in their order already."""
    order = [] if ranking.order is None else ranking.order.tolist()
    table = Table(title=f"the best {len(order)}, by {model}" if only_best else f"the best of {len(order)}, by {model}")
    for name in ("candidate", *ranking.outputs):
        table.add_column(name, justify="right")
    for place, candidate in enumerate(order if only_best else order[:SHOWN]):
        row = place if only_best else candidate
        table.add_row(str(candidate), *(str(x[row]) for x in ranking.outputs.values()))
    return table


def _metadata(args: argparse.Namespace) -> int:
    with _client(args.url) as client:
        print(json.dumps(client.metadata(args.model), indent=2))
    return DONE


def _health(args: argparse.Namespace) -> int:
    with _client(args.url) as client:
        live, ready = client.live(), client.ready(args.model)
    print(f"{args.url}: {'live' if live else 'not live'}, {args.model or 'server'} {'ready' if ready else 'not ready'}")
    return DONE if ready else FAILED
