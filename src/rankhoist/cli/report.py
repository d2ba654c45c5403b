"""`rankhoist report`: what moved, what stayed and why."""

from __future__ import annotations

import argparse
from typing import Any

from rankhoist.cli.arguments import DONE, command, write_json
from rankhoist.cli.models import hoisted_of, model_arguments

EXAMPLES = """\
examples:
  rankhoist report mymodels.ranker:build --context 'user_*'
  rankhoist report ranker.pt2 --context features=0-11,40 --level first --json report.json"""


def add(commands: Any) -> None:
    text = "hoist a model and list its operators: their rates, their work, what stayed and why"
    model_arguments(command(commands, "report", _report, text, EXAMPLES))


def _report(args: argparse.Namespace) -> int:
    _, hoisted = hoisted_of(args)
    report = hoisted.report()
    print(report)
    write_json(args.json, report.to_dict())
    return DONE
