"""Kernels of ours for GPUs: interpreted, compiled for a GPU that is not here, and in plans."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, assert_equal, repeated
from torch import Tensor

from rankhoist import HoistedModel, Workload, load
from rankhoist.capture import Program, capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph import activations, fused, kernels
from rankhoist.compiler.plan import Plan, Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.targets.accelerator import built_in
from rankhoist.compiler.targets.cuda import cuda

TESTS = Path(__file__).parent
with_triton = pytest.mark.skipif(not fused.available(), reason="Triton is not installed")
COMPILED = """
import json
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from rankhoist.compiler.graph import tiles

GIVEN = {"owner": "*i64"} | dict.fromkeys(["x", "m", "start", "out", "q", "k", "v", "own_k", "own_v"], "PTR")
ROWS = dict(START=True, ACTIVATION="gelu", WIDEN=False, M=16, N=16, K=16)

def made(kernel, pointer, **constants):
    kinds = {n: GIVEN.get(n, "i32").replace("PTR", pointer) for n in kernel.arg_names}
    kinds |= {"scale": "fp32"} if "scale" in kinds else {}
    kinds |= dict.fromkeys(constants, "constexpr")
    return triton.compile(ASTSource(kernel, kinds, constants), target=GPUTarget("cuda", 90, 32)).asm["ptx"]

half = made(tiles.rows, "*bf16", SHARED=False, ONTO=True, PRECISION="ieee", **ROWS)
tf32 = made(tiles.rows, "*fp32", SHARED=True, ONTO=False, PRECISION="tf32", **ROWS)
full = made(tiles.rows, "*fp32", SHARED=True, ONTO=False, PRECISION="ieee", **ROWS)
end = made(tiles.finish, "*fp32", ACTIVATION="relu", SIZE=1024)
both = made(tiles.attend, "*bf16", SHARED=False, PRECISION="ieee", WIDEN=False, M=16, K=16, D=16, E=16)
print(json.dumps(["mma" in half, "tf32" in tf32, "mma" in full, "ld.global" in end, "mma" in both]))
"""


def run(*command: str, **environment: str) -> object:
    """The line of JSON that a program of its own prints."""
    path = os.pathsep.join([*sys.path, str(TESTS)])
    env = {**os.environ, "PYTHONPATH": path, **environment}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=200, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@with_triton
def test_interpreted_they_are_the_operators():
    """Odd sizes, empty requests, one candidate, rows that are no neighbours in memory."""
    found = run(str(TESTS / "interpreted.py"), TRITON_INTERPRET="1")
    assert found == {"checked": found["checked"], "problems": {}} and found["checked"] > 40


@with_triton
def test_they_compile_for_a_gpu(tmp_path):
    """By Triton's own compiler, which needs none; float32 meets no tensor core unless TF32 is allowed."""
    assert run("-c", COMPILED, TRITON_CACHE_DIR=str(tmp_path)) == [True, True, False, True, True]


# -- plans


def hidden(context: Tensor, candidate: Tensor, w: Tensor) -> Tensor:
    return torch.relu(torch.cat([context, candidate], 1) @ w)


def program(call=hidden) -> Program:
    model = Function(call, w=torch.randn(17, 20)).eval()
    return capture(model, (torch.randn(5, 8), torch.randn(5, 9)), ["context"])


def planned(monkeypatch: pytest.MonkeyPatch, own: Program, here: bool, dtype: str = "bfloat16") -> Plan:
    """For eight requests on a GPU, on a machine with Triton or without."""
    monkeypatch.setattr(fused, "available", lambda: here)
    target = cuda.__wrapped__(built_in(dtype), recorded=True)
    return attempt(Task(own, Level.FULL, Workload(8000, 8), target))


def ends_of(plan: Plan) -> list[str]:
    return [n.kwargs.get("activation", "") for n in plan.nodes if n.op is kernels.linear_from]


def test_a_product_ends_with_its_function(monkeypatch, tmp_path):
    """Where kernels of ours are at hand; the file of such a plan is one everywhere."""
    own, weight = program(), torch.randn(17, 20)
    assert ends_of(planned(monkeypatch, own, here=False)) == [""]
    plan = planned(monkeypatch, own, here=True)
    assert ends_of(plan) == ["relu"]
    context, candidate, bounds = torch.randn(3, 8), torch.randn(9, 9), [0, 4, 4, 9]
    hoisted = HoistedModel(own, plan)
    hoisted.update_weights({"w": weight})
    hoisted.save(tmp_path / "x")
    monkeypatch.setattr(fused, "available", lambda: False)
    for model in (hoisted, load(tmp_path / "x")):
        several = hidden(repeated(context, bounds), candidate, weight)
        assert_equal(model(context, candidate, request_offsets=bounds), several)
        assert_equal(model(context[:1], candidate), hidden(context[:1].expand(9, -1), candidate, weight))


@pytest.mark.parametrize(
    "call",
    [
        lambda context, candidate, w: (x := torch.cat([context, candidate], 1) @ w) + torch.relu(x),
        lambda context, candidate, w: F.gelu(torch.cat([context, candidate], 1) @ w, approximate="tanh"),
        lambda context, candidate, w: torch.tanh(torch.cat([context, candidate], 1) @ w),
    ],
    ids=["two readers", "another gelu", "no function of ours"],
)
def test_a_near_miss_does_not(monkeypatch, call):
    plan = planned(monkeypatch, program(call), here=True)
    assert ends_of(plan) == [""]


@pytest.mark.parametrize(("dtype", "launches"), [("bfloat16", (1, 4)), ("float32", (2, 4))])
def test_launches_are_counted_by_what_is_installed(monkeypatch, dtype, launches):
    """One kernel in bfloat16, the vendor's product and one in float32; four operators without Triton."""
    own, table = program(), built_in(dtype)
    seconds = []
    for here, count in zip((True, False), launches, strict=True):
        plan = planned(monkeypatch, own, here)
        target = cuda.__wrapped__(table)
        nodes = [n for n in plan.nodes if n.op in (kernels.linear_from, torch.ops.aten.relu.default)]
        few = sum(float(target.seconds(n, table, 8, 8)) for n in nodes)
        assert few == pytest.approx(count * table.call), "launches decide"
        seconds.append(sum(float(target.seconds(n, table, 10**6, 64)) for n in nodes))
    assert seconds[0] < seconds[1]


def test_names_of_functions_are_operators():
    x = torch.randn(7)
    for op, name in activations.NAMES.items():
        assert_equal(activations.through(x.clone(), name), op(x))
    assert activations.through(x, "") is x


def test_the_cpu_runs_the_operators():
    assert not fused.runs(torch.randn(2, 2)) and not fused.multiplies(torch.randn(2, 2, dtype=torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_they_are_the_operators(dtype):
    x, w, start = (torch.randn(*s, device="cuda", dtype=dtype) for s in ((700, 33), (65, 33), (3, 65)))
    owner = torch.repeat_interleave(torch.tensor([300, 0, 400])).cuda()
    made = kernels.linear_from(x, w, start, owner, "relu")
    assert_equal(made, torch.relu(x.double() @ w.double().T + start.double()[owner]).to(dtype))
