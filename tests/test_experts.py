"""Matrices that a candidate chooses among few: `W[i] [c; z] = (W_c c)[i] + (W_k z)[i]`, the first once per request."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, assert_equal, check_model, kept, repeated
from torch import Tensor

from rankhoist import GroupedModel, Workload, verify_gradients
from rankhoist.capture import Program, capture
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.plan import Plan, Task, single
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.rules import all_rules
from rankhoist.runtime import load_onnx
from rankhoist.runtime.blueprint import Blueprint

C, K, E, H, N = 12, 6, 5, 16, 7  # widths of context and candidate, experts, columns of each, candidates
LAW = "matrices chosen among few"
G = torch.Generator().manual_seed(31)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=G, dtype=torch.float64)


CONTEXT, CANDIDATE = randn(3, C), randn(N, K)
WEIGHTS = {"w": randn(E, H, C + K), "b": randn(E, H), "g": randn(E, C + K), "v": randn(E, H, H)}
Layer = Callable[..., Tensor]


def both(c: Tensor, k: Tensor) -> Tensor:
    return torch.cat([c, k], -1)


def domain(k: Tensor, count: int = E) -> Tensor:
    """An id of the candidate."""
    return (k[:, 0].abs() * 10).long() % count


def top(c: Tensor, k: Tensor, g: Tensor, count: int = 2) -> tuple[Tensor, Tensor]:
    """Weights of the best experts, and which these are."""
    scores, experts = F.linear(both(c, k), g).topk(count, -1)
    return scores.softmax(-1), experts


def mixed(c: Tensor, k: Tensor, w: Tensor, b: Tensor, g: Tensor, v: Tensor) -> Tensor:
    share, i = top(c, k, g)
    made = torch.einsum("nkoi,ni->nko", w[i], both(c, k)) + b[i]
    return (share[..., None] * F.relu(made)).sum(1)


def two_layers(c: Tensor, k: Tensor, w: Tensor, b: Tensor, g: Tensor, v: Tensor) -> Tensor:
    share, i = top(c, k, g)
    made = F.relu((w[i] @ both(c, k)[:, None, :, None]).squeeze(-1) + b[i])
    return (share[..., None] * torch.einsum("nkpo,nko->nkp", v[i], made)).sum(1)


def one_expert(c: Tensor, k: Tensor, w: Tensor, b: Tensor, g: Tensor, v: Tensor) -> Tensor:
    return torch.bmm(w[top(c, k, g, 1)[1].squeeze(1)], both(c, k).unsqueeze(2)).squeeze(2)


def by_domain(c: Tensor, k: Tensor, w: Tensor, b: Tensor, g: Tensor, v: Tensor) -> Tensor:
    i = domain(k)
    return F.relu(torch.matmul(both(c, k).unsqueeze(1), w[i].transpose(1, 2)).squeeze(1) + b[i])


def from_the_end(c: Tensor, k: Tensor, w: Tensor, b: Tensor, g: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("boi,bi->bo", w[domain(k) - E], both(c, k))


def shared_times_own(c: Tensor, k: Tensor, w: Tensor, b: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """A weight of all domains, element by element with that of one."""
    own = w.index_select(0, domain(k)) * w[0]
    return F.relu((own * both(c, k).unsqueeze(1)).sum(-1))


def generated(c: Tensor, k: Tensor, w: Tensor, b: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """Rows of an embedding as matrices."""
    own = F.embedding(domain(k), w.flatten(1)).view(-1, H, C + K)
    return torch.tanh(torch.einsum("boi,bi->bo", own, both(c, k)))


def history(c: Tensor, k: Tensor, w: Tensor, b: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """Layers of a candidate's own, over a history."""
    own = F.embedding(domain(k), w.flatten(1))
    first, shift, last = own[:, :24].view(-1, 3, 8), own[:, 24:32], own[:, 32:64].view(-1, 8, 4)
    made = torch.tanh(torch.matmul(c.view(-1, 4, 3), first) + shift.unsqueeze(1))
    return torch.matmul(made, last).sum(1)


def tower(c: Tensor, k: Tensor, w: Tensor, b: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """A domain's layers over the context, then a product with the candidate."""
    i = domain(k)
    made = F.relu(torch.bmm(w[i][..., :C], c.unsqueeze(2)).squeeze(2) + b[i])
    made = torch.tanh(torch.einsum("boi,bi->bo", v[i], made) + b.sin()[i])
    return ((w[i][..., C:] * made.unsqueeze(2)).sum(1) * k).sum(1)


def of_two_domains(c: Tensor, k: Tensor, w: Tensor, b: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """The second layer is that of another one."""
    made = F.relu(torch.einsum("boi,bi->bo", w[domain(k)][..., :C], c))
    return torch.einsum("boi,bi->bo", v[domain(-k[:, 1:])], made)


LAYERS: dict[str, tuple[Layer, int]] = {  # and the multiply-adds of a candidate
    "mixed": (mixed, E * K + E * H * K),
    "two_layers": (two_layers, E * K + E * H * K + 2 * E * H * H),
    "one_expert": (one_expert, E * K + E * H * K),
    "by_domain": (by_domain, E * H * K),
    "from_the_end": (from_the_end, E * H * K),
    "shared_times_own": (shared_times_own, E * H * K),
    "generated": (generated, E * H * K),
    "history": (history, 0),
    "tower": (tower, 0),  # the last product is element by element
    "of_two_domains": (of_two_domains, 0),  # all pairs of domains are the request's
}


def model(*layers: Layer, **weights: Tensor) -> Function:
    return Function(lambda c, k, **w: [layer(c, k, **w) for layer in layers], **(weights or WEIGHTS)).eval()


def program_of(*layers: Layer, **weights: Tensor) -> Program:
    return capture(model(*layers, **weights), (CONTEXT[torch.arange(N) % 3], CANDIDATE), ["context"], all_rules())


def left(plan: Plan) -> int:
    """Multiply-adds of a candidate."""
    return sum(n.work.multiply_adds for n in plan.nodes if n.rate.per_candidate)


def test_equal_at_every_level():
    check_model(model(*(layer for layer, _ in LAYERS.values())), CONTEXT, CANDIDATE)


@pytest.mark.parametrize("name", LAYERS)
def test_the_contexts_part_is_the_requests(name):
    layer, work = LAYERS[name]
    plan = attempt(Task(program_of(layer), Level.FULL, Workload()))
    assert left(plan) == work


@pytest.mark.parametrize("candidates", [1, 4, 5, 14, 15, 1000])
@pytest.mark.parametrize("requests", [1, 3])
def test_where_candidates_read_no_fewer_than_there_are(candidates, requests):
    plan = attempt(Task(program_of(by_domain), Level.FULL, Workload(candidates, requests)))
    few = requests * E <= candidates
    assert left(plan) == (E * H * K if few else H * (C + K))
    request = sum(n.work.multiply_adds for n in plan.nodes if n.rate is Rate.REQUEST)
    assert request == (E * H * C if few else 0)


@pytest.mark.parametrize("experts", [5, 100])
def test_of_many_the_candidates_part_is_read_first(experts):
    def chosen(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
        return torch.einsum("boi,bi->bo", w[domain(k, experts)], both(c, k))

    plan = attempt(Task(program_of(chosen, w=randn(experts, H, C + K)), Level.FULL, Workload()))
    assert left(plan) == (experts if experts == 5 else 1) * H * K


def padded(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    own = F.embedding(domain(k), w.flatten(1), padding_idx=0).view(-1, H, C + K)
    return torch.einsum("boi,bi->bo", own, both(c, k))


def of_the_request(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("boi,bi->bo", w[domain(c)], both(c, k))


def in_a_later_axis(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("oib,bi->bo", w.permute(1, 2, 0)[..., domain(k)], both(c, k))


NEAR_MISSES: dict[str, tuple[Layer, Tensor, str]] = {
    "short_rows": (lambda c, k, w: (F.embedding(domain(k), w) * both(c, k)).sum(1), randn(E, C + K), "are short"),
    "more_than_candidates_read": (
        lambda c, k, w: torch.einsum("boi,bi->bo", w[domain(k, 1001)], both(c, k)),
        randn(1001, H, C + K),
        "more than candidates read",
    ),
    "of_the_request": (of_the_request, WEIGHTS["w"], "more than candidates read"),
    "padded": (padded, WEIGHTS["w"], "a gradient of another kind"),
    "in_a_later_axis": (in_a_later_axis, WEIGHTS["w"], "is no table"),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_others_are_read_as_they_are(name):
    layer, weight, why = NEAR_MISSES[name]
    check_model(model(layer, w=weight), CONTEXT, CANDIDATE)
    outcomes = attempt(Task(program_of(layer, w=weight), Level.FULL, Workload())).interpreter.outcomes.values()
    assert [why in o.declined[LAW] for o in outcomes if LAW in o.declined] == [True]
    assert not any(o.law == LAW for o in outcomes)


@pytest.mark.parametrize("offsets", [None, [0, 4, 4, N]])
def test_an_expert_that_there_is_not_is_an_error(offsets):
    def chosen(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
        return torch.einsum("boi,bi->bo", w[k[:, 0].long()][..., :C], c)

    hoisted = kept(program_of(chosen, w=WEIGHTS["w"]))
    context = CONTEXT[:1] if offsets is None else CONTEXT
    assert left(hoisted.plan) == 0
    assert hoisted(context, torch.full_like(CANDIDATE, -E), request_offsets=offsets)[0].shape == (N, H)
    for wrong in (E, -E - 1):
        with pytest.raises((IndexError, RuntimeError)):
            hoisted(context, torch.full_like(CANDIDATE, wrong), request_offsets=offsets)


def test_gradients_of_experts():
    names = "two_layers", "shared_times_own", "generated"
    layers = model(*(LAYERS[name][0] for name in names)).requires_grad_()
    inputs = CONTEXT[torch.arange(20) // 7], randn(20, K)
    program = capture(layers, inputs, ["context"], all_rules(), training=True)
    plan = attempt(Task(program, Level.FULL, Workload(40, 3)))
    assert left(plan) == sum(LAYERS[name][1] for name in names)
    certificate = verify_gradients(GroupedModel(layers, lambda _: Blueprint.of(program, single(plan))), inputs=inputs)
    assert certificate.passed, certificate


def test_exported_to_onnx(tmp_path):
    pytest.importorskip("onnxruntime")
    layers = [mixed, by_domain, generated]
    kept(program_of(*layers)).export_onnx(tmp_path, several=True)
    runner = load_onnx(tmp_path)
    for offsets in ([0, N], [0, 4, 4, N]):
        context = CONTEXT[: len(offsets) - 1]
        made = runner(context, CANDIDATE, request_offsets=offsets)
        assert_equal([torch.as_tensor(x) for x in made], model(*layers)(repeated(context, offsets), CANDIDATE))
