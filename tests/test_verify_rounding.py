"""Verification of rounding: a plan that adds the same sums in another order passes, one that loses digits fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from verifying import failed, seeded

from rankhoist import HoistedModel, hoist
from rankhoist.verify import Check, verify
from rankhoist.verify.compare import Own
from rankhoist.verify.measure import outputs
from rankhoist.verify.term_by_term import TermByTerm

EPS = torch.finfo(torch.float32).eps
WIDTH = 2048
USER, ITEM = torch.randn(2, 8, WIDTH, generator=torch.Generator().manual_seed(0))


class Wide(nn.Module):
    """Long sums: 16 scores, each of 4096 terms."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Linear(2 * WIDTH, 16)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.top(torch.cat([user, item], 1))


class InOrder(HoistedModel):
    """Adds its sums term by term."""

    def forward(self, *args, **kwargs):
        with TermByTerm():
            return super().forward(*args, **kwargs)


class Scaled(HoistedModel):
    """A hundred-thousandth too large, in its own dtype only."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs) * (1 + 1e-5)


class Cancelling(HoistedModel):
    """Adds what is hundreds of times as large as the scores, and takes it away again."""

    def forward(self, *args, **kwargs):
        return (super().forward(*args, **kwargs) + 1000) - 1000


class Coarse(HoistedModel):
    """Rounds what it multiplies to ten bits, as TF32 does."""

    def forward(self, user, item, **kwargs):
        return super().forward(*(x.half().float() for x in (user, item)), **kwargs)


@pytest.fixture(scope="module")
def wide() -> tuple[nn.Module, HoistedModel]:
    model = seeded(Wide)
    return model, hoist(model, (USER, ITEM), context=["user"], level="linear")


def checked(wide: tuple[nn.Module, HoistedModel], kind: type[HoistedModel]) -> tuple[list[str], Check]:
    model, hoisted = wide
    certificate = verify(kind(hoisted.program, hoisted.plans), model, candidates=[1, 7])
    return failed(certificate), next(check for check in certificate.checks if check.name == "float32")


def test_the_same_sums_in_another_order_pass(wide):
    names, check = checked(wide, InOrder)
    assert names == []
    assert check.error > 8 * EPS, "more than kernels of this machine round, whatever they are"
    assert check.tolerance == 2 * check.original_error


@pytest.mark.parametrize("kind", [Scaled, Cancelling, Coarse])
def test_a_loss_of_digits_fails(wide, kind: type[HoistedModel]):
    names, check = checked(wide, kind)
    assert "float32" in names and "float64" not in names
    assert check.error > 1.5 * check.tolerance


def in_order(a: Tensor, b: Tensor) -> Tensor:
    """A product of matrices by the definition: NumPy's running sums, of which each is rounded."""
    return torch.from_numpy((a[..., None] * b).numpy().cumsum(1)[:, -1])


@pytest.mark.parametrize(
    "product",
    [
        lambda c, a, b: c + a @ b,
        lambda c, a, b: torch.addmm(c, a, b),
        lambda c, a, b: nn.functional.linear(a, b.T, c),
        lambda c, a, b: c + (a[None] @ b[None])[0],
        lambda c, a, b: torch.baddbmm(c, a[None], b[None])[0],
        lambda c, a, b: c + torch.stack([a @ b[:, 0], a @ b[:, 1], a @ b[:, 2]], 1),
        lambda c, a, b: c + torch.einsum("nk,kh->nh", a, b),
    ],
)
def test_products_are_added_term_by_term(product: Callable[[Tensor, Tensor, Tensor], Tensor]):
    c, a, b = torch.randn(3), torch.randn(5, 1000).sign(), torch.randn(1000, 3)  # terms are exact, fused or not
    with TermByTerm():
        found = product(c, a, b)
    assert torch.equal(found, c + in_order(a, b))


def test_short_dtypes_are_added_in_float32_and_whole_numbers_as_they_are():
    a, b = torch.randn(5, 1000).sign().bfloat16(), torch.randn(1000, 3).bfloat16()
    with TermByTerm():
        found, whole = a @ b, torch.ones(2, 3, dtype=torch.int64) @ torch.ones(3, 2, dtype=torch.int64)
    assert torch.equal(found, in_order(a.float(), b.float()).bfloat16())
    assert whole.tolist() == [[3, 3], [3, 3]]


def test_another_choice_is_no_rounding():
    truth = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def error(added: list[float]) -> float:
        own = Own([outputs(truth + 1e-7)], {0: outputs(torch.tensor(added, dtype=torch.float64))})
        return own.error(0, [truth], torch.float32)

    assert error([1.0, 2.0]) == pytest.approx(5e-8)
    assert error([1.0 + 1e-4, 2.0]) == pytest.approx(5e-5)
    assert error([2.0, 1.0]) == pytest.approx(5e-8)
