#!/usr/bin/env bash
# torch.export takes a model whose submodule is named `meta`, `graph` or `code`, and what it returns cannot be used.
#
# torch 2.13.0. A layer of a ranker that reads metadata is easily called `self.meta`. torch.export.export succeeds on such
# a model, and so does saving it. But the program is turned into a torch.fx.GraphModule by everything that comes next,
# .module() and .run_decompositions() among them, and there `meta`, `graph` and `code` are attributes of its own: the
# submodule's weights are not found, and a RuntimeError says that a node "references nonexistent attribute". The same model
# with another name for the layer passes. It is the first part of the path that counts: `tower.meta` does no harm. Seen:
#
#     torch 2.13.0+cpu
#     head: exported; run_decompositions: passes; module: passes
#     meta: exported; run_decompositions: RuntimeError; module: RuntimeError
#     graph: exported; run_decompositions: RuntimeError; module: RuntimeError
#     code: exported; run_decompositions: RuntimeError; module: RuntimeError
#     tower.meta: exported; run_decompositions: passes; module: passes
#     as found
#
# Installs torch in a temporary folder. Exits 0 while torch behaves so, 1 when it does not any more.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --disable-pip-version-check --quiet torch==2.13.0 numpy==2.3.5

cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2> /dev/null
import sys

import torch
from torch import nn


class Model(nn.Module):
    """Two layers under one name."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.add_module(name, nn.Sequential(nn.Linear(4, 3), nn.ReLU()))

    def forward(self, x):
        return getattr(self, self.name)(x)


class Tower(nn.Module):
    """The same, one floor down."""

    def __init__(self, name):
        super().__init__()
        self.tower = Model(name)

    def forward(self, x):
        return self.tower(x)


def outcome(step):
    try:
        step()
    except RuntimeError as error:
        return "RuntimeError" if "references nonexistent attribute" in str(error) else f"another: {error}"
    return "passes"


print(f"torch {torch.__version__}")
found = []
for path, model in [(n, Model(n)) for n in ("head", "meta", "graph", "code")] + [("tower.meta", Tower("meta"))]:
    program = torch.export.export(model.eval(), (torch.randn(2, 4),))
    steps = [outcome(lambda: program.run_decompositions({})), outcome(program.module)]
    print(f"{path}: exported; run_decompositions: {steps[0]}; module: {steps[1]}")
    found.append(steps)
passes, fails = ["passes"] * 2, ["RuntimeError"] * 2
same = found == [passes, fails, fails, fails, passes]
print("as found" if same else "changed")
sys.exit(not same)
PYTHON
