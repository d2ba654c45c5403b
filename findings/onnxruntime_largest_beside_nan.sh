#!/usr/bin/env bash
# ONNX Runtime's largest of a row with a NaN depends on where the NaN stands, and may be neither NaN nor the largest.
#
# onnx 1.23.2 and onnxruntime 1.32.0 on a CPU, numpy 2.3.5. ReduceMax, ReduceMin and ArgMax of numbers of which one is
# not a number: numpy, PyTorch and onnx's own evaluator answer NaN (and its place) wherever it stands. ONNX Runtime
# answers NaN if it comes first, and else goes on as if it was not there; of rows that are long enough for vectors it
# may leave out its neighbours, too, and return the second largest of the others. The Max of two tensors is NaN as it
# ought to be. So one broken feature, which shows in PyTorch, is a score like any other once exported. Seen, for NaN at
# each place of a row of three and of eight that grow from 0.1 to 0.7:
#
#     onnx 1.23.2, onnxruntime 1.32.0, numpy 2.3.5
#     ReduceMax of 3: onnxruntime nan 0.7 0.4, reference nan nan nan
#     ReduceMin of 3: onnxruntime nan 0.1 0.1, reference nan nan nan
#     ArgMax of 3: onnxruntime 0 2 1, reference 0 1 2
#     Max of 3: onnxruntime nan nan nan, reference nan nan nan
#     ReduceMax of 8: onnxruntime nan 0.61 0.7 0.61 0.7 0.7 0.7 0.61, reference nan nan nan nan nan nan nan nan
#     as found
#
# Installs all in a temporary folder. Exits 0 while they behave so, 1 when they do not any more; rows of eight, which
# processors add in vectors of different lengths, are only shown.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --disable-pip-version-check --quiet numpy==2.3.5 onnx==1.23.2 onnxruntime==1.32.0

"$folder/venv/bin/python" - <<'PYTHON' 2> /dev/null
import sys
from importlib.metadata import version

import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

FIXED = {"axes": (TensorProto.INT64, [1]), "zero": (TensorProto.FLOAT, [-9.0])}
OPERATORS = {
    "ReduceMax": (["x", "axes"], {"keepdims": 0}),
    "ReduceMin": (["x", "axes"], {"keepdims": 0}),
    "ArgMax": (["x"], {"axis": 1, "keepdims": 0}),
    "Max": (["x", "zero"], {}),
}


def model(name):
    inputs, attributes = OPERATORS[name]
    kind = TensorProto.INT64 if name == "ArgMax" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(name, inputs, ["y"], **attributes)],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None])],
        [helper.make_tensor_value_info("y", kind, None)],
        [helper.make_tensor(own, FIXED[own][0], [1], FIXED[own][1]) for own in inputs[1:]],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def answers(name, width):
    """Of a row for each place of the NaN: the runtime's and the reference's."""
    made = model(name)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    reference, found = ReferenceEvaluator(made), ([], [])
    for place in range(width):
        row = np.linspace(0.1, 0.7, width, dtype=np.float32)[None]
        row[0, place] = np.nan
        for run, seen in zip((session.run, reference.run), found):
            (y,) = run(None, {"x": row})
            seen.append(float(y.ravel()[place if name == "Max" else 0]))
    print(f"{name} of {width}: onnxruntime {told(found[0])}, reference {told(found[1])}")
    return found


def told(numbers):
    return " ".join(f"{number:.2g}" for number in numbers)


print(f"onnx {version('onnx')}, onnxruntime {version('onnxruntime')}, numpy {version('numpy')}")
found = {name: answers(name, 3) for name in OPERATORS}
answers("ReduceMax", 8)
nan = np.nan
expected = {
    "ReduceMax": ([nan, 0.7, 0.4], [nan] * 3),
    "ReduceMin": ([nan, 0.1, 0.1], [nan] * 3),
    "ArgMax": ([0, 2, 1], [0, 1, 2]),
    "Max": ([nan] * 3, [nan] * 3),
}
same = all(np.allclose(found[name], expected[name], equal_nan=True) for name in expected)
print("as found" if same else "changed")
sys.exit(not same)
PYTHON
