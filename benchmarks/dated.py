"""What benchmarks of one table share: their flags, and their dated result as JSON and as Markdown."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rankhoist.compiler.targets.machine import machine

RESULTS = Path(__file__).parent / "results"


def flags(about: str, seconds: float, per: str = "model", tiny: str = "") -> argparse.ArgumentParser:
    """Those that all have: `seconds` of timing `per` so much, a note and a folder; and `tiny`, where it says how."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--seconds", type=float, default=seconds, help=f"of timing per {per}")
    if tiny:
        parser.add_argument("--tiny", action="store_true", help=f"{tiny}: to see that it runs")
    parser.add_argument("--note", default="", help="what else is to be known of the run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser


def begun(*libraries: str) -> dict[str, Any]:
    """A record of today and of this machine, with the versions of other libraries that count."""
    versions = {name: version(name) for name in libraries}
    return {"date": datetime.now(timezone.utc).date().isoformat(), "machine": machine() | versions}


def path_of(folder: Path, name: str, record: Mapping[str, Any]) -> Path:
    """Where a record goes."""
    return folder / f"{record['date']}-{name}.json"


def write(
    folder: Path,
    name: str,
    record: Mapping[str, Any],
    title: str,
    about: str,
    table: str,
    libraries: tuple[str, ...] = (),
) -> None:
    """The record, and its table under a title and a line of where, when and `about` what."""
    path, where = path_of(folder, name, record), record["machine"]
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    versions = ", ".join(f"{library} {where[library]}" for library in ("torch", *libraries))
    said = f"{record['date']}: {where['processor']}, {where['threads']} thread, {versions}; {about}".rstrip()
    path.with_suffix(".md").write_text(f"# {title}\n\n{said}\n\n{table}\n")
