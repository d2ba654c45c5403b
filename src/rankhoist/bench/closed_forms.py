"""What the decompositions of the two papers cost, in closed form; counted work of hoisted models equals it.

One unit is one multiply-add; one request (the papers' B = 1) with N candidates. Letters: K context and M candidate
fields (or tokens) of width D; C context and T candidate columns; H outputs of a layer.

RAD is arXiv 2605.27450 (rank-aware decomposition), MaRI is arXiv 2602.23105. We could read their abstracts, so a
formula is put to an equation by its subject: Eq. 6 to 8 pairs, 11 and 12 fully connected layers, 15 cross layers, 19
and 20 rDCN. Where RAD's text and its printed formula differ, the function returns what is counted, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import comb


@dataclass(frozen=True)
class Work:
    """Multiply-adds: `once` per request and `each` per candidate."""

    once: int
    each: int

    def of(self, candidates: int) -> int:
        """In one call of one request."""
        return self.once + self.each * candidates

    def __add__(self, other: Work) -> Work:
        return Work(self.once + other.once, self.each + other.each)


@dataclass(frozen=True)
class Split:
    """A computation as it is trained, `plain`, and what stands in its place."""

    plain: Work
    split: Work

    def ratio(self, candidates: int) -> Fraction:
        """How many times fewer multiply-adds one request of so many candidates takes."""
        return Fraction(self.plain.of(candidates), self.split.of(candidates))

    @property
    def saved(self) -> Fraction:
        """The share that is saved for many candidates: what is done once per request then counts nothing."""
        return 1 - Fraction(self.split.each, self.plain.each)

    def __add__(self, other: Split) -> Split:
        return Split(self.plain + other.plain, self.split + other.split)


# -- pairs of fields


def gram(k: int, m: int, d: int, *, diagonal: bool = True) -> Split:
    """`K^2 D + N (K M + M^2) D` for `N (K + M)^2 D`: all dot products in both orders; saves K / (K + M).

    A block of context with candidate serves both of its orders. RAD's table has -87 % for pairs, which is this one at
    K = 27, M = 4; its Eq. 8 is that of `dot_pairs`.

    Args:
        diagonal: whether someone reads the square of a field; a side of one field has nothing else to compute.
    """
    own_k, own_m = (f * f if diagonal or f > 1 else 0 for f in (k, m))
    return Split(Work(0, (k + m) ** 2 * d), Work(own_k * d, (k * m + own_m) * d))


def dot_pairs(k: int, m: int, d: int) -> Split:
    """`C(K, 2) D + N (K M + C(M, 2)) D` (RAD Eq. 6) for `N C(K + M, 2) D`: each dot product once.

    `ratio` is RAD Eq. 7, and `saved`, `C(K, 2) / C(K + M, 2)`, its Eq. 8.
    """
    return Split(Work(0, comb(k + m, 2) * d), Work(comb(k, 2) * d, (k * m + comb(m, 2)) * d))


# -- layers


def linear(c: int, t: int, h: int) -> Split:
    """`C H + N T H` for `N (C + T) H`: a linear layer over a concatenation, columns in any order; saves C / (C + T).

    MaRI's fusion product, whose `ratio` with C = r T is `(1 + r) N / (r + N)`; RAD Eq. 11.
    """
    return Split(Work(0, (c + t) * h), Work(c * h, t * h))


def linear_over_pairs(k: int, m: int, h: int) -> Split:
    """`C(K, 2) H + N (K M + C(M, 2)) H` for `N C(K + M, 2) H`: the layer that reads the pairs (RAD Eq. 12)."""
    return linear(comb(k, 2), k * m + comb(m, 2), h)


def cross_layer(c: int, t: int) -> Split:
    """`C D + N T D` for `N D^2`, D = C + T: the first layer of a cross network (RAD Eq. 15); saves C / D.

    Both papers stop at it: its result mixes context and candidate in every column.
    """
    return linear(c, t, c + t)


def cross_network(c: int, t: int, layers: int) -> Split:
    """`cross_layer`, and `N D^2` for each of the other layers: DCNv2 as far as RAD takes it; saves C / (D L).

    RAD's table has -18 % at C = 514, T = 577, L = 4, where this is 11.8 %. A quarter of `1 - (T / D)^2` is 18.0 %: what
    the first layer would save if its context columns did not read the candidate either. Those of DCNv2 do.
    """
    width = c + t
    others = Work(0, (layers - 1) * width * width)
    return cross_layer(c, t) + Split(others, others)


def attention_layer(k: int, m: int, d: int) -> Split:
    """The first layer of self-attention over K + M tokens (RAD section 4.3), projections by `D x D`.

    `3 K D^2 + N 3 M D^2` for queries, keys and values; `K^2 D + N (2 K M + M^2) D` each for scores and for values; the
    output projection reads K + M tokens of every candidate, since all have read it: `N (K + M) D^2`.

    A single candidate token is counted lower: its values are scaled, not summed, and an elementwise product is no
    multiply-add.
    """
    tokens = k + m
    output = tokens * d * d
    plain = Work(0, 3 * tokens * d * d + 2 * tokens**2 * d + output)
    each = 3 * m * d * d + 2 * (2 * k * m + m * m) * d + output - (tokens * d if m == 1 else 0)
    return Split(plain, Work(3 * k * d * d + 2 * k * k * d, each))


# -- the changed model


def rdcn(c: int, t: int, layers: int) -> Split:
    """`L (C^2 + C T) + N L T^2` (RAD Eq. 19 and 20) beside `N L D^2` of DCNv2, which rDCN replaces and does not equal.

    `saved` is `1 - (T / D)^2`: 72.0 % at C = 514, T = 577, as in RAD's table and text. Its printed cost has C T inside
    the loop over candidates (`rdcn_as_printed`), which contradicts both: the map of the context that a candidate reads
    is the same for all candidates of a request.
    """
    return Split(Work(0, layers * (c + t) ** 2), Work(layers * (c * c + c * t), layers * t * t))


def rdcn_as_printed(c: int, t: int, layers: int) -> Split:
    """`L C^2 + N L (C T + T^2)`: the cost that RAD prints, which would save C / D only, 47.1 % in place of 72.0 %."""
    return Split(rdcn(c, t, layers).plain, Work(layers * c * c, layers * (c * t + t * t)))
