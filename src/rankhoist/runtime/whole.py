"""Files that are whole: a kill at any moment leaves the old file or the new one under its name, never a part."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

UNFINISHED = ".unfinished-"  # before the name of a file that is being written, or whose writer was killed


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which comes to its name when it is whole and on disk. Several may write one at once."""
    unfinished = path.with_name(f"{UNFINISHED}{path.name}.{secrets.token_hex(4)}")
    try:
        with open(unfinished, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
