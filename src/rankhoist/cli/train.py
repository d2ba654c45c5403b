"""`rankhoist train`: a model on a data set, with several seeds."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rankhoist.cli.arguments import DONE, FAILED, command, count
from rankhoist.errors import CommandError

if TYPE_CHECKING:
    from rankhoist.lab.data import LabelledRows

MODELS = ["dcnv2", "rdcn", "rdcn-fixed", "deepfm", "dlrm", "attention"]

GENERATED_ROWS = 120_000

EXAMPLES = """\
A run that was stopped goes on where it was when the same command is given again, to the same weights.

examples:
  rankhoist train                                          # DCNv2 on generated requests, 5 seeds
  rankhoist train --seeds 1 --rows 20000 --epochs 1        # a first look, in seconds
  rankhoist train --data ml-latest-small --model deepfm --learning-rate 3e-3
  rankhoist train --model rdcn --third 1 --evaluations 4 --patience 3 --epochs 6
  rankhoist train --grouped                                # the context's work once per request, gradients of rows
  rankhoist train --data ml-25m --rows 2000000 --threads 4
  rankhoist train --data KuaiRand-Pure --hoist --out runs/kuairand
  rankhoist train --grouped --log clicks.parquet --request-id request_id --label clicked --context 'user_*' hour
  rankhoist train --grouped --log logs/ --label clicked --context user history --table history=item --dense price"""


OF_LOG = """\
Whole numbers are ids from 0 on (in lists, 0 is none), other numbers are dense; the model takes the columns as they are.
Requests are split as they come: 80 % of the rows to train, 10 % to validate, 10 % to test."""


def add(commands: Any) -> None:
    text = "train a ranking model with several seeds: metrics, learning curves, the model as a file"
    parser = command(commands, "train", _train, text, EXAMPLES)
    parser.add_argument(
        "--model", choices=MODELS, default="dcnv2",
        help="rdcn-fixed is rdcn without its context stream (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seeds", metavar="N", type=count, default=5, help="runs, each with its own seed (default: 5)")
    parser.add_argument(
        "--seed", metavar="SEED", type=int, default=0, help="of the first run; the others count on (default: 0)"
    )
    _data_arguments(parser)
    _log_arguments(parser)
    _loop_arguments(parser)
    parser.add_argument("--out", metavar="DIR", default="runs/train", help="where results go (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="remove what is in DIR and start anew")
    parser.add_argument("--hoist", action="store_true", help="also save the best model hoisted, with a certificate")
    parser.add_argument("--no-plots", action="store_true", help="no learning curves: needs no matplotlib")


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--data", metavar="demo|FOLDER", default="demo",
        help="generated requests, or a MovieLens or KuaiRand folder as published (default: %(default)s)",
    )  # fmt: skip
    source.add_argument(
        "--log", metavar="FILE", nargs="+",
        help="an impression log of your own: Parquet files, folders or globs, one row per impression",
    )  # fmt: skip
    group.add_argument(
        "--rows",
        metavar="N",
        type=count,
        help=f"generated (default: {GENERATED_ROWS}), or the latest of a folder or log (default: all)",
    )
    for name in ("third", "fourth"):
        group.add_argument(
            f"--{name}",
            metavar="S",
            type=float,
            default=0.0,
            help=f"strength of generated {name}-order terms (default: 0)",
        )


def _log_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("columns of a log", OF_LOG)
    group.add_argument(
        "--request-id", metavar="COLUMN", default="request_id", help="tells requests apart (default: %(default)s)"
    )
    group.add_argument("--label", metavar="COLUMN", default="label", help="0 or 1 (default: %(default)s)")
    for name, words in (
        ("context", "the request's columns, by name or glob: the same in all of its rows"),
        ("candidate", "the candidate's columns (default: all others)"),
        ("dense", "whole numbers that are quantities and no ids"),
    ):
        group.add_argument(f"--{name}", metavar="COLUMN", nargs="+", action="extend", default=[], help=words)
    group.add_argument(
        "--table", metavar="COLUMN=NAME", nargs="+", action="extend", default=[],
        help="where the vectors of a column's ids are, as history=item, to share them with column item",
    )  # fmt: skip


def _loop_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", metavar="N", type=count, default=2, help="at most (default: %(default)s)")
    group.add_argument("--batch-size", metavar="N", type=count, default=512, help="rows (default: %(default)s)")
    batches = group.add_mutually_exclusive_group()
    batches.add_argument("--by-request", action="store_true", help="batches of whole requests, instead of single rows")
    batches.add_argument(
        "--grouped", action="store_true", help="the same batches, with the context's work done once per request"
    )
    for name, default in (("learning-rate", 1e-3), ("weight-decay", 0.1)):
        group.add_argument(
            f"--{name}", metavar="X", type=float, default=default, help="of AdamW (default: %(default)s)"
        )
    group.add_argument(
        "--evaluations", metavar="N", type=count, default=1, help="on validation rows per epoch (default: %(default)s)"
    )
    group.add_argument(
        "--patience", metavar="N", type=count, default=1,
        help="evaluations without improvement before training stops (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--scale", metavar="X", type=float, default=1.0, help="of all widths (default: %(default)s)")
    group.add_argument("--threads", metavar="T", type=count, default=1, help="torch threads (default: %(default)s)")


def _train(args: argparse.Namespace) -> int:
    from rankhoist.lab.train.loop import Settings  # only this command needs the data sets and the trainer
    from rankhoist.lab.train.run import Options, clear, run

    console = Console()
    out = Path(args.out)
    if args.fresh:
        clear(out)
    settings = Settings(
        args.epochs, args.batch_size, args.learning_rate, args.weight_decay, args.evaluations, args.patience, args.seed,
        args.threads, "grouped" if args.grouped else "requests" if args.by_request else "rows",
    )  # fmt: skip
    options = Options(args.model, out, settings, args.seeds, args.scale, not args.no_plots, args.hoist)
    return DONE if run(options, _data(args, console), console) else FAILED


def _data(args: argparse.Namespace, console: Console) -> LabelledRows:
    from rankhoist.lab.data import generate_request_log, load_folder

    _check_options(args)
    with console.status("building the data set"):
        if args.log:
            data = _log(args)
        elif args.data == "demo":
            data = generate_request_log(args.rows or GENERATED_ROWS, third=args.third, fourth=args.fourth)
        else:
            data = load_folder(args.data, args.rows)
    parts = ", ".join(
        f"{part.stop - part.start:,} {name}"
        for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test))
    )
    order = f"of {len(data.request_offsets) - 1:,} requests" if args.log else "in time order"
    console.print(f"{data.source}: {len(data.labels):,} rows {order} ({parts})")
    if args.log:
        console.print(f"context {', '.join(data.context)}; candidate {', '.join(data.candidate)}", soft_wrap=True)
    return data


def _check_options(args: argparse.Namespace) -> None:
    """That no option is given that would say nothing.

    Raises:
        CommandError: one is.
    """
    for name in ("context", "candidate", "dense", "table"):
        if getattr(args, name) and not args.log:
            raise CommandError(f"--{name} is of a log: give --log FILE.parquet")
    if args.log and (args.third or args.fourth):
        raise CommandError("--third and --fourth are of generated requests, not of a log")
    if args.log and not args.context:
        raise CommandError("--log needs --context: the columns that are the same in all rows of a request")


def _log(args: argparse.Namespace) -> LabelledRows:
    from rankhoist.lab.train.log import Columns, load_log

    pairs = [text.partition("=") for text in args.table]
    if wrong := [column for column, _, name in pairs if not name]:
        raise CommandError(f"--table {wrong[0]}: write COLUMN=NAME")
    tables = {column: name for column, _, name in pairs}
    columns = Columns(args.request_id, args.label, args.context, args.candidate, args.dense, tables)
    return load_log(args.log, columns, args.rows)
