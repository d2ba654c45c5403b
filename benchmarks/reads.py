"""What a candidate reads of a long history, mapped before it is read: `python -m benchmarks.reads [--tiny]`.

A history of T events of width 64, of which every candidate reads the 50 nearest (SIM's hard search, arXiv 2006.05639):
attention over these of one head and of four, or a layer of two maps and their mean; one request, float32, one thread.
`after` is the plan that is chosen; `before` the one that is chosen if what is read is a tensor of its own, so that maps
of it are per candidate; `by hand` maps the history, reads keys and values, and attends. Scores are compared before
anything is timed. Medians of calls in turn, of processor time. Writes dated JSON and Markdown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import dated
from rankhoist import HoistedModel, Workload
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.plan import Plan, Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.plan.search import best, make_plan, operators_of
from rankhoist.compiler.rules import all_rules
from rankhoist.compiler.targets.timing import interleaved

WIDTH, NEAREST = 64, 50
SIZES = [(1000, 200), (1000, 1000), (100, 1000), (20, 1000), (1, 1000)]  # candidates, events


class Search(nn.Module):
    """The nearest events, and what `kind` makes of them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.heads = kind, 4 if kind == "four heads" else 1
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.top = nn.Linear(WIDTH, WIDTH), nn.Linear(2 * WIDTH, 1)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        places = (history @ item.unsqueeze(2)).squeeze(2).topk(NEAREST, 1).indices
        found = torch.take_along_dim(history, places.unsqueeze(2), 1)
        if self.kind == "two maps":
            made = F.relu(self.value(F.relu(self.key(found)))).mean(1)
        else:
            made = self.attended(item, self.key(found), self.value(found))
        score: Tensor = self.top(torch.cat([made, item], 1))
        return score.squeeze(1)

    def attended(self, item: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (self._by_head(x) for x in (self.query(item).unsqueeze(1), keys, values))
        made: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))
        return made

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def by_hand(self, history: Tensor, items: Tensor) -> Tensor:
        """Of one request `[1, T, d]`, candidates `[N, d]`."""
        (events,) = history
        places = (items @ events.t()).topk(NEAREST, 1).indices
        if self.kind == "two maps":
            made = F.embedding(places, F.relu(self.value(F.relu(self.key(events))))).mean(1)
        else:
            mapped = F.embedding(places, torch.cat([self.key(events), self.value(events)], 1))
            made = self.attended(items, *mapped.chunk(2, 2))
        score: Tensor = self.top(torch.cat([made, items], 1))
        return score.squeeze(1)


def measured(kind: str, candidates: int, events: int, seconds: float) -> dict[str, Any]:
    """One row of the table."""
    torch.manual_seed(0)
    model = Search(kind).eval()
    program = capture(model, (torch.randn(4, events, WIDTH), torch.randn(4, WIDTH)), ["history"], all_rules())
    workload, history, items = Workload(candidates), torch.randn(1, events, WIDTH), torch.randn(candidates, WIDTH)
    plans = {"before": _before(program, workload), "after": make_plan(Task(program, Level.FULL, workload))}
    calls: dict[str, Callable[[], Tensor]] = {"by hand": lambda: model.by_hand(history, items)}
    for name, plan in plans.items():
        calls[name] = _call(HoistedModel(program, plan), history, items)
    with torch.no_grad():
        want = model(history.expand(candidates, -1, -1), items)
        for name, call in calls.items():
            if not torch.allclose(call(), want, atol=1e-4):
                raise SystemExit(f"{kind}, {name}: scores differ by {float((call() - want).abs().max()):.1e}")
        times = interleaved(calls, seconds, clock=time.thread_time)
    work = {n: sum(x.work.multiply_adds for x in p.nodes if x.rate.per_candidate) for n, p in plans.items()}
    return {
        "kind": kind, "candidates": candidates, "events": events, "multiply_adds": work,
        "ms": {n: t.median for n, t in times.items()},
        "quartiles": {n: [t.low, t.median, t.high] for n, t in times.items()},
    }  # fmt: skip


def _before(program: Any, workload: Workload) -> Plan:
    """The best plan in which what is read is evaluated, whatever else is."""
    read = frozenset(n.name for n in program.graph.nodes if "gather" in str(n.target))
    plans = [
        attempt(Task(program, Level.FULL, workload), read),
        attempt(Task(program, Level.FULL, workload), operators_of(program)),
    ]
    return best([*plans, *(attempt(Task(program, level, workload)) for level in (Level.REQUEST, Level.FIRST))])


def _call(hoisted: HoistedModel, history: Tensor, items: Tensor) -> Callable[[], Tensor]:
    return lambda: hoisted(history, items)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    head = "| of what is read | N | T | multiply-adds of a candidate, before | after | before, ms | after | by hand |"
    lines = [f"{head} before / after | by hand / after |", f"|---|{'---:|' * 9}"]
    for r in rows:
        ms, work = r["ms"], r["multiply_adds"]
        lines.append(
            f"| {r['kind']} | {r['candidates']} | {r['events']} | {work['before']:,} | {work['after']:,} "
            f"| {ms['before']:.3g} | {ms['after']:.3g} | {ms['by hand']:.3g} "
            f"| {ms['before'] / ms['after']:.2f}x | {ms['by hand'] / ms['after']:.2f}x |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write down."""
    options = dated.flags(__doc__, 4.0, tiny="few events").parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for kind in ("one head", "four heads", "two maps"):
        for candidates, events in [(20, 60)] if options.tiny else SIZES:
            rows.append(measured(kind, candidates, events, options.seconds))
            print(table(rows).splitlines()[-1], flush=True)
    record = dated.begun() | {"nearest": NEAREST, "width": WIDTH, "note": options.note, "results": rows}
    about = (
        f"the {NEAREST} nearest of T events, N candidates of one request: `python -m benchmarks.reads`. {options.note}"
    )
    dated.write(options.out, "reads", record, "Maps of what is read of a history", about, table(rows))


if __name__ == "__main__":
    main()
