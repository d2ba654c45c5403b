"""Functions that are told in words which axes are loops read sizes as numbers, and are hoisted all the same."""

from __future__ import annotations

import math
import re
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Function, check_model
from torch import Tensor, nn

from rankhoist import hoist
from rankhoist.errors import ExportError

G = torch.Generator().manual_seed(0)
CONTEXT = torch.randn(3, 4, 6, generator=G, dtype=torch.float64)
CANDIDATE = torch.randn(7, 6, generator=G, dtype=torch.float64)
W = torch.randn(6, 6, generator=G, dtype=torch.float64)


@torch.compiler.allow_in_graph
def multiply(description: str, *tensors: Tensor, **sizes: int) -> Any:
    """`"b n, b n d -> b n d"`: products, summed over what brackets hold; with one size for every name, a number."""
    for part, x in zip(description.partition("->")[0].split(","), tensors, strict=True):
        if "..." in part:
            names = [f"more{n}" for n in range(x.dim() - len(part.split()) + 1)]
            description = description.replace("...", " ".join(names))
    inside, _, outside = description.partition("->")
    parts, known = [re.findall(r"\w+", part) for part in inside.split(",")], dict(sizes)
    for part, x in zip(parts, tensors, strict=True):
        assert all(known.setdefault(name, int(size)) == size for name, size in zip(part, x.shape, strict=True))
    letters = dict(zip(known, "abcdefghij", strict=False))
    words = ",".join("".join(letters[name] for name in part) for part in parts)
    last = re.sub(r"\[.*?\]", "", inside).split(",")[-1]  # which is the result, where none is told
    made = []
    for result in (outside or last).split(","):
        axes = [axis.strip("()").split() for axis in re.findall(r"\(.*?\)|\w+", result)]
        product = torch.einsum(f"{words}->{''.join(letters[name] for axis in axes for name in axis)}", *tensors)
        made.append(product.reshape([math.prod(known[name] for name in axis) for axis in axes]))
    return made[0] if len(made) == 1 else tuple(made)


@torch.compiler.allow_in_graph
def shares(description: str, x: Tensor) -> Tensor:
    """Of the sum along axes in brackets."""
    own = [n for n, name in enumerate(description.split()) if name.startswith("[")]
    return x / x.reshape([int(size) for size in x.shape]).sum(own, keepdim=True)


def check(description: str, *tensors: Tensor, **sizes: int) -> None:
    """It makes nothing, so it is no loop."""
    for x, part in zip(tensors, description.split(","), strict=True):
        assert x.dim() == len(part.split())


einx = types.ModuleType("einx")
vars(einx).update(multiply=multiply, shares=shares, check=check)


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "einx", einx)


TOLD = {
    "loops": lambda c, k, w: einx.multiply("b n, b n d -> b n d", c[..., 0], c).sum(1) @ w + k,
    "both sides": lambda c, k, w: einx.multiply("b i, b j -> b i j", c[:, 0], k).tanh().sum(2),
    "at the end": lambda c, k, w: einx.multiply("n b, d b -> n d b", c[..., 0].t(), k.t()).tanh().sum((0, 1)),
    "another order": lambda c, k, w: einx.multiply("b n d, b d -> d n b", c, k).tanh()[:, 0].t(),
    "a weight": lambda c, k, w: einx.multiply("b n d, d e -> b n e", c, w).tanh().sum(1) + k,
    "brackets": lambda c, k, w: einx.multiply("b [n] d, b d -> b d", c, k),
    "none are told": lambda c, k, w: einx.multiply("b [n] d", c) + k,
    "any axes": lambda c, k, w: einx.multiply("... j, ... i -> ... i j", c[:, 0], k).tanh().sum(2),
    "any axes of one": lambda c, k, w: einx.multiply("... d, d -> ... d", c, w[0]).tanh().sum(1) * k,
    "any axes joined": lambda c, k, w: einx.multiply("b ... -> b (...)", c)[:, 6:12] * k,
    "joined": lambda c, k, w: einx.multiply("b d, s d -> (b s) d", k, w[:3])[:, 0].reshape(-1, 3) * c[:, 0, :3],
    "two results": lambda c, k, w: einx.multiply("b d -> b d, d b", k)[1].t() * c[:, 0],
    "a size": lambda c, k, w: einx.multiply("b d, b d -> b d", k, c[:, 1], b=c.shape[0]),
    "no rows": lambda c, k, w: einx.multiply("n d, d -> n d", w, w[0])[0] * k + c[:, 0],
    "shares": lambda c, k, w: (einx.shares("b [n] d", c) * k[:, None]).sum(1),
    "checked": lambda c, k, w: (einx.check("n d", w), k * c[:, 0])[1],
}


@pytest.mark.parametrize("name", TOLD)
def test_loops_over_rows_are_those_of_any_number(name: str):
    models = check_model(Function(TOLD[name], w=W).eval(), CONTEXT, CANDIDATE)
    if name == "loops":
        assert models["full"].plan.cost.multiply_adds == 6 * 6


product = multiply


class Weighed(nn.Module):
    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        return product("b n d, b d -> b n", context, candidate).tanh()


def test_a_function_by_a_name_of_the_models_file():
    check_model(Weighed().eval(), CONTEXT, CANDIDATE)
    assert product is multiply is einx.multiply


class Within(nn.Module):
    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, context: Tensor, candidate: Tensor) -> Tensor:
        return context[:, 0] * self.call(candidate).sum()


@pytest.mark.parametrize(
    "call",
    [
        lambda x: einx.multiply("[b] d -> d", x),
        lambda x: einx.multiply("b [d] ->", x),
        lambda x: einx.multiply("7 d -> d 7", x),
        lambda x: einx.shares("[b] d", x),
        lambda x: einx.shares("[d] b", x.t()),
    ],
)
def test_rows_in_a_bracket_or_by_number_are_no_loop(call: Callable[..., Tensor]):
    said = r"(?s)fixes the number of rows.*int\(size\).*\nreached from line \d+ of .*return context.* self\.call\(cand"
    with pytest.raises(ExportError, match=said):
        hoist(Within(call).eval(), (CONTEXT[:1].expand(7, -1, -1), CANDIDATE), context=["context"])
