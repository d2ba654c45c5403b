"""`rankhoist tune`: the plans of a saved model, timed on this machine; the winners are kept in the file."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console

from rankhoist.cli.arguments import DONE, command, count, new_file, write_json
from rankhoist.compiler.targets.backends import BACKENDS
from rankhoist.errors import CommandError, HoistingWarning
from rankhoist.report import tuning
from rankhoist.runtime import load
from rankhoist.runtime.plain import printable
from rankhoist.runtime.tune import CANDIDATES, SECONDS

EXAMPLES = """\
examples:
  rankhoist tune ranker.rankhoist
  rankhoist tune ranker.rankhoist --candidates 50 500 --requests 1 8 --threads 4
  rankhoist tune ranker.rankhoist --seconds 30 --out tuned.rankhoist --json tuned.json"""


def add(commands: Any) -> None:
    text = "time a saved model's plans, its original and the backends here, and keep what is fastest in the file"
    parser = command(commands, "tune", _tune, text, EXAMPLES)
    parser.add_argument("file", metavar="FILE", help="a file that hoist --out or HoistedModel.save wrote")
    parser.add_argument(
        "--candidates", metavar="N", type=count, nargs="+", default=list(CANDIDATES),
        help=f"candidates per call, in all (default: {' '.join(map(str, CANDIDATES))})",
    )  # fmt: skip
    parser.add_argument(
        "--requests", metavar="R", type=count, nargs="+", default=[1], help="requests per call (default: 1)"
    )
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=SECONDS, help="for all of it, about (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", metavar="T", type=count, default=1, help="torch threads, as a worker has them (default: 1)"
    )
    parser.add_argument(
        "--backends", metavar="NAME", choices=[*BACKENDS], nargs="*",
        help=f"try only these beside PyTorch's own operators (default: what is installed of {', '.join(BACKENDS)})",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FILE", type=new_file, help="where the tuned model goes (default: in place of FILE)"
    )
    parser.add_argument("--json", metavar="FILE", type=new_file, help="write the result there as well")


def _tune(args: argparse.Namespace) -> int:
    if not args.seconds > 0:
        raise CommandError(f"--seconds {args.seconds}: it takes some time")
    torch.set_num_threads(args.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HoistingWarning)  # it is tuned here now
        hoisted = load(args.file)
    console = Console(stderr=True)
    with console.status("tuning") as status:
        hoisted.tune(args.candidates, args.requests, args.seconds, progress=status.update, backends=args.backends)
    found = hoisted.report().tuning
    assert found is not None, "tuned a moment ago"
    print(printable("\n".join(tuning.lines(found))))
    hoisted.save(args.out or args.file, example=not hoisted.interface.made_up)
    write_json(args.json, asdict(found))
    return DONE
