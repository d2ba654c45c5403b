#!/usr/bin/env bash
# One function given to torch.compile, and nobody's distributions are checked any more.
#
# torch 2.13.0. torch.distributions checks its arguments, and the values that it is asked about, unless told not to: of
# a score that is no number a likelihood raises ValueError. torch.compile(f) makes another f, and compiles nothing
# before that is called, so one expects it to change nothing else. It switches the checks off for the whole process:
# models that were never compiled return the likelihood of what they refused a line before. torch.export, which has much
# of the same machinery, leaves them on; so does torch.jit.trace. Seen:
#
#     torch 2.13.0+cpu
#     at first                         a score that is no number: refused
#     torch.export.export(model, ...)  a score that is no number: refused
#     torch.jit.trace(model, ...)      a score that is no number: refused
#     torch.compile(another function)  a score that is no number: likelihood nan
#     set_default_validate_args(True)  a score that is no number: refused
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
from torch import nn
from torch.distributions import Distribution, Normal

linear, rows = nn.Linear(3, 1), torch.randn(4, 3)
STEPS = {
    "at first": lambda: None,
    "torch.export.export(model, ...)": lambda: torch.export.export(linear, (rows,)),
    "torch.jit.trace(model, ...)": lambda: torch.jit.trace(linear, (rows,)),
    "torch.compile(another function)": lambda: torch.compile(lambda x: x + 1),
    "set_default_validate_args(True)": lambda: Distribution.set_default_validate_args(True),
}


def of_no_number():
    try:
        return f"likelihood {Normal(0.0, 1.0).log_prob(torch.tensor(float('nan'))).item()}"
    except ValueError:
        return "refused"


print(f"torch {torch.__version__}")
seen = []
for name, step in STEPS.items():
    step()
    seen.append(of_no_number())
    print(f"{name:32} a score that is no number: {seen[-1]}")
as_found = seen == ["refused"] * 3 + ["likelihood nan", "refused"]
print("as found" if as_found else "torch behaves otherwise")
sys.exit(not as_found)
PYTHON
