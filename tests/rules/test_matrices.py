"""Matrices by themselves, and what is solved with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import Function, check_model, rates_of, reasons
from torch import Tensor

from rankhoist import hoist, verify
from rankhoist.compiler.graph.node import Rate
from rules.cases import HISTORY, ROWS, C, Equal, K, NearMiss, both, declines, equal_at_every_level, numbers

randn, linalg = numbers(17), torch.linalg


def definite(x: Tensor) -> Tensor:
    """`[rows, T, D]` -> `[rows, D, D]`, as a linear bandit has it of a history."""
    return x.mT @ x + torch.eye(x.shape[-1], dtype=x.dtype)


def of_row(x: Tensor) -> Tensor:
    """A matrix of a vector."""
    return definite(x.unsqueeze(1))


SQUARE = randn(C + K, C + K) + 9 * torch.eye(C + K, dtype=torch.float64)
BY_THEMSELVES: dict[str, Callable[[Tensor], Tensor]] = {
    "inv": linalg.inv,
    "inv_ex": lambda x: linalg.inv_ex(x)[0],
    "pinv": linalg.pinv,
    "exp": lambda x: linalg.matrix_exp(x / 9),
    "power": lambda x: linalg.matrix_power(x / 9, 3),
    "cholesky": linalg.cholesky,
    "cholesky_inverse": lambda x: torch.cholesky_inverse(linalg.cholesky(x)),
    "qr": lambda x: linalg.qr(x)[1].abs(),
    "lu": lambda x: linalg.lu_factor(x)[0],
    "eigh": lambda x: linalg.eigh(x)[0].unsqueeze(1),
    "svd": lambda x: linalg.svd(x)[1].unsqueeze(1),
    "det": lambda x: linalg.det(x)[:, None, None],
    "slogdet": lambda x: linalg.slogdet(x)[1][:, None, None],
}

EQUAL: dict[str, Equal] = {
    "bandit": (
        lambda c, k: (
            (k * linalg.solve(definite(c), c.mean(1))).sum(1) + (k * linalg.solve(definite(c), k)).sum(1).sqrt()
        ),
        HISTORY,
        {},
    ),
    "matrix": (lambda c, k, w: linalg.solve(definite(c), k.unsqueeze(2) * w), HISTORY, dict(w=randn(3))),
    "from_the_right": (
        lambda c, k, w: linalg.solve(definite(c), k.unsqueeze(1) * w[:, None], left=False),
        HISTORY,
        dict(w=randn(3)),
    ),
    "weight_and_both": (lambda c, k, w: linalg.solve(w, both(c, k).unsqueeze(2)).squeeze(2), ROWS, dict(w=SQUARE)),
    "candidates_matrix": (lambda c, k: linalg.solve(of_row(k), c[:, :K]), ROWS, {}),
    "matrix_of_both": (lambda c, k: linalg.solve(of_row(both(c, k)), both(c, k)), ROWS, {}),
    "heads": (
        lambda c, k: linalg.solve(definite(c.view(-1, 2, 3, 4)), k.view(-1, 1, 4, 1).expand(-1, 2, -1, -1)).flatten(1),
        HISTORY,
        {},
    ),
    "one_matrix_for_several_heads": (
        lambda c, k, w: linalg.solve(definite(c)[:, None], k.view(-1, 1, 4, 1) * w[:, None, None]).flatten(1),
        HISTORY,
        dict(w=randn(2)),
    ),
    "right_side_without_rows": (
        lambda c, k, w: linalg.solve(definite(c), w[None]) @ k[..., None],
        HISTORY,
        dict(w=randn(4, 4)),
    ),
    "right_sides_are_columns": (
        lambda c, k, w: linalg.solve(w, k.mT).mT * c[:, :4],
        ROWS,
        dict(w=SQUARE[:4, :4].clone()),
    ),
    "cholesky_solve": (
        lambda c, k: torch.cholesky_solve(k.unsqueeze(2), linalg.cholesky(definite(c))).squeeze(2),
        HISTORY,
        {},
    ),
    "cholesky_solve_upper": (
        lambda c, k: torch.cholesky_solve(k.unsqueeze(2), linalg.cholesky(definite(c)).mT, upper=True).squeeze(2),
        HISTORY,
        {},
    ),
    "triangular": (
        lambda c, k: linalg.solve_triangular(definite(c), k.unsqueeze(2), upper=False).square().sum(1),
        HISTORY,
        {},
    ),
    "triangular_from_the_right": (
        lambda c, k: linalg.solve_triangular(definite(c), k.unsqueeze(1), upper=True, left=False, unitriangular=True),
        HISTORY,
        {},
    ),
    **{
        name: (lambda c, k, f=f: (f(definite(c)) * k.unsqueeze(1)).sum((1, 2)) + f(of_row(k)).sum((1, 2)), HISTORY, {})
        for name, f in BY_THEMSELVES.items()
    },
}  # fmt: skip

OVER_ROWS = "rows of [4, rows] are in the axes of its matrices"
NEAR_MISSES: dict[str, NearMiss] = {
    "right_side_over_rows": (
        lambda c, k, w: linalg.solve(w, c[:, :4].mT).mT * k,
        "linalg_solve",
        OVER_ROWS,
        dict(w=SQUARE[:4, :4].contiguous()),
    ),
    "matrix_of_all_rows": (
        lambda c, k: (
            linalg.solve(k.mT @ k + c.shape[1] * torch.eye(4, dtype=k.dtype), k[:, :, None])[:, :, 0] + c[:, :4]
        ),
        "linalg_solve",
        "axes do not follow the rows",
        {},
    ),
}


test_equal_at_every_level = equal_at_every_level(EQUAL)
test_declines = declines(NEAR_MISSES)


def test_a_requests_matrix_is_inverted_once():
    """A candidate is multiplied with the inverse, D D multiply-adds, and the request's own right side with nothing."""
    call, inputs, weights = EQUAL["bandit"]
    models = check_model(Function(call, **weights).eval(), *inputs)
    solves = [n for n in models["full"].plan.nodes if "solve" in str(n.op)]
    assert solves and {n.rate for n in solves} == {Rate.REQUEST}
    assert sum(n.work.multiply_adds for n in models["full"].plan.nodes if n.rate.per_candidate) <= 4 * 4 + 2 * 4
    assert reasons(models["full"]) == []


@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_those_of_a_request_are_the_requests(name: str):
    f = BY_THEMSELVES[name]
    models = check_model(Function(lambda c, k: (f(definite(c)) * k.unsqueeze(1)).sum((1, 2))).eval(), *HISTORY)
    assert {n.rate for n in models["full"].plan.nodes if "linalg" in str(n.op)} <= {Rate.REQUEST, Rate.WEIGHT}
    assert rates_of(models["full"], "aten.eye") <= {Rate.WEIGHT}


@pytest.mark.parametrize("spread", [0.1, 3.0, 30.0])
def test_error_in_float32_is_that_of_the_original(spread: float):
    """Also where the condition of the matrix is a thousand and more."""

    def call(c: Tensor, k: Tensor) -> Tensor:
        scales = torch.logspace(0, 1, 4).to(c) ** (spread / 10)
        return (k * torch.linalg.solve(definite(c * spread * scales), k)).sum(1)

    history, items = (x.float() for x in HISTORY)
    example = (history.repeat(3, 1, 1)[:7], items)
    model = Function(call).eval()
    assert verify(hoist(model, example, context=["context"]), model, seed=1, candidates=[50], requests=[1, 3]).passed
