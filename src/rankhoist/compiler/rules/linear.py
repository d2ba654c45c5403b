"""Products that sum: linear, matmul, einsum. Law: `W [c; k] = W_c c + W_k k`, and, for two forms, blocks times blocks.

Sources: MaRI (arXiv 2602.23105) for a weight and a concatenation; rank-aware decomposition (arXiv 2605.27450) for
pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from rankhoist.compiler.algebra import grid, moves
from rankhoist.compiler.algebra.forms import ROW, Decline, Form
from rankhoist.compiler.algebra.interpret import Interpreter
from rankhoist.compiler.algebra.ir import Rate
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.work import einsum_axes
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules.arguments import axis_of, form, named, tidy
from rankhoist.compiler.rules.pointwise import ARITHMETIC, plus
from rankhoist.compiler.rules.table import table


def contract(
    interpreter: Interpreter, operands: Sequence[Form], axes: Sequence[Sequence[str]], result: Sequence[str]
) -> Form:
    """Einsum over original axes: multiply, then sum over the names that the result lacks. Unevaluated."""
    dtype = operands[0].dtype
    if dtype not in ARITHMETIC or any(o.dtype != dtype for o in operands):
        raise Decline(f"product of {', '.join(str(o.dtype) for o in operands)}")
    names = [*result, *dict.fromkeys(n for own in axes for n in own if n not in result)]
    if any(len(set(own)) != len(own) for own in axes):
        raise Decline(f"an operand names an axis twice: {_equation(operands, axes, result)}")
    placed = []
    for operand, own in zip(interpreter.short(_operands_for_level(interpreter, operands)), axes, strict=True):
        entries = dict(zip(own, operand.layout, strict=True))
        placed.append(replace(operand, layout=tuple(entries.get(n, ()) for n in names)))
    product = grid.multiply(interpreter.b, placed, dtype)
    inner = [d for entry in product.layout[len(result) :] for d in entry]
    if ROW in inner:
        raise Decline(f"sums over the rows: {_equation(operands, axes, result)}")
    return grid.sum_dims(interpreter.b, product, inner)


def _equation(operands: Sequence[Form], axes: Sequence[Sequence[str]], result: Sequence[str]) -> str:
    """A contraction to read: `b i, b j -> i j of [rows, 6], [rows, 4]`."""
    left = ", ".join(" ".join(own) for own in axes)
    return f"{left} -> {' '.join(result)} of {', '.join(o.axes for o in operands)}"


def _operands_for_level(interpreter: Interpreter, operands: Sequence[Form]) -> list[Form]:
    """Below level `first` only weights meet blocks; values with rows meet as whole tensors."""
    with_rows = [o for o in operands if o.rate is not Rate.WEIGHT]
    if len(with_rows) > 1 and interpreter.level < Level.FIRST:
        return [interpreter.solid(o) if o.mixed else o for o in operands]
    return [tidy(interpreter, o) for o in operands]


def linear(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`x W^T + b`, x [..., k], W [h, k]."""
    arguments = named(node, args, kwargs)
    x, weight = form(arguments["input"]), form(arguments["weight"])
    lead = [f"b{i}" for i in range(len(x.layout) - 1)]
    out = contract(interpreter, (x, weight), ([*lead, "k"], ["h", "k"]), [*lead, "h"])
    return out if arguments["bias"] is None else _plus(interpreter, out, form(arguments["bias"]))


def addmm(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`beta * input + alpha * (x @ y)`, batched or not."""
    arguments = named(node, args, kwargs)
    x, y = (form(arguments[k]) for k in (("mat1", "mat2") if "mat1" in arguments else ("batch1", "batch2")))
    batch = ["b"] * (len(x.layout) - 2)
    out = contract(interpreter, (x, y), ([*batch, "m", "k"], [*batch, "k", "n"]), [*batch, "m", "n"])
    onto = form(arguments["self"] if "self" in arguments else arguments["input"])
    if onto.dtype == out.dtype and arguments["beta"] == 1:
        return plus(interpreter, grid.total(interpreter.b, [out], out.dtype, (float(arguments["alpha"]),)), onto)
    return grid.total(interpreter.b, [out, onto], out.dtype, (float(arguments["alpha"]), float(arguments["beta"])))


def matmul(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`x @ y` by PyTorch's rules: matrices in the last two axes, batch axes broadcast, vectors contract."""
    x, y = form(args[0]), form(args[1])
    left = ["k"] if len(x.layout) == 1 else [*_batch(len(x.layout)), "m", "k"]
    right = ["k"] if len(y.layout) == 1 else [*_batch(len(y.layout)), "k", "n"]
    depth = max(len(x.layout), len(y.layout))
    result = [n for n in [*_batch(depth), "m", "n"] if n in left or n in right]
    return contract(interpreter, (x, y), (left, right), result)


def _batch(depth: int) -> list[str]:
    return [f"b{i}" for i in range(depth - 2, 0, -1)]


def einsum(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Any einsum without repeated letters in one operand."""
    operands = [form(v) for v in args[1]]
    axes, result = einsum_axes(str(args[0]), [len(o.layout) for o in operands])
    return contract(interpreter, operands, axes, result)


def pointwise_convolution(interpreter: Interpreter, arguments: dict[str, Value]) -> Form | None:
    """A convolution whose kernel has size 1 is a linear map of the channels; `None` for others."""
    x, weight = form(arguments["input"]), form(arguments["weight"])
    space = [f"s{i}" for i in range(len(weight.layout) - 2)]
    plain = all(n == 1 for n in weight.sizes[2:]) and arguments["groups"] == 1 and set(arguments["stride"]) == {1}
    padded = not isinstance(arguments["padding"], str) and any(arguments["padding"])
    if not plain or padded or arguments.get("transposed") or len(x.layout) != len(weight.layout):
        return None
    for _ in space:
        weight = moves.drop_dim(interpreter.b, weight, len(weight.dims) - 1)
    out = contract(interpreter, (x, weight), (["b", "i", *space], ["o", "i"]), ["b", "o", *space])
    if arguments["bias"] is None:
        return out
    bias = form(arguments["bias"])
    return _plus(interpreter, out, replace(bias, layout=((), bias.layout[0], *(() for _ in space))))


def tensordot(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """Sums over pairs of axes; the other axes of both operands follow one another."""
    x, y = form(args[0]), form(args[1])
    left, right = [f"x{i}" for i in range(len(x.layout))], [f"y{i}" for i in range(len(y.layout))]
    for i, k in zip(args[2], args[3], strict=True):
        right[axis_of(y, k)] = left[axis_of(x, i)]
    return contract(interpreter, (x, y), (left, right), [n for n in (*left, *right) if (n in left) != (n in right)])


def bilinear(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`sum_ij x_i W_oij y_j + b_o`: the weight meets the context first, and is then a matrix of the request."""
    arguments = named(node, args, kwargs)
    x, y, weight = form(arguments["input1"]), form(arguments["input2"]), form(arguments["weight"])
    lead = [f"b{i}" for i in range(len(x.layout) - 1)]
    out = contract(interpreter, (x, y, weight), ([*lead, "i"], [*lead, "j"], ["o", "i", "j"]), [*lead, "o"])
    return out if arguments["bias"] is None else _plus(interpreter, out, form(arguments["bias"]))


def dot(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`x . y` of vectors."""
    return contract(interpreter, [form(args[0]), form(args[1])], (["k"], ["k"]), [])


def vecdot(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`sum_d x_d y_d` along one axis, the others broadcast: a linear map of y, made of x."""
    arguments = named(node, args, kwargs)
    x, y = form(arguments["x"]), form(arguments["y"])
    names = [f"b{i}" for i in range(max(len(x.layout), len(y.layout)))]
    gone = names[axis_of(x if len(x.layout) > len(y.layout) else y, arguments["dim"])]
    left, right = (names[len(names) - len(f.layout) :] for f in (x, y))
    return contract(interpreter, (x, y), (left, right), [n for n in names if n != gone])


def outer(interpreter: Interpreter, node: fx.Node, args: list[Value], kwargs: dict[str, Value]) -> Value:
    """`x y^T` of vectors."""
    return contract(interpreter, [form(args[0]), form(args[1])], (["m"], ["n"]), ["m", "n"])


def _plus(interpreter: Interpreter, x: Form, bias: Form) -> Form:
    return grid.total(interpreter.b, [x, bias], x.dtype, (1.0, 1.0))


RULES = table([
    ("linear", linear),
    ("addmm baddbmm", addmm),
    ("matmul mm bmm mv", matmul),
    ("einsum", einsum),
    ("tensordot", tensordot),
    ("bilinear", bilinear),
    ("dot vdot", dot),
    ("linalg_vecdot", vecdot),
    ("outer", outer),
])  # fmt: skip
