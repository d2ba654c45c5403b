"""Verification: certificates of right hoists pass, those of wrong ones fail and say where."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from verifying import ITEM, USER, Ranker, broken, failed, off_by_a_millionth, seeded

from rankhoist import HoistedModel, Workload, hoist
from rankhoist.capture import Program, capture
from rankhoist.compiler.algebra.call import Call, Rule
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.plan import Plan, Task, make_plan
from rankhoist.errors import ArtifactError, VerificationError
from rankhoist.verify import Certificate, Check, batches, verify
from rankhoist.verify.batches import Batch, draw, whole_rows
from rankhoist.verify.measure import tolerance


class Packed(nn.Module):
    """One float matrix: user id, item id, user dense, item dense, ids as floats."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item, self.top = nn.Embedding(5, 4), nn.Embedding(7, 4), nn.Linear(10, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(torch.cat([self.user(x[:, 0].long()), self.item(x[:, 1].long()), x[:, 2:]], 1))


def packed_rows() -> Tensor:
    ids = torch.stack([torch.arange(8) % 5, torch.arange(8) % 7], 1)
    return torch.cat([ids, torch.linspace(-1, 1, 16).view(8, 2)], 1)


def linear_plan(program: Program) -> Plan:
    return make_plan(Task(program, Level.LINEAR, Workload()))


def without_bias(right: Rule, call: Call) -> Value:
    return right(Call(call._originals, call._node, call._args[:2], {}))


@pytest.fixture(scope="module")
def ranker() -> nn.Module:
    return seeded(Ranker)


@pytest.fixture(scope="module")
def program(ranker: nn.Module) -> Program:
    return capture(ranker, (*USER, ITEM), ["user", "dense"])


@pytest.fixture(scope="module")
def hoisted(ranker: nn.Module) -> HoistedModel:
    return hoist(ranker, (*USER, ITEM), context=["user", "dense"])


@pytest.fixture(scope="module")
def certificate(hoisted: HoistedModel, ranker: nn.Module) -> Certificate:
    return verify(hoisted, ranker, seed=3)


@pytest.fixture(scope="module")
def packed() -> tuple[nn.Module, HoistedModel]:
    model = seeded(Packed)
    return model, hoist(model, (packed_rows(),), context={"x": [0, 2]})


def check(certificate: Certificate, name: str) -> Check:
    (found,) = (c for c in certificate.checks if c.name == name)
    return found


# -- what passes


def test_a_right_hoist_passes(certificate: Certificate):
    assert certificate and certificate.passed
    assert [c.name for c in certificate.checks] == ["float64", "float32", "prepare"]
    assert (certificate.level, certificate.dtype, certificate.truth) == ("full", "float32", "model in float64")
    assert certificate.row_independent
    assert 0 < check(certificate, "float64").error < 1e-14
    own = check(certificate, "float32")
    assert 0 < own.error <= own.tolerance == tolerance(own.original_error, torch.float32)


def test_a_certificate_says_what_was_done(certificate: Certificate):
    assert (certificate.candidates, certificate.requests, certificate.seed) == ((1, 2, 7, 100, 1000), (1, 3), 3)
    assert certificate.versions["torch"] == torch.__version__
    assert certificate.versions.keys() == {"rankhoist", "torch", "python"}
    assert datetime.fromisoformat(certificate.date).utcoffset().total_seconds() == 0


def test_the_seed_decides_everything(hoisted: HoistedModel, ranker: nn.Module, certificate: Certificate):
    again = verify(hoisted, ranker, seed=3)
    other = verify(hoisted, ranker, seed=4)
    assert again.checks == certificate.checks
    assert other.checks != certificate.checks


def test_packed_columns_pass(packed):
    model, hoisted = packed
    assert verify(hoisted, model)


def test_verify_draws_from_given_inputs(packed):
    model, hoisted = packed
    bare = HoistedModel(dataclasses.replace(hoisted.program, example={}), hoisted.plan)
    with pytest.raises(VerificationError, match=r"no example inputs .*verify\(..., inputs=...\)"):
        verify(bare, model)
    assert verify(bare, model, (packed_rows(),))
    assert verify(bare, model, {"x": packed_rows()})


def test_a_number_of_trials(hoisted: HoistedModel, ranker: nn.Module):
    assert verify(hoisted, ranker, 2, candidates=[3]).trials == 2
    with pytest.raises(VerificationError, match="trials must be 1 or more"):
        verify(hoisted, ranker, 0)
    with pytest.raises(VerificationError, match="candidates must be 1 or more"):
        verify(hoisted, ranker, candidates=[0, 1])
    with pytest.raises(VerificationError, match="seed must be 0 or more"):
        verify(hoisted, ranker, seed=-1)


def test_an_original_on_another_device_is_said_so(hoisted: HoistedModel, ranker: nn.Module):
    elsewhere = copy.deepcopy(ranker).to("meta")
    with pytest.raises(VerificationError, match="the original is on meta, and the hoisted model on cpu: move one"):
        verify(hoisted, elsewhere)


def test_an_example_with_an_id_outside_of_its_table(packed):
    model, hoisted = packed
    rows = packed_rows()
    rows[:, 1] = 7
    with pytest.raises(
        VerificationError, match=r"IndexError.*; of the rows .* input 'x' has id 7.0 in row 0, expected 0 to"
    ):
        verify(hoisted, model, (rows,))


def test_what_is_nan_alone_proves_nothing(packed):
    """A wrong score equals it as much as the right one does."""
    model, hoisted = packed
    none = torch.cat([packed_rows()[:, :3], torch.full((8, 1), torch.nan)], 1)
    with pytest.raises(VerificationError, match=r"output is NaN for all rows .*: input 'x' has rows with NaN"):
        verify(hoisted, model, (none,))
    some = packed_rows()
    some[0, 3] = torch.nan
    assert verify(hoisted, model, (some,))


def test_updated_weights_are_verified(program: Program):
    model = HoistedModel(program, linear_plan(program))
    other = seeded(Ranker, seed=1)
    assert failed(verify(model, other, candidates=[7])) == ["float64", "float32"]
    model.update_weights(other.state_dict())
    assert verify(model, other, candidates=[7])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(program: Program, dtype: torch.dtype):
    model = seeded(Ranker).to(dtype)
    certificate = verify(HoistedModel(program, linear_plan(program)).to(dtype), model)
    assert certificate
    names = {torch.bfloat16: ["float64", "bfloat16", "prepare"], torch.float64: ["float64", "prepare"]}
    assert [c.name for c in certificate.checks] == names[dtype]


def test_an_exported_program_and_its_file(ranker: nn.Module, tmp_path):
    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(ranker, (*USER, ITEM), dynamic_shapes=[{0: rows}] * 3)
    path = tmp_path / "ranker.pt2"
    torch.export.save(exported, path)
    hoisted = hoist(path, None, context=["user", "dense"])
    assert verify(hoisted, exported, candidates=[1, 7])
    assert verify(hoisted, path, candidates=[1, 7])
    assert verify(hoisted, ranker, candidates=[1, 7])
    with pytest.raises(VerificationError, match="No such file"):
        verify(hoisted, tmp_path / "none.pt2")


# -- what fails


def test_a_wrong_rule_fails_and_names_output_and_row(program: Program, ranker: nn.Module):
    certificate = verify(broken(program, without_bias, "click"), ranker)
    assert not certificate
    assert failed(certificate) == ["float64", "float32"]
    worst = check(certificate, "float64").worst
    assert worst.output == "output['click']"
    bias = ranker.click.bias.item()
    assert worst.truth - worst.hoisted == pytest.approx(bias)
    assert f"output['click'] row {worst.row} of N={worst.candidates}, R={worst.requests}" in str(certificate)
    assert str(certificate).startswith("FAILED")


def test_an_error_below_float32_fails_in_float64(program: Program, ranker: nn.Module):
    certificate = verify(broken(program, off_by_a_millionth, "like"), ranker)
    assert failed(certificate)[0] == "float64"
    assert check(certificate, "float64").worst.output == "output['like'][0]"
    assert check(certificate, "float64").error == pytest.approx(1e-6, rel=0.01)


class Rounding(HoistedModel):
    """Right in float64; in float32 everything is off by a part in ten thousand."""

    def forward(self, *args, **kwargs):
        result = super().forward(*args, **kwargs)
        return {**result, "like": [result["like"][0] * 1.0001]}


class Forgetful(HoistedModel):
    """`score` remembers its first result of each size."""

    def score(self, state, candidate_inputs, request_offsets=None):
        seen = self.__dict__.setdefault("seen", {})
        return seen.setdefault(str(request_offsets), super().score(state, candidate_inputs, request_offsets))


class Replanned(HoistedModel):
    """Scores a prepared state with other roundings than a call has, as another plan does."""

    def score(self, state, candidate_inputs, request_offsets=None):
        result = super().score(state, candidate_inputs, request_offsets)
        return {**result, "click": result["click"] * (1 + 12 * torch.finfo(torch.float32).eps)}


class Squeezing(HoistedModel):
    """One row loses its axis, as in the original."""

    def forward(self, *args, **kwargs):
        result = super().forward(*args, **kwargs)
        return {**result, "click": result["click"].squeeze()}


class Failing(HoistedModel):
    """Raises."""

    def forward(self, *args, **kwargs):
        raise ZeroDivisionError("no rows today")


def test_rounding_is_held_against_the_originals_own(program: Program, ranker: nn.Module):
    certificate = verify(Rounding(program, linear_plan(program)), ranker)
    assert failed(certificate) == ["float32", "prepare"]  # plain calls are wrong, prepared ones are right
    own = check(certificate, "float32")
    assert own.worst.output == "output['like'][0]" and own.error > 50 * own.original_error


def test_a_state_that_is_not_reusable_fails(program: Program, ranker: nn.Module):
    certificate = verify(Forgetful(program, linear_plan(program)), ranker)
    assert failed(certificate) == ["prepare"]


def test_a_prepared_request_may_round_otherwise(program: Program, ranker: nn.Module):
    certificate = verify(Replanned(program, linear_plan(program)), ranker)
    assert failed(certificate) == []
    assert check(certificate, "prepare").error > 8 * torch.finfo(torch.float32).eps


def test_a_lost_axis_fails(program: Program, ranker: nn.Module):
    assert seeded(Ranker)(*(x[:1] for x in (*USER, ITEM)))["click"].shape == ()  # the original loses it
    certificate = verify(Squeezing(program, linear_plan(program)), ranker)
    assert failed(certificate) == ["float32", "prepare"]
    assert "for N=1, R=1: output['click'] has shape [], expected [1]" in check(certificate, "float32").problem


def test_an_exception_is_a_failed_certificate(program: Program, ranker: nn.Module):
    certificate = verify(Failing(program, linear_plan(program)), ranker)
    assert failed(certificate) == ["float32", "prepare"]
    assert check(certificate, "float32").problem == "for N=1, R=1: raises ZeroDivisionError: no rows today"
    assert "no rows today" in str(certificate)


def test_another_structure_fails(program: Program, ranker: nn.Module):
    class Listing(HoistedModel):
        def forward(self, *args, **kwargs):
            return list(super().forward(*args, **kwargs).values())

    certificate = verify(Listing(program, linear_plan(program)), ranker, candidates=[2])
    assert "the outputs are output[0]" in check(certificate, "float32").problem


def test_a_hoist_that_cannot_be_float64_is_a_failed_certificate(program: Program, ranker: nn.Module):
    model = HoistedModel(program, linear_plan(program))
    stages = dataclasses.replace(model.blueprint.stages, folded=[])
    model.blueprint = dataclasses.replace(model.blueprint, stages=stages)
    certificate = verify(model, ranker, candidates=[2])
    assert failed(certificate) == ["float64"]


# -- data


def test_a_certificate_survives_json(certificate: Certificate, program: Program, ranker: nn.Module):
    assert Certificate.from_json(certificate.to_json()) == certificate
    bad = verify(Failing(program, linear_plan(program)), ranker, candidates=[1])
    assert bad.checks[1].error == math.inf
    assert Certificate.from_json(bad.to_json()) == bad
    data = json.loads(bad.to_json(), parse_constant=pytest.fail)  # JSON has no Infinity
    assert data["passed"] is False and [c["passed"] for c in data["checks"]] == [True, False, False]
    assert not Certificate.from_dict(bad.to_dict() | {"passed": True}), "its checks say whether it passed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("checks"), "its certificate lacks 'checks'"),
        (lambda d: d["checks"][0].pop("error"), "its check lacks 'error'"),
        (lambda d: d["checks"][0].update(error="small"), "a str where a number"),
        (lambda d: d.update(level=["<b>"]), "a list where str"),
        (lambda d: d.update(versions={"torch": 2}), "a int where str"),
        (lambda d: d.update(requests=[1, "2"]), "a str where int"),
    ],
)
def test_data_that_are_no_certificate(certificate: Certificate, change: Callable[[Any], Any], message: str):
    data = certificate.to_dict()
    change(data)
    with pytest.raises(ArtifactError, match=message):
        Certificate.from_dict(data)


# -- batches


def test_offsets_are_ragged_and_every_request_is_empty_once(program: Program):
    pool = program.example
    drawn = [draw(program.inputs.values(), pool, 100, 3, empty, seed=empty) for empty in range(4)]
    counts = [torch.tensor(b.offsets).diff().tolist() for b in drawn]
    assert all(sum(c) == 100 and len(set(c)) == 3 for c in counts)
    assert [[r for r in range(3) if c[r] == 0] for c in counts] == [[0], [1], [2], []]


def test_verify_tries_every_empty_request(hoisted: HoistedModel, ranker: nn.Module, monkeypatch):
    seen = []

    def record(*args, **kwargs):
        seen.append(draw(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(batches, "draw", record)
    verify(hoisted, ranker)
    empty = {r for b in seen if b.requests == 3 for r in range(3) if b.offsets[r] == b.offsets[r + 1]}
    assert empty == {0, 1, 2}
    assert {(b.candidates, b.requests) for b in seen} >= {(n, r) for n in (1, 2, 7, 100, 1000) for r in (1, 3)}


def test_whole_numbers_stay_and_other_floats_get_noise_in_their_range(packed):
    _, hoisted = packed
    rows = hoisted.example["x"]
    batch = draw(hoisted.interface.inputs.values(), hoisted.example, 500, 1, 0, seed=0)
    item, dense = batch.candidate["x"].unbind(1)
    assert set(item.tolist()) == set(rows[:, 1].tolist())
    assert len(set(dense.tolist())) > 100  # the example has 8 values
    assert rows[:, 3].min() <= dense.min() and dense.max() <= rows[:, 3].max()


def test_packed_columns_find_their_places(packed):
    _, hoisted = packed
    batch = Batch(
        {"x": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, {"x": torch.tensor([[5.0, 6.0], [7.0, 8.0]])}, (0, 0, 2)
    )
    assert whole_rows(hoisted.interface, batch)["x"].tolist() == [[3, 5, 4, 6], [3, 7, 4, 8]]
