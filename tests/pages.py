"""Pages of Markdown as programs: what their fenced blocks mean, and how they run.

* A `python` block runs; the blocks of a page share one namespace and one folder. One whose first line is `# NAME.py` is
  also saved there.
* A `bash` block is checked: its commands exist and take these arguments. With `<!-- run -->` above it, it also runs.
* A `text` block right below one that runs is what that prints, or the error that it raises; `...` stands for anything.
* A block that cannot run here says so just above it: `<!-- not run: needs two machines -->`
* `<!-- from PATH -->` above a block: it is a part of that file, line for line.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import sys
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rankhoist import cli

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
LANGUAGES = {"python": "python", "bash": "shell", "sh": "shell", "text": "text"}

FENCE = re.compile(r"^\s*(?P<fence>`{3,}|~{3,})\s*(?P<language>\w*)")
COMMENT = re.compile(r"^\s*<!--\s*(?P<text>\S.*?)\s*-->\s*$")
SAVED = re.compile(r"# (?P<name>\w+\.py)\n")
ASSIGNMENT = re.compile(r"\w+=")
COMPARED = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """A fenced block: the page's line of its first line of code (from 1), and the comment and block just above it."""

    line: int
    language: str
    code: str
    comment: str = ""
    shown: str | None = None  # the text block right below

    @property
    def not_run(self) -> str | None:
        """Why it is not run, or None."""
        return self.comment.partition("not run: ")[2] or None

    @property
    def source(self) -> str | None:
        """The file of the repository that it is a part of, or None."""
        return self.comment.partition("from ")[2] or None

    @property
    def runs(self) -> bool:
        if self.not_run or self.source:
            return False
        return self.language == "python" or self.comment == "run"


def fences(text: str) -> Iterator[tuple[int, int, str, str]]:
    """First line of code (from 1), line of the closing fence, language and comment above of every fenced block."""
    fence, language, start, comment = "", "", 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        match = FENCE.match(line)
        if fence:
            if match and match["fence"].startswith(fence) and not line.strip().strip(fence[0]):
                yield start, number, language, comment
                fence, comment = "", ""
        elif match:
            fence, language, start = match["fence"], match["language"], number + 1
        elif line.strip():
            above = COMMENT.match(line)
            comment = above["text"] if above else ""
    if fence:
        raise ValueError(f"line {start - 1}: the block is never closed")


def blocks(text: str) -> list[Block]:
    """The Python and shell blocks of a page, each with what it shows."""
    found: list[Block] = []
    lines = text.splitlines()
    last = -1  # where the block before ends, from 1
    for start, end, name, comment in fences(text):
        language = LANGUAGES.get(name, "")
        code = textwrap.dedent("\n".join(lines[start - 1 : end - 1]))
        between = "".join(lines[last : start - 2]).strip()
        if language == "text" and found and last > 0 and not between and found[-1].runs:
            found[-1] = Block(**{**vars(found[-1]), "shown": code})
        last = -1
        if language in ("python", "shell"):
            found.append(Block(start, language, code, comment))
            last = end
    return found


def run(page: Path, text: str) -> types.ModuleType:
    """Carry out a page's blocks as one module; a traceback shows the page's own lines."""
    module = types.ModuleType(f"page_{page.stem}")
    sys.modules[module.__name__] = module  # dataclasses and pickle look their module up
    try:
        for block in blocks(text):
            if block.source:
                check_source(block, block.source)
            elif block.language == "shell" and not block.not_run:
                check_commands(block)
            if block.runs:
                carry_out(block, page, module)
    finally:
        del sys.modules[module.__name__]
    return module


def carry_out(block: Block, page: Path, module: types.ModuleType) -> None:
    """Run a block, and compare what it prints or raises with what the page shows."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if block.language == "shell":
            run_commands(block)
        elif block.shown is None:
            run_python(block, page, module)
        else:
            try:
                run_python(block, page, module)
            except Exception as error:
                print(f"{type(error).__name__}: {error}")
    if block.shown is not None:
        same = doctest.OutputChecker().check_output(f"{block.shown}\n", printed.getvalue(), COMPARED)
        assert same, f"{page.name}:{block.line} shows\n{block.shown}\n\nbut gives\n{printed.getvalue()}"


def run_python(block: Block, page: Path, module: types.ModuleType) -> None:
    saved = SAVED.match(block.code)
    if saved:
        Path(saved["name"]).write_text(block.code + "\n", encoding="utf-8")
    exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), module.__dict__)


def check_source(block: Block, path: str) -> None:
    """Its lines follow one another in the file, whatever their indentation there, and the commas at their ends."""
    own, text = (
        [line.strip().rstrip(",") for line in code.strip().splitlines()]
        for code in (block.code, (REPOSITORY / path).read_text(encoding="utf-8"))
    )
    found = any(text[i : i + len(own)] == own for i in range(len(text)))
    assert found, f"line {block.line}: these lines are not in {path}"


# -- shell


def commands(code: str) -> list[list[str]]:
    """The words of every command, without comments, assignments in front, and what is behind a pipe."""
    found = []
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for part in _parts(words):
            while part and ASSIGNMENT.match(part[0]):
                part = part[1:]
            if part:
                found.append(part)
    return found


def _parts(words: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "&", ";", "|"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def check_commands(block: Block) -> None:
    """Commands of the project exist and take these arguments; so do the extras and scripts that others name."""
    for words in commands(block.code):
        shown = f"line {block.line}: {shlex.join(words)}"
        words = [words[0].removeprefix(".venv/bin/"), *words[1:]]
        if words[0] == "rankhoist":
            assert _parses(words[1:]), f"{shown}: rankhoist does not take these arguments"
        elif words[0] == "make":
            wanted = [w for w in words[1:] if not ASSIGNMENT.match(w)]
            assert set(wanted) <= targets(), f"{shown}: no such target"
        elif words[:2] == ["pip", "install"]:
            wanted = [x for w in words for x in re.findall(r"rankhoist\[(.*)\]", w)]
            assert set(",".join(wanted).split(",")) - {""} <= extras(), f"{shown}: no such extra"
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (REPOSITORY / words[1]).is_file(), f"{shown}: no such file"


def _parses(arguments: list[str]) -> bool:
    try:
        cli.parser().parse_args(arguments)
    except SystemExit as left:
        return left.code == 0  # --help
    return True


def targets() -> set[str]:
    """What `make` knows."""
    return set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))


def extras() -> set[str]:
    """Optional dependencies by name."""
    section = (REPOSITORY / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2]
    return set(re.findall(r"^(\w+) = \[", section.partition("\n[")[0], re.MULTILINE))


def run_commands(block: Block) -> None:
    """In this process, which has imported everything already."""
    for words in commands(block.code):
        assert words[0] == "rankhoist", f"line {block.line}: only rankhoist itself is run here, not {words[0]}"
        try:
            code: object = cli.main(words[1:])
        except SystemExit as left:  # --help
            code = left.code
        assert code == 0, f"line {block.line}: {shlex.join(words)}: exit code {code}"
