"""Laws are rows: what a rule may see is little, every law is on the page, and each can be switched off by name."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import Function, assert_equal

from rankhoist.capture import capture
from rankhoist.compiler.algebra.workload import Level, Workload
from rankhoist.compiler.plan import Task
from rankhoist.compiler.plan.attempt import attempt
from rankhoist.compiler.rules import FAMILIES, all_rules, law_names
from rankhoist.compiler.rules.law import table
from rankhoist.errors import CaptureError
from rankhoist.hoist import hoist_program
from rankhoist.report import Report
from rankhoist.report.make import make_report
from rankhoist.runtime import HoistedModel

REPOSITORY = Path(__file__).parents[1]
RULES = REPOSITORY / "src" / "rankhoist" / "compiler" / "rules"
FILES = [RULES / f"{family}.py" for family in FAMILIES]
ROWS = [row for family in FAMILIES.values() for row in family]
MOST_NAMES = 51

CONTEXT, CANDIDATE = torch.randn(1, 6, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)


def docs_script() -> ModuleType:
    """`docs/laws.py` as a module."""
    spec = importlib.util.spec_from_file_location("laws", REPOSITORY / "docs" / "laws.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- what a rule may see


def project_names(source: str) -> set[str]:
    """What a file uses of the project: names that it imports, and attributes of `call`."""
    tree = ast.parse(source)
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("rankhoist")]
    used = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
    verbs = {f"call.{n.attr}" for n in used if n.value.id == "call"}  # type: ignore[attr-defined]
    return {alias.name for n in imports for alias in n.names} | verbs


def test_rules_use_few_names_of_the_project():
    names = set().union(*(project_names(path.read_text(encoding="utf-8")) for path in FILES))
    assert len(names) < MOST_NAMES, sorted(names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_rule_knows_a_level_the_interpreter_or_another_family(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert not [m for m in imported if m.endswith("interpret")]
    assert {m for m in imported if m.startswith("rankhoist.compiler.rules")} == {"rankhoist.compiler.rules.law"}
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    read = [a for f in functions for a in ast.walk(f) if isinstance(a, ast.Name) and a.id == "Level"]
    assert read == []
    private = [n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr.startswith("_")]
    assert [name for name in private if not name.startswith("_prelu")] == []


# -- their tests


def test_a_family_of_rules_has_the_file_of_tests_of_its_name():
    files = {path.stem for path in (REPOSITORY / "tests" / "rules").glob("test_*.py")}
    assert files == {f"test_{path.stem}" for path in RULES.glob("*.py") if path.stem not in ("__init__", "law")}
    assert files == {f"test_{family}" for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_near_misses_stand_beside_what_is_equal(family: str):
    tests = importlib.import_module(f"rules.test_{family}")
    assert tests.EQUAL and tests.NEAR_MISSES
    for test, cases in ((tests.test_equal_at_every_level, tests.EQUAL), (tests.test_declines, tests.NEAR_MISSES)):
        assert [mark.args for mark in test.pytestmark] == [("name", cases)]


# -- the table


def test_an_operator_has_one_rule_per_law():
    with pytest.raises(ValueError, match="has two rules"):
        table([ROWS, ROWS])


def test_every_row_has_an_operator_and_a_docstring():
    assert [row.rule.__name__ for row in ROWS if not row.operators or not row.rule.__doc__] == []


# -- the page


def test_the_page_says_what_the_rows_say():
    script = docs_script()
    page = script.PAGE.read_text(encoding="utf-8")
    assert script.filled(page) == page, "run: python docs/laws.py"


def test_every_law_is_on_the_page_with_cases_and_near_misses():
    script = docs_script()
    sections = script.PAGE.read_text(encoding="utf-8").split("\n### ")
    named = [(law, section) for section in sections for law in script.laws_of(f"### {section}")]
    assert sorted(law for law, _ in named) == sorted(law_names())
    for law, section in named:
        for kind in ("Tests", "Declines"):
            bullet = script.re.search(script.BULLET.format(kind), section, script.re.MULTILINE)
            assert bullet and script.QUOTED.search(bullet[1]), (law, kind)


# -- by name


@pytest.fixture(scope="module")
def program():
    model = Function(lambda c, k: torch.cat([c, k], 1).softmax(-1).exp()).eval()
    return model, capture(model, (CONTEXT.expand(5, 6), CANDIDATE), ["context"], all_rules())


def test_a_law_is_switched_off_by_name(program):
    model, captured = program
    chosen: list[frozenset[str]] = [frozenset(), frozenset({"softmax over blocks"})]
    plans = [attempt(Task(captured, Level.FIRST, Workload(), without=off)) for off in chosen]
    for plan in plans:
        assert_equal(HoistedModel(captured, plan)(CONTEXT, CANDIDATE), model(CONTEXT.expand(5, 6), CANDIDATE))
    on, off = ({law.name: law for law in make_report(plan).laws} for plan in plans)
    assert on["softmax over blocks"].applied == ("softmax",) and not on["softmax over blocks"].declined
    assert off["softmax over blocks"].declined == {"switched off": 1}
    assert off["one side alone"].applied == ("softmax",)


def test_the_report_says_why_a_law_was_not_applied(program):
    report = hoist_program(program[1], level="request").report()
    laws = {law.name: law for law in report.laws}
    assert laws["softmax over blocks"].declined == {"level first and above": 1}
    assert laws["positions move"].applied == ("cat",)
    assert "  softmax over blocks (level first): 0 operators\n    not for 1: level first and above" in str(report)
    data = report.to_dict()
    assert Report.from_dict(data).laws == report.laws
    assert Report.from_dict({k: v for k, v in data.items() if k != "laws"}).laws == ()


def test_an_unknown_name_is_told_the_names(program):
    with pytest.raises(
        CaptureError, match=r"unknown law 'softmax'; laws are bags of values, rows in .*softmax over blocks"
    ):
        hoist_program(program[1], without=["softmax"])


def test_without_any_law_everything_is_as_its_author_wrote_it(program):
    model, captured = program
    hoisted = hoist_program(captured, without=law_names())
    assert hoisted.plan.level is Level.EXPAND
    assert {*hoisted.plan.reasons.values()} == {"its laws are switched off"}
    assert_equal(hoisted(CONTEXT, CANDIDATE), model(CONTEXT.expand(5, 6), CANDIDATE))
