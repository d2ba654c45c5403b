"""One row per operator: what it is to everything that is no law.

Work, prediction, writing over operands, spelling and files ask the row. An operator without one makes new elements, one
per pass over memory, and is called as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from rankhoist.capture import OPAQUE
from rankhoist.compiler.graph import fourier, fused, kernels, padded, products, trained
from rankhoist.compiler.graph.attention import attention_by_products
from rankhoist.compiler.graph.node import Op

aten = torch.ops.aten


class Timed(Enum):
    """How long an operator takes, as a profile of a machine tells it."""

    PASS = auto()  # memory is read and written once
    VIEW = auto()  # nothing is
    RESHAPE = auto()  # a view, or a copy after a transposition
    ROWS = auto()  # a request's row for each of its candidates
    GATHER = auto()  # rows of a table
    KEPT = auto()  # rows of a store of items
    PICK = auto()  # single elements
    FUNCTION = auto()  # dear arithmetic on every element
    SOFTMAX = auto()  # the same, and passes over every row
    NORM = auto()  # passes over every row
    REDUCE = auto()  # one over every row
    JOIN = auto()  # several tensors become one
    PRODUCT = auto()  # rows times one matrix of weights
    BATCHED = auto()  # a matrix per row
    OF_REQUEST = auto()  # rows times the matrix of their request
    BATCHED_WEIGHT = auto()  # several matrices, the same for all rows
    BATCHED_OF_REQUEST = auto()  # several matrices of their request
    ATTENTION = auto()
    ATTENTION_OF_REQUEST = auto()  # over keys and values of the request
    ATTENTION_OF_BOTH = auto()  # over these and a row's own
    CONVOLUTION = auto()
    EINSUM = auto()
    ORIGINAL = auto()  # a product as its author wrote it


@dataclass(frozen=True)
class Operator:
    """What is known of one operator; `overload` is the one that `over` and `spelled` speak of.

    Attributes:
        timed: what the prediction takes it for.
        work: its multiply-adds as captured, or None for none.
        serial: without vectors on a CPU, an element that it reads takes as long as so many exponentials, as measured.
        view: it returns its operand's memory, arranged anew.
        reshapes: it keeps the order of all elements.
        dense: its result is new and contiguous.
        fresh: its result is new, a part of wider rows.
        over: the same, written over its first operand; its result is new.
        commutes: over its second operand, too.
        forgets: its gradient does not read what it is written over.
        recalls: its gradient reads its result.
        spelled: the function of torch, or the name of the method, that reaches it soonest.
        padded: the same over blocks of rows, padded, for compilers and exporters.
        trained: the same with a lean gradient, given `trained.Counts`.
        checked: for a private operator: it looks at indices and sizes before it follows them, so a file may hold it.
    """

    timed: Timed = Timed.PASS
    work: Callable[[fx.Node, products.Shapes, int], int] | None = None
    serial: int = 0
    view: bool = False
    reshapes: bool = False
    dense: bool = False
    fresh: bool = False
    over: Op | None = None
    commutes: bool = False
    forgets: bool = False
    recalls: bool = False
    spelled: Callable[..., Any] | str | None = None
    padded: Op | None = None
    trained: Op | None = None
    checked: bool = False
    overload: str = "default"

    @property
    def new(self) -> bool:
        """Its result is memory of its own."""
        return self.dense or self.fresh or self.over is not None

    @property
    def adds_onto(self) -> bool:
        """It adds a product to its first operand, which may be written over where it is contiguous."""
        return self.dense and self.over is not None


def row(op: Op | str) -> Operator:
    """The row of an operator, a kernel or a leaf."""
    table = _table()
    return table.get(op) or table.get(name_of(op), PLAIN)


def name_of(op: Op | str) -> str:
    """Without namespace and overload: `aten.add.Tensor` is `add`."""
    return op if isinstance(op, str) else str(getattr(op, "__name__", "")).partition(".")[0]


def anew(op: Op) -> Op:
    """The operator that computes the same and writes over nothing."""
    return _anew().get(op, op)


PLAIN = Operator()
VIEW = Operator(Timed.VIEW, view=True)
FUNCTION = Operator(Timed.FUNCTION)
RECALLED = replace(FUNCTION, forgets=True, recalls=True)
PRODUCT = Operator(Timed.ORIGINAL, products.last_axis)
STEPS = Operator(Timed.ORIGINAL, products.recurrence)
CHECKED = Operator(checked=True)

ROWS: list[tuple[str, Operator]] = [
    # -- views
    ("permute", replace(VIEW, spelled=torch.permute)),
    ("reshape", Operator(Timed.RESHAPE, view=True, reshapes=True, spelled=torch.reshape)),
    ("unsqueeze", replace(VIEW, reshapes=True, spelled=torch.unsqueeze)),
    ("select", replace(VIEW, spelled=torch.select, overload="int")),
    ("expand", replace(VIEW, spelled="expand")),
    ("view flatten unflatten squeeze", replace(VIEW, reshapes=True)),
    ("_unsafe_view", replace(VIEW, reshapes=True, checked=True)),
    ("ravel", Operator(reshapes=True)),
    ("transpose t numpy_T diagonal slice split split_with_sizes unsafe_split chunk unbind narrow", VIEW),
    ("alias detach unfold view_as_real view_as_complex", VIEW),
    ("_conj", replace(VIEW, checked=True)),
    # -- elements by themselves
    ("relu", Operator(over=aten.relu_.default, forgets=True, recalls=True, spelled=torch.relu)),
    ("add", Operator(over=aten.add_.Tensor, commutes=True, forgets=True, spelled=torch.add, overload="Tensor")),
    ("mul", Operator(over=aten.mul_.Tensor, commutes=True, spelled=torch.mul, overload="Tensor")),
    ("sub", Operator(over=aten.sub_.Tensor, forgets=True, spelled=torch.sub, overload="Tensor")),
    ("div", Operator(over=aten.div_.Tensor, spelled=torch.div, overload="Tensor")),
    ("addcmul", Operator(over=aten.addcmul_.default, forgets=True, spelled=torch.addcmul)),
    ("maximum", Operator(spelled=torch.maximum)),
    ("sigmoid", replace(RECALLED, over=aten.sigmoid_.default, spelled=torch.sigmoid)),
    ("tanh", replace(RECALLED, over=aten.tanh_.default, spelled=torch.tanh)),
    ("exp", replace(RECALLED, over=aten.exp_.default, spelled=torch.exp)),
    ("gelu silu softplus log pow erf sqrt rsqrt sin cos elu selu mish hardswish", FUNCTION),
    # -- along axes
    ("sum", Operator(Timed.REDUCE, spelled=torch.sum, overload="dim_IntList")),
    ("mean", Operator(Timed.REDUCE, spelled=torch.mean, overload="dim")),
    ("amax", Operator(Timed.REDUCE, spelled=torch.amax)),
    ("amin max min prod any all", Operator(Timed.REDUCE)),
    ("argmax argmin", Operator(Timed.REDUCE, serial=1)),
    ("var std var_mean std_mean", Operator(Timed.REDUCE, serial=12)),
    ("cumsum cumprod cummax cummin logcumsumexp", Operator(serial=1)),
    ("topk", Operator(serial=12)),
    ("sort argsort kthvalue median mode", Operator(serial=60)),
    ("softmax", Operator(Timed.SOFTMAX, spelled=torch.softmax, overload="int")),
    ("_softmax _log_softmax", Operator(Timed.SOFTMAX, checked=True)),
    ("log_softmax logsumexp", Operator(Timed.SOFTMAX)),
    ("layer_norm", Operator(Timed.NORM, spelled=fused.layer_norm)),
    ("rms_norm", Operator(Timed.NORM, spelled=fused.rms_norm)),
    ("native_layer_norm group_norm", Operator(Timed.NORM)),
    ("batch_norm", Operator(trained=trained.batch_norm)),
    ("_native_batch_norm_legit", Operator(checked=True, trained=trained.batch_norm_of_batch)),
    ("_native_batch_norm_legit_functional", Operator(trained=trained.batch_norm_of_batch_and_running)),
    ("cat", Operator(Timed.JOIN, spelled=torch.cat)),
    ("stack", Operator(Timed.JOIN, spelled=torch.stack)),
    # -- lookups
    ("index_select", Operator(Timed.GATHER, spelled=torch.index_select)),
    ("embedding gather", Operator(Timed.GATHER)),
    ("embedding_bag", Operator(Timed.GATHER, spelled=torch.embedding_bag, overload="padding_idx")),
    ("_embedding_bag", Operator(Timed.GATHER, checked=True)),
    ("index", Operator(Timed.PICK)),
    # -- products
    ("linear", Operator(
        Timed.PRODUCT, products.last_axis, dense=True, spelled=F.linear, trained=trained.linear
    )),
    ("matmul", Operator(Timed.BATCHED, products.last_axis, spelled=torch.matmul)),
    ("bmm", Operator(Timed.BATCHED, products.last_axis, spelled=torch.bmm)),
    ("baddbmm", Operator(Timed.BATCHED, products.last_axis_of_second)),
    ("mm", replace(PRODUCT, spelled=torch.mm)),
    ("addmm", Operator(Timed.ORIGINAL, products.last_axis_of_second, spelled=torch.addmm)),
    ("mv dot vdot", PRODUCT),
    ("addmv", Operator(Timed.ORIGINAL, products.last_axis_of_second)),
    ("einsum", Operator(Timed.EINSUM, products.einsum)),
    ("linalg_vecdot", Operator(Timed.ORIGINAL, products.vecdot)),
    ("tensordot", Operator(Timed.ORIGINAL, products.tensordot)),
    ("bilinear", Operator(Timed.ORIGINAL, products.bilinear)),
    ("conv1d conv2d conv3d convolution", Operator(Timed.CONVOLUTION, products.convolution)),
    ("scaled_dot_product_attention", Operator(
        Timed.ATTENTION, products.attention, spelled=F.scaled_dot_product_attention
    )),
    ("cdist", PRODUCT),
    ("gru lstm rnn_tanh rnn_relu", STEPS),
    ("gru_cell rnn_tanh_cell rnn_relu_cell", Operator(Timed.ORIGINAL, products.cell)),
    ("lstm_cell", Operator(Timed.ORIGINAL, products.cell_of_two_states)),
    # -- matrices
    ("linalg_inv linalg_inv_ex inverse", Operator(Timed.ORIGINAL, products.inverse)),
    ("linalg_cholesky linalg_cholesky_ex cholesky", Operator(Timed.ORIGINAL, products.cholesky)),
    ("linalg_solve", Operator(Timed.ORIGINAL, products.solve)),
    ("_linalg_solve_ex", Operator(Timed.ORIGINAL, products.solve, checked=True)),
    ("linalg_solve_triangular", Operator(Timed.ORIGINAL, products.inverse)),
    ("cholesky_solve", Operator(Timed.ORIGINAL, products.solve_by_factor)),
    # -- Fourier transforms
    *[(n, Operator(spelled=fourier.of_any_rows(getattr(aten, n).default), checked=n[0] == "_")) for n in fourier.NAMES],
    # -- private ones that models hold, and nothing more is known of
    ("_adaptive_avg_pool2d _adaptive_avg_pool3d _cdist_forward _conj_physical _convolution", CHECKED),
    ("_embedding_bag_forward_only _euclidean_dist _fused_rms_norm _int_mm", CHECKED),
    ("_is_all_true _is_any_true _linalg_det _linalg_eigh _linalg_slogdet _linalg_svd _logcumsumexp", CHECKED),
    ("_masked_softmax _native_batch_norm_legit_no_training", CHECKED),
    ("_native_multi_head_attention _pdist_forward _prelu_kernel _safe_softmax", CHECKED),
    ("_scaled_dot_product_attention_math _scaled_dot_product_efficient_attention", CHECKED),
    ("_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu _to_copy", CHECKED),
    ("_transformer_encoder_layer_fwd _trilinear _unique2 _weight_norm _weight_norm_interface", CHECKED),
    ]  # fmt: skip

KERNELS: dict[Op, Operator] = {
    kernels.spread: Operator(Timed.ROWS, view=True, trained=trained.spread),
    kernels.repeat_rows: Operator(Timed.ROWS, trained=trained.repeat_rows),
    kernels.asserted: PLAIN,
    kernels.opaque: PLAIN,
    kernels.repeat_bags: Operator(trained=trained.repeat_bags),
    kernels.bounds: PLAIN,
    kernels.number: PLAIN,
    kernels.read_tables: Operator(Timed.GATHER),
    kernels.gathered: Operator(Timed.KEPT, fresh=True),
    kernels.places: PLAIN,
    kernels.request_rows: Operator(Timed.GATHER, trained=trained.request_rows),
    kernels.linear_from: Operator(Timed.PRODUCT, dense=True, trained=trained.linear_from),
    kernels.linear_onto: Operator(Timed.PRODUCT, dense=True, over=kernels.linear_onto_, forgets=True),
    kernels.linear_onto_: Operator(trained=trained.linear_onto_),
    kernels.scaled_from: Operator(over=kernels.scaled_from_),
    kernels.scaled_from_: PLAIN,
    kernels.softmax_of_few: Operator(Timed.FUNCTION, fresh=True, recalls=True),
    kernels.request_linear: Operator(
        Timed.OF_REQUEST, dense=True, padded=padded.linear, trained=trained.request_linear
    ),
    kernels.request_linear_from: Operator(
        Timed.OF_REQUEST, dense=True, padded=padded.linear_from, trained=trained.request_linear_from
    ),
    kernels.request_linear_onto: Operator(
        Timed.OF_REQUEST,
        dense=True,
        over=kernels.request_linear_onto_,
        forgets=True,
        padded=padded.linear_onto,
        trained=trained.request_linear_onto,
    ),
    kernels.request_linear_onto_: Operator(trained=trained.request_linear_onto_),
    kernels.batched_matmul: Operator(Timed.BATCHED_WEIGHT),
    kernels.request_matmul: Operator(Timed.BATCHED_OF_REQUEST, padded=padded.matmul, trained=trained.request_matmul),
    kernels.request_attention: Operator(
        Timed.ATTENTION_OF_REQUEST, padded=padded.attention, trained=trained.request_attention
    ),
    kernels.merged_attention: Operator(
        Timed.ATTENTION_OF_BOTH, padded=padded.merged_attention, trained=trained.merged_attention
    ),
    attention_by_products: Operator(Timed.ATTENTION),
    kernels.norm_by_counts: Operator(trained=trained.norm_by_counts),
    kernels.dropped: PLAIN,
}


@cache
def _table() -> dict[Any, Operator]:
    """Rows by operator, and by name without what holds for one overload alone."""
    table: dict[Any, Operator] = {**KERNELS, OPAQUE: Operator(Timed.ORIGINAL)}
    for name, row in _rows():
        table[name] = replace(row, dense=False, over=None, commutes=False, forgets=False, spelled=None)
        if row.new or row.spelled:
            table[getattr(getattr(aten, name), row.overload)] = row
        if row.over is not None:
            table[row.over] = Operator(spelled=getattr(torch, f"{name}_", f"{name}_"))
    return table


def _rows() -> Iterator[tuple[str, Operator]]:
    for names, row in ROWS:
        for name in names.split():
            if hasattr(aten, name):  # in this version of torch
                yield name, row


@cache
def _anew() -> dict[Op, Op]:
    return {row.over: op for op, row in _table().items() if row.over is not None and not isinstance(op, str)}
