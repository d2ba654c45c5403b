"""Offline scoring: every layout against the model called in this process; what is refused; kills and changes."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import assert_equal
from rich.console import Console
from scoring import CANDIDATE, CONTEXT, a_log, arrow, changed, hoisted, rows, truth, write
from torch import Tensor, nn

import rankhoist
from rankhoist import Split, cli
from rankhoist.errors import ScoringError
from rankhoist.score import Options, TableScorer, job, progress, run
from rankhoist.score.calls import budget_of, groups, outputs_of
from rankhoist.score.workers import side_by_side

COUNTS = [3, 0, 40, 1, 7, 0, 0, 120, 2, 9] * 6
LOG = a_log(COUNTS)
QUIET = Console(file=io.StringIO())


@pytest.fixture(scope="module")
def model() -> rankhoist.HoistedModel:
    return hoisted()


@pytest.fixture(scope="module")
def artifact(model, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("artifact") / "ranker.rankhoist"
    model.save(path)
    return str(path)


def options(artifact: str, folder: Path, layout: str, log=LOG, **more) -> Options:
    """A job over files of a layout."""
    files = folder / "files"
    sides = {
        "nested": lambda: {"requests": [write(log.nested(), files / "r", 3, 7)]},
        "repeated": lambda: {"candidates": [write(log.repeated(), files / "c", 3)]},
        "joined": lambda: {
            "requests": [write(log.requests_table(), files / "r", 2, 5)],
            "candidates": [write(log.candidates_table(), files / "c", 3)],
        },
    }[layout]()
    return Options(artifact, str(folder / "scores"), **sides, **{"keep": ["country", "ad"], "part_rows": 100} | more)


def scored(given: Options, **how) -> pa.Table:
    run(given, console=QUIET, **how)
    return pq.read_table(given.out)


def check(table: pa.Table, model: rankhoist.HoistedModel, log=LOG) -> None:
    """Every row, in order, with its ids and the scores of this process."""
    expected = truth(model, log)
    assert table["request_id"].to_pylist() == [f"page {r}" for r in log.owner]
    assert table["country"].to_pylist() == (log.owner % 7).tolist()
    assert table["ad"].to_pylist() == list(range(log.offsets[-1]))
    assert table.schema.field("click").type == pa.float32()
    assert table.schema.field("kinds").type == pa.list_(pa.float32(), 3)
    assert_equal(torch.tensor(table["click"].to_pylist()), expected["click"])
    assert_equal(torch.tensor(table["kinds"].to_pylist()), expected["kinds"])


# -- layouts


@pytest.mark.parametrize("budget", [None, 1, 50])
@pytest.mark.parametrize("layout", ["nested", "repeated", "joined"])
def test_scores_equal_those_of_this_process(layout: str, budget: int | None, model, artifact: str, tmp_path: Path):
    given = options(artifact, tmp_path, layout, budget=budget)
    table = scored(given)
    check(table, model)
    assert table.schema.names == ["request_id", "country", "ad", "click", "kinds"]
    assert len(list(Path(given.out).glob("part-*.parquet"))) > 5
    assert (Path(given.out) / "_SUCCESS").exists()


@pytest.mark.parametrize("block", [16, 160])
def test_blocks_and_pieces_end_anywhere(
    block: int, model, artifact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("rankhoist.score.layouts.BLOCK", block)
    monkeypatch.setattr("rankhoist.score.parts.BATCH", 16)
    monkeypatch.setattr("rankhoist.score.layouts.BATCH", 16)
    for layout in ("nested", "repeated", "joined"):
        check(scored(options(artifact, tmp_path / layout, layout, part_rows=5 * block)), model)


def test_a_very_large_request_is_scored_in_several_calls(model, artifact: str, tmp_path: Path):
    log = a_log([5, 400, 3])
    given = options(artifact, tmp_path, "repeated", log, budget=4)
    check(scored(given), model, log)


def test_a_job_without_candidates(artifact: str, tmp_path: Path):
    table = scored(options(artifact, tmp_path, "nested", a_log([0, 0, 0])))
    assert table.num_rows == 0 and table.schema.names[-1] == "kinds"


def test_lists_of_any_kind_and_numbers_of_any_width(model, artifact: str, tmp_path: Path):
    table = LOG.repeated()
    kinds = {
        "history": pa.large_list(pa.int16()),
        "taste": pa.list_(pa.float64()),
        "item": pa.dictionary(pa.int32(), pa.int64()),
    }
    for name, kind in kinds.items():
        values = table[name].dictionary_encode() if pa.types.is_dictionary(kind) else table[name].cast(kind)
        table = table.set_column(table.schema.get_field_index(name), name, values)
    files = write(table, tmp_path / "files")
    check(scored(Options(artifact, str(tmp_path / "scores"), candidates=[files], keep=["country", "ad"])), model)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.top = nn.Embedding(50, 4), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        made = self.top(torch.cat([self.table(x[:, 0].long()), self.table(x[:, 2].long()), x[:, 1:2]], 1))
        return made[:, 0], made[:, 1:]


def test_a_packed_input_and_a_tuple(tmp_path: Path):
    torch.manual_seed(0)
    model = rankhoist.hoist(Packed().eval(), (torch.rand(8, 3),), context={"x": [0, 1]})
    model.save(tmp_path / "packed.rankhoist")
    context, candidate = torch.rand(2, 2), torch.rand(7, 1)
    nested = {
        "request_id": [4, 9], "x.context": arrow(context),
        "x.candidate": pa.ListArray.from_arrays(pa.array([0, 5, 7], pa.int32()), arrow(candidate)),
    }  # fmt: skip
    files = write(pa.table(nested), tmp_path / "files")
    table = scored(Options(str(tmp_path / "packed.rankhoist"), str(tmp_path / "scores"), requests=[files]))
    first, second = model(Split(context, candidate), request_offsets=[0, 5, 7])
    assert table["request_id"].to_pylist() == [4] * 5 + [9] * 2
    assert_equal(torch.tensor(table["output_0"].to_pylist()), first)
    assert_equal(torch.tensor(table["output_1"].to_pylist()), second[:, 0])


class Centred(nn.Module):
    """Scores depend on the other candidates of the call."""

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        x = (user * item).sum(1)
        return x - x.mean()


def test_requests_of_a_model_that_mixes_rows_have_calls_of_their_own(tmp_path: Path):
    model = rankhoist.hoist(Centred().eval(), (torch.randn(9, 2), torch.randn(9, 2)), context=["user"])
    assert budget_of(model, 1000) == 0
    model.save(tmp_path / "centred.rankhoist")
    user, item = torch.randn(2, 2), torch.randn(7, 2)
    table = pa.table({"request_id": [1] * 3 + [2] * 4, "user": arrow(user[[0] * 3 + [1] * 4]), "item": arrow(item)})
    files = write(table, tmp_path / "files")
    found = scored(Options(str(tmp_path / "centred.rankhoist"), str(tmp_path / "scores"), candidates=[files]))
    alone = torch.cat([model(user[:1], item[:3]), model(user[1:], item[3:])])
    assert_equal(torch.tensor(found["scores"].to_pylist()), alone)


class Numbered(nn.Module):
    """A score, the item's number, which no float32 holds, and whether it is odd."""

    def forward(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return user[:, 0] * item, item * 1, item % 2 == 1


def test_integers_and_truths_are_written_as_they_are(tmp_path: Path):
    first = 2**24 + 1
    model = rankhoist.hoist(Numbered().eval(), (torch.randn(9, 2), torch.arange(9) + first), context=["user"])
    model.save(tmp_path / "numbered.rankhoist")
    item = torch.arange(5) + first
    table = pa.table({"request_id": [1] * 5, "user": arrow(torch.randn(1, 2)[[0] * 5]), "item": arrow(item)})
    files = write(table, tmp_path / "files")
    found = scored(Options(str(tmp_path / "numbered.rankhoist"), str(tmp_path / "scores"), candidates=[files]))
    assert [found.schema.field(f"output_{i}").type for i in range(3)] == [pa.float32(), pa.int64(), pa.bool_()]
    assert found["output_1"].to_pylist() == item.tolist()
    assert found["output_2"].to_pylist() == [True, False, True, False, True]


def test_an_ordinary_model_has_calls_of_several_requests(model):
    assert budget_of(model, 50) == 50
    assert budget_of(model, None) == 1000
    assert [(o.name, o.width) for o in outputs_of(model)] == [("click", None), ("kinds", 3)]


@pytest.mark.parametrize(
    ("offsets", "budget", "expected"),
    [
        ([0, 3, 6, 9], 6, [(0, 2), (2, 3)]),
        ([0, 3, 6, 9], 0, [(0, 1), (1, 2), (2, 3)]),
        ([0, 10, 12, 14], 4, [(0, 1), (1, 3)]),
        ([0, 0, 0, 2, 2], 1, [(2, 3)]),
        ([0, 0, 0], 5, []),
    ],
)
def test_groups(offsets: list[int], budget: int, expected: list[tuple[int, int]]):
    assert list(groups(np.array(offsets), budget)) == expected


# -- a pipeline's tables


def test_tables_of_a_pipeline(model, artifact: str):
    table = TableScorer(artifact, keep=["country", "ad"])(LOG.nested())
    check(table, model)


# -- what is refused


@pytest.mark.parametrize(
    ("layout", "column", "row", "value", "said"),
    [
        ("repeated", "item", 60, 40, r"1\.parquet, row 10, column 'item': 40 is not in the model's vocabulary"),
        ("repeated", "item", 60, -1, r"1\.parquet, row 10, column 'item': -1 is not in the model's vocabulary"),
        ("repeated", "item", 60, None, r"1\.parquet, row 10, column 'item': a null; expected numbers \(int64\)"),
        ("repeated", "item", 60, 0.5, r"column 'item': the column holds double; expected numbers \(int64\)"),
        ("repeated", "stats", 60, [1.0], r"1\.parquet, row 10, column 'stats': a list of 1, expected 2"),
        ("repeated", "stats", 60, [1.0, None], r"1\.parquet, row 10, column 'stats': a null"),
        ("repeated", "user", 30, 7, r"row 30, column 'user': request 'page 2' has another value here"),
        ("repeated", "history", 30, [0] * 5, r"row 30, column 'history': request 'page 2' has another value here"),
        ("repeated", "request_id", 30, "page 0", r"row 30, column 'request_id': request 'page 0' comes again"),
        ("repeated", "request_id", 30, None, r"row 30, column 'request_id': a null"),
        ("nested", "history", 8, [0] * 4, r"row 8, column 'history': a list of 4, expected 5"),
        (
            "nested",
            "item",
            7,
            [1, 2],
            r"row 7, column 'item': a list of 2, where 'stats' has 120|row 7, column 'stats'",
        ),
        ("nested", "ad", 7, [1, 2], r"row 7, column 'ad': a list of 2, where 'item' has 120"),
        ("nested", "item", 8, [1, 99], r"row 8, candidate 1, column 'item': 99 is not in the model's vocabulary"),
        ("nested", "user", 8, 50, r"row 8, candidate 0, column 'user': 50 is not in the model's vocabulary"),
        ("nested", "item", 8, None, r"row 8, column 'item': a null; expected a list"),
        ("joined", "request_id", 30, "page 0", r"row 30, column 'request_id': request 'page 0' comes again"),
        ("joined", "request_id", 49, "page 99", r"row 49, column 'request_id': no request 'page 99' in the requests"),
    ],
)
def test_a_wrong_value_is_named(
    layout: str, column: str, row: int, value: object, said: str, artifact: str, tmp_path: Path
):
    table = {"repeated": LOG.repeated, "nested": LOG.nested, "joined": LOG.candidates_table}[layout]()
    table = changed(table.slice(0, 100), column, row, value)
    sides = {"nested": "requests"}.get(layout, "candidates")
    given = Options(artifact, str(tmp_path / "s"), **{sides: [write(table, tmp_path / "f", 2)]}, keep=["ad"])
    if layout == "joined":
        given = replace(given, requests=[write(LOG.requests_table(), tmp_path / "r")])
    with pytest.raises(ScoringError, match=said) as error:
        run(given, console=QUIET)
    assert ".parquet" in str(error.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"candidates": ["nowhere/*.parquet"]}, "nowhere/.*: no Parquet file is there"),
        ({"request_id": "page"}, "no column 'page', which says what request a row belongs to"),
        ({"keep": ["place"]}, "no column 'place', which is to be kept"),
        ({"keep": ["click"]}, "two columns 'click'"),
        ({"candidates": []}, "no files"),
        ({"candidates": [__file__]}, "test_score.py cannot be read as Parquet"),
    ],
)
def test_a_wrong_job_is_explained(more: dict, said: str, artifact: str, tmp_path: Path):
    table = LOG.repeated().append_column("click", pa.array(np.zeros(LOG.offsets[-1])))
    given = Options(artifact, str(tmp_path / "s"), candidates=[write(table, tmp_path / "f")])
    with pytest.raises(ScoringError, match=said):
        run(replace(given, **more), console=QUIET)


def test_a_missing_column_is_named(artifact: str, tmp_path: Path):
    files = write(LOG.candidates_table(), tmp_path / "f")
    said = "0.parquet: no column 'user', which context input 'user' needs: numbers"
    with pytest.raises(ScoringError, match=said):
        run(Options(artifact, str(tmp_path / "s"), candidates=[files]), console=QUIET)


def test_requests_stand_in_the_same_order_in_both(artifact: str, tmp_path: Path):
    given = options(artifact, tmp_path, "joined")
    backwards = LOG.requests_table().take(pa.array(range(LOG.requests - 1, -1, -1)))
    given = replace(given, requests=[write(backwards, tmp_path / "backwards")])
    with pytest.raises(ScoringError, match="requests must stand in the same order in both"):
        run(given, console=QUIET)


def test_a_request_has_one_row_in_the_requests(artifact: str, tmp_path: Path):
    given = options(artifact, tmp_path, "joined")
    twice = LOG.requests_table().take(pa.array([0, 0, *range(1, LOG.requests)]))
    given = replace(given, requests=[write(twice, tmp_path / "twice")])
    with pytest.raises(ScoringError, match=r"row 1, column 'request_id': a second row for request 'page 0'"):
        run(given, console=QUIET)


# -- kills and changes


def test_a_killed_job_goes_on_without_a_duplicate_or_missing_row(model, artifact: str, tmp_path: Path):
    log = a_log([5] * 300)
    given = options(artifact, tmp_path, "repeated", log, part_rows=5)
    command = [
        sys.executable, "-m", "rankhoist", "score", artifact, "--candidates", *given.candidates, "--out", given.out,
        "--keep", *given.keep, "--part-rows", "5",
    ]  # fmt: skip
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(list(Path(given.out).glob("part-*"))) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was scoring"
    there = {p: p.stat().st_mtime_ns for p in Path(given.out).glob("part-*")}
    assert 5 <= len(there) < 300
    summary = run(given, console=QUIET)
    assert summary.parts_before == len(there) and summary.rows == 1500
    assert summary.scored == 1500 - 5 * len(there)
    assert {p: p.stat().st_mtime_ns for p in there} == there, "finished parts are left as they are"
    table = pq.read_table(given.out)
    check(table, model, log)
    whole = scored(replace(given, out=str(tmp_path / "whole")))
    assert table.equals(whole), "the same scores, bit for bit, as without the kill"
    assert run(given, console=QUIET).scored == 0


def test_a_part_that_is_not_whole_or_not_of_the_job_is_scored_again(model, artifact: str, tmp_path: Path):
    given = options(artifact, tmp_path, "repeated")
    table = scored(given)
    first, second, third = sorted(Path(given.out).glob("part-*"))[:3]
    first.write_bytes(first.read_bytes()[:100])
    pq.write_table(pq.read_table(second).replace_schema_metadata(), second)
    third.unlink()
    summary = run(given, console=QUIET)
    assert summary.parts - summary.parts_before == 3
    assert pq.read_table(given.out).equals(table)


def test_a_changed_job_is_refused(model, artifact: str, tmp_path: Path):
    given = options(artifact, tmp_path, "repeated")
    run(given, console=QUIET)
    for change, said in [
        ({"part_rows": 7}, "was begun with --part-rows 100, not 7"),
        ({"keep": ["ad"]}, r"was begun with --keep \['country', 'ad'\], not \['ad'\]"),
        ({"candidates": [f"{given.candidates[0]}/0.parquet"]}, "was begun with 3 files of candidates"),
    ]:
        with pytest.raises(ScoringError, match=said):
            run(replace(given, **change), console=QUIET)
    path = Path(given.candidates[0]) / "1.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(ScoringError, match=r"1\.parquet has changed since"):
        run(given, console=QUIET)
    other = hoisted()
    other.update_weights({n: t + 1 for n, t in model.state_dict().items()})
    other.save(tmp_path / "other.rankhoist")
    with pytest.raises(ScoringError, match="holds scores of another model"):
        run(replace(given, artifact=str(tmp_path / "other.rankhoist")), console=QUIET)


def test_the_same_model_saved_again_is_no_change(model, artifact: str, tmp_path: Path):
    given = options(artifact, tmp_path, "repeated")
    run(given, console=QUIET)
    model.save(tmp_path / "again.rankhoist")
    assert run(replace(given, artifact=str(tmp_path / "again.rankhoist")), console=QUIET).scored == 0


def test_a_folder_of_other_files_is_left_alone(artifact: str, tmp_path: Path):
    given = options(artifact, tmp_path, "repeated")
    with pytest.raises(ScoringError, match="is no folder of a scoring job"):
        run(replace(given, out=given.candidates[0]), console=QUIET)


def test_two_processes_do_not_write_one_folder(model, artifact: str, tmp_path: Path):
    given = options(artifact, tmp_path, "repeated")
    said = "another process is scoring into this folder"
    with job.opened(given, lambda: model), pytest.raises(ScoringError, match=said):
        run(given, console=QUIET)


# -- several processes


def test_workers_score_the_same_and_a_dead_one_is_reported(model, artifact: str, tmp_path: Path):
    given = options(artifact, tmp_path, "nested")
    table = scored(given)
    there = replace(given, out=str(tmp_path / "side by side"))
    with job.opened(there, lambda: model) as own:
        rows = side_by_side(own, own.parts, workers=2, threads=1)
        first = next(rows)
        victim = multiprocessing.active_children()[0]
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(ScoringError, match="exit code -9"):
            list(rows)
        assert first > 0 and not multiprocessing.active_children()
    assert scored(there, workers=2).equals(table)


# -- the command


def test_the_command(model, artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    given = options(artifact, tmp_path, "joined")
    arguments = [
        "score",
        artifact,
        "--requests",
        *given.requests,
        "--candidates",
        *given.candidates,
        "--out",
        given.out,
    ]
    assert cli.main([*arguments, "--keep", "country", "ad", "--part-rows", "100"]) == 0
    assert f"{LOG.offsets[-1]:,} scored in" in capsys.readouterr().out
    check(pq.read_table(given.out), model)
    assert cli.main([*arguments, "--keep", "country", "ad", "--part-rows", "100"]) == 0
    assert "0 scored" in capsys.readouterr().out
    assert cli.main(["score", artifact, "--out", given.out]) == 2
    assert "give --requests, --candidates or both" in capsys.readouterr().err


def test_the_missing_extra_is_named(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in [name for name in sys.modules if name.startswith("rankhoist.score")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert cli.main(["score", "x.rankhoist", "--candidates", "x.parquet", "--out", str(tmp_path)]) == 2
    assert "pip install 'rankhoist[score]'" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_shown(terminal: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    assert progress.watched([40, 50], 10, 100, console) == 90
    shown = console.file.getvalue()
    assert "rows/s" in shown and "100" in shown and ("s left" in shown) is not terminal


def test_the_job_says_what_it_is(artifact: str, tmp_path: Path):
    given = options(artifact, tmp_path, "repeated")
    run(given, console=QUIET)
    about = json.loads((Path(given.out) / "_job.json").read_text())
    assert about["format"] == 1 and sum(part["rows"] for part in about["parts"]) == LOG.offsets[-1]
    assert {n for n in (*CONTEXT, *CANDIDATE)} == set(rows(1))
