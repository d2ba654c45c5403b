#!/usr/bin/env bash
# A program exported of a model that reads a parameter from a dict keeps the old weights when new ones are loaded.
#
# torch 2.13.0. A module registers a parameter, and its forward reads the same tensor from a plain dict of the module
# (or a list, or a closure), as multi-task models do that choose a weight by a name. torch.export exports it twice: as
# the parameter, which nothing reads, and as a constant, which the graph reads. load_state_dict on the program's module
# says that all keys matched, before and after torch.export.save. Before, it works, for both lie in one memory; of a
# program that was saved and loaded, scores stay those of the old weights, and nothing is said. Nor does a gradient
# reach the parameter, in any of them. Read by its name, the parameter is exported once, and all is well. Seen, for
# scale = 2 that becomes 5, times 1:
#
#     torch 2.13.0+cpu
#     by its name: kinds PARAMETER, a gradient: True, new weights: 5.0, saved, loaded and new weights: 5.0
#     in a dict: kinds PARAMETER CONSTANT_TENSOR, a gradient: False, new weights: 5.0, saved, loaded and new weights: 2.0
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
import io
import sys

import torch
from torch import nn

ONE, NEW = torch.ones(1), {"scale": torch.tensor([5.0])}


class Named(nn.Module):
    """A number that is learned, times an input."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([2.0]))
        self.weights = {"click": self.scale}

    def forward(self, x):
        return x * self.scale


class InDict(Named):
    """The same, by a key."""

    def forward(self, x):
        return x * self.weights["click"]


def read_back(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def renewed(module):
    assert str(module.load_state_dict(NEW)) == "<All keys matched successfully>"
    return module(ONE).item()


def exported(model):
    program = torch.export.export(model, (ONE,))
    loaded = read_back(program).module()
    kinds = [spec.kind.name for spec in program.graph_signature.input_specs if spec.kind.name != "USER_INPUT"]
    return kinds, program.module()(ONE).requires_grad, renewed(program.module()), renewed(loaded)


print(f"torch {torch.__version__}")
found = {name: exported(model) for name, model in (("by its name", Named()), ("in a dict", InDict()))}
for name, (kinds, gradient, new, loaded) in found.items():
    print(f"{name}: kinds {' '.join(kinds)}, a gradient: {gradient}, new weights: {new}, "
          f"saved, loaded and new weights: {loaded}")
as_found = found == {
    "by its name": (["PARAMETER"], True, 5.0, 5.0),
    "in a dict": (["PARAMETER", "CONSTANT_TENSOR"], False, 5.0, 2.0),
}
print("as found" if as_found else "torch behaves otherwise")
sys.exit(not as_found)
PYTHON
