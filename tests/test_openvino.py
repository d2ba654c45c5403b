"""OpenVINO as a backend: equal scores on every kind of model, and PyTorch's own operators where its own are others."""

from __future__ import annotations

import copy
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, assert_equal
from random_models import CANDIDATES, OFFSETS, RandomModel, build
from test_backends import CASES, check, every
from test_random_models import head
from torch import Tensor, nn

from rankhoist import HoistedModel, Workload, hoist
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.targets import differs, extras
from rankhoist.compiler.targets.backends import installed
from rankhoist.errors import BackendError, HoistingWarning
from rankhoist.runtime.alike import TOLERANCE, error

pytest.importorskip("openvino", reason="openvino is not installed")


# -- equal scores


def test_several_requests_and_new_weights():
    case = CASES["crossed"]
    model, hoisted = (copy.deepcopy(made) for made in case.make())
    hoisted.to_backend("openvino")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is declined
        check(case, model, lambda *given: case.call(hoisted, *given), [0, 1, 7])
    with torch.no_grad():
        model.top.weight.mul_(2.0)
    hoisted.update_weights(model.state_dict())
    check(case, model, lambda *given: case.run(hoisted, *given), [7])


@pytest.mark.slow
@every
def test_every_model(name):
    case = CASES[name]
    model, hoisted = (copy.deepcopy(made) for made in case.make())
    check(case, model, lambda *given: case.call(hoisted.to_backend("openvino"), *given))


def drawn(seed: int) -> RandomModel:
    source = random.Random(seed)
    return build(source.randint)


SEEDS = [seed for seed in range(9) if not drawn(seed).program.lengths and not drawn(seed).program.bags]


@pytest.mark.parametrize("seed", [*SEEDS[:3], *(pytest.param(s, marks=pytest.mark.slow) for s in SEEDS[3:])])
def test_random_models(seed):
    """With every form kept, against PyTorch's own operators in the same dtype."""
    model = drawn(seed)
    eager = HoistedModel(model.program, attempt(Task(model.program, Level.FULL, Workload()))).float()
    hoisted = copy.deepcopy(eager).to_backend("openvino")
    context, candidate = ({n: in_float32(x) for n, x in side.items()} for side in (model.context, model.candidate))
    calls = [(model.call(head(context, 1), head(candidate, n)), {}) for n in (0, 1, 2, CANDIDATES)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HoistingWarning)
        for given, about in [*calls, (model.call(context, candidate), {"request_offsets": OFFSETS})]:
            own, expected = hoisted(**given, **about), eager(**given, **about)
            assert [(t.shape, t.dtype) for t in own] == [(t.shape, t.dtype) for t in expected]
            assert error(own, expected, 1e-3) <= TOLERANCE[torch.float32]


def in_float32(t: Tensor) -> Tensor:
    return t.float() if t.is_floating_point() else t


def test_bfloat16():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2)).eval().bfloat16()

    def scores(context: Tensor, candidate: Tensor) -> Tensor:
        return model(torch.cat([context, candidate], 1))

    hoisted = backend_of(scores, torch.randn(5, 16).bfloat16(), torch.randn(5, 8).bfloat16())
    context, candidate = torch.randn(1, 16).bfloat16(), torch.randn(40, 8).bfloat16()
    assert_equal(hoisted(context, candidate), scores(context.expand(40, -1), candidate))


def backend_of(call: Callable[..., Any], context: Tensor, candidate: Tensor, **weights: Tensor) -> HoistedModel:
    return hoist(Function(call, **weights).eval(), (context, candidate), context=["context"], backend="openvino")


def test_several_threads():
    case = CASES["crossed"]
    hoisted = copy.deepcopy(case.make()[1]).to_backend("openvino")
    calls = [(case.user(1), case.item(n), [0, n]) for n in range(1, 25)]
    expected = [case.call(hoisted, *given) for given in calls]
    with ThreadPoolExecutor(4) as pool:
        for got, own in zip(pool.map(lambda given: case.call(hoisted, *given), calls), expected, strict=True):
            assert_equal(got, own)


# -- what is left to PyTorch


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda context, candidate: F.logsigmoid(-99 * context * candidate), "log_sigmoid.* infinite"),
        (lambda context, candidate: torch.cdist(context[:, None], candidate[:, None], p=1.0), "cdist.* power 2"),
        (lambda context, candidate: context * candidate / candidate.std(), "std.* Bessel"),
        (lambda context, candidate: torch.log1p(1e-6 * context * candidate), "log1p.* as log"),
        (lambda context, candidate: torch.expm1(1e-6 * context * candidate), "expm1.* as exp"),
        (
            lambda context, candidate: (1 + 1e-9 * candidate.double() - 1).float() * context,
            "does not compute in float64",
        ),
        (lambda context, candidate: context * (candidate.long() * 2654435761 % 97), "more than the 32 bits"),
        (lambda context, candidate: context * (-candidate.long() // 2), "floor_divide.* more than the 32 bits"),
        (lambda context, candidate: context * (x := (99999 * candidate).long()) * (x * x), "more than the 32 bits"),
        (lambda context, candidate: context * (candidate.byte() + 250), "does not compute in uint8"),
        (lambda context, candidate: candidate.long().logsumexp(1, keepdim=True) * context, "of integers"),
        (lambda context, candidate: torch.copysign(context, candidate), "No conversion rule.*copysign"),
    ],
)
def test_operators_that_openvino_computes_otherwise(call, why):
    hoisted = backend_of(call, torch.rand(5, 3), 9 * torch.rand(5, 3))
    context, candidate = torch.rand(1, 3), 9 * torch.rand(20, 3)
    with pytest.warns(HoistingWarning, match=f"the candidate stage runs by PyTorch's own operators: .*{why}"):
        got = hoisted(context, candidate)
    assert_equal(got, call(context.expand(20, -1), candidate))


@pytest.mark.parametrize("large", [2**33 + 1, -(2**40), 2**31 - 1])
def test_integers_that_32_bits_cannot_hold(large):
    """Which are compared, moved, added to or rounded down to a few: such a call runs by PyTorch's own operators."""

    def scores(context: Tensor, candidate: Tensor) -> Tensor:
        return context * torch.stack([(candidate + 7) % 5, candidate == 1, candidate > 5], 1)

    hoisted = backend_of(scores, torch.rand(5, 1), torch.arange(5))
    context, candidate = torch.rand(1, 1), torch.arange(20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for some in (candidate, candidate.index_fill(0, torch.tensor([3]), large)):
            assert_equal(hoisted(context, some), scores(context.expand(20, -1), some))


def test_casts_of_large_numbers():
    def scores(context: Tensor, candidate: Tensor) -> Tensor:
        return context * (candidate[:, :1].long() > 5)

    hoisted = backend_of(scores, torch.rand(5, 1), torch.rand(5, 2))
    context, candidate = torch.rand(1, 1), torch.tensor([[3.0, 1.0], [7.0, 1.0], [1e12, 1.0], [-1e12, 1.0]])
    assert_equal(hoisted(context, candidate), scores(context.expand(4, -1), candidate))


def test_float64_is_not_for_openvino():
    cpu = torch.device("cpu")
    assert [("openvino" in installed(cpu, dtype)) for dtype in differs.DTYPES] == [True, True]
    assert "openvino" not in installed(cpu, torch.float64) and "openvino" not in installed(cpu, torch.float16)


# -- the package


def test_missing_extra(monkeypatch):
    hoisted = copy.deepcopy(CASES["first"].make()[1]).to_backend("openvino")
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    assert "openvino" not in installed(torch.device("cpu"), torch.float32)
    with pytest.raises(BackendError, match=r"openvino is not installed: pip install 'rankhoist\[openvino\]'"):
        hoisted(torch.randn(1, 16), torch.randn(3, 8))


IMPORTS = """
import sys
from rankhoist.compiler.targets import openvino

openvino.imported()
sys.exit("openvino_telemetry" in sys.modules)
"""


def test_nothing_is_sent(tmp_path):
    """OpenVINO tells a service on the web that it is imported, where a package that does so is there."""
    (tmp_path / "openvino_telemetry").mkdir()
    (tmp_path / "openvino_telemetry" / "__init__.py").write_text("raise SystemExit('it was imported')")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})" + IMPORTS], capture_output=True
    )
    assert done.returncode == 0, done.stderr
