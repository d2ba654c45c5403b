#!/usr/bin/env bash
# The backward of batch norm on a CPU reads a weight with strides as if it had none: gradients of the input are wrong.
#
# torch 2.13.0, rows [rows, channels]. Who keeps scale and shift of a norm in one parameter, a pair per channel, takes
# every second element of it: scale is pairs[0::2], shift pairs[1::2]. The scores are right, and so is the gradient of
# the pairs. That of the rows is not, in training as in eval mode: it is what a norm with the scale pairs[:channels]
# has, the numbers that lie side by side in memory. No warning, and all layers below learn from it. `.contiguous()`
# behind the slice makes it right. Seen, in float64: the largest difference to the same norm of dense vectors, and of
# the rows' gradient to central differences of the loss:
#
#     torch 2.13.0+cpu
#     training, dense scale: scores 0, gradient of the pairs 0, of the rows 0, to differences 5e-11
#     training, sliced scale: scores 1e-16, gradient of the pairs 0, of the rows 0.9, to differences 0.9
#       that of the scale side by side in memory: 0
#     eval, dense scale: scores 0, gradient of the pairs 0, of the rows 0, to differences 4e-11
#     eval, sliced scale: scores 4e-16, gradient of the pairs 0, of the rows 0.7, to differences 0.7
#       that of the scale side by side in memory: 0
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
import sys

import torch
from torch.nn.functional import batch_norm

ROWS, CHANNELS, STEP = 7, 3, 1e-5
torch.manual_seed(0)
rows, wanted = (torch.randn(ROWS, CHANNELS, dtype=torch.float64) for _ in range(2))
pairs, mean = torch.randn(2 * CHANNELS, dtype=torch.float64), torch.randn(CHANNELS, dtype=torch.float64)
variance = 1 + torch.rand(CHANNELS, dtype=torch.float64)


def sliced(vector):
    return vector[0::2]


def dense(vector):
    return vector[0::2].contiguous()


def side_by_side(vector):
    return vector[:CHANNELS]


def norm(x, own, scale, training):
    return batch_norm(x, mean.clone(), variance.clone(), scale(own), own[1::2].contiguous(), training)


def found(*how):
    """Scores, the gradient of the rows, and that of the pairs."""
    x, own = rows.clone().requires_grad_(), pairs.clone().requires_grad_()
    scores = norm(x, own, *how)
    return scores.detach(), *torch.autograd.grad((scores * wanted).sum(), (x, own))


def by_differences(*how):
    """The gradient of the rows, one number after the other."""
    made = torch.empty_like(rows)
    for place in range(rows.numel()):
        step = torch.zeros_like(rows)
        step.view(-1)[place] = STEP
        up, down = ((norm(x, pairs, *how) * wanted).sum() for x in (rows + step, rows - step))
        made.view(-1)[place] = (up - down) / (2 * STEP)
    return made


def apart(x, y):
    return (x - y).abs().max().item()


print(f"torch {torch.__version__}")
same = True
for training in (True, False):
    right = found(dense, training)
    for scale in (dense, sliced):
        made, numeric = found(scale, training), by_differences(scale, training)
        scores, of_rows, of_pairs = map(apart, made, right)
        print(
            f"{'training' if training else 'eval'}, {scale.__name__} scale: scores {scores:.1g}, gradient of the pairs "
            f"{of_pairs:.1g}, of the rows {of_rows:.1g}, to differences {apart(made[1], numeric):.1g}"
        )
        same &= max(scores, of_pairs) < 1e-12 and apart(right[1], numeric) < 1e-7
        same &= of_rows > 0.1 if scale is sliced else of_rows == 0
    in_memory = apart(found(sliced, training)[1], found(side_by_side, training)[1])
    print(f"  that of the scale side by side in memory: {in_memory:.1g}")
    same &= in_memory < 1e-12
print("as found" if same else "it behaves differently now")
sys.exit(not same)
PYTHON
