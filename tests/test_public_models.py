"""Public models, hoisted as they are, give the original's scores at every level; those that cannot be are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import assert_equal
from public_models import TEST, Case, cases, deepctr_dien, outputs, rechub_mind, rechub_narm
from torch import nn
from torch.utils import _pytree as pytree

from rankhoist import HoistedModel, Workload
from rankhoist.capture import Program
from rankhoist.compiler.algebra.memo import Memo
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.build import Builder
from rankhoist.compiler.plan import Task, search
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.errors import ExportError, UnsupportedModelError
from rankhoist.hoist import hoist_program

CASES = cases()
OFTEN = """deepctr.WDL deepctr.DeepFM deepctr.DCN deepctr.xDeepFM deepctr.AutoInt deepctr.FiBiNET deepctr.DIN
deepctr.MMOE deepctr.PLE rechub.WideDeep rechub.DeepFM rechub.DCN rechub.DCNv2,full rechub.DCNv2,mixture,parallel
rechub.FiBiNet,interaction rechub.AutoInt rechub.DIN rechub.BST rechub.MMOE rechub.PLE rechub.AITM"""
NOTHING_TO_SAVE = {"deepctr.CCPM"}  # from its first layer on, convolutions slide over fields of both sides
CANDIDATES = 7
OFFSETS = [0, 3, 3, CANDIDATES]
OWNER = torch.tensor([0, 0, 0, 2, 2, 2, 2])

pytestmark = pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")


def test_the_ordinary_run_covers_both_libraries():
    assert {c.name for c in CASES if c.often} == set(OFTEN.split())


def test_every_ranking_and_multi_task_model_has_a_case():
    from deepctr_torch import models
    from torch_rechub.models import multi_task, ranking

    have = {case.name.split(",")[0] for case in CASES} | {"deepctr.DIEN", "rechub.DIEN"}
    for library, module in (("deepctr", models), ("rechub", ranking), ("rechub", multi_task)):
        kinds = [k for k, v in vars(module).items() if isinstance(v, type) and k != "BaseModel"]
        assert kinds
        assert [k for k in kinds if f"{library}.{k}" not in have] == []


def at_every_level(program: Program) -> Iterator[tuple[str, HoistedModel]]:
    """Every level as it is (a search may answer with a lower one), every form kept, and what the search finds."""
    memo = Memo(Builder(program.device))
    for level in Level:
        plan = attempt(Task(program, level, Workload()), memo=memo)
        yield level.name.lower() if level < Level.FULL else "kept", HoistedModel(program, plan)
    yield "full", hoist_program(program)


def scores(case: Case, model: nn.Module, owner: torch.Tensor) -> Any:
    """The original over rows of (its request's context, candidate); a model that needs company gets another row."""
    count = len(owner)
    if count == 1 and not case.alone:
        owner = owner.repeat(2)
    context, candidate = case.rows(3, seed=1), case.rows(CANDIDATES, seed=2)
    rows = case.repeated(context, {n: t[: len(owner)] for n, t in candidate.items()}, owner)
    return pytree.tree_map(lambda t: t[:count], model(*case.original_inputs(rows)))


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[] if c.often else [pytest.mark.slow]) for c in CASES]
)
def test_equal_at_every_level(case: Case, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "SECONDS", 1.0)  # any plan must be equal, also one that a longer search would improve
    model = case.model()
    context, candidate = case.rows(3, seed=1), case.rows(CANDIDATES, seed=2)
    last = {n: t[2:] for n, t in context.items()}
    alone = {count: scores(case, model, torch.full((count,), 2)) for count in (1, 2, CANDIDATES)}
    ragged = scores(case, model, OWNER)
    costs = {}
    for name, hoisted in at_every_level(case.captured(model)):
        for count, expected in alone.items():
            inputs = case.hoisted_inputs(last, {n: t[:count] for n, t in candidate.items()})
            assert_equal(hoisted(*inputs), expected, f"{name}, {count} candidates")
        inputs = case.hoisted_inputs(context, candidate)
        assert_equal(hoisted(*inputs, request_offsets=OFFSETS), ragged, f"{name}, three requests")
        costs[name] = hoisted.plan.cost
    assert costs["full"].seconds <= search.ALIKE * min(c.seconds for c in costs.values()), costs
    assert costs["full"].multiply_adds < costs["expand"].multiply_adds or case.name in NOTHING_TO_SAVE, costs


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in CASES if c.often and not c.alone])
def test_a_batch_of_one_fails_in_the_original_only(case: Case):
    """Why these models are compared with a row of a batch of two."""
    model = case.model()
    one = case.rows(1)
    with pytest.raises((RuntimeError, IndexError)):
        model(*case.original_inputs(one))
    hoisted = hoist_program(case.captured(model), level="linear")
    assert [len(t) for t in outputs(hoisted(*case.hoisted_inputs(one, one)))] == [1]


REFUSED = {
    "deepctr.DIEN": (deepctr_dien, ExportError, r"refuses the model in module 'interest_extractor"),
    "rechub.MIND": (rechub_mind, UnsupportedModelError, r"in capsule draws random numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_the_module_that_is_in_the_way(name: str):
    build, error, message = REFUSED[name]
    case = build(TEST)
    model = case.build().eval().requires_grad_(False)
    assert outputs(model(*case.original_inputs(case.rows(4))))
    with pytest.raises(error, match=message):
        case.captured(model)


def test_a_recurrent_layer_over_packed_sequences():
    """NARM cuts its history to the longest of a call, and then fails where none is full: another row is."""
    case = rechub_narm(TEST)
    model = case.model()
    rows = case.rows(40, seed=1)
    lengths = (rows["hist_item"] != 0).sum(1)
    full, own = rows["hist_item"][lengths.argmax()], rows["hist_item"][lengths.argmin()]
    assert lengths.max() == rows["hist_item"].shape[1] > lengths.min()
    hoisted = HoistedModel(case.captured(model), attempt(Task(case.captured(model), Level.REQUEST, Workload())))
    items = rows["item"][:CANDIDATES]
    both = {"hist_item": torch.stack([own] * CANDIDATES + [full]), "item": rows["item"][: CANDIDATES + 1]}
    made = hoisted(*case.hoisted_inputs({"hist_item": own[None]}, {"item": items}))
    assert_equal(made, model(*case.original_inputs(both))[:CANDIDATES])
