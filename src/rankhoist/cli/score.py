"""`rankhoist score`: Parquet files of requests and candidates -> scores."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from rankhoist.cli.arguments import DONE, UNUSABLE, command, count
from rankhoist.errors import CommandError

EXAMPLES = """\
layouts, by the files that are given:
  --candidates               one row per candidate, the request's context on every row
  --candidates, --requests   one row per candidate; the context in files of its own, one row per request
  --requests                 one row per request; candidate columns are lists with a value per candidate
Columns are named like the model's inputs (rankhoist show ARTIFACT lists them). The rows of a request follow each other,
and with files of both kinds requests stand in the same order in both.

examples:
  rankhoist score ranker.rankhoist --candidates pairs.parquet --keep item_id --out scores
  rankhoist score ranker.rankhoist --requests users/ --candidates 'pairs/*.parquet' --workers 4 --out scores
  rankhoist score ranker.rankhoist --candidates pairs.parquet --item-id sku --out scores  # an item's inputs on each row
  rankhoist score ranker.rankhoist --candidates pairs.parquet --catalogue items.parquet --item-id sku --out scores
  rankhoist score ranker.rankhoist --requests pages.parquet --request-id page --ray --workers 16 --out /shared/scores

Stopped or killed, the same command continues. One process with one thread each scores most rows per second and core."""


def add(commands: Any) -> None:
    text = "score requests and candidates in Parquet files"
    parser = command(commands, "score", _score, text, EXAMPLES)
    parser.add_argument("artifact", metavar="ARTIFACT", help="a file that hoist --out or HoistedModel.save wrote")
    parser.add_argument("--requests", metavar="FILE", nargs="+", default=[], help="Parquet files, folders or globs")
    parser.add_argument("--candidates", metavar="FILE", nargs="+", default=[], help="Parquet files, folders or globs")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where the scores go, as Parquet files")
    parser.add_argument(
        "--request-id", metavar="COLUMN", default="request_id", help="tells requests apart (default: %(default)s)"
    )
    parser.add_argument("--keep", metavar="COLUMN", nargs="+", default=[], help="columns to copy to the scores")
    parser.add_argument("--workers", metavar="W", type=count, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--threads", metavar="T", type=count, default=1, help="torch threads of each (default: 1)")
    parser.add_argument(
        "--catalogue", metavar="FILE", nargs="+", default=[],
        help="items, one row each, which candidates name by their ids: Parquet files, or a folder of `catalogue`",
    )  # fmt: skip
    parser.add_argument(
        "--item-id", metavar="COLUMN",
        help="names a candidate's item: in --catalogue (default: item_id), or one whose inputs all of its rows share",
    )  # fmt: skip
    parser.add_argument(
        "--check-items", action="store_true", help="without --catalogue: compare these inputs of all rows of an id"
    )
    parser.add_argument(
        "--budget", metavar="N", type=count,
        help="candidates per call, of several requests (default: what the model was planned for, at least 1000)",
    )  # fmt: skip
    parser.add_argument(
        "--part-rows", metavar="N", type=count, default=100_000, help="candidates per file (default: %(default)s)"
    )
    parser.add_argument(
        "--allow-nan", action="store_true", help="take inputs that are NaN or infinite, which else end the job"
    )
    parser.add_argument("--ray", action="store_true", help="score on Ray Data: workers are actors of a cluster")
    parser.add_argument("--ray-address", metavar="ADDRESS", help="of the cluster (default: found, or a local one)")


def _score(args: argparse.Namespace) -> int:
    if not args.requests and not args.candidates:
        raise CommandError("no files: give --requests, --candidates or both")
    if args.check_items and (args.catalogue or args.item_id is None):
        raise CommandError("--check-items compares rows of one id: give --item-id, and no --catalogue")
    from rankhoist.score import Options, run  # of the extra `score`

    options = Options(
        args.artifact, args.out, args.requests, args.candidates, args.request_id, args.keep, args.budget,
        args.part_rows, args.catalogue, args.item_id, args.check_items,
        args.allow_nan,
    )  # fmt: skip
    ray = args.ray or args.ray_address is not None
    try:
        print(run(options, workers=args.workers, threads=args.threads, ray=ray, address=args.ray_address))
    except KeyboardInterrupt:
        print("rankhoist: stopped; the same command continues", file=sys.stderr)
        return UNUSABLE
    return DONE
