#!/usr/bin/env bash
# torchmetrics takes a relevant document whose score is zero or less for a miss, in four of its retrieval metrics.
#
# torchmetrics 1.9.0. Metrics of ranking know the order alone, and a ranker's scores are commonly logits, which for
# clicks are mostly negative. RetrievalMAP, RetrievalMRR, RetrievalPrecision and RetrievalRecall first set the label to
# 0 wherever the score is not greater than 0: a perfect order of negative logits has a mean average precision of 0, and
# one of both signs a recall of one half. RetrievalNormalizedDCG, RetrievalHitRate, RetrievalRPrecision and
# RetrievalAUROC do not, so that one report says 1 and 0 of the same order. Nothing is raised, and the pages of the
# classes ask for float predictions of a model. Seen, for five documents, the two relevant ones on top, their scores
# moved by a constant:
#
#     torchmetrics 1.9.0, torch 2.13.0+cpu
#     logits + 4: MAP 1.0, MRR 1.0, Recall 1.0, Precision 1.0, NormalizedDCG 1.0, HitRate 1.0, RPrecision 1.0, AUROC 1.0
#     logits + 1: MAP 1.0, MRR 1.0, Recall 0.5, Precision 0.5, NormalizedDCG 1.0, HitRate 1.0, RPrecision 1.0, AUROC 1.0
#     logits + 0: MAP 0.0, MRR 0.0, Recall 0.0, Precision 0.0, NormalizedDCG 1.0, HitRate 1.0, RPrecision 1.0, AUROC 1.0
#     as found
#
# Installs both in a temporary folder. Exits 0 while torchmetrics behaves so, 1 when it does not any more.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --disable-pip-version-check --quiet torch==2.13.0 numpy==2.3.5 torchmetrics==1.9.0

cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2> /dev/null
import sys

import torch
import torchmetrics
from torchmetrics import retrieval

logits = torch.tensor([-3.5, -0.5, -2.5, -3.0, -1.0])
relevant, query = torch.tensor([0, 1, 0, 0, 1]), torch.zeros(5, dtype=torch.int64)  # both above all others
BLIND, RIGHT = ("MAP", "MRR", "Recall", "Precision"), ("NormalizedDCG", "HitRate", "RPrecision", "AUROC")
CUT = ("Recall", "Precision", "HitRate")  # at 2; the others look at all five


def value(name, scores):
    cut = {"top_k": 2} if name in CUT else {}
    return getattr(retrieval, "Retrieval" + name)(**cut)(scores, relevant, indexes=query).item()


print(f"torchmetrics {torchmetrics.__version__}, torch {torch.__version__}")
found = {}
for moved in (4, 1, 0):
    found[moved] = {name: value(name, logits + moved) for name in BLIND + RIGHT}
    print(f"logits + {moved}: " + ", ".join(f"{name} {number:.1f}" for name, number in found[moved].items()))
expected = {4: [1, 1, 1, 1], 1: [1, 1, 0.5, 0.5], 0: [0, 0, 0, 0]}
same = all([seen[name] for name in BLIND] == expected[moved] for moved, seen in found.items())
same &= all(seen[name] == 1 for seen in found.values() for name in RIGHT)
print("as found" if same else "changed")
sys.exit(not same)
PYTHON
