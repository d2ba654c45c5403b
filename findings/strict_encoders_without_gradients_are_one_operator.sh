#!/usr/bin/env bash
# An nn.TransformerEncoder exported strictly under torch.no_grad() is one private operator, which ONNX cannot take.
#
# torch 2.13.0, onnx 1.23.2, onnxscript 0.7.2. One exports a trained ranker under torch.no_grad(), as one scores with it,
# and takes strict=True because something in it needs that. A layer of nn.TransformerEncoder in eval mode asks whether
# gradients are wanted, and where none are takes a path of its own: while the strict exporter reads the model that path is
# followed, and the whole layer becomes aten._transformer_encoder_layer_fwd. It stays after run_decompositions(), where
# one is told to expect core ATen operators alone, and torch.onnx.export fails to convert the program. The same model
# exported strictly with gradients on, or not strictly, is 17 kinds of plain operators either way, and converts. A model whose
# weights are frozen by requires_grad_(False) is the one operator with gradients on, too. Seen, for one layer:
#
#     torch 2.13.0+cpu
#     strict=False, gradients on: 17 kinds of operators, to ONNX: converts
#     strict=False, under no_grad: 17 kinds of operators, to ONNX: converts
#     strict=True, gradients on: 17 kinds of operators, to ONNX: converts
#     strict=True, under no_grad: 1 kind of operator, aten._transformer_encoder_layer_fwd, to ONNX: ConversionError
#     strict=True, gradients on, weights frozen: 1 kind of operator, aten._transformer_encoder_layer_fwd, to ONNX: ConversionError
#     as found
#
# Installs torch, onnx and onnxscript in a temporary folder. Exits 0 while torch behaves so, 1 when it does not any more.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --disable-pip-version-check --quiet \
    torch==2.13.0 numpy==2.3.5 onnx==1.23.2 onnxscript==0.7.2 onnx-ir==1.1.0

cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2> /dev/null
import sys

import torch
from torch import nn

WHOLE = "aten._transformer_encoder_layer_fwd"


def exported(strict, gradients, frozen):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval().requires_grad_(not frozen)
    rows = ({0: torch.export.Dim("rows")},)
    with torch.set_grad_enabled(gradients):
        program = torch.export.export(model, (torch.randn(3, 5, 16),), dynamic_shapes=rows, strict=strict)
    return program, {str(n.target) for n in program.graph.nodes if n.op == "call_function"}


def converted(program):
    try:
        torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:
        return type(error).__name__
    return "converts"


def found(strict, gradients, frozen):
    program, operators = exported(strict, gradients, frozen)
    core = {str(n.target) for n in program.run_decompositions().graph.nodes}
    whole = [WHOLE] * (f"{WHOLE}.default" in operators and f"{WHOLE}.default" in core)
    kinds = "1 kind of operator" if len(operators) == 1 else f"{len(operators)} kinds of operators"
    return ", ".join([kinds, *whole, f"to ONNX: {converted(program)}"])


PLAIN, ONE = "17 kinds of operators, to ONNX: converts", f"1 kind of operator, {WHOLE}, to ONNX: ConversionError"
EXPECTED = {
    (False, True, False): PLAIN,
    (False, False, False): PLAIN,
    (True, True, False): PLAIN,
    (True, False, False): ONE,
    (True, True, True): ONE,
}
print(f"torch {torch.__version__}")
as_found = True
for (strict, gradients, frozen), expected in EXPECTED.items():
    seen = found(strict, gradients, frozen)
    print(f"strict={strict}, {'gradients on' if gradients else 'under no_grad'}{', weights frozen' * frozen}: {seen}")
    as_found = as_found and seen == expected
print("as found" if as_found else "torch behaves otherwise")
sys.exit(not as_found)
PYTHON
