"""All reproductions, one after the other, each in a process of its own.

In reduced size, tables and plots in runs/papers; `--full` runs the sizes of `docs/papers.md` into benchmarks/results.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.papers.common import REDUCED, RESULTS, ROOT

# In the order of `docs/papers.md`.
NAMES = ["flops", "accuracy", "throughput", "equations", "serving_table", "mari", "depth"]
EXAMPLES = """\
examples:
  python -m benchmarks.papers
  python -m benchmarks.papers --only mari depth
  python -m benchmarks.papers --full --only throughput"""


def present() -> list[str]:
    """Those that this checkout has."""
    return [name for name in NAMES if (Path(__file__).parent / f"{name}.py").exists()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.papers", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--full", action="store_true", help="full sizes, about half an hour")
    parser.add_argument("--only", nargs="+", choices=present(), default=present(), metavar="NAME", help="some of them")
    parser.add_argument("--out", type=Path, help=f"default: {REDUCED}, with --full {RESULTS.relative_to(ROOT)}")
    given = parser.parse_args(arguments)
    options = ["--out", str((given.out or (RESULTS if given.full else REDUCED)).resolve())]
    options += [] if given.full else ["--reduced"]
    start, failed = time.monotonic(), []
    for i, name in enumerate(given.only, 1):
        minutes = (time.monotonic() - start) / 60
        print(f"\n== {name}, {i} of {len(given.only)}, after {minutes:.1f} minutes", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.papers.{name}", *options], cwd=ROOT)
        failed += [name] if done.returncode else []
    minutes = (time.monotonic() - start) / 60
    print(f"\n{minutes:.1f} minutes; tables and plots in {options[1]}" + (f"; failed: {failed}" if failed else ""))
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
