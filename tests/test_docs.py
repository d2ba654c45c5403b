"""The page of laws names files, functions and tests: all of them exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import test_near_misses
import test_padding
import test_rules
import test_windows

REPOSITORY = Path(__file__).parents[1]
SOURCE = REPOSITORY / "src" / "rankhoist"
PAGE = (REPOSITORY / "docs" / "laws.md").read_text()
QUOTED = re.compile(r"`([^`\n]+)`")
FAMILIES = [path.stem for path in (SOURCE / "compiler" / "rules").glob("*.py") if "LAWS = " in path.read_text()]


def items(kind: str) -> list[str]:
    """What the page's bullets of one kind quote, continuation lines included."""
    bullets = re.findall(rf"^- {kind}:(.*(?:\n  .*)*)", PAGE, re.MULTILINE)
    return [name for bullet in bullets for name in QUOTED.findall(bullet)]


def ids(*tests) -> set[str]:
    """The cases of parametrised tests."""
    found = set()
    for test in tests:
        for mark in test.pytestmark:
            if mark.name == "parametrize":
                found |= set(mark.kwargs.get("ids") or mark.args[1])
    return found


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
    equal = ids(test_rules.test_equal_at_every_level, test_padding.test_a_history_is_computed_once_under_a_joined_mask)
    equal |= {*test_windows.SCANS, *test_windows.WINDOWS}
    declining = ids(test_rules.test_mixing_rows_declines, test_near_misses.test_declines)
    declining |= {*test_padding.NEAR_MISSES, *test_windows.NEAR_MISSES}
    assert items("Tests") and items("Declines")
    assert [name for name in items("Tests") if name not in equal] == []
    assert [name for name in items("Declines") if name not in declining and ".py" not in name] == []


def test_every_near_miss_is_on_the_page():
    declining = ids(test_rules.test_mixing_rows_declines, test_near_misses.test_declines)
    assert declining <= set(items("Declines"))


def test_every_law_says_level_work_place_source_and_tests():
    laws = PAGE.split("## What holds it together")[0].split("\n### ")[1:]
    assert len(laws) > 15
    for law in laws:
        missing = [k for k in ("Level", "Work", "Where", "Source", "Tests", "Declines") if f"\n- {k}" not in law]
        assert missing == [], law.splitlines()[0]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_of_rules_is_on_the_page(family: str):
    assert f"`rules/{family}.py::" in PAGE
