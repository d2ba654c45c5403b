"""What a model's Python asks of its weights: their values answer, and are pinned; refused where others have a say."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equal
from torch import Tensor, nn

import rankhoist
from rankhoist.errors import ExportError, WeightsError

G = torch.Generator().manual_seed(4)
CONTEXT, CANDIDATE = (torch.randn(n, 6, generator=G, dtype=torch.float64) for n in (3, 7))
EXAMPLE = CONTEXT[torch.arange(7) % 3], CANDIDATE
OFFSETS = [0, 3, 3, 7]


class Searched(nn.Module):
    """Layers of which weights say what becomes of them, `how` it is asked."""

    def __init__(self, how: Callable[[Searched, Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how
        self.first, self.last = nn.Linear(12, 8), nn.Linear(8, 1)
        self.ways = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.gates, self.scale = nn.Parameter(torch.tensor([0.1, 0.7, -0.3, 0.4])), nn.Parameter(torch.tensor(0.7))
        self.warm, self.depth = nn.Buffer(torch.tensor(True)), nn.Buffer(torch.tensor(3))
        self.plain = torch.tensor([2, 1])

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        return self.last(self.how(self, self.first(torch.cat([context, candidate], 1)))).squeeze(1)


def flag(m: Searched, x: Tensor) -> Tensor:
    return x.relu() if m.warm else x


def both(m: Searched, x: Tensor) -> Tensor:
    return x.relu() if m.depth > 2 and m.scale.abs() < 1 else x


def number(m: Searched, x: Tensor) -> Tensor:
    return F.softplus(x, beta=float(m.scale.detach().exp()))


def largest(m: Searched, x: Tensor) -> Tensor:
    return m.ways[m.gates.argmax().item()](x).relu()


def two_largest(m: Searched, x: Tensor) -> Tensor:
    return sum(m.ways[i](x).relu() for i in m.gates.topk(2).indices.tolist())


def compared(m: Searched, x: Tensor) -> Tensor:
    return x.relu() / math.exp(m.scale.item()) if m.scale.item() > 0.5 else x


def repeated(m: Searched, x: Tensor) -> Tensor:
    for _ in range(int(m.depth)):
        x = x + x.tanh()
    return x


def columns(m: Searched, x: Tensor) -> Tensor:
    return F.pad(x[:, : int(m.depth)], (0, 8 - int(m.depth)))


def attribute(m: Searched, x: Tensor) -> Tensor:
    return x.relu() if m.plain[0] > m.plain[1] else x


def there(m: Searched, x: Tensor) -> Tensor:
    return x.relu() if 1 in m.plain and m.depth in m.depth.repeat(2) else x


def array(m: Searched, x: Tensor) -> Tensor:
    return F.pad(x[:, m.depth[None].numpy()] * float(m.scale.detach().numpy()), (0, 7))


def one_hot(m: Searched, x: Tensor) -> Tensor:
    return F.pad(x[:, :2] @ F.one_hot(m.plain).double(), (0, 7 - torch.bincount(input=m.plain).count_nonzero().item()))


def groups(m: Searched, x: Tensor) -> Tensor:
    groups = m.depth.repeat(8).cumsum(0).div(7, rounding_mode="floor")
    sums = [x[:, groups == group].prod(1) for group in groups.unique()]
    return F.pad(torch.stack(sums, 1), (0, 8 - len(sums)))


def places(m: Searched, x: Tensor) -> Tensor:
    apart = torch.nonzero(torch.arange(8) % m.depth)[:, 0]
    return F.pad(x[:, apart], (0, 8 - len(apart))) * x[:, (m.plain > 1).nonzero(as_tuple=True)[0]]


ASKED = {
    flag: {"warm"}, both: {"depth", "scale"}, number: {"scale"}, largest: {"gates"}, two_largest: {"gates"},
    compared: {"scale"}, repeated: {"depth"}, columns: {"depth"}, attribute: set(), there: {"depth"},
    array: {"depth", "scale"}, one_hot: set(), groups: {"depth"}, places: {"depth"},
}  # fmt: skip


def model(how: Callable[[Searched, Tensor], Tensor]) -> Searched:
    torch.manual_seed(3)
    return Searched(how).double().eval()


@pytest.mark.parametrize("how", ASKED, ids=lambda how: how.__name__)
def test_values_of_weights_decide_and_are_pinned(how, tmp_path: Path):
    original = model(how)
    hoisted = rankhoist.hoist(original, EXAMPLE, context=["context"])
    want = original(CONTEXT.repeat_interleave(torch.tensor([3, 0, 4]), 0), CANDIDATE)
    hoisted.save(tmp_path / "model.rankhoist")
    for found in (hoisted, rankhoist.load(tmp_path / "model.rankhoist")):
        assert_equal(found(CONTEXT, CANDIDATE, request_offsets=OFFSETS), want)
        for name in ("warm", "depth", "scale", "gates"):
            state = original.state_dict()
            state[name] = state[name].logical_not() if name == "warm" else state[name] * 3
            if name in ASKED[how]:
                with pytest.raises(WeightsError, match=f"'{name}' decides what is computed"):
                    found.update_weights(state)
            else:
                found.update_weights(state)
    state = original.state_dict() | {"first.weight": original.first.weight.detach() * 2}
    hoisted.update_weights(state)
    original.load_state_dict(state)
    want = original(CONTEXT.repeat_interleave(torch.tensor([3, 0, 4]), 0), CANDIDATE)
    assert_equal(hoisted(CONTEXT, CANDIDATE, request_offsets=OFFSETS), want)


def counted(m: Searched, x: Tensor) -> Tensor:
    m.depth.add_(1)
    return x.relu() if m.depth > 3 else x


def of_rows(m: Searched, x: Tensor) -> Tensor:
    return x.relu() if x.sum() > 0 else x


def of_their_number(m: Searched, x: Tensor) -> Tensor:
    return x.relu() if torch.ones(x.shape[0]).sum() > 3 else x


def drawn(m: Searched, x: Tensor) -> Tensor:
    return x.relu() if torch.bernoulli(m.scale) > 0 else x


def written_over(m: Searched, x: Tensor) -> Tensor:
    depth = m.depth.clone()
    depth.add_(x.sum().long())
    return x.relu() if depth > 2 else x


def seen_before_it_was_written_over(m: Searched, x: Tensor) -> Tensor:
    gates = m.gates.clone()
    first = gates[0]
    gates[0] = x.sum()
    return x.relu() if first > 0 else x


def there_of_rows(m: Searched, x: Tensor) -> Tensor:
    return x.relu() if x.sum().long() in m.plain else x


@pytest.mark.parametrize(
    "how",
    [there_of_rows, of_rows, of_their_number, drawn, written_over, seen_before_it_was_written_over],
    ids=lambda how: how.__name__,
)
def test_where_others_have_a_say_it_is_refused(how):
    with pytest.raises(ExportError, match="depends on the values of tensors"):
        rankhoist.hoist(model(how), EXAMPLE, context=["context"])


def test_a_buffer_is_held_while_training_and_a_parameter_may_not_be_asked():
    original = model(flag).train()
    grouped = rankhoist.grouped(original, EXAMPLE, context=["context"])
    want = original(CONTEXT.repeat_interleave(torch.tensor([3, 0, 4]), 0), CANDIDATE)
    assert_equal(grouped(CONTEXT, CANDIDATE, request_offsets=OFFSETS), want)
    original.warm.fill_(False)
    with pytest.raises(WeightsError, match="'warm' decides what is computed"):
        grouped(CONTEXT, CANDIDATE, request_offsets=OFFSETS)
    for how in (largest, counted):
        with pytest.raises(ExportError, match="depends on the values of tensors"):
            rankhoist.grouped(model(how).train(), EXAMPLE, context=["context"])
