"""The command line: `rankhoist demo | hoist | verify | report | show | bench | calibrate`.

Exit codes: 0 done (and verified), 1 a certificate failed, 2 the command cannot be carried out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rankhoist import __version__
from rankhoist.algebra.interpret import Level
from rankhoist.algebra.ir import Workload
from rankhoist.bench.calibrate import calibrate
from rankhoist.bench.timing import interleaved
from rankhoist.errors import ArtifactError, CommandError, RankhoistError
from rankhoist.hoist import hoist
from rankhoist.plan import PlanSummary, make_plan
from rankhoist.plan.profile import path as profile_path
from rankhoist.report.text import ratio
from rankhoist.runtime import HoistedModel
from rankhoist.runtime.contents import contents
from rankhoist.runtime.plain import printable
from rankhoist.verify import Certificate, verify
from rankhoist.verify.batches import arguments, draw, split_rows
from rankhoist.verify.checks import CANDIDATES, REQUESTS

DONE, FAILED, UNUSABLE = 0, 1, 2
SECONDS = 5.0  # of timing, with --time
LEVELS = [level.name.lower() for level in Level]

MODEL_HELP = """\
package.module:function, a function without arguments that returns (model in eval mode, example inputs) and is found
from the current directory; or the path of a .pt2 archive of torch.export"""

CONTEXT_HELP = """\
an input that belongs to the request, by name or glob; for a packed input [rows, columns] its context columns, as
NAME=0,2,5-9 (9 included); repeat for more inputs"""

EXAMPLES = {
    "demo": """\
examples:
  rankhoist demo
  rankhoist demo --candidates 4000 --seed 7 --out runs/large""",
    "hoist": """\
examples:
  rankhoist hoist mymodels.ranker:build --context 'user_*' --context hour
  rankhoist hoist ranker.pt2 --context features=0-11,40 --candidates 4000
  rankhoist hoist ranker.pt2 --context 'user_*' --out ranker.rankhoist
  rankhoist hoist ranker.pt2 --context user --level linear --no-verify --json levels.json""",
    "verify": """\
examples:
  rankhoist verify mymodels.ranker:build --context 'user_*'
  rankhoist verify ranker.pt2 --context user --requests 8 --seed 3 --json certificate.json""",
    "calibrate": """\
examples:
  rankhoist calibrate
  rankhoist calibrate --threads 4
  rankhoist calibrate --out serving-host.json && RANKHOIST_PROFILE=serving-host.json rankhoist hoist ...""",
    "report": """\
examples:
  rankhoist report mymodels.ranker:build --context 'user_*'
  rankhoist report ranker.pt2 --context features=0-11,40 --level first --json report.json""",
    "show": """\
examples:
  rankhoist show ranker.rankhoist
  rankhoist show ranker.rankhoist --json ranker.json""",
    "bench": """\
examples:
  rankhoist bench
  rankhoist bench --only 'cross_*' industrial --candidates 10 1000 --seconds 5
  rankhoist bench --all --threads 4 --out runs/bench""",
}


def main(argv: list[str] | None = None) -> int:
    """Carry out one command; returns the exit code."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.command(args)
    except RankhoistError as error:
        print(f"rankhoist: {error}", file=sys.stderr)
        return UNUSABLE
    return code


# -- arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rankhoist",
        description="Compile a trained PyTorch ranking model so that context work runs once per request.",
        epilog="Each command has examples: rankhoist hoist --help",
    )
    parser.add_argument("--version", action="version", version=f"rankhoist {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    demo = _command(commands, "demo", _demo, "train an example model, hoist it at every level, and time the levels")
    demo.add_argument("--data", metavar="DIR", help="a data set to train on (default: generated requests)")
    demo.add_argument("--out", metavar="DIR", default="runs/demo", help="where results go (default: %(default)s)")
    _numbers(demo, "candidates", "seed")
    for name, command, text in (
        ("hoist", _hoist, "hoist a model: what each level costs, and a check that the result is equal"),
        ("verify", _verify, "hoist a model and compare it with the original; exit code 1 if they differ"),
        ("report", _report, "hoist a model and list its operators: their rates, their work, what stayed and why"),
    ):
        _model_arguments(_command(commands, name, command, text))
    text = "measure this machine once (half a minute), so that plans are chosen by its own times"
    calibrate = _command(commands, "calibrate", _calibrate, text)
    calibrate.add_argument("--threads", metavar="T", type=_count, help="torch threads (default: as torch has them)")
    calibrate.add_argument("--out", metavar="FILE", help="where the profile goes (default: where hoist looks for it)")
    hoist = commands.choices["hoist"]
    hoist.add_argument("--time", action="store_true", help="also measure every level, to stand beside the prediction")
    hoist.add_argument("--no-verify", action="store_true", help="do not compare with the original")
    hoist.add_argument(
        "--out", metavar="FILE", help="save the hoisted model there, unless it differs from the original"
    )
    show = _command(commands, "show", _show, "show what a saved model holds: inputs, plans, versions, certificate")
    show.add_argument("file", metavar="FILE", help="a file that hoist --out or HoistedModel.save wrote")
    show.add_argument("--json", metavar="FILE", help="write the result there as well")
    _bench_arguments(_command(commands, "bench", _bench, "time every level of small ranking models, with baselines"))
    return parser


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=EXAMPLES[name],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run)
    return parser


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--context", metavar="GLOB", action="append", required=True, help=CONTEXT_HELP)
    parser.add_argument("--level", choices=LEVELS, default="full", help="what may be hoisted (default: %(default)s)")
    _numbers(parser, "candidates", "requests", "seed")
    parser.add_argument("--json", metavar="FILE", help="write the result there as well")


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--all", action="store_true", help="every scenario, size and share of context (hours)")
    parser.add_argument("--only", metavar="GLOB", nargs="+", default=[], help="scenarios by name or glob")
    parser.add_argument("--candidates", metavar="N", type=_count, nargs="+", default=[], help="candidates per call")
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=3.0, help="timing per cell (default: %(default)s)"
    )
    parser.add_argument("--threads", metavar="T", type=_count, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument("--backend", choices=["eager", "inductor"], default="eager", help="what runs the levels")
    parser.add_argument("--compile", action="store_true", help="time torch.compile of the original too (as in --all)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="default: %(default)s")
    parser.add_argument("--device", default="cpu", help="cpu, or a CUDA device (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", default="benchmarks/results", help="default: %(default)s")
    parser.add_argument("--no-plots", action="store_true", help="tables only: needs no matplotlib")


def _numbers(parser: argparse.ArgumentParser, *names: str) -> None:
    known: dict[str, tuple[str, Callable[[str], int], int, str]] = {
        "candidates": ("N", _count, 1000, "candidates per call"),
        "requests": ("R", _count, 1, "requests per call, which share the candidates out among them"),
        "seed": ("SEED", int, 0, "of everything random"),
    }
    for name in names:
        metavar, kind, default, text = known[name]
        parser.add_argument(
            f"--{name}", metavar=metavar, type=kind, default=default, help=f"{text} (default: %(default)s)"
        )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def context_of(arguments: Sequence[str]) -> dict[str, bool | list[int]]:
    """`["user_*", "features=0,2,5-9"]` -> `{"user_*": True, "features": [0, 2, 5, 6, 7, 8, 9]}`."""
    context: dict[str, bool | list[int]] = {}
    for argument in arguments:
        name, equals, columns = argument.partition("=")
        context[name] = _columns(argument, columns) if equals else True
    return context


def _columns(argument: str, text: str) -> list[int]:
    columns: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            columns += range(int(first), int(last if dash else first) + 1)
        except ValueError:
            raise CommandError(f"--context {argument}: {part!r} is no column; write NAME=0,2,5-9") from None
    return columns


def load(target: str) -> tuple[Any, Any]:
    """The model (or the path of its archive) and its example inputs (None for an archive, which holds them)."""
    if target.endswith(".pt2"):
        return target, None
    module, _, function = target.partition(":")
    if not module or not function:
        raise CommandError(f"{target!r} is neither package.module:function nor the path of a .pt2 archive")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(module), function)()
    except Exception as error:  # anything can go wrong in a file of the user's
        raise CommandError(f"{target} cannot be called: {type(error).__name__}: {error}") from error
    if not isinstance(made, tuple) or len(made) != 2:
        raise CommandError(f"{target} returned {type(made).__name__}, expected the tuple (model, example inputs)")
    model, example = made
    return model, example


# -- commands


def _demo(args: argparse.Namespace) -> int:
    from rankhoist.demo.run import main as run  # only this command needs the data sets and the trainer

    return run(args.data, args.out, args.seed, args.candidates)


def _calibrate(args: argparse.Namespace) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    profile = calibrate(lambda points: track(points, "measuring", console=Console(stderr=True)))
    out = Path(args.out) if args.out else profile_path()
    profile.save(out)
    print(f"{out}\n{profile.summary()}")
    return DONE


def _bench(args: argparse.Namespace) -> int:
    from rankhoist.bench.run import Options
    from rankhoist.bench.run import main as run  # only this command needs the scenarios

    return run(
        Options(
            args.all, args.only, args.candidates, args.seconds, args.threads, args.backend, args.compile, args.dtype,
            args.device, Path(args.out), not args.no_plots,
        )
    )  # fmt: skip


def _hoist(args: argparse.Namespace) -> int:
    model, hoisted = _hoisted(args)
    plans = _plans(hoisted, args.level)
    measured = _timed(args, hoisted, plans) if args.time else {}
    Console().print(_level_table(plans, measured))
    print(f"break-even points by prediction:\n{hoisted.plans}")
    certificate = None if args.no_verify else _certificate(args, hoisted, model)
    if certificate is not None:
        print(certificate)
    levels = [_level_data(level, plan, measured.get(level)) for level, plan in plans.items()]
    _write(args.json, {"levels": levels, "certificate": certificate.to_dict() if certificate is not None else None})
    if certificate is not None and not certificate.passed:
        return FAILED
    if args.out is not None:
        hoisted.save(args.out, certificate)
    return DONE


def _show(args: argparse.Namespace) -> int:
    found = contents(args.file)
    print(found)
    if found.certificate is not None:
        print(f"\n{_stored(found.certificate)}")
    _write(args.json, found.to_dict())
    return DONE


def _stored(certificate: dict[str, Any]) -> str:
    """A certificate from a file, which may be anybody's."""
    try:
        return printable(str(Certificate.from_json(json.dumps(certificate))))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"the certificate in the file is none: {type(error).__name__}: {error}") from error


def _verify(args: argparse.Namespace) -> int:
    model, hoisted = _hoisted(args)
    certificate = _certificate(args, hoisted, model)
    print(certificate)
    _write(args.json, certificate.to_dict())
    return DONE if certificate.passed else FAILED


def _report(args: argparse.Namespace) -> int:
    _, hoisted = _hoisted(args)
    report = hoisted.report()
    print(report)
    _write(args.json, report.to_dict())
    return DONE


def _hoisted(args: argparse.Namespace) -> tuple[Any, HoistedModel]:
    """The original and its hoisted model."""
    context = context_of(args.context)
    model, example = load(args.model)
    workload = Workload(args.candidates, args.requests)
    return model, hoist(model, example, context=context, workload=workload, level=args.level)


def _certificate(args: argparse.Namespace, hoisted: HoistedModel, model: Any) -> Certificate:
    """Verified for the usual sizes and those that the plan was made for."""
    candidates = sorted({*CANDIDATES, args.candidates})
    requests = sorted({*REQUESTS, args.requests})
    return verify(hoisted, model, seed=args.seed, candidates=candidates, requests=requests)


def _plans(hoisted: HoistedModel, level: str) -> dict[str, PlanSummary]:
    """Level -> plan, for all levels up to the one asked for."""
    lower = LEVELS[: LEVELS.index(level)]
    assert hoisted.program is not None, "captured a moment ago"
    plans = {name: make_plan(hoisted.program, Level[name.upper()], hoisted.plan.workload) for name in lower}
    return {**plans, level: hoisted.plan}


def _timed(args: argparse.Namespace, hoisted: HoistedModel, plans: dict[str, PlanSummary]) -> dict[str, float]:
    """Level -> measured seconds of a call, the levels in turn, on rows drawn from the example."""
    assert hoisted.program is not None, "captured a moment ago"
    calls = {}
    interface = hoisted.interface
    batch = draw(interface.inputs.values(), hoisted.example, args.candidates, args.requests, -1, args.seed)
    positional, named = arguments(interface, split_rows(interface, batch))
    for level, plan in plans.items():
        model = hoisted if level == args.level else HoistedModel(hoisted.program, plan)  # type: ignore[arg-type]
        calls[level] = partial(model, *positional, request_offsets=list(batch.offsets), **named)
    return {level: t.median / 1e3 for level, t in interleaved(calls, seconds=SECONDS).items()}


def _level_table(plans: dict[str, PlanSummary], measured: dict[str, float]) -> Table:
    workload = next(iter(plans.values())).workload
    calls = f"N = {workload.candidates:,} candidates, R = {workload.requests:,} requests"
    table = Table("level", "same as", title=f"work of a call with {calls}", caption="ratio: expand / level")
    for column in ("multiply-adds", "ratio", "elements written", "ratio"):
        table.add_column(column, justify="right")
    table.add_column("predicted ms", justify="right")
    if measured:
        table.add_column("measured ms", justify="right")
    expand = plans["expand"].cost
    for level, plan in plans.items():
        cost, chosen = plan.cost, plan.level.name.lower()
        seconds = [cost.seconds, *([measured[level]] if measured else [])]
        table.add_row(
            level,
            "" if chosen == level else chosen,
            f"{cost.multiply_adds:,}",
            ratio(expand.multiply_adds, cost.multiply_adds),
            f"{cost.elements:,}",
            ratio(expand.elements, cost.elements),
            *(f"{s * 1e3:.3f}" for s in seconds),
        )
    return table


def _level_data(level: str, plan: PlanSummary, measured: float | None) -> dict[str, Any]:
    cost, chosen = plan.cost, plan.level.name.lower()
    work = {"multiply_adds": cost.multiply_adds, "elements": cost.elements}
    return {"level": level, "same_as": chosen, **work, "predicted_seconds": cost.seconds, "measured_seconds": measured}


def _write(path: str | None, data: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        Path(path).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--json {path}: {error.strerror or error}") from error
