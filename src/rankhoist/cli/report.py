"""`rankhoist report`: what moved, what stayed and why, as text, as a page and as a picture."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from rankhoist.cli.arguments import DONE, FAILED, command, new_file, write_json
from rankhoist.cli.models import certificate_of, hoisted_of, model_arguments, stored
from rankhoist.errors import CommandError
from rankhoist.report import Report
from rankhoist.runtime.contents import contents
from rankhoist.runtime.plain import printable
from rankhoist.verify import Certificate

EXAMPLES = """\
examples:
  rankhoist report mymodels.ranker:build --context 'user_*'
  rankhoist report mymodels.ranker:build --context 'user_*' --html report.html
  rankhoist report ranker.rankhoist --html report.html --svg ranker.svg
  rankhoist report ranker.pt2 --context features=0-11,40 --level first --json report.json"""


def add(commands: Any) -> None:
    text = "hoist a model and list its operators: their rates, their work, what stayed and why"
    parser = command(commands, "report", _report, text, EXAMPLES)
    model_arguments(parser, saved=True)
    parser.add_argument(
        "--html", metavar="FILE", type=new_file, help="write a page to read in a browser, certificate included"
    )
    parser.add_argument("--svg", metavar="FILE", type=new_file, help="write the picture of the model's graph")
    parser.add_argument("--no-verify", action="store_true", help="do not compare with the original for the page")


def _report(args: argparse.Namespace) -> int:
    report, certificate = _saved(args) if _is_saved(args.model) else _hoisted(args)
    print(printable(str(report)))
    write_json(args.json, report.to_dict())
    if args.html is not None:
        _write("--html", args.html, lambda: report.to_html(certificate))
    if args.svg is not None:
        _write("--svg", args.svg, report.to_svg)
    return FAILED if certificate is not None and not certificate.passed else DONE


def _is_saved(target: str) -> bool:
    return not target.endswith(".pt2") and Path(target).is_file()


def _saved(args: argparse.Namespace) -> tuple[Report, Certificate | None]:
    if args.context is not None:
        raise CommandError(f"{args.model} is hoisted already; --context is for models to hoist")
    found = contents(args.model)
    return found.description.report, None if found.certificate is None else stored(found.certificate)


def _hoisted(args: argparse.Namespace) -> tuple[Report, Certificate | None]:
    """A certificate is made for the page alone."""
    if args.context is None and not Path(args.model).is_file() and ":" not in args.model:
        raise CommandError(f"no such file: {args.model}{' (it is a folder)' if Path(args.model).is_dir() else ''}")
    if args.context is None:
        raise CommandError(f"say with --context which inputs of {args.model} belong to the request")
    with Console(stderr=True).status("hoisting"):
        model, hoisted = hoisted_of(args)
    if args.html is None or args.no_verify:
        return hoisted.report(), None
    with Console(stderr=True).status("comparing with the original"):
        return hoisted.report(), certificate_of(args, hoisted, model)


def _write(option: str, path: str, made: Callable[[], str]) -> None:
    try:
        Path(path).write_text(made(), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{option} {path}: {error.strerror or error}") from error
    print(f"{option} {path}: written")
