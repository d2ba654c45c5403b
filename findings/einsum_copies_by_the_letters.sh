#!/usr/bin/env bash
# torch.einsum sums in the order of the alphabet: which letters name the axes decides whether it copies its operands.
#
# torch 2.13.0, on a CPU. `bnc,nc->b` and `bcn,cn->b` are one equation with two letters exchanged. einsum lays the axes
# that are summed over by their letters, whatever their order in the operands: in the first spelling n and c change
# places, element by element, in a copy of both operands, of 1000 rows here 2 MB at every call. In the second nothing is
# copied. Both sum in another order, so that the results differ in their last bits. A capital letter comes before all
# small ones: `bnC,nC->b` copies, `bNc,Nc->b` does not. opt_einsum, where it is installed, chooses which pairs are
# multiplied first, and leaves this as it is. Seen:
#
#     torch 2.13.0+cpu
#     bnc,nc->b: copies 2050048 bytes
#     bcn,cn->b: copies 0 bytes
#     bnC,nC->b: copies 2050048 bytes
#     bNc,Nc->b: copies 0 bytes
#     bnc,bnc->b: copies 4096000 bytes
#     bcn,bcn->b: copies 0 bytes
#     results of the first two differ by 3.9e-07 of the largest
#     as found
#
# Installs torch in a temporary folder. Exits 0 while it behaves so, 1 when it does not any more.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --disable-pip-version-check --quiet torch==2.13.0 numpy==2.3.5

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Copied(TorchDispatchMode):
    """Bytes of all tensors that operators clone."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.clone.default:
            self.total += args[0].nbytes
        return func(*args, **(kwargs or {}))


def copied(equation, *operands):
    with Copied() as seen:
        result = torch.einsum(equation, *operands)
    print(f"{equation}: copies {seen.total} bytes")
    return seen.total, result


print(f"torch {torch.__version__}")
rows, weight = torch.randn(1000, 32, 16, generator=torch.manual_seed(0)), torch.randn(32, 16)
both = rows.nbytes + weight.nbytes
found, results = zip(*(copied(e, rows, weight) for e in ("bnc,nc->b", "bcn,cn->b", "bnC,nC->b", "bNc,Nc->b")))
pairs = [copied(e, rows, rows)[0] for e in ("bnc,bnc->b", "bcn,bcn->b")]
apart = float((results[0] - results[1]).abs().max() / results[0].abs().max())
print(f"results of the first two differ by {apart:.1e} of the largest")
same = list(found) == [both, 0, both, 0] and pairs == [2 * rows.nbytes, 0] and apart < 1e-5
same &= torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])
print("as found" if same else "changed")
sys.exit(not same)
PYTHON
