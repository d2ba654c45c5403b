#!/usr/bin/env bash
# A program exported while an input was None takes a tensor in that place, and computes as if it were None.
#
# torch 2.13.0. torch.export fixes inputs that are no tensors, and checks them on every call: a program exported with
# k=2 or mode="mean" raises when it is called with another. None is the exception: a ranker exported with weights=None
# or mask=None, called later with weights or a mask, passes and returns the numbers without them. The program that was
# saved and loaded, exported strictly, or decomposed does so as well. (Left out of the example altogether, the place is
# not there, and the call raises.) Seen, for the sum of ids [1, 2] and [3, 4] in a table of ones, exported without
# weights:
#
#     torch 2.13.0+cpu
#     model: without weights [2.0, 2.0], with weights [0.75, 3.0]
#     exported: with weights [2.0, 2.0]
#     saved and loaded: with weights [2.0, 2.0]
#     strict: with weights [2.0, 2.0]
#     decomposed: with weights [2.0, 2.0]
#     another mode: AssertionError
#     another scale: AssertionError
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
import io
import sys

import torch
from torch import nn


class Bag(nn.Module):
    """A sum of embeddings, weighted where weights are given, times a number."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.ones(5, 1))

    def forward(self, ids, weights, mode, scale):
        vectors = self.table(ids)[..., 0] * scale
        if weights is not None:
            vectors = vectors * weights
        return vectors.sum(1) if mode == "sum" else vectors.mean(1)


def read_back(program):
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def raised(call):
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "passes"


print(f"torch {torch.__version__}")
model, ids = Bag().eval(), torch.tensor([[1, 2], [3, 4]])
weights, rest = torch.tensor([[0.5, 0.25], [1.0, 2.0]]), ("sum", 1.0)
without, right = model(ids, None, *rest).tolist(), model(ids, weights, *rest).tolist()
print(f"model: without weights {without}, with weights {right}")
program = torch.export.export(model, (ids, None, *rest))
programs = {
    "exported": program,
    "saved and loaded": read_back(program),
    "strict": torch.export.export(model, (ids, None, *rest), strict=True),
    "decomposed": program.run_decompositions(),
}
same = right != without
for name, each in programs.items():
    made = each.module()(ids, weights, *rest).tolist()
    print(f"{name}: with weights {made}")
    same &= made == without
changed = {"mode": ("mean", 1.0), "scale": ("sum", 2.0)}
for name, others in changed.items():
    outcome = raised(lambda: program.module()(ids, None, *others))
    print(f"another {name}: {outcome}")
    same &= outcome != "passes"
print("as found" if same else "changed")
sys.exit(not same)
PYTHON
