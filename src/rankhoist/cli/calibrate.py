"""`rankhoist calibrate`: the machine profile that plans are made for."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from rankhoist.cli.arguments import DONE, command, count
from rankhoist.compiler.targets.calibrate import calibrate
from rankhoist.compiler.targets.profile import path as profile_path

EXAMPLES = """\
examples:
  rankhoist calibrate
  rankhoist calibrate --threads 4
  rankhoist calibrate --out serving-host.json && RANKHOIST_PROFILE=serving-host.json rankhoist hoist ..."""


def add(commands: Any) -> None:
    text = "measure this machine once (half a minute), so that plans are chosen by its own times"
    parser = command(commands, "calibrate", _calibrate, text, EXAMPLES)
    parser.add_argument("--threads", metavar="T", type=count, help="torch threads (default: as torch has them)")
    parser.add_argument("--out", metavar="FILE", help="where the profile goes (default: where hoist looks for it)")


def _calibrate(args: argparse.Namespace) -> int:
    if args.threads:
        torch.set_num_threads(args.threads)
    profile = calibrate(lambda points: track(points, "measuring", console=Console(stderr=True)))
    out = Path(args.out) if args.out else profile_path()
    profile.save(out)
    print(f"{out}\n{profile.summary()}")
    return DONE
