"""Functions that are told in words which axes are loops read sizes as numbers, and are hoisted all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import Function, check_model
from torch import Tensor, nn

from rankhoist import hoist
from rankhoist.errors import ExportError

einx = pytest.importorskip("einx", reason="einx, of the extra `dev`, is not installed")

G = torch.Generator().manual_seed(0)
CONTEXT = torch.randn(3, 4, 6, generator=G, dtype=torch.float64)
CANDIDATE = torch.randn(7, 6, generator=G, dtype=torch.float64)
W = torch.randn(6, 6, generator=G, dtype=torch.float64)


TOLD = {
    "loops": lambda c, k, w: einx.multiply("b n, b n d -> b n d", c[..., 0], c).sum(1) @ w + k,
    "both sides": lambda c, k, w: einx.multiply("b i, b j -> b i j", c[:, 0], k).tanh().sum(2),
    "at the end": lambda c, k, w: einx.multiply("n b, d b -> n d b", c[..., 0].t(), k.t()).tanh().sum((0, 1)),
    "another order": lambda c, k, w: einx.multiply("b n d, b d -> d n b", c, k).tanh()[:, 0].t(),
    "a weight": lambda c, k, w: einx.dot("b n d, d e -> b n e", c, w).tanh().sum(1) + k,
    "a number": lambda c, k, w: einx.where("b n, b n d, -> b n d", c[..., 0] > 0, c, 0.0).sum(1) * k,
    "brackets": lambda c, k, w: einx.sum("b [n] d -> b d", c) * k,
    "none are told": lambda c, k, w: einx.sum("b [n] d", c) + k,
    "read": lambda c, k, w: einx.get_at("b [n] d, b i -> b i d", c, (k[:, :2] > 0).long()).sum(1) * k,
    "any axes": lambda c, k, w: einx.multiply("... j, ... i -> ... i j", c[:, 0], k).tanh().sum(2),
    "any axes of one": lambda c, k, w: einx.multiply("... d, d -> ... d", c, w[0]).tanh().sum(1) * k,
    "any axes joined": lambda c, k, w: einx.id("b ... -> b (...)", c)[:, 6:12] * k,
    "joined": lambda c, k, w: einx.multiply("b d, s d -> (b s) d", k, w[:3])[:, 0].reshape(-1, 3) * c[:, 0, :3],
    "two results": lambda c, k, w: einx.id("b (d + e) -> b d, e b", k, d=3)[1].t() * c[:, 0, :3],
    "a size": lambda c, k, w: einx.multiply("b d, b d -> b d", k, c[:, 1], b=c.shape[0]),
    "no rows": lambda c, k, w: einx.multiply("n d, d -> n d", w, w[0])[0] * k + c[:, 0],
    "shares": lambda c, k, w: (einx.softmax("b [n] d", c) * k[:, None]).sum(1),
    "checked": lambda c, k, w: (einx.check("n d", w), k * c[:, 0])[1],
}


@pytest.mark.filterwarnings("ignore:einx.check is deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", TOLD)
def test_loops_over_rows_are_those_of_any_number(name: str):
    models = check_model(Function(TOLD[name], w=W).eval(), CONTEXT, CANDIDATE)
    if name == "loops":
        assert models["full"].plan.cost.multiply_adds == 6 * 6


product = einx.dot


class Weighed(nn.Module):
    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        return product("b n d, b d -> b n", context, candidate).tanh()


def test_a_function_by_a_name_of_the_models_file():
    original = einx.dot
    check_model(Weighed().eval(), CONTEXT, CANDIDATE)
    assert product is original is einx.dot


def test_several_results_in_a_list(monkeypatch: pytest.MonkeyPatch):
    """Which releases of einx before 0.4 give."""

    def listed(description: str, *tensors: Tensor, **sizes: int) -> list[Tensor]:
        return [*given(description, *tensors, **sizes)]

    given = einx.id
    monkeypatch.setattr(einx, "id", listed)

    def forward(c: Tensor, k: Tensor) -> Tensor:
        made = einx.id("b (d + e) -> b d, b e", k, d=2)
        made.append(c[:, 1, :4])
        return made[1] * made[2]

    check_model(Function(forward).eval(), CONTEXT, CANDIDATE)


class Within(nn.Module):
    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        return context[:, 0] * self.call(candidate).sum()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: einx.sum("[b] d -> d", x),
        lambda x: einx.sum("[b d] ->", x),
        lambda x: einx.sum("7 [d]", x),
        lambda x: einx.softmax("[b] d", x),
        lambda x: einx.softmax("d [b]", x.t()),
    ],
)
def test_rows_in_a_bracket_or_by_number_are_no_loop(call: Callable[..., Tensor]):
    said = (
        r"(?s)fixes the number of rows.*einx.*int\(x\).*\nreached from line \d+ of .*return context.*self\.call\(cand"
    )
    with pytest.raises(ExportError, match=said):
        hoist(Within(call).eval(), (CONTEXT[:1].expand(7, -1, -1), CANDIDATE), context=["context"])
