"""Sizes that vary from call to call, such as how long a history is.

Soundness: such a size is no number. It is added to and multiplied with others, and it is the same as another where the
expressions are; whatever needs a number (positions, a share, a loop) declines. How large it usually is only compares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import sympy

from rankhoist.capture import InputSpec
from rankhoist.capture.varying import with_lengths
from rankhoist.compiler.graph.decline import Decline


class Length:
    """A size that varies.

    Args:
        expr: in the symbols of the lengths of inputs.
        at: what its symbols are in the example; plans are made for that.
    """

    __slots__ = ("at", "expr", "usual")

    def __init__(self, expr: sympy.Expr, at: Mapping[sympy.Symbol, int]) -> None:
        self.expr = expr
        self.at = {s: at[s] for s in sorted(expr.free_symbols, key=str)}
        self.usual = self.when(self.at)

    def when(self, lengths: Mapping[sympy.Symbol, int]) -> int:
        """What it is where the lengths are these."""
        return int(self.expr.subs(lengths))

    def __repr__(self) -> str:
        return str(self.expr)

    # -- arithmetic that stays exact

    def __add__(self, other: Any) -> Sized:
        return sized(self.expr + _expr(other), _at(self, other))

    def __mul__(self, other: Any) -> Sized:
        return sized(self.expr * _expr(other), _at(self, other))

    def __sub__(self, other: Any) -> Sized:
        return self + -1 * other

    def __rsub__(self, other: Any) -> Sized:
        return -1 * self + other

    __radd__, __rmul__ = __add__, __mul__

    def __floordiv__(self, other: Any) -> Sized:
        return _divided(self, other)

    def __rfloordiv__(self, other: Any) -> Sized:
        return _divided(other, self)

    def __mod__(self, other: Any) -> Sized:
        return 0 * usual(_divided(self, other))

    def __rmod__(self, other: Any) -> Sized:
        return 0 * usual(_divided(other, self))

    def _sympy_(self) -> sympy.Expr:
        return self.expr

    # -- comparisons: equal if it is for all lengths, larger if it usually is

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Length) and self.expr == other.expr

    def __hash__(self) -> int:
        return hash(self.expr)

    def __lt__(self, other: Any) -> bool:
        return bool(self.usual < usual(other))

    def __le__(self, other: Any) -> bool:
        return bool(self.usual <= usual(other))

    def __gt__(self, other: Any) -> bool:
        return bool(self.usual > usual(other))

    def __ge__(self, other: Any) -> bool:
        return bool(self.usual >= usual(other))

    # -- a number it is not

    def _no_number(self, *_: Any) -> NoReturn:
        raise Decline(f"needs a number for the length {self.expr}, which varies")

    __index__ = __int__ = __float__ = __neg__ = __pow__ = __rpow__ = __truediv__ = __rtruediv__ = _no_number


Sized = Any  # a number, or a `Length`, which acts like one and declines where it cannot


def sized(expr: sympy.Expr, at: Mapping[sympy.Symbol, int]) -> Sized:
    """A size: a number, if the expression is one for all lengths."""
    expr = expr if expr.is_Integer else sympy.expand(expr)
    return int(expr) if expr.is_Integer else Length(expr, at)


def _at(*sizes: Any) -> dict[sympy.Symbol, int]:
    return {s: n for size in sizes if isinstance(size, Length) for s, n in size.at.items()}


def usual(size: Any) -> Any:
    """A size as a number, to compare costs: what it is at the lengths of the example."""
    return size.usual if isinstance(size, Length) else size


def usually(sizes: Sequence[Any]) -> tuple[int, ...]:
    """The same of several."""
    return tuple(usual(size) for size in sizes)


def sizes(spec: InputSpec, at: Mapping[sympy.Symbol, int]) -> list[Sized]:
    """Of a row of an input, those that vary as lengths."""
    symbols = {str(s): s for s in at}
    return list(with_lengths(spec.shape, spec.varying, lambda v: Length(symbols[v.length], at)))


def varies(sizes: Sequence[Any]) -> bool:
    """Whether any of these sizes does."""
    return any(isinstance(size, Length) for size in sizes)


def _expr(size: Any) -> Any:
    if not isinstance(size, int | Length):
        raise Decline(f"needs a number for a length, which varies: it is taken together with {size!r}")
    return size.expr if isinstance(size, Length) else size


def order(a: Any, b: Any) -> int:
    """-1 where `a <= b`, 1 where `a >= b`, 0 where they are the same, whatever the lengths are; else it declines.

    Soundness: lengths are not negative, so a sum of products of lengths is not where none of its coefficients is.
    """
    if a == b:
        return 0
    if _not_negative(b - a):
        return -1
    if _not_negative(a - b):
        return 1
    raise Decline(f"whether {a} or {b} comes first depends on how long axes are")


def not_above(a: Any, b: Any) -> bool:
    """Whether `a <= b` is known whatever the lengths are."""
    try:
        return order(a, b) <= 0
    except Decline:
        return False


def _not_negative(size: Any) -> bool:
    expr = sympy.sympify(size)
    symbols = sorted(expr.free_symbols, key=str)
    if not expr.is_polynomial(*symbols):
        return False
    return all(c >= 0 for c in sympy.Poly(expr, *symbols).coeffs()) if symbols else bool(expr >= 0)


def quotient(expr: sympy.Expr, by: sympy.Expr) -> sympy.Expr | None:
    """The exact quotient, with whole coefficients; None where it does not divide for all lengths."""
    expr = sympy.sympify(expr)
    times, rest = expr.as_coeff_Mul()
    if rest == by:
        return times if times.is_Integer else None
    if not expr.is_polynomial(*expr.free_symbols):
        return None
    found = sympy.expand(sympy.cancel(expr / by))
    symbols = found.free_symbols
    if not symbols:
        return found if found.is_Integer else None
    if not found.is_polynomial(*symbols) or any(not c.is_Integer for c in sympy.Poly(found, *symbols).coeffs()):
        return None
    return found


def _divided(size: Any, by: Any) -> Sized:
    found = quotient(_expr(size), _expr(by))
    if found is None:
        raise Decline(f"divides the length {size} by {by}")
    return sized(found, _at(size, by))
