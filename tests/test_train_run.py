"""`rankhoist train`: several seeds, results and files, going on after a stop, and clear refusals."""

import json
import statistics
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from test_data import write_movielens

import rankhoist
from rankhoist import cli
from rankhoist.lab.data import generate_request_log
from rankhoist.lab.train import MODELS, Settings, build_model, predict
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
