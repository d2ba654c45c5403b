#!/usr/bin/env bash
# torch.export before PyTorch 2.13 gives the last states of an LSTM an axis too many, so that a model which joins the last
# state with anything does not export, and one which returns it exports with a shape that no call has.
#
# torch 2.12.0 (2.11.0 too; 2.13.0 is right), on a CPU. An encoder of a user's history commonly keeps the last state,
# `_, (state, _) = lstm(history)`, of shape [1, rows, 3] here. With rows of any number, the exported graph records it as
# [1, 1, rows, 3]: `state[-1]` is recorded as [1, rows, 3], and joining it with the item's [rows, 3] is refused while the
# same lines run. The layer's output, and the states of a GRU, are recorded as they are. Seen:
#
#     torch 2.12.0+cu130
#     called: state [1, 4, 3]
#     exported: LSTM steps 3 axes, state 4 axes
#     exported: GRU steps 3 axes, state 3 axes
#     state[-1] joined with the item: runs; RuntimeError in export
#     as found
#
# Installs torch in a temporary folder. Exits 0 while torch behaves so, 1 when it does not any more.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --disable-pip-version-check --quiet torch==2.12.0 numpy==2.3.5

cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2> /dev/null
import sys

import torch
from torch import nn


class Encoder(nn.Module):
    """Steps and last state."""

    def __init__(self, kind):
        super().__init__()
        self.layer = kind(4, 3, batch_first=True)

    def forward(self, history):
        steps, state = self.layer(history)
        return steps, state[0] if isinstance(state, tuple) else state


class Ranker(nn.Module):
    """The last state beside the item."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder(nn.LSTM)

    def forward(self, history, item):
        return torch.cat([self.encoder(history)[1][-1], item], 1)


def exported(model, *given):
    rows = {0: torch.export.Dim("rows", min=2)}
    return torch.export.export(model.eval(), given, dynamic_shapes=tuple(rows for _ in given))


print(f"torch {torch.__version__}")
history, item, axes = torch.randn(4, 5, 4), torch.randn(4, 3), []
print("called: state", list(Encoder(nn.LSTM)(history)[1].shape))
for kind in (nn.LSTM, nn.GRU):
    last = list(exported(Encoder(kind), history).graph.nodes)[-1]
    axes.append([made.meta["val"].dim() for made in last.args[0]])
    print(f"exported: {kind.__name__} steps {axes[-1][0]} axes, state {axes[-1][1]} axes")
joined = list(Ranker()(history, item).shape) == [4, 6]
try:
    exported(Ranker(), history, item)
    refused = "passes"
except Exception as error:
    refused = type(error).__name__
print(f"state[-1] joined with the item: {'runs' if joined else 'fails'}; {refused} in export")
same = joined and axes == [[3, 4], [3, 3]] and refused != "passes"
print("as found" if same else "changed")
sys.exit(not same)
PYTHON
