"""Operators that are made of others are taken apart where nothing is known of them as they are.

`hstack` is a `cat`, `cosine_similarity` a few products and a division: PyTorch itself computes them so, and what is
known of the parts holds. So are assignments to a part of a tensor, and views by strides.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram, exported_program

from rankhoist.capture.assignments import ASSIGNMENTS
from rankhoist.capture.operators import is_view
from rankhoist.capture.pooling import LARGEST, MEANS
from rankhoist.capture.recurrent import of_any_length
from rankhoist.capture.unread import unread

aten = torch.ops.aten
PREPARED, STAYS_WHOLE = "_collect_all_valid_cia_ops", "_is_preservable_cia_op"  # in torch: which ones, and whether one
DEPTH = 4  # of operators made of operators made of ...
SIMPLE = {  # these have a kernel of their own, and parts that take about as long
    aten.glu.default, aten.mse_loss.default, aten.smooth_l1_loss.default, aten.huber_loss.default, aten.tril.default,
    aten.triu.default, aten.diag_embed.default,
}  # fmt: skip
ASIDE = {aten._assert_scalar.default, aten._assert_tensor_metadata.default}  # of sizes and kinds: they stay as they are
SIZES = "aten::sym_"  # they are numbers, and PyTorch's parts of one are the same operator


WRITES = {  # of results that are what they write to was: they change neither its shape nor its dtype
    aten.index_put_.default: aten.index_put.default,
    aten.index_add_.default: aten.index_add.default,
    aten.index_copy_.default: aten.index_copy.default,
    aten.masked_scatter_.default: aten.masked_scatter.default,
    aten.masked_fill_.Scalar: aten.masked_fill.Scalar,
    aten.masked_fill_.Tensor: aten.masked_fill.Tensor,
    aten.scatter_.src: aten.scatter.src,
    aten.scatter_.value: aten.scatter.value,
    aten.scatter_add_.default: aten.scatter_add.default,
}


def is_functional(program: ExportedProgram) -> bool:
    """Whether torch, to make a program functional, would trace it for nothing: it leaves all of its operators as they
    are, for none writes to an operand, has no result but an effect, or is always taken apart.
    """
    stays_whole = getattr(exported_program, STAYS_WHOLE, None)  # of one made of others
    if stays_whole is None:
        return False
    calls = [n for n in program.graph.nodes if n.op == "call_function"]
    return all(_plain(n.target, stays_whole) if _is_operator(n) else _is_size(n) for n in calls)


def _plain(op: torch._ops.OpOverload, stays_whole: Callable[[Any], bool]) -> bool:
    composite = op._can_decompose() and op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    own, schema = op.namespace == "aten", op._schema
    returns = bool(schema.returns) or op in ASIDE
    return own and not schema.is_mutable and returns and (not composite or stays_whole(op))


def written_anew(graph: fx.Graph) -> bool:
    """Make writes into tensors of the model operators that return others; False where a view may show one."""
    places = {node: i for i, node in enumerate(graph.nodes)}
    for node in [n for n in graph.nodes if _is_operator(n) and n.target._schema.is_mutable]:
        written, anew = node.args[0], WRITES.get(node.target)
        calls = [n for n in (written, *written.users) if _is_operator(n)]
        if anew is None or not _is_operator(written) or any(is_view(n.target) for n in calls):
            return False
        written.replace_all_uses_with(node, lambda user, node=node: places[user] > places[node])
        node.target = anew
    return True


def _is_operator(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload)


def _is_size(node: fx.Node) -> bool:
    """Whether it computes a size, or takes one result of an operator."""
    sizes = torch.SymInt | torch.SymFloat | torch.SymBool | int | float
    return node.target is operator.getitem or isinstance(node.meta.get("val"), sizes)


@contextlib.contextmanager
def few_prepared(program: ExportedProgram) -> Iterator[None]:
    """While torch makes a program functional: it prepares all of its composite operators to stay whole, some 500 of
    them and each time, which takes longer than the program does. Those that the program has are enough.
    """
    graphs = (m.graph for m in program.graph_module.modules() if isinstance(m, fx.GraphModule))
    own = {node.target for graph in graphs for node in graph.nodes if _is_operator(node)}
    stays_whole = getattr(exported_program, STAYS_WHOLE, None)
    if stays_whole is None or not hasattr(exported_program, PREPARED):  # a torch that does it in another way
        yield
        return
    with mock.patch.object(exported_program, PREPARED, lambda: {op for op in own if stays_whole(op)}):
        yield


def taken_apart(program: ExportedProgram, known: Container[Any], training: bool = False) -> ExportedProgram:
    """The program with every operator in its parts that has any and is not `known`; assignments to a part of a tensor
    always are, and pooling that is another operator, as far as they can be; while training it has to be in gradients,
    too.
    """
    always = ALWAYS if training else {**ALWAYS, **LARGEST}
    own = {**OWN, **always}
    tried: dict[Any, Callable[..., Any]] = {}
    for _ in range(DEPTH):
        called = {n.target for n in program.graph.nodes if n.op == "call_function"}
        unknown = {op for op in called if op in always or op not in known}
        table = {op: parts for op in unknown if (parts := own.get(op) or _parts(op)) is not None}
        if table.keys() <= tried.keys():  # what is still there has no parts that fit in
            break
        program, tried = _taken(program, table) or program, table
    return program


def _taken(program: ExportedProgram, table: dict[Any, Callable[..., Any]]) -> ExportedProgram | None:
    """With the operators of `table` in their parts, as far as the parts fit in; None where none does."""
    if not table:
        return None
    try:
        with of_any_length(), unread():
            taken: ExportedProgram = program.run_decompositions(table)
        if _tokens(taken) == _tokens(program):  # parts that check the result belong together: such operators stay whole
            return taken
        if len(table) == 1:
            return None
    except Exception:  # what follows may rely on how the result lies in memory: such an operator stays whole
        if len(table) == 1:
            return None
    for op, parts in table.items():
        program = _taken(program, {op: parts}) or program
    return program


def _tokens(program: ExportedProgram) -> int:
    return len(program.graph_signature.input_tokens)


def _parts(op: Any) -> Callable[..., Any] | None:
    """What computes the operator by others, as torch has it."""
    composite = isinstance(op, torch._ops.OpOverload) and op._can_decompose() and not op.name().startswith(SIZES)
    if not composite and op not in SIMPLE:
        return None
    return _torchs().get(op)


@functools.cache
def _torchs() -> dict[Any, Callable[..., Any]]:
    return dict(torch.export.default_decompositions().materialize())


def _as_strided(x: Tensor, size: Sequence[Any], stride: Sequence[Any], storage_offset: int | None = None) -> Any:
    """Windows of every row by itself, where rows lie one behind the other and no window leaves its row."""
    length = math.prod(x.shape[1:])
    steps = list(zip(size[1:], stride[1:], strict=True))
    if (
        not x.dim()
        or not lies_in_order(x)
        or storage_offset
        or not all(isinstance(n, int) for n in (length, *size[1:]))
    ):
        return NotImplemented
    spans = [1 + sum((n - 1) * step for n, step in steps[i:]) for i in range(len(steps) + 1)]
    if size[0] != x.shape[0] or stride[0] != length or spans[0] > length or 0 in size[1:]:
        return NotImplemented
    made = x.reshape(x.shape[0], length).narrow(1, 0, spans[0])
    for (count, step), span in zip(steps, spans[1:], strict=True):
        wide = (*made.shape[:-1], count, span)
        if span == 1 and step:  # one position each
            made = made[..., ::step].unsqueeze(-1)
        else:
            made = made.unfold(-1, span, step) if step else made.unsqueeze(-2).expand(wide)
    return made.squeeze(-1)


def lies_in_order(x: Tensor) -> bool:
    """Whether its elements lie in memory as they are counted, from the beginning on."""
    return x.is_contiguous() and not x.storage_offset()


def _diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """Every so many elements of two axes that are one."""
    first, second = dim1 % x.dim(), dim2 % x.dim()
    high, wide = x.shape[first], x.shape[second]
    if not isinstance(high, int) or not isinstance(wide, int):
        return NotImplemented
    count = max(min(high + min(offset, 0), wide - max(offset, 0)), 0)
    others = [axis for axis in range(x.dim()) if axis not in (first, second)]
    flat = x.permute(*others, first, second).flatten(-2)
    begin = offset if offset >= 0 else -offset * wide
    return flat[..., begin :: wide + 1][..., :count] if count else flat[..., :0]


def _instance_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    use_input_stats: bool, momentum: float, eps: float, cudnn_enabled: bool = False,
) -> Any:  # fmt: skip
    """Every channel of every row is normed by itself; torch's own parts are a batch norm in training mode.

    By statistics that were kept it is a batch norm, which leaves the result in another order in memory.
    """
    size = math.prod(x.shape[2:])
    if running_mean is not None and running_var is not None and not use_input_stats:
        in_order = x.contiguous()
        return torch.batch_norm(in_order, weight, bias, running_mean, running_var, False, momentum, eps, cudnn_enabled)
    if running_mean is not None or not use_input_stats or not isinstance(size, int):
        return NotImplemented
    own = [-1, *[1] * (x.dim() - 2)]
    normed = torch.layer_norm(x.flatten(2), [size], eps=eps).view(x.shape)
    scaled = normed if weight is None else normed * weight.reshape(own)
    return scaled if bias is None else scaled + bias.reshape(own)


ALWAYS = {**ASSIGNMENTS, **MEANS}
OWN: dict[Any, Callable[..., Any]] = {
    aten.as_strided.default: _as_strided,
    aten.diagonal.default: _diagonal,
    aten.instance_norm.default: _instance_norm,
}
