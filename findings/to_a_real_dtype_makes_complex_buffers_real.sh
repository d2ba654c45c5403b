#!/usr/bin/env bash
# `module.to(torch.float32)` of a float32 model changes its scores where a buffer is complex; `module.float()` does not.
#
# torch 2.13.0. Turns of positions (rotary embeddings) are often kept as a buffer of complex numbers. `.float()` and
# `.double()` leave it as it is, but `.to(dtype)` and `.type(dtype)` cast complex tensors as well, to real ones: what is
# imaginary is gone, and a turn by an angle is a scaling by its cosine. Nothing fails afterwards, for a complex number
# times a real one is one, and a dtype that the model has already is no exception. There is a warning, once per process:
# the second model that is moved gets none. Seen, the largest difference to the scores before:
#
#     torch 2.13.0+cpu, the largest score 1.7
#     .float()             turns complex64   scores differ by 0         warned 0 times
#     .double()            turns complex64   scores differ by 1.4e-07   warned 0 times
#     .to(torch.float32)   turns float32     scores differ by 0.99      warned 1 times
#     .to(torch.float64)   turns float64     scores differ by 0.99      warned 0 times
#     .type(torch.float32) turns float32     scores differ by 0.99      warned 0 times
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
import copy
import sys
import warnings

import torch
from torch import nn

STEPS, WIDTH = 5, 8


class Turned(nn.Module):
    """Queries of every step, each pair of columns turned by an angle that grows with the step."""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        angles = torch.outer(torch.arange(STEPS), 10.0 ** -torch.arange(WIDTH // 2))
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles))

    def forward(self, x):
        pairs = torch.view_as_complex(self.query(x).unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.turns).flatten(-2)


MOVES = {  # how, and whether turns are turns afterwards
    ".float()": (lambda model: model.float(), True),
    ".double()": (lambda model: model.double(), True),
    ".to(torch.float32)": (lambda model: model.to(torch.float32), False),
    ".to(torch.float64)": (lambda model: model.to(torch.float64), False),
    ".type(torch.float32)": (lambda model: model.type(torch.float32), False),
}

torch.manual_seed(0)
model, x = Turned().eval(), torch.randn(3, STEPS, WIDTH)
before = model(x)
print(f"torch {torch.__version__}, the largest score {before.abs().max().item():.2g}")
same, warned = True, 0
for name, (move, turns) in MOVES.items():
    moved = copy.deepcopy(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        move(moved)
    apart = (moved(x.to(moved.query.weight.dtype)) - before).abs().max().item()
    kind = str(moved.turns.dtype).removeprefix("torch.")
    print(f"{name:20} turns {kind:11} scores differ by {apart:<9.2g} warned {len(caught)} times")
    same &= moved.turns.is_complex() == turns and (apart < 1e-6 if turns else apart > 0.1)
    warned += len(caught)
same &= warned == 1
print("as found" if same else "it behaves differently now")
sys.exit(not same)
PYTHON
