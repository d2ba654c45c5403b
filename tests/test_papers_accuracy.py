"""The accuracy reproduction: tuned alike, compared seed by seed, going on where it was; on runs of a second."""

import json
from pathlib import Path

import pytest

from benchmarks.papers import accuracy
from benchmarks.papers.accuracy import MODELS, TUNING_SEED, Run, Size, main, mean, summarise

TINY = Size(1500, 5, 40, (1e-2, 1e-4), (0.1,), 2, 1)


def made(case: str, losses: dict[tuple[str, float, int], float]) -> list[dict]:
    """Runs whose validation and test losses are given, by model, learning rate and seed."""
    return [vars(Run(case, model, rate, 0.1, seed, loss, loss, 0.5, 0.0, 1.0, 1.0, 1.0))
            for (model, rate, seed), loss in losses.items()]  # fmt: skip


def test_differences_are_by_seed_and_at_the_points_of_tuning():
    losses = {("dcnv2", rate, TUNING_SEED): loss for rate, loss in ((1.0, 0.5), (2.0, 0.6))}
    losses |= {("rdcn", rate, TUNING_SEED): loss for rate, loss in ((1.0, 0.7), (2.0, 0.6))}
    losses |= {("rdcn-fixed", rate, TUNING_SEED): loss for rate, loss in ((1.0, 0.5), (2.0, 0.6))}
    losses |= {("dcnv2", 1.0, 0): 0.40, ("dcnv2", 1.0, 1): 0.44, ("rdcn-fixed", 1.0, 0): 0.41}
    losses |= {("rdcn-fixed", 1.0, 1): 0.47, ("rdcn", 2.0, 0): 0.42, ("rdcn", 2.0, 1): 0.44}
    losses |= {("rdcn", 1.0, 1): 0.45, ("rdcn", 1.0, 0): 0.41}  # at DCNv2's point, in another order
    by_model = {entry["model"]: entry for entry in summarise({"cases": {"x": {}}, "runs": made("x", losses)})}
    assert [by_model[model]["point"][0] for model in MODELS] == [1.0, 2.0, 1.0]
    assert by_model["rdcn"]["differences"] == pytest.approx([0.02, 0.0])
    assert by_model["rdcn"]["difference_at_base_point"] == pytest.approx((0.01, 0.0))
    assert by_model["rdcn-fixed"]["difference"] == pytest.approx(mean([0.01, 0.03]))
    assert by_model["dcnv2"]["difference"] == (0.0, 0.0) and by_model["dcnv2"]["noise"] == pytest.approx(0.04 / 2**0.5)


def test_a_run_writes_its_files_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "REDUCED", TINY)
    arguments = ["--reduced", "--movielens", str(tmp_path / "none"), "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert "MovieLens is left out" in capsys.readouterr().out
    (path,) = tmp_path.glob("????-??-??-papers-accuracy-reduced.json")
    record = json.loads(path.read_text())
    per_case = len(MODELS) * (2 + 2)
    assert len(record["cases"]) == 4 and len(record["runs"]) >= 4 * per_case
    text = path.with_suffix(".md").read_text()
    assert text.count("| rDCN without context stream |") == 4 and f"]({path.stem}.svg)" in text
    assert "<svg" in path.with_suffix(".svg").read_text()

    lost, kept = record["runs"][-1], record["runs"][:-1]
    path.write_text(json.dumps(record | {"runs": kept}))
    assert main(arguments) == 0
    again = json.loads(path.read_text())["runs"]
    assert again[:-1] == kept and {**again[-1], "seconds": 0} == {**lost, "seconds": 0}
    assert Path(path.with_suffix(".md")).read_text().splitlines()[5:] == text.splitlines()[5:]
