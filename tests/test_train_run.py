"""`rankhoist train`: several seeds, results and files, going on after a stop, and clear refusals."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from test_data import write_movielens

import rankhoist
from rankhoist import cli
from rankhoist.errors import RankhoistError
from rankhoist.lab.data import generate_request_log
from rankhoist.lab.train import MODELS, Settings, build_model, predict
from rankhoist.lab.train.log import LARGEST, Columns, load_log
from rankhoist.lab.train.run import Options, run

QUICK = ["--rows", "3000", "--epochs", "1", "--scale", "0.125"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_seeds_give_a_table_files_and_a_model_that_hoists(capsys):
    assert cli.main(["train", *QUICK, "--seeds", "3", "--evaluations", "2", "--hoist", "--out", "run"]) == 0
    out, folder = capsys.readouterr().out, Path("run")
    record = json.loads((folder / "results.json").read_text())
    results = [json.loads((folder / f"seed-{seed}" / "result.json").read_text()) for seed in range(3)]
    losses = [result["test"]["log_loss"] for result in results]
    assert len(set(losses)) == 3
    measure = record["measures"]["test log loss"]
    assert measure["values"] == losses and measure["mean"] == statistics.fmean(losses)
    assert measure["standard_error"] == pytest.approx(statistics.stdev(losses) / 3**0.5)
    line = f"{measure['mean']:.4f} ± {measure['standard_error']:.4f}"
    assert line in out and line in (folder / "results.md").read_text()
    assert {len(result["curve"]) for result in results} <= {1, 2}
    assert "<svg" in (folder / "curves.svg").read_text() and not list(folder.rglob("checkpoint.pt"))

    data = generate_request_log(3000)
    best = min(range(3), key=lambda seed: results[seed]["validation"]["log_loss"])
    model = build_model("dcnv2", data, scale=0.125)
    model.load_state_dict(load_file(folder / f"seed-{best}" / "weights.safetensors"))
    expected, rows = predict(model, data, data.test), data.rows(data.test)
    torch.testing.assert_close(torch.export.load(folder / "model.pt2").module()(rows), expected)
    hoisted = rankhoist.load(folder / "model.rankhoist")
    offsets = list(range(len(expected) + 1))
    torch.testing.assert_close(hoisted(rows, request_offsets=offsets), expected, atol=1e-5, rtol=1e-4)


def test_what_is_done_is_not_done_again_and_what_is_missing_is_done(capsys):
    assert cli.main(["train", *QUICK, "--seeds", "1", "--no-plots", "--out", "run"]) == 0
    first = Path("run/seed-0/result.json").stat().st_mtime_ns
    assert cli.main(["train", *QUICK, "--seeds", "2", "--no-plots", "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "seed 0: already there" in out and "seed 1: 1 epochs in" in out
    assert Path("run/seed-0/result.json").stat().st_mtime_ns == first
    assert not Path("run/curves.svg").exists()
    assert json.loads(Path("run/results.json").read_text())["seeds"] == 2


def test_a_folder_of_another_run_is_refused_and_fresh_removes_it(capsys):
    assert cli.main(["train", *QUICK, "--seeds", "1", "--no-plots", "--out", "run"]) == 0
    Path("run/notes.txt").write_text("mine")
    other = ["train", *QUICK, "--model", "deepfm", "--seeds", "1", "--no-plots", "--out", "run"]
    assert cli.main(other) == 2
    assert "run/seed-0 holds a run with other model; choose another folder, or --fresh" in capsys.readouterr().err
    assert cli.main([*other, "--fresh"]) == 0
    assert json.loads(Path("run/results.json").read_text())["model"] == "deepfm"
    assert Path("run/notes.txt").read_text() == "mine"


def test_a_folder_of_ratings(capsys):
    folder = Path("ratings")
    folder.mkdir()
    write_movielens(folder, events=900)
    arguments = ["train", "--data", "ratings", "--model", "rdcn", "--epochs", "1", "--scale", "0.125", "--seeds", "1"]
    assert cli.main([*arguments, "--no-plots", "--out", "run"]) == 0
    assert "MovieLens, ratings: 900 rows in time order" in capsys.readouterr().out


def test_a_folder_of_unknown_layout_says_what_was_looked_for(capsys):
    Path("other").mkdir()
    Path("other/clicks.parquet").touch()
    for folder, words in (
        ("other", ["ratings.csv and movies.csv", "ratings.dat", "log_standard_*.csv", "found clicks.parquet"]),
        ("none", ["none: no such folder"]),
    ):
        assert cli.main(["train", "--data", folder]) == 2
        err = capsys.readouterr().err
        assert err.startswith("rankhoist: ") and all(word in err for word in words)
    assert not Path("runs").exists()


def test_one_seed_has_no_standard_error(tmp_path):
    options = Options("deepfm", tmp_path / "run", Settings(epochs=1), 1, 0.125, plots=False)
    with Console(quiet=True) as console:
        assert run(options, generate_request_log(2000), console)
    record = json.loads((tmp_path / "run" / "results.json").read_text())
    assert record["measures"]["test AUC"]["standard_error"] is None


def test_the_command_offers_every_model():
    assert list(MODELS) == cli.train.MODELS


# -- an impression log of one's own

OF_LOG = Columns("request", "clicked", ["user", "hist*", "age"], ["item", "price", "sale", "pair"], ["age"])


def log_table(requests: int = 60) -> pa.Table:
    """Requests by name, with histories of any length, of 1 to 7 impressions each."""
    rng = np.random.default_rng(0)
    own = np.repeat(np.arange(requests), rng.integers(1, 8, requests))
    users, item = rng.integers(0, 9, requests)[own], rng.integers(1, 20, len(own))
    histories = [rng.integers(1, 30, r % 5).tolist() for r in range(requests)]
    return pa.table({
        "request": [f"r{r}" for r in own], "user": pa.array(users, pa.int32()), "age": users + 20,
        "history": pa.array([histories[r] for r in own], pa.list_(pa.int64())),
        "item": pa.array(item, pa.uint32()), "price": rng.random(len(own)), "sale": item > 9,
        "pair": rng.random((len(own), 2)).tolist(), "title": [f"item {i}" for i in item],
        "clicked": rng.random(len(own)) < 0.2 + 0.6 * (item > 9), "zero": 0 * item,
    })  # fmt: skip


def test_a_log_is_read_by_the_types_of_its_columns(tmp_path):
    table = log_table()
    shuffled = table.take(np.random.default_rng(1).permutation(len(table)))  # requests still begin somewhere
    parquet.write_table(shuffled, tmp_path / "log.parquet")
    data = load_log(["log.parquet"], OF_LOG)
    kinds = [(f.name, f.side, f.kind, f.size) for f in data.schema]
    assert kinds == [
        ("user", "context", "id", 9), ("age", "context", "dense", 1), ("history", "context", "ids", 30),
        ("item", "candidate", "id", 20), ("price", "candidate", "dense", 1), ("sale", "candidate", "dense", 1),
        ("pair", "candidate", "dense", 2),
    ]  # fmt: skip
    assert data.varying == ("history",) and data.source == "clicked in log.parquet"
    names = [*dict.fromkeys(shuffled["request"].to_pylist())]  # in the order in which they first come
    rows = [row for name in names for row in shuffled.to_pylist() if row["request"] == name]
    for name in ("user", "age", "item", "sale"):
        assert data.features[name].tolist() == [row[name] for row in rows]
    assert data.features["history"].tolist() == [row["history"] + [0] * (4 - len(row["history"])) for row in rows]
    assert data.labels.tolist() == [row["clicked"] for row in rows]
    bounds = [0, *(i for i in range(1, len(rows)) if rows[i]["request"] != rows[i - 1]["request"]), len(rows)]
    assert data.request_offsets.tolist() == bounds
    cuts = [data.train.start, data.train.stop, data.validation.stop, data.test.stop]
    assert set(cuts) <= set(bounds) and cuts[::3] == [0, len(rows)]
    assert (
        (data.validation.start, data.test.start)
        == tuple(cuts[1:3])
        == pytest.approx((0.8 * len(rows), 0.9 * len(rows)), abs=7)
    )
    last = load_log(["log.parquet"], OF_LOG, latest=100)
    assert 93 <= len(last.labels) <= 100 and torch.equal(last.labels, data.labels[-len(last.labels) :])
    assert last.request_offsets[-1] == len(last.labels)


def test_columns_share_a_table_by_its_name(tmp_path):
    parquet.write_table(log_table(), tmp_path / "log.parquet")
    shared = Columns("request", "clicked", ["history"], ["item"], tables={"history": "item"})
    data = load_log([str(tmp_path)], shared)  # a folder
    assert [(f.vocabulary, f.size) for f in data.schema] == [("item", 30)] * 2
    assert len(build_model("dcnv2", data).embedding.tables) == 1


def test_a_log_is_trained_by_request_and_the_model_takes_it_as_it_is(capsys):
    parquet.write_table(log_table(200), "log.parquet")
    arguments = ["train", "--log", "log.parquet", "--request-id", "request", "--label", "clicked", "--dense", "age"]
    arguments += ["--context", "hist*", "--context", "age", "--candidate", "item", "sale", "--table", "history=item"]
    arguments += ["--scale", "0.1", "--batch-size", "64", "--epochs", "3", "--learning-rate", "0.01", "--seeds", "1"]
    assert cli.main([*arguments, "--model", "deepfm", "--no-plots", "--grouped", "--hoist", "--out", "run"]) == 0
    assert "rows of 200 requests" in capsys.readouterr().out
    assert json.loads(Path("run/results.json").read_text())["measures"]["test AUC"]["mean"] > 0.6

    score = ["score", "run/model.rankhoist", "--candidates", "log.parquet", "--request-id", "request"]
    assert cli.main([*score, "--out", "scores"]) == 0
    rows = load_log(["log.parquet"], Columns("request", "clicked", ["hist*", "age"], ["item", "sale"], ["age"]))
    expected = torch.export.load("run/model.pt2").module()(rows.features)  # histories padded with 0
    scores = torch.tensor(parquet.read_table("scores")["scores"].to_numpy())
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=1e-3)
    assert scores.std() > 0.3


def changed(name: str, row: int, value: object) -> pa.Table:
    """The log with another value in one row."""
    table = log_table()
    values = [type(value)(x) for x in table[name].to_pylist()] if value is not None else table[name].to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(name), name, pa.array(values))


WRONG = {
    "id below 0": (changed("item", 5, -1), {}, "log.parquet, row 5, column 'item': -1 as an id, .*number the ids"),
    "id too large": (changed("item", 7, LARGEST), {}, "row 7, column 'item': 50000000 as an id.*a row for each number"),
    "id in a list": (changed("history", 2, [3, -4]), {}, "row 2, column 'history': -4 as an id"),
    "not finite": (changed("price", 3, float("nan")), {}, "row 3, column 'price': nan, expected a finite number"),
    "gap": (changed("price", 4, None), {}, "column 'price' has 1 gaps, the first in row 4; fill them"),
    "text": (log_table(), {"candidate": []}, "column 'title' holds string: number its values from 1 on"),
    "no label": (changed("clicked", 9, 2.0), {}, "row 9, label 'clicked': 2.0, expected 0 or 1"),
    "labels": (log_table(), {"label": "pair", "candidate": ["item"]}, "label 'pair' holds lists, expected 0 or 1"),
    "one label": (log_table(), {"label": "zero"}, "label 'zero' is the same in all .* rows: nothing can be learnt"),
    "not the context's": (log_table(), {"context": ["price", "age"]}, "context column 'price' is not the same"),
    "lists of a candidate": (log_table(), {"context": ["user", "age"], "candidate": ["hist*"]}, "pad them with 0 to"),
    "no such context": (log_table(), {"context": ["users"]}, "context 'users': no such column among user, age"),
    "no such request": (log_table(), {"request": "page"}, "no column 'page', which tells requests apart"),
    "no such label": (log_table(), {"label": "bought"}, "no column 'bought', which is the label"),
    "no table": (log_table(), {"tables": {"price": "item"}}, "table of 'price': no such column of ids"),
    "no candidate": (log_table().select(["request", "user", "clicked"]), {"context": ["user"], "candidate": []},
                     "no column is the candidate's"),
    "name of a part": (log_table().rename_columns({"item": "items"}), {"candidate": ["items"]}, "'items': .*rename"),
    "too few": (log_table(4), {}, "4 requests of .* rows are too few to split: give ten or more"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_log_is_said(name: str):
    table, other, problem = WRONG[name]
    parquet.write_table(table, "log.parquet")
    with pytest.raises(RankhoistError, match=problem):
        load_log(["log.parquet"], replace(OF_LOG, **other))


def test_options_of_a_log_need_one_and_those_of_other_data_need_none(capsys):
    for arguments, problem in (
        (["--context", "user"], "--context is of a log: give --log FILE.parquet"),
        (["--log", "log.parquet"], "--log needs --context: the columns that are the same in all rows of a request"),
        (["--log", "log.parquet", "--context", "user", "--third", "1"], "are of generated requests, not of a log"),
        (["--log", "log.parquet", "--context", "user", "--table", "item"], "--table item: write COLUMN=NAME"),
        (["--log", "none.parquet", "--context", "user"], "none.parquet: no Parquet file is there"),
    ):
        assert cli.main(["train", *arguments]) == 2
        assert problem in capsys.readouterr().err
