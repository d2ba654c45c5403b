"""The command line, run in this process: what is printed, what is written, and the exit codes."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import rankhoist
from rankhoist import cli
from rankhoist.compiler.algebra.call import Call, Law
from rankhoist.compiler.rules import all_rules
from rankhoist.report.text import short
from rankhoist.verify import Certificate

SOURCE = """
import torch
from torch import nn


class Ranker(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.top = nn.Linear(7, 8), nn.Linear(8, 1)

    def forward(self, user_age, user_taste, item):
        x = torch.relu(self.hidden(torch.cat([user_age, user_taste, item], 1)))
        return {"click": self.top(x)}


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.top = nn.Linear(6, 1)

    def forward(self, x):
        return self.top(x)


def ranker():
    torch.manual_seed(0)
    return Ranker().eval(), (torch.randn(5, 1), torch.randn(5, 2), torch.randn(5, 4))


def packed():
    torch.manual_seed(0)
    return Packed().eval(), (torch.randn(5, 6),)


def training():
    model, example = ranker()
    return model.train(), example


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.item = nn.EmbeddingBag(20, 4), nn.EmbeddingBag(20, 4)

    def forward(self, clicks, starts, tags, counts):
        return (self.user(clicks, starts) * self.item(tags, counts.cumsum(0) - counts)).sum(1)


def bags():
    torch.manual_seed(0)
    return Bags().eval(), (torch.arange(6), torch.tensor([0, 1, 4]), torch.arange(4), torch.tensor([2, 1, 1]))


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.ids = nn.Embedding(20, 4)

    def forward(self, history, times, item):
        return ((self.ids(history) * times[..., None]).sum(1) * self.ids(item)).sum(1)


def reads():
    torch.manual_seed(0)
    return Reads().eval(), (torch.arange(12).reshape(3, 4), torch.rand(3, 4), torch.arange(3))


def alone():
    return Ranker()


def failing():
    raise RuntimeError("no weights here")
"""
LINEAR = torch.ops.aten.linear.default
CONTEXT = ["--context", "user_*"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a module of models; the import path and the modules are as before afterwards."""
    (tmp_path / "some_models.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "some_models", raising=False)
    return tmp_path


def without_bias(law: Law) -> Law:
    return replace(law, rule=lambda call: law.rule(Call(call._originals, call._node, call._args[:2], {})))


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hoisting forgets the bias of linear layers."""
    rows = all_rules()[LINEAR]
    monkeypatch.setitem(all_rules(), LINEAR, tuple(map(without_bias, rows)))


# -- hoist


def test_what_hoist_says_fits_a_terminal(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    given = ["some_models:ranker", *CONTEXT, "--time", "--out", "ranker.rankhoist"]
    assert cli.main(["hoist", *given]) == 0
    said = capsys.readouterr().out
    assert "\N{HORIZONTAL ELLIPSIS}" not in said, "a column is cut"
    assert re.search(
        "^Predicted to be faster than the original from .* on. Plans by candidates: from 1 level ", said, re.M
    )
    assert said.endswith(
        "saved ranker.rankhoist; next: rankhoist report ranker.rankhoist, rankhoist serve ranker.rankhoist\n"
    )


def test_serve_without_its_extra_says_what_to_install(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "rankhoist.serve.config", None)
    assert cli.main(["serve", "ranker.rankhoist", "--workers", "4"]) == 2
    assert "pip install 'rankhoist[serve]'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help"])
    assert "Its options are shown where the extra is installed" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["show", "ranker.rankhoist", "--workers", "4"])
    assert "unrecognized arguments: --workers 4" in capsys.readouterr().err


def test_a_jagged_model_from_hoist_to_its_file(capsys: pytest.CaptureFixture):
    named = ["--jagged", "clicks=offsets:starts", "--jagged", "tags=lengths:counts"]
    given = ["some_models:bags", "--context", "clicks", *named]
    assert cli.main(["hoist", *given, "--candidates", "50", "--time", "--out", "bags.rankhoist"]) == 0
    assert "PASSED" in capsys.readouterr().out
    assert cli.main(["show", "bags.rankhoist"]) == 0
    assert re.search(r"clicks +context +\[rows, bag\] +int64", capsys.readouterr().out)
    assert cli.main(["verify", *given[:-1], "tags=counts"]) == 2
    assert "--jagged tags=counts: write VALUES=lengths:NAME or VALUES=offsets:NAME" in capsys.readouterr().err


def test_histories_of_any_length_from_hoist_to_their_file(capsys: pytest.CaptureFixture):
    given = ["some_models:reads", "--context", "history", "--context", "times"]
    bounds = ["--dynamic", "history=1:0:50", "--dynamic", "times=1:0:50"]
    assert cli.main(["hoist", *given, *bounds, "--candidates", "50", "--time", "--out", "reads.rankhoist"]) == 0
    assert "PASSED" in capsys.readouterr().out
    assert cli.main(["show", "reads.rankhoist"]) == 0
    assert re.search(r"history +context +\[rows, 0\.\.50\] +int64", capsys.readouterr().out)
    assert cli.main(["verify", *given, "--dynamic", "history=1:T", "--dynamic", "times=1:T"]) == 0
    capsys.readouterr()
    for wrong in ("history", "history=one", "history=1:2", "history=1:2:3:4", "history=1:low:high"):
        assert cli.main(["verify", *given, "--dynamic", wrong]) == 2
        said = capsys.readouterr().err
        assert f"--dynamic {wrong}: write NAME=AXIS, NAME=AXIS:LOW:HIGH or NAME=AXIS:LENGTH" in " ".join(said.split())


def test_hoist_shows_every_level_and_verifies(capsys, folder: Path):
    assert cli.main(["hoist", "some_models:ranker", *CONTEXT, "--candidates", "500", "--json", "levels.json"]) == 0
    out = capsys.readouterr().out
    data = json.loads((folder / "levels.json").read_text())
    names = [level["level"] for level in data["levels"]]
    assert names == ["expand", "lookup", "request", "linear", "first", "full"]
    costs = {level["level"]: level["multiply_adds"] for level in data["levels"]}
    assert costs["expand"] == 500 * (7 * 8 + 8)
    assert costs["linear"] == 500 * (4 * 8 + 8) + 3 * 8
    for name in names:
        (line,) = (line for line in out.splitlines() if re.match(rf"│ {name}\b", line))
        assert f" {short(costs[name])} " in line and f"{costs['expand'] / costs[name]:.2f}x" in line
    assert "PASSED" in out
    assert data["certificate"]["passed"] is True and 500 in data["certificate"]["candidates"]


def test_hoist_without_verification(capsys, broken):
    arguments = ["hoist", "some_models:ranker", *CONTEXT, "--level", "linear", "--no-verify", "--json", "x.json"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "│ linear" in out and "│ first" not in out and "PASSED" not in out
    assert json.loads(Path("x.json").read_text())["certificate"] is None


def test_hoist_fails_with_its_certificate(broken):
    assert cli.main(["hoist", "some_models:ranker", *CONTEXT]) == 1


# -- verify


def test_verify_passes(capsys, folder: Path):
    assert (
        cli.main(["verify", "some_models:ranker", *CONTEXT, "--requests", "5", "--seed", "9", "--json", "c.json"]) == 0
    )
    certificate = Certificate.from_json((folder / "c.json").read_text())
    assert certificate.passed and certificate.seed == 9 and certificate.requests == (1, 3, 5)
    assert capsys.readouterr().out == f"{certificate}\n"


def test_verify_fails_with_exit_code_1_and_names_the_output(capsys, broken):
    assert cli.main(["verify", "some_models:ranker", *CONTEXT]) == 1
    out = capsys.readouterr().out
    assert out.startswith("FAILED") and "output['click'] row" in out


def test_packed_columns(capsys):
    assert cli.main(["verify", "some_models:packed", "--context", "x=0,2-4"]) == 0
    assert cli.main(["verify", "some_models:packed", "--context", "x=0,6"]) == 2
    assert "columns [6] of input 'x' are outside 0..5" in capsys.readouterr().err


def test_an_archive(folder: Path, capsys):
    sys.path.insert(0, str(folder))
    import some_models

    model, example = some_models.ranker()
    rows = torch.export.Dim("rows", min=2)
    torch.export.save(torch.export.export(model, example, dynamic_shapes=[{0: rows}] * 3), folder / "ranker.pt2")
    assert cli.main(["verify", "ranker.pt2", *CONTEXT]) == 0


# -- report


def test_report(capsys, folder: Path):
    assert cli.main(["report", "some_models:ranker", *CONTEXT, "--level", "linear", "--json", "r.json"]) == 0
    out = capsys.readouterr().out
    data = json.loads((folder / "r.json").read_text())
    assert out.startswith("level linear, planned for 1000 candidates of 1 request ")
    layer = next(o for o in data["operators"] if o["module"] == "hidden" and "linear" in o["operator"])
    assert layer["request"]["multiply_adds"] == 3 * 8 and layer["candidate"]["multiply_adds"] == 4 * 8


# -- what cannot be carried out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["some_models", *CONTEXT], "'some_models' is neither package.module:function nor the path of a .pt2"),
        (["some_models:nobody", *CONTEXT], "AttributeError: module 'some_models' has no attribute 'nobody'"),
        (["no_such_module:f", *CONTEXT], "ModuleNotFoundError: No module named 'no_such_module'"),
        (["some_models:failing", *CONTEXT], "some_models:failing cannot be called: RuntimeError: no weights here"),
        (["some_models:alone", *CONTEXT], "returned Ranker, expected the tuple (model, example inputs)"),
        (["some_models:training", *CONTEXT], "call model.eval() first"),
        (["some_models:ranker", "--context", "usr"], "context name 'usr' matches no input"),
        (["some_models:packed", "--context", "x=1-z"], "--context x=1-z: '1-z' is no column"),
        (["none.pt2", *CONTEXT], "no such file: none.pt2"),
        (
            ["some_models:ranker", *CONTEXT, "--json", "none/x.json"],
            "none/x.json cannot be written: there is no fold",
        ),
    ],
)
def test_errors_are_one_message_and_exit_code_2(capsys, arguments: list[str], message: str):
    assert cli.main(["report", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rankhoist: ") and message in err and "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["verify", "some_models:ranker"],
        ["verify", "some_models:ranker", *CONTEXT, "--level", "highest"],
        ["verify", "some_models:ranker", *CONTEXT, "--candidates", "0"],
        ["verify", "some_models:ranker", *CONTEXT, "--no-verify"],
    ],
)
def test_wrong_usage_is_exit_code_2(capsys, arguments: list[str]):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage: rankhoist" in capsys.readouterr().err


def test_context_arguments():
    assert cli.context_of(["user_*", "x=0,2,5-9"]) == {"user_*": True, "x": [0, 2, 5, 6, 7, 8, 9]}
    assert cli.context_of(["x=3", "hour", "y= 1 , 2"]) == {"x": [3], "hour": True, "y": [1, 2]}


# -- files


def test_a_hoisted_model_is_saved_and_shown(capsys):
    assert cli.main(["hoist", "some_models:ranker", *CONTEXT, "--out", "ranker.rankhoist"]) == 0
    certificate = capsys.readouterr().out.partition("PASSED")[2].partition("saved ranker")[0]
    assert cli.main(["show", "ranker.rankhoist", "--json", "x.json"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^user_taste +context +\[rows, 2\] +float32$", out, re.M) and "plan 0" in out
    assert out.endswith(f"PASSED{certificate}") and f"torch {torch.__version__}" in out
    data = json.loads(Path("x.json").read_text())
    assert data["certificate"]["passed"] is True and data["format"] == 1
    model, (age, taste, item) = sys.modules["some_models"].ranker()
    scores = rankhoist.load("ranker.rankhoist")(age[:1], taste[:1], item)
    torch.testing.assert_close(scores["click"], model(age[:1].expand(5, 1), taste[:1].expand(5, 2), item)["click"])


def test_without_verification_there_is_no_certificate_to_show(capsys):
    assert cli.main(["hoist", "some_models:ranker", *CONTEXT, "--no-verify", "--out", "x"]) == 0
    assert cli.main(["show", "x"]) == 0
    assert "PASSED" not in capsys.readouterr().out


def test_a_model_that_differs_is_not_saved(broken):
    assert cli.main(["hoist", "some_models:ranker", *CONTEXT, "--out", "x"]) == 1
    assert not Path("x").exists()


def test_what_a_file_says_does_not_reach_the_terminal(capsys):
    model, example = torch.nn.Module(), (torch.randn(3, 2), torch.randn(3, 2))
    model.forward = lambda user, item: user + item
    hoisted = rankhoist.hoist(model.eval(), example, context=["user"])
    certificate = rankhoist.verify(hoisted, model)
    hoisted.save("x", dataclasses.replace(certificate, note="\x1b[2J gone"))
    assert cli.main(["show", "x"]) == 0
    assert "?[2J gone" in capsys.readouterr().out
    hoisted.certificate = {"passed": True}  # as read from a file
    hoisted.save("x")
    assert cli.main(["show", "x"]) == 2
    assert "the certificate in the file is none" in capsys.readouterr().err


def test_show_what_is_no_artifact(capsys):
    Path("x").write_text("hello")
    assert cli.main(["show", "x"]) == 2
    assert capsys.readouterr().err.startswith("rankhoist: x is no artifact of rankhoist")


# -- help, version, demo


@pytest.mark.parametrize("command", ["demo", "hoist", "verify", "report", "show", "serve", "client", "loadtest"])
def test_help_has_examples_that_parse(capsys, command: str):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    examples = capsys.readouterr().out.partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    assert examples
    for example in examples:
        words = shlex.split(example, comments=True)
        program, *arguments = (word for word in words if not word.startswith("RANKHOIST_"))
        assert program == "rankhoist" and arguments[0] == command
        cli.parser().parse_args(arguments)


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"rankhoist {rankhoist.__version__}\n"


def test_demo_passes_its_arguments_on(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr("rankhoist.lab.demo.run.main", lambda *args: calls.append(args) or 1)
    assert cli.main(["demo"]) == 1
    assert cli.main(["demo", "--data", "d", "--out", "o", "--seed", "7", "--candidates", "4000"]) == 1
    assert calls == [(None, "runs/demo", 0, 1000), ("d", "o", 7, 4000)]


def test_python_dash_m():
    done = subprocess.run(
        [sys.executable, "-m", "rankhoist", "verify", "nothing", *CONTEXT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("rankhoist: 'nothing' is neither")


@pytest.mark.parametrize("option", ["--out", "--json"])
def test_what_cannot_be_written_is_told_before_any_work(monkeypatch, capsys, tmp_path, option: str):
    monkeypatch.setattr("rankhoist.cli.hoist.hoisted_of", lambda *_: pytest.fail("it was hoisted first"))
    for path, words in ((tmp_path, "it is a folder"), (tmp_path / "none" / "x", "there is no folder")):
        assert cli.main(["hoist", "some_models:ranker", *CONTEXT, option, str(path)]) == 2
        assert words in capsys.readouterr().err
