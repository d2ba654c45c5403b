#!/usr/bin/env bash
# A program exported of a model that branches on `length > 1` answers a call of length 1 by the other branch.
#
# torch 2.13.0. A ranker averages its user's history, and does something else where there is one event or none. Where a
# model branches on `length > 3`, torch.export notices that the lengths that were declared reach below 4, refuses, and
# suggests Dim("t", min=4); with Dim.DYNAMIC the program refuses shorter calls itself. So one takes a program that exports
# for the lengths that were declared to be right for them. But sizes that vary are taken to be two or more when Python
# asks: for a branch on `length > 1` there is no refusal, the range stays from 0 or 1 on as it was declared, and calls of
# length 1 and 0 are computed by the branch of longer ones. With Dim.DYNAMIC the range of the program says that lengths
# begin at 2, and it runs shorter ones all the same. The same strictly exported and not. Seen, for a history of ones,
# averaged, or summed and times 10 if it has one event or none:
#
#     torch 2.13.0+cpu
#     branch on length > 3, Dim: refused, suggests min=4
#     branch on length > 3, Dim.DYNAMIC: range from 4, length 1: Guard failed
#     branch on length > 1, Dim: range from 0, length 1: 1.0, by the model 10.0, length 0: nan, by the model 0.0
#     branch on length > 1, Dim.DYNAMIC: range from 2, length 1: 1.0, by the model 10.0, length 0: nan, by the model 0.0
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
import re
import sys

import torch
from torch import nn


class Average(nn.Module):
    """Of the events `[rows, t, 2]` of a history that has more than `least`; of shorter ones ten times their sum."""

    def __init__(self, least):
        super().__init__()
        self.least = least

    def forward(self, history):
        return history.mean(1) if history.shape[1] > self.least else history.sum(1) * 10


def called(program, model, length):
    history = torch.ones(3, length, 2)
    try:
        made = program.module()(history)[0, 0].item()
    except AssertionError as error:
        return f"length {length}: {str(error).partition(':')[0]}"
    return f"length {length}: {made}, by the model {model(history)[0, 0].item()}"


def exported(least, t, strict):
    model = Average(least).eval()
    sizes = {0: torch.export.Dim("rows"), 1: t}
    try:
        program = torch.export.export(model, (torch.ones(3, 5, 2),), dynamic_shapes=(sizes,), strict=strict)
    except Exception as error:
        return f"refused, suggests {re.search(r'min=[0-9]+', str(error)).group()}"
    length = next(n.meta["val"].shape[1] for n in program.graph.nodes if n.op == "placeholder")
    lowest = program.range_constraints[length.node.expr].lower
    calls = [called(program, model, 1)] if least > 1 else [called(program, model, 1), called(program, model, 0)]
    return ", ".join([f"range from {lowest}", *calls])


EXPECTED = {
    (3, "Dim"): "refused, suggests min=4",
    (3, "Dim.DYNAMIC"): "range from 4, length 1: Guard failed",
    (1, "Dim"): "range from 0, length 1: 1.0, by the model 10.0, length 0: nan, by the model 0.0",
    (1, "Dim.DYNAMIC"): "range from 2, length 1: 1.0, by the model 10.0, length 0: nan, by the model 0.0",
}
print(f"torch {torch.__version__}")
as_found = True
for (least, kind), expected in EXPECTED.items():
    t = torch.export.Dim("t") if kind == "Dim" else torch.export.Dim.DYNAMIC
    found = {exported(least, t, strict) for strict in (False, True)}
    print(f"branch on length > {least}, {kind}: {' or, strictly exported, '.join(sorted(found))}")
    as_found = as_found and found == {expected}
print("as found" if as_found else "torch behaves otherwise")
sys.exit(not as_found)
PYTHON
