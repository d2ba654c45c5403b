"""Verification against originals that are hard to run: they fail, write, round, or cannot be float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from verifying import ITEM, USER, Ranker, broken, failed, off_by_a_millionth, seeded

from rankhoist import HoistedModel, hoist
from rankhoist.capture import capture
from rankhoist.compiler.rules import all_rules
from rankhoist.errors import VerificationError
from rankhoist.verify import verify


class Casting(nn.Module):
    """`Ranker` in small that names float32: in float64 the linear layer meets two dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Linear(5, 1)

    def forward(self, dense: Tensor, item: Tensor) -> Tensor:
        return self.top(torch.cat([dense, item], 1).float())


class Function(nn.Module):
    """A function of (dense, item)."""

    def __init__(self, call: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, dense: Tensor, item: Tensor) -> Tensor:
        return self.call(dense, item)


@pytest.fixture(scope="module")
def hoisted() -> HoistedModel:
    return hoist(seeded(Ranker), (*USER, ITEM), context=["user", "dense"])


def test_a_failing_original_is_an_error(hoisted: HoistedModel):
    class Picky(Ranker):
        def forward(self, user, dense, item):
            if len(item) > 50:
                raise ValueError("too many")
            return super().forward(user, dense, item)

    with pytest.raises(VerificationError, match="the original fails for N=100, R=1: ValueError: too many"):
        verify(hoisted, seeded(Picky))


def test_training_mode_is_an_error(hoisted: HoistedModel):
    with pytest.raises(VerificationError, match="in training mode are ids, hidden"):
        verify(hoisted, seeded(Ranker).train())


def test_a_model_that_fails_for_one_row_is_compared_with_two(hoisted: HoistedModel):
    class Shy(Ranker):
        def forward(self, user, dense, item):
            assert len(item) > 1
            return super().forward(user, dense, item)

    assert verify(hoisted, seeded(Shy), candidates=[1, 2])


@pytest.fixture(scope="module")
def casting() -> tuple[nn.Module, HoistedModel]:
    model = seeded(Casting)
    return model, hoist(model, (USER[1], ITEM), context=["dense"])


def test_a_model_that_cannot_run_in_float64_is_replaced_by_its_graph(casting):
    model, hoisted = casting
    certificate = verify(hoisted, model)
    assert certificate and certificate.truth == "captured graph in float64"
    assert certificate.note.startswith(
        "the model in float64 raises RuntimeError: mat1 and mat2 must have the same dtype"
    )
    assert [c.name for c in certificate.checks] == ["float64", "float32", "prepare", "capture"]
    assert certificate.note in str(certificate)


def test_the_captured_graph_must_be_the_model(casting):
    _, hoisted = casting
    certificate = verify(hoisted, seeded(Casting, seed=1))
    assert failed(certificate) == ["capture"]


@pytest.mark.parametrize("share", [1, 1e-3, 1e-4])  # of 1e-3 some rows round by more than 1e-10, and others by less
def test_a_model_that_rounds_inside_is_replaced_by_its_graph(share: float):
    def score(dense: Tensor, item: Tensor) -> Tensor:
        return (dense.sum(1) + share * dense.float().sum(1)) * item.double()[:, 0]

    model = Function(score).eval()
    certificate = verify(hoist(model, (USER[1], ITEM), context=["dense"]), model)
    assert certificate and certificate.truth == "captured graph in float64"
    assert "it rounds to a shorter dtype inside" in certificate.note


def test_a_model_that_rounds_in_some_requests_is_replaced_by_its_graph():
    """As one whose mask hides what is rounded."""

    def score(dense: Tensor, item: Tensor) -> Tensor:
        made = (dense.sum(1) + item.sum(1)).sin()
        return torch.where(dense[:, 0] > 0, made.float(), made)

    model = Function(score).eval()
    certificate = verify(hoist(model, (USER[1], ITEM), context=["dense"]), model)
    assert certificate and certificate.truth == "captured graph in float64"


class Mixed(nn.Module):
    """Products in a shorter dtype, by autocast or by hand; the sum is in float32."""

    def __init__(self, shorter: torch.dtype, by_hand: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.top, self.shorter, self.by_hand = nn.Linear(5, 8), nn.Linear(8, 1), shorter, by_hand

    def forward(self, dense: Tensor, item: Tensor) -> Tensor:
        x = torch.cat([dense, item], 1)
        with torch.autocast("cpu", self.shorter, enabled=not self.by_hand):
            x = self.hidden(x)
        return self.top((x.to(self.shorter) if self.by_hand else x).relu().to(dense))


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("shorter", [torch.bfloat16, torch.float16])
def test_a_shorter_dtype_inside_stays_and_is_no_rounding_in_float64(shorter: torch.dtype, by_hand: bool):
    model = Mixed(shorter, by_hand).eval()
    hoisted = hoist(model, (USER[1], ITEM), context=["dense"])
    exact = Mixed(torch.float64, True).double()(USER[1][:1].double().expand(6, 2), ITEM.double())
    certificate = verify(hoisted, model)
    assert certificate, certificate
    error = {check.name: check.error for check in certificate.checks}
    assert error["float64"] < 1e-14 and error["float32"] > torch.finfo(shorter).eps / 16  # which is far from float32's
    assert (hoisted(USER[1][:1], ITEM) - exact).abs().max() > 1e-5
    double = hoisted.double()(USER[1][:1].double(), ITEM.double())
    torch.testing.assert_close(double, exact, rtol=0, atol=1e-14)


def test_float32_parts_of_a_float64_model_are_lifted():
    model, given = seeded(Casting), (USER[1].double(), ITEM.double())
    certificate = verify(hoist(model, given, context=["dense"]), model)
    assert certificate, certificate
    assert [check.name for check in certificate.checks] == ["float64", "float32", "prepare", "capture"]
    program = capture(model, given, ["dense"], all_rules())
    assert "float64" in failed(verify(broken(program, off_by_a_millionth, "top"), model))


def test_a_shorter_dtype_inside_excuses_no_wrong_rule():
    model = Mixed(torch.bfloat16, False).eval()
    program = capture(model, (USER[1], ITEM), ["dense"], all_rules())
    assert failed(verify(broken(program, off_by_a_millionth, "top"), model)) == ["float64"]


def test_tensors_of_the_default_dtype_follow_to_float64():
    class Dividing(nn.Module):
        """An integer divided by a number has the default dtype, whatever the model's weights have."""

        def __init__(self) -> None:
            super().__init__()
            self.top = nn.Linear(1, 1)

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return self.top(user.unsqueeze(1) / 3) + item

    model = seeded(Dividing)
    before = torch.get_default_dtype()
    certificate = verify(hoist(model, (USER[0], ITEM), context=["user"]), model)
    assert certificate and certificate.truth == "model in float64"
    assert torch.get_default_dtype() == before


def test_weights_that_meet_a_tensor_of_the_default_dtype_are_verified():
    """Whole numbers that are divided follow the default: beside float32 weights the product would be none."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Parameter(torch.linspace(-1, 1, 4).reshape(2, 2))

        def forward(self, dense: Tensor, item: Tensor) -> Tensor:
            return (dense @ (torch.arange(4).reshape(2, 2) / 3 @ self.mix)).sum(1, keepdim=True) * item

    model = Scaled().eval()
    certificate = verify(hoist(model, (USER[1], ITEM), context=["dense"]), model)
    assert certificate and certificate.truth == "model in float64"


def test_without_context_there_is_one_request():
    model = Function(lambda dense, item: dense.sum(1) * item.sum(1)).eval()
    certificate = verify(hoist(model, (USER[1], ITEM), context=[]), model)
    assert certificate and certificate.requests == (1,)


def test_a_model_may_write_into_its_inputs(hoisted: HoistedModel):
    class Writing(Ranker):
        def forward(self, user, dense, item):
            result = super().forward(user, dense, item.clone())
            item.zero_()
            return result

    assert verify(hoisted, seeded(Writing), candidates=[2, 7])


def test_rows_that_meet_are_legal_and_reported():
    model = Function(lambda dense, item: (dense.sum(1) + item.sum(1)).softmax(0)).eval()
    certificate = verify(hoist(model, (USER[1], ITEM), context=["dense"]), model)
    assert certificate and not certificate.row_independent
    assert "rows depend on each other" in str(certificate)


def test_nan_and_infinity_match():
    model = Function(lambda dense, item: item[:, 0].log() + dense[:, 0] + 1 / (item[:, 2] < 0.9).float()).eval()
    rows = (USER[1], ITEM)
    found = model(USER[1][:1].expand(6, 2), ITEM)
    assert found.isnan().any() and found.isinf().any()
    assert verify(hoist(model, rows, context=["dense"]), model)


def test_what_a_model_compiles_stays_compiled():
    ran: list[int] = []

    def counted(graph: torch.fx.GraphModule, example: list[Tensor]) -> Callable[..., object]:
        return lambda *given: ran.append(len(given)) or graph.forward(*given)

    product = torch.compile(lambda dense, item: dense @ item.mT, backend=counted, dynamic=True)
    model = Function(lambda dense, item: product(dense[:, None], item[:, None, :2]).flatten()).eval()
    hoisted = hoist(model, (USER[1], ITEM), context=["dense"])
    assert verify(hoisted, model, candidates=[2, 7])
    ran.clear()
    model(USER[1], ITEM)
    assert ran
