"""Tensors as a safetensors file: each stored once, and checked against a table of what must be in it.

    {name: {"dtype": ..., "shape": [...], "order": [...], "stored": name}}

`stored` is the name that a tensor is stored under: tied weights are one tensor under several names, and are one again
when they are read. `order` lists its axes as they lie in memory, slowest first: a transposed weight stays transposed,
for products with it round differently otherwise. Complex numbers are stored as pairs of real ones, along one axis more.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import IO, Any

import safetensors.torch
import torch
from torch import Tensor

from rankhoist.errors import ArtifactError
from rankhoist.runtime.plain import as_dtype, counts, dtype_name, entry, shown

Table = dict[str, dict[str, Any]]
Piece = bytes | memoryview

PIECE = 2**20  # bytes that are read at a time
DTYPES = {  # by their names in a safetensors file, whose numbers are little-endian
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def to_pieces(tensors: Mapping[str, Tensor]) -> tuple[list[Piece], Table]:
    """The file, as its header and the memory of the tensors where they lie, and its table."""
    table: Table = {}
    firsts: dict[Any, str] = {}
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided:
            raise ArtifactError(f"{name!r} is a {tensor.layout} tensor, which a file cannot hold")
        same = firsts.setdefault((tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device), name)
        order = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride()[axis])
        line = {"dtype": dtype_name(tensor.dtype), "shape": list(tensor.shape), "order": order, "stored": same}
        table[name] = line
        if same == name:
            stored[name] = _real(tensor.detach().cpu().permute(order)).contiguous()
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, first = dict[str, Any](), 0
    for name, tensor in sorted(stored.items(), key=lambda item: (-item[1].element_size(), item[0])):  # each lies even
        if tensor.dtype not in names:
            raise ArtifactError(f"{name!r} is of {tensor.dtype}, which a file cannot hold")
        last = first + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [first, last]}
        first = last
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)
    return [len(told).to_bytes(8, "little") + told, *(_memory(stored[name]) for name in header)], table


def _memory(tensor: Tensor) -> Piece:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _real(tensor: Tensor) -> Tensor:
    """`[...]` of complex numbers as `[..., 2]`."""
    tensor = tensor.resolve_conj().resolve_neg()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _complex(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """`[..., 2]` as `[...]` where it is to be of complex numbers."""
    if not dtype.is_complex:
        return tensor
    if tensor.dtype != dtype.to_real() or tensor.shape[-1:] != (2,):
        raise ArtifactError(f"tensor {shown(name)} has no pairs of {dtype.to_real()}, as {dtype} is stored")
    return torch.view_as_complex(tensor)


def from_stream(file: IO[bytes], size: int, table: Any) -> dict[str, Tensor]:
    """The tensors by name, of a file of so many bytes: each is read into its own memory, and nothing is held twice.

    Raises:
        ArtifactError: the file does not hold what the table says.
    """
    stored = {}
    for name, dtype, shape in _header(file, size):
        stored[name] = torch.empty(shape, dtype=dtype)
        memory: Any = _memory(stored[name])
        for start in range(0, len(memory), PIECE):
            memory[start : start + PIECE] = file.read(min(PIECE, len(memory) - start))
    return _named(stored, table)


def _header(file: IO[bytes], size: int) -> list[tuple[str, torch.dtype, list[int]]]:
    """Name, dtype and shape of the tensors in the order of the file, which they fill: checked before any is made."""
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise ArtifactError("its tensors have a header that is longer than the file")
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found, end = [], 8 + length
    for name, own in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, (first, last) = DTYPES[own["dtype"]], own["data_offsets"]
        shape = counts(own, "shape")
        if (8 + length + first, last - first) != (end, math.prod(shape) * dtype.itemsize):
            raise ArtifactError(f"tensor {shown(name)} does not fill its place in the file")
        found.append((name, dtype, list(shape)))
        end = 8 + length + last
    if end != size:
        raise ArtifactError("its tensors do not fill the file")
    return found


def from_file(path: str | os.PathLike[str], table: Any) -> dict[str, Tensor]:
    """The same, in memory mapped from the file: processes that read it share it."""
    return _named(safetensors.torch.load_file(path), table)


def _named(stored: dict[str, Tensor], table: Any) -> dict[str, Tensor]:
    names = {name: entry(line, "stored", str) for name, line in table.items()}
    if set(names.values()) != set(stored):
        raise ArtifactError("its tensors are not those that its table lists")
    ordered = {name: _ordered(tensor, table[name], name) for name, tensor in stored.items()}
    for name, own in names.items():
        _check(ordered[own], table[name], name)
    return {name: ordered[own] for name, own in names.items()}


def _ordered(tensor: Tensor, line: Any, name: str) -> Tensor:
    """The axes where they were."""
    order, tensor = counts(line, "order"), _complex(tensor, as_dtype(entry(line, "dtype", str)), name)
    if sorted(order) != list(range(tensor.dim())):
        raise ArtifactError(f"tensor {shown(name)} has {tensor.dim()} axes in the order {list(order)}")
    return tensor.permute([order.index(axis) for axis in range(len(order))])


def _check(tensor: Tensor, line: Any, name: str) -> None:
    dtype, shape = as_dtype(entry(line, "dtype", str)), counts(line, "shape")
    if tensor.dtype != dtype or tensor.shape != shape:
        found = f"{dtype_name(tensor.dtype)} {list(tensor.shape)}"
        raise ArtifactError(f"tensor {shown(name)} is {found}, where its table says {dtype_name(dtype)} {list(shape)}")
