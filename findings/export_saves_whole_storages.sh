#!/usr/bin/env bash
# torch.export.save stores example inputs with all the memory that they are views of.
#
# torch 2.13.0. Exported with two rows of a million-row tensor, a model of two weights is a file of 8 MB: the million
# rows are in it, and torch.export.load reads them all. Exported with a copy of the two rows it is a file of 8 kB. So
# whoever is handed a model that was exported with a slice of a data set is handed the data set. Seen:
#
#     torch 2.13.0+cpu
#     slice.pt2: 8,007,557 bytes; read back: shape [2, 1], memory of 1,000,000 rows
#     copy.pt2: 7,546 bytes; read back: shape [2, 1], memory of 2 rows
#     as found
#
# Installs torch in a temporary folder. Exits 0 while torch behaves so, 1 when it does not any more.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --disable-pip-version-check --quiet torch==2.13.0 numpy==2.3.5

cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import os
import sys

import torch

ROWS = 1_000_000
data = torch.arange(ROWS, dtype=torch.float64)[:, None]  # 8 MB; every row is its own number
dim = torch.export.Dim("rows", min=2, max=ROWS)


def saved(example, path):
    """Bytes of the file, and the example's memory after it is read back."""
    program = torch.export.export(torch.nn.Linear(1, 1).double(), (example,), dynamic_shapes=({0: dim},))
    torch.export.save(program, path)
    (args, _) = torch.export.load(path).example_inputs
    memory = torch.empty(0, dtype=torch.float64).set_(args[0].untyped_storage())
    size, shape = os.path.getsize(path), list(args[0].shape)
    print(f"{path}: {size:,} bytes; read back: shape {shape}, memory of {len(memory):,} rows")
    return size, memory


print(f"torch {torch.__version__}")
size, memory = saved(data[:2], "slice.pt2")
copied, own = saved(data[:2].clone(), "copy.pt2")
everything = size > 8 * ROWS and torch.equal(memory, data[:, 0])  # the rows that nobody exported are there
nothing_else = copied < 100_000 and len(own) == 2
print("as found" if everything and nothing_else else "changed")
sys.exit(not (everything and nothing_else))
PYTHON
