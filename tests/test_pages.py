"""README.md and the pages of docs/ are true: their blocks run and show what really comes out. See `pages.py`."""

from __future__ import annotations

import doctest
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import PAGES, REPOSITORY, Block, blocks, check_commands, commands, extras, run, targets

from rankhoist.compiler.rules import all_rules


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


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty current directory; modules saved and imported there, and changed rules, are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    rules = dict(all_rules())
    yield
    all_rules().clear()
    all_rules().update(rules)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", cases())
def test_page_runs(page: Path):
    run(page, page.read_text(encoding="utf-8"))


def test_the_example_of_hoist_runs():
    found = doctest.testmod(importlib.import_module("rankhoist.hoist"))
    assert found.attempted and not found.failed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_results_exist(page: Path):
    named = re.findall(r"benchmarks/results/[\w.-]+\w", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page: Path):
    text = re.sub(r"`[^`\n]*`", "", page.read_text(encoding="utf-8"))  # code, in which an index meets a call
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name == "docs"], ids=lambda page: page.name)
def test_page_says_who_it_is_for(page: Path):
    paragraph = page.read_text(encoding="utf-8").split("\n\n")[1]
    assert re.match(r"\*For .*\*$", paragraph, re.DOTALL), paragraph


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_readme_names_the_commands(command: str):
    assert command in (REPOSITORY / "README.md").read_text(encoding="utf-8")


# -- the mechanism itself

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
        Block(4, "python", "x = 1"),
        Block(8, "shell", "exit 1"),
        Block(14, "python", "raise SystemExit", "not run: needs two machines"),
        Block(20, "python", "if x == 1:\n    x += 1"),
    ]


def test_blocks_share_a_namespace():
    assert run(Path("sample.md"), SAMPLE).x == 2


def test_a_wrong_block_fails_at_its_line():
    with pytest.raises(AssertionError) as failure:
        run(Path("sample.md"), f"{SAMPLE}\n```python\nassert x == 1\n```\n")
    assert failure.traceback[-1].lineno + 1 == 25


@pytest.mark.parametrize("between", ["Prose.", "```sh\nexit 1\n```"])
def test_a_reason_holds_for_the_next_block_only(between: str):
    block = blocks(f"<!-- not run: because -->\n{between}\n```python\nx = 1\n```\n")[-1]
    assert block.not_run is None


def test_a_reason_must_be_given():
    (block,) = blocks("<!-- not run: -->\n```python\nx = 1\n```\n")
    assert block.runs


def test_an_open_block_is_an_error():
    with pytest.raises(ValueError, match="line 1: the block is never closed"):
        blocks("```python\nx = 1\n")


def shows(code: str, text: str) -> str:
    return f"```python\n{code}\n```\n\n```text\n{text}\n```\n"


def test_text_below_a_block_is_what_it_prints():
    run(
        Path("sample.md"), shows("print('1  2\\n3')", "1 2\n3") + shows("print('from here to there')", "from ... there")
    )
    with pytest.raises(AssertionError, match="shows\n1\n\nbut gives\n2"):
        run(Path("sample.md"), shows("print(2)", "1"))


def test_text_below_a_block_is_the_error_it_raises():
    run(Path("sample.md"), shows("int('x')", "ValueError: invalid literal for int() with base 10: 'x'"))
    with pytest.raises(AssertionError, match="but gives\nValueError: invalid"):
        run(Path("sample.md"), shows("int('x')", "ValueError: not a number"))
    with pytest.raises(AssertionError, match="but gives"):
        run(Path("sample.md"), shows("int('1')", "ValueError: ..."))


def test_text_after_words_is_text():
    run(Path("sample.md"), "```python\nx = 1\n```\n\nElsewhere:\n\n```text\n2\n```\n")


def test_a_part_of_a_file_is_found_there():
    part = "<!-- from tests/pages.py -->\n```python\nif self.not_run or self.source:\n    return {}\n```\n"
    run(Path("sample.md"), part.format("False"))
    with pytest.raises(AssertionError, match=r"not in tests/pages.py"):
        run(Path("sample.md"), part.format("True"))


def test_a_named_block_is_a_file_and_commands_run():
    command = "<!-- run -->\n```bash\nrankhoist calibrate --help\n```\n\n```text\nusage: rankhoist calibrate ...\n```\n"
    run(Path("sample.md"), f'# T\n\n```python\n# some_file.py\nname = "x"\n```\n\n{command}')
    assert Path("some_file.py").read_text() == '# some_file.py\nname = "x"\n'


def test_commands_are_taken_apart():
    code = "A=1 rankhoist hoist m.pt2 \\\n  --context 'u_*'  # why\nmake demo && curl -s x | head &\n"
    assert commands(code) == [
        ["rankhoist", "hoist", "m.pt2", "--context", "u_*"], ["make", "demo"], ["curl", "-s", "x"], ["head"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "rankhoist hoist m.pt2",
        "rankhoist hosit",
        "make dmeo",
        "pip install 'rankhoist[sevre]'",
        "python examples/no.py",
    ],
)
def test_wrong_commands_are_found(line: str):
    with pytest.raises(AssertionError):
        check_commands(Block(1, "shell", line))


def test_targets_and_extras_are_read():
    assert {"demo", "test", "docs"} <= targets()
    assert {"serve", "docs", "dev"} <= extras()
