"""`rankhoist bench`: levels and baselines timed on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rankhoist.cli.arguments import command, count

EXAMPLES = """\
examples:
  rankhoist bench
  rankhoist bench --only 'cross_*' industrial --candidates 10 1000 --seconds 5
  rankhoist bench --all --threads 4 --out runs/bench"""


def add(commands: Any) -> None:
    text = "time every level of small ranking models, with baselines"
    parser = command(commands, "bench", _bench, text, EXAMPLES)
    parser.add_argument("--all", action="store_true", help="every scenario, size and share of context (hours)")
    parser.add_argument("--only", metavar="GLOB", nargs="+", default=[], help="scenarios by name or glob")
    parser.add_argument("--candidates", metavar="N", type=count, nargs="+", default=[], help="candidates per call")
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=3.0, help="timing per cell (default: %(default)s)"
    )
    parser.add_argument("--threads", metavar="T", type=count, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument(
        "--backend", choices=["eager", "inductor", "onnx", "openvino"], default="eager", help="what runs the levels"
    )
    parser.add_argument("--ragged", action="store_true", help="several requests per call, too (as in --all)")
    parser.add_argument("--compile", action="store_true", help="time torch.compile and ONNX Runtime, too (as in --all)")
    parser.add_argument(
        "--dtype", choices=["float32", "tf32", "bfloat16"], default="float32", help="default: %(default)s"
    )
    parser.add_argument("--device", default="cpu", help="cpu, or a CUDA device (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", default="benchmarks/results", help="default: %(default)s")
    parser.add_argument("--no-plots", action="store_true", help="tables only: needs no matplotlib")


def _bench(args: argparse.Namespace) -> int:
    from rankhoist.bench.run import Options
    from rankhoist.bench.run import main as run  # only this command needs the scenarios

    return run(
        Options(
            args.all, args.only, args.candidates, args.seconds, args.threads, args.backend, args.compile, args.ragged,
            args.dtype, args.device, Path(args.out), not args.no_plots,
        )
    )  # fmt: skip
