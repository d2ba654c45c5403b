"""The benchmark suite: cells, floors, and a tiny run from the command line to its files."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from helpers import LEVELS, assert_equal, hoisted_at

from rankhoist import Workload, cli
from rankhoist.bench import run, suite
from rankhoist.bench.baselines import Given, eager, graphed, in_onnx_runtime
from rankhoist.bench.floor import Product, floor, products
from rankhoist.bench.goals import summary
from rankhoist.bench.launches import launches, peak_bytes
from rankhoist.bench.models import CrossLayers, Layers
from rankhoist.bench.run import Options
from rankhoist.bench.scenarios import QUICK, Scenario, names, scenario
from rankhoist.bench.suite import Cell, Settings, Subject, all_cells, quick_cells
from rankhoist.capture import capture
from rankhoist.errors import ExtraError
from rankhoist.runtime.alike import tolerance

TINY = Scenario("tiny", lambda: Layers(12, 8, 1), (8,), (4,), dense=True)


def test_cells():
    assert names([c.scenario for c in quick_cells()])[:1] == QUICK[:1]
    sizes = {(c.requests, c.candidates) for c in all_cells()}
    assert {(1, 1), (1, 5000), (8, 160), (64, 12_800)} <= sizes
    offsets = Cell(TINY, 160, 8).offsets
    counts = torch.tensor(offsets).diff()
    assert offsets[0] == 0 and offsets[-1] == 160 and len(counts) == 8
    assert counts.min() > 0 and len(set(counts.tolist())) > 1, "blocks are uneven"


# -- the floor


def test_products_of_a_plan():
    program = capture(TINY.model(), TINY.inputs(4, 4), TINY.context_names)
    plan = hoisted_at(program, LEVELS[3], Workload(100)).plan  # `linear`
    assert products(plan.nodes, "request", 100, 1) == [Product(1, 1, 8, 8)]
    assert products(plan.nodes, "candidate", 100, 1) == [Product(1, 100, 4, 8), Product(1, 100, 8, 1)]


@pytest.mark.parametrize("name", ["dot_pairs_27_4", "target_attention", "cross_low_rank"])
def test_products_do_the_multiply_adds_that_the_plan_counts(name: str):
    case = scenario(name)
    program = capture(case.model(), case.inputs(4, 4), case.context_names)
    plan = hoisted_at(program, LEVELS[-1], Workload(100)).plan
    parts = [p for stage in ("request", "candidate") for p in products(plan.nodes, stage, 100, 1)]
    assert sum(p.multiply_adds for p in parts) == pytest.approx(plan.cost.multiply_adds, rel=0.02)


@pytest.mark.parametrize("part", [Product(1, 3, 4, 5), Product(2, 3, 4, 5), Product(1, 1, 1, 1)])
def test_a_floor_runs(part: Product):
    floor([part, part], torch.float32, torch.device("cpu"))()
    assert part.multiply_adds == part.batch * part.m * part.k * part.n


# -- a run


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite knows one tiny scenario, at three sizes."""
    cells = [Cell(TINY, 1), Cell(TINY, 1000), Cell(TINY, 24, 4)]
    monkeypatch.setattr(suite, "quick_cells", lambda: cells)
    monkeypatch.setattr(sys, "argv", ["rankhoist", "bench"])


def test_a_run_writes_its_files(tiny, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="plots need the extra `bench`")
    threads = torch.get_num_threads()
    assert cli.main(["bench", "--seconds", "0.01", "--out", str(tmp_path)]) == cli.DONE
    assert torch.get_num_threads() == threads
    (file,) = tmp_path.glob("*-bench-quick.json")
    record = json.loads(file.read_text())
    assert re.match(r"\d{4}-\d\d-\d\dT", record["date"]) and record["command"] == "rankhoist bench"
    assert record["machine"]["threads"] == 1 and record["machine"]["torch"] == torch.__version__
    assert [(c["requests"], c["candidates"]) for c in record["cells"]] == [(1, 1), (1, 1000), (4, 24)]
    for cell in record["cells"]:
        assert cell["equal"] and max(cell["errors"].values()) < 1e-4
        timed = {"eager", *suite.LEVELS, "prepare", "score", "floor request", "floor candidate"}
        timed |= {"vmap"} if cell["requests"] == 1 else set()
        assert set(cell["time"]) == timed, cell["skipped"]
        assert all(t["low"] <= t["median"] <= t["high"] and t["calls"] >= 5 for t in cell["time"].values())
        assert cell["predicted"] > 0 and cell["state_bytes"] > 0 and cell["hoisting_seconds"]["full"] > 0
    assert {g["goal"]: g["cells"] for g in record["goals"]}["predicted / measured"] == 3
    text = file.with_suffix(".md").read_text()
    assert "| tiny | 4 | 24 |" in text and "`vmap`: several requests" in text
    drawn = sorted(p.name for p in tmp_path.glob("*.svg"))
    assert len(drawn) == 3 and all(f"({name})" in text for name in drawn), "no shares, so no picture of them"
    assert "1 thread(s)" in capsys.readouterr().out


def test_a_level_that_is_not_equal_is_not_timed(tiny, tmp_path, monkeypatch):
    make = suite.hoist_program

    def broken(program, workload=None, level="full"):
        hoisted = make(program, workload=workload, level=level)
        if level == "linear":
            hoisted.update_weights({name: 1.01 * w for name, w in hoisted.state_dict().items()})
        return hoisted

    monkeypatch.setattr(suite, "hoist_program", broken)
    assert cli.main(["bench", "--seconds", "0.01", "--no-plots", "--out", str(tmp_path)]) == cli.FAILED
    (file,) = tmp_path.glob("*.json")
    record = json.loads(file.read_text())
    assert all(not c["equal"] and not c["time"] and c["errors"]["linear"] > 1e-4 for c in record["cells"])
    assert "tiny N = 1000: not equal, so not timed" in file.with_suffix(".md").read_text()
    (goal,) = [g for g in record["goals"] if g["goal"].startswith("equal")]
    assert goal["passed"] is False and len(goal["missed"]) == 3


def test_a_baseline_that_fails_is_left_out_with_its_reason():
    class Refuses(Layers):
        def forward(self, context, candidate):
            if torch._C._functorch.is_batchedtensor(candidate):
                raise ValueError("not under vmap")
            return super().forward(context, candidate)

    case = Scenario("refuses", lambda: Refuses(12, 8, 1), (8,), (4,))
    found = Subject(case, Settings(seconds=0.01)).measure(Cell(case, 3))
    assert found["equal"] and found["skipped"]["vmap"] == "ValueError: not under vmap"
    assert "vmap" not in found["time"] and "full" in found["time"]


def test_launches_of_a_call_are_counted():
    """On a CPU its operators; and what it takes of memory at a time."""
    x = torch.randn(3, 4)
    assert launches(lambda: (x @ x.t()).relu().sum(), torch.device("cpu")) == 4
    assert peak_bytes(lambda: (x + x).sum(), torch.device("cpu")) == 12 * 4 + 4
    assert peak_bytes(lambda: None, torch.device("cpu")) == 0


def test_the_original_in_onnx_runtime():
    context, candidate = TINY.sides(2, 5)
    run = in_onnx_runtime(TINY.model(), TINY)
    given = Given(TINY, context, candidate, [0, 2, 5])
    assert_equal(eager(run, given, copied=True)(), eager(TINY.model(), given)())


def test_tf32_is_compared_less_closely_on_a_gpu_alone():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert tolerance(torch.float32, torch.device("cuda")) == 1e-2
        assert tolerance(torch.float32, torch.device("cpu")) == 1e-4
        torch.set_float32_matmul_precision("highest")
        assert tolerance(torch.float32, torch.device("cuda")) == 1e-4
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_replays_the_call():
    x, y = torch.randn(2, 5, device="cuda")
    replay = graphed(lambda: x * y)
    assert_equal(replay(), x * y)
    x.fill_(2.0)
    assert_equal(replay(), 2 * y)
    found = Subject(TINY, Settings(seconds=0.01, device="cuda")).measure(Cell(TINY, 3))
    assert found["equal"] and "eager graph" in found["time"], found["skipped"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what is left out where there is no CUDA device")
def test_a_graph_that_cannot_be_made_is_left_out_with_its_reason():
    subject, cell = Subject(TINY, Settings()), Cell(TINY, 3)
    subject.settings = Settings(device="cuda")
    calls, skipped = subject._calls(cell, Given(TINY, *TINY.sides(1, 3), cell.offsets), {})
    assert {"eager", "full"} <= calls.keys() and not any("graph" in name for name in calls)
    assert {name for name in skipped if "graph" in name} == {"eager graph", "full graph"} and all(skipped.values())


def test_a_level_that_raises_is_not_equal(monkeypatch):
    found_at = suite.hoist_program

    class Raises:
        def __init__(self, hoisted):
            self.plan = hoisted.plan

        def to_backend(self, name):
            return self

        def __call__(self, *args, **kwargs):
            raise RuntimeError("a rule broke")

    def broken(program, workload=None, level="full"):
        hoisted = found_at(program, workload=workload, level=level)
        return Raises(hoisted) if level == "first" else hoisted

    monkeypatch.setattr(suite, "hoist_program", broken)
    found = Subject(TINY, Settings(seconds=0.01)).measure(Cell(TINY, 3))
    assert not found["equal"] and not found["time"]
    assert found["skipped"]["first"] == "RuntimeError: a rule broke"
    assert "Infinity" not in json.dumps(found)


def test_an_interrupted_run_shows_what_it_has(tiny, tmp_path, monkeypatch):
    calls = iter(range(10))
    measure = Subject.measure

    def interrupted(self, cell):
        if next(calls) == 1:
            raise KeyboardInterrupt
        return measure(self, cell)

    monkeypatch.setattr(Subject, "measure", interrupted)
    assert cli.main(["bench", "--seconds", "0.01", "--no-plots", "--out", str(tmp_path)]) == 130
    (page,) = tmp_path.glob("*.md")
    assert page.read_text().count("| tiny | 1 | 1 |") == 2


def test_no_run_replaces_the_results_of_another(tiny, tmp_path, monkeypatch):
    cell = {"equal": True, "scenario": "tiny"}
    monkeypatch.setattr(suite, "measure_all", lambda cells, settings, done: [cell])
    for more in (
        [],
        [],
        ["--threads", "2", "--dtype", "bfloat16"],
        ["--backend", "inductor", "--device", "cuda:0"],
        ["--backend", "openvino"],
        [],
    ):
        assert cli.main(["bench", "--no-plots", "--out", str(tmp_path), *more]) == cli.DONE
    ends = {"", "-2", "-3", "-2-threads-bfloat16", "-inductor-cuda0", "-openvino"}
    assert {p.stem.split("-bench-quick")[1] for p in tmp_path.glob("*.json")} == ends
    assert len(list(tmp_path.glob("*.md"))) == len(ends)


def test_goals_name_the_cells_that_miss_them():
    def record(name: str, candidates: int, full: float) -> dict:
        times = {x: 2.0 for x in ("eager", *suite.LEVELS, "score", "floor candidate")} | {"full": full}
        return {
            "scenario": name, "dense": True, "requests": 1, "candidates": candidates, "equal": True, "predicted": 1.0,
            "time": {x: {"median": t} for x, t in times.items()},
        }  # fmt: skip

    goals = {g["goal"]: g for g in summary([record("norm_linear", 1000, 0.5), record("cross_full", 1, 3.0)])}
    assert goals["norm_linear: eager / full, N = 1000"]["passed"] is True
    assert goals["cross_full: eager / full, N = 1000"]["passed"] is None
    slower = goals["original or `request`, the better, / full"]
    assert slower["passed"] is False and slower["missed"] == [{"cell": "cross_full N = 1", "value": 2 / 3}]
    assert [m["cell"] for m in goals["predicted / measured"]["missed"]] == ["cross_full N = 1", "norm_linear N = 1000"]


# -- the command line


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "--help"])
    printed = capsys.readouterr().out
    assert "rankhoist bench --only" in printed and "--backend" in printed and "--threads" in printed


def test_unknown_scenarios_are_refused(capsys):
    assert cli.main(["bench", "--only", "nothing_like_it", "--no-plots"]) == cli.UNUSABLE
    assert "no such scenario; there are mlp, deepfm" in capsys.readouterr().err


def test_choosing_cells():
    assert {c.scenario.name for c in run.chosen(Options(only=["cross_share_*"]))} == {
        f"cross_share_{share}" for share in (25, 50, 75, 90)
    }
    assert [(c.candidates, c.requests) for c in run.chosen(Options(only=["mlp"], candidates=[7]))] == [(7, 1)]
    assert any(c.requests == 64 for c in run.chosen(Options(everything=True, only=["mlp"])))


def test_plots_without_matplotlib_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ExtraError, match=r"rankhoist\[bench\]"):
        run.main(Options(only=["mlp"]))


def test_inductor_runs_the_stages():
    case = Scenario("small", lambda: CrossLayers(12, 1, 4), (8,), (4,))
    found = Subject(case, Settings(seconds=0.01, backend="inductor")).measure(Cell(case, 5))
    assert found["equal"], found["skipped"]
    assert Subject(case, Settings(backend="inductor")).full.backend == "inductor"
