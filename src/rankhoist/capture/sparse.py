"""Sparse matrices, as the adjacency matrix of a graph, by their places and values, while a model is exported.

No file, exporter or law knows tensors with another layout. With elements v_e at (r_e, c_e), in the order of rows,

    (A X)_r = sum_{e: r_e = r} v_e X_{c_e}        which is a lookup of bags

So a buffer is two plain ones, which new versions of the weights bring, too.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rankhoist.errors import UnsupportedModelError

LARGEST = 2**28  # elements of a matrix that is made dense
LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
PRODUCTS = {"mm", "matmul", "spmm", "_sparse_mm", "mv"}
THE_SAME = {"coalesce", "contiguous", "detach", "clone", "to_sparse", "to_sparse_coo", "to_sparse_csr"}
OF_VALUES = {"to", "float", "double", "half", "bfloat16", "cuda", "cpu", "neg"}
SCALES = {"mul", "rmul", "div", "true_divide", "truediv"}
OPERATORS = ("matmul", "rmatmul", "mul", "rmul", "truediv", "add", "radd", "sub", "rsub", "neg")


def is_sparse(tensor: Any) -> bool:
    """Whether it holds what is not 0 alone."""
    return isinstance(tensor, Tensor) and tensor.layout in LAYOUTS


def parts_of(name: str, matrix: Tensor) -> dict[str, Tensor]:
    """Places `[2, elements]`, in order, and values `[elements]`, by the names that they have beside `name`."""
    made = (matrix if matrix.layout is torch.sparse_coo else matrix.to_sparse_coo()).detach().coalesce()
    parts = made.indices().clone(), made.values().clone()  # no views of it
    return dict(zip(_names(name), parts, strict=True))


def _names(name: str) -> tuple[str, str]:
    return f"{name}__indices", f"{name}__values"


@dataclass(frozen=True)
class Matrix:
    """In place of a sparse matrix: places `[2, elements]`, rows and columns, and values `[elements]`.

    `coalesced`: places are in order, and no two of them are the same.
    """

    places: Tensor
    elements: Tensor
    shape: torch.Size
    coalesced: bool = False

    layout, is_sparse = torch.sparse_coo, True

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return applied(function, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        if name in ("T", "mT"):
            return self.transposed()
        found = getattr(Tensor, name)
        return functools.partial(_method(name), self) if callable(found) else getattr(self.elements, name)

    def size(self, axis: int | None = None) -> Any:
        """As of a tensor."""
        return self.shape if axis is None else self.shape[axis]

    def dim(self) -> int:
        """As of a tensor."""
        return len(self.shape)

    def is_coalesced(self) -> bool:
        """As of a tensor."""
        return self.coalesced

    def indices(self) -> Tensor:
        """As of a tensor that is coalesced."""
        return self._merged().places

    def values(self) -> Tensor:
        """As of a tensor that is coalesced."""
        return self._merged().elements

    def _indices(self) -> Tensor:
        return self.places

    def _values(self) -> Tensor:
        return self.elements

    def _nnz(self) -> int:
        return self.elements.shape[0]

    def _merged(self) -> Matrix:
        if not self.coalesced:
            raise UnsupportedModelError("a sparse matrix that forward makes is coalesced there: make it a buffer")
        return self

    def transposed(self) -> Matrix:
        """Columns and rows."""
        return replace(self, places=self.places.flip(0), shape=self.shape[::-1])._by_rows()

    def _by_rows(self) -> Matrix:
        order = self.places[0].argsort(stable=True)
        return replace(self, places=self.places[:, order], elements=self.elements[order])

    def dense(self) -> Tensor:
        """All elements.

        Raises:
            UnsupportedModelError: there are too many.
        """
        if self.shape.numel() > LARGEST:
            raise UnsupportedModelError(
                f"the model needs all elements of a sparse matrix {list(self.shape)}: only its products with weights, "
                "transposes and factors are computed without"
            )
        return self.elements.new_zeros(self.shape).index_put(tuple(self.places), self.elements, accumulate=True)

    def times(self, dense: Tensor) -> Tensor:
        """`[n, m] @ [m, D] -> [n, D]`, or `@ [m] -> [n]`; `dense` has other axes than rows."""
        if dense.dim() < 2:
            return self.times(dense.unsqueeze(1)).squeeze(1)
        own, starts = self if self.coalesced else self._by_rows(), torch.arange(self.shape[0] + 1, device=dense.device)
        bounds = torch.searchsorted(own.places[0], starts)
        return F.embedding_bag(
            own.places[1], dense, bounds, mode="sum", per_sample_weights=own.elements, include_last_offset=True
        )


def _method(name: str) -> Callable[..., Any]:
    return lambda *args, **kwargs: applied(getattr(Tensor, name), args, kwargs)


for _name in OPERATORS:
    setattr(Matrix, f"__{_name}__", _method(f"__{_name}__"))


def applied(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A function of torch, of which an operand is a `Matrix`.

    Raises:
        UnsupportedModelError: it is one of sparse tensors that is not known.
    """
    name, first = function.__name__.removeprefix("__").removesuffix("__"), args[0]
    others = [a for a in args[1:] if isinstance(a, Tensor)]
    if isinstance(first, Matrix) and not any(isinstance(a, Matrix) for a in args[1:]):
        if name in PRODUCTS and _without_rows(others[0]):
            return first.times(others[0])
        if name in THE_SAME:
            return first
        if name in ("t", "transpose"):
            return first.transposed()
        if name in OF_VALUES or (name in SCALES and all(x.dim() == 0 for x in others)):
            return replace(first, elements=function(first.elements, *args[1:], **kwargs))
    return _of_dense(function, [a.dense() if isinstance(a, Matrix) else a for a in args], kwargs)


def _without_rows(dense: Tensor) -> bool:
    return dense.is_floating_point() and not any(isinstance(size, torch.SymInt) for size in dense.shape)


KNOWN: dict[str, Callable[..., Any]] = {
    "to_dense": lambda x, *_, **__: x,
    "_sparse_mm": torch.matmul,
    "_sparse_addmm": torch.addmm,
    "_sparse_sum": torch.sum,
}


def _of_dense(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    name = function.__name__
    if "sparse" in name and name not in KNOWN:
        raise UnsupportedModelError(f"the model calls {name} of a sparse matrix, of which no law is known")
    return KNOWN.get(name, function)(*args, **kwargs)


# -- of a model


@contextlib.contextmanager
def sparse_in_parts(model: object) -> Iterator[None]:
    """While a model is captured: what is sparse among its buffers and attributes, and what its forward makes."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    found = [(m, own) for m in modules if (own := {n: x for n, x in _held(m).items() if is_sparse(x)})]
    before = [(m, type(m), dict(vars(m))) for m, _ in found]
    for module, own in found:
        _take_apart(module, own)
    thread, plain = threading.get_ident(), torch.sparse_coo_tensor

    def made(*args: Any, **kwargs: Any) -> Any:
        return _made(*args, **kwargs) if threading.get_ident() == thread else plain(*args, **kwargs)

    try:
        with mock.patch.object(torch, "sparse_coo_tensor", made):
            yield
    finally:
        for module, kind, attributes in before:
            module.__class__ = kind
            vars(module).update(attributes)


def check_no_sparse(exported: torch.export.ExportedProgram) -> None:
    """That none is left.

    Raises:
        UnsupportedModelError: the module was exported before, or reaches one by another way than an attribute.
    """
    for name, tensor in {**exported.state_dict, **exported.constants}.items():
        if is_sparse(tensor):
            raise UnsupportedModelError(
                f"the exported model has a sparse tensor, {name!r}: hoist the module itself, and make it a buffer there"
            )


def _held(module: nn.Module) -> Mapping[str, Any]:
    return {**vars(module), **module._buffers}


def _take_apart(module: nn.Module, own: Mapping[str, Tensor]) -> None:
    kind, unsaved = type(module), module._non_persistent_buffers_set
    buffers = {name: x for name, x in module._buffers.items() if name not in own}
    for name, matrix in own.items():
        buffers |= parts_of(name, matrix)
    unsaved = unsaved | {part for name in own if name in unsaved or name in vars(module) for part in _names(name)}
    vars(module).update(_buffers=buffers, _non_persistent_buffers_set=unsaved)
    made = {name: property(functools.partial(_of_parts, name=name, shape=x.shape)) for name, x in own.items()}
    module.__class__ = type(kind.__name__, (kind,), {"__module__": kind.__module__, **made})


def _of_parts(module: nn.Module, name: str, shape: torch.Size) -> Matrix:
    places, elements = (module.get_buffer(part) for part in _names(name))
    return Matrix(places, elements, shape, coalesced=True)


def _made(indices: Any, values: Any, size: Any = None, **_: Any) -> Matrix:
    """In place of `torch.sparse_coo_tensor`."""
    if not (isinstance(indices, Tensor) and isinstance(values, Tensor) and size is not None and len(size) == 2):
        raise UnsupportedModelError("forward makes a sparse tensor that is no matrix of a given size")
    return Matrix(indices, values, torch.Size(size))
