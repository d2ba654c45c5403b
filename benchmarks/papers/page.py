"""Writes the tables of `docs/papers.md` from the newest results, so that no figure there is typed by hand.

    python -m benchmarks.papers.page            # rewrite the page
    python -m benchmarks.papers.page --check    # exit code 1 if it would change

Between `<!-- NAME: PART -->` and `<!-- end -->` stands what the newest full-size result of NAME has for PART: one of
its tables, `origin` (date, machine, command), `plot`, or `page`, all of its own page.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from pathlib import Path

from benchmarks.papers.common import RESULTS, ROOT, Reproduction, origin

PAGE = ROOT / "docs" / "papers.md"
BLOCK = re.compile(r"<!-- (\w+): ([^>]+?) -->\n(?:(?!<!--).)*<!-- end -->", re.DOTALL)
ENDINGS = {"page": ".md", "plot": ".svg"}  # of the file that a part is made of; else the record
LINKS = "../benchmarks/results/"


def filled(text: str, results: Path = RESULTS) -> str:
    """The page with every block as the results have it."""
    return BLOCK.sub(lambda m: f"<!-- {m[1]}: {m[2]} -->\n{block(m[1], m[2], results)}\n<!-- end -->", text)


def block(name: str, part: str, results: Path) -> str:
    """What stands between two marks."""
    found = newest(name, results, ENDINGS.get(part, ".json"))
    if found is None:
        return f"*Not measured yet: `python -m benchmarks.papers.{name}`.*"
    if part == "page":
        body = found.read_text().partition("\n")[2].strip()
        return re.sub(r"\]\((?=[^)/]+\.svg\))", f"]({LINKS}", body)
    if part == "plot":
        return f"![{name}]({LINKS}{found.name})"
    record = json.loads(found.read_text())
    return origin(record) if part == "origin" else reproduction(name).tables(record)[part]


def newest(name: str, results: Path, ending: str) -> Path | None:
    """The result of the latest date, of the full size."""
    return max(results.glob(f"????-??-??-papers-{name}{ending}"), default=None)


def reproduction(name: str) -> Reproduction:
    """By the name of its module."""
    found: Reproduction = importlib.import_module(f"benchmarks.papers.{name}").REPRODUCTION
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if the page is stale")
    check = parser.parse_args().check
    old = PAGE.read_text()
    new = filled(old)
    if not check:
        PAGE.write_text(new)
    print(f"{PAGE.relative_to(ROOT)}: {'as its results' if new == old else 'stale' if check else 'rewritten'}")
    return int(check and new != old)


if __name__ == "__main__":
    raise SystemExit(main())
