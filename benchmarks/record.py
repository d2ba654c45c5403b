"""What the compiler makes of many models, as a record: a change of form is to change nothing else.

    python benchmarks/record.py --out before.json                    # at one commit
    python benchmarks/record.py --against before.json                # at another: exit code 1 where anything differs

Of every model: its plans (level, multiply-adds, elements), where each is used, the operators of all stages in order,
and the scores, bit by bit, of one request and of three ragged ones. The models are the demo's, the scenarios of
`rankhoist bench`, and the public models of the tests (`--only NAME` for some). It imports only what is public, and so
runs at old commits, too. A search that its limit of seconds ends may find another plan on another machine.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rankhoist import HoistedModel
from rankhoist.bench.scenarios import SCENARIOS
from rankhoist.capture import Program, capture
from rankhoist.hoist import hoist_program

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

CANDIDATES, OFFSETS = 50, [0, 20, 20, 50]
Rows = Callable[[int], tuple[Any, ...]]  # requests -> what the hoisted model is called with
Model = tuple[str, Callable[[], Program], Rows]


def demo_models() -> Iterator[Model]:
    """The demo's two, on a short log, untrained."""
    house = "rankhoist.lab" if importlib.util.find_spec("rankhoist.lab") else "rankhoist"
    data = importlib.import_module(f"{house}.data").generate_request_log(rows=4000)
    build = importlib.import_module(f"{house}.train").build_model
    for name in ("dcnv2", "deepfm"):
        model, example = build(name, data).eval(), data.example(64)
        rows = [{k: v.clone() for k, v in data.rows(slice(0, n)).items()} for n in (3, CANDIDATES)]

        def given(requests: int, rows: list[Mapping[str, Tensor]] = rows) -> tuple[Any, ...]:
            side = {k: v[:requests] if k in data.context else rows[1][k] for k, v in rows[0].items()}
            return (side,)

        yield f"demo {name}", lambda m=model, e=example: capture(m, (e,), list(data.context)), given


def scenarios() -> Iterator[Model]:
    """Those of `rankhoist bench`."""
    for case in SCENARIOS:

        def given(requests: int, case: Any = case) -> tuple[Any, ...]:
            return case.inputs(requests, CANDIDATES, seed=7)

        yield (
            f"scenario {case.name}",
            lambda case=case: capture(case.model(), case.inputs(4, 4), case.context_names),
            given,
        )


def public_models() -> Iterator[Model]:
    """DeepCTR-Torch and torch-rechub models of the tests."""
    importlib.import_module("conftest")  # keeps deepctr_torch off the network
    for case in importlib.import_module("public_models").cases():

        def given(requests: int, case: Any = case) -> tuple[Any, ...]:
            return case.hoisted_inputs(case.rows(requests, seed=1), case.rows(CANDIDATES, seed=2))

        yield f"public {case.name}", lambda case=case: case.captured(case.model()), given


def recorded(program: Program, given: Rows) -> dict[str, Any]:
    """One model."""
    started = time.process_time()
    hoisted = hoist_program(program)
    seconds = time.process_time() - started
    plans = [
        [p.level.name.lower(), p.asked.name.lower(), p.cost.multiply_adds, p.cost.elements] for p in hoisted.plans.plans
    ]
    return {
        "plans": plans,
        "ranges": str(hoisted.plans),
        "operators": _operators(hoisted),
        "one": _digest(hoisted(*given(1))),
        "three": _digest(hoisted(*given(3), request_offsets=OFFSETS)),
        "total": [hoisted.report().total().before.multiply_adds, hoisted.report().total().after.multiply_adds],
        "seconds": round(seconds, 2),
    }


def _operators(hoisted: HoistedModel) -> list[str]:
    """Of every stage in order, each stage as one digest of its operators' names."""
    stages = [hoisted.stages.weights, *(s for v in hoisted.stages.variants for s in (v.request, v.candidate))]
    names = [[getattr(n.target, "__name__", str(n.target)) for n in s.module.graph.nodes] for s in stages]
    return [f"{len(own)} {hashlib.sha256(' '.join(own).encode()).hexdigest()[:16]}" for own in names]


def _digest(result: Any) -> str:
    leaves = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
    return hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in leaves)).hexdigest()[:16]


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A line for each model and each part of it that differs; `seconds` may."""
    lines = [f"{name}: only in one of them" for name in before.keys() ^ after.keys()]
    for name in before.keys() & after.keys():
        for part in before[name].keys() - {"seconds"}:
            if before[name][part] != after[name][part]:
                lines.append(f"{name}: {part}: {before[name][part]} -> {after[name][part]}")
    return sorted(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the record is written")
    parser.add_argument("--against", type=Path, metavar="FILE", help="an earlier record")
    parser.add_argument("--only", default="", metavar="NAME", help="models whose name contains it")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # scores to the last bit, whatever the machine
    found: dict[str, Any] = {}
    for name, captured, given in (*demo_models(), *scenarios(), *public_models()):
        if asked.only in name:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                found[name] = recorded(captured(), given)
            print(name, found[name]["plans"][0], f"{found[name]['seconds']} s", flush=True)
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not asked.against:
        return 0
    before = {k: v for k, v in json.loads(asked.against.read_text(encoding="utf-8")).items() if asked.only in k}
    lines = differences(before, found)
    print("\n".join(lines) or f"{len(found)} models: nothing differs")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
