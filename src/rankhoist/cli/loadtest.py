"""`rankhoist loadtest`: how many requests a server answers, and how fast."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from rankhoist.cli.arguments import DONE, FAILED, command, count, new_file, numbers, write_json

EXAMPLES = """\
examples:
  rankhoist loadtest http://127.0.0.1:8000 --model ranker
  rankhoist loadtest http://127.0.0.1:8000 --model ranker --in-flight 4 --candidates 100 --seconds 30
  rankhoist loadtest http://127.0.0.1:8000 --model ranker --rate 50 --json load.json --plot load.svg
  rankhoist loadtest http://127.0.0.1:8000 --model ranker --requests requests.json --protocol json

Without --rate, so many requests are in flight all the time (closed loop): what the server can do at most.
With --rate, requests come at random at that mean rate (open loop), and latency counts from the moment at which a
request was due: what users would see. Take a rate below what the closed loop found, say 70 % of it."""


def add(commands: Any) -> None:
    text = "put load on a server and show its latency percentiles"
    parser = command(commands, "loadtest", _loadtest, text, EXAMPLES)
    parser.add_argument("url", metavar="URL", help="of the server, http://HOST:PORT")
    parser.add_argument("--model", metavar="NAME", required=True, help="its name on the server")
    parser.add_argument("--in-flight", metavar="C", type=count, help="connections, a request in flight on each "
                        "(default: 8; 256 with --rate, as many as the server makes wait)")  # fmt: skip
    parser.add_argument("--rate", metavar="HZ", type=float, help="requests per second, come what may (open loop)")
    parser.add_argument("--seconds", metavar="S", type=float, default=10.0, help="measured (default: %(default)s)")
    parser.add_argument("--warm-up", metavar="S", type=float, default=2.0, help="before that (default: %(default)s)")
    parser.add_argument("--timeout", metavar="S", type=float, default=10.0, help="of a request (default: %(default)s)")
    parser.add_argument("--requests", metavar="FILE", type=Path, help="JSON: a request as `rankhoist client rank` "
                        "takes, or a list (default: drawn at random from what the model takes)")  # fmt: skip
    parser.add_argument("--protocol", choices=["binary", "json"], default="binary", help="default: %(default)s")
    numbers(parser, "candidates", "seed")
    parser.add_argument("--json", metavar="FILE", type=new_file, help="write the result there")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw it there, as SVG (needs the extra `bench`)")


def _loadtest(args: argparse.Namespace) -> int:
    from rankhoist.bench.plots import pyplot
    from rankhoist.lab.loadtest import Load, Options, loadtest, plot, table  # needs the extra `client`

    if args.plot is not None:
        pyplot()  # or say now, not after the test, that it is missing
    connections = args.in_flight or (8 if args.rate is None else 256)
    load = Load(connections, args.rate, args.seconds, args.warm_up, args.timeout, args.seed)
    console = Console()
    options = Options(args.url, args.model, load, args.candidates, args.requests, args.protocol)
    result = loadtest(options, console)
    console.print(table(result))
    write_json(args.json, result)
    if args.plot is not None:
        plot.draw(result, args.plot)
    return FAILED if result["errors"] else DONE
