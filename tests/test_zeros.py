"""Constants with zeros in products that sum: what no position of the candidate reaches is computed once per request."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, assert_equal, check_model
from torch import Tensor, nn

from rankhoist import hoist
from rankhoist.errors import RankhoistError

FIELDS, OWN, D, H, N = 9, 2, 5, 6, 7  # fields, of which the last are the candidate's; widths; candidates
G = torch.Generator().manual_seed(21)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


CONTEXT, CANDIDATE = randn(3, FIELDS - OWN, D), randn(N, OWN, D)
PATH = torch.eye(FIELDS, dtype=torch.float64) + torch.diag(torch.full((FIELDS - 1,), 0.5, dtype=torch.float64), 1)
PATH = PATH + PATH.mT.tril(-1)  # every field meets the one before it and the one behind it
GROUPS = torch.tensor([0, 0, 1, 1, 2, 2, 0, 3, 3])
SUMS = F.one_hot(GROUPS).mT.double()
MEANS = SUMS / SUMS.sum(1, keepdim=True)
RELATIONS = torch.stack([PATH, PATH.mT @ PATH])
SIGNS = PATH.ne(0)

Mix = Callable[[Tensor], Tensor]  # of fields `[rows, fields, width]`


def layers(mix: Mix) -> Callable[..., Tensor]:
    """Fields, mixed, and a layer for every one of what they are mixed to."""

    def call(c: Tensor, k: Tensor, w: Tensor, v: Tensor) -> Tensor:
        x = torch.relu(mix(torch.cat([c, k], 1) @ w))
        return torch.relu(x @ v).sum(1)

    return call


def weights() -> dict[str, Tensor]:
    return {"w": randn(D, H), "v": randn(H, H)}


def interleaved(x: Tensor) -> Tensor:
    """Fields of the candidate among the others."""
    order = torch.tensor([0, 8, 1, 2, 7, 3, 4, 5, 6])
    return PATH @ x[:, order]


MIXES: dict[str, Mix] = {
    "matmul": lambda x: PATH @ x,
    "linear": lambda x: F.linear(x.mT, PATH).mT,
    "einsum": lambda x: torch.einsum("bjd,ij->bid", x, MEANS),
    "bmm": lambda x: torch.bmm(PATH.expand(x.shape[0], -1, -1), x),
    "baddbmm": lambda x: torch.baddbmm(x[:, :1], PATH.expand(x.shape[0], -1, -1), x, beta=0.5, alpha=2),
    "tensordot": lambda x: torch.tensordot(x, SUMS, ([1], [1])).mT,
    "convolution": lambda x: F.conv1d(x, PATH[:, :, None]),
    "made_in_forward": lambda x: F.one_hot(GROUPS).mT.to(x.dtype) @ x,
    "normed": lambda x: (PATH / PATH.sum(1, keepdim=True)) @ x,
    "relations": lambda x: torch.einsum("hij,bjd->bhid", RELATIONS, x).flatten(1, 2),
    "per_relation": lambda x: torch.einsum("hij,bhjd->bid", RELATIONS, torch.stack([x, x.tanh()], 1)),
    "twice": lambda x: PATH @ torch.relu(PATH @ x),
    "two_constants": lambda x: torch.einsum("ij,jl,bld->bid", SUMS, PATH, x),
    "interleaved": interleaved,
}


@pytest.mark.parametrize("name", MIXES)
def test_what_no_candidate_reaches_is_the_requests(name):
    models = check_model(Function(layers(MIXES[name]), **weights()).eval(), CONTEXT, CANDIDATE)
    before = models["expand"].plan.cost.multiply_adds
    for level in ("first", "full"):
        assert models[level].plan.cost.multiply_adds < before / 2, level


def test_its_work_is_that_of_the_fields_that_are_reached():
    """Three of nine fields of a path: two are the candidate's, and one is beside them."""
    models = check_model(Function(layers(MIXES["matmul"]), **weights()).eval(), CONTEXT, CANDIDATE)
    own = OWN * D * H + 3 * OWN * H + 3 * H * H  # first layer, mixed, second layer
    shared = (FIELDS - OWN) * D * H + FIELDS * (FIELDS - OWN) * H + (FIELDS - 3) * H * H
    cost, workload = models["first"].plan.cost.multiply_adds, models["first"].plan.interpreter.workload
    assert cost <= workload.candidates * own + workload.requests * shared
    assert cost > workload.candidates * own


TINY = PATH.clamp(min=1e-9)


class Mixed(nn.Module):
    """A graph of fields that is a parameter, a buffer, or masks one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.w, self.v = (nn.Parameter(w) for w in weights().values())
        self.kind = kind
        if kind == "buffer":
            self.register_buffer("graph", PATH.clone())
        else:
            self.graph = nn.Parameter(PATH.clone())
        self.register_buffer("edges", SIGNS.clone())

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        graph = self.graph * self.edges if self.kind == "masked" else self.graph
        return layers(lambda x: graph @ x)(context, candidate, self.w, self.v)


@pytest.mark.parametrize(("kind", "known"), [("parameter", False), ("buffer", True), ("masked", True)])
def test_only_zeros_that_no_training_changes_are_read(kind, known):
    model = Mixed(kind).eval()
    cost = check_model(model, CONTEXT, CANDIDATE)["first"].plan.cost.multiply_adds
    other = check_model(Function(layers(lambda x: TINY @ x), **weights()).eval(), CONTEXT, CANDIDATE)["first"]
    assert (cost < other.plan.cost.multiply_adds) == known


@pytest.mark.parametrize(("kind", "name"), [("buffer", "graph"), ("masked", "edges")])
def test_new_weights_may_not_change_zeros_that_were_read(kind, name):
    model = Mixed(kind).eval()
    hoisted = hoist(model, (CONTEXT[torch.arange(4) % 3], CANDIDATE[:4]), context=["context"])
    other = model.state_dict()
    hoisted.update_weights(other | {"v": randn(H, H)})
    with pytest.raises(RankhoistError, match=name):
        hoisted.update_weights(other | {name: torch.ones_like(other[name])})


def test_a_constant_without_zeros_may_change():
    model = Mixed("buffer").eval()
    model.graph.copy_(TINY)
    hoisted = hoist(model, (CONTEXT[torch.arange(4) % 3], CANDIDATE[:4]), context=["context"])
    model.graph.copy_(PATH)
    hoisted.update_weights(model.state_dict())
    assert_equal(hoisted(CONTEXT[:1], CANDIDATE), model(CONTEXT[:1].expand(N, -1, -1), CANDIDATE))


ROOT = torch.cat([torch.zeros(FIELDS, FIELDS - 1, dtype=torch.float64), torch.ones(FIELDS, 1, dtype=torch.float64)], 1)
NEAR_MISSES: dict[str, Mix] = {
    "tiny_instead_of_zero": lambda x: TINY @ x,
    "all_meet_the_candidate": lambda x: (PATH + ROOT) @ x,
    "infinities": lambda x: PATH @ x.masked_fill(torch.arange(FIELDS)[:, None] % 4 == 0, torch.inf),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_what_a_candidate_reaches_stays_its_own(name):
    """An infinity times 0 is no number: where a mask has filled some in, nothing is left out."""
    models = check_model(Function(layers(NEAR_MISSES[name]), **weights()).eval(), CONTEXT, CANDIDATE)
    workload = models["first"].plan.interpreter.workload
    assert models["first"].plan.cost.multiply_adds > workload.candidates * FIELDS * H * H


def test_nothing_of_the_candidate_is_reached():
    """And the result of a context that reaches nothing is 0."""
    first = torch.eye(FIELDS, dtype=torch.float64)[: FIELDS - OWN]
    none = first.clone()
    none[1] = 0

    def call(c: Tensor, k: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([c, k], 1)
        return torch.relu(first @ x @ w).sum((1, 2)) * k[:, 0, 0], none @ x

    models = check_model(Function(call, w=randn(D, H)).eval(), CONTEXT, CANDIDATE)
    workload = models["first"].plan.interpreter.workload
    assert models["first"].plan.cost.multiply_adds < workload.candidates * D * H
