"""`rankhoist show`: what a saved model holds."""

from __future__ import annotations

import argparse
from typing import Any

from rankhoist.cli.arguments import DONE, command, new_file, write_json
from rankhoist.cli.models import stored
from rankhoist.runtime.contents import contents
from rankhoist.runtime.plain import printable

EXAMPLES = """\
examples:
  rankhoist show ranker.rankhoist
  rankhoist show ranker.rankhoist --json ranker.json"""


def add(commands: Any) -> None:
    text = "show what a saved model holds: inputs, plans, versions, certificate"
    parser = command(commands, "show", _show, text, EXAMPLES)
    parser.add_argument("file", metavar="FILE", help="a file that hoist --out or HoistedModel.save wrote")
    parser.add_argument("--json", metavar="FILE", type=new_file, help="write the result there as well")


def _show(args: argparse.Namespace) -> int:
    found = contents(args.file)
    print(found)
    if found.certificate is not None:
        print(f"\n{printable(str(stored(found.certificate)))}")
    write_json(args.json, found.to_dict())
    return DONE
