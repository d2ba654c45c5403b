"""The source tree's picture, checked on the text of every file: all arrows point down.

1. Rooms import in one direction only; `ROOMS` is that direction.
2. No modules import each other in a circle, wherever in a file the import stands.
3. A file is short, or its first lines say why it is one idea.
4. Importing the package imports nothing heavy that only some calls need.

The checks are functions of (path, source text), so that the last tests can show each of them failing.
"""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

SOURCES = [Path(__file__).parents[1] / folder for folder in ("src", "client/src")]
LONGEST = 350  # lines of a file

# A room may import those above it in this list. `compiler` and `lab` are made of rooms.
ROOMS = [
    "client",
    "errors",
    "arguments",
    "mistakes",
    "capture",
    "compiler.graph",
    "compiler.algebra",
    "compiler.rules",
    "compiler.demand",
    "compiler.lower",
    "compiler.emit",
    "compiler.growing",
    "compiler.targets",
    "compiler.plan",
    "report",
    "runtime",
    "verify",
    "hoist",
    "training",
    "score",
    "serve",
    "bench",
    "lab.train",
    "lab.loadtest",
    "lab.demo",
    "cli",
]
# Beside them: they import `errors` only, and only the users of the compiler import them.
SIDE = ["nn", "lab.data"]
# `train` stands above `bench` for its plots, and above `hoist` to save what it trained hoisted.
USERS = ["lab.train", "lab.demo", "cli"]
# Entry points: they may import everything (`__init__` only what is public) and are imported by users only.
ENTRY = ["__init__", "__main__"]
ALL = [*ROOMS, *SIDE, *ENTRY]
HOUSES = {room.split(".")[0] for room in ALL if "." in room}


# --------------------------------------------------------------------------------------------------
# 1. Rooms
# --------------------------------------------------------------------------------------------------


def may_import(importer: str, imported: str) -> bool:
    """Whether a file of room `importer` may import from room `imported`."""
    if importer == imported or importer in ENTRY:
        return True
    if imported in ENTRY:
        return imported == "__init__" and importer in USERS
    if importer in SIDE:
        return imported == "errors"
    if imported in SIDE:
        return importer in USERS
    return importer in ROOMS and imported in ROOMS[: ROOMS.index(importer)]


def room_of(name: str) -> str:
    """The room of an imported name: rankhoist.compiler.plan.cost -> compiler.plan, rankhoist.Split -> __init__."""
    room = _room(name)
    # `from rankhoist import plan` imports plan; `from rankhoist import __version__` the package itself.
    return room if room in ALL or name.count(".") > 1 else "__init__"


def room_of_file(path: str) -> str:
    """The room that a file belongs to; a house's own `__init__` belongs to the house."""
    return _room(module_of(path))


def _room(module: str) -> str:
    package, *rest = module.split(".")
    if package != "rankhoist":
        return package.removeprefix("rankhoist_")
    return ".".join(rest[: 2 if rest and rest[0] in HOUSES else 1]) or "__init__"


def module_of(path: str) -> str:
    """The dotted name of a file: rankhoist/compiler/plan/__init__.py -> rankhoist.compiler.plan."""
    return ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")


def imports(path: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, full dotted name) of all that a file imports from this project, lazily or for types included."""
    package = Path(path).parent.parts
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found = [alias.name for alias in names]
            case ast.ImportFrom(module=module, names=names, level=level):
                base = [*package[: len(package) - level + 1]] if level else []
                found = [".".join([*base, *([module] if module else []), alias.name]) for alias in names]
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                found = [module]
            case _:
                continue
        for name in found:
            if name.split(".")[0] in ("rankhoist", "rankhoist_client"):
                yield node.lineno, name


def forbidden_imports(path: str, source: str) -> list[str]:
    """One message for each import in `source` that points up."""
    importer = room_of_file(path)
    messages = []
    for line, name in imports(path, source):
        imported = room_of(name)
        if imported not in ALL or not may_import(importer, imported):
            messages.append(f"{path}:{line}: {importer} must not import {name}")
        elif importer == "__init__" and any(re.match(r"_(?!_)", part) for part in name.split(".")):
            messages.append(f"{path}:{line}: the public surface must not import the private {name}")
    return messages


def unlisted(paths: list[str]) -> list[str]:
    """Rooms that have no place in the lists above."""
    return sorted({room_of_file(path) for path in paths} - {*ALL, *HOUSES})


# --------------------------------------------------------------------------------------------------
# 2. Circles
# --------------------------------------------------------------------------------------------------


def circle(sources: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a circle, the first again at the end; empty where there is none."""
    modules = {module_of(path) for path in sources}
    arrows = {}
    for path, source in sources.items():
        names = [name for _, name in imports(path, source)]
        imported = {name if name in modules else name.rpartition(".")[0] for name in names}
        arrows[module_of(path)] = (imported & modules) - {module_of(path)}
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        return [str(module) for module in reversed(error.args[1])]
    return []


# --------------------------------------------------------------------------------------------------
# 3. Files
# --------------------------------------------------------------------------------------------------


def too_long(path: str, source: str) -> list[str]:
    """A message where a file is long and its docstring does not say "one idea" and why."""
    lines = source.count("\n")
    if lines <= LONGEST or "one idea" in (ast.get_docstring(ast.parse(source)) or ""):
        return []
    return [f"{path}: {lines} lines; cut it, or let its docstring say why it is one idea"]


# --------------------------------------------------------------------------------------------------
# The source tree keeps its promises
# --------------------------------------------------------------------------------------------------

FILES = {str(file.relative_to(src)): file.read_text("utf-8") for src in SOURCES for file in sorted(src.rglob("*.py"))}


def test_every_module_has_a_place():
    new = unlisted([*FILES])
    assert not new, f"rankhoist.{new[0]} is not in ROOMS: say in {Path(__file__).name} what it may import"


def test_every_place_has_a_module():
    assert not {*ROOMS, *SIDE} - set(map(room_of_file, FILES)), "ROOMS or SIDE names rooms that there are not"


def test_imports_point_down():
    messages = [message for path, source in FILES.items() for message in forbidden_imports(path, source)]
    assert not messages, "\n".join(messages)


def test_no_circle_of_modules():
    found = circle(FILES)
    assert not found, " imports ".join(found)


def test_a_report_is_read_and_drawn_without_the_planner():
    report = [path for path in FILES if path.startswith("rankhoist/report/") and "/make/" not in path]
    named = [(path, name) for path in report for _, name in imports(path, FILES[path])]
    assert [(path, name) for path, name in named if "compiler.plan" in name or "report.make" in name] == []


def test_loading_a_file_imports_no_compiler_of_torch():
    """`rankhoist --help`, a worker of the server and a scoring job wait for each import, and need none of these."""
    heavy = "torch._dynamo networkx triton onnx onnxruntime pyarrow matplotlib"
    asked = f"import sys, rankhoist.cli; print([m for m in {heavy.split()} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_files_are_short():
    messages = [message for path, source in FILES.items() for message in too_long(path, source)]
    assert not messages, "\n".join(messages)


# --------------------------------------------------------------------------------------------------
# The checks can fail
# --------------------------------------------------------------------------------------------------

FORM, COST, CROSS = "rankhoist/compiler/algebra/form.py", "rankhoist/compiler/plan/cost.py", "rankhoist/nn/cross.py"


@pytest.mark.parametrize(
    ("path", "line", "offence"),
    [
        (FORM, "import rankhoist.compiler.plan.cost", "algebra must not import rankhoist.compiler.plan.cost"),
        (FORM, "from rankhoist.compiler.rules import linear", "rankhoist.compiler.rules.linear"),
        (FORM, "from rankhoist.compiler import plan", "rankhoist.compiler.plan"),
        (FORM, "from rankhoist import HoistedModel", "rankhoist.HoistedModel"),
        (FORM, "import rankhoist", "compiler.algebra must not import rankhoist"),
        (FORM, "from ..plan import choose", "rankhoist.compiler.plan.choose"),
        (FORM, "from ... import nn", "rankhoist.nn"),
        ("rankhoist/compiler/algebra/__init__.py", "from ..emit.graphs import Stage", "compiler.emit.graphs.Stage"),
        (FORM, "def f():\n    from ...hoist import hoist", ":2: compiler.algebra must not import"),
        (FORM, "importlib.import_module('rankhoist.cli')", "rankhoist.cli"),
        (FORM, "from ...unheard import of", "rankhoist.unheard.of"),
        (FORM, "from ..unheard import of", "rankhoist.compiler.unheard.of"),
        ("rankhoist/errors.py", "from .capture import capture", "errors must not import rankhoist.capture.capture"),
        ("rankhoist/hoist.py", "from .lab.data import log", "hoist must not import rankhoist.lab.data.log"),
        ("rankhoist/hoist.py", "from .bench import suite", "hoist must not import rankhoist.bench.suite"),
        (CROSS, "from ..hoist import hoist", "nn must not import rankhoist.hoist.hoist"),
        (CROSS, "from ..lab.data import log", "nn must not import rankhoist.lab.data.log"),
        ("rankhoist/lab/demo/run.py", "from rankhoist.cli import main", "lab.demo must not import rankhoist.cli.main"),
        ("rankhoist/compiler/__init__.py", "from .plan import make_plan", "compiler must not import"),
        ("rankhoist/__init__.py", "from .hoist import _steps", "private rankhoist.hoist._steps"),
        ("rankhoist_client/call.py", "from rankhoist.errors import CallError", "client must not import rankhoist."),
    ],
)
def test_an_import_that_points_up_is_reported(path: str, line: str, offence: str):
    (message,) = forbidden_imports(path, f"{line}\n")
    assert message.startswith(f"{path}:") and offence in message


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (COST, "from ..algebra.form import Form"),
        (COST, "from .choose import _helper"),
        (COST, "import torch.nn, rankhoist_tools"),
        ("rankhoist/hoist.py", "from . import capture, runtime\nfrom .compiler import algebra, rules, plan, emit"),
        ("rankhoist/lab/demo/run.py", "from rankhoist import __version__, hoist, nn, verify"),
        ("rankhoist/lab/demo/run.py", "from rankhoist.lab import data"),
        (CROSS, "from ..errors import RankhoistError"),
        ("rankhoist/errors.py", "from rankhoist_client import CallError"),
        ("rankhoist/__init__.py", "from .hoist import hoist"),
        ("rankhoist/__main__.py", "from .cli import main"),
    ],
)
def test_an_import_that_points_down_is_not_reported(path: str, line: str):
    assert forbidden_imports(path, f"{line}\n") == []


def test_a_new_module_is_reported():
    paths = ["rankhoist/cloud/http.py", COST, "rankhoist/tools.py", "rankhoist/compiler/magic.py"]
    assert unlisted(paths) == ["cloud", "compiler.magic", "tools"]


RECORD, PAGE = "rankhoist/report/record.py", "rankhoist/report/page.py"


@pytest.mark.parametrize(
    "back",
    [
        "from rankhoist.report.page import to_html",
        "from . import page",
        "def f():\n    from rankhoist.report.page import to_html",
        "if TYPE_CHECKING:\n    import rankhoist.report.page",
    ],
)
def test_a_circle_is_reported(back: str):
    page = "from rankhoist.report.record import Record\n"
    assert circle({PAGE: page, RECORD: "import math\n"}) == []
    found = circle({PAGE: page, RECORD: f"{back}\n"})
    assert set(found) == {"rankhoist.report.page", "rankhoist.report.record"} and found[0] == found[-1]


def test_a_package_that_its_own_modules_import_is_a_circle():
    sources = {"rankhoist/report/__init__.py": "from rankhoist.report.page import to_html\n", PAGE: "from . import x\n"}
    assert len(circle(sources)) == 3


def test_a_long_file_is_reported():
    (message,) = too_long(PAGE, '"""Pages."""\n' + "x = 1\n" * LONGEST)
    assert f"{LONGEST + 1} lines" in message
    assert too_long(PAGE, '"""Pages.\n\nIt is one idea: a page."""\n' + "x = 1\n" * LONGEST) == []
