"""Numbers that are none, in files: inputs end the job unless they are to be taken, scores are counted."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scoring import a_log, changed, hoisted, write

from rankhoist import cli
from rankhoist.errors import ScoringError
from rankhoist.score import Options, TableScorer, run

LOG = a_log([3, 0, 4, 1] * 3)
QUIET = Console(file=io.StringIO())
ROW = 9  # of LOG.offsets[-1], on the second file below


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    hoisted().save(path := tmp_path_factory.mktemp("artifact") / "ranker.rankhoist")
    return str(path)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_an_input_that_is_no_number_ends_the_job_with_its_row(wrong: float, artifact: str, tmp_path: Path) -> None:
    table = changed(LOG.repeated(), "stats", ROW, [0.5, wrong])
    given = Options(artifact, str(tmp_path / "s"), candidates=[write(table, tmp_path / "f", 3)])
    said = rf"1\.parquet, row 1, column 'stats': {wrong} is no finite number, which allow_nan \(--allow-nan\) alone"
    with pytest.raises(ScoringError, match=said):
        run(given, console=QUIET)


def test_what_is_to_be_taken_goes_on_and_is_counted(artifact: str, tmp_path: Path) -> None:
    """A job that ended at a NaN goes on; so does a run that finds all parts there."""
    table = changed(changed(LOG.repeated(), "stats", ROW, [0.5, math.nan]), "stats", ROW + 5, [math.nan, 0.5])
    given = Options(artifact, str(tmp_path / "s"), candidates=[write(table, tmp_path / "f")], part_rows=8)
    with pytest.raises(ScoringError, match="nan is no finite number"):
        run(given, console=QUIET)
    given = replace(given, allow_nan=True)
    for scored in (True, False):
        made = run(given, console=QUIET)
        assert (made.scored > 0, made.nan, made.first_nan) == (scored, 2, "part-000001.parquet, row 1")
        assert str(made).endswith("; 2 rows have a score that is NaN, the first is part-000001.parquet, row 1")
    scores = pq.read_table(given.out)
    assert [row for row, x in enumerate(scores["click"].to_pylist()) if math.isnan(x)] == [ROW, ROW + 5]


def test_nothing_is_said_of_scores_that_are_numbers(artifact: str, tmp_path: Path) -> None:
    made = run(Options(artifact, str(tmp_path / "s"), requests=[write(LOG.nested(), tmp_path / "f")]), console=QUIET)
    assert (made.nan, made.first_nan) == (0, "") and "NaN" not in str(made)


def test_a_pipelines_tables_are_checked_as_files_are(artifact: str) -> None:
    table = changed(LOG.nested(), "taste", 2, [0.0, math.nan, 0.0])
    with pytest.raises(ScoringError, match="row 2, column 'taste': nan is no finite number"):
        TableScorer(artifact)(table)
    scores = TableScorer(artifact, allow_nan=True)(table)["click"].to_pylist()
    assert [row for row, x in enumerate(scores) if math.isnan(x)] == [3, 4, 5, 6]


def test_the_command_takes_them_where_it_is_told(artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = write(changed(LOG.repeated(), "stats", ROW, [0.5, math.nan]), tmp_path / "f")
    command = ["score", artifact, "--candidates", files, "--out", str(tmp_path / "s")]
    assert cli.main(command) == 2 and "--allow-nan" in capsys.readouterr().err
    assert cli.main([*command, "--allow-nan"]) == 0
    assert "; 1 row has a score that is NaN, the first is part-000000.parquet, row 9" in capsys.readouterr().out
