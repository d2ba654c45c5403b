"""Every operator that has a rule does the multiply-adds that a reference counts, or is said to do none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import sympy
import torch
from torch import Tensor, fx, nn, randn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from rankhoist.capture.operators import operator_name
from rankhoist.compiler.graph.work import original_work
from rankhoist.compiler.rules import FAMILIES

aten = torch.ops.aten

# Families whose operators look up, move, map or add up elements, and cost what they write.
WITHOUT_PRODUCTS = {
    "bags", "chosen", "gathers", "lookup", "permuted", "reshape", "parts", "joining", "scans", "pointwise", "reduce",
    "norm", "training",
}  # fmt: skip
# Operators of other families that do no more. An outer product adds nothing up.
# Of decompositions nobody says how many steps they take.
ALSO_WITHOUT = set(
    """
outer addr softmax _softmax max_pool1d max_pool2d max_pool1d_with_indices max_pool2d_with_indices avg_pool1d
avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d unfold im2col col2im
pixel_shuffle pixel_unshuffle grid_sampler_2d grid_sampler_3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d opaque select slice
narrow flip roll cat concat concatenate constant_pad_nd pad
scatter scatter_add scatter_reduce index_add index_copy index_fill index_reduce index_put
linalg_pinv linalg_matrix_exp linalg_matrix_power matrix_power cholesky_inverse linalg_qr linalg_lu_factor
linalg_lu_factor_ex linalg_eigh _linalg_eigh linalg_eigvalsh linalg_svd _linalg_svd linalg_svdvals linalg_det
_linalg_det linalg_slogdet _linalg_slogdet
""".split()
)


def weights(layer: nn.Module) -> list[Tensor]:
    return [p.detach() for p in layer.parameters()]


GRU, LSTM, RNN = nn.GRU(3, 5, num_layers=2, bidirectional=True), nn.LSTM(3, 5, num_layers=2), nn.RNN(3, 5)
STEPS = randn(7, 6, 3)  # time, batch, input
DEFINITE = torch.eye(6).expand(2, 6, 6) + 0.1  # matrices that have all decompositions
PACKED = randn(9, 3)  # of sequences of several lengths
ONCE = (True, 1, 0.0, False, False, False)  # biases, layers, dropout, training, both ways, batch first

LEAVING = {"cholesky"}  # what newer versions of PyTorch cannot call any more; an old archive may hold it

# Operator, its arguments, and the multiply-adds of operators that PyTorch's counter does not know.
PRODUCTS: list[tuple[Any, Sequence[Any], int | None]] = [
    (aten.linear.default, (randn(2, 6, 3), randn(5, 3)), None),
    (aten.matmul.default, (randn(6, 2, 3), randn(3, 5)), None),
    (aten.matmul.default, (randn(3), randn(2, 3, 5)), None),
    (aten.mm.default, (randn(6, 3), randn(3, 5)), None),
    (aten.bmm.default, (randn(2, 6, 3), randn(2, 3, 5)), None),
    (aten.mv.default, (randn(6, 3), randn(3)), 6 * 3),
    (aten.dot.default, (randn(6), randn(6)), 6),
    (aten.vdot.default, (randn(6), randn(6)), 6),
    (aten.cdist.default, (randn(2, 6, 3), randn(2, 5, 3)), 2 * 6 * 5 * 3),
    (aten.addmm.default, (randn(5), randn(6, 3), randn(3, 5)), None),
    (aten.baddbmm.default, (randn(2, 6, 5), randn(2, 6, 3), randn(2, 3, 5)), None),
    (aten.einsum.default, ("b...d,...d->b...", [randn(6, 2, 3), randn(2, 3)]), None),
    (aten.einsum.default, ("nk,nkd->nd", [randn(6, 3), randn(6, 3, 4)]), None),
    (aten.linalg_vecdot.default, (randn(6, 1, 3), randn(4, 3)), 6 * 4 * 3),
    (aten.tensordot.default, (randn(6, 2, 3), randn(3, 2, 5), [1, 2], [1, 0]), None),
    (aten.bilinear.default, (randn(6, 3), randn(6, 4), randn(5, 3, 4)), 6 * 5 * 3 * 4),
    (aten.conv1d.default, (randn(6, 4, 7), randn(8, 2, 3), None, [1], [1], [1], 2), None),
    (aten.conv2d.default, (randn(6, 4, 7, 7), randn(8, 4, 3, 3), None, [2, 2]), None),
    (aten.conv3d.default, (randn(6, 4, 7, 5, 5), randn(8, 4, 3, 3, 1)), None),
    (aten.convolution.default, (randn(6, 4, 7), randn(8, 4, 3), None, [1], [0], [1], False, [0], 1), None),
    (aten.convolution.default, (randn(6, 4, 7), randn(4, 3, 3), None, [2], [0], [1], True, [0], 1), None),
    (aten.scaled_dot_product_attention.default, (randn(6, 2, 7, 3), randn(6, 2, 9, 3), randn(6, 2, 9, 5)), None),
    (aten.gru_cell.default, (randn(6, 3), randn(6, 5), randn(15, 3), randn(15, 5)), None),
    (aten.gru_cell.default, (randn(15, 3), randn(15, 5), randn(15, 3), randn(15, 5), randn(15), randn(15)), None),
    (aten.lstm_cell.default, (randn(20, 3), [randn(20, 5), randn(20, 5)], randn(20, 3), randn(20, 5)), None),
    (aten.rnn_tanh_cell.default, (randn(6, 3), randn(6, 5), randn(5, 3), randn(5, 5)), None),
    (aten.rnn_relu_cell.default, (randn(6, 3), randn(6, 5), randn(5, 3), randn(5, 5)), None),
    (aten.gru.input, (STEPS, randn(4, 6, 5), weights(GRU), True, 2, 0.0, False, True, False), None),
    (
        aten.gru.data,
        (randn(9, 3), torch.tensor([4, 3, 2]), randn(4, 4, 5), weights(GRU), True, 2, 0.0, False, True),
        None,
    ),
    (
        aten.lstm.input,
        (STEPS, [randn(2, 6, 5), randn(2, 6, 5)], weights(LSTM), True, 2, 0.0, False, False, False),
        7 * 6 * (20 * (3 + 5) + 20 * (5 + 5)),
    ),
    (aten.linalg_inv.default, (DEFINITE,), 2 * 6**3),
    (aten.linalg_inv_ex.default, (DEFINITE,), 2 * 6**3),
    (aten.inverse.default, (DEFINITE,), 2 * 6**3),
    (aten.linalg_cholesky.default, (DEFINITE,), 2 * 6**3 // 6),
    (aten.linalg_cholesky_ex.default, (DEFINITE,), 2 * 6**3 // 6),
    (aten.linalg_solve.default, (DEFINITE, randn(2, 6, 5)), 2 * 6**3 // 3 + 2 * 6 * 6 * 5),
    (aten._linalg_solve_ex.default, (DEFINITE, randn(2, 6)), 2 * 6**3 // 3 + 2 * 6 * 6),
    (aten.linalg_solve_triangular.default, (DEFINITE, randn(2, 6, 5)), 2 * 6 * 6 * 5),
    (aten.cholesky_solve.default, (randn(2, 6, 5), DEFINITE), 2 * 6 * 6 * 5),
    (aten.rnn_tanh.input, (STEPS, randn(1, 6, 5), weights(RNN), *ONCE), None),
    (aten.rnn_relu.input, (STEPS, randn(1, 6, 5), weights(RNN), *ONCE), None),
]

KEYWORDS = {aten.linalg_solve_triangular.default: {"upper": True}}  # that an operator has to be given


def called(operator: Any, arguments: Sequence[Any]) -> fx.Node:
    """A node of a graph that calls the operator, as capture finds it."""
    graph = fx.Graph()

    def given(value: Tensor) -> fx.Node:
        node = graph.placeholder("given")
        node.meta["val"] = value
        return node

    node = graph.call_function(operator, tuple(tree_map_only(Tensor, given, arguments)))
    node.meta["val"] = operator(*arguments, **KEYWORDS.get(operator, {}))
    return node


def test_every_operator_with_a_rule_has_multiply_adds_or_is_said_to_have_none():
    graph = fx.Graph()
    named = {
        family: {
            op if isinstance(op, str) else operator_name(graph.call_function(op))
            for law in laws
            for op in law.operators
        }
        for family, laws in FAMILIES.items()
    }
    assert {*named} >= WITHOUT_PRODUCTS
    rest = set().union(*(names for family, names in named.items() if family not in WITHOUT_PRODUCTS))
    counted = {operator_name(graph.call_function(op)) for op, _, _ in PRODUCTS} | LEAVING
    assert rest == counted | ALSO_WITHOUT and not counted & ALSO_WITHOUT


@pytest.mark.parametrize(
    ("operator", "arguments", "expected"), PRODUCTS, ids=[str(operator) for operator, *_ in PRODUCTS]
)
def test_multiply_adds_are_those_of_a_reference(operator: Any, arguments: Sequence[Any], expected: int | None):
    with FlopCounterMode(display=False) as counter:
        operator(*arguments, **KEYWORDS.get(operator, {}))
    known = counter.get_total_flops() // 2
    assert (known == 0) == (expected is not None)
    assert original_work(called(operator, arguments), sympy.Symbol("rows"), 1).multiply_adds == (expected or known)
