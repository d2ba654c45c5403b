"""The page of laws names files, functions and tests: all of them exist."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest
import test_added_fills
import test_demand
import test_experts
import test_fills
import test_gathers
import test_padding
import test_reads_mapped
import test_target
import test_target_fills
import test_ways
import test_zeros
from rules import test_rowwise, test_scans, test_windows

from rankhoist.compiler.rules import FAMILIES

REPOSITORY = Path(__file__).parents[1]
SOURCE = REPOSITORY / "src" / "rankhoist"
PAGE = (REPOSITORY / "docs" / "laws.md").read_text()
QUOTED = re.compile(r"`([^`\n]+)`")
TESTS = [importlib.import_module(f"rules.test_{family}") for family in FAMILIES]


def items(kind: str) -> list[str]:
    """What the page's bullets of one kind quote, continuation lines included."""
    bullets = re.findall(rf"^- {kind}:(.*(?:\n  .*)*)", PAGE, re.MULTILINE)
    return [name for bullet in bullets for name in QUOTED.findall(bullet)]


@cache
def functions(path: Path) -> set[str]:
    return {n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)}


@pytest.mark.parametrize("name", sorted({q for q in QUOTED.findall(PAGE) if ".py" in q}))
def test_named_files_and_functions_exist(name: str):
    file, _, function = name.partition("::")
    roots = [REPOSITORY] if file.startswith("tests/") else [SOURCE / "compiler", SOURCE]
    path = next((root / file for root in roots if (root / file).is_file()), None)
    assert path, name
    assert not function or function in functions(path), name


def test_named_cases_exist():
    equal = {*test_padding.IDIOMS, *test_fills.FILLED, *test_added_fills.ADDED, *test_scans.SCANS}
    equal = equal.union(test_windows.WINDOWS, test_windows.POOLED, test_demand.NARROWED, test_reads_mapped.MAPS)
    equal = equal.union(test_gathers.SUMS, test_gathers.MAPPED, test_experts.LAYERS, test_ways.KEPT)
    equal = equal.union(test_zeros.MIXES, test_target.PUT, test_target_fills.MOVED)
    equal = equal.union(*(t.EQUAL for t in TESTS))
    declining = {*test_padding.NEAR_MISSES, *test_fills.NEAR_MISSES, *test_added_fills.NEAR_MISSES}
    declining = declining.union(
        test_rowwise.WHOLE,
        test_scans.WHOLE,
        test_windows.WHOLE,
        test_demand.WHOLE,
        test_experts.NEAR_MISSES,
        test_reads_mapped.NEAR_MISSES,
        test_gathers.NEAR_MISSES,
        test_gathers.PAIR_BY_PAIR,
        test_target.NEAR_MISSES,
        test_target_fills.NEAR_MISSES,
        test_ways.NEAR_MISSES,
        test_zeros.NEAR_MISSES,
        *(t.NEAR_MISSES for t in TESTS),
    )
    assert items("Tests") and items("Declines")
    assert [name for name in items("Tests") if name not in equal] == []
    assert [name for name in items("Declines") if name not in declining and ".py" not in name] == []


def test_every_near_miss_is_on_the_page():
    assert set().union(*(t.NEAR_MISSES for t in TESTS)) <= set(items("Declines"))


def test_every_law_says_level_work_place_source_and_tests():
    laws = PAGE.split("## What holds it together")[0].split("\n### ")[1:]
    assert len(laws) > 15
    for law in laws:
        missing = [k for k in ("Level", "Work", "Where", "Source", "Tests", "Declines") if f"\n- {k}" not in law]
        assert missing == [], law.splitlines()[0]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_of_rules_is_on_the_page(family: str):
    assert f"`rules/{family}.py::" in PAGE
