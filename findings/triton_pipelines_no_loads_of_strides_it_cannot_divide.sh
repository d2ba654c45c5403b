#!/usr/bin/env bash
# A matrix product in Triton whose rows are 124 numbers apart is not pipelined, and reads number by number; told "31 times 4"
# it is, and reads eight bytes at once.
#
# triton 3.9.0, compiled for an H100, which needs no GPU. It is written that integer arguments are specialised for 1 and
# for multiples of 16, from which one expects narrower loads where rows are 124 bfloat16 numbers apart: of 8 bytes, for
# 124 is a multiple of 4. But nothing at all is known of such a number: each is loaded alone, and as no asynchronous copy
# takes 2 bytes, the loop over the inner axis is not pipelined, whatever `num_stages` says. No warning tells. Two numbers
# per stride change that: how many fours it is, and the constant 4. Seen, loads and asynchronous copies in the code:
#
#     triton 3.9.0
#     stride 128               loads of one number: 0, asynchronous copies: 18
#     stride 124               loads of one number: 48, asynchronous copies: 0
#     stride 31 times 4        loads of one number: 0, asynchronous copies: 36
#     as found
#
# Installs triton in a temporary folder. Exits 0 while it behaves so, 1 when it does not any more.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --disable-pip-version-check --quiet triton==3.9.0 numpy==2.3.5

cd "$folder"
cat > product.py <<'PYTHON'
import re
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def product(left, right, out, inner, apart, UNIT: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    """`[64, inner] x [inner, 128]`, the rows of both `apart * UNIT` numbers apart."""
    inner, apart = inner * UNIT, apart * UNIT
    row, column, step = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    made = tl.zeros((M, N), tl.float32)
    for k in range(0, inner, K):
        there = k + step < inner
        a = tl.load(left + row[:, None] * apart + (k + step)[None, :], mask=there[None, :], other=0.0)
        b = tl.load(right + (k + step)[:, None] * apart + column[None, :], mask=there[:, None], other=0.0)
        made = tl.dot(a, b, made)
    tl.store(out + row[:, None] * N + column[None, :], made)


def compiled(unit, known):
    """Loads of 2 bytes, and asynchronous copies; `known` is what Triton sees the numbers to be multiples of."""
    names = product.arg_names
    kinds = {"left": "*bf16", "right": "*bf16", "out": "*fp32", "inner": "i32", "apart": "i32"}
    constants = {"UNIT": unit, "M": 64, "N": 128, "K": 32}
    kinds |= dict.fromkeys(constants, "constexpr")
    aligned = ["left", "right", "out", *(["inner", "apart"] if known else [])]  # as a call of real tensors specialises
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(product, kinds, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4, "num_stages": 3})
    code = made.asm["ptx"]
    return len(re.findall(r"ld\.global\S*\.b16", code)), len(re.findall(r"cp\.async\.c[ag]", code))


print(f"triton {triton.__version__}")
cases = {"stride 128": (1, True), "stride 124": (1, False), "stride 31 times 4": (4, False)}
found = {}
for name, case in cases.items():
    loads, copies = found[name] = compiled(*case)
    print(f"{name:25s}loads of one number: {loads}, asynchronous copies: {copies}")
whole, odd, units = found.values()
as_found = whole[0] == units[0] == 0 < odd[0] and odd[1] == 0 < min(whole[1], units[1])
print("as found" if as_found else "triton behaves otherwise")
sys.exit(not as_found)
PYTHON
TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" product.py 2> /dev/null
