"""Commands that take a model: where it is found, what it is hoisted for, and its certificate."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Any

from rankhoist.cli.arguments import (
    CONTEXT_HELP,
    DYNAMIC_HELP,
    ITEM_HELP,
    JAGGED_HELP,
    context_of,
    count,
    dynamic_of,
    jagged_of,
    new_file,
    numbers,
)
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.errors import ArtifactError, CommandError
from rankhoist.hoist import hoist
from rankhoist.runtime import HoistedModel
from rankhoist.verify import Certificate, verify
from rankhoist.verify.checks import CANDIDATES, REQUESTS

LEVELS = [level.name.lower() for level in Level]

MODEL_HELP = """\
package.module:function, a function without arguments that returns (model in eval mode, example inputs) and is found
from the current directory; or the path of a .pt2 archive of torch.export, or of an .onnx file"""


SAVED_HELP = "; or a file that hoist --out wrote, which is for the context, level and numbers that it was saved with"


ITEM_BYTES_HELP = """\
how much a store may keep of each item (default: a quarter of the memory for a million of them)"""

SECONDS_HELP = "how long to search for plans (default: until nothing helps, 15 seconds at most)"

WITHOUT_HELP = "a law to switch off, by its name in the report; repeat for more"


def model_arguments(parser: argparse.ArgumentParser, saved: bool = False) -> None:
    """MODEL, --context, --item, --level, --without, numbers, --json; `saved`: MODEL may be hoisted already."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP + (SAVED_HELP if saved else ""))
    parser.add_argument("--context", metavar="GLOB", action="append", required=not saved, help=CONTEXT_HELP)
    parser.add_argument("--item", metavar="GLOB", action="append", default=[], help=ITEM_HELP)
    parser.add_argument("--jagged", metavar="VALUES=...", action="append", default=[], help=JAGGED_HELP)
    parser.add_argument("--dynamic", metavar="NAME=...", action="append", default=[], help=DYNAMIC_HELP)
    parser.add_argument("--item-bytes", metavar="BYTES", type=count, help=ITEM_BYTES_HELP)
    parser.add_argument("--level", choices=LEVELS, default="full", help="what may be hoisted (default: %(default)s)")
    parser.add_argument("--without", metavar="LAW", action="append", default=[], help=WITHOUT_HELP)
    parser.add_argument("--search-seconds", metavar="S", type=float, help=SECONDS_HELP)
    numbers(parser, "candidates", "requests", "seed")
    parser.add_argument("--json", metavar="FILE", type=new_file, help="write the result there as well")


def load(target: str) -> tuple[Any, Any]:
    """The model (or the path of its file) and its example inputs (None for a file, which holds or describes them)."""
    if target.endswith((".pt2", ".onnx")):
        return target, None
    module, _, function = target.partition(":")
    if not module or not function:
        said = "is neither package.module:function nor the path of a .pt2 archive or an .onnx file"
        raise CommandError(f"{target!r} {said}{_file(target)}")
    if module.endswith(".py"):
        named = f"{module[:-3].replace('/', '.')}:{function}"
        raise CommandError(f"{target!r}: a module is named as Python imports it, {named}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(module), function)()
    except (Exception, SystemExit) as error:  # anything can go wrong in a file of the user's
        raise CommandError(f"{target} cannot be called: {type(error).__name__}: {error}") from error
    if not isinstance(made, tuple) or len(made) != 2:
        raise CommandError(f"{target} returned {type(made).__name__}, expected the tuple (model, example inputs)")
    model, example = made
    return model, example


def _file(target: str) -> str:
    """What to do with a file of another kind."""
    if target.endswith(".rankhoist"):
        return ". It is hoisted already: report, show, tune, score and serve take it"
    if target.endswith((".pt", ".pth", ".ckpt", ".bin", ".safetensors")):
        return ". It has weights, and no graph: write a function that loads them into its module, and name that"
    return ""


def hoisted_of(args: argparse.Namespace) -> tuple[Any, HoistedModel]:
    """The original and its hoisted model."""
    context, item = context_of(args.context), context_of(args.item, "--item")
    jagged, dynamic = jagged_of(args.jagged) or None, dynamic_of(args.dynamic) or None
    model, example = load(args.model)
    workload = Workload(args.candidates, args.requests)
    chosen = {"level": args.level, "without": args.without, "targets": vars(args).get("target", [])}
    return model, hoist(
        model, example, context=context, item=item, item_bytes=args.item_bytes, workload=workload,
        seconds=args.search_seconds, jagged=jagged, dynamic=dynamic, **chosen,
    )  # fmt: skip


def certificate_of(args: argparse.Namespace, hoisted: HoistedModel, model: Any) -> Certificate:
    """Verified for the usual sizes and those that the plan was made for."""
    candidates = sorted({*CANDIDATES, args.candidates})
    requests = sorted({*REQUESTS, args.requests})
    store = hoisted.catalogue(hoisted.made_up("item", 1)) if args.item else None  # what kind of store is checked
    return verify(hoisted, model, seed=args.seed, candidates=candidates, requests=requests, store=store)


def stored(certificate: dict[str, Any]) -> Certificate:
    """A certificate from a file, which may be anybody's."""
    try:
        return Certificate.from_dict(certificate)
    except ArtifactError as error:
        raise ArtifactError(f"the certificate in the file is none: {error}") from error
