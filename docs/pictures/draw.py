"""Draw the pictures of the documents again: `make pictures`.

The cross network is the model of README.md's first block of Python. Plans follow the built-in machine profile, so that
the same versions draw the same picture on every machine.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import rankhoist
from rankhoist.compiler.targets import profile

HERE = Path(__file__).parent
README = HERE.parents[1] / "README.md"


def main() -> None:
    """Write `cross_network.svg`."""
    os.environ["RANKHOIST_PROFILE"] = str(profile.BUILT_IN)
    names: dict[str, Any] = {"__name__": "readme"}
    first = re.search(r"```python\n(.*?)\nuser, page, item =", README.read_text(encoding="utf-8"), re.DOTALL)
    assert first is not None, "README.md shows a cross network"
    exec(first[1], names)
    hoisted: rankhoist.HoistedModel = names["hoisted"]
    hoisted.report().save_svg(HERE / "cross_network.svg")


if __name__ == "__main__":
    main()
