#!/usr/bin/env bash
# torch.export puts the forward of an autograd function into its graph, and leaves its backward out without a word.
#
# torch 2.13.0. An exported program's module can be trained, and where a model has a torch.autograd.Function, its graph
# holds the operators of `forward` alone. By default gradients are those of these operators: a reversal of gradients,
# the identity forwards, is gone, so that the layers before it learn just what they were to unlearn, and behind a
# rounding that passes gradients straight through nothing is learnt. A strict export keeps the operators without
# gradients, so that nothing before either of them learns. torch.compile traces the same models and keeps their
# backward. No warning tells, and scores are equal. Seen, of the weight before the function: its gradient as a part of
# the model's own (their product over the square of the latter); and the largest difference of scores, in float64:
#
#     torch 2.13.0+cpu
#     reversal, torch.compile: gradient 1 of the model's, scores 0
#     reversal, exported: gradient -1 of the model's, scores 0
#     reversal, exported strictly: gradient 0 of the model's, scores 0
#     rounding, torch.compile: gradient 1 of the model's, scores 0
#     rounding, exported: gradient 0 of the model's, scores 0
#     rounding, exported strictly: gradient 0 of the model's, scores 0
#     warnings that speak of autograd functions or backward: 0
#     as found
#
# Installs torch in a temporary folder. Exits 0 while it behaves so, 1 when it does not any more.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --disable-pip-version-check --quiet torch==2.13.0 numpy==2.3.5

cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2> /dev/null
import sys
import warnings

import torch
from torch import nn


class Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Model(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.before, self.behind = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.behind(self.function.apply(self.before(x)))


def gradient(called, weight):
    """Of the weight before the function; zeros where there is none."""
    weight.grad = None
    called(rows).square().mean().backward()
    return torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()


print(f"torch {torch.__version__}")
torch.manual_seed(0)
rows = torch.randn(16, 4, dtype=torch.float64)
seen, told = [], []
for name, function in (("reversal", Reversal), ("rounding", Rounding)):
    model = Model(function).double()
    own = gradient(model, model.before.weight)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        exported = [torch.export.export(model, (rows,), strict=strict).module() for strict in (False, True)]
    told += [w for w in said if "Function" in str(w.message) and "backward" in str(w.message)]
    ways = {
        "torch.compile": (torch.compile(model, fullgraph=True, backend="aot_eager"), model.before.weight),
        "exported": (exported[0], exported[0].before.weight),
        "exported strictly": (exported[1], exported[1].before.weight),
    }
    for how, (called, weight) in ways.items():
        part = (gradient(called, weight) * own).sum() / own.square().sum()
        apart = (called(rows) - model(rows)).abs().max()
        print(f"{name}, {how}: gradient {part.item():.2g} of the model's, scores {apart.item():.1g}")
        seen.append((round(part.item(), 9), apart.item() < 1e-12))
print(f"warnings that speak of autograd functions or backward: {len(told)}")
same = seen == [(part, True) for part in (1, -1, 0, 1, 0, 0)] and not told
print("as found" if same else "not as found any more")
sys.exit(not same)
PYTHON
