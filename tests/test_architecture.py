"""Two promises of the source tree, checked on the text of every file.

1. Packages import in one direction only; `LAYERS` is that direction.
2. The compiler knows operators, never models: no class name of a model or layer occurs in it.

The checks are functions of (path, source text), so that the last tests can show each of them failing.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from torch import nn

SRC = Path(__file__).parents[1] / "src"
ROOT = SRC / "rankhoist"

# A package may import those above it in this list.
LAYERS = [
    "errors",
    "capture",
    "algebra",
    "rules",
    "plan",
    "emit",
    "report",
    "runtime",
    "verify",
    "hoist",
    "serve",
    "score",
    "client",
    "bench",
    "train",
    "loadtest",
    "demo",
    "cli",
]
# Beside the layers: they import `errors` only, and only the users of the compiler import them.
SIDE = ["nn", "data"]
# `train` stands above `bench` for its plots and `machine`, and above `hoist` to save what it trained hoisted.
USERS = ["train", "demo", "cli"]
# Entry points: they may import everything (`__init__` only what is public) and are imported by users only.
ENTRY = ["__init__", "__main__"]

COMPILER = ["capture", "algebra", "rules", "plan", "emit"]

# Names that public models and their packages go by, whatever is installed.
MODEL_NAMES = set(
    """
    AITM AutoInt BST CIN CrossNet CrossNetMix DCN DCNMix DCNV2 DCNv2 DIEN DIN DLRM DSSM DeepFM ESMM FiBiNET
    FiBiNet MMOE MMoE PLE SharedBottom WideDeep rDCN xDeepFM deepctr deepctr_torch torch_rechub
    """.split()
)
# Where public packages define them. Read as text: importing deepctr_torch asks the network for updates.
PUBLIC_MODELS = {
    "deepctr_torch": ["models", "layers"],
    "torch_rechub": ["models", "basic/layers.py", "basic/activation.py"],
}
# Class names in those packages that are also English or mathematical words, which the compiler may use.
ORDINARY_WORDS = {"Dice", "Identity", "Linear", "MIND", "SINE", "STAMP"}

# The layer classes of PyTorch; `capture` is given an nn.Module, so that one it may name.
NN_LAYERS = {name for name, value in vars(nn).items() if isinstance(value, type) and issubclass(value, nn.Module)}
NN_LAYERS -= {"Module"}


# --------------------------------------------------------------------------------------------------
# 1. Imports
# --------------------------------------------------------------------------------------------------


def may_import(importer: str, imported: str) -> bool:
    """Whether top-level module `importer` may import top-level module `imported`."""
    if importer == imported or importer in ENTRY:
        return True
    if imported in ENTRY:
        return imported == "__init__" and importer in USERS
    if importer in SIDE:
        return imported == "errors"
    if imported in SIDE:
        return importer in USERS
    return importer in LAYERS and imported in LAYERS[: LAYERS.index(importer)]


def top_level(path: str) -> str:
    """The top-level module a file belongs to: rankhoist/plan/cost.py -> plan, rankhoist/cli/show.py -> cli."""
    return Path(path).parts[1].removesuffix(".py")


def imports(path: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, full dotted name) of all that a file imports from this package, lazily or for types included."""
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
            if name.split(".")[0] == "rankhoist":
                yield node.lineno, name


def forbidden_imports(path: str, source: str) -> list[str]:
    """One message for each import in `source` that points up the layers."""
    importer = top_level(path)
    messages = []
    for line, name in imports(path, source):
        first, *rest = name.split(".")[1:] or ["__init__"]
        # `from rankhoist import plan` imports plan; `from rankhoist import __version__` the package itself.
        imported = first if rest or first in [*LAYERS, *SIDE, *ENTRY] else "__init__"
        if imported not in [*LAYERS, *SIDE, *ENTRY] or not may_import(importer, imported):
            messages.append(f"{path}:{line}: {importer} must not import {name}")
        elif importer == "__init__" and any(re.match(r"_(?!_)", part) for part in [first, *rest]):
            messages.append(f"{path}:{line}: the public surface must not import the private {name}")
    return messages


def unlisted(paths: list[str]) -> list[str]:
    """Top-level modules that have no place in the lists above."""
    return sorted({top_level(path) for path in paths} - {*LAYERS, *SIDE, *ENTRY})


# --------------------------------------------------------------------------------------------------
# 2. Names of models and layers
# --------------------------------------------------------------------------------------------------


def class_names(files: Iterator[Path]) -> set[str]:
    """Names of the public classes that Python files define."""
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in files)
    classes = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    return {name for name in classes if not name.startswith("_")}


def installed_model_names(package: str) -> set[str]:
    """Class names of the models and layers of an installed public package; empty if it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return set()
    places = [Path(spec.origin).parent / place for place in PUBLIC_MODELS[package]]
    return class_names(file for place in places for file in ([place] if place.is_file() else place.rglob("*.py")))


@cache
def forbidden_names() -> frozenset[str]:
    """All names of models and layers the compiler may not contain."""
    public = set().union(*map(installed_model_names, PUBLIC_MODELS))
    return frozenset((MODEL_NAMES | public) - ORDINARY_WORDS)


def names_models(path: str, source: str) -> list[str]:
    """One message for each model name in `source`: code, strings and comments; a `_` ends a word too."""
    words = "|".join(sorted(forbidden_names(), key=len, reverse=True))
    pattern = re.compile(rf"(?<![A-Za-z0-9])(?:{words})(?![A-Za-z0-9])")
    return [
        f"{path}:{line}: the compiler must not name the model or layer {found.group()}"
        for line, text in enumerate(source.splitlines(), 1)
        for found in pattern.finditer(text)
    ]


def names_layers(path: str, source: str) -> list[str]:
    """One message for each torch.nn layer class that is imported, reached through `nn` or named in a string.

    A string counts when it holds no space ("Linear", "torch.nn.Linear", "Linear|Conv1d"): prose may say
    Softmax. A class of ours that shares its name with a layer may be named.
    """
    tree = ast.parse(source)
    bound = imported_names(tree)
    ours = {name for name, full in bound.items() if not full.startswith("torch.")}
    ours |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names, level=0):
                found += [
                    (node.lineno, f"{module}.{alias.name}") for alias in names if is_layer(f"{module}.{alias.name}")
                ]
            case ast.Attribute():
                first, *rest = ast.unparse(node).split(".")
                if is_layer(full := ".".join([bound.get(first, first), *rest])):
                    found.append((node.lineno, full))
            case ast.Constant(value=str(text)) if not re.search(r"\s", text):
                found += [(node.lineno, repr(text)) for word in re.findall(r"\w+", text) if word in NN_LAYERS - ours]
    return [f"{path}:{line}: the compiler must not match the layer class {name}" for line, name in sorted(found)]


def imported_names(tree: ast.Module) -> dict[str, str]:
    """What each imported name stands for: `from torch import nn as layers` -> {"layers": "torch.nn"}."""
    bound = {"nn": "torch.nn"}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                bound |= {alias.asname: alias.name for alias in names if alias.asname}
            case ast.ImportFrom(module=module, names=names, level=level):
                origin = "." * level + (module or "")
                bound |= {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in names}
    return bound


def is_layer(name: str) -> bool:
    """Whether a full dotted name is a layer class: torch.nn.Linear, torch.nn.modules.linear.Linear."""
    parts = name.split(".")
    return parts[0] == "torch" and "nn" in parts and parts[-1] in NN_LAYERS


# --------------------------------------------------------------------------------------------------
# The source tree keeps both promises
# --------------------------------------------------------------------------------------------------

FILES = sorted(str(file.relative_to(SRC)) for file in ROOT.rglob("*.py"))


def read(path: str) -> str:
    return (SRC / path).read_text(encoding="utf-8")


def test_every_module_has_a_place():
    new = unlisted(FILES)
    assert not new, f"rankhoist.{new[0]} is not in LAYERS: say in {Path(__file__).name} what it may import"


def test_every_place_has_a_module():
    modules = set(map(top_level, FILES))
    if "cli" not in modules:
        pytest.skip("the package is not complete yet")
    assert not {*LAYERS, *SIDE} - modules, "LAYERS or SIDE names modules that src/rankhoist does not have"


def test_imports_point_down():
    messages = [message for path in FILES for message in forbidden_imports(path, read(path))]
    assert not messages, "\n".join(messages)


@pytest.mark.parametrize("check", [names_models, names_layers])
def test_the_compiler_knows_operators_not_models(check):
    compiler = [path for path in FILES if top_level(path) in COMPILER]
    messages = [message for path in compiler for message in check(path, read(path))]
    assert not messages, "\n".join(messages)


# --------------------------------------------------------------------------------------------------
# The checks can fail
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "line", "offence"),
    [
        (
            "rankhoist/algebra/form.py",
            "import rankhoist.plan.cost",
            "algebra must not import rankhoist.plan.cost",
        ),
        ("rankhoist/algebra/form.py", "from rankhoist.rules import linear", "rankhoist.rules.linear"),
        ("rankhoist/algebra/form.py", "from rankhoist import plan", "rankhoist.plan"),
        ("rankhoist/algebra/form.py", "from rankhoist import HoistedModel", "rankhoist.HoistedModel"),
        ("rankhoist/algebra/form.py", "import rankhoist", "algebra must not import rankhoist"),
        ("rankhoist/algebra/form.py", "from ..plan import choose", "rankhoist.plan.choose"),
        ("rankhoist/algebra/form.py", "from .. import nn", "rankhoist.nn"),
        ("rankhoist/algebra/__init__.py", "from ..emit.graphs import Stage", "rankhoist.emit.graphs.Stage"),
        (
            "rankhoist/algebra/form.py",
            "def f():\n    from ..hoist import hoist",
            ":2: algebra must not import",
        ),
        ("rankhoist/algebra/form.py", "importlib.import_module('rankhoist.cli')", "rankhoist.cli"),
        ("rankhoist/algebra/form.py", "from ..unheard import of", "rankhoist.unheard.of"),
        (
            "rankhoist/errors.py",
            "from .capture import capture",
            "errors must not import rankhoist.capture.capture",
        ),
        ("rankhoist/hoist.py", "from .data import log", "hoist must not import rankhoist.data.log"),
        ("rankhoist/nn/cross.py", "from ..hoist import hoist", "nn must not import rankhoist.hoist.hoist"),
        ("rankhoist/nn/cross.py", "from ..data import log", "nn must not import rankhoist.data.log"),
        ("rankhoist/demo/run.py", "from ..cli import main", "demo must not import rankhoist.cli.main"),
        ("rankhoist/__init__.py", "from .hoist import _steps", "private rankhoist.hoist._steps"),
    ],
)
def test_an_import_that_points_up_is_reported(path: str, line: str, offence: str):
    (message,) = forbidden_imports(path, f"{line}\n")
    assert message.startswith(f"{path}:") and offence in message


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("rankhoist/plan/cost.py", "from ..algebra.form import Form"),
        ("rankhoist/plan/cost.py", "from .choose import _helper"),
        ("rankhoist/plan/cost.py", "import torch.nn, rankhoist_tools"),
        ("rankhoist/hoist.py", "from . import capture, algebra, rules, plan, emit, runtime"),
        ("rankhoist/demo/run.py", "from rankhoist import __version__, data, hoist, nn, verify"),
        ("rankhoist/nn/cross.py", "from ..errors import RankhoistError"),
        ("rankhoist/__init__.py", "from .hoist import hoist"),
        ("rankhoist/__main__.py", "from .cli import main"),
    ],
)
def test_an_import_that_points_down_is_not_reported(path: str, line: str):
    assert forbidden_imports(path, f"{line}\n") == []


def test_a_new_module_is_reported():
    assert unlisted(["rankhoist/cloud/http.py", "rankhoist/plan/cost.py", "rankhoist/tools.py"]) == [
        "cloud",
        "tools",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "class DCNv2Rule_DCNv2: ...",
        "# as in DeepFM",
        "import torch_rechub",
        "import deepctr_torch",
        "f('DIN')",
    ],
)
def test_a_model_name_is_reported(line: str):
    (message,) = names_models("rankhoist/rules/linear.py", f"x = 1\n{line}\n")
    assert message.startswith("rankhoist/rules/linear.py:2: ")


@pytest.mark.parametrize("line", ["DINNER = 1", "Linear in its atoms", "import deepcopy", "BINDING, dlrm"])
def test_an_ordinary_word_is_not_reported(line: str):
    assert names_models("rankhoist/rules/linear.py", line) == []


@pytest.mark.parametrize(("package", "model"), [("deepctr_torch", "CCPM"), ("torch_rechub", "EDCN")])
def test_names_come_from_the_installed_packages(package: str, model: str):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (extra: dev)")
    assert model not in MODEL_NAMES
    assert model in forbidden_names()


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(module, nn.Linear)",
        "import torch\nisinstance(module, torch.nn.LayerNorm)",
        "import torch.nn as layers\nlayers.Linear",
        "from torch import nn as layers\nmatch module:\n    case layers.Linear(): pass",
        "from torch.nn import Linear",
        "from torch.nn.modules.linear import Linear as L",
        "type(module).__name__ == 'Linear'",
        "getattr(nn, 'Linear')",
        "kinds = {'torch.nn.modules.linear.Linear': 1}",
    ],
)
def test_a_layer_class_is_reported(source: str):
    (message,) = names_layers("rankhoist/capture/graph.py", source)
    assert message.startswith(f"rankhoist/capture/graph.py:{len(source.splitlines())}: ")


@pytest.mark.parametrize(
    "source",
    [
        "isinstance(module, nn.Module)",
        "import torch\ntorch.nn.functional.linear(x, w); torch.fx.Transformer(g)",
        "from .coefficient import Identity\nisinstance(coefficient, Identity)\n__all__ = ['Identity']",
        "class Identity: ...\n\ndef one() -> 'Identity': ...",
        "'''Softmax over rows is refused.'''",
        "# nn.Linear arrives as aten.linear",
        "op == 'aten.linear.default'",
    ],
)
def test_other_uses_of_torch_are_not_reported(source: str):
    assert names_layers("rankhoist/capture/graph.py", source) == []
