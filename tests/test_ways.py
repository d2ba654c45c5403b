"""Of several ways to compute, of which a request chooses one, that one is computed, and it is what it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Function, check_model
from torch import Tensor, nn

import rankhoist
from rankhoist.capture import Program, capture
from rankhoist.compiler.demand.ways import chosen
from rankhoist.compiler.graph.work import original_work
from rankhoist.compiler.rules import all_rules
from rankhoist.errors import VocabularyError

G = torch.Generator().manual_seed(5)
CONTEXT, CANDIDATE = (torch.randn(n, 6, generator=G, dtype=torch.float64) for n in (3, 9))
CONTEXT[:, 0] = torch.tensor([-2.0, 0.0, 2.0])  # three requests of three domains
WIDE, HIDDEN, DOMAINS = 12, 5, 3


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDE, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2, bias=False), nn.Sigmoid())


def normalised() -> nn.Module:
    norms = nn.BatchNorm1d(HIDDEN), nn.LayerNorm(HIDDEN), nn.PReLU(HIDDEN), nn.Dropout()
    return nn.Sequential(nn.Linear(WIDE, HIDDEN), *norms, nn.Linear(HIDDEN, 2), nn.LayerNorm(2, bias=False))


class Scaled(nn.Module):
    """Functions of several tensors: gates, and weights for each column or for all."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(WIDE, 2), nn.Linear(WIDE, 2)
        self.columns, self.all = nn.Parameter(torch.randn(1, 2)), nn.Parameter(torch.randn(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * self.gate(x).sigmoid() * self.columns + self.all * x[:, :2]


class Domains(nn.Module):
    """A tower for each domain, of which `keeps` keeps one."""

    def __init__(self, towers: list[nn.Module], keeps: Callable[[Domains, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.towers, self.keeps = nn.ModuleList(towers), keeps
        for tensor in [*self.parameters(), *self.buffers()]:
            if tensor.is_floating_point():
                tensor.data = tensor.data + torch.rand(tensor.shape, generator=G)
        self.double().eval()

    def forward(self, context: Tensor, candidate: Tensor) -> Any:
        return self.keeps(self, context[:, :1], torch.cat([context, candidate], 1))


def one_by_one(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    """Zeros for a domain that there is not."""
    out = torch.zeros(len(x), 2, dtype=x.dtype)
    for i, tower in enumerate(m.towers):
        out = torch.where(domain == 2 * i - 2, tower(x), out)
    return out


def otherwise(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    """One by one, of which the last is for all other domains; flags as wide as what they choose."""
    *others, out = (tower(x) for tower in m.towers)
    for i, way in enumerate(others):
        out = torch.where((domain[:, 0] == 2 * i).unsqueeze(1).expand_as(way), way, out)
    return out


def own_layer_before(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    """What ways read is another for each: it is chosen."""
    ways = [tower(x.roll(i, 1)) for i, tower in enumerate(m.towers)]
    return torch.where(domain < 0, ways[0], torch.where(domain > 0, ways[1], ways[2]))


def own_rows(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    """Each tower is given the rows of its domain."""
    out = torch.zeros(len(x), 2, dtype=x.dtype)
    for i, tower in enumerate(m.towers):
        mine = domain[:, 0] == 2 * i - 2
        out[mine] = tower(x[mine])
    return out


def kept_rows(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    """Of each tower's results those of its domain are kept; later ones stand for more than one."""
    out = m.towers[0](x)
    for i, tower in enumerate(m.towers[1:]):
        mine = domain[:, 0] > 2 * i - 2
        out[mine] = tower(x)[mine]
    return out


def of_one_column(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    first, second, third = (tower(x) for tower in m.towers)
    out = torch.where(domain[:, 0] == 0, second[:, 0], torch.where(domain[:, 0] < 0, first[:, 0], third[:, 0]))
    return out + x[:, 0]


def read(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    """Stacked, of which each row reads one."""
    return torch.stack([tower(x) for tower in m.towers], 1)[torch.arange(len(x)), domain[:, 0].long() // 2 + 1]


def gathered(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    place = (domain.long() // 2 + 1).unsqueeze(2)
    return torch.stack([tower(x) for tower in m.towers], 1).gather(1, place.expand(-1, -1, 2))[:, 0]


def gathered_columns(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    return torch.cat([tower(x)[:, 1:] for tower in m.towers], 1).gather(1, domain.long() // 2 + 1)


def rows_added(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    """To what is there, by all words for it."""
    out = torch.ones(len(x), 2, dtype=x.dtype)
    out[domain[:, 0] == -2] += m.towers[0](x[domain[:, 0] == -2])
    mine = domain[:, 0] == 0
    out = out.index_put((mine,), m.towers[1](x[mine]), accumulate=True)
    places = (domain[:, 0] == 2).nonzero().squeeze(1)
    return out.index_add(0, places, m.towers[2](x[places]))


def rows_scattered(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 2, dtype=x.dtype)
    for i, tower in enumerate(m.towers):
        mine = domain == 2 * i - 2
        out = out.masked_scatter(mine.expand(-1, 2) if i else mine, tower(x[mine.squeeze(1)]))
    return out


def weighed(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    """By 1 and 0; something else is added, too."""
    out = x[:, :1] * 2
    for i, tower in enumerate(m.towers):
        out = out + (domain.squeeze(1) == 2 * i - 2).to(x.dtype).unsqueeze(-1) * tower(x)
    return out + x[:, 1:3]


def filled(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    first, second, third = (tower(x) for tower in m.towers)
    shown = [first.masked_fill(domain != -2, 0), second.masked_fill(~(domain == 0), 0), third.where(domain == 2, 0)]
    return torch.stack(shown).sum(0)


def one_hot(domain: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(domain[:, 0].long() // 2 + 1, DOMAINS)


def by_one_hot(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    return (torch.stack([tower(x) for tower in m.towers], 1) * one_hot(domain).unsqueeze(-1)).sum(1)


def column_by_one_hot(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    return (one_hot(domain).to(x) * torch.cat([tower(x)[:, 1:] for tower in m.towers], 1)).sum(1, keepdim=True)


def times_one_hot(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    ways = torch.stack([tower(x) for tower in m.towers], 1)
    return (one_hot(domain).to(x).unsqueeze(1) @ ways).squeeze(1)


def contracted(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("bdh, bd -> bh", torch.stack([tower(x) for tower in m.towers], 1), one_hot(domain).to(x))


KEPT = {
    "one_by_one": one_by_one, "otherwise": otherwise, "own_layer_before": own_layer_before, "own_rows": own_rows,
    "kept_rows": kept_rows, "of_one_column": of_one_column,
    "read": read, "gathered": gathered, "gathered_columns": gathered_columns,
    "rows_added": rows_added, "rows_scattered": rows_scattered, "weighed": weighed, "filled": filled,
    "by_one_hot": by_one_hot, "column_by_one_hot": column_by_one_hot, "times_one_hot": times_one_hot,
    "contracted": contracted,
}  # fmt: skip
TOWERS: dict[str, Callable[[], nn.Module]] = {"linear": linear, "normalised": normalised, "scaled": Scaled}


def captured(model: nn.Module) -> Program:
    return capture(model, (CONTEXT[torch.arange(9) % 3], CANDIDATE), ["context"], all_rules())


def multiply_adds(program: Program) -> int:
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    return sum(original_work(n, program.rows, 1000, program.lengths).multiply_adds for n in nodes)


CASES = [
    *(("linear", kept) for kept in KEPT),
    *((tower, kept) for tower in ("normalised", "scaled") for kept in ("one_by_one", "kept_rows", "read")),
]


@pytest.mark.parametrize(("tower", "kept"), CASES)
def test_one_way_is_computed(tower: str, kept: str):
    model = Domains([TOWERS[tower]() for _ in range(DOMAINS)], KEPT[kept])
    program = captured(model)
    choice = DOMAINS * 2 if kept in ("times_one_hot", "contracted") else 0
    assert multiply_adds(chosen(program)) * DOMAINS + choice == multiply_adds(program)


@pytest.mark.parametrize(
    ("tower", "kept"),
    [
        *zip(TOWERS, KEPT, strict=False),
        ("scaled", "own_rows"),
        ("normalised", "kept_rows"),
        ("normalised", "read"),
        ("linear", "gathered"),
        ("linear", "of_one_column"),
        ("scaled", "rows_added"),
        *(("linear", kept) for kept in ("rows_scattered", "weighed", "filled", "column_by_one_hot", "contracted")),
    ],
)
def test_the_way_that_is_computed_is_the_requests(tower: str, kept: str):
    check_model(Domains([TOWERS[tower]() for _ in range(DOMAINS)], KEPT[kept]), CONTEXT, CANDIDATE)


def test_a_candidate_is_multiplied_by_the_weights_of_its_requests_domain():
    model = Domains(
        [nn.Linear(WIDE, 8) for _ in range(DOMAINS)], lambda m, domain, x: torch.relu(otherwise(m, domain, x))
    )
    models = check_model(model, CONTEXT, CANDIDATE)
    assert models["full"].plan.cost.multiply_adds == 1000 * 6 * 8 + 6 * 8


def test_the_report_counts_the_ways_that_are_left_out():
    model = Domains([linear() for _ in range(DOMAINS)], one_by_one)
    total = check_model(model, CONTEXT, CANDIDATE)["kept"].report().total()
    assert total.before.multiply_adds == 1000 * DOMAINS * (WIDE * HIDDEN + HIDDEN * 2)


def of_the_candidate(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    return otherwise(m, x[:, -1:].round(), x)


def of_every_column(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    first, second, _ = (tower(x) for tower in m.towers)
    return torch.where(torch.cat([domain, domain + 1], 1) > 0, first, second)


def read_by_others(m: Domains, domain: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    first, second, _ = (tower(x) for tower in m.towers)
    return torch.where(domain > 0, first, second), first + second


def one_alone(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    return torch.where(domain > 0, m.towers[0](x), torch.zeros(2, dtype=x.dtype).expand(len(x), -1))


def other_functions(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    return torch.where(domain > 0, m.towers[0](x).tanh(), m.towers[1](x).sin())


def no_products(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    return m.towers[0](torch.where(domain > 0, x.tanh(), x.roll(1, 1).tanh()))


def along_rows(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    return torch.where(domain > 0, m.towers[0](x).softmax(0), m.towers[1](x).softmax(0))


def rows_for_one(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    mine, out = domain[:, 0] > 0, torch.zeros(len(x), 2, dtype=x.dtype)
    out[mine] = m.towers[0](x[mine])
    return out


def rows_of_the_candidate(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    return own_rows(m, x[:, -1:].round(), x)


def rows_that_meet(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 2, dtype=x.dtype)
    for i, tower in enumerate(m.towers):
        mine = domain[:, 0] == 2 * i - 2
        out[mine] = tower(x[mine]).softmax(0)
    return out


def rows_of_another(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    """As many rows as are put back, but others."""
    out = torch.zeros(len(x), 2, dtype=x.dtype)
    for i, tower in enumerate(m.towers):
        mine = domain[:, 0] == 2 * i - 2
        out[mine] = tower(x.flip(0)[mine.flip(0)])
    return out


def rows_in_layers_of_their_own(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    """Ways are alike in their last layer alone; what is before would be computed of all rows for each."""
    out = torch.zeros(len(x), 2, dtype=x.dtype)
    for i, tower in enumerate(m.towers):
        mine = domain[:, 0] == 2 * i - 2
        out[mine] = tower((torch.tanh, torch.sin, torch.exp)[i](x[mine]))
    return out


def read_by_the_candidate(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    return read(m, x[:, -1:].clamp(-2, 2), x)


def read_in_another_order(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    ways = torch.stack([tower(x) for tower in m.towers], 1)
    return ways[torch.arange(len(x) - 1, -1, -1), domain[:, 0].long() // 2 + 1]


def each_column_its_own(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    place = torch.cat([domain.long() // 2 + 1, 1 - domain.long() // 2], 1).unsqueeze(1)
    return torch.stack([tower(x) for tower in m.towers], 1).gather(1, place)[:, 0]


def two_gathered(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    place = torch.cat([domain.long() // 2 + 1, 1 - domain.long() // 2], 1)
    return torch.cat([tower(x)[:, :1] for tower in m.towers], 1).gather(1, place)


def added_where_both_are_true(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 2, dtype=x.dtype)
    for i, tower in enumerate(m.towers):
        mine = domain[:, 0] >= 2 * i - 2
        out[mine] += tower(x[mine])
    return out


def weighed_by_two_values(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    first, second, _ = (tower(x) for tower in m.towers)
    return first * (domain == 0).to(x) + second * (domain.abs() == 2).to(x)


def weighed_twice(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    first, second, _ = (tower(x) for tower in m.towers)
    return first * (domain == 0).to(x) + second * (domain == 0).to(x)


def weighed_by_the_candidate(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    return weighed(m, x[:, -1:].round(), x)


def weighed_by_fractions(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    """Two of them may be one number in another dtype."""
    first, second, _ = (tower(x) for tower in m.towers)
    return first * (domain == 0.1).to(x) + second * (domain == 0.1 + 1e-12).to(x)


def weighed_otherwise(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    """Two of three are not 0."""
    return sum(tower(x) * (domain != 2 * i - 2).to(x) for i, tower in enumerate(m.towers))


def filled_with_ones(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    return sum(tower(x).masked_fill(domain != 2 * i - 2, 1) for i, tower in enumerate(m.towers))


def by_one_class(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    all_of_them = torch.nn.functional.one_hot(domain[:, 0].long() * 0, 1)
    return (torch.stack([tower(x) for tower in m.towers], 1) * all_of_them.unsqueeze(-1)).sum(1)


def columns_by_one_hot(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    """Along the columns, of which there are as many as domains."""
    ways = torch.stack([torch.cat([tower(x), x[:, :1]], 1) for tower in m.towers], 1)
    return (ways * one_hot(domain).unsqueeze(1)).sum(1)


def scattered_by_element(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    mine = torch.cat([domain > 0, domain < 9], 1)
    return x[:, :2].masked_scatter(mine, torch.cat([m.towers[0](x), m.towers[1](x)], 1))


def added_twice(m: Domains, domain: Tensor, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 2, dtype=x.dtype)
    for i, tower in enumerate(m.towers):
        places = (domain[:, 0] == 2 * i - 2).nonzero().squeeze(1)
        out = out.index_add(0, places, tower(x[places]), alpha=2)
    return out


NEAR_MISSES = {
    "read_by_the_candidate": read_by_the_candidate, "read_in_another_order": read_in_another_order,
    "each_column_its_own": each_column_its_own, "two_gathered": two_gathered,
    "rows_for_one": rows_for_one, "rows_of_the_candidate": rows_of_the_candidate, "rows_that_meet": rows_that_meet,
    "rows_of_another": rows_of_another, "rows_in_layers_of_their_own": rows_in_layers_of_their_own,
    "added_where_both_are_true": added_where_both_are_true, "added_twice": added_twice,
    "weighed_by_two_values": weighed_by_two_values, "weighed_twice": weighed_twice,
    "weighed_by_the_candidate": weighed_by_the_candidate, "weighed_by_fractions": weighed_by_fractions,
    "weighed_otherwise": weighed_otherwise,
    "filled_with_ones": filled_with_ones, "by_one_class": by_one_class, "columns_by_one_hot": columns_by_one_hot,
    "scattered_by_element": scattered_by_element,
    "of_the_candidate": of_the_candidate, "of_every_column": of_every_column, "read_by_others": read_by_others,
    "one_alone": one_alone, "other_functions": other_functions, "no_products": no_products, "along_rows": along_rows,
}  # fmt: skip


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_what_is_no_choice_of_a_request_among_ways_that_are_alike_stays(name: str):
    program = captured(Domains([linear() for _ in range(DOMAINS)], NEAR_MISSES[name]))
    assert chosen(program) is program


def test_ways_of_other_widths_stay():
    """Down to where they are alike: the last layer of two towers has as many columns."""
    towers = [nn.Sequential(nn.Linear(WIDE, n), nn.ReLU(), nn.Linear(n, 2)) for n in (4, 5, 6)]
    program = captured(Domains(towers, otherwise))
    assert chosen(program) is program


def test_weights_that_are_trained_are_not_chosen():
    model = Function(lambda c, k, w, v: torch.where(c[:, :1] > 0, k @ w, k @ v), w=torch.ones(6, 2), v=torch.ones(6, 2))
    program = capture(model.train(), (CONTEXT.float(), CANDIDATE[:3].float()), ["context"], all_rules(), training=True)
    assert chosen(program) is program


@pytest.mark.parametrize(
    ("kept", "place"), [("read", 3), ("read", -4), ("gathered", -1), ("gathered", 3), ("contracted", 3)]
)
def test_a_domain_that_there_is_not_is_an_error(kept: str, place: int):
    model = Domains([nn.Linear(WIDE, 2) for _ in range(DOMAINS)], KEPT[kept])
    hoisted = rankhoist.hoist(model, (CONTEXT[torch.arange(9) % 3], CANDIDATE), context=["context"], level="full")
    with pytest.raises(VocabularyError, match=f"computes id {place} from input 'context'"):
        hoisted(torch.full((1, 6), 2.0 * place - 2, dtype=torch.float64), CANDIDATE)


def test_the_last_domains_are_counted_from_the_end():
    model = Domains([nn.Linear(WIDE, 2) for _ in range(DOMAINS)], read)
    check_model(model, CONTEXT - 6, CANDIDATE)
