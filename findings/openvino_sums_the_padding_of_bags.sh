#!/usr/bin/env bash
# OpenVINO converts an embedding bag with padding and adds the padding's row to the sum, once for every padded place.
#
# openvino 2026.4.1 with torch 2.13.0, on a CPU. nn.EmbeddingBag(padding_idx=0) leaves id 0 out of the sum and out of
# the number that a mean divides by: this is how histories of different lengths share one matrix. ov.convert_model
# drops the argument without a word, from an exported program as from the module itself. A table that was trained with
# it has zeros in that row only if nothing was loaded over them, and the mean is wrong even then: it divides by the
# padded length. The same program run by PyTorch is right. Seen, for the ids [3, 0, 0, 0] and [1, 2, 0, 0], in a table
# whose row 0 is 100 and row i is i, and in one whose row 0 is 0:
#
#     openvino 2026.4.1, torch 2.13.0+cpu
#     sum, row 0 of 100: torch [3.0, 3.0], exported [3.0, 3.0], OpenVINO [303.0, 203.0] and [303.0, 203.0]
#     mean, row 0 of 100: torch [3.0, 1.5], exported [3.0, 1.5], OpenVINO [75.75, 50.75] and [75.75, 50.75]
#     sum, row 0 of 0: torch [3.0, 3.0], exported [3.0, 3.0], OpenVINO [3.0, 3.0] and [3.0, 3.0]
#     mean, row 0 of 0: torch [3.0, 1.5], exported [3.0, 1.5], OpenVINO [0.75, 0.75] and [0.75, 0.75]
#     as found
#
# Installs both in a temporary folder. Exits 0 while OpenVINO behaves so, 1 when it does not any more.
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

IDS = torch.tensor([[3, 0, 0, 0], [1, 2, 0, 0]])


def bag(mode, padding):
    table = torch.arange(4.0)[:, None]
    table[0] = padding
    return nn.EmbeddingBag.from_pretrained(table, mode=mode, padding_idx=0).eval()


def converted(source):
    model = openvino.convert_model(source, example_input=(IDS,))
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(IDS.numpy())[0].flatten().tolist()


print(f"openvino {version('openvino')}, torch {torch.__version__}")
expected = {
    ("sum", 100): ([3, 3], [303, 203]),
    ("mean", 100): ([3, 1.5], [75.75, 50.75]),
    ("sum", 0): ([3, 3], [3, 3]),
    ("mean", 0): ([3, 1.5], [0.75, 0.75]),
}
same = True
for (mode, padding), (right, wrong) in expected.items():
    model = bag(mode, padding)
    program = torch.export.export(model, (IDS,))
    called, exported = model(IDS).flatten().tolist(), program.module()(IDS).flatten().tolist()
    first, second = converted(program), converted(model)
    print(f"{mode}, row 0 of {padding}: torch {called}, exported {exported}, OpenVINO {first} and {second}")
    same &= called == exported == right and first == second == wrong
print("as found" if same else "changed")
sys.exit(not same)
PYTHON
