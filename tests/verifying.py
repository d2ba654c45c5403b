"""What the tests of verification share: a ranker, rows for it, broken rules, and which checks failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rankhoist import HoistedModel, Workload
from rankhoist.capture import Program
from rankhoist.capture.operators import module_path
from rankhoist.compiler.algebra import grid
from rankhoist.compiler.algebra.call import Call, Law, Rule
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.plan import Plan
from rankhoist.compiler.plan.attempt import total_cost
from rankhoist.compiler.rules import all_rules
from rankhoist.compiler.targets import CPU
from rankhoist.verify import Certificate

LINEAR = torch.ops.aten.linear.default

USER = (torch.arange(6), torch.linspace(-1, 1, 12).view(6, 2))  # id, dense
ITEM = torch.linspace(-2, 2, 18).view(6, 3).sin()


class Ranker(nn.Module):
    """Two scores, one of them without bias, the best column of the item, and the user as it came."""

    def __init__(self) -> None:
        super().__init__()
        self.ids, self.hidden = nn.Embedding(6, 4), nn.Linear(9, 8)
        self.click, self.like = nn.Linear(8, 1), nn.Linear(8, 1, bias=False)

    def forward(self, user: Tensor, dense: Tensor, item: Tensor) -> dict[str, Any]:
        x = torch.relu(self.hidden(torch.cat([self.ids(user), dense, item], 1)))
        return {"click": self.click(x).squeeze(), "like": [self.like(x)], "best": item.argmax(1), "user": user}


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make().eval()


def failed(certificate: Certificate) -> list[str]:
    return [c.name for c in certificate.checks if not c.passed]


def broken(program: Program, rule: Callable[..., Any], module: str) -> HoistedModel:
    """`program` hoisted with `rule(right, call)` for the linear layers of one module."""

    def wrong(law: Law) -> Law:
        right = law.rule
        return replace(law, rule=lambda c: rule(right, c) if module_path(c._node) == module else right(c))

    laws = all_rules() | {LINEAR: tuple(map(wrong, all_rules()[LINEAR]))}
    interpreter = Interpreter(program, Level.LINEAR, Workload(), laws)
    nodes = interpreter.run()
    cost, level = total_cost(nodes, Workload(), {}, CPU), Level.LINEAR
    return HoistedModel(program, Plan(level, level, Workload(), cost, interpreter, nodes, frozenset(), CPU))


def off_by_a_millionth(right: Rule, call: Call) -> Value:
    value = right(call)
    return grid.total(call.builder, [value], value.dtype, [1 + 1e-6])
