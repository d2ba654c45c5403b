"""The Python blocks of README.md and docs/ run: a page's in order, in one namespace, in an empty directory.

A block that cannot run here says so just above it: <!-- not run: needs two machines -->
"""

import re
import sys
import textwrap
import types
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]

FENCE = re.compile(r"^\s*(?P<fence>`{3,}|~{3,})\s*(?P<language>\w*)")
NOT_RUN = re.compile(r"^\s*<!--\s*not run:\s*(?P<reason>\S.*?)\s*-->\s*$")


@dataclass(frozen=True)
class Block:
    line: int  # the page's line of the first line of code, from 1
    code: str
    not_run: str | None  # why, or None


def blocks(text: str) -> list[Block]:
    """The fenced Python blocks of a page."""
    found: list[Block] = []
    fence, language, start, reason = "", "", 0, None
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        match = FENCE.match(line)
        if fence:
            if match and match["fence"].startswith(fence) and not line.strip().strip(fence[0]):
                if language == "python":
                    found.append(Block(start, textwrap.dedent("\n".join(lines[start - 1 : number - 1])), reason))
                fence, reason = "", None
        elif match:
            fence, language, start = match["fence"], match["language"], number + 1
        elif line.strip():
            comment = NOT_RUN.match(line)
            reason = comment["reason"] if comment else None
    if fence:
        raise ValueError(f"line {start - 1}: the block is never closed")
    return found


def run(page: Path, text: str) -> types.ModuleType:
    """Execute a page's blocks as one module; a traceback shows the page's own lines."""
    module = types.ModuleType(f"page_{page.stem}")
    sys.modules[module.__name__] = module  # dataclasses and pickle look their module up
    try:
        for block in blocks(text):
            if not block.not_run:
                code = "\n" * (block.line - 1) + block.code
                exec(compile(code, str(page), "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    return module


def cases() -> list:
    """One case for each page, and one skipped case, with its reason, for each block that is not run."""
    found = []
    for page in PAGES:
        name = str(page.relative_to(REPOSITORY))
        found.append(pytest.param(page, id=name))
        for block in blocks(page.read_text(encoding="utf-8")):
            if block.not_run:
                skip = pytest.mark.skip(reason=f"{name}:{block.line} is not run: {block.not_run}")
                found.append(pytest.param(page, id=f"{name}:{block.line}", marks=skip))
    return found


@pytest.mark.parametrize("page", cases())
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run(page, page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_readme_names_the_commands(command: str):
    assert command in (REPOSITORY / "README.md").read_text(encoding="utf-8")


SAMPLE = """\
# Title

```python
x = 1
```

```sh
exit 1
```

<!-- not run: needs two machines -->

```python
raise SystemExit
```

1. In a list:

   ```python
   if x == 1:
       x += 1
   ```
"""


def test_blocks_are_found():
    assert blocks(SAMPLE) == [
        Block(4, "x = 1", None),
        Block(14, "raise SystemExit", "needs two machines"),
        Block(20, "if x == 1:\n    x += 1", None),
    ]


def test_blocks_share_a_namespace():
    assert run(Path("sample.md"), SAMPLE).x == 2


def test_a_wrong_block_fails_at_its_line():
    with pytest.raises(AssertionError) as failure:
        run(Path("sample.md"), f"{SAMPLE}\n```python\nassert x == 1\n```\n")
    assert failure.traceback[-1].lineno + 1 == 25


@pytest.mark.parametrize("between", ["Prose.", "```sh\nexit 1\n```"])
def test_a_reason_holds_for_the_next_block_only(between: str):
    (block,) = blocks(f"<!-- not run: because -->\n{between}\n```python\nx = 1\n```\n")
    assert block.not_run is None


def test_a_reason_must_be_given():
    (block,) = blocks("<!-- not run: -->\n```python\nx = 1\n```\n")
    assert block.not_run is None


def test_an_open_block_is_an_error():
    with pytest.raises(ValueError, match="line 1: the block is never closed"):
        blocks("```python\nx = 1\n")
