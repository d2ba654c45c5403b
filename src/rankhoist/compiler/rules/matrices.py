"""Matrices in the last two axes: inverted, factorised, solved for. Laws: every matrix is treated by itself, and

    solve(A, b) = A^-1 b

for a matrix A that is no candidate's: it is inverted once per request, by the same operator with an identity in the
place of b, and a product with a candidate's b is a linear map like any other. For b of the request or the weights, or A
of the candidate, the operator runs as it is. The forward error of both is of the order of A's condition.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from rankhoist.compiler.algebra import grid
from rankhoist.compiler.algebra.call import Call
from rankhoist.compiler.algebra.forms import ROW, Decline, Elsewhere, Form
from rankhoist.compiler.algebra.values import Value
from rankhoist.compiler.algebra.workload import Level
from rankhoist.compiler.rules.law import law

# What is solved with, and for: the names of both operands.
SOLVES = {
    "linalg_solve": ("A", "B"),
    "_linalg_solve_ex": ("A", "B"),
    "linalg_solve_triangular": ("self", "B"),
    "cholesky_solve": ("input2", "self"),
}


def each_by_itself(call: Call) -> Value:
    """An inverse, a decomposition, a determinant: rows are in an axis before the last two."""
    _check_rows(call.form(), 2)
    return call.rowwise()


def solve_each(call: Call) -> Value:
    """A solve for every matrix and its own right side."""
    matrix, right = _operands(call)
    _check_rows(matrix, 2)
    _check_rows(right, 1 if _is_vector(call, matrix, right) else 2)
    return call.rowwise()


def solve_by_inverse(call: Call) -> Form:
    """`A^-1 b`, or `b A^-1` where `left` is false; b of one axis less than A is one vector for each matrix."""
    matrix, right = _operands(call)
    if matrix.rate.per_candidate or not right.rate.per_candidate:
        raise Elsewhere(f"{matrix.axes} is the candidate's, or {right.axes} is not")
    _check_rows(matrix, 2)
    if matrix.varies(matrix.dim(-1)):
        raise Decline(f"solves with {matrix.axes}, whose size varies")
    inverse = call.again(**{SOLVES[call.name][1]: _identity(call, matrix)})
    inverse = inverse[0] if isinstance(inverse, list) else inverse
    depth = max(len(matrix.layout), len(right.layout))
    batch = [f"b{i}" for i in range(depth - 2, 0, -1)]
    own = batch[len(batch) - len(matrix.layout) + 2 :]
    if _is_vector(call, matrix, right):
        return call.contract((inverse, call.tidy(right)), ([*own, "i", "j"], [*own, "j"]), [*own, "i"])
    theirs = batch[len(batch) - len(right.layout) + 2 :]
    if call.value("left") is False:
        return call.contract((call.tidy(right), inverse), ([*theirs, "k", "i"], [*own, "i", "j"]), [*batch, "k", "j"])
    return call.contract((inverse, call.tidy(right)), ([*own, "i", "j"], [*theirs, "j", "k"]), [*batch, "i", "k"])


def _operands(call: Call) -> tuple[Form, Form]:
    matrix, right = SOLVES[call.name]
    return call.form(matrix), call.form(right)


def _is_vector(call: Call, matrix: Form, right: Form) -> bool:
    """As PyTorch tells it: the right side has the axes of the matrices but the last."""
    may_be = call.name in ("linalg_solve", "_linalg_solve_ex")
    return may_be and (len(right.layout) == 1 or right.extents == matrix.extents[:-1])


def _identity(call: Call, matrix: Form) -> Form:
    """With as many axes as the matrices, so that it is none of vectors."""
    size = matrix.sizes[matrix.dim(-1)]
    eye = call.cast(grid.tensor_form(call.builder, torch.eye(int(size), dtype=torch.bool)), matrix.dtype)
    return replace(eye, layout=(*((),) * (len(matrix.layout) - 2), *eye.layout))


def _check_rows(value: Form, last: int) -> None:
    for axis in range(max(len(value.layout) - last, 0), len(value.layout)):
        if ROW in value.layout[axis]:
            raise Decline(f"rows of {value.axes} are in the axes of its matrices")


LAWS = [
    *law("solving by an inverse", Level.FULL, {" ".join(SOLVES): solve_by_inverse}),
    *law("one side alone", Level.REQUEST, {
        " ".join(SOLVES): solve_each,
        "linalg_inv linalg_inv_ex inverse linalg_pinv linalg_matrix_exp linalg_matrix_power matrix_power "
        "linalg_cholesky linalg_cholesky_ex cholesky cholesky_inverse linalg_qr linalg_lu_factor linalg_lu_factor_ex "
        "linalg_eigh _linalg_eigh linalg_eigvalsh linalg_svd _linalg_svd linalg_svdvals "
        "linalg_det _linalg_det linalg_slogdet _linalg_slogdet": each_by_itself,
    }, blocks=Level.LINEAR),
]  # fmt: skip
