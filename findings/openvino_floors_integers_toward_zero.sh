#!/usr/bin/env bash
# OpenVINO rounds the floor division of integers toward zero, and takes atan2 of integers in integers.
#
# openvino 2026.4.1 with torch 2.13.0, on a CPU. Python and PyTorch floor: -7 // 2 is -4, and bins of negative numbers (an
# hour before midnight, a difference of two days) lie below zero. ov.convert_model keeps the division in integers, from an
# exported program as from the module itself, where the kernel truncates: bins -1 and 0 become one. Floats are divided
# right, and so is the remainder of integers, so that quotient and remainder do not belong together any more. The angle of
# two integers is computed in integers as well: 1.29 becomes 1. The same program run by PyTorch is right. Seen, for the
# integers [-7, 7, -1]:
#
#     openvino 2026.4.1, torch 2.13.0+cpu
#     // 2: torch [-4, 3, -1], exported [-4, 3, -1], OpenVINO [-3, 3, 0] and [-3, 3, 0]
#     % 2: torch [1, 1, 1], exported [1, 1, 1], OpenVINO [1, 1, 1] and [1, 1, 1]
#     atan2 of 2: torch [-1.29, 1.29, -0.46], exported [-1.29, 1.29, -0.46], OpenVINO [-1, 1, 0] and [-1, 1, 0]
#     as found
#
# Installs them in a temporary folder, with a package that openvino imports and does not name. Exits 0 while OpenVINO
# behaves so, 1 when it does not any more.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --disable-pip-version-check --quiet torch==2.13.0 numpy==2.3.5 openvino==2026.4.1 packaging==25.0

cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2> /dev/null
import sys
from importlib.metadata import version

import openvino
import torch
from torch import nn

NUMBERS = torch.tensor([-7, 7, -1])


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, numbers):
        return self.function(numbers)


def rounded(values):
    return [round(float(v), 2) if float(v) % 1 else int(v) for v in values]


def converted(source):
    model = openvino.convert_model(source, example_input=(NUMBERS,))
    return rounded(openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(NUMBERS.numpy())[0])


print(f"openvino {version('openvino')}, torch {torch.__version__}")
cases = {
    "// 2": (lambda x: x // 2, [-4, 3, -1], [-3, 3, 0]),
    "% 2": (lambda x: x % 2, [1, 1, 1], [1, 1, 1]),
    "atan2 of 2": (lambda x: torch.atan2(x, torch.full_like(x, 2)), [-1.29, 1.29, -0.46], [-1, 1, 0]),
}
same = True
for name, (function, right, wrong) in cases.items():
    model = Of(function).eval()
    program = torch.export.export(model, (NUMBERS,))
    called, exported = rounded(model(NUMBERS)), rounded(program.module()(NUMBERS))
    first, second = converted(program), converted(model)
    print(f"{name}: torch {called}, exported {exported}, OpenVINO {first} and {second}")
    same &= called == exported == right and first == second == wrong
print("as found" if same else "changed")
sys.exit(not same)
PYTHON
