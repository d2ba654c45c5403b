"""The machine profile, what it predicts, and the ranges that follow from it."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_equal
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rankhoist import Workload, hoist
from rankhoist.bench.scenarios import CrossLayers, Scenario, scenario
from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.graph.kernels import batched_matmul, request_matmul
from rankhoist.compiler.graph.node import OFFSETS, Rate, aten
from rankhoist.compiler.graph.products import pairs
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.plan.ranges import CANDIDATES, REQUESTS, Range, Ranges, Way, make_plans
from rankhoist.compiler.targets import CPU
from rankhoist.compiler.targets import calibrate as calibration
from rankhoist.compiler.targets.predict import ARRANGING, JOINED, PASSES, _broadcast_runs, seconds
from rankhoist.compiler.targets.profile import BUILT_IN, Profile, filled, load_profile
from rankhoist.errors import ProfileError
from rankhoist.hoist import hoist_program

IDEAL = Path(__file__).with_name("profile.json")
REAL = Profile.load(BUILT_IN)


def program(case: Scenario):
    return capture(case.model(), case.inputs(4, 4), ["context"])


def test_an_ideal_machine_counts_work():
    ideal = Profile.load(IDEAL)
    assert ideal.products(1, 30, 7, 5) == pytest.approx(30 * 7 * 5 * 1e-10)
    assert ideal.products(20, 3, 7, 5) == pytest.approx(20 * 3 * 7 * 5 * 1e-10)
    assert ideal.streams(4 * 12345) == pytest.approx(12345e-10)


@pytest.mark.parametrize(("kind", "sizes"), [("product", (64, 256, 16)), ("batched", (64, 4, 16, 16))])
def test_a_table_gives_back_its_points(kind, sizes):
    axes = ["m", "k", "n"] if kind == "product" else ["batch", "batched_m", "batched_k", "batched_n"]
    value = getattr(REAL, kind)
    for axis, size in zip(axes, sizes, strict=True):
        value = value[REAL.sizes[axis].index(size)]
    table = REAL._product_table if kind == "product" else REAL._batched_table
    assert table(*sizes) == pytest.approx(value)


def test_more_work_is_never_predicted_to_be_free():
    assert REAL.products(1, 8192, 2048, 2048) > REAL.products(1, 4096, 1024, 1024) > 0
    assert REAL.streams(2**28) == pytest.approx(8 * REAL.streams(2**25))


def test_a_profile_survives_its_file(tmp_path):
    REAL.save(tmp_path / "deep" / "p.json")
    assert dataclasses.asdict(Profile.load(tmp_path / "deep" / "p.json")) == dataclasses.asdict(REAL)
    assert "G multiply-adds/s" in REAL.summary()


def test_columns_that_fill_no_vector_take_passes_of_their_own():
    assert [filled(n) for n in (1, 4, 8, 10, 16, 18, 30, 31, 32, 512)] == [1, 4, 16, 32, 16, 32, 64, 80, 32, 512]
    assert REAL.products(1, 1000, 64, 30) > 1.3 * REAL.products(1, 1000, 64, 32)


def test_batched_products_grow_with_their_rows_and_their_number():
    assert REAL.products(2, 1000, 64, 64) == pytest.approx(REAL.products(4, 1000, 64, 64) / 2)
    assert REAL.products(1000, 240, 1, 1) > 3 * REAL.products(1000, 64, 1, 1)


@pytest.mark.parametrize(
    ("shapes", "result", "runs"),
    [
        ([(5, 16, 1), (1, 1, 1)], (5, 16, 1), 1),  # a scalar for each row
        ([(10, 16), (10, 1)], (10, 16), 10),  # a scalar for each field
        ([(4, 5, 6), (5, 6)], (4, 5, 6), 4),  # fields repeated for each head
        ([(4, 1, 6), (4, 5, 1)], (4, 5, 6), 20),
    ],
)
def test_neighbouring_axes_that_are_repeated_alike_are_one(shapes, result, runs):
    assert _broadcast_runs(shapes, result) == runs


@pytest.mark.parametrize("damage", ["truncated", "other version", "missing", "no json object"])
def test_a_file_that_is_no_profile_is_an_error(tmp_path, damage):
    text = BUILT_IN.read_text()
    data = json.loads(text) | {"version": 99}
    written = {"truncated": text[:500], "other version": json.dumps(data), "no json object": "[]"}
    if damage != "missing":
        (tmp_path / "p.json").write_text(written[damage])
    with pytest.raises(ProfileError, match=r"p\.json"):
        Profile.load(tmp_path / "p.json")


def test_the_environment_names_the_profile(monkeypatch, tmp_path):
    REAL.save(tmp_path / "mine.json")
    monkeypatch.setenv("RANKHOIST_PROFILE", str(tmp_path / "mine.json"))
    assert load_profile().processor == REAL.processor != Profile.load(IDEAL).processor


def test_a_profile_that_is_written_later_is_found(monkeypatch, tmp_path):
    file = tmp_path / "mine.json"
    monkeypatch.setenv("RANKHOIST_PROFILE", str(file))
    assert load_profile() == REAL and load_profile() is load_profile()
    for second, other in enumerate((Profile.load(IDEAL), dataclasses.replace(REAL, processor="another"))):
        other.save(file)
        os.utime(file, (second, second))
        assert load_profile() == other and load_profile() is load_profile()
    file.unlink()
    assert load_profile() == REAL


def test_calibration_measures_every_point(monkeypatch):
    few = {k: v[:2] for k, v in calibration.SIZES.items()}
    monkeypatch.setattr(calibration, "SIZES", few)
    monkeypatch.setattr(calibration, "SECONDS", 0.0005)
    seen = []
    profile = calibration.calibrate(lambda points: seen.extend(points) or iter(points))
    assert len(seen) == calibration.ROUNDS * (3 + 2**3 + 2**4 + 4 * 2)
    assert calibration._weights.cache_info().currsize == 0, "64 MiB stay for as long as the process lives"
    assert (
        profile.threads == torch.get_num_threads()
        and 0 < profile.view < 1e-3
        and 0 < profile.call < 1e-3
        and 0 < profile.row < 1e-5
    )
    assert torch.tensor(profile.batched).shape == (2, 2, 2, 2) and (torch.tensor(profile.product) > 0).all()


def test_an_original_einsum_is_predicted_as_the_batched_product_that_it_is():
    """Pairs of fields with a matrix each, `[rows, p, i] x [p, i, j]`, and rows that share one."""
    b = Builder()
    x = b.leaf("input", "x", Rate.ITEM, (300, 16), torch.float32)
    w = b.leaf("weight", "w", Rate.WEIGHT, (300, 16, 16), torch.float32)
    own = 300 * 16 * 16
    each = b.call(aten.einsum.default, ("bpi,pij->bpj", [x, w]), Rate.ITEM, (300, 16), torch.float32, multiply_adds=own)
    turned = b.call(
        aten.einsum.default, ("pij,bpi->bpj", [w, x]), Rate.ITEM, (300, 16), torch.float32, multiply_adds=own
    )
    for node in (each, turned):
        product = seconds(node, REAL, 10, 1) - (1 + ARRANGING) * REAL.call
        assert product == pytest.approx(REAL.products(300, 10, 16, 16))
        assert seconds(node, REAL, np.array([10.0, 1000.0]), np.array([1.0, 1.0])).shape == (2,)
    moved = b.call(aten.permute.default, (x, [1, 0, 2]), Rate.ITEM, (), torch.float32, free=True, rows_first=False)
    other = b.call(
        aten.einsum.default, ("pbi,pij->bpj", [moved, w]), Rate.ITEM, (4800,), torch.float32, multiply_adds=own
    )
    assert seconds(other, REAL, 10, 1) > 0


class Clones(TorchDispatchMode):
    """Counts the copies that operators make."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is aten.clone.default
        return func(*args, **(kwargs or {}))


def test_einsum_copies_what_is_predicted():
    chosen = random.Random(0)
    for _ in range(200):
        letters = chosen.sample("abcxyzBN", chosen.randint(2, 5))
        x, y = ([a for a in chosen.sample(letters, len(letters)) if chosen.random() < 0.8] or letters for _ in range(2))
        kept = [a for a in letters if (a in x) != (a in y) or (a in x and chosen.random() < 0.5)]
        equation = f"{''.join(x)},{''.join(y)}->{''.join(kept)}"
        sizes = {letter: chosen.choice([2, 3]) for letter in letters}
        operands = [torch.randn([sizes[a] for a in own]) for own in (x, y)]
        with Clones() as clones:
            torch.einsum(equation, *operands)
        multiplies = any(a in x and a in y and a not in kept for a in letters)  # matrices; else elements
        assert not multiplies or clones.count == len(pairs(equation, [list(o.shape) for o in operands])[0].arranged), (
            equation
        )


def test_an_einsum_whose_letters_are_out_of_order_is_predicted_to_copy():
    b = Builder()
    x = b.leaf("input", "x", Rate.PAIR, (32, 16), torch.float32)
    w = b.leaf("weight", "w", Rate.WEIGHT, (32, 16), torch.float32)

    def of(equation: str) -> float:
        node = b.call(aten.einsum.default, (equation, [x, w]), Rate.PAIR, (), torch.float32, multiply_adds=512)
        return float(seconds(node, REAL, 1000, 1))

    assert of("bnc,nc->b") == pytest.approx(of("bcn,cn->b") + REAL.functions(1000 * 512 * 4) + REAL.functions(512 * 4))


def test_an_einsum_of_three_is_two_products():
    """Pairs of fields, then a matrix for each: as PyTorch makes them, from the left."""
    first, second = pairs("bid,bjd,hij->bhd", [[9, 4, 8], [9, 4, 8], [3, 4, 4]])
    assert (first.axes, first.result) == ((["b", "i", "d"], ["b", "j", "d"]), ["b", "d", "i", "j"])
    assert (second.shapes, second.result) == (([9, 8, 4, 4], [3, 4, 4]), ["b", "h", "d"])
    b = Builder()
    x = b.leaf("input", "x", Rate.PAIR, (4, 8), torch.float32)
    w = b.leaf("weight", "w", Rate.WEIGHT, (3, 4, 4), torch.float32)
    operands = ("bid,bjd,hij->bhd", [x, x, w])
    node = b.call(aten.einsum.default, operands, Rate.PAIR, (3, 8), torch.float32, multiply_adds=768)
    products = REAL.products(9 * 8, 4, 1, 4) + REAL.products(1, 9 * 8, 16, 3)
    assert seconds(node, REAL, 9, 1) >= REAL.call + products


def test_many_rows_of_a_few_matrices_are_products_of_their_own():
    assert REAL.products(4, 32000, 4, 16) == pytest.approx(4 * REAL.products(1, 32000, 4, 16))
    assert REAL.products(2, 16000, 4, 1) == pytest.approx(2 * REAL.products(1, 16000, 4, 4))


@pytest.mark.parametrize(
    ("operator", "axis", "runs"), [("cat", 1, 2), ("cat", 2, 8), ("stack", 1, 2), ("stack", -1, 64)]
)
def test_what_is_joined_is_copied_run_by_run(operator, axis, runs):
    b = Builder()
    x = b.leaf("input", "x", Rate.PAIR, (4, 8), torch.float32)
    made = getattr(torch, operator)([torch.empty(1, 4, 8)] * 2, axis).shape[1:]
    node = b.call(getattr(aten, operator).default, ([x, x], axis), Rate.PAIR, tuple(made), torch.float32)
    joined = REAL.call + REAL.streams(64 * 4e6) + 1e6 * runs * REAL.row / JOINED
    assert seconds(node, REAL, 1e6, 1) == pytest.approx(joined)


@pytest.mark.parametrize(
    ("operator", "args", "expected"),
    [
        ("layer_norm", ([8], None, None, 1e-5), REAL.streams(128e6) + 4e6 * PASSES * REAL.row),
        ("group_norm", (2, None, None, 1e-5), REAL.streams(128e6) + 2e6 * PASSES * REAL.row),
        ("var", ([2], True), 12 * REAL.functions(128e6)),
        ("sort", (2,), 60 * REAL.functions(128e6)),
    ],
)
def test_what_takes_rows_or_elements_one_by_one_is_predicted_to(operator, args, expected):
    b = Builder()
    x = b.leaf("input", "x", Rate.PAIR, (4, 8), torch.float32)
    overload = getattr(getattr(aten, operator), "dim" if operator == "var" else "default")
    node = b.call(overload, (x, *args), Rate.PAIR, (4,) if operator == "var" else (4, 8), torch.float32)
    assert seconds(node, REAL, 1e6, 1) == pytest.approx(REAL.call + expected)


@pytest.mark.parametrize(("rate", "requests"), [(Rate.WEIGHT, 1), (Rate.REQUEST, 1), (Rate.REQUEST, 10)])
def test_columns_of_a_batch_are_predicted_as_the_passes_that_they_are(rate, requests):
    b = Builder()
    x = b.leaf("input", "x", Rate.ITEM, (120, 1, 32), torch.float32)
    w = b.leaf("input", "w", rate, (120, 32, 1), torch.float32)
    kernel, last = (batched_matmul, ()) if rate is Rate.WEIGHT else (request_matmul, (OFFSETS,))
    node = b.call(kernel, (x, w, *last), Rate.PAIR, (120, 1, 1), torch.float32, multiply_adds=3840)
    rows = 1e4 / requests
    each = REAL.call + REAL.streams(rows * 3840 * 4) + REAL.streams(rows * 3840 * 2) + REAL.row * rows * 120
    assert seconds(node, REAL, 1e4, requests) == pytest.approx(REAL.call + requests * each)


class VectorCross(nn.Module):
    """A cross network of rank one by outer products `[rows, 120, 1] x [rows, 1, 1]` (DCN, arXiv 1708.05123)."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.ParameterList([torch.randn(120, 1) / 120 for _ in range(3)])
        self.top = nn.Linear(120, 64)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        first = x = torch.cat([user, item], 1).unsqueeze(2)
        for kernel in self.kernels:
            x = torch.matmul(first, torch.tensordot(x, kernel, dims=([1], [0]))) + x
        return self.top(x.squeeze(2)).relu()


def test_outer_products_do_not_hide_what_pays(monkeypatch):
    monkeypatch.setenv("RANKHOIST_PROFILE", str(BUILT_IN))
    hoisted = hoist(VectorCross().eval(), (torch.randn(4, 80), torch.randn(4, 40)), context=["user"])
    total = hoisted.report().total()
    assert total.after.multiply_adds < total.before.multiply_adds / 2


# -- plans for ranges


def test_ranges_choose_by_requests_and_candidates():
    one, eight = [(0, 1), (10, 0)], [(0, 1), (50, 0), (90, 2)]
    ranges = Ranges((1, 8), tuple(tuple(Range(first, Way(plan)) for first, plan in row) for row in (one, eight)))
    assert [ranges.choose(n, 1) for n in (0, 1, 9, 10, 5000)] == [1, 1, 1, 0, 0]
    assert [ranges.choose(n, 9) for n in (49, 50, 90)] == [1, 0, 2]
    assert ranges.choose(49, 2) == 0 and ranges.choose(49, 7) == 1 and ranges.choose(0, 0) == 1


@pytest.fixture(scope="module")
def cross():
    return Scenario("cross", lambda: CrossLayers(200, 3, 64), (160,), (40,))


def test_the_plan_of_every_range_is_the_fastest_by_prediction(cross):
    plans = make_plans(Task(program(cross), Level.FULL, Workload(), CPU))
    assert len(plans.plans) > 1, "one candidate is not worth what a thousand are"
    for requests in REQUESTS:
        for count in CANDIDATES:
            times = [float(CPU.predicted(p.nodes, p.outputs, count, requests)) for p in plans.plans]
            assert times[plans.ranges.choose(count, requests)] <= 1.1 * min(times), (count, requests)


def test_every_plan_gives_equal_scores(cross, monkeypatch):
    monkeypatch.setenv("RANKHOIST_PROFILE", str(BUILT_IN))
    hoisted, model = hoist_program(program(cross)), cross.model()
    used = set()
    for count in (1, 3, 30, 300, 3000):
        context, candidate = cross.inputs(1, count)
        used.add(hoisted.plans.ranges.choose(count, 1))
        assert_equal(hoisted(context, candidate), model(context.expand(count, -1), candidate))
        state = hoisted.prepare([context], candidates=count)
        assert_equal(hoisted.score(state, [candidate]), model(context.expand(count, -1), candidate))
    assert len(used) > 1
    state = hoisted.prepare([context])
    for count in (1, 7, 300):  # a state scores any number of candidates by the plan it was prepared for
        assert_equal(hoisted.score(state, [candidate[:count]]), model(context.expand(count, -1), candidate[:count]))


def test_plans_share_their_weights(cross, monkeypatch):
    monkeypatch.setenv("RANKHOIST_PROFILE", str(BUILT_IN))
    hoisted = hoist_program(program(cross))
    read = [set(v.candidate.nodes) & set(hoisted.stages.folded) for v in hoisted.stages.variants]
    assert len(read) > 1 and len(set().union(*read)) < sum(len(r) for r in read)


def test_a_level_below_full_is_one_plan_on_any_machine(cross):
    own = program(cross)
    for level in Level:
        if level is not Level.FULL:
            plans = make_plans(Task(own, level, Workload(2), CPU))
            assert {way.plan for way in plans.ranges.ways} == {0} and plans.main.asked is level
            assert len(plans.plans) == 1 + (plans.original != 0), "and the original, which only tune may choose"


def test_break_even_points_are_printed(cross):
    text = str(make_plans(Task(program(cross), Level.FULL, Workload(), CPU)))
    assert text.startswith("1 request, candidates 1+: ") and "full (plan 0)" in text


def test_cells_that_are_alike_are_predicted_once():
    own = program(scenario("dot_pairs_27_4"))
    plan = attempt(Task(own, Level.FULL, Workload(), CPU))
    assert plan.cost.seconds == pytest.approx(float(CPU.predicted(plan.nodes, plan.outputs, 1000, 1)))


@pytest.mark.parametrize(("shape", "copies"), [((1, 128, 9), False), ((128 * 9,), True)])
def test_a_view_is_predicted_to_be_free_and_a_transposed_copy_is_not(shape, copies):
    b = Builder()
    x = b.call("input", ("x",), Rate.PAIR, (9, 128), torch.float32)
    turned = b.call(aten.permute.default, (x, [0, 2, 1]), Rate.PAIR, (128, 9), torch.float32, free=True)
    node = b.call(aten.reshape.default, (turned, [-1, *shape]), Rate.PAIR, shape, torch.float32, free=True)
    assert (seconds(node, REAL, 500, 1) > 100 * REAL.view) == copies
    original = b.call(aten.transpose.int, (x, 1, 2), Rate.PAIR, (128, 9), torch.float32)
    assert seconds(original, REAL, 500, 1) == REAL.view
