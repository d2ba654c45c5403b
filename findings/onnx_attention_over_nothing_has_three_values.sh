#!/usr/bin/env bash
# Attention over nothing is zeros in PyTorch; in the ONNX file of it, it is not a number or the mean of what was
# masked.
#
# torch 2.13.0 with onnxscript 0.7.2 and onnxruntime 1.32.0, on a CPU. scaled_dot_product_attention gives zeros where
# all keys are masked: a user without a history gets a score. torch.onnx.export (dynamo=True, and the opset it takes by
# itself, 20) writes a softmax of its own. A mask of -inf, which is what nn.MultiheadAttention makes of its
# key_padding_mask, gives NaN; a mask of booleans is filled with the lowest number, so that the softmax is uniform and
# the result is the mean of the values that the mask hides: a plausible vector of padding. Both are of that one row
# only, so a test on users with histories passes. With opset_version=23 the operator Attention is written, and all
# three agree. Seen, for one query, two masked keys and the values [2, 0] and [4, 2]:
#
#     torch 2.13.0+cpu, onnxscript 0.7.2, onnxruntime 1.32.0
#     mask of booleans: torch [0.0, 0.0], opset 20 [3.0, 1.0], opset 23 [0.0, 0.0]
#     mask of -inf: torch [0.0, 0.0], opset 20 [nan, nan], opset 23 [0.0, 0.0]
#     nn.MultiheadAttention: torch is finite, opset 20 is not, opset 23 equals torch
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

import onnxruntime
import torch
from torch import nn


class Attention(nn.Module):
    """The operator alone."""

    def forward(self, query, keys, values, mask):
        return nn.functional.scaled_dot_product_attention(query, keys, values, mask)


class Layer(nn.Module):
    """The layer that encoders are made of."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, item, history, padding):
        return self.attention(item, history, history, key_padding_mask=padding, need_weights=False)[0]


def opset_and_answer(model, given, **asked):
    file = io.BytesIO()
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(model.eval(), given, dynamo=True, verbose=False, **asked)
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    answer = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, given)})[0]
    return program.model.opset_imports[""], torch.from_numpy(answer).flatten()


print(f"torch {torch.__version__}, onnxscript {version('onnxscript')}, onnxruntime {onnxruntime.__version__}")
query, keys = torch.ones(1, 1, 1, 2), torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])
values = torch.tensor([[[[2.0, 0.0], [4.0, 2.0]]]])
hidden = torch.zeros(1, 1, 1, 2, dtype=torch.bool)
masks = {"booleans": (hidden, [3.0, 1.0]), "-inf": (torch.zeros(1, 1, 1, 2).masked_fill(~hidden, -math.inf), None)}
same = True
for name, (mask, wrong) in masks.items():
    given = (query, keys, values, mask)
    right = Attention()(*given).flatten()
    opset, old = opset_and_answer(Attention(), given)
    _, new = opset_and_answer(Attention(), given, opset_version=23)
    print(f"mask of {name}: torch {right.tolist()}, opset {opset} {old.tolist()}, opset 23 {new.tolist()}")
    same &= right.tolist() == new.tolist() == [0.0, 0.0] and opset == 20
    same &= bool(old.isnan().all()) if wrong is None else old.tolist() == wrong
given = (torch.ones(1, 1, 4), torch.ones(1, 3, 4), torch.ones(1, 3, dtype=torch.bool))
with torch.no_grad():
    right = Layer().eval()(*given).flatten()
(_, old), (_, new) = opset_and_answer(Layer(), given), opset_and_answer(Layer(), given, opset_version=23)
states = ["is finite" if each.isfinite().all() else "is not" for each in (right, old)]
agrees = "equals torch" if torch.allclose(right, new) else "differs"
print(f"nn.MultiheadAttention: torch {states[0]}, opset 20 {states[1]}, opset 23 {agrees}")
same &= states == ["is finite", "is not"] and agrees == "equals torch"
print("as found" if same else "changed")
sys.exit(not same)
PYTHON
