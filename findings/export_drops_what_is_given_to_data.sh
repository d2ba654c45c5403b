#!/usr/bin/env bash
# torch.export drops an assignment to `weight.data` in forward, and the program scores with the weight as it was.
#
# torch 2.13.0. Models of entities and relations keep their vectors at length 1 by writing them anew in every forward,
# `self.table.weight.data = F.normalize(self.table.weight)`. By default the exported graph has the norm and the division,
# whose result nobody reads, and looks up rows of the table that was exported, whatever their length. A strict export,
# and torch.compile, compute what the model does. No error and no warning tell, and the model itself is left as it was.
# (Where the new value is made of `weight.data`, reading that is refused with an error.) Seen, the largest difference to
# the model's scores, in float64, of a table whose rows are about three times too long:
#
#     torch 2.13.0+cpu
#     torch.compile: 0
#     exported strictly: 0
#     exported: 4.7
#     the same rows without the assignment, exported: 0
#     warnings that speak of data or of a parameter: 0
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
import torch.nn.functional as F
from torch import nn


class Translated(nn.Module):
    """Scores of triples: how far a head, moved by its relation, is from a tail."""

    def __init__(self):
        super().__init__()
        self.entities, self.relations = nn.Embedding(50, 8), nn.Embedding(4, 8)

    def forward(self, head, relation, tail):
        self.entities.weight.data = F.normalize(self.entities.weight, dim=1)
        return -(self.entities(head) + self.relations(relation) - self.entities(tail)).norm(dim=1)


class AsItIs(Translated):
    def forward(self, head, relation, tail):
        return -(self.entities(head) + self.relations(relation) - self.entities(tail)).norm(dim=1)


print(f"torch {torch.__version__}")
torch.manual_seed(0)
model = Translated().double().eval()
rows = torch.randint(50, (32,)), torch.randint(4, (32,)), torch.randint(50, (32,))


def anew(kind=Translated):
    """A model with the weights that were made above, which no call has written to."""
    made = kind().double().eval()
    made.load_state_dict(first)
    return made


first = copy.deepcopy(model.state_dict())
with torch.no_grad(), warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    truth = anew()(*rows)
    ways = {
        "torch.compile": torch.compile(anew(), fullgraph=True, backend="aot_eager"),
        "exported strictly": torch.export.export(anew(), rows, strict=True).module(),
        "exported": torch.export.export(anew(), rows).module(),
    }
    apart = {name: (call(*rows) - truth).abs().max().item() for name, call in ways.items()}
    plain = torch.export.export(anew(AsItIs), rows).module()
    apart["the same rows without the assignment, exported"] = (plain(*rows) - anew(AsItIs)(*rows)).abs().max().item()
    alike = torch.equal(ways["exported"](*rows), plain(*rows))
for name, error in apart.items():
    print(f"{name}: {error:.2g}")
told = [w for w in said if "data" in str(w.message) or "arameter" in str(w.message)]
print(f"warnings that speak of data or of a parameter: {len(told)}")
wrong = apart.pop("exported") > 1 and alike
same = wrong and max(apart.values()) < 1e-12 and not told
print("as found" if same else "not as found any more")
sys.exit(not same)
PYTHON
