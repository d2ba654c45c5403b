#!/usr/bin/env bash
# torch.onnx.export writes `x + 1e-9` as x, and `x * 1.000001` as x: a norm of nothing plus 1e-9 is 0, and 0 / 0 no number.
#
# torch 2.13.0 with onnxscript 0.7.2, onnx 1.23.2 and onnxruntime 1.32.0, on a CPU. The exporter optimises by rules such as
# `x + 0 -> x`, and a number matches a rule's where it is within 1e-8, or a hundred-thousandth, of it. So whatever a model
# adds to keep from dividing by 0 is lost if it is small, as `log(p + 1e-9)`. With optimize=False all numbers stay. Seen:
#
#     torch 2.13.0+cpu, onnxscript 0.7.2, onnx 1.23.2, onnxruntime 1.32.0
#     x / (norm + 1e-09) of 0: torch 0.0, onnxruntime nan, with optimize=False 0.0
#     x / (norm + 1e-07) of 0: torch 0.0, onnxruntime 0.0, with optimize=False 0.0
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
import math
import sys
from importlib.metadata import version

import onnx
import onnxruntime
import torch
from torch import nn


class Normed(nn.Module):
    """A row of length 1, or of 0."""

    def __init__(self, small):
        super().__init__()
        self.small = small

    def forward(self, x):
        return x / (x.norm(dim=1, keepdim=True) + self.small)


def run(model, x, optimize):
    file = io.BytesIO()
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model, (x,), dynamo=True, verbose=False, optimize=optimize).save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0].ravel()[0].item()


print(
    f"torch {torch.__version__}, onnxscript {version('onnxscript')}, onnx {onnx.__version__}, "
    f"onnxruntime {onnxruntime.__version__}"
)
x, same = torch.zeros(2, 3), True
for small in (1e-9, 1e-7):
    model = Normed(small).eval()
    right, written, whole = model(x)[0, 0].item(), run(model, x, True), run(model, x, False)
    print(f"x / (norm + {small:.0e}) of 0: torch {right}, onnxruntime {written}, with optimize=False {whole}")
    same &= right == whole == 0 and (math.isnan(written) if small < 1e-8 else written == 0)
print("as found" if same else "changed")
sys.exit(not same)
PYTHON
