"""What a store of items saves: calls with one, beside the same hoisted model without, the plain model and level `full`.

    python benchmarks/catalogue.py [--only mlp tower ...] [--items 20000] [--seconds 5] [--out benchmarks/results]

One thread, N = 1000 candidates of one request, drawn at random out of `--items` items, calls in turn, medians. A call
with a store is `prepare` and `score` by row numbers; without one it is the hoisted model called whole, which is given
the candidates' columns as they are. `by hand` is what one would write with a store, without checks of inputs: see
`catalogue_by_hand.py`. All candidate inputs are the items'. Scores are compared before anything is timed. Seconds are
those of the thread, for others may use the machine. Writes dated JSON and Markdown.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from catalogue_by_hand import BY_HAND
from torch import Tensor, nn

import rankhoist
from rankhoist.bench.scenarios import Scenario, scenario
from rankhoist.compiler.targets.machine import machine
from rankhoist.compiler.targets.timing import interleaved
from rankhoist.nn import CrossNetV2

CANDIDATES = 1000
GOALS = {"mlp": 1.7, "norm_linear": 3.0, "dot_pairs_27_4": 1.2, "mmoe": 1.5, "tower": 5.0}


class Tower(nn.Module):
    """A text vector through an item tower, then a cross network with the columns of the request."""

    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Sequential(nn.Linear(768, 512), nn.ReLU(), nn.Linear(512, 128), nn.ReLU())
        self.cross, self.top = CrossNetV2(728, 3), nn.Linear(728, 1)

    def forward(self, context: Tensor, text: Tensor) -> Tensor:
        x: Tensor = self.top(self.cross(torch.cat([context, self.item(text)], 1)))
        return x.squeeze(1)


TOWER = Scenario("tower", Tower, (600,), {"text": (768,)}, dense=True)
NAMES = [*GOALS, "deepfm", "cross_full", "cross_low_rank", "dot_pairs_80_10", "target_attention", "token_attention",
         "autoint", "industrial"]  # fmt: skip


def measured(name: str, items: int, seconds: float) -> dict[str, Any]:
    """One scenario, timed."""
    case = TOWER if name == "tower" else scenario(name)
    model = case.model()
    hoisted = rankhoist.hoist(
        model, case.inputs(4, 4), context=case.context_names, item=[n for n in case.sides(1, 1)[1]]
    )
    context, catalogue = case.sides(1, items)
    store = hoisted.catalogue(catalogue)
    rows = torch.randint(items, (CANDIDATES,), generator=torch.Generator().manual_seed(0))
    drawn = {n: x[rows] for n, x in catalogue.items()}
    given = case.arguments(context, drawn)
    whole = case.arguments({n: x.expand(CANDIDATES, *x.shape[1:]) for n, x in context.items()}, drawn)

    def with_store() -> Any:
        return hoisted.score(hoisted.prepare(context, CANDIDATES, store), store=store, rows=rows)

    calls: dict[str, Callable[[], Any]] = {
        "original": partial(model, *whole), "full": partial(hoisted, *given), "store": with_store
    }  # fmt: skip
    with torch.no_grad():
        if name in BY_HAND:
            calls["by hand"] = partial(BY_HAND[name](model, *context.values(), *catalogue.values()), rows)
        expected = _tensors(calls["full"]())
        for call in calls.values():
            for one, other in zip(_tensors(call()), expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        times = interleaved(calls, seconds, clock=time.thread_time)
    plan = hoisted.blueprint.with_store
    assert plan is not None, "items are marked"
    return {
        "scenario": name,
        "bytes_per_item": store.bytes_per_item,
        "predicted": {"full": hoisted.plan.cost.seconds * 1e3, "store": plan.main.cost.seconds * 1e3},
        **{call: vars(t) for call, t in times.items()},
        "ratio": times["full"].median / times["store"].median,
        "floor": times["full"].median / times["by hand"].median if "by hand" in times else None,
        "goal": GOALS.get(name),
    }


def _tensors(result: Any) -> Sequence[Tensor]:
    return [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, Tensor)]


def page(runs: Sequence[dict[str, Any]], about: str) -> str:
    """A table in Markdown."""
    lines = [
        "# Calls with a store of items", "", about, "",
        "| scenario | original ms | full ms | store ms | full / store | by hand | aimed at | predicted | bytes |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for r in runs:
        medians = " | ".join(f"{r[call]['median']:.3g}" for call in ("original", "full", "store"))
        predicted = r["predicted"]["full"] / r["predicted"]["store"]
        ratios = (f"{x:.2f}x" if x else "" for x in (r["ratio"], r["floor"], r["goal"], predicted))
        lines.append(f"| {r['scenario']} | {medians} | {' | '.join(ratios)} | {r['bytes_per_item']:,} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=NAMES)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="per scenario")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = []
    for name in args.only:
        runs.append(measured(name, args.items, args.seconds))
        print(page(runs[-1:], "").splitlines()[-1], flush=True)
    date = datetime.now(timezone.utc).date().isoformat()
    where = f"{machine()['processor']}, torch {torch.__version__}, {date}"
    about = f"{where}; N = {CANDIDATES} of {args.items:,} items, one thread, float32, medians of calls in turn."
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"{date}-catalogue.md").write_text(page(runs, about))
        (args.out / f"{date}-catalogue.json").write_text(json.dumps({"about": about, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
