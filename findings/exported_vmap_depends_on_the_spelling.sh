#!/usr/bin/env bash
# What of a model for one row, mapped by torch.vmap, exports for any number of rows is a matter of spelling.
#
# torch 2.13.0. A ranker is written for one user and one item and mapped over rows, torch.vmap(score)(rows). Its export is
# a plain graph, so one expects all of its operators to be taken, or none. But x @ w.T exports, and w @ x, the same
# numbers, is refused for "a fake tensor in the exported program constant's list". stack().flatten() and rms_norm hold for
# any number of rows; cat and layer_norm hold for that of the example alone: with a Dim the constraint is said to be
# violated, and with Dim.AUTO a program for four rows is returned without a word, which refuses seven. Strictly exported,
# none is taken, where the weight is trained: a call of requires_grad_ is refused that nobody makes. Seen, "any" for a
# program that computes seven rows as the model does:
#
#     torch 2.13.0+cpu
#     x @ w.T          Dim: any, Dim.AUTO: any, strict: requires_grad_
#     w @ x            Dim: fake tensor, Dim.AUTO: fake tensor, strict: requires_grad_
#     stack, flatten   Dim: any, Dim.AUTO: any, strict: requires_grad_
#     cat              Dim: Constraints violated, Dim.AUTO: 4 rows, strict: requires_grad_
#     rms_norm         Dim: any, Dim.AUTO: any, strict: requires_grad_
#     layer_norm       Dim: Constraints violated, Dim.AUTO: 4 rows, strict: requires_grad_
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
import torch.nn.functional as F
from torch import nn

REFUSALS = ("fake tensor", "Constraints violated", "requires_grad_")
SPELLINGS = {
    "x @ w.T": lambda w, x: x @ w.T,
    "w @ x": lambda w, x: w @ x,
    "stack, flatten": lambda w, x: torch.stack([x, w[0]]).flatten(),
    "cat": lambda w, x: torch.cat([x, w[0]]),
    "rms_norm": lambda w, x: F.rms_norm(x, (6,)),
    "layer_norm": lambda w, x: F.layer_norm(x, (6,)),
}


class Mapped(nn.Module):
    """A function of the weight `[5, 6]` and one row `[6]`, for all rows `[rows, 6]`."""

    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.rand(5, 6))

    def forward(self, rows):
        return torch.vmap(lambda row: self.function(self.weight, row))(rows)


def exported(model, rows, strict=False):
    try:
        program = torch.export.export(model, (torch.rand(4, 6),), dynamic_shapes=({0: rows},), strict=strict)
    except Exception as error:
        return next((words for words in REFUSALS if words in str(error)), type(error).__name__)
    seven = torch.rand(7, 6)
    try:
        equal = torch.allclose(program.module()(seven), model(seven))
    except AssertionError:
        size = next(n.meta["val"].shape[0] for n in program.graph.nodes if n.name == "rows")
        return f"{size} rows"
    return "any" if equal else "another result"


EXPECTED = {
    "x @ w.T": ("any", "any"),
    "w @ x": ("fake tensor", "fake tensor"),
    "stack, flatten": ("any", "any"),
    "cat": ("Constraints violated", "4 rows"),
    "rms_norm": ("any", "any"),
    "layer_norm": ("Constraints violated", "4 rows"),
}
print(f"torch {torch.__version__}")
as_found = True
for name, function in SPELLINGS.items():
    model, rows = Mapped(function).eval(), torch.export.Dim("rows")
    found = exported(model, rows), exported(model, torch.export.Dim.AUTO), exported(model, rows, strict=True)
    print("{:17s}Dim: {}, Dim.AUTO: {}, strict: {}".format(name, *found))
    as_found = as_found and found == (*EXPECTED[name], "requires_grad_")
print("as found" if as_found else "torch behaves otherwise")
sys.exit(not as_found)
PYTHON
