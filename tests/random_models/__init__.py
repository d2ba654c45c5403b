"""Random small ranking models, drawn by Hypothesis and built directly as ATen graphs: `torch.export` takes seconds.

A model is drawn operator by operator. Every operator is run three times as it is recorded:

* on tensors without data with `ROWS` rows, which tells its shape: a multiple of `ROWS` is a multiple of the row count;
* on `sample`, the very rows that the properties are checked with, so that a step which would be numerically unstable
  (values that grow, comparisons of nearly equal numbers) can be tamed or left out;
* never on symbolic tensors, which is what makes tracing slow: `meta["val"]` is made from the shape alone.

`RandomModel.original` runs the recorded graph itself: that is the truth.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils import _pytree as pytree

from rankhoist import Split
from rankhoist.capture import InputSpec, Program
from rankhoist.capture.program import Weight
from rankhoist.capture.signature import Arguments

aten = torch.ops.aten
ROWS = 10007  # a prime that no other size is a multiple of
OFFSETS = [0, 3, 3, 7]  # three requests, one without candidates
REQUESTS, CANDIDATES = len(OFFSETS) - 1, OFFSETS[-1]
VOCABULARY = 5
LARGE = 20.0  # values above are scaled down
GAP = 1e-6  # operators that jump (comparisons, rounding, order) need operands further apart than this

Extent = tuple[int, ...]  # sizes of a value; -n stands for n times the row count
Draw = Callable[[st.SearchStrategy[Any]], Any]


# -- symbolic shapes


@cache
def _symbols() -> tuple[FakeTensorMode, torch.SymInt]:
    shapes = ShapeEnv()
    source = ConstantSource("rows")
    symbol = shapes.create_symbol(ROWS, source=source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
    return FakeTensorMode(shape_env=shapes), shapes.create_symintnode(symbol, hint=ROWS, source=source)


@cache
def _symbolic(extent: Extent, dtype: torch.dtype) -> Tensor:
    mode, rows = _symbols()
    with mode:
        return torch.empty([n if n >= 0 else rows * -n for n in extent], dtype=dtype)


@cache
def _symbolic_size(count: int) -> Any:
    return _symbols()[1] * count if count != 1 else _symbols()[1]


def _extent(shape: Sequence[int]) -> Extent:
    return tuple(-(n // ROWS) if n and n % ROWS == 0 else n for n in shape)


def _value(dry: Any) -> Any:
    """`meta["val"]` for the result of a dry run."""
    if isinstance(dry, Tensor):
        return _symbolic(_extent(dry.shape), dry.dtype)
    if isinstance(dry, int):
        return _symbolic_size(dry // ROWS)
    return [_value(v) for v in dry]


# -- the model


@dataclass(repr=False)
class RandomModel:
    """A drawn model, with inputs of `REQUESTS` requests and `CANDIDATES` candidates.

    Attributes:
        program: what `capture` would have made of it.
        context, candidate: inputs by name; a packed input is in both.
        mixes_rows: an operator lets rows meet.
    """

    program: Program
    context: dict[str, Tensor]
    candidate: dict[str, Tensor]
    mixes_rows: bool

    def rows(self, context: Mapping[str, Tensor], candidate: Mapping[str, Tensor], owner: Tensor) -> dict[str, Tensor]:
        """Whole rows for the original model: row i has the context of request `owner[i]`."""
        return {s.name: _whole_rows(s, context, candidate, owner) for s in self.program.inputs.values()}

    def original(self, context: Mapping[str, Tensor], candidate: Mapping[str, Tensor], owner: Tensor) -> list[Any]:
        """The outputs of the recorded graph, over `len(owner)` rows."""
        inputs = self.rows(context, candidate, owner)
        values: dict[fx.Node, Any] = {}
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                weight = self.program.weights.get(node.name)
                values[node] = weight.tensor if weight else inputs[self.program.inputs[node.name].name]
            elif node.op == "call_function":
                values[node] = node.target(*_map(node.args, values), **_map(node.kwargs, values))
        return [values[o] if isinstance(o, fx.Node) else o for o in self.program.outputs]

    def call(self, context: Mapping[str, Tensor], candidate: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments for the hoisted model."""
        split = {n: Split(context[n], candidate[n]) for n in context.keys() & candidate.keys()}
        return {**context, **candidate, **split}

    def __repr__(self) -> str:
        lines = [f"RandomModel(mixes_rows={self.mixes_rows}):"]
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                lines.append(f"  {node.name} = {self._role(node.name)}  # {_text(node.meta['val'])}")
            elif node.op == "call_function":
                arguments = [repr(a) for a in node.args] + [f"{k}={v!r}" for k, v in node.kwargs.items()]
                name = str(node.target).removeprefix("aten.") if node.target is not operator.mul else "mul"
                lines.append(f"  {node.name} = {name}({', '.join(arguments)})  # {_text(node.meta['val'])}")
        return "\n".join([*lines, f"  return {self.program.outputs}"])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    def _role(self, name: str) -> str:
        if name in self.program.weights:
            weight = self.program.weights[name]
            shown = weight.tensor.numel() <= 12 or (weight.fixed and weight.tensor.numel() <= 64)
            trained = weight.trained and weight.tensor.is_floating_point()
            return f"constant {weight.tensor.tolist()}" if shown and not trained else "weight"
        spec = self.program.inputs[name]
        return spec.role + (f" input, context columns {list(spec.columns)}" if spec.role == "packed" else " input")


def _map(value: Any, values: Mapping[fx.Node, Any]) -> Any:
    return fx.node.map_arg(value, values.__getitem__)


def _text(value: Any) -> str:
    if isinstance(value, Tensor):
        sizes = [str(n) if isinstance(n, int) else str(n.node.expr).replace(_row_name(), "rows") for n in value.shape]
        kind = "" if value.dtype == torch.float64 else f" {str(value.dtype).removeprefix('torch.')}"
        return f"[{', '.join(sizes)}]{kind}"
    return ", ".join(_text(v) for v in value) if isinstance(value, list) else "size"


def _row_name() -> str:
    return str(_symbols()[1].node.expr)


def _whole_rows(
    spec: InputSpec, context: Mapping[str, Tensor], candidate: Mapping[str, Tensor], owner: Tensor
) -> Tensor:
    if spec.role == "candidate":
        return candidate[spec.name]
    repeated = context[spec.name][owner]
    if spec.role == "context":
        return repeated
    whole = repeated.new_empty(len(owner), *spec.shape)
    whole[:, list(spec.columns)] = repeated
    whole[:, list(spec.candidate_columns)] = candidate[spec.name]
    return whole


# -- the recorder


class UnstableError(Exception):
    """The step that was drawn is left out: its result would hang on the last digits."""


@dataclass
class Recorder:
    """Records operators; `values` are the tensors that later steps may read."""

    number: Callable[[int, int], int]  # draws from low to high, both included
    generator: torch.Generator
    graph: fx.Graph = field(default_factory=fx.Graph)
    weights: dict[str, Weight] = field(default_factory=dict)
    inputs: dict[str, InputSpec] = field(default_factory=dict)
    context: dict[str, Tensor] = field(default_factory=dict)
    candidate: dict[str, Tensor] = field(default_factory=dict)
    values: list[fx.Node] = field(default_factory=list)
    dry: dict[fx.Node, Any] = field(default_factory=dict)
    sample: dict[fx.Node, Any] = field(default_factory=dict)
    mixed: set[fx.Node] = field(default_factory=set)
    sizes: dict[int, fx.Node] = field(default_factory=dict)

    # -- drawing

    def flag(self) -> bool:
        return bool(self.number(0, 1))

    def shuffled(self, items: Sequence[Any]) -> list[Any]:
        left, result = list(items), []
        while left:
            result.append(left.pop(self.number(0, len(left) - 1)))
        return result

    def pick(self, items: Sequence[Any]) -> Any:
        if not items:
            raise UnstableError
        return items[self.number(0, len(items) - 1)]

    def value(self, where: Callable[[Extent], bool] = lambda _: True, floating: bool = True) -> fx.Node:
        """A tensor recorded before, the latest for the simplest draw."""
        good = [v for v in self.values if self.is_float(v) is floating and where(self.extent(v))][::-1]
        unread = [v for v in good if not v.users]
        return self.pick(unread if unread and self.number(0, 2) else good)

    def axis(self, x: fx.Node, least: int = 1) -> int:
        """An axis of x without rows."""
        return int(self.pick([i for i, n in enumerate(self.extent(x)) if n >= least][::-1]))

    # -- what is known of a value

    def extent(self, x: fx.Node) -> Extent:
        return _extent(self.dry[x].shape)

    def is_float(self, x: fx.Node) -> bool:
        return bool(self.dry[x].is_floating_point())

    # -- recording

    def placeholder(self, name: str, dry: Tensor, sample: Tensor) -> fx.Node:
        first = next((n for n in self.graph.nodes if n.op != "placeholder"), None)
        with self.graph.inserting_before(first) if first else nullcontext():
            node = self.graph.placeholder(name)
        self.dry[node], self.sample[node] = dry, sample
        node.meta["val"] = _value(dry)
        return node

    def weight(self, tensor: Tensor, in_state_dict: bool = True, trained: bool = True) -> fx.Node:
        name = f"w{len(self.weights)}"
        self.weights[name] = Weight(name, tensor, in_state_dict, trained)
        return self.placeholder(name, tensor.to("meta"), tensor)

    def random(self, *shape: int, scale: float = 1.0) -> fx.Node:
        return self.weight(self.normal(*shape) * scale)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def input(self, role: str, tensor: Tensor, columns: tuple[int, ...] = ()) -> fx.Node:
        """An input by the values of its rows; `columns` are the context columns of a packed one."""
        name = f"{role}_{len(self.inputs)}"
        shape = tuple(tensor.shape[1:])
        self.inputs[name] = spec = InputSpec(name, shape, tensor.dtype, role, columns)
        context, candidate = tensor[:REQUESTS], tensor[REQUESTS:]
        if role == "packed":
            context, candidate = context[:, list(columns)], candidate[:, list(spec.candidate_columns)]
        if role != "candidate":
            self.context[name] = context.contiguous()
        if role != "context":
            self.candidate[name] = candidate.contiguous()
        candidate_rows = _sample_candidates()
        sample = _whole_rows(
            spec, self.context, {n: t[candidate_rows] for n, t in self.candidate.items()}, _sample_owners()
        )
        return self.placeholder(name, torch.empty(ROWS, *shape, dtype=tensor.dtype, device="meta"), sample)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Record one operator."""
        sample = target(*_map(args, self.sample), **_map(kwargs, self.sample))
        dry_kwargs = kwargs | ({"device": "meta"} if "device" in kwargs else {})
        dry = target(*_map(args, self.dry), **_map(dry_kwargs, self.dry))
        node = self.graph.call_function(target, args, kwargs)
        self.dry[node], self.sample[node] = dry, sample
        node.meta["val"] = _value(dry)
        if any(operand in self.mixed for operand in node.all_input_nodes):
            self.mixed.add(node)
        return node

    def size(self, count: int) -> Any:
        """`count` times the row count as a graph has it; a number if there are no rows in it."""
        if -count not in self.sizes:
            source = next(n for n in self.graph.nodes if n.name in self.inputs)
            rows = self.sizes.get(1) or self.call(aten.sym_size.int, source, 0)
            self.sizes[1] = rows
            self.sizes.setdefault(-count, self.call(operator.mul, rows, -count) if count != -1 else rows)
        return self.sizes[-count]

    def shape(self, extent: Sequence[int]) -> list[Any]:
        """Sizes for a view; the one with rows is -1 in some."""
        implied = self.flag()
        return [n if n >= 0 else -1 if implied else self.size(n) for n in extent]

    def view(self, x: fx.Node, extent: Sequence[int]) -> fx.Node:
        return self.call(aten.reshape.default, x, self.shape(extent))

    def add(self, x: fx.Node) -> fx.Node:
        """Keep a result for later steps, scaled down where it is large."""
        self.check_finite(x)
        if self.dry[x].dtype == torch.float32:  # its rounding would hide errors of float64
            raise UnstableError
        if self.is_float(x):
            largest = float(self.sample[x].abs().amax()) if self.sample[x].numel() else 0.0
            if largest > LARGE:
                x = self.call(aten.mul.Tensor, x, 2.0 ** -int(largest).bit_length())
        self.values.append(x)
        return x

    # -- stability

    def check_finite(self, x: fx.Node) -> None:
        if not bool(self.sample[x].isfinite().all()):
            raise UnstableError

    def check_apart(self, x: fx.Node, y: Any) -> None:
        """x and y are nowhere nearly equal (and none hangs on rows that the sample does not have)."""
        if x in self.mixed or (isinstance(y, fx.Node) and y in self.mixed):
            raise UnstableError
        other = self.sample[y] if isinstance(y, fx.Node) else y
        if bool(((self.sample[x] - other).abs() < GAP).any()):
            raise UnstableError

    def check_spread(self, x: fx.Node, axes: Sequence[int]) -> None:
        """No division by a standard deviation of nearly 0."""
        if float(self.sample[x].std(list(axes), correction=0).amin()) < 1e-2:
            raise UnstableError


@cache
def _sample_owners() -> Tensor:
    """Request 0 with all candidates, then request 2 with its own."""
    return torch.tensor([0] * CANDIDATES + [2] * (OFFSETS[3] - OFFSETS[2]))


@cache
def _sample_candidates() -> Tensor:
    return torch.cat([torch.arange(CANDIDATES), torch.arange(OFFSETS[2], OFFSETS[3])])


# -- inputs

SHAPES = {"dense": 1, "sequence": 2, "id": 0, "ids": 1, "mask": 1, "packed": 1}


def _input(r: Recorder, kind: str, role: str) -> None:
    rows = REQUESTS + CANDIDATES
    shape = [r.number(1, 5) for _ in range(SHAPES[kind])]
    if kind == "packed":
        width = r.number(2, 6)
        chosen = sorted(r.shuffled(range(width))[: r.number(1, width - 1)])
        r.values.append(r.input("packed", r.normal(rows, width), tuple(chosen)))
    elif kind in ("id", "ids"):
        ids = torch.randint(0, VOCABULARY, (rows, *shape), generator=r.generator)
        r.values.append(r.input(role, ids))
    elif kind == "mask":
        r.values.append(r.input(role, torch.rand(rows, *shape, generator=r.generator) > 0.4))
    else:
        r.values.append(r.input(role, r.normal(rows, *shape)))


def _inputs(r: Recorder) -> None:
    kinds = ["dense", "dense", "sequence", "ids", "id", "mask", "packed"]
    if r.number(0, 4) == 4:
        _input(r, "packed", "packed")
    else:
        _input(r, r.pick(["dense", "sequence", "ids"]), "context")
        _input(r, r.pick(["dense", "sequence", "ids", "id"]), "candidate")
    for _ in range(r.number(0, 2)):
        _input(r, r.pick(kinds), r.pick(["context", "candidate"]))
    for x in [v for v in r.values if r.dry[v].dtype == torch.int64]:
        if r.number(0, 3):
            r.add(_embedded(r, x))
    if not any(r.is_float(v) for v in r.values):
        r.add(_embedded(r, next(v for v in r.values if r.dry[v].dtype == torch.int64)))


def _embedded(r: Recorder, ids: fx.Node) -> fx.Node:
    return r.call(aten.embedding.default, r.random(VOCABULARY, r.number(1, 4)), ids)


# -- steps. Each draws its operands, records operators and keeps at least one result.


def embed(r: Recorder) -> None:
    """One table per input, or one for all with an offset per field."""
    ids = r.value(lambda e: len(e) < 3, floating=False)
    if r.dry[ids].dtype != torch.int64:
        raise UnstableError
    if len(r.extent(ids)) == 1 and r.flag():
        ids = r.call(aten.stack.default, [ids, r.value(lambda e: e == r.extent(ids), floating=False)], 1)
        if r.dry[ids].dtype != torch.int64:
            raise UnstableError
    if len(r.extent(ids)) == 2 and r.extent(ids)[1] >= 0 and r.flag():
        fields = r.extent(ids)[1]
        offsets = r.weight(torch.arange(fields) * VOCABULARY)
        table = r.random(VOCABULARY * fields, r.number(1, 4))
        if int(r.sample[ids].max()) >= VOCABULARY:
            raise UnstableError
        r.add(r.call(aten.embedding.default, table, r.call(aten.add.Tensor, ids, offsets)))
        return
    if int(r.sample[ids].max()) >= VOCABULARY or int(r.sample[ids].min()) < 0:
        raise UnstableError
    r.add(_embedded(r, ids))


def _like(r: Recorder, extent: Extent, axis: int | None = None) -> fx.Node:
    """A value of the same sizes (but for one axis): one that exists, or one that is made."""

    def same(e: Extent) -> bool:
        return len(e) == len(extent) and all(
            a == b or (i == axis and a >= 0) for i, (a, b) in enumerate(zip(e, extent, strict=True))
        )

    found = [v for v in r.values if r.is_float(v) and same(r.extent(v))]
    if found and (len(found) > 1 or r.number(0, 2) == 0):
        return r.pick(found)
    return _made(r, extent)


def _made(r: Recorder, extent: Extent) -> fx.Node:
    """A new value of the given sizes from an input or another value."""
    inner = extent[1:]
    if not extent or extent[0] != -1 or any(n < 0 for n in inner):
        raise UnstableError
    x = r.value(lambda e: len(e) >= 1 and e[0] == -1 and all(n > 0 for n in e[1:]))
    own = r.extent(x)
    if own == extent:
        return x
    if len(own) == len(extent) - 1 and own[1:] == inner[1:]:
        x = r.call(aten.unsqueeze.default, x, 1)
        return r.call(aten.expand.default, x, [-1, *inner])
    total = 1
    for n in inner:
        total *= n
    flat = r.view(x, [-1, _product(own[1:])]) if len(own) != 2 else x
    made = r.call(aten.linear.default, flat, r.random(total, _product(own[1:]), scale=0.6))
    return r.view(made, extent) if len(extent) != 2 else made


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for n in sizes:
        result *= n
    return result


def concatenate(r: Recorder) -> None:
    x = r.value(lambda e: len(e) > 1)
    axis = r.axis(x)
    if r.extent(x)[axis] > 8:
        raise UnstableError
    parts = [x, *(_like(r, r.extent(x), axis) for _ in range(r.number(1, 2)))]
    if r.number(0, 5) == 5 and r.extent(x)[0] == -1:
        sizes = [r.size(n) if n < 0 else n for n in r.extent(x)]
        parts.append(
            r.call(aten.full.default, sizes, 0.5, dtype=torch.float64, device=torch.device("cpu"), pin_memory=False)
        )
    joined = r.call(aten.cat.default, r.shuffled(parts), axis - (len(r.extent(x)) if r.flag() else 0))
    if r.number(0, 3) == 3:
        shuffled = r.shuffled(range(r.extent(joined)[axis]))
        joined = r.call(aten.index_select.default, joined, axis, r.weight(torch.tensor(shuffled)))
    r.add(joined)


def stack(r: Recorder) -> None:
    x = r.value(lambda e: len(e) < 3)
    others = [_like(r, r.extent(x)) for _ in range(r.number(1, 2))]
    axis = r.number(0, len(r.extent(x))) if r.number(0, 3) == 3 else len(r.extent(x)) - (len(r.extent(x)) > 1)
    r.add(r.call(aten.stack.default, [x, *others], axis))


def linear(r: Recorder) -> None:
    x = r.value(lambda e: len(e) > 0 and e[-1] > 0)
    width, out = r.extent(x)[-1], r.number(1, 5)
    form = r.number(0, 4)
    weight = r.random(out, width, scale=0.7)
    if form == 0:
        made = r.call(aten.linear.default, x, weight)
    elif form == 1:
        made = r.call(aten.linear.default, x, weight, r.random(out))
    elif form == 2 or len(r.extent(x)) != 2:
        made = r.call(aten.matmul.default, x, r.call(aten.t.default, weight))
    elif form == 3:
        made = r.call(aten.mm.default, x, r.call(aten.permute.default, weight, [1, 0]))
    else:
        made = r.call(aten.addmm.default, r.random(out), x, r.call(aten.t.default, weight), beta=0.5, alpha=2)
    r.add(made)


def linear_vector(r: Recorder) -> None:
    x = r.value(lambda e: len(e) > 1 and e[-1] > 0)
    r.add(r.call(aten.matmul.default, x, r.random(r.extent(x)[-1])))


def einsum(r: Recorder) -> None:
    """A product with a weight along any axis, or between two values."""
    x = r.value(lambda e: 1 < len(e) < 4 and e[0] < 0)
    letters = "bijk"[: len(r.extent(x))]
    axis = r.axis(x)
    at = letters[axis]
    if r.flag():
        out = r.number(1, 4)
        weight = r.random(r.extent(x)[axis], out, scale=0.7)
        r.add(r.call(aten.einsum.default, f"{letters},{at}o->{letters.replace(at, 'o')}", [x, weight]))
    else:
        y = _like(r, r.extent(x))
        kept = letters.replace(at, "") if r.flag() else letters
        r.add(r.call(aten.einsum.default, f"{letters},{letters}->{kept}", [x, y]))


def einsum_any_depth(r: Recorder) -> None:
    """The same, whatever the axes in front."""
    x = r.value(lambda e: len(e) > 1 and e[-1] > 0)
    out = r.number(1, 4)
    if r.flag():
        r.add(r.call(aten.einsum.default, "...d,de->...e", [x, r.random(r.extent(x)[-1], out, scale=0.7)]))
    elif len(r.extent(x)) > 2 and r.extent(x)[-2] > 0:
        r.add(r.call(aten.einsum.default, "...id,...jd->...ij", [x, _like(r, r.extent(x), len(r.extent(x)) - 2)]))
    else:
        r.add(r.call(aten.einsum.default, r.pick(["...d,...d->...", "...d,...d"]), [x, _like(r, r.extent(x))]))


def learned_product(r: Recorder) -> None:
    """`nn.Bilinear` of two values."""
    x = r.value(lambda e: len(e) > 1 and 0 < e[-1] < 8)
    y = _like(r, r.extent(x), len(r.extent(x)) - 1)
    out = r.number(1, 3)
    weight = r.random(out, r.extent(x)[-1], r.extent(y)[-1], scale=0.5)
    r.add(r.call(aten.bilinear.default, x, y, weight, r.random(out) if r.flag() else None))


def field_matrix(r: Recorder) -> None:
    """Its own matrix for every field."""
    x = r.value(lambda e: len(e) == 3 and e[0] < 0)
    if min(r.extent(x)[1:]) < 1:
        raise UnstableError
    _, fields, width = r.extent(x)
    weight = r.random(fields, width, r.number(1, 3), scale=0.7)
    r.add(r.call(aten.einsum.default, "bfd,fde->bfe", [x, weight]))


def binary(r: Recorder) -> None:
    x = r.value()
    y = _operand(r, x)
    op = r.pick(
        [aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default]
    )
    if not isinstance(y, fx.Node) and op is aten.maximum.default:
        op = aten.add.Tensor
    if op is aten.div.Tensor and isinstance(y, fx.Node):
        y = r.call(aten.add.Tensor, r.call(aten.abs.default, y), 1.0)
    pair = (y, x) if isinstance(y, fx.Node) and op is not aten.div.Tensor and r.flag() else (x, y)
    if op in (aten.add.Tensor, aten.sub.Tensor) and r.number(0, 5) == 5:
        r.add(r.call(op, *pair, alpha=r.pick([2, -0.5])))
    else:
        r.add(r.call(op, *pair))


def _operand(r: Recorder, x: fx.Node) -> Any:
    """Something that broadcasts with x."""
    extent = r.extent(x)
    kind = r.number(0, 5)
    if kind == 0:
        return r.pick([0.5, -1.5, 2, 3.0])
    if kind == 1:
        return r.random(*(n for n in extent[1:] if n >= 0)) if all(n >= 0 for n in extent[1:]) else r.random()
    if kind == 2:
        return x
    if kind == 3 and len(extent) > 1:
        axis = r.axis(x)
        other = _like(r, extent)
        return r.call(aten.slice.Tensor, other, axis, 0, 1)
    found = [v for v in r.values if r.is_float(v) and v is not x and _broadcasts(r.extent(v), extent)]
    return r.pick(found[::-1]) if found and r.number(0, 3) else _like(r, extent)


def _broadcasts(small: Extent, large: Extent) -> bool:
    """Trailing axes fit; rows meet rows only."""
    if any(n < 0 for n in large) and any(n < 0 for n in small) and len(small) != len(large):
        return False
    pairs = list(zip(small[::-1], large[::-1], strict=False))
    return len(small) <= len(large) and all(a in (b, 1) or (b == 1 and a > 0) for a, b in pairs)


def cross_layer(r: Recorder) -> None:
    x = r.value(lambda e: len(e) == 2 and e[0] == -1 and 1 < e[1] < 8)
    first = _like(r, r.extent(x))
    width = r.extent(x)[1]
    gate = r.call(aten.linear.default, x, r.random(width, width, scale=0.5), r.random(width))
    r.add(r.call(aten.add.Tensor, r.call(aten.mul.Tensor, first, gate), x))


def gate(r: Recorder) -> None:
    x = r.value(lambda e: len(e) > 1 and e[0] == -1)
    one = _like(r, (*r.extent(x)[:-1], 1) if r.extent(x)[-1] > 0 else r.extent(x))
    r.add(r.call(aten.mul.Tensor, x, r.call(aten.sigmoid.default, one)))


UNARY = [
    aten.relu.default, aten.tanh.default, aten.sigmoid.default, aten.gelu.default, aten.silu.default, aten.abs.default,
    aten.neg.default, aten.sin.default, aten.softplus.default, aten.leaky_relu.default, aten.elu.default,
    aten.erf.default, aten.clone.default, aten.atan.default,
]  # fmt: skip


def unary(r: Recorder) -> None:
    r.add(r.call(r.pick(UNARY), r.value()))


def careful_unary(r: Recorder) -> None:
    """Functions with a pole or a fast growth, kept away from it."""
    x = r.value()
    kind = r.number(0, 4)
    if kind == 0:
        r.add(r.call(aten.exp.default, r.call(aten.clamp.default, x, -3.0, 3.0)))
    elif kind == 1:
        r.add(r.call(aten.log.default, r.call(aten.add.Tensor, r.call(aten.abs.default, x), 0.5)))
    elif kind == 2:
        r.add(r.call(aten.sqrt.default, r.call(aten.add.Tensor, r.call(aten.mul.Tensor, x, x), 0.25)))
    elif kind == 3:
        r.add(r.call(aten.pow.Tensor_Scalar, x, r.pick([2, 3])))
    else:
        r.add(r.call(aten.reciprocal.default, r.call(aten.add.Tensor, r.call(aten.abs.default, x), 1.0)))


def reduction(r: Recorder) -> None:
    x = r.value(lambda e: len(e) > 1)
    axis, keep = r.axis(x), r.flag()
    axes = [axis - (len(r.extent(x)) if r.flag() else 0)]
    kind = r.number(0, 6)
    if kind < 4:
        others = [i for i, n in enumerate(r.extent(x)) if n >= 0 and i != axis]
        axes += others if r.number(0, 4) == 4 else []
        op = aten.sum.dim_IntList if kind < 2 else aten.mean.dim
        r.add(r.call(op, x, axes, keep))
    elif kind == 4:
        r.add(r.call(aten.amax.default, x, axes, keep))
    elif kind == 5 and r.extent(x)[axis] > 0:
        pair = r.call(aten.max.dim, x, axes[0], keep)
        r.add(r.call(operator.getitem, pair, 0))
    else:
        r.add(r.call(aten.cumsum.default, x, axes[0]))


def softmax(r: Recorder) -> None:
    x = r.value(lambda e: len(e) > 1)
    op = r.pick([aten.softmax.int, aten.softmax.int, aten.log_softmax.int])
    r.add(r.call(op, x, r.axis(x) - (len(r.extent(x)) if r.flag() else 0)))


def layer_norm(r: Recorder) -> None:
    x = r.value(lambda e: len(e) > 1 and e[-1] > 1)
    extent = r.extent(x)
    depth = 2 if len(extent) > 2 and extent[-2] > 0 and r.number(0, 3) == 3 else 1
    r.check_spread(x, range(-depth, 0))
    shape = list(extent[-depth:])
    if r.flag():
        r.add(r.call(aten.layer_norm.default, x, shape, r.random(*shape), r.random(*shape)))
    else:
        r.add(r.call(aten.layer_norm.default, x, shape))


def batch_norm(r: Recorder) -> None:
    x = r.value(lambda e: len(e) in (2, 3) and e[0] < 0 and e[1] > 0)
    width = r.extent(x)[1]
    weights = [r.random(width), r.random(width)] if r.flag() else [None, None]
    variance = r.weight(r.normal(width).abs() + 0.5)
    r.add(r.call(aten.batch_norm.default, x, *weights, r.random(width), variance, False, 0.1, 1e-5, True))


def attention(r: Recorder) -> None:
    """Positions of one value look at positions of another (or of itself)."""
    keys = r.value(lambda e: len(e) == 3 and e[0] == -1 and e[1] > 0 and e[2] > 0)
    width = r.extent(keys)[2]
    kind = r.number(0, 3)
    queries = keys if kind == 0 else _like(r, r.extent(keys), 1)
    if kind == 1:
        queries = r.call(aten.unsqueeze.default, _like(r, (-1, width)), 1)
    if kind == 3:
        mask = None
        if r.flag():  # queries that see nothing come out as zero
            shown = r.call(aten.gt.Scalar, _like(r, (-1, r.extent(keys)[1])), r.number(0, 2) - 0.5)
            mask = r.call(aten.unsqueeze.default, shown, 1)
        r.add(r.call(aten.scaled_dot_product_attention.default, queries, keys, keys, mask))
        return
    if r.flag():
        queries = r.call(aten.linear.default, queries, r.random(width, width, scale=0.7))
    scores = r.call(aten.matmul.default, queries, r.call(aten.transpose.int, keys, 1, 2))
    shares = r.call(aten.softmax.int, r.call(aten.mul.Tensor, scores, 0.5), -1)
    r.add(r.call(aten.bmm.default, shares, keys))


def bilinear(r: Recorder) -> None:
    """Every position of one value with every position of another."""
    x = r.value(lambda e: len(e) == 3 and e[0] == -1 and min(e[1:]) > 0)
    y = x if r.flag() else _like(r, r.extent(x), 1)
    y = r.call(aten.transpose.int, y, 1, 2)
    products = r.call(r.pick([aten.bmm.default, aten.matmul.default]), x, y)
    r.add(products)
    rows, columns = r.extent(products)[1:]
    if r.flag() and rows == columns and rows > 1:
        i, k = torch.triu_indices(rows, columns, r.number(0, 1)).unbind(0)
        r.add(r.call(aten.index.Tensor, products, [None, r.weight(i.clone()), r.weight(k.clone())]))
    elif r.flag():
        r.add(r.view(products, [-1, rows * columns]))


def pairs_by_index(r: Recorder) -> None:
    x = r.value(lambda e: len(e) == 3 and e[0] == -1 and e[1] > 1)
    i, k = (r.weight(t.clone()) for t in torch.triu_indices(r.extent(x)[1], r.extent(x)[1], 1).unbind(0))
    left, right = (r.call(aten.index_select.default, x, 1, t) for t in (i, k))
    product = r.call(aten.mul.Tensor, left, right)
    r.add(r.call(aten.sum.dim_IntList, product, [2]) if r.flag() else product)


def sum_square(r: Recorder) -> None:
    """A factorisation machine's pairs, without the pairs."""
    x = r.value(lambda e: len(e) == 3 and e[0] == -1 and e[1] > 0)
    square = r.call(aten.pow.Tensor_Scalar, r.call(aten.sum.dim_IntList, x, [1]), 2)
    squares = r.call(aten.sum.dim_IntList, r.call(aten.mul.Tensor, x, x), [1])
    r.add(r.call(aten.mul.Tensor, r.call(aten.sub.Tensor, square, squares), 0.5))


def reshape(r: Recorder) -> None:
    """Flatten the fields, cut an axis in two, or fold rows with other axes."""
    x = r.value(lambda e: len(e) > 1)
    extent = list(r.extent(x))
    kind = r.number(0, 3)
    if kind == 0:
        axis = r.number(0, len(extent) - 2)
        if extent[axis] < 0 and extent[axis + 1] < 0:
            raise UnstableError
        merged = extent[axis] * extent[axis + 1]
        r.add(r.view(x, [*extent[:axis], merged, *extent[axis + 2 :]]))
    elif kind == 1:
        axis = r.number(0, len(extent) - 1)
        size = abs(extent[axis])
        parts = [d for d in range(1, size + 1) if size % d == 0]
        inner = r.pick(parts)
        outer = size // inner
        cut = [outer, inner] if extent[axis] > 0 else [-outer, inner] if r.flag() else [outer, -inner]
        r.add(r.view(x, [*extent[:axis], *cut, *extent[axis + 1 :]]))
    elif kind == 2 and extent[0] < 0:
        r.add(r.view(x, [extent[0], _product(extent[1:])]))
    else:
        _folded(r, x, extent)


def _folded(r: Recorder, x: fx.Node, extent: list[int]) -> None:
    """Rows folded with the next axis, a linear layer, and unfolded again."""
    if len(extent) < 3 or extent[0] != -1 or min(extent[1:]) < 1:
        raise UnstableError
    folded = r.view(x, [-extent[1], *extent[2:]])
    out = r.number(1, 3)
    made = r.call(aten.linear.default, folded, r.random(out, extent[-1], scale=0.7))
    if r.flag():
        made = r.call(aten.relu.default, made)
    r.add(r.view(made, [-1, *extent[1:-1], out]))


def permute(r: Recorder) -> None:
    x = r.value(lambda e: len(e) > 1)
    depth = len(r.extent(x))
    if r.flag():
        r.add(r.call(aten.transpose.int, x, r.number(0, depth - 1), -1))
    else:
        r.add(r.call(aten.permute.default, x, r.shuffled(range(depth))))


def rows_first(r: Recorder) -> None:
    """Back to rows on axis 0."""
    x = r.value(lambda e: len(e) > 1 and e[0] >= 0 and min(e) < 0)
    extent = r.extent(x)
    at = next(i for i, n in enumerate(extent) if n < 0)
    x = r.call(aten.permute.default, x, [at, *(i for i in range(len(extent)) if i != at)])
    if extent[at] < -1:
        x = r.view(x, [-1, -extent[at], *r.extent(x)[1:]])
    r.add(x)


def unsqueeze(r: Recorder) -> None:
    x = r.value(lambda e: len(e) < 3)
    depth = len(r.extent(x))
    axis = r.number(-depth - 1, depth) if r.number(0, 3) == 3 else r.number(1, depth)
    wide = r.call(aten.unsqueeze.default, x, axis)
    if r.flag():
        sizes = [-1] * (depth + 1)
        sizes[axis if axis >= 0 else axis + depth + 1] = r.number(1, 3)
        wide = r.call(aten.expand.default, wide, sizes)
    r.add(wide)


def squeeze(r: Recorder) -> None:
    x = r.value(lambda e: 1 in e)
    axis = r.extent(x).index(1)
    r.add(r.call(aten.squeeze.dim, x, axis) if r.flag() else r.call(aten.squeeze.dims, x, [axis]))


def part(r: Recorder) -> None:
    """Some positions of an axis."""
    x = r.value(lambda e: len(e) > 1, floating=r.number(0, 4) > 0)
    axis = r.axis(x)
    size = r.extent(x)[axis]
    kind = r.number(0, 7)
    if kind == 0:
        r.add(r.call(aten.select.int, x, axis, r.number(-size, size - 1)))
    elif kind == 1:
        start = r.number(0, size - 1)
        r.add(r.call(aten.slice.Tensor, x, axis, start, r.number(start + 1, size), r.number(1, 2)))
    elif kind == 2:
        first = r.number(0, size)
        parts = r.call(aten.split_with_sizes.default, x, [first, size - first], axis)
        for i, n in enumerate((first, size - first)):
            if n:
                r.add(r.call(operator.getitem, parts, i))
    elif kind == 3:
        chosen = [r.number(0, size - 1) for _ in range(r.number(1, 4))]
        r.add(r.call(aten.index_select.default, x, axis, r.weight(torch.tensor(chosen))))
    elif kind == 4:
        chosen = [r.number(-size, size - 1) for _ in range(r.number(1, 4))]
        r.add(r.call(aten.index.Tensor, x, [*[None] * axis, r.weight(torch.tensor(chosen))]))
    elif kind == 5:
        r.add(r.call(aten.flip.default, x, [axis]))
    elif kind == 6:
        r.add(r.call(aten.roll.default, x, [r.number(-2, 3)], [axis]))
    else:
        parts = r.call(aten.unbind.int, x, axis)
        for i in range(min(size, 2)):
            r.add(r.call(operator.getitem, parts, i))


def repeat(r: Recorder) -> None:
    x = r.value(lambda e: len(e) > 1 and max(e) < 4)
    axis = r.axis(x)
    if r.flag():
        r.add(r.call(aten.repeat_interleave.self_int, x, r.number(1, 2), axis))
    else:
        r.add(r.call(aten.repeat.default, x, [2 if i == axis else 1 for i in range(len(r.extent(x)))]))


def pad(r: Recorder) -> None:
    x = r.value(lambda e: len(e) > 1 and 0 < e[-1] < 5)
    amounts = [r.number(-1, 2), r.number(0, 2)]
    if r.extent(x)[-1] + sum(amounts) < 1:
        raise UnstableError
    r.add(r.call(aten.constant_pad_nd.default, x, amounts, 0.5))


def compare(r: Recorder) -> None:
    """A condition that chooses, fills or counts."""
    x = r.value()
    y = _operand(r, x) if r.flag() else 0.25
    r.check_apart(x, y)
    op = (aten.gt.Tensor, aten.le.Tensor) if isinstance(y, fx.Node) else (aten.gt.Scalar, aten.le.Scalar)
    test = r.call(r.pick(op), x, y)
    kind = r.number(0, 3)
    if kind == 0:
        r.add(r.call(aten.where.self, test, x, y if isinstance(y, fx.Node) else r.call(aten.neg.default, x)))
    elif kind == 1 and r.extent(test) == r.extent(x):
        r.add(r.call(aten.masked_fill.Scalar, x, test, -0.5))
    elif kind == 2:
        r.add(r.call(aten._to_copy.default, test, dtype=torch.float64))
    else:
        r.add(test)


def masked(r: Recorder) -> None:
    """A boolean value on a value: as a factor, to fill, or in a softmax."""
    mask = r.pick([v for v in r.values if r.dry[v].dtype == torch.bool and len(r.extent(v)) > 1][::-1])
    if r.extent(mask)[0] != -1 or min(r.extent(mask)[1:]) < 1:
        raise UnstableError
    x = _like(r, r.extent(mask))
    kind = r.number(0, 2)
    if kind == 0:
        r.add(r.call(aten.mul.Tensor, x, mask))
    elif kind == 1:
        filled = r.call(aten.masked_fill.Scalar, x, r.call(aten.logical_not.default, mask), -30.0)
        r.add(r.call(aten.softmax.int, filled, -1))
    else:
        count = r.call(aten.sum.dim_IntList, mask, [-1], True)
        total = r.call(aten.sum.dim_IntList, r.call(aten.mul.Tensor, x, mask), [-1], True)
        r.add(r.call(aten.div.Tensor, total, r.call(aten.add.Tensor, count, 1.0)))


def integers(r: Recorder) -> None:
    """Arithmetic on ids and masks: exact, with its own rules of promotion."""
    x = r.value(floating=False)
    extent = r.extent(x)
    y = r.pick([v for v in r.values if not r.is_float(v) and _broadcasts(r.extent(v), extent)][::-1])
    kind = r.number(0, 6)
    if kind == 0:
        r.add(r.call(r.pick([aten.eq.Tensor, aten.ne.Tensor, aten.ge.Tensor]), x, y))
    elif kind == 1:
        r.add(r.call(r.pick([aten.add.Tensor, aten.mul.Tensor]), x, y))
    elif kind == 2:
        r.add(r.call(aten.mul.Tensor, x, r.number(-2, 3)))
    elif kind == 3:
        r.add(r.call(aten.logical_and.default, x, y) if r.flag() else r.call(aten.logical_not.default, x))
    elif kind == 4 and len(extent) > 1:
        r.add(r.call(aten.sum.dim_IntList, x, [r.axis(x)], r.flag()))
    elif kind == 5:
        halves = r.call(aten.div.Tensor, x, 2)
        r.add(r.call(aten._to_copy.default, halves, dtype=torch.float64))
    elif r.dry[x].dtype == torch.int64:
        r.add(r.call(aten.div.Tensor_mode, x, r.number(1, 3), rounding_mode="floor"))


def mixed_kinds(r: Recorder) -> None:
    """A float value with an integer or boolean one."""
    x = r.value(lambda e: len(e) > 0)
    y = r.pick([v for v in r.values if not r.is_float(v) and _broadcasts(r.extent(v), r.extent(x))][::-1])
    signed = r.dry[y].dtype != torch.bool  # no subtraction of masks
    op = r.pick([aten.mul.Tensor, aten.add.Tensor, *([aten.sub.Tensor] if signed else [])])
    r.add(r.call(op, *((x, y) if r.flag() else (y, x))))


def less_common(r: Recorder) -> None:
    """Other overloads and operators with several operands."""
    x = r.value(lambda e: len(e) > 0)
    kind = r.number(0, 7)
    if kind == 0:
        r.add(r.call(aten.rsub.Scalar, x, r.pick([1, 0.5]), r.pick([1, 2])))
    elif kind == 1:
        r.add(r.call(r.pick([aten.mul.Scalar, aten.add.Scalar, aten.sub.Scalar]), x, r.pick([2, -0.5])))
    elif kind == 2:
        r.add(r.call(aten.addcmul.default, x, _like(r, r.extent(x)), _like(r, r.extent(x)), value=r.pick([1, -0.5])))
    elif kind == 3:
        r.add(r.call(aten.lerp.Scalar, x, _like(r, r.extent(x)), 0.25))
    elif kind == 4:
        r.add(
            r.call(
                aten.pow.Tensor_Tensor, r.call(aten.sigmoid.default, x), r.call(aten.abs.default, _like(r, r.extent(x)))
            )
        )
    elif kind == 5:
        low, high = r.pick([(None, 0.5), (-0.5, None), (-0.25, 0.75)])
        r.add(r.call(aten.clamp.default, x, low, high))
    elif kind == 6:
        r.add(r.call(aten.zeros_like.default, x) if r.flag() else r.call(aten.full_like.default, x, 0.25))
    else:
        width = r.extent(x)[-1]
        if width < 1:
            raise UnstableError
        r.check_spread(x, [-1])
        r.add(r.call(aten.linalg_vector_norm.default, x, 2.0, [-1], r.flag()))


def hidden_by_infinity(r: Recorder) -> None:
    """A softmax over some positions: the others are minus infinity before and exactly 0 after."""
    x = r.value(lambda e: len(e) > 1 and e[-1] > 1)
    seen = torch.arange(r.extent(x)[-1]) % 2 == 0
    filled = r.call(aten.masked_fill.Scalar, x, r.weight(~seen), float("-inf"))
    if r.flag():
        filled = r.call(aten.where.self, r.weight(seen), x, r.weight(torch.tensor(float("-inf"), dtype=torch.float64)))
    r.add(r.call(aten.softmax.int, filled, -1))


# -- constant masks


def _kept(r: Recorder, tensor: Tensor) -> fx.Node:
    """A constant that the model keeps as a plain attribute, a buffer or a parameter."""
    return r.weight(tensor, *r.pick([(False, False), (True, False), (True, True)]))


def _seen(r: Recorder, rows: int, columns: int) -> Tensor:
    """What every position may look at; of as many positions, each at itself."""
    seen = torch.ones(rows, columns, dtype=torch.bool)
    kind = r.number(0, 4)
    if kind < 2:
        seen = seen.tril() if kind == 0 else seen.triu()
    elif kind == 2:
        seen[:, r.number(0, columns - 1)] = False
    elif kind == 3:
        seen[:-1, -1] = False
    else:
        seen = torch.rand(rows, columns, generator=r.generator) > 0.5
    return seen | torch.eye(rows, columns, dtype=torch.bool)


def _zero_where_hidden(r: Recorder, x: fx.Node, seen: Tensor) -> fx.Node:
    kind = r.number(0, 4)
    if kind == 0:
        return r.call(aten.mul.Tensor, x, _kept(r, seen.double()))
    if kind == 1:
        return r.call(aten.mul.Tensor, _kept(r, r.pick([seen, seen.long()])), x)
    if kind == 2:
        return r.call(aten.masked_fill.Scalar, x, _kept(r, ~seen), 0.0)
    if kind == 3:
        return r.call(aten.where.ScalarOther, _kept(r, seen), x, 0.0)
    hidden = r.call(aten.sub.Tensor, _kept(r, seen.double()), 1.0)
    return r.call(aten.add.Tensor, x, r.call(aten.mul.Tensor, hidden, x))


def _infinite_where_hidden(r: Recorder, x: fx.Node, seen: Tensor) -> fx.Node:
    bias = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    kind = r.number(0, 4)
    if kind == 0:
        return r.call(aten.masked_fill.Scalar, x, _kept(r, ~seen), float("-inf"))
    if kind == 1:
        return r.call(aten.add.Tensor, *r.shuffled([x, _kept(r, bias)]))
    if kind == 2:
        return r.call(aten.where.ScalarSelf, _kept(r, ~seen), float("-inf"), x)
    if kind == 3:
        return r.call(aten.sub.Tensor, x, _kept(r, -bias))
    everyone = _kept(r, ~seen[None])
    everyone = r.call(aten.expand.default, everyone, [r.size(-1), *r.extent(x)[1:]])
    return r.call(aten.masked_fill.Scalar, x, everyone, float("-inf"))


def _tokens(r: Recorder) -> fx.Node:
    """A sequence, in most models of both sides."""
    x = r.value(lambda e: len(e) == 3 and e[0] == -1 and min(e[1:]) > 0 and e[1] < 6)
    if r.number(0, 3) == 0:
        return x
    return r.call(aten.cat.default, r.shuffled([x, _like(r, r.extent(x), 1)]), 1)


def masked_sequence(r: Recorder) -> None:
    """A layer in which tokens look at the tokens that a constant mask shows them."""
    x = _tokens(r)
    _, length, width = r.extent(x)
    tokens = x
    if width > 1 and r.flag():
        r.check_spread(x, [-1])
        tokens = r.call(aten.layer_norm.default, x, [width], r.random(width), r.random(width))
    seen = _seen(r, length, length)
    kind = r.number(0, 4)
    if kind == 0:
        made = r.call(aten.scaled_dot_product_attention.default, tokens, tokens, tokens, None, 0.0, True)
    elif kind == 1:
        bias = torch.zeros(length, length, dtype=torch.float64).masked_fill(~seen, -torch.inf)
        mask = _kept(r, r.pick([seen, bias]))
        made = r.call(aten.scaled_dot_product_attention.default, tokens, tokens, tokens, mask)
    else:
        scores = r.call(aten.matmul.default, tokens, r.call(aten.transpose.int, tokens, 1, 2))
        if kind == 2:
            shares = r.call(aten.softmax.int, _infinite_where_hidden(r, scores, seen), -1)
        elif kind == 3:
            shares = r.call(aten.sigmoid.default, _infinite_where_hidden(r, scores, seen))
        else:
            shares = _zero_where_hidden(r, r.call(aten.silu.default, scores), seen)
        made = r.call(aten.matmul.default, shares, tokens)
    r.add(r.call(aten.add.Tensor, x, made) if r.flag() else made)


def masked_tokens(r: Recorder) -> None:
    """Tokens, or columns, that a constant hides whoever looks."""
    x = _tokens(r) if r.flag() else r.value(lambda e: len(e) == 2 and e[0] == -1 and e[1] > 1)
    length = r.extent(x)[1]
    hidden = _seen(r, length, length)[r.number(0, length - 1)]
    seen = hidden if len(r.extent(x)) == 2 else hidden[:, None]
    if r.flag():
        r.add(_zero_where_hidden(r, x, seen))
        return
    filled = _infinite_where_hidden(r, x, seen) if len(r.extent(x)) == 3 or r.flag() else x
    r.add(r.call(aten.softmax.int, filled, 1) if r.flag() else r.call(aten.sigmoid.default, filled))


def piecewise_constant(r: Recorder) -> None:
    """Arithmetic with a constant that is one number for some positions and another one for others."""
    x = _tokens(r) if r.flag() else r.value(lambda e: len(e) > 1 and e[0] == -1 and e[-1] > 0)
    width = r.extent(x)[-1]
    numbers = [r.pick([0.0, 1.0, 0.0, 1.0, 2.0, -0.5])] * r.number(0, width)
    numbers += [r.pick([1.0, 0.0, -1.0])] * (width - len(numbers))
    y = _kept(r, torch.tensor(numbers, dtype=torch.float64).expand(r.pick([1, *r.extent(x)[1:-1]]), width).clone())
    op = r.pick([aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.maximum.default])
    if op is aten.div.Tensor:
        r.add(r.call(op, x, r.call(aten.add.Tensor, r.call(aten.abs.default, y), r.pick([1.0, 0.5]))))
    elif op in (aten.add.Tensor, aten.sub.Tensor) and r.flag():
        r.add(r.call(op, *r.shuffled([x, y]), alpha=r.pick([2, -0.5])))
    else:
        r.add(r.call(op, *r.shuffled([x, y])))


def folded_behind(r: Recorder) -> None:
    """Rows folded behind another axis, worked on, and unfolded again."""
    x = r.value(lambda e: len(e) == 3 and e[0] == -1 and min(e[1:]) > 0)
    _, fields, width = r.extent(x)
    turned = r.call(aten.transpose.int, x, 0, 1)
    folded = r.view(turned, [-fields, width])
    made = r.call(aten.tanh.default, folded)
    if r.flag():
        made = r.call(aten.linear.default, folded, r.random(2, width, scale=0.7))
    if r.flag():
        made = r.call(aten.mul.Tensor, made, folded if r.extent(made)[-1] == width else made)
    unfolded = r.view(made, [fields, -1, r.extent(made)[1]])
    r.add(r.call(aten.transpose.int, unfolded, 0, 1) if r.flag() else unfolded)


def cast(r: Recorder) -> None:
    """To integers and back, where no rounding error can jump."""
    x = r.value()
    if r.flag():
        r.add(r.call(aten._to_copy.default, x, dtype=torch.float64))
        return
    scaled = r.call(aten.mul.Tensor, x, 3.0)
    if x in r.mixed or bool(((r.sample[scaled] - r.sample[scaled].round()).abs() < GAP).any()):
        raise UnstableError
    whole = r.call(aten._to_copy.default, scaled, dtype=torch.int64)
    back = r.call(aten._to_copy.default, whole, dtype=torch.float64) if r.flag() else whole
    r.values.append(back)


def order(r: Recorder) -> None:
    x = r.value(lambda e: len(e) > 1 and e[-1] > 1)
    gaps = r.sample[x].sort(-1).values.diff(dim=-1)
    if x in r.mixed or float(gaps.amin()) < GAP:
        raise UnstableError
    if r.flag():
        pair = r.call(aten.sort.default, x, -1, r.flag())
    else:
        pair = r.call(aten.topk.default, x, r.number(1, r.extent(x)[-1]), -1)
    r.add(r.call(operator.getitem, pair, 0))


def own_row(r: Recorder) -> None:
    """`x[arange(rows), ids]`, and `gather`."""
    x = r.value(lambda e: len(e) == 2 and e[0] == -1 and e[1] > 0)
    ids = r.value(lambda e: len(e) in (1, 2) and e[0] == -1 and min((*e[1:], 1)) > 0, floating=False)
    if r.dry[ids].dtype != torch.int64:
        raise UnstableError
    ids = r.call(aten.remainder.Scalar, ids, r.extent(x)[1])
    if len(r.extent(ids)) == 2:
        r.add(r.call(aten.gather.default, x, 1, ids))
        return
    rows = r.call(aten.arange.default, r.size(-1), device=torch.device("cpu"), pin_memory=False)
    r.add(r.call(aten.index.Tensor, x, [rows, ids]))


def weights_alone(r: Recorder) -> None:
    """A computation on weights that meets a value at the end."""
    x = r.value(lambda e: len(e) > 1 and e[-1] > 0)
    weight = r.call(aten.softmax.int, r.random(3, r.extent(x)[-1]), -1)
    weight = r.call(aten.select.int, weight, 0, 1) if r.flag() else r.call(aten.sum.dim_IntList, weight, [0])
    r.add(r.call(aten.mul.Tensor, x, weight))


def learned_tokens(r: Recorder) -> None:
    """Weights that stand in every row: queries or latents that a model learns, repeated for the batch."""
    x = r.value(lambda e: len(e) > 1 and e[0] == -1 and all(n > 0 for n in e[1:]))
    inner = r.extent(x)[1:]
    token = r.random(*inner) if r.flag() else r.call(aten.unsqueeze.default, r.random(*inner), 0)
    tokens = r.call(aten.expand.default, token, [r.size(-1), *inner])
    r.add(r.call(aten.alias.default, tokens) if r.flag() else tokens)


def convolution(r: Recorder) -> None:
    x = r.value(lambda e: len(e) == 3 and e[0] == -1 and min(e[1:]) > 1)
    r.add(r.call(aten.conv1d.default, x, r.random(2, r.extent(x)[1], 2)))


def no_rule(r: Recorder) -> None:
    """Operators that the compiler has no rule for."""
    x = r.value(lambda e: len(e) > 1 and e[0] < 0 and e[-1] > 0)
    kind = r.number(0, 5)
    if kind == 0:
        r.add(r.call(aten.special_i0e.default, x))
    elif kind == 1:
        r.add(r.call(aten.trapezoid.dx, x, dx=0.5))
    elif kind == 2 and r.extent(x)[-1] > 1:
        r.add(r.call(aten.diff.default, x))
    elif kind == 3 and r.extent(x)[-1] % 2 == 0:
        r.add(r.call(aten.glu.default, x, -1))
    elif kind == 4:
        r.add(r.call(aten.unfold.default, x, -1, 1, 1))
    else:
        r.add(r.call(aten.abs.default, r.call(aten.polar.default, r.call(aten.abs.default, x), x)))


WITHOUT_RULE = [aten.special_i0e.default, aten.trapezoid.dx, aten.diff.default, aten.glu.default, aten.polar.default]


def mix_rows(r: Recorder) -> None:
    """Rows meet: nothing behind may run per request."""
    x = r.value(lambda e: len(e) > 0 and e[0] == -1)
    kind = r.number(0, 6)
    if kind == 0:
        made = r.call(aten.softmax.int, x, 0)
    elif kind == 1:
        made = r.call(aten.cumsum.default, x, 0)
    elif kind == 2:
        made = r.call(aten.sub.Tensor, x, r.call(aten.mean.dim, x, [0], True))
    elif kind == 3:
        made = r.call(aten.flip.default, x, [0])
    elif kind == 4:
        made = r.call(aten.sub.Tensor, x, r.call(aten.sum.dim_IntList, x, [0]))
    elif kind == 5:
        made = r.call(aten.roll.default, x, [1], [0])
    else:
        if len(r.extent(x)) != 2 or r.extent(x)[1] < 1:
            raise UnstableError
        scores = r.call(aten.matmul.default, x, r.call(aten.t.default, x))
        made = r.call(aten.matmul.default, r.call(aten.softmax.int, scores, -1), x)
    r.mixed.add(made)
    r.add(made)


STEPS = [
    *[linear] * 5, *[concatenate] * 6, *[binary] * 6, *[cross_layer] * 2, *[unary] * 3, *[reduction] * 3, *[part] * 4,
    *[reshape] * 3, *[softmax] * 2, *[attention] * 2, *[bilinear] * 2, *[unsqueeze] * 2, *[permute] * 2, *[stack] * 2,
    embed, linear_vector, einsum, einsum, field_matrix, gate, careful_unary, layer_norm, batch_norm, pairs_by_index,
    sum_square, rows_first, squeeze, repeat, pad, compare, masked, cast, order, own_row, weights_alone, learned_tokens,
    learned_tokens, convolution,
    masked_sequence, masked_sequence, masked_tokens, piecewise_constant, einsum_any_depth, learned_product,
    integers, integers, mixed_kinds, less_common, less_common, hidden_by_infinity, folded_behind,
    no_rule,
]  # fmt: skip


# -- the strategy


@st.composite
def random_models(draw: Draw, steps: int = 8, mixing: int = 10) -> RandomModel:
    """Small ranking models of up to `steps` steps; one in `mixing` has an operator that mixes rows (0: none)."""
    return build(lambda low, high: int(draw(st.integers(low, high))), steps, mixing)


def build(number: Callable[[int, int], int], steps: int = 8, mixing: int = 10) -> RandomModel:
    """A model from a source of numbers."""
    r = Recorder(number, torch.Generator().manual_seed(number(0, 2**31 - 1)))
    with torch.no_grad():
        _inputs(r)
        wanted = r.number(1, steps)
        rows_meet = r.number(1, wanted) if mixing and r.number(1, mixing) == mixing else None
        for i in range(1, wanted + 1):
            step = mix_rows if i == rows_meet else r.pick(STEPS)
            try:
                step(r)
            except UnstableError:
                continue
        return _finished(r)


def _finished(r: Recorder) -> RandomModel:
    outputs = _outputs(r)
    r.graph.output(tuple(outputs))
    r.graph.eliminate_dead_code()
    used = {n.name for n in r.graph.nodes if n.op == "placeholder" and n.users}
    for node in [n for n in r.graph.nodes if n.op == "placeholder" and n.name in r.weights and n.name not in used]:
        del r.weights[node.name]
        r.graph.erase_node(node)
    live = set(r.graph.nodes)
    names = list(r.inputs)
    example = {n: next(r.sample[p] for p in r.sample if p.name == n and p.op == "placeholder") for n in names}

    program = Program(
        r.graph, _symbols()[1].node.expr, r.inputs, r.weights, outputs, pytree.tree_structure([0] * len(outputs)),
        pytree.tree_structure((tuple(names), {})), Arguments.named(names), torch.float64, torch.device("cpu"), example,
    )  # fmt: skip
    return RandomModel(program, r.context, r.candidate, bool(r.mixed & live))


def _outputs(r: Recorder) -> list[fx.Node]:
    """All that nothing reads, one by one or under one linear layer; in some models a value from within as well."""
    made = [v for v in r.values if v.op != "placeholder" and v in r.dry] or r.values
    ends = [v for v in made if not v.users] or made[-1:]
    heads = [v for v in ends if r.is_float(v) and r.extent(v)[:1] == (-1,) and all(n > 0 for n in r.extent(v)[1:])]
    if len(heads) > 1 and r.number(0, 2):
        flat = [r.view(v, [-1, _product(r.extent(v)[1:])]) for v in heads]
        joined = r.call(aten.cat.default, flat, 1)
        made = [*made, r.call(aten.linear.default, joined, r.random(2, r.extent(joined)[1], scale=0.3))]
        ends = [v for v in ends if v not in heads] + made[-1:]
    return ends + ([r.pick(made[::-1])] if r.number(0, 3) == 3 else [])
