"""`rankhoist calibrate`: the profile of a machine's target, which plans are made by."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from rankhoist.cli.arguments import DONE, command, count
from rankhoist.compiler.targets.accelerator import Accelerator
from rankhoist.compiler.targets.calibrate import calibrate
from rankhoist.compiler.targets.calibrate_accelerator import calibrate_accelerator
from rankhoist.compiler.targets.known import DTYPES
from rankhoist.compiler.targets.profile import Profile
from rankhoist.compiler.targets.profile import path as profile_path
from rankhoist.errors import CommandError

EXAMPLES = """\
examples:
  rankhoist calibrate
  rankhoist calibrate --threads 4
  rankhoist calibrate --dtype bfloat16
  rankhoist calibrate --device cuda --dtype bfloat16
  rankhoist calibrate --out serving-host.json && RANKHOIST_PROFILE=serving-host.json rankhoist hoist ..."""


def add(commands: Any) -> None:
    text = "measure this machine once (half a minute), so that plans are chosen by its own times"
    parser = command(commands, "calibrate", _calibrate, text, EXAMPLES)
    parser.add_argument("--threads", metavar="T", type=count, help="torch threads (default: as torch has them)")
    parser.add_argument("--device", default="cpu", help="cpu, or a CUDA device (default: %(default)s)")
    dtypes = list(DTYPES.values())
    parser.add_argument("--dtype", choices=dtypes, default=dtypes[0], help="of the models (default: %(default)s)")
    parser.add_argument("--out", metavar="FILE", help="where the profile goes (default: where hoist looks for it)")


def _calibrate(args: argparse.Namespace) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    profile = _measured(args)
    out = Path(args.out) if args.out else profile_path(f"{args.device.partition(':')[0]}-{args.dtype}")
    profile.save(out)
    print(f"{out}\n{profile.summary()}")
    return DONE


def _measured(args: argparse.Namespace) -> Profile | Accelerator:
    dtype = next(d for d, name in DTYPES.items() if name == args.dtype)

    def bar(points: list[Any]) -> Any:
        return track(points, "measuring", console=Console(stderr=True))

    if args.device == "cpu":
        return calibrate(bar, dtype)
    if not args.device.startswith("cuda") or not torch.cuda.is_available():
        raise CommandError(f"--device {args.device}: there is none here; plans for it are made by a built-in profile")
    return calibrate_accelerator(torch.device(args.device), dtype, bar)
