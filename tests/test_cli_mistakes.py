"""What people type by mistake: each ends in one line that says what to type, before any work, and in no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rankhoist
from rankhoist import cli
from rankhoist.cli import show

SOURCE = """
import sys
import torch
from torch import nn


def packed():
    return nn.Linear(6, 1).eval(), (torch.randn(5, 6),)


def leaves():
    sys.exit(3)


def interrupted():
    raise KeyboardInterrupt
"""

MISTAKES = {
    "hoist mistaken.py:packed --context input=0": "named as Python imports it, mistaken:packed",
    "hoist mistaken:leaves --context input=0": "mistaken:leaves cannot be called: SystemExit: 3",
    "hoist a.rankhoist --context input=0": "It is hoisted already: report, show, tune",
    "hoist weights.pt --context input=0": "It has weights, and no graph",
    "hoist mistaken:packed --context user,item": "--context user,item: one name each, --context user --context item",
    "hoist mistaken:packed --context input=3-1": "--context input=3-1: '3-1' runs backwards",
    "hoist mistaken:packed --context input=0-99999999999": "is more than any input has",
    "hoist mistaken:packed --context input=0-99": "columns [6, 7, 8] and 91 more of input 'input' are outside 0..5",
    "hoist mistaken:packed --context input=0 --candidates 99999999999999999999": "is more than 2147483647",
    "hoist mistaken:packed --context input=0 --seed -1": "-1 is not one of 0 to",
    "report .": "no such file: . (it is a folder)",
}


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mistaken.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "mistaken", raising=False)


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_told_in_one_line(typed: str, capsys: pytest.CaptureFixture) -> None:
    try:
        code = cli.main(typed.split())
    except SystemExit as stopped:  # of argparse
        code = stopped.code
    told = capsys.readouterr()
    assert code == 2 and not told.out
    assert MISTAKES[typed] in told.err.splitlines()[-1]


def test_what_the_system_refuses_is_told_in_one_line(capsys: pytest.CaptureFixture) -> None:
    assert cli.main("train --rows 4000 --out mistaken.py/run".split()) == 2
    assert capsys.readouterr().err == "rankhoist: mistaken.py/run: Not a directory\n"


def test_a_command_that_is_interrupted_says_so(capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["hoist", "mistaken:interrupted", "--context", "input"]) == 130
    assert capsys.readouterr().err == "rankhoist: stopped\n"


def test_a_lack_of_memory_is_told(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show, "contents", lambda path: torch.empty(2**56))
    assert cli.main(["show", "x.rankhoist"]) == 2
    assert capsys.readouterr().err.startswith("rankhoist: there is not enough memory")
    monkeypatch.setattr(show, "contents", lambda path: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):  # of another kind, it is not hidden
        cli.main(["show", "x.rankhoist"])


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    """As `rankhoist show ... | head -1`."""
    rankhoist.hoist(torch.nn.Linear(6, 1).eval(), (torch.randn(5, 6),), context={"input": [0]}).save("x.rankhoist")
    reader, writer = os.pipe()
    os.close(reader)
    given = [sys.executable, "-m", "rankhoist", "show", "x.rankhoist"]
    made = subprocess.run(given, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (made.returncode, made.stderr) == (130, "")
