"""Operands that are one number, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rankhoist.capture.one_number import written_out

aten = torch.ops.aten


class Reads(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        one, other = torch.full([1], 2), torch.full([], 1)
        return x == one, other > x, x > other, x[:, one], x[:, other], x[other]


class Others(nn.Module):
    """Numbers of another dtype, more than one, of floats, before the first place, and with other places."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        wide, last = torch.full([1], 2**32 + 2), torch.full([1], -1)
        return x.int() == wide, x == torch.full([3], 2), x > torch.full([], 1.5), x[:, last], x[wide - 2**32, last]


@pytest.mark.parametrize(("kind", "left"), [(Reads, 1), (Others, 5)])
def test_one_number_is_written_out(kind: type[nn.Module], left: int):
    x = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0]])
    program = torch.export.export(kind(), (x,)).run_decompositions({})
    written_out(program.graph)
    program.graph_module.recompile()
    reads = {aten.index.Tensor, aten.eq.Tensor, aten.gt.Tensor}
    assert sum(n.target in reads for n in program.graph.nodes) == left
    assert all(map(torch.equal, program.module()(x), kind()(x)))
