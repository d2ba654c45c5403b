"""A profile as a JSON file, an entry to a line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rankhoist.errors import ProfileError


def write(path: Path, profile: Any) -> None:
    """A dataclass of numbers and lists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in asdict(profile).items())
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read(path: Path) -> Any:
    """What is in the file, whatever it is.

    Raises:
        ProfileError: it cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path} is no readable profile: {error}") from error
