#!/usr/bin/env bash
# torch.any over an axis of length 0 is False; in the ONNX file of it, it is True.
#
# torch 2.13.0 with onnxscript 0.7.2, onnx 1.23.2 and onnxruntime 1.32.0, on a CPU. Whether a user ever clicked is
# `(clicks > 0).any(1)`, and a history of any length may be empty. torch.onnx.export (dynamo=True) writes the maximum
# of the booleans as int64, turned back into a boolean. ONNX defines the maximum of nothing as the lowest number there
# is, which is not 0 and so becomes True: the runtime and onnx's own evaluator agree on it. `all`, written as a
# minimum, is right, and so is every length but 0. Seen, for two users and histories of three clicks and of none:
#
#     torch 2.13.0+cpu, onnxscript 0.7.2, onnx 1.23.2, onnxruntime 1.32.0
#     any of 3: torch [False, True], onnxruntime [False, True], reference [False, True]
#     any of 0: torch [False, False], onnxruntime [True, True], reference [True, True]
#     all of 3: torch [False, True], onnxruntime [False, True], reference [False, True]
#     all of 0: torch [True, True], onnxruntime [True, True], reference [True, True]
#     as found
#
# Installs all in a temporary folder. Exits 0 while they behave so, 1 when they do not any more.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --disable-pip-version-check --quiet torch==2.13.0 numpy==2.3.5 onnx==1.23.2 \
    onnxscript==0.7.2 onnxruntime==1.32.0

cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2> /dev/null
import contextlib
import io
import sys
from importlib.metadata import version

import onnx
import onnx.reference
import onnxruntime
import torch
from torch import nn


class Clicked(nn.Module):
    """Whether any, or all, of a user's numbers are above 0."""

    def __init__(self, which):
        super().__init__()
        self.which = which

    def forward(self, clicks):
        return getattr(clicks > 0, self.which)(1)


def written(model, example):
    file, length = io.BytesIO(), torch.export.Dim("length", min=0)
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model, (example,), dynamo=True, verbose=False, dynamic_shapes=({1: length},)).save(file)
    return file.getvalue()


print(
    f"torch {torch.__version__}, onnxscript {version('onnxscript')}, onnx {onnx.__version__}, "
    f"onnxruntime {onnxruntime.__version__}"
)
clicks = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 1.0]])
same = True
for which in ("any", "all"):
    model = Clicked(which).eval()
    raw = written(model, clicks)
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    reference = onnx.reference.ReferenceEvaluator(onnx.load_from_string(raw))
    for given in (clicks, clicks[:, :0]):
        feed = {session.get_inputs()[0].name: given.numpy()}
        right, run, evaluated = model(given).tolist(), session.run(None, feed)[0].tolist(), reference.run(None, feed)[0]
        evaluated, length = evaluated.tolist(), given.shape[1]
        print(f"{which} of {length}: torch {right}, onnxruntime {run}, reference {evaluated}")
        wrong = (which, length) == ("any", 0)
        same &= run == evaluated == ([True, True] if wrong else right) and right == model(given).tolist()
        same &= not wrong or right == [False, False]
print("as found" if same else "changed")
sys.exit(not same)
PYTHON
