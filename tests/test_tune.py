"""Tune: what is measured decides; what differs or fails is left out; the file keeps it. No test reads a clock."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from artifacts import forge, made, ranker_inputs
from helpers import assert_equal, repeated

from rankhoist import ArtifactError, HoistedModel, cli, load, verify
from rankhoist.compiler.plan import Range, Ranges, Way
from rankhoist.compiler.plan import ranges as plan_ranges
from rankhoist.compiler.targets import backends
from rankhoist.compiler.targets.timing import Timing
from rankhoist.errors import BackendError, HoistingWarning, InputError
from rankhoist.report.tuning import Point, Trial, Tuning
from rankhoist.runtime import tune
from rankhoist.runtime.planned import OnePlan
from rankhoist.serve.inputs import Batch
from rankhoist.serve.model import ServedModel


def of_the_original(user: torch.Tensor, dense: torch.Tensor, item: torch.Tensor, offsets: list[int]) -> Any:
    return made("ranker")[0](repeated(user, offsets), repeated(dense, offsets), item)


def wrong(stage: Any, state: Any) -> Callable[..., Any]:
    """A backend with a mistake in its candidate stage."""
    eager = stage.run
    return eager if state is None else lambda *given: tuple(t + 1 for t in eager(*given))


def refuses(stage: Any, state: Any) -> Callable[..., Any]:
    raise BackendError("no such processor")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[int, tuple[int, str] | Way]:
    """Times as they are told: by the number of candidates, what takes one millisecond; all else takes two and more."""
    fastest: dict[int, tuple[int, str] | Way] = {}

    def told(calls: Mapping[Way, Callable[[], Any]], *args: Any, **kwargs: Any) -> dict[Any, Timing]:
        times = {}
        for key, call in calls.items():
            rows = len(call()["logit"])
            median = 1.0 if Way(*fastest.get(rows, (-1,))) == key else 2.0 + key.plan + len(key.backend) + key.chunk
            times[key] = Timing(median, median - 0.1, median + 0.1, 5)
        return times

    monkeypatch.setattr(tune, "interleaved", told)
    monkeypatch.setattr(tune, "HOPELESS", 1e9)
    monkeypatch.setattr(tune, "installed", lambda *_: ["eager"])
    return fastest


@pytest.fixture
def hoisted() -> HoistedModel:
    """A copy: others read the one that it is made from."""
    original = made("ranker")[1]
    return HoistedModel.of(
        original.blueprint, original.weights.original, original.weights.constants, original.dtype, original.device
    )


def test_the_original_is_one_of_the_plans(hoisted):
    plans = hoisted.plans
    assert plans.original is not None and plans.plans[plans.original].level.name == "EXPAND"
    original = OnePlan(hoisted, plans.original)
    for offsets in ([0, 33], [0, 4, 4, 10]):
        inputs = ranker_inputs(len(offsets) - 1, offsets[-1])
        assert_equal(original(*inputs, request_offsets=offsets), of_the_original(*inputs, offsets))


def test_plans_that_only_tune_tries_do_something_else():
    """One that takes the same as another everywhere does the same: it is in nobody's place."""
    base = np.linspace(1.0, 2.0, len(plan_ranges.CANDIDATES))
    times = np.stack([[base, 1.1 * base, 1.1 * base, base, 1.05 * base, 2 * base]])
    assert plan_ranges._spare(times, [0]) == [4, 1]


def test_ranges_are_what_won_near_what_was_measured():
    ranges = Ranges((1, 4), ((Range(0, Way(1)), Range(50, Way(0))), (Range(0, Way(0)),)))
    found = ranges.measured({(1, 100): Way(2, "onnx"), (1, 900): Way(3), (8, 30): Way(0, "eager", 64)})
    assert found.requests == (1, 4, 8) and found.row(4) == (Range(0, Way(0)),)
    assert found.row(1) == (Range(0, Way(1)), Range(34, Way(2, "onnx")), Range(300, Way(3)), Range(2701, Way(0)))
    assert found.row(8) == (Range(0, Way(0)), Range(10, Way(0, "eager", 64)), Range(91, Way(0)))
    assert [found.choose(n, 1) for n in (1, 33, 34, 100, 299, 300, 2700, 2701)] == [1, 1, 2, 2, 2, 3, 3, 0]
    assert found.on("").row(8) == (Range(0, Way(0)),)
    alike = ranges.measured({(1, 2): Way(1, "eager"), (1, 3): Way(1, "eager")})
    assert alike.row(1) == (Range(0, Way(1, "eager")), Range(10, Way(1)), Range(50, Way(0)))


def test_what_won_is_used_and_shown(hoisted, clock):
    clock |= {20: (3, "eager"), 500: (1, "eager")}
    before = hoisted.plans.ranges
    assert hoisted.tune(candidates=[20, 500], requests=[1, 2]) is hoisted
    for requests in (1, 2):
        assert Range(7, Way(3, "eager")) in hoisted.plans.ranges.row(requests)
        assert hoisted.plans.ranges.choose(500, requests) == 1
    assert hoisted.plans.ranges.row(64) == before.row(64) and hoisted.plans.predicted == before
    assert hoisted.prepare(ranker_inputs(1, 1)[:2], candidates=30).plan == 3
    for n in (1, 20, 500, 3000):
        inputs = ranker_inputs(1, n)
        assert_equal(hoisted(*inputs), of_the_original(*inputs, [0, n]))
    text = str(hoisted.report())
    assert "Tuned on " in text and "original" in text and "tried as well:" in text
    assert "tried as well" in hoisted.report().to_html()
    assert verify(hoisted, made("ranker")[0], seed=1).passed
    hoisted.tune(candidates=[20])
    assert hoisted.plans.predicted == before and hoisted.plans.ranges.choose(500, 1) == before.choose(500, 1)


def test_where_nothing_is_faster_the_original_is_used(hoisted, clock):
    original = hoisted.plans.original
    clock[40] = (original, "eager")
    hoisted.tune(candidates=[40])
    point = hoisted.report().tuning.points[0]
    assert hoisted.plans.ranges.at(40, 1).plan == original and point.won == point.original
    assert point.won.name == "the original"


@pytest.mark.parametrize("milliseconds, wins", [(0.98, False), (0.96, True)])
def test_a_plan_is_to_be_clearly_faster_than_the_fastest_original(hoisted, clock, monkeypatch, milliseconds, wins):
    original, plan = hoisted.plans.original, 1
    takes = {Way(original, "another"): 1.0, Way(plan, "eager"): milliseconds}
    told = lambda calls, *args, **kwargs: {key: Timing(takes.get(key, 2.0), 0.5, 3.0, 5) for key in calls}  # noqa: E731
    monkeypatch.setattr(tune, "interleaved", told)
    monkeypatch.setattr(backends, "BACKENDS", {**backends.BACKENDS, "another": backends.BACKENDS["eager"]})
    monkeypatch.setattr(tune, "installed", lambda *_: ["eager", "another"])
    hoisted.tune(candidates=[50])
    (point,) = hoisted.report().tuning.points
    assert hoisted.plans.ranges.at(50, 1) == (Way(plan, "eager") if wins else Way(original, "another"))
    assert {(original, "eager"), (original, "another")} <= {(t.plan, t.backend) for t in point.trials if not t.problem}


def test_what_differs_or_fails_never_wins(hoisted, clock, monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", {**backends.BACKENDS, "wrong": wrong, "refuses": refuses})
    monkeypatch.setattr(tune, "installed", lambda *_: ["eager", "wrong", "refuses"])
    clock[60] = (0, "wrong")
    hoisted.tune(candidates=[60])
    (point,) = hoisted.report().tuning.points
    problems = {t.backend: t.problem for t in point.trials if t.problem}
    assert problems["wrong"].startswith("differs by") and "no such processor" in problems["refuses"]
    assert point.won.backend == "eager" and hoisted.plans.ranges.at(60, 1).backend == "eager"


def test_time_that_is_up_leaves_compilers_out(hoisted, clock, monkeypatch):
    monkeypatch.setattr(tune, "installed", lambda *_: ["eager", "inductor"])
    told: list[str] = []
    hoisted.tune(candidates=[60], seconds=1e-9, progress=told.append)
    (point,) = hoisted.report().tuning.points
    assert {t.problem for t in point.trials if t.backend == "inductor"} == {"no time was left"}
    assert any("no time is left" in line for line in told)


def test_the_original_is_compiled_before_time_is_up(hoisted, clock, monkeypatch):
    """By every backend the original first, then what is nearly the fastest, and more than that at last."""
    asked, now = [], [0.0]

    def admitted(self: Any, keys: list[Way]) -> list[Way]:
        asked.extend(key for key in keys if key.backend != "eager")
        now[0] += 6.0 if any(key.backend != "eager" for key in keys) else 0.0
        return keys

    monkeypatch.setattr(tune._Calls, "admitted", admitted)
    monkeypatch.setattr(tune._Calls, "best_plans", lambda self: {0, 1, 2, hoisted.plans.original})
    monkeypatch.setattr(tune, "installed", lambda *_: ["eager", "one", "two"])
    monkeypatch.setattr(tune, "time", SimpleNamespace(perf_counter=lambda: now[0], thread_time=None))
    hoisted.tune(candidates=[60], seconds=50.0)
    original = hoisted.plans.original
    assert asked == [
        Way(original, "one"),
        Way(0, "one"),
        Way(original, "two"),
        Way(0, "two"),
        Way(1, "one"),
        Way(2, "one"),
    ]
    (point,) = hoisted.report().tuning.points
    assert {Way(t.plan, t.backend) for t in point.trials if t.problem} == {Way(1, "two"), Way(2, "two")}


def test_on_a_gpu_what_is_recorded_comes_first(monkeypatch):
    monkeypatch.setattr(backends, "here", lambda name, device: True)
    found = backends.installed(torch.device("cuda"), torch.float32)
    assert found == ["eager", "graphs", "inductor-graphs", "inductor"]


@pytest.mark.parametrize("given", [{"candidates": [0]}, {"requests": []}, {"seconds": 0.0}])
def test_numbers_that_are_none(hoisted, given):
    with pytest.raises(InputError, match="numbers from 1 on"):
        hoisted.tune(**given)


# -- files


@pytest.fixture
def tuned_file(hoisted, clock, tmp_path) -> Path:
    clock |= {20: (3, "eager"), 500: (1, "eager")}
    hoisted.tune(candidates=[20, 500]).save(tmp_path / "tuned.rankhoist")
    return tmp_path / "tuned.rankhoist"


def test_a_file_keeps_it(hoisted, tuned_file, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load(tuned_file)
    assert (loaded.plans.ranges, loaded.plans.predicted) == (hoisted.plans.ranges, hoisted.plans.predicted)
    assert loaded.plans.original == hoisted.plans.original and loaded.report() == hoisted.report()
    inputs = ranker_inputs(1, 500)
    assert torch.equal(loaded(*inputs)["logit"], hoisted(*inputs)["logit"])


def test_the_server_uses_what_won(tuned_file):
    served = ServedModel("ranker", "1", load(tuned_file))
    served.warm_up()
    user, dense, item = ranker_inputs(1, 30)
    batch = Batch({"user": user, "dense": dense}, {"item": item}, 1, 30, [0, 30])
    assert served._prepare(batch).plan == 3
    made = served.score(batch).outputs["logit"]
    assert_equal(torch.from_numpy(made), of_the_original(user, dense, item, [0, 30])["logit"])


def test_a_file_of_another_machine_says_so(tuned_file, monkeypatch):
    monkeypatch.setattr(tune, "name_of", lambda device: "a made-up machine")
    with pytest.warns(HoistingWarning, match="tuned on .* this is a made-up machine: run `rankhoist tune`"):
        load(tuned_file)


@pytest.mark.parametrize(
    ("backend", "needs"),
    [("openvino", r"rankhoist\[openvino\]"), ("onnx", r"rankhoist\[onnx\]"), ("inductor", "C\\+\\+")],
)
def test_a_file_of_a_backend_that_is_not_here(hoisted, tmp_path, monkeypatch, backend, needs):
    """What it was to score is scored as was predicted; it stays in a file that is saved again."""
    before = hoisted.plans.ranges
    ranges = before.measured({(1, 20): Way(3, backend, 8), (1, 500): Way(1, "eager")})
    hoisted.blueprint = replace(hoisted.blueprint, plans=replace(hoisted.plans, ranges=ranges, predicted=before))
    hoisted.save(tmp_path / "tuned.rankhoist")
    monkeypatch.setattr(backends, "here", lambda name, device: name != backend)
    monkeypatch.setattr("rankhoist.compiler.plan.plans.here", backends.here)
    with pytest.warns(HoistingWarning, match=f"tuned for backend '{backend}', which is not here .*{needs}") as told:
        loaded = load(tmp_path / "tuned.rankhoist")
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inputs = ranker_inputs(1, 20)
        assert_equal(loaded(*inputs), of_the_original(*inputs, [0, 20]))
    assert loaded.plans.ranges.at(20, 1) == before.at(20, 1) and loaded.plans.ranges.at(500, 1).plan == 1
    assert loaded.plans.fits(loaded.prepare(ranker_inputs(1, 1)[:2], candidates=20).plan, 20, 1)
    loaded.save(tmp_path / "again.rankhoist")
    monkeypatch.setattr("rankhoist.compiler.plan.plans.here", lambda *_: True)
    assert load(tmp_path / "again.rankhoist").plans.ranges == ranges


def test_ranges_without_a_backend():
    predicted = Ranges((1, 4), ((Range(0, Way(1)), Range(50, Way(0))), (Range(0, Way(0)),)))
    found = predicted.measured({(1, 20): Way(2, "onnx"), (1, 40): Way(3), (8, 30): Way(0, "onnx", 64)})
    left = found.without(["onnx"], predicted)
    assert left.row(1) == (Range(0, Way(1)), Range(29, Way(3)), Range(121, Way(0))) and left.row(8) == (
        Range(0, Way(0)),
    )
    assert found.without(["openvino"], predicted) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["ranges"][0]["candidates"][0].append("shell"), "a range that is scored by 'shell'"),
        (lambda data: data["ranges"][0]["candidates"][0].extend(["eager", 64, 1]), "a range that is scored by"),
        (lambda data: data["ranges"][0]["candidates"][0].extend(["eager", -1]), "on -1 rows"),
        (lambda data: data.update(original=99), "its original is plan 99"),
        (lambda data: data["predicted"].clear(), "its ranges do not rise"),
        (lambda data: data["report"]["tuning"]["points"][0]["trials"].clear(), "a point of its tuning was not timed"),
    ],
)
def test_a_file_that_somebody_made_up(tuned_file, change, message):
    forge(tuned_file, "model.json", change)
    with pytest.raises(ArtifactError, match=message):
        load(tuned_file)


def test_a_file_from_before_there_was_an_original(tuned_file, clock):
    forge(tuned_file, "model.json", lambda data: [data.pop(key) for key in ("original", "predicted")])
    loaded = load(tuned_file)
    assert loaded.plans.original is None
    loaded.tune(candidates=[20])
    assert loaded.report().tuning.points[0].original is None and "." in str(loaded.report())


def test_the_command(tuned_file, clock, capsys, tmp_path):
    clock[30] = (0, "eager")
    out = tmp_path / "again.rankhoist"
    options = ["--candidates", "30", "--seconds", "1", "--out", str(out), "--json", str(tmp_path / "x.json")]
    assert cli.main(["tune", str(tuned_file), *options]) == 0
    assert "Tuned on " in capsys.readouterr().out and Range(10, Way(0, "eager")) in load(out).plans.ranges.row(1)
    assert cli.main(["show", str(out)]) == 0 and "Tuned on " in capsys.readouterr().out
    assert cli.main(["report", str(out)]) == 0 and "tried as well:" in capsys.readouterr().out
    assert cli.main(["tune", str(tuned_file), "--seconds", "0"]) == 2


def test_another_backend_or_dtype_keeps_the_plans_alone(hoisted):
    plans = replace(hoisted.plans, ranges=hoisted.plans.ranges.measured({(1, 20): Way(3, "onnx", 8)}))
    hoisted.blueprint = replace(hoisted.blueprint, plans=plans)
    hoisted.double()
    assert Range(7, Way(3, "")) in hoisted.plans.ranges.row(1)
    hoisted.blueprint = replace(hoisted.blueprint, plans=plans)
    assert Range(7, Way(3, "")) in hoisted.to_backend("eager").plans.ranges.row(1)


def test_a_tuning_as_text():
    trials = (Trial(0, "full", "onnx", 2.0, 1.9, 2.1, 7), Trial(3, "original", "eager", 5.0, 4.9, 5.1, 7))
    point = Point(1, 1000, (*trials, Trial(1, "linear", "inductor", problem="no time was left")))
    assert point.original == trials[1] and Tuning("here", "float32", "2", "now", 9.0, (point,)).check() is None
    with pytest.raises(ArtifactError, match="not timed"):
        Tuning("here", "float32", "2", "now", 9.0, (replace(point, trials=point.trials[2:]),)).check()


def test_recorded_calls_are_timed_first_where_there_are_any(hoisted, clock, monkeypatch):
    """On a GPU launches decide eagerly, and kernels when a call is recorded: another plan may be the best."""
    monkeypatch.setattr(tune, "installed", lambda *_: ["eager", "graphs"])
    clock[33] = 1, "graphs"
    hoisted.tune([33], [1], seconds=1)
    [point] = hoisted.report().tuning.points
    tried = [(trial.plan, trial.backend) for trial in point.trials]
    assert tried[0] == (1, "graphs") and {(p, "graphs") for p in range(len(hoisted.plans.plans))} <= set(tried)
    assert {p for p, backend in tried if backend == "eager"} == {1, hoisted.plans.original}
    counts = hoisted._replays("graphs").counts
    before = counts.replayed, counts.recorded
    inputs = ranker_inputs(1, 33)
    assert_equal(hoisted(*inputs), of_the_original(*inputs, [0, 33]))
    assert (counts.replayed, counts.recorded) == (before[0] + 1, 3), "a whole call and its stages, none of the others"


def test_some_backends_alone_are_tried(hoisted, clock, monkeypatch):
    """PyTorch's own operators always are; a name that is none, or of what is not here, is told at once."""
    monkeypatch.setattr(tune, "installed", lambda *_: ["eager", "onnx", "inductor"])
    monkeypatch.setitem(backends.BACKENDS, "onnx", lambda stage, state: stage.run)
    hoisted.tune([33], [1], seconds=60, backends=["onnx"])
    [point] = hoisted.report().tuning.points
    assert {trial.backend for trial in point.trials} == {"eager", "onnx"}
    with pytest.raises(BackendError, match="unknown backend 'tvm'"):
        hoisted.tune([33], [1], backends=["tvm"])
    with pytest.raises(BackendError, match="'graphs' does not run this model here; eager, onnx, inductor do"):
        hoisted.tune([33], [1], backends=["graphs"])
