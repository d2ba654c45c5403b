"""Several requests in one call on a device: padded blocks in place of a loop, equal in float64 for random offsets."""

from __future__ import annotations

import copy
import itertools
import random

import pytest
import torch
from helpers import assert_equal, repeated
from test_backends import CASES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rankhoist.compiler.graph import kernels, padded, trained
from rankhoist.compiler.graph.operators import KERNELS
from rankhoist.runtime import offsets as blocks

CPU = torch.device("cpu")


@pytest.fixture
def padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as a device that does not loop."""
    monkeypatch.setattr(blocks, "LOOPS", ())


def drawn(seed: int) -> list[int]:
    """Boundaries of a few requests, some of them empty."""
    chance = random.Random(seed)
    return [0, *sorted(chance.choices(range(40), k=chance.randint(1, 6)))]


def _double(rows: Tensor) -> Tensor:
    return rows.double() if rows.is_floating_point() else rows


class Counted(TorchDispatchMode):
    """Operators that are called, and whether one of them waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.waits = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        self.waits += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("seed", range(12))
def test_blocks_are_made_of_boundaries_alone(padding, seed):
    offsets = drawn(seed)
    found = blocks.blocks_of(offsets, len(offsets) - 1, offsets[-1])
    if found is None:
        assert len(offsets) == 2
        return
    made, owner = found.on(CPU)
    assert torch.equal(owner, found.owner)
    slots, place, *of = made
    x = torch.arange(offsets[-1])
    assert torch.equal(padded.in_blocks(x, slots).reshape(-1).index_select(0, place), x)
    uneven = max(b - a for a, b in itertools.pairwise(offsets)) * (len(offsets) - 1) > 4 * offsets[-1]
    assert len(made) == 2 + uneven
    if uneven:
        assert torch.equal(of[0][place // slots.shape[1]], owner) and slots.numel() <= 2 * offsets[-1] + len(offsets)
    else:
        assert len(slots) == len(offsets) - 1


@pytest.mark.parametrize("waste", [100, 0], ids=["a block each", "several blocks each"])
@pytest.mark.parametrize("seed", range(6))
def test_every_kernel_of_the_requests_matrix(padding, monkeypatch, seed, waste):
    monkeypatch.setattr(blocks, "WASTE", waste)
    offsets = torch.tensor([*drawn(seed), 40])
    n, r = 40, len(offsets) - 1
    there, owner = blocks.Blocks(offsets.tolist(), n).on(CPU)
    assert len(there) == (3 if waste == 0 else 2)
    x, m, start, total = (torch.randn(*s, dtype=torch.float64) for s in ((n, 5), (r, 5, 3), (r, 3), (n, 3)))
    pairs, many = torch.randn(n, 2, 4, 5, dtype=torch.float64), torch.randn(r, 2, 5, 3, dtype=torch.float64)
    keys, values = torch.randn(r, 2, 6, 5, dtype=torch.float64), torch.randn(r, 2, 6, 3, dtype=torch.float64)
    for kernel, given in {
        kernels.request_linear: (x, m), kernels.request_linear_from: (x, m, start, owner),
        kernels.request_linear_onto: (total, x, m), kernels.request_matmul: (pairs, many),
        kernels.request_attention: (pairs, keys, values, 0.7),
        kernels.merged_attention: (pairs, keys, values, pairs[:, :, :2], pairs[:, :, :2, :3], 0.7),
    }.items():  # fmt: skip
        assert_equal(kernel(*given, there), kernel(*given, offsets), kernel.__name__)
    for bounds in (offsets, torch.arange(r + 1) * (n // r)):  # as many candidates each
        counts, own = trained.Counts.of(bounds), pairs[: int(bounds[-1])]
        given = own, keys, values, 0.7
        assert_equal(trained.request_attention(*given, counts), kernels.request_attention(*given, bounds))
        given = own, keys, values, own[:, :, :1], own[:, :, 3:, :3], 0.7
        assert_equal(trained.merged_attention(*given, counts), kernels.merged_attention(*given, bounds))
    onto = kernels.request_linear_onto_(total.clone(), x, m, there)
    assert_equal(onto, kernels.request_linear_onto(total, x, m, offsets))
    assert {k for k, row in KERNELS.items() if row.padded} == {
        kernels.request_linear, kernels.request_linear_from, kernels.request_linear_onto, kernels.request_matmul,
        kernels.request_attention, kernels.merged_attention,
    }, "another one is tested here, too"  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_padded_calls_score_as_the_original(padding, name):
    case = CASES[name]
    model, hoisted = (copy.deepcopy(one).double() for one in case.make())
    for seed in range(8):
        offsets = drawn(seed)
        user, item = (_double(rows) for rows in (case.user(len(offsets) - 1), case.item(offsets[-1])))
        expected = model(*case.whole(repeated(user, offsets), item))
        assert_equal(case.call(hoisted, user, item, offsets), expected, f"offsets {offsets}")


@pytest.mark.parametrize("longest", [3, 3000], ids=["even", "one is very long"])
def test_operators_of_a_call_do_not_grow_with_its_requests(padding, longest):
    case = CASES["crossed"]
    hoisted = case.make()[1]
    counts = []
    for requests in (8, 32):
        offsets = [0, *(longest + 3 * i for i in range(requests))]
        user, item = case.user(requests), case.item(offsets[-1])
        state = hoisted.prepare({"user": user})
        made, owner = blocks.blocks_of(offsets, requests, len(item)).on(CPU)
        variant = hoisted.stages.variants[state.plan].candidate
        given = [state.tensors[a] if type(a) is int else item if type(a) is str else a
                 for a in state.weights.arguments[state.plan][1]]  # fmt: skip
        with Counted() as counted, torch.no_grad():
            variant.run(len(item), owner, made, *given)
        counts.append(counted.calls)
        assert counted.waits == 0
    assert counts[0] == counts[1] > 0


def test_far_more_padding_than_rows_is_cut_into_blocks(padding):
    (slots, place, of), owner = blocks.blocks_of([0, 1, 1, 1, 1, 1, 1, 1, 60], 8, 60).on(CPU)
    assert owner.tolist() == [0] + [7] * 59 and of.tolist() == [0] + [7] * 8 and slots.shape == (9, 8)
    assert slots[1].tolist() == [*range(1, 9)] and place[:3].tolist() == [0, 8, 9]
    made, _ = blocks.blocks_of([0, 0, 0], 2, 0).on(CPU)
    assert not isinstance(made, Tensor) and made[0].shape == (2, 0), "no rows at all"


def test_the_processor_keeps_its_loop():
    made, owner = blocks.blocks_of([0, 2, 3], 2, 3).on(CPU)
    assert isinstance(made, Tensor) and made.tolist() == [0, 2, 3] and owner.tolist() == [0, 0, 1]
