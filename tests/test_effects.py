"""What a graph does beside its results: assertions hold in a hoisted model, tokens are gone; and mistakes of ours."""

from __future__ import annotations

import ast
import logging
import operator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import LEVELS, Function, assert_equal, check_model
from torch import Tensor

import rankhoist
from rankhoist.capture import capture
from rankhoist.capture.statements import wanted
from rankhoist.compiler.plan import attempt
from rankhoist.compiler.rules import all_rules
from rankhoist.errors import ExportError, HoistingWarning, UnsupportedModelError
from rankhoist.hoist import hoist_program

G = torch.Generator().manual_seed(2)
CONTEXT, CANDIDATE = (torch.randn(n, 4, generator=G, dtype=torch.float64) for n in (3, 7))
EXAMPLE = CONTEXT[torch.arange(7) % 3], CANDIDATE


def bounded(c: Tensor, k: Tensor) -> Tensor:
    torch._assert_async((c.abs() < 9).all(), "the context is out of range")
    torch._assert_async((k.abs() < 9).all(), "a candidate is out of range")
    return (c * k).sum(1)


@pytest.mark.parametrize("level", [x.name.lower() for x in LEVELS])
def test_an_assertion_of_a_tensor_raises_at_every_level(level: str, tmp_path: Path):
    hoisted = rankhoist.hoist(Function(bounded).eval(), EXAMPLE, context=["context"], level=level)
    hoisted.save(tmp_path / "model.rankhoist")
    for model in (hoisted, rankhoist.load(tmp_path / "model.rankhoist")):
        assert_equal(model(CONTEXT[:1], CANDIDATE), bounded(CONTEXT[:1], CANDIDATE))
        with pytest.raises(RuntimeError, match="the context is out of range"):
            model(CONTEXT[:1] * 99, CANDIDATE)
        with pytest.raises(RuntimeError, match="a candidate is out of range"):
            model(CONTEXT, CANDIDATE * 99, request_offsets=[0, 3, 3, 7])


def test_an_assertion_of_rows_raises_without_results_that_need_it():
    check_model(Function(bounded).eval(), CONTEXT, CANDIDATE)


def number(c: Tensor, k: Tensor) -> Tensor:
    torch._check(c.abs().amax().long().item() < 1000)
    return c * k


def printing(c: Tensor, k: Tensor) -> Tensor:
    torch.ops.aten._print("")
    return c * k


def checked(c: Tensor, k: Tensor) -> Tensor:
    """With checks in Python, one of them of several lines."""
    if c.isnan().any():
        raise ValueError("the context has holes")
    assert (
        k.abs() < 9  # of all candidates
    ).all(), "a candidate is out of range"
    assert -8 <= k.min() <= 8 and (c < 8).all()
    if not ((k > -6).all() and (k < 6).all()):
        raise ValueError(f"candidates {k.shape}")
    return (c * k).sum(1)


def test_checks_in_python_are_assertions():
    """Which hold where the model's do, and raise where it raises."""
    hoisted = rankhoist.hoist(Function(checked).eval(), EXAMPLE, context=["context"], level="request")
    c, k = CONTEXT[:1].clamp(-1, 1), CANDIDATE.clamp(-1, 1)
    assert_equal(hoisted(c, k), checked(c, k))
    bad = {
        "the context has holes": (c * float("nan"), k),
        "a candidate is out of range": (c, k + 10),
        r"assert -8 <= k.min\(\) <= 8 and": (c + 9, k),
        r"refused if not \(\(k > -6\).all\(\) and \(k < 6\).all\(\)\)": (c, k + 6.5),
    }
    for words, given in bad.items():
        with pytest.raises((ValueError, AssertionError)):
            checked(*given)
        with pytest.raises(RuntimeError, match=words):
            hoisted(*given)


def likely(c: Tensor, k: Tensor) -> Tensor:
    """torch's distributions check what they are made of and asked about."""
    normal = torch.distributions.Normal(c.sum(1), c.abs().sum(1) + 1)
    return normal.log_prob(k.sum(1)) + normal.cdf(k.prod(1))


def test_checks_of_distributions_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)  # torch.compile switches them off
    rankhoist.hoist(Function(likely).eval(), EXAMPLE, context=["context"]).save(tmp_path / "likely.rankhoist")
    loaded = rankhoist.load(tmp_path / "likely.rankhoist")
    assert_equal(loaded(CONTEXT[:1], CANDIDATE), likely(CONTEXT[:1].expand(7, -1), CANDIDATE))
    with pytest.raises(RuntimeError, match="_is_all_true"):
        loaded(CONTEXT[:1], CANDIDATE * float("nan"))


def leads_on(c: Tensor, k: Tensor) -> Tensor:
    if (c > 0).all():
        return c * k
    return c + k


def is_caught(c: Tensor, k: Tensor) -> Tensor:
    try:
        if (c > 0).all():
            raise ValueError("positive")
    except ValueError:
        return c * k
    return c + k


def is_asked_before(c: Tensor, k: Tensor) -> Tensor:
    assert sorted([c.min(), k.min()])[0] < 9
    return c * k


@pytest.mark.parametrize("call", [leads_on, is_caught, is_asked_before])
def test_what_is_no_check_is_refused(call):
    with pytest.raises(ExportError, match=r"depends on the values of tensors.*\n.*\nIt is line"):
        capture(Function(call).eval(), EXAMPLE, ["context"])


def test_a_cut_to_the_longest_of_a_call_is_told_what_to_do():
    model = Function(lambda c, k: c[:, : int((c > 0).sum(1).max())].sum(1) * k.sum(1)).eval()
    with pytest.raises(ExportError, match=r"cuts sequences to the longest of a call, leave that out[\s\S]*It is line"):
        capture(model, EXAMPLE, ["context"])


@pytest.mark.parametrize(
    ("test", "truth"),
    [
        ("x", True), ("not x", False), ("x and y", True), ("x and not y", None), ("x or y", None),
        ("not (x or y)", False), ("not (x and y)", None), ("0 < x < 1", True), ("not 0 < x < 1", None),
        ("x if y else z", None), ("not (x or not y)", None), ("all(x for x in y)", None), ("f(x and y)", None),
    ],
)  # fmt: skip
def test_what_an_assertion_wants_to_hear(test, truth):
    assert wanted(ast.parse(test, mode="eval").body, True) is truth


def test_an_operator_that_writes_to_what_it_is_given_is_named():
    torch.library.define("styles::twice", "(Tensor(a!) x) -> ()")
    torch.library.impl("styles::twice", "cpu")(lambda x: x.mul_(2))

    def call(c: Tensor, k: Tensor) -> Tensor:
        torch.ops.styles.twice(x := c + 1)
        return x * k

    with pytest.raises(
        UnsupportedModelError, match=r"styles.twice.default in the model itself writes to what it is given"
    ):
        rankhoist.hoist(Function(call).eval(), EXAMPLE, context=["context"])


LEFT_OUT = {"number": (number, "is not asserted: u0 < 1000"), "printing": (printing, "prints nothing")}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_is_left_out_is_in_the_report(name: str):
    call, reason = LEFT_OUT[name]
    hoisted = rankhoist.hoist(Function(call).eval(), EXAMPLE, context=["context"])
    assert any(reason in r for r in hoisted.plan.reasons.values())
    assert any(reason in (o["reason"] or "") for o in hoisted.report().to_dict()["operators"])
    hoisted.report().to_dict()


def test_inverses_are_as_their_author_wrote_them():
    def solved(c: Tensor, k: Tensor) -> Tensor:
        square = torch.einsum("bi,bj->bij", c, c) + torch.eye(4, dtype=c.dtype)
        return (torch.linalg.inv(square) @ k[..., None])[..., 0] + torch.linalg.solve(square, k)

    check_model(Function(solved).eval(), CONTEXT, CANDIDATE)


def test_an_effect_that_is_no_assertion_is_refused():
    with torch.library._scoped_library("rankhoist_test", "FRAGMENT") as library:
        library.define("count(Tensor x) -> Tensor")
        library.impl("count", lambda x: x.clone(), "CompositeExplicitAutograd")
        library._register_effectful_op("rankhoist_test::count", torch.library.EffectType.ORDERED)
        library._register_fake("count", torch.empty_like)
        model = Function(lambda c, k: torch.ops.rankhoist_test.count(c) * k).eval()
        with pytest.raises(UnsupportedModelError, match=r"count\.default has an effect"):
            rankhoist.hoist(model, EXAMPLE, context=["context"])


# -- mistakes of ours


def test_a_pass_that_breaks_leaves_the_safe_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    model = Function(lambda c, k: (c @ c.mT).sum(1, keepdim=True) * k).eval()
    program = capture(model, EXAMPLE, ["context"], all_rules())
    monkeypatch.setattr(attempt, "lean", operator.add)
    with pytest.warns(HoistingWarning, match="hoisting failed .TypeError: .* please report it"):
        hoisted = hoist_program(program)
    rows = CONTEXT[:1].expand(7, 4)
    assert_equal(hoisted(CONTEXT[:1], CANDIDATE), model(rows, CANDIDATE))
    assert (hoisted.plan.level.name, hoisted.level) == ("EXPAND", "full")
    assert all("please report it" in r for r in hoisted.plan.reasons.values())
    assert "please report it" in str(hoisted.report())
    hoisted.save(tmp_path / "model.rankhoist")
    assert "please report it" in str(rankhoist.load(tmp_path / "model.rankhoist").report())


class StopError(Exception):
    """What a signal handler of the user's raises."""


def test_an_exception_that_passes_through_is_no_mistake_of_ours(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise StopError

    monkeypatch.setattr(attempt, "lean", interrupted)
    with pytest.raises(StopError):
        rankhoist.hoist(Function(lambda c, k: c * k).eval(), EXAMPLE, context=["context"])


def test_what_a_model_logs_while_it_is_exported_stays_out_of_the_terminal(caplog: pytest.LogCaptureFixture):
    def talkative(c: Tensor, k: Tensor) -> Tensor:
        logging.warning("slow way")
        return c * k

    root = logging.getLogger()
    handlers, filters = list(root.handlers), list(root.filters)
    rankhoist.hoist(Function(talkative).eval(), EXAMPLE, context=["context"])
    assert "slow way" not in caplog.text and (root.handlers, root.filters) == (handlers, filters)
    talkative(CONTEXT, CONTEXT)
    assert "slow way" in caplog.text
