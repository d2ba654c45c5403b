"""The table of operators: every kernel has a row, and what rows say of PyTorch's operators is so."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from rankhoist.compiler.graph import attention, kernels
from rankhoist.compiler.graph.operators import KERNELS, PLAIN, ROWS, Timed, anew, name_of, row
from rankhoist.compiler.rules import all_rules

aten = torch.ops.aten
NAMED = [(name, known) for names, known in ROWS for name in names.split() if hasattr(aten, name)]


def test_every_kernel_has_a_row():
    own = {
        f for module in (kernels, attention) for _, f in inspect.getmembers(module, inspect.isfunction)
        if f.__module__ == module.__name__
    }  # fmt: skip
    assert {f for f in own if not f.__name__.startswith("_")} == KERNELS.keys()


def test_no_operator_has_two_rows():
    names = [name for name, _ in NAMED]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("name", "known"), [(n, r) for n, r in NAMED if r.over], ids=[n for n, r in NAMED if r.over])
def test_what_may_be_written_over_has_a_form_in_place_of_the_same_arguments(name: str, known: Any):
    plain = getattr(getattr(aten, name), known.overload)
    assert row(plain).over is known.over and anew(known.over) is plain
    given = [(a.name, str(a.type)) for a in plain._schema.arguments]
    assert [(a.name, str(a.type)) for a in known.over._schema.arguments] == given
    assert known.over._schema.arguments[0].is_write and not plain._schema.is_mutable


@pytest.mark.parametrize("name", [n for n, r in NAMED if r.view and n != "numpy_T"])
def test_views_share_the_memory_of_their_operand(name: str):
    """By PyTorch's own schema: the result is an alias."""
    overloads = [getattr(getattr(aten, name), o) for o in getattr(aten, name).overloads() if "out" not in o]
    known = [o for o in overloads if o._schema.returns and o._schema.arguments]
    composite = {"flatten", "unflatten", "chunk", "narrow", "reshape", "_unsafe_view", "unsafe_split"}
    assert name in composite or any(o._schema.arguments[0].alias_info for o in known)


@pytest.mark.parametrize("name", [n for n, r in NAMED if r.checked])
def test_only_private_operators_are_said_to_be_checked(name: str):
    assert name.startswith("_")


def test_an_operator_that_has_no_row_is_plain():
    assert row(aten.frac.default) is PLAIN and row("input") is PLAIN
    assert row(aten.add.Scalar).over is None  # what is said of one overload is said of no other
    assert name_of(aten.add.Scalar) == "add" and name_of(kernels.spread) == "spread"


def test_operators_with_a_law_that_multiply_have_a_row_for_products():
    families = {"linear", "addmm", "matmul", "einsum", "tensordot", "bilinear", "convolution", "linalg_vecdot", "dot"}
    ruled = {name_of(op) for op in all_rules()}
    assert families <= ruled
    assert all(row(name).work is not None and row(name).timed is not Timed.PASS for name in families)
