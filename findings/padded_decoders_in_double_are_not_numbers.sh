#!/usr/bin/env bash
# A decoder of transformers in float64, with padding in front and attention written out, returns NaN for the whole row.
#
# transformers 4.57.1 with torch 2.13.0. Who checks that two ways of computing a model are equal does so in double
# precision. With attn_implementation="eager" the mask is filled with the lowest number of the model's dtype, -1.8e308 in
# float64, and the softmax over scores and mask is told to compute in float32, where that number is minus infinity. A
# padded position in front sees padding alone: every score of it is minus infinity, its softmax is 0/0, and from the next
# layer on its keys and values, NaN with a weight of 0, make NaN of all other positions of the row: also of the last token,
# which is what a ranker reads. In float32 and bfloat16 the lowest number stays finite and nothing happens; "sdpa" is right
# in all three. Seen (positions that are not numbers, of a row without padding and of one with three):
#
#     transformers 4.57.1, torch 2.13.0+cpu
#     float32, eager: [0, 0]
#     float32, sdpa: [0, 0]
#     bfloat16, eager: [0, 0]
#     bfloat16, sdpa: [0, 0]
#     float64, eager: [0, 10]
#     float64, sdpa: [0, 0]
#     as found
#
# Installs both in a temporary folder. Exits 0 while transformers behaves so, 1 when it does not any more.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --disable-pip-version-check --quiet torch==2.13.0 numpy==2.3.5 transformers==4.57.1

cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2> /dev/null
import sys

import torch
import transformers
from transformers import LlamaConfig, LlamaModel

SIZES = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def positions_that_are_no_numbers(dtype, attention):
    """Of two rows of ten tokens; the second has three of padding in front."""
    torch.manual_seed(0)
    model = LlamaModel(LlamaConfig(**SIZES, attn_implementation=attention)).to(dtype).eval()
    tokens, mask = torch.randint(1, 100, (2, 10)), torch.ones(2, 10, dtype=torch.int64)
    mask[1, :3] = 0
    with torch.no_grad():
        made = model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    return made.isnan().any(-1).sum(1).tolist()


print(f"transformers {transformers.__version__}, torch {torch.__version__}")
found = {}
for dtype in ("float32", "bfloat16", "float64"):
    for attention in ("eager", "sdpa"):
        found[dtype, attention] = positions_that_are_no_numbers(getattr(torch, dtype), attention)
        print(f"{dtype}, {attention}: {found[dtype, attention]}")
as_found = all(rows == ([0, 10] if how == ("float64", "eager") else [0, 0]) for how, rows in found.items())
print("as found" if as_found else "it behaves differently now")
sys.exit(not as_found)
PYTHON
