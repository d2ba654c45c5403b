"""`rankhoist hoist`: the work at every level, the time if asked, a certificate, and the model as a file."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from rankhoist.cli.arguments import DONE, FAILED, command, new_file, write_json
from rankhoist.cli.models import LEVELS, certificate_of, hoisted_of, model_arguments
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.plan import PlanSummary, Task, make_plan
from rankhoist.compiler.targets.known import NAMES
from rankhoist.compiler.targets.timing import interleaved
from rankhoist.report.tables import plan_lines
from rankhoist.report.text import ratio, short
from rankhoist.runtime import HoistedModel
from rankhoist.verify.batches import draw
from rankhoist.verify.original import run_hoisted

SECONDS = 5.0  # of timing, with --time

EXAMPLES = """\
examples:
  rankhoist hoist mymodels.ranker:build --context 'user_*' --context hour
  rankhoist hoist ranker.pt2 --context features=0-11,40 --candidates 4000
  rankhoist hoist ranker.pt2 --context 'user_*' --out ranker.rankhoist
  rankhoist hoist ranker.pt2 --context 'user_*' --target cuda-bfloat16 --out ranker.rankhoist
  rankhoist hoist ranker.pt2 --context user --level linear --no-verify --json levels.json"""


def add(commands: Any) -> None:
    text = "hoist a model: what each level costs, and a check that the result is equal"
    parser = command(commands, "hoist", _hoist, text, EXAMPLES)
    model_arguments(parser)
    parser.add_argument("--time", action="store_true", help="also measure every level, to stand beside the prediction")
    parser.add_argument("--no-verify", action="store_true", help="do not compare with the original")
    parser.add_argument(
        "--out", metavar="FILE", type=new_file, help="save the hoisted model there, unless it differs from the original"
    )
    parser.add_argument(
        "--target", metavar="NAME", action="append", default=[], choices=NAMES,
        help=f"where it may go, beside the CPU in its own dtype; repeat for more: {', '.join(NAMES)}",
    )  # fmt: skip
    parser.add_argument(
        "--example", action="store_true", help="with --out, save the example's rows too; else the file has made-up ones"
    )


def _hoist(args: argparse.Namespace) -> int:
    model, hoisted = hoisted_of(args)
    plans = _plans(hoisted, args.level, frozenset(args.without))
    measured = _timed(args, hoisted, plans) if args.time else {}
    Console().print(_level_table(plans, measured))
    print("\n".join(plan_lines(hoisted.report())))
    certificate = None if args.no_verify else certificate_of(args, hoisted, model)
    if certificate is not None:
        print(certificate)
    levels = [_level_data(level, plan, measured.get(level)) for level, plan in plans.items()]
    write_json(args.json, {"levels": levels, "certificate": certificate.to_dict() if certificate is not None else None})
    if certificate is not None and not certificate.passed:
        return FAILED
    if args.out is not None:
        hoisted.save(args.out, certificate, example=args.example)
        print(f"saved {args.out}; next: rankhoist report {args.out}, rankhoist serve {args.out}")
    return DONE


def _plans(hoisted: HoistedModel, level: str, without: frozenset[str]) -> dict[str, PlanSummary]:
    """Level -> plan, for all levels up to the one asked for."""
    lower = LEVELS[: LEVELS.index(level)]
    assert hoisted.program is not None, "captured a moment ago"
    program, workload = hoisted.program, hoisted.plan.workload
    plans = {name: make_plan(Task(program, Level[name.upper()], workload, without=without)) for name in lower}
    return {**plans, level: hoisted.plan}


def _timed(args: argparse.Namespace, hoisted: HoistedModel, plans: dict[str, PlanSummary]) -> dict[str, float]:
    """Level -> measured seconds of a call, the levels in turn, on rows drawn from the example."""
    assert hoisted.program is not None, "captured a moment ago"
    calls = {}
    inputs = hoisted.interface.inputs.values()
    batch = draw(inputs, hoisted.example, args.candidates, args.requests, -1, args.seed)
    for level, plan in plans.items():
        model = hoisted if level == args.level else HoistedModel(hoisted.program, plan)  # type: ignore[arg-type]
        calls[level] = partial(run_hoisted, model, batch)
    return {level: t.median / 1e3 for level, t in interleaved(calls, seconds=SECONDS).items()}


def _level_table(plans: dict[str, PlanSummary], measured: dict[str, float]) -> Table:
    workload = next(iter(plans.values())).workload
    calls = f"N = {workload.candidates:,} candidates, R = {workload.requests:,} request{'s' * (workload.requests > 1)}"
    table = Table("level", title=f"work of a call, {calls}", caption="ratio: how many times less than the plain model")
    for column in (
        "mul-adds",
        "ratio",
        "written",
        "ratio",
        "predicted ms",
        *(["measured ms"] if measured else []),
    ):
        table.add_column(column, justify="right")
    expand = plans["expand"].cost
    for level, plan in plans.items():
        cost, chosen = plan.cost, plan.level.name.lower()
        seconds = [cost.seconds, *([measured[level]] if measured else [])]
        table.add_row(
            level if chosen == level else f"{level}: as {chosen}",
            short(cost.multiply_adds, "0"),
            ratio(expand.multiply_adds, cost.multiply_adds),
            short(cost.elements, "0"),
            ratio(expand.elements, cost.elements),
            *(f"{s * 1e3:.3g}" for s in seconds),
        )
    return table


def _level_data(level: str, plan: PlanSummary, measured: float | None) -> dict[str, Any]:
    cost, chosen = plan.cost, plan.level.name.lower()
    work = {"multiply_adds": cost.multiply_adds, "elements": cost.elements}
    return {"level": level, "same_as": chosen, **work, "predicted_seconds": cost.seconds, "measured_seconds": measured}
