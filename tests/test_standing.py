"""Calls over the same tensors again and again: recorded over these, and equal whatever is written to them."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import assert_equal, repeated
from on_device import Device, OnDevice, device
from test_backends import CASES, Case, Crossed
from torch import nn

from rankhoist import HoistedModel, Split, hoist
from rankhoist.runtime.standing import KEPT, TIMES, call_of

SEVERAL = [0, 4, 4, 9]


@pytest.fixture
def gpu() -> Iterator[Device]:
    with device() as made:
        yield made


def graphs(name: str) -> tuple[Case, nn.Module, HoistedModel]:
    """A case whose calls are recorded, in float64; without a GPU by a stand-in."""
    case = CASES[name]
    model, hoisted = (copy.deepcopy(one).double() for one in case.make())
    hoisted.to_backend("graphs")
    assert hoisted._replays("") is not None
    return case, model, hoisted


def rows(draw: Any, count: int) -> torch.Tensor:
    made = draw(count)
    return made.double() if made.is_floating_point() else made


def check(case: Case, model: nn.Module, hoisted: HoistedModel, given: Any, offsets: list[int]) -> None:
    """A call of tensors to which other rows are written first."""
    user, item = given
    user.copy_(rows(case.user, len(user)))
    item.copy_(rows(case.item, len(item)))
    expected = model(*case.whole(repeated(user, offsets), item))
    assert_equal(case.call(hoisted, user, item, offsets), expected)


@pytest.mark.parametrize("offsets", [[0, 9], SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "packed"])
def test_what_is_written_to_them_is_scored(name: str, offsets: list[int]):
    """From the third call on by a recording that reads the tensors themselves."""
    case, model, hoisted = graphs(name)
    given = rows(case.user, len(offsets) - 1), rows(case.item, offsets[-1])
    for times in range(1, 8):
        check(case, model, hoisted, given, offsets)
        assert len(hoisted._standing) == (times >= TIMES)
    (own,) = hoisted._standing
    read = [t for side in own.entry.buffers.values() for t in side.values()]
    assert sum(any(t is g for g in given) for t in read) == 2
    assert own.entry.key.bucket[:2] == (len(offsets) - 1, offsets[-1]), "no row is padded"


def test_parts_of_a_packed_input():
    case, model, hoisted = graphs("packed")
    packed = rows(case.user, 1), rows(case.item, 6)
    given = Split(*packed)
    for _ in range(6):
        for own, draw in zip(packed, (case.user, case.item), strict=True):
            own.copy_(rows(draw, len(own)))
        assert_equal(hoisted(given), model(*case.whole(packed[0].expand(6, -1), packed[1])))
    assert len(hoisted._standing) == 1


class Features(nn.Module):
    """One dict of features."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(7, 5)

    def forward(self, x: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.relu(self.hidden(torch.cat([x["user"], x["item"]], 1)))


def test_a_dict_of_features():
    """Its tensors count, not the dict: one that holds them under other names is another call."""
    model = Features().eval().double()
    x = {"user": torch.randn(5, 3).double(), "item": torch.randn(5, 4).double()}
    hoisted = hoist(model, (x,), context=["user"]).to_backend("graphs").warm_up([6])
    given = {"user": torch.randn(1, 3).double(), "item": torch.randn(6, 4).double()}
    for _ in range(5):
        given["item"].normal_()
        assert_equal(hoisted({**given}), model({**given, "user": given["user"].expand(6, 3)}))
    assert len(hoisted._standing) == 1
    other = {"user": given["user"], "item": torch.randn(6, 4).double()}
    assert_equal(hoisted(other), model({**other, "user": given["user"].expand(6, 3)}))


# -- what is another call


def stood(name: str = "crossed", offsets: list[int] = SEVERAL) -> tuple[Any, ...]:
    case, model, hoisted = graphs(name)
    given = rows(case.user, len(offsets) - 1), rows(case.item, offsets[-1])
    for _ in range(TIMES):
        check(case, model, hoisted, given, offsets)
    assert len(hoisted._standing) == 1
    return case, model, hoisted, given


def test_other_boundaries_are_another_call():
    """Also if they are the same list, in which others were written."""
    case, model, hoisted, given = stood()
    bounds = [*SEVERAL]
    for own in ([0, 2, 4, 9], SEVERAL, bounds):
        check(case, model, hoisted, given, own)
    bounds[1:3] = 1, 8
    check(case, model, hoisted, given, bounds)


def test_a_tensor_with_other_memory_is_another():
    """Of the same object: a graph reads where it lay, and how."""
    case, model, hoisted = graphs("pairs")
    user, item = rows(case.user, 1), rows(case.item, 4)
    for _ in range(TIMES):
        check(case, model, hoisted, (user, item), [0, 4])
    (own,) = hoisted._standing
    memory = item.clone()
    for change in (
        lambda: user.set_(user.clone()),
        lambda: item.resize_(3, *item.shape[1:]),
        lambda: item.set_(memory.transpose(1, 2).contiguous().transpose(1, 2)),
    ):
        kept = [x.clone() for x in (user, item)]
        change()
        assert not own.is_for(call_of((user, item), None))
        check(case, model, hoisted, (user, item), [0, len(item)])
        for x, before in zip((user, item), kept, strict=True):
            x.set_(before)


def test_new_weights_are_recorded_anew():
    case, _, hoisted, given = stood()
    torch.manual_seed(1)
    other = Crossed().eval().double()
    hoisted.update_weights(other.state_dict())
    assert hoisted._standing == ()
    for _ in range(TIMES + 1):
        check(case, other, hoisted, given, SEVERAL)


def test_ids_of_another_width_are_copied():
    """What stages read is then no tensor of the caller's."""
    case, model, hoisted = graphs("crossed")
    user, item = rows(case.user, 1).int(), rows(case.item, 5).int()
    for _ in range(TIMES + 2):
        item.random_(40)
        assert_equal(hoisted(user, item), model(user.expand(5), item))
    assert hoisted._standing == ()


def test_an_id_outside_of_its_table_is_told_and_does_no_harm():
    case, model, hoisted, given = stood()
    given[1][3] = 10**6
    with pytest.raises(IndexError, match="10"):
        hoisted(*given, request_offsets=SEVERAL)
    check(case, model, hoisted, given, SEVERAL)


def test_few_are_kept_and_other_tensors_not_at_all():
    case, model, hoisted = graphs("crossed")
    for _ in range(KEPT + 2):
        given = rows(case.user, 1), rows(case.item, 8)
        for _ in range(TIMES):
            check(case, model, hoisted, given, [0, 8])
    assert len(hoisted._standing) == KEPT
    assert any(x is given[1] for x in hoisted._standing[0].given), "the latest comes first"
    once = rows(case.item, 7)
    hoisted(given[0], once)
    gone = weakref.ref(once)
    del once
    gc.collect()
    assert gone() is None


def test_two_sets_of_tensors_in_turn():
    case, model, hoisted = graphs("crossed")
    sets = [(rows(case.user, 1), rows(case.item, 8)) for _ in range(2)]
    for _ in range(TIMES):
        for given in sets:
            check(case, model, hoisted, given, [0, 8])
    assert len(hoisted._standing) == 2


# -- on a GPU that is not there


def test_there_nothing_is_copied(gpu: Device):
    """A replay and a copy of the scores, of several requests, too."""
    case = CASES["crossed"]
    model, hoisted = (copy.deepcopy(one).double() for one in case.make())
    hoisted.to("cuda").warm_up([9], [3])
    user, item = (rows(draw, n).to("cuda") for draw, n in ((case.user, 3), (case.item, 9)))
    calls = []
    for _ in range(TIMES + 2):
        new = rows(case.item, 9)
        item.copy_(new.pin_memory(), non_blocking=True)
        gpu.forget()
        made = hoisted(user, item, request_offsets=SEVERAL)
        calls.append(gpu.calls)
        waited = gpu.waits.copy(), gpu.copies.copy()
        expected = model(*case.whole(repeated(user.cpu(), SEVERAL), new))
        assert isinstance(made["click"], OnDevice) and len(hoisted._standing) == (len(calls) >= TIMES)
        assert_equal({k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in made.items()}, expected)
    assert waited == ([], [])
    assert calls[0] - calls[-1] >= 3, "user, item and boundaries are copied no more"
