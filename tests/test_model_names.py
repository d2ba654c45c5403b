"""The compiler knows operators, never models: no class name of a model or layer occurs in it.

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
COMPILER = ["capture", "compiler"]  # of src/rankhoist
ONNX = "rankhoist/capture/onnx/"  # operators of that standard have the names of PyTorch's layers

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
NN_LAYERS -= {"Module", "DataParallel"}  # a wrapper is no layer


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


@pytest.mark.parametrize("check", [names_models, names_layers])
def test_the_compiler_knows_operators_not_models(check):
    compiler = [str(f.relative_to(SRC)) for part in COMPILER for f in sorted((SRC / "rankhoist" / part).rglob("*.py"))]
    assert len(compiler) > 30
    compiler = [path for path in compiler if check is names_models or not path.startswith(ONNX)]
    messages = [message for path in compiler for message in check(path, (SRC / path).read_text(encoding="utf-8"))]
    assert not messages, "\n".join(messages)


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
