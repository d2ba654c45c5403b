"""What PyTorch's exporter to ONNX drops or lacks, and stages have; and what ONNX Runtime lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, assert_equal
from torch import Tensor

from rankhoist import hoist
from rankhoist.errors import BackendError
from rankhoist.runtime import load_onnx

pytest.importorskip("onnxruntime")
STEPS = torch.tensor([0.0, 0.3, 2.0, 3.0])


def exported(call: Callable[[Tensor, Tensor], Any], one: Tensor, items: Tensor, folder: Path) -> tuple[Any, Any]:
    """Scores of an export, and those of the model."""
    model, rows = Function(call).eval(), one.expand(len(items), -1)
    hoist(model, (rows, items), context=["context"]).export_onnx(folder)
    return load_onnx(folder)(one, items), model(rows, items)


def test_places_among_sorted_numbers(tmp_path):
    def searched(c: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        x, ordered = k + c[:, :1], c.sort(1).values
        return (
            torch.searchsorted(STEPS, x),
            torch.searchsorted(STEPS, x, right=True, out_int32=True),
            torch.searchsorted(STEPS, 0.3) + (x > 1).long(),
            torch.searchsorted(ordered, x),
            torch.searchsorted(ordered, x, side="right", out_int32=True),
            torch.searchsorted(c.clone(), x, sorter=c.argsort(1)),
        )

    one, nan, inf = torch.tensor([[0.0, 2.5, 2.0]]), float("nan"), float("inf")
    items = torch.tensor([[0.0, 2.0, 2.5], [nan, -1.0, 3.0], [inf, 0.3, 0.7], [-inf, 0.1, 9.0]])
    assert_equal(*exported(searched, one, items, tmp_path))


def test_numbers_of_any_size_stay(tmp_path):
    """A norm of nothing is divided by 1e-9, not by 0; and nothing is the logarithm of what became 0."""
    items = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])

    def scored(c: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        normed, large = c + k / (k.norm(dim=1, keepdim=True) + 1e-9), (c + k) * torch.tensor([-200.0, 1.0, 300.0])
        return normed, F.logsigmoid(large), large.logcumsumexp(1), large.logcumsumexp(-1).flip(1)

    scores, own = exported(scored, items[1:2], items, tmp_path)
    assert all(x.isfinite().all() for x in [*scores, *own])
    assert_equal(scores, own)


def test_orders_and_products_along_an_axis(tmp_path):
    items = torch.tensor([[2.0, 5.0, 5.0, 1.0], [0.5, 3.0, 0.0, 4.0], [-1.0, -2.0, -2.0, -3.0]])

    def scored(c: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        x = torch.stack([k * c, k - c], 1)
        apart = x + torch.tensor([0.0, 0.1, 0.4, 0.2])  # which of equal ones is third, nobody says
        return (
            *x.cummax(-1), *x.cummax(1), *x.cummin(-1), *x.long().cummin(2), *x.long().cummax(2), x.cumprod(-1),
            x.cumprod(1, dtype=torch.float64), *apart.kthvalue(2), *apart.kthvalue(3, -1, keepdim=True),
            *apart.median(-1), *apart.median(1, keepdim=True),
        )  # fmt: skip

    assert_equal(*exported(scored, torch.tensor([[3.0, 1.0, 0.5, 2.0]]), items, tmp_path))


def test_rows_are_multiplied_once(tmp_path):
    """`addcmul` is a product and a sum, without a product by 1 over all rows."""
    import onnx

    def crossed(c: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        x = (k + c).sin()
        return torch.addcmul(x, k, k.exp()), torch.addcmul(x, k.exp(), k, value=0.5)

    assert_equal(*exported(crossed, torch.ones(1, 2), torch.randn(3, 2), tmp_path))
    nodes = onnx.load(str(tmp_path / "candidate.onnx")).graph.node
    assert sum(node.op_type == "Mul" for node in nodes) == 3


def test_attention_with_more_and_fewer_axes_than_four(tmp_path):
    def attended(c: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        q, m, history = k.view(-1, 2, 3), k.view(-1, 2, 3).abs() < 9, c.view(-1, 4, 3)
        deep = [t[:, None, None].expand(-1, 2, 3, -1, -1) for t in (q, history)]
        mask = (q[:, :, :1] < history[:, None, :, 0].mT[:, :1]).expand(-1, 2, 4) | m[..., :1]
        return (
            F.scaled_dot_product_attention(q, history, history, mask),
            F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=0.3),
            F.scaled_dot_product_attention(deep[0] * deep[0].cumsum(2), deep[1], deep[1], mask[:, None, None]),
        )

    assert_equal(*exported(attended, torch.randn(1, 12), torch.randn(5, 6), tmp_path))


def test_what_the_runtime_lacks_is_an_error_of_ours(tmp_path):
    with pytest.raises(BackendError, match=r"does not run candidate.onnx on CPUExecutionProvider: .*model.float\(\)"):
        exported(lambda c, k: c * k, torch.ones(1, 2).bfloat16(), torch.ones(3, 2).bfloat16(), tmp_path)
