"""Fill in what `laws.md` says of the rows of `rankhoist.compiler.rules`: `python docs/laws.py`.

A section names its laws in a bullet "Law"; their levels, and where their rules are, are written from the rows. All
else is prose.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from rankhoist.compiler.algebra.call import Law
from rankhoist.compiler.rules import FAMILIES

PAGE = Path(__file__).with_name("laws.md")
WIDTH = 120
BULLET = r"^- {}:(.*(?:\n  .*)*)\n"
QUOTED = re.compile(r"`([^`\n]+)`")


def filled(page: str) -> str:
    """The page, its bullets written anew."""
    sections = re.split(r"(?m)^(?=#+ )", page)
    return "".join(_filled(section) if laws_of(section) else section for section in sections)


def laws_of(section: str) -> list[str]:
    """The names of the laws that a section is about."""
    bullet = re.search(BULLET.format("Law"), section, re.MULTILINE)
    return QUOTED.findall(bullet[1]) if bullet else []


def _filled(section: str) -> str:
    rows = [row for family in FAMILIES.values() for row in family if row.name in laws_of(section)]
    section = _written(section, "Level", _levels(rows))
    old = re.search(BULLET.format("Where"), section, re.MULTILINE)
    others = [name for name in QUOTED.findall(old[1] if old else "") if not name.startswith("rules/")]
    names = dict.fromkeys([*(_place(row) for row in rows), *others])
    return _written(section, "Where", ", ".join(f"`{name}`" for name in names))


def _levels(rows: Sequence[Law]) -> str:
    """`request`; on blocks from `linear`."""
    found = []
    for row in sorted(rows, key=lambda row: row.level):
        text = f"`{row.level.name.lower()}`"
        if row.blocks is not None and row.blocks > row.level:
            text += f"; on blocks from `{row.blocks.name.lower()}`"
        found.append(text if row.blocks is not None else f"{text}, as tensors")
    return ", or ".join(dict.fromkeys(found))


def _place(row: Law) -> str:
    rule = inspect.unwrap(row.rule)
    return f"rules/{Path(inspect.getfile(rule)).name}::{rule.__name__}"


def _written(section: str, kind: str, text: str) -> str:
    lines = _wrapped(f"- {kind}: {text}".split(" "))
    return re.sub(BULLET.format(kind), lambda _: lines, section, count=1, flags=re.MULTILINE)


def _wrapped(words: Iterable[str]) -> str:
    lines = [""]
    for word in words:
        if lines[-1] and len(f"{lines[-1]} {word}") > WIDTH:
            lines.append(" ")
        lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
