"""Products that sum: linear, matmul, einsum. Law: `W [c; k] = W_c c + W_k k`, and, for two forms, blocks times blocks.

Sources: MaRI (arXiv 2602.23105) for a weight and a concatenation; rank-aware decomposition (arXiv 2605.27450) for
pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps

from rankhoist.compiler.algebra import folds, grid, moves
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import Decline, Elsewhere, Form
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.graph.products import einsum_axes
from rankhoist.compiler.rules.law import law


@dataclass(frozen=True)
class Product:
    """A contraction by the names of its operands' axes, and what is done with the result."""

    factors: Sequence[Form]
    axes: Sequence[Sequence[str]]
    result: Sequence[str]
    then: Callable[[Form], Form] = lambda out: out

    def of(self, call: Call, factors: Sequence[Form]) -> Form:
        """The product of the same factors in other blocks, unevaluated."""
        return self.then(call.contract(factors, self.axes, self.result))

    @property
    def rows(self) -> int:
        """How many factors are more than weights."""
        return sum(not f.of_weights for f in self.factors)


def linear(call: Call) -> Product:
    """`x W^T + b`, x [..., k], W [h, k]."""
    x, weight = call.forms("input", "weight")
    lead = [f"b{i}" for i in range(len(x.layout) - 1)]
    return Product((x, weight), ([*lead, "k"], ["h", "k"]), [*lead, "h"], _bias(call))


def addmm(call: Call) -> Product:
    """`beta * input + alpha * (x @ y)`, batched or not."""
    x, y = call.form("mat1", "batch1"), call.form("mat2", "batch2")
    batch = ["b"] * (len(x.layout) - 2)
    return Product((x, y), ([*batch, "m", "k"], [*batch, "k", "n"]), [*batch, "m", "n"], _onto(call))


def addr(call: Call) -> Product:
    """`beta * input + alpha * x y^T`, x [m], y [n]."""
    return Product(call.forms("vec1", "vec2"), (["m"], ["n"]), ["m", "n"], _onto(call))


def matmul(call: Call) -> Product:
    """`x @ y` by PyTorch's rules: matrices in the last two axes, batch axes broadcast, vectors contract."""
    x, y = call.forms()
    left = ["k"] if len(x.layout) == 1 else [*_batch(len(x.layout)), "m", "k"]
    right = ["k"] if len(y.layout) == 1 else [*_batch(len(y.layout)), "k", "n"]
    depth = max(len(x.layout), len(y.layout))
    return Product((x, y), (left, right), [n for n in [*_batch(depth), "m", "n"] if n in left or n in right])


def _batch(depth: int) -> list[str]:
    return [f"b{i}" for i in range(depth - 2, 0, -1)]


def einsum(call: Call) -> Product:
    """Any einsum without repeated letters in one operand."""
    factors = call.forms("tensors")
    return Product(factors, *einsum_axes(call.value("equation"), [len(f.layout) for f in factors]))


def convolution(call: Call) -> Product:
    """A convolution whose kernel along every axis is 1, or all of it, is a linear map of what it reads, by groups."""
    x, weight = call.forms("input", "weight")
    if call.value("transposed") or len(x.layout) != len(weight.layout) or not _meets_all(call, x, weight):
        raise Elsewhere(f"the kernel {weight.axes} on {x.axes} is no matrix of the channels")
    b, groups = call.builder, call.value("groups")
    x, weight = folds.in_groups(b, x, 1, groups), folds.in_groups(b, weight, 0, groups)
    space = [f"s{i}" for i in range(len(weight.layout) - 3)]
    inside = [s for i, s in enumerate(space) if weight.sizes[3 + i] == 1]
    for s in reversed(inside):
        weight = moves.drop_dim(b, weight, 3 + space.index(s))
    gone = [2 + i for i, s in enumerate(space) if s not in inside]
    axes = (["b", "g", "i", *space], ["g", "o", "i", *(s for s in space if s not in inside)])
    biased = _bias(call, after=len(space))

    def then(out: Form) -> Form:
        return biased(moves.with_axes(folds.out_of_groups(b, out), gone))

    return Product((x, weight), axes, ["b", "g", "o", *inside], then)


def _meets_all(call: Call, x: Form, weight: Form) -> bool:
    """Whether along every axis the kernel has a size of 1, and is put at every place, or that of the axis."""
    steps, padding = call.value("stride"), call.value("padding")
    steps = steps * (len(x.layout) - 2 if len(steps) == 1 else 1)
    sizes = zip(weight.sizes[2:], steps, x.extents[2:], strict=True)
    put = all((n == 1 and step == 1) or (n != 1 and extent == (n, False)) for n, step, extent in sizes)
    return put and not (
        any(padding) if not isinstance(padding, str) else padding == "same" and max(weight.sizes[2:]) > 1
    )


def tensordot(call: Call) -> Product:
    """Sums over pairs of axes; the other axes of both operands follow one another."""
    x, y = call.forms("self", "other")
    left, right = [f"x{i}" for i in range(len(x.layout))], [f"y{i}" for i in range(len(y.layout))]
    for i, k in zip(call.value("dims_self"), call.value("dims_other"), strict=True):
        right[y.place(k)] = left[x.place(i)]
    return Product((x, y), (left, right), [n for n in (*left, *right) if (n in left) != (n in right)])


def bilinear(call: Call) -> Product:
    """`sum_ij x_i W_oij y_j + b_o`: the weight meets the context first, and is then a matrix of the request."""
    x, y, weight = call.forms("input1", "input2", "weight")
    lead = [f"b{i}" for i in range(len(x.layout) - 1)]
    return Product((x, y, weight), ([*lead, "i"], [*lead, "j"], ["o", "i", "j"]), [*lead, "o"], _bias(call))


def dot(call: Call) -> Product:
    """`x . y` of vectors."""
    if call.name == "vdot":
        _not_conjugated(call)
    return Product(call.forms(), (["k"], ["k"]), [])


def vecdot(call: Call) -> Product:
    """`sum_d x_d y_d` along one axis, the others broadcast: a linear map of y, made of x."""
    _not_conjugated(call)
    x, y = call.forms("x", "y")
    names = [f"b{i}" for i in range(max(len(x.layout), len(y.layout)))]
    gone = names[(x if len(x.layout) > len(y.layout) else y).place(call.value("dim"))]
    left, right = (names[len(names) - len(f.layout) :] for f in (x, y))
    return Product((x, y), (left, right), [n for n in names if n != gone])


def _not_conjugated(call: Call) -> None:
    if call.out.dtype.is_complex:
        raise Decline("conjugates complex numbers")


def outer(call: Call) -> Product:
    """`x y^T` of vectors."""
    return Product(call.forms(), (["m"], ["n"]), ["m", "n"])


def _onto(call: Call) -> Callable[[Form], Form]:
    """`beta * input + alpha * product`."""
    onto, (alpha, beta) = call.form("self"), (call.value(name) for name in ("alpha", "beta"))
    if isinstance(alpha, complex) or isinstance(beta, complex):
        raise Elsewhere("a factor is complex")

    def added(out: Form) -> Form:
        if onto.dtype == out.dtype and beta == 1:
            return call.plus(grid.total(call.builder, [out], out.dtype, (alpha,)), onto)
        return grid.total(call.builder, [out, onto], out.dtype, (alpha, beta))

    return added


def _bias(call: Call, after: int = 0) -> Callable[[Form], Form]:
    """Adds the bias along the axis that has `after` others behind it."""

    def added(out: Form) -> Form:
        if call.value("bias") is None:
            return out
        bias = call.form("bias")
        placed = replace(bias, layout=(*bias.layout, *(() for _ in range(after))))
        return grid.total(call.builder, [out, placed], out.dtype, (1.0, 1.0))

    return added


# -- the laws of all products


def per_block(product: Callable[[Call], Product]) -> Callable[[Call], Form]:
    """One value and weights: the product of every block."""

    @wraps(product)
    def rule(call: Call) -> Form:
        found = product(call)
        if found.rows > 1:
            raise Elsewhere(f"several factors have rows: {', '.join(f.axes for f in found.factors)}")
        return found.of(call, [call.tidy(f) for f in found.factors])

    return rule


def blocks_times_blocks(product: Callable[[Call], Product]) -> Callable[[Call], Form]:
    """Several values with rows: every block with every block."""

    @wraps(product)
    def rule(call: Call) -> Form:
        found = product(call)
        return found.of(call, [call.tidy(f) for f in found.factors])

    return rule


def of_tensors(product: Callable[[Call], Product]) -> Callable[[Call], Form]:
    """Several values with rows, one tensor each."""

    @wraps(product)
    def rule(call: Call) -> Form:
        found = product(call)
        return found.of(call, found.factors)

    return rule


PRODUCTS = {
    "linear": linear,
    "addmm baddbmm": addmm,
    "addr": addr,
    "matmul mm bmm mv": matmul,
    "einsum": einsum,
    "tensordot": tensordot,
    "bilinear": bilinear,
    "conv1d conv2d conv3d convolution": convolution,
    "dot vdot": dot,
    "linalg_vecdot": vecdot,
    "outer": outer,
}

LAWS = [
    *law(
        "linear over a concatenation",
        Level.REQUEST,
        {k: per_block(p) for k, p in PRODUCTS.items()},
        blocks=Level.LINEAR,
    ),
    *law("pairs of blocks", Level.FIRST, {k: blocks_times_blocks(p) for k, p in PRODUCTS.items()}),
    *law("products of tensors", Level.REQUEST, {k: of_tensors(p) for k, p in PRODUCTS.items()}, whole=True),
]
