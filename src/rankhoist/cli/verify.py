"""`rankhoist verify`: is the hoisted model equal?"""

from __future__ import annotations

import argparse
from typing import Any

from rankhoist.cli.arguments import DONE, FAILED, command, write_json
from rankhoist.cli.models import certificate_of, hoisted_of, model_arguments

EXAMPLES = """\
examples:
  rankhoist verify mymodels.ranker:build --context 'user_*'
  rankhoist verify ranker.pt2 --context user --requests 8 --seed 3 --json certificate.json"""


def add(commands: Any) -> None:
    text = "hoist a model and compare it with the original; exit code 1 if they differ"
    model_arguments(command(commands, "verify", _verify, text, EXAMPLES))


def _verify(args: argparse.Namespace) -> int:
    model, hoisted = hoisted_of(args)
    certificate = certificate_of(args, hoisted, model)
    print(certificate)
    write_json(args.json, certificate.to_dict())
    return DONE if certificate.passed else FAILED
