"""`rankhoist demo`: the main job."""

from __future__ import annotations

import argparse
from typing import Any

from rankhoist.cli.arguments import command, numbers

EXAMPLES = """\
examples:
  rankhoist demo
  rankhoist demo --candidates 4000 --seed 7 --out runs/large"""


def add(commands: Any) -> None:
    text = "train an example model, hoist it at every level, and time the levels"
    parser = command(commands, "demo", _demo, text, EXAMPLES)
    parser.add_argument("--data", metavar="DIR", help="a data set to train on (default: generated requests)")
    parser.add_argument("--out", metavar="DIR", default="runs/demo", help="where results go (default: %(default)s)")
    numbers(parser, "candidates", "seed")


def _demo(args: argparse.Namespace) -> int:
    from rankhoist.lab.demo.run import main as run  # only this command needs the data sets and the trainer

    return run(args.data, args.out, args.seed, args.candidates)
