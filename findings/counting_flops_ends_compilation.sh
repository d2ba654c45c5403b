#!/usr/bin/env bash
# A function whose floating-point operations are counted once is never compiled again.
#
# torch 2.13.0. FlopCounterMode counts what runs inside of it, and is no part of what runs outside. A function under
# torch.compile that is called there runs uncompiled, which one would guess, for the mode has to see its operators. But
# it stays so: every later call outside runs operator by operator as well, without a word, also where the function had
# been compiled before, and so does another one made of the same lines, if it is given to torch.compile afterwards. With
# fullgraph=True, which is to raise where something is not compiled, it raises ever after. Any TorchDispatchMode does.
# Seen, calls that ran compiled:
#
#     torch 2.13.0+cpu
#     not counted          first call: 1, again: 1, of another width: 1
#     counted at first     counted: 0, again: 0, of another width: 0
#     of the same lines    again: 0
#     called, then counted first call: 1, counted: 0, again: 0, of another width: 0
#     with fullgraph       first call: 1, counted: RuntimeError, again: RuntimeError
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
from torch.utils.flop_counter import FlopCounterMode

ran = []


def backend(graph, example):
    return lambda *given: ran.append(1) or graph.forward(*given)


def score_1(rows):
    return (rows @ rows.mT).relu()


def score_2(rows):
    return (rows @ rows.mT).relu()


def score_3(rows):
    return (rows @ rows.mT).relu()


def score_4(rows):
    return (rows @ rows.mT).relu()


def compiled(call, wide=3):
    ran.clear()
    try:
        call(torch.ones(4, wide))
    except RuntimeError:
        return "RuntimeError"
    return len(ran)


def counted(call):
    with FlopCounterMode(display=False):
        return compiled(call)


def made(function, **options):
    return torch.compile(function, backend=backend, dynamic=False, **options)


print(f"torch {torch.__version__}")
first, second, third, whole = made(score_1), made(score_2), made(score_3), made(score_4, fullgraph=True)
seen = {
    "not counted": {"first call": compiled(first), "again": compiled(first), "of another width": compiled(first, 5)},
    "counted at first": {"counted": counted(second), "again": compiled(second),
                         "of another width": compiled(second, 5)},
    "of the same lines": {"again": compiled(made(score_2))},
    "called, then counted": {"first call": compiled(third), "counted": counted(third), "again": compiled(third),
                             "of another width": compiled(third, 5)},
    "with fullgraph": {"first call": compiled(whole), "counted": counted(whole), "again": compiled(whole)},
}
for name, found in seen.items():
    print(f"{name:20} " + ", ".join(f"{when}: {said}" for when, said in found.items()))
expected = [[1, 1, 1], [0, 0, 0], [0], [1, 0, 0, 0], [1, "RuntimeError", "RuntimeError"]]
as_found = [list(found.values()) for found in seen.values()] == expected
print("as found" if as_found else "torch behaves otherwise")
sys.exit(not as_found)
PYTHON
