"""`rankhoist export`: a saved model for other servers."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from rankhoist.cli.arguments import DONE, command, count
from rankhoist.runtime import load
from rankhoist.runtime.triton import to_triton

EXAMPLES = """\
examples:
  rankhoist export triton ranker.rankhoist repository/               # tritonserver --model-repository repository/
  rankhoist export triton ranker.rankhoist repository/ --version 2   # beside version 1
  rankhoist export onnx ranker.rankhoist stages/                     # both stages and a manifest, for load_onnx

Both need the extra `onnx`: pip install 'rankhoist[onnx]'"""


def add(commands: Any) -> None:
    text = "write a saved model as ONNX stages, or as a model repository of Triton Inference Server"
    parser = command(commands, "export", _export, text, EXAMPLES)
    parser.add_argument("kind", choices=("triton", "onnx"), help="of what is written")
    parser.add_argument("model", metavar="MODEL", help="a file that hoist --out or HoistedModel.save wrote")
    parser.add_argument("folder", metavar="FOLDER", help="where to")
    parser.add_argument("--name", metavar="NAME", help="of the model in Triton (default: its file name)")
    parser.add_argument("--version", metavar="N", type=count, default=1, help="of the model in Triton (default: 1)")


def _export(args: argparse.Namespace) -> int:
    hoisted = load(args.model)
    if args.kind == "onnx":
        hoisted.export_onnx(args.folder)
        print(f"{args.folder}: request.onnx, candidate.onnx, manifest.json")
        return DONE
    name = args.name or Path(args.model).name.removesuffix(".rankhoist")
    to_triton(hoisted, args.folder, name, args.version)
    print(f"{args.folder}: {name} (version {args.version}), of {name}_request and {name}_candidate")
    print(f"tritonserver --model-repository {os.path.abspath(args.folder)}")
    return DONE
