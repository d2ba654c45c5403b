"""The reproductions of the papers: each runs in a tiny size, and what does not depend on time is exact."""

from __future__ import annotations

import json
import threading
from fractions import Fraction
from functools import partial
from math import comb
from pathlib import Path

import pytest
import torch

from benchmarks.papers import __main__ as everything
from benchmarks.papers import common, depth, equations, flops, load, mari, models, page, serving_table, throughput
from benchmarks.papers.subject import PairsOnly, Subject, checked, counted
from rankhoist.bench import closed_forms
from rankhoist.bench.closed_forms import Work

ALL = {m.REPRODUCTION.name: m for m in (flops, throughput, equations, serving_table, mari, depth)}
COLUMNS, FIELDS = ((514,), (577,)), ((27, 128), (4, 128))  # RAD's two families


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every reproduction on models of a few columns."""
    cross, pairs = partial(models.dcnv2, 6, 4, 2, (5, 3)), partial(models.dlrm, 4, 2, (6, 3))
    small = {
        "DCN": lambda: Subject.of(cross, (6,), (4,)),
        "rDCN": lambda: Subject.of(partial(models.rdcn, 6, 4, 2, (5, 3)), (6,), (4,)),
        "DLRM": lambda: Subject.of(pairs, (4, 8), (2, 8)),
    }
    monkeypatch.setattr(flops, "subjects", lambda: {name: make() for name, make in small.items()})
    monkeypatch.setattr(flops, "search", lambda family: [(5, 3)])
    monkeypatch.setattr(flops, "MORE", [1000])
    monkeypatch.setattr(models, "WIDTH", 8)
    monkeypatch.setattr(models, "FIELDS", 4)
    monkeypatch.setattr(throughput, "ROUNDS", 1)
    monkeypatch.setattr(throughput, "POINTS", {"context": [(4, 2), (5, 2)], "candidate": [(4, 2), (4, 3)]})
    monkeypatch.setattr(serving_table, "calls", lambda n: {x: _short for x in serving_table.DRAWN})
    monkeypatch.setattr(serving_table, "BOUND", 1e6)  # so that no stall of a busy machine misses it
    monkeypatch.setattr(equations, "N", [1000])
    monkeypatch.setattr(mari, "ITEM", 32)
    monkeypatch.setattr(mari, "REDUCED", mari.Size([1, 3], [100], [mari.NEAT, 4]))
    monkeypatch.setattr(depth, "WIDTH", 20)
    monkeypatch.setattr(depth, "REDUCED", depth.Size([2], [50, 90], 100))


def _short() -> torch.Tensor:
    return torch.ones(64, 64) @ torch.ones(64, 64)


@pytest.mark.parametrize("name", ALL)
def test_every_reproduction_writes_its_files(name: str, tiny, tmp_path: Path, capsys):
    pytest.importorskip("matplotlib", reason="plots need the extra `bench`")
    timed = ["--seconds", "0.01"] if ALL[name].REPRODUCTION.timed else []
    threads = torch.get_num_threads()
    assert common.main(ALL[name].REPRODUCTION, ["--reduced", *timed, "--out", str(tmp_path)]) == 0
    assert torch.get_num_threads() == threads
    (file,) = tmp_path.glob(f"????-??-??-papers-{name}-reduced.json")
    record = json.loads(file.read_text())
    assert record["command"].startswith(f"python -m benchmarks.papers.{name} --reduced")
    assert record["machine"]["threads"] == 1 and record["machine"]["torch"] == torch.__version__
    text, shown = file.with_suffix(".md").read_text(), capsys.readouterr().out
    for part in ALL[name].REPRODUCTION.tables(record).values():
        assert part in text and part in shown and part.count("\n") > 1
    assert file.with_suffix(".svg").read_text().startswith("<?xml") and f"({file.stem}.svg)" in text
    assert "1 thread" in shown


def test_operations_alone_time_nothing(tiny, tmp_path: Path, monkeypatch):
    pytest.importorskip("matplotlib", reason="plots need the extra `bench`")
    monkeypatch.setattr(common, "interleaved", None)
    assert common.main(mari.REPRODUCTION, ["--reduced", "--counts", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text())["timed"] is False
    assert "operations only" in file.with_suffix(".md").read_text()


def test_wrong_scores_are_not_timed():
    with pytest.raises(AssertionError, match="scores differ by 1e-03"):
        checked(lambda: torch.tensor([1.001]), lambda: torch.tensor([1.0]))


# -- 1: RAD, Table 3


@pytest.fixture(scope="module")
def counts() -> dict[str, dict[str, dict[str, Work]]]:
    """Of RAD's two families in its own sizes."""
    own, n = flops.subjects(), flops.N
    variants = {
        "DCN": {"plain": own["DCN"].at("expand", n), "first": own["DCN"].at("first", n),
                "rDCN": own["rDCN"].at("full", n)},
        "DLRM": {"plain": own["DLRM"].at("expand", n), "FM": PairsOnly(own["DLRM"], n),
                 "FM + FC": own["DLRM"].at("first", n)},
    }  # fmt: skip
    return {
        family: {name: flops.parts(variant, chosen["plain"]) for name, variant in chosen.items()}
        for family, chosen in variants.items()
    }


@pytest.mark.parametrize(("family", "variant"), flops.PUBLISHED)
def test_table_3_comes_out_but_for_its_first_row(counts, family: str, variant: str):
    found = [flops.change(counts[family], variant, part) for part in ("interaction", "fc", "total")]
    if variant == "first":
        assert [round(1000 * x) for x in found] == [-118, -364, -150], "published: -18, -36, -20 %"
    else:
        assert tuple(round(100 * x) for x in found) == flops.PUBLISHED[family, variant]


def test_table_3_is_the_closed_forms(counts):
    """To the multiply-add; rDCN's context stream is read by one score, which is its last map's only reader."""
    dcn, dlrm = counts["DCN"], counts["DLRM"]
    c, t, layers = models.CONTEXT, models.CANDIDATE, models.LAYERS
    unchanged, changed = closed_forms.cross_network(c, t, layers), closed_forms.rdcn(c, t, layers)
    assert Work(*dcn["plain"]["interaction"]) == unchanged.plain
    assert Work(*dcn["first"]["interaction"]) == unchanged.split
    assert Work(*dcn["rDCN"]["interaction"]) == changed.split
    assert 1 - Fraction(dcn["rDCN"]["interaction"][1], dcn["plain"]["interaction"][1]) == 1 - Fraction(577, 1091) ** 2
    pairs, layer = closed_forms.gram(27, 4, 128), closed_forms.linear_over_pairs(27, 4, models.PAIRS_HIDDEN[0])
    rest = models.PAIRS_HIDDEN[0] * models.PAIRS_HIDDEN[1] + models.PAIRS_HIDDEN[1]
    assert Work(*dlrm["plain"]["interaction"]) == pairs.plain
    assert Work(*dlrm["FM"]["interaction"]) == Work(*dlrm["FM + FC"]["interaction"]) == pairs.split
    assert Work(*dlrm["FM"]["fc"]) == Work(*dlrm["plain"]["fc"]) == layer.plain + Work(0, rest)
    assert Work(*dlrm["FM + FC"]["fc"]) == layer.split + Work(0, rest)


def test_the_widths_that_fit():
    assert flops.search("DCN") == [models.CROSS_HIDDEN, (512, 256, 192), (512, 320)]
    found = flops.search("DLRM")
    assert models.PAIRS_HIDDEN in found and all(h[0] > 960 and h[1] == 40 for h in found)
    assert not flops.fits("DLRM", (512, 256)) and not flops.fits("DCN", (512, 256))


def test_connected_layers_are_those_of_the_models(counts):
    for family, hidden in (("DCN", models.CROSS_HIDDEN), ("DLRM", models.PAIRS_HIDDEN)):
        assert counts[family]["plain"]["fc"] == (0, flops.connected(family, hidden)[0])


# -- 3 and 5: load


def test_figure_2_counts_fewer_operations_as_the_closed_forms_say():
    k, m, n = 24, 4, 500
    subject = Subject.of(lambda: models.dlrm(k, m), (k, models.WIDTH), (m, models.WIDTH))
    first, second = models.PAIRS_HIDDEN
    form = closed_forms.gram(k, m, models.WIDTH) + closed_forms.linear_over_pairs(k, m, first)
    rest = Work(0, first * second + second)
    assert counted(subject.at("expand", n)) == form.plain + rest
    assert counted(subject.at("first", n)) == form.split + rest


def test_a_closed_loop_serves_every_client_and_ends():
    before, served = threading.active_count(), []
    assert load.closed_loop(lambda: served.append(1), 0.05, in_flight=3) > 0
    assert len(served) > 3 and threading.active_count() == before


def test_an_open_loop_answers_in_order_and_counts_waiting():
    """Far faster than it can be served, requests wait for all before them; arrivals are those of the seed."""
    answered = []
    taken = load.open_loop(lambda: answered.append(1), 1e9, 50)
    assert len(taken) == len(answered) == 50 and (taken > 0).all()
    slow = load.open_loop(partial(_busy, 0.002), 1e6, 10)
    assert (slow[1:] > slow[:-1]).all() and slow[-1] > 10 * 2


def _busy(seconds: float) -> None:
    threading.Event().wait(seconds)


def test_the_highest_rate_is_found_by_bisection(monkeypatch):
    monkeypatch.setattr(load, "p99", lambda call, rate, count: rate)  # ms, as it were
    assert load.highest_rate(lambda: None, bound=300.0, service=1.0, count=1, steps=20) == pytest.approx(300, abs=0.01)
    assert load.highest_rate(lambda: None, bound=0.0, service=1.0, count=1) == 0.0


# -- 6: MaRI


def test_fusion_saves_what_mari_says():
    model = mari.Fusion(10 * mari.ITEM, mari.ITEM, 8, 2)
    hoisted = mari.hoisted_levels(model.eval(), 2000)
    ratio = Fraction(*(hoisted[level].plan.cost.multiply_adds for level in ("expand", "linear")))
    assert ratio == Fraction(11 * 2000, 10 + 2000) and round(float(ratio), 2) == 10.95


@pytest.mark.parametrize("pieces", [2, 6, 64])
def test_the_layout_costs_nothing(pieces: int):
    """As many operators and multiply-adds as neat; equal scores, here and by the splits written by hand."""
    model = mari.Fusion(96, 64, 5, pieces).eval()
    assert sorted(model.columns(0) + model.columns(1)) == list(range(160)) and len(list(model.pieces())) == pieces
    hoisted = mari.hoisted_levels(model, 1000)
    assert {level: mari.operators(hoisted[level]) for level in ("linear", "full")} == {"linear": 2, "full": 2}
    assert counted(hoisted["linear"]) == closed_forms.linear(96, 64, 5).split
    with torch.no_grad():
        calls, original = mari._calls(model, hoisted, torch.randn(1, 96), torch.randn(7, 64))
        assert set(calls) == {*mari.LEVELS, "sliced", "gathered"} and original().shape == (7, 5)


# -- 7: depth


@pytest.mark.parametrize("layers", [1, 2])
def test_depth_counts_the_closed_forms(layers: int, monkeypatch):
    monkeypatch.setattr(depth, "WIDTH", 40)
    record = {"cells": [depth._cell(layers, 70, 1000, common.Options(counts=True))]}
    c, t = 28, 12
    (work,) = [cell["multiply_adds"]["1000"] for cell in record["cells"]]
    unchanged, changed = closed_forms.cross_network(c, t, layers), closed_forms.rdcn(c, t, layers)
    head = closed_forms.linear(c, t, 1)
    assert work["expand"] == (unchanged.plain + head.plain).of(1000)
    assert work["rDCN"] == (changed.split + head.split).of(1000)
    if layers > 1:
        assert work["first"] == (unchanged.split + head.plain).of(1000)
    assert work["rDCN"] <= work["full"] <= work["first"]


def test_where_full_reaches_rdcn():
    def cell(share: int, full: int) -> dict:
        return {"layers": 2, "share": share, "multiply_adds": {"9": {"expand": 1000, "full": full, "rDCN": 100}}}

    cells = [cell(50, 100), cell(70, 191), cell(80, 190), cell(95, 150)]
    record = {"cells": cells, "timed": False}
    assert depth.measured(record) == ["operations, N = 9"]
    assert depth.reached(record, "operations, N = 9") == {2: 80}, "50 % is one lucky cell"
    assert depth.reached({**record, "cells": cells[1:2]}, "operations, N = 9") == {2: None}


# -- all of it, and the page


def test_all_run_one_after_the_other(monkeypatch, tmp_path: Path, capsys):
    commands = []

    def run(command: list[str], cwd: Path) -> object:
        commands.append(command[2:])
        return type("Done", (), {"returncode": int("papers.mari" in command[2])})

    monkeypatch.setattr(everything.subprocess, "run", run)
    assert everything.main(["--only", "flops", "mari", "--out", str(tmp_path)]) == 1
    assert commands == [[f"benchmarks.papers.{x}", "--out", str(tmp_path), "--reduced"] for x in ("flops", "mari")]
    assert "failed: ['mari']" in capsys.readouterr().out
    assert {*ALL} <= {*everything.present()} <= {*everything.NAMES}


def test_the_page_is_as_its_results():
    text = page.PAGE.read_text()
    blocks = page.BLOCK.findall(text)
    assert {name for name, _ in blocks} == {*everything.NAMES}
    assert page.filled(text) == text, "run: python -m benchmarks.papers.page"


def test_a_block_is_filled_from_the_newest_result(tmp_path: Path):
    text = "a\n<!-- equations: equations -->\nold\n<!-- end -->\n<!-- accuracy: page -->\n<!-- end -->\nb\n"
    assert "Not measured yet: `python -m benchmarks.papers.equations`" in page.filled(text, tmp_path)
    for day, about in (("2026-01-01", "older"), ("2026-01-02", "newer")):
        row = {"name": "e", "about": about, "counted": {"split": {"1000": 1}}, "saved": 0.5, "plain": 2, "split": 1}
        (tmp_path / f"{day}-papers-equations.json").write_text(json.dumps({"equations": [row]}))
        (tmp_path / f"{day}-papers-accuracy.md").write_text(f"# Title\n\n{about} ![x](x.svg)\n")
    found = page.filled(text, tmp_path)
    assert "| e | newer | 2 | 1 | 1 | -50.0 % |" in found and "older" not in found and "old\n" not in found
    assert "newer ![x](../benchmarks/results/x.svg)" in found and page.filled(found, tmp_path) == found


def test_comb_of_fields_is_what_the_layers_read():
    assert models.dlrm().top[0].in_features == comb(31, 2)
