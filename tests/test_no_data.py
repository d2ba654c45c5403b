"""Files carry no data but what they say: inputs hold marked values, and no file that is written has one of them.

What is meant to hold inputs is named here and left out: a request for the server (`demo`, examples), the columns that a
scoring job is asked to keep, and a file that is saved with `example=True`. `calibrate` writes of a machine alone.
"""

from __future__ import annotations

import copy
import gc
import io
import json
import warnings
import zipfile
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import serving
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

import rankhoist
from rankhoist import cli, hoist, load, verify
from rankhoist.bench import suite
from rankhoist.bench.models import Layers
from rankhoist.bench.scenarios import Scenario
from rankhoist.bench.suite import Cell
from rankhoist.errors import CarriedDataWarning
from rankhoist.lab import train
from rankhoist.lab.data import RankingData, generate_request_log
from rankhoist.lab.demo import run as demo
from rankhoist.lab.train import run as training
from rankhoist.runtime import container, mapped
from rankhoist.runtime.contents import contents
from rankhoist.score import Options, run

ID = 0x5EC2_E7DA_7A00_0000  # and the row in the last two bytes
NUMBER = 0.7311033606529236  # a float32
HISTORY = [17, 4, 99, 3, 61, 28, 5]
QUIET = Console(file=io.StringIO())


# --------------------------------------------------------------------------------------------------
# Marks, and the search for them
# --------------------------------------------------------------------------------------------------


def little_endian(*values: Tensor) -> list[bytes]:
    return [value.numpy().tobytes() for value in values]


MARKS = {
    "an id": [*little_endian(torch.tensor(ID))[0][2:].split(b"\0\0"), str(ID)[:12].encode()],
    "a number": [*little_endian(torch.tensor([NUMBER] * 2), torch.tensor([NUMBER] * 2).double()), b"0.731103"],
    "a history": [*little_endian(torch.tensor(HISTORY)), b"17, 4, 99, 3", b"17,4,99,3"],
}


def marks(data: bytes) -> set[str]:
    """Which marks are in a file, as bytes or as text, and in the members of an archive."""
    found = {name for name, forms in MARKS.items() if any(form in data for form in forms)}
    if data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found |= {mark for name in archive.namelist() for mark in marks(archive.read(name))}
    if data[:4] == b"PAR1":
        stream = io.BytesIO()
        table = pq.read_table(io.BytesIO(data))
        with pa.ipc.new_stream(stream, table.schema) as out:
            out.write_table(table)  # not compressed
        found |= marks(stream.getvalue())
    return found


def marks_in(folder: Path) -> dict[str, set[str]]:
    """File -> its marks, of all files that have some."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files, "nothing was written"
    found = {str(path.relative_to(folder)): marks(path.read_bytes()) for path in files}
    return {name: own for name, own in found.items() if own}


class Ranker(nn.Module):
    """Hashed ids, ids of a table, numbers; and a buffer that it was trained from and does not read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user, self.item, self.tag = nn.Embedding(50, 8), nn.Embedding(70, 8), nn.Embedding(30, 4)
        self.hidden, self.norm, self.top = nn.Linear(25, 16), nn.BatchNorm1d(16), nn.Linear(16, 1)
        self.register_buffer("log", torch.full((100, 3), NUMBER))

    def forward(self, user: Tensor, mood: Tensor, item: Tensor, tag: Tensor, price: Tensor) -> Tensor:
        parts = [self.user(user % 50), mood, self.item(item % 70), self.tag(tag), price]
        return self.top(torch.relu(self.norm(self.hidden(torch.cat(parts, 1))))).squeeze(1)


CONTEXT = ["user", "mood"]


def log(rows: int) -> dict[str, Tensor]:
    """A data set of marked inputs; only `tag`, the ids of a table, has none."""
    ids, number = ID + torch.arange(rows), partial(torch.full, fill_value=NUMBER)
    return {"user": ids, "mood": number((rows, 3)), "item": ids + 7, "tag": ids % 30, "price": number((rows, 2))}


def example() -> dict[str, Tensor]:
    """Eight rows, as a view of the whole."""
    return {name: rows[:8] for name, rows in log(1000).items()}


def build() -> tuple[nn.Module, dict[str, Tensor]]:
    """For the command line."""
    return Ranker().eval(), example()


@pytest.fixture(scope="module")
def hoisted() -> rankhoist.HoistedModel:
    return hoist(*build(), context=CONTEXT)


@pytest.fixture
def artifact(hoisted, tmp_path) -> Path:
    hoisted.save(tmp_path / "ranker.rankhoist", verify(hoisted, build()[0], candidates=[7]))
    return tmp_path / "ranker.rankhoist"


def exported(rows: dict[str, Tensor], path: Path) -> Path:
    """An archive with these rows for an example."""
    dim = torch.export.Dim("rows", min=2, max=1000)
    model = Ranker().eval()
    del model.log
    torch.export.save(torch.export.export(model, (), rows, dynamic_shapes={name: {0: dim} for name in rows}), path)
    return path


def test_the_search_finds_what_is_there(hoisted, tmp_path):
    """Otherwise what follows says nothing."""
    assert marks(str(example()["user"].tolist()).encode()) == {"an id"}
    assert marks(json.dumps(example()["mood"].tolist()).encode()) == {"a number"}
    assert marks(str(HISTORY).encode()) == marks(torch.tensor([1, *HISTORY]).numpy().tobytes()) == {"a history"}
    exported({name: rows.clone() for name, rows in example().items()}, tmp_path / "a.pt2")
    hoisted.save(tmp_path / "b.rankhoist", example=True)
    pq.write_table(pa.table({"user": example()["user"].numpy()}), tmp_path / "c.parquet")
    torch.save(example(), tmp_path / "d.pt")
    both = {"an id", "a number"}
    assert marks_in(tmp_path) == {"a.pt2": both, "b.rankhoist": both, "c.parquet": {"an id"}, "d.pt": both}


# --------------------------------------------------------------------------------------------------
# Every kind of file
# --------------------------------------------------------------------------------------------------


def test_a_saved_model(artifact, tmp_path):
    load(artifact).save(tmp_path / "again.rankhoist")
    mapped.unpack(artifact, tmp_path / "mapped")
    mapped.load_mapped(tmp_path / "mapped").save(tmp_path / "third.rankhoist", example=True)  # it has made-up ones
    assert not marks_in(tmp_path)


def test_what_commands_write(artifact, tmp_path, monkeypatch):
    pt2 = exported({name: torch.zeros_like(rows) for name, rows in example().items()}, tmp_path / "ranker.pt2")
    model, context = f"{__name__}:build", [f"--context={name}" for name in CONTEXT]
    commands = [
        ["hoist", model, *context, "--level", "expand", "--json", "hoist.json", "--out", "from-hoist.rankhoist"],
        ["report", model, *context, "--json", "report.json", "--html", "report.html", "--svg", "report.svg"],
        ["report", str(artifact), "--html", "saved.html", "--svg", "saved.svg"],
        ["verify", model, *context, "--json", "verify.json"],
        ["verify", str(pt2), *context, "--json", "verify-pt2.json"],
        ["show", str(artifact), "--json", "show.json"],
    ]
    monkeypatch.chdir(tmp_path)
    for command in commands:
        assert cli.main(command) == cli.DONE, command
    assert sum(1 for path in tmp_path.iterdir() if path.is_file()) == 12
    assert not marks_in(tmp_path)


def test_what_is_printed(hoisted, artifact):
    shown = [hoisted.report(), hoisted.plans, hoisted, contents(artifact), verify(hoisted, build()[0], candidates=[7])]
    assert not marks("\n".join(map(str, shown)).encode())


def test_onnx_models(hoisted, tmp_path):
    pytest.importorskip("onnx")
    hoisted.export_onnx(tmp_path, several=True)
    assert not marks_in(tmp_path)


@pytest.mark.slow
def test_packages(hoisted, tmp_path):
    hoisted.package(tmp_path, several=True)
    assert not marks_in(tmp_path)


def test_a_scoring_job(artifact, tmp_path):
    columns = {name: column(rows) for name, rows in log(600).items()}
    columns["user"], columns["mood"] = columns["user"].take(pa.array([i // 6 for i in range(600)])), columns["mood"]
    table = pa.table({"request_id": pa.array([i // 6 for i in range(600)]), **columns})
    pq.write_table(table, tmp_path / "rows.parquet")
    out = tmp_path / "scores"
    run(Options(str(artifact), str(out), candidates=[str(tmp_path / "rows.parquet")], part_rows=200), console=QUIET)
    assert {path.name for path in out.iterdir()} >= {"_job.json", "_SUCCESS", "part-000000.parquet"}
    assert not marks_in(out) and marks((tmp_path / "rows.parquet").read_bytes())
    kept = Options(str(artifact), str(tmp_path / "kept"), candidates=[str(tmp_path / "rows.parquet")], keep=["item"])
    run(kept, console=QUIET)
    assert marks_in(tmp_path / "kept") == {"part-000000.parquet": {"an id"}}, "this is what --keep is for"


def column(rows: Tensor) -> pa.Array:
    flat = pa.array(rows.reshape(-1).numpy())
    return flat if rows.dim() == 1 else pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])


def test_a_server_and_a_load_test(artifact, tmp_path):
    rows = {name: value[:5].tolist() for name, value in log(5).items()}
    sides = {name: rows[name][0] for name in CONTEXT}, {name: rows[name] for name in rows if name not in CONTEXT}
    request = dict(zip(("context", "candidates"), sides, strict=True))
    wrong = [
        {**request, "candidates": {**sides[1], "tag": rows["item"]}}, {**request, "candidates": {**sides[1], "tag": 1}},
        {**request, "candidates": {**sides[1], str(ID): rows["item"]}}, {**request, "context": {"user": [NUMBER]}},
        {**request, "top_k": -ID}, json.dumps(request)[:-20].encode(), {**request, "context_key": NUMBER},
    ]  # fmt: skip
    (tmp_path / "requests.json").write_text(json.dumps(request))
    with serving.serving(artifact, "--access-log", "--log-level", "debug") as served:
        answers = [served.call("/v1/models/ranker/rank", body) for body in [request, *wrong]]
        assert [answer.status // 100 for answer in answers] == [2] + [4] * len(wrong), [a.body for a in answers]
        assert "an id" in marks(answers[1].body), "whoever asked is told which id"
        url, files = f"http://127.0.0.1:{served.port}", ["--json", str(tmp_path / "load.json")]
        load_test = ["loadtest", url, "--model", "ranker", "--requests", str(tmp_path / "requests.json"), *files]
        assert cli.main([*load_test, "--seconds", "0.3", "--warm-up", "0"]) == cli.DONE
        assert len([line for line in served.lines if line["event"] == "request"]) > len(answers)
    assert not marks(json.dumps(served.lines).encode())
    assert not marks((tmp_path / "load.json").read_bytes())


def test_a_benchmark(tmp_path, monkeypatch):
    marked = {"context": torch.full((1, 8), NUMBER), "candidate": torch.full((9, 4), NUMBER)}
    monkeypatch.setattr(Scenario, "inputs", lambda self, rows, count: {n: x[:1].expand(
        rows if n == "context" else count, -1) for n, x in marked.items()})  # fmt: skip
    monkeypatch.setattr(
        suite, "quick_cells", lambda: [Cell(Scenario("tiny", lambda: Layers(12, 8, 1), (8,), (4,), dense=True), 9)]
    )
    assert cli.main(["bench", "--seconds", "0.01", "--out", str(tmp_path), "--no-plots"]) == cli.DONE
    assert not marks_in(tmp_path)


@pytest.fixture
def data() -> RankingData:
    """A small request log: everybody's statistics and histories are marked."""
    made = generate_request_log(3000)
    made.features["user_stats"][:] = NUMBER
    made.features["history"][:, : len(HISTORY)] = torch.tensor(HISTORY)
    return made


def test_a_training_run(data, tmp_path):
    settings = train.Settings(epochs=1)
    plots = bool(pytest.importorskip("matplotlib"))
    options = training.Options("dcnv2", tmp_path, settings, seeds=1, scale=0.125, plots=plots, hoisted=True)
    assert training.run(options, data, QUIET)
    model = train.build_model("dcnv2", data, scale=0.125)
    train.train(model, data, settings, progress=False, checkpoint=tmp_path / "checkpoint.pt", save_every=0.0)
    assert {path.name for path in tmp_path.iterdir()} >= {*training.FILES, "checkpoint.pt", "seed-0"}
    assert not marks_in(tmp_path)


def test_a_demo(data, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "load_data", lambda *_: data)
    monkeypatch.setattr(demo, "build_model", partial(train.build_model, scale=0.125))
    monkeypatch.setattr(demo, "SECONDS_OF_TIMING", 0.01)
    monkeypatch.setattr(demo, "MODEL_NAMES", ("dcnv2",))
    assert demo.main(out=str(tmp_path), candidates=50) == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"demo.json", "dcnv2.pt2", "dcnv2.rankhoist"}
    assert marks_in(tmp_path) == {"request.json": {"a number", "a history"}}, "one request, which is what it says"


# --------------------------------------------------------------------------------------------------
# What enters, what is written in its place, what is still there
# --------------------------------------------------------------------------------------------------


def test_a_slice_of_a_gigabyte_is_not_kept():
    whole = torch.empty(2**20, 256)  # no memory is used before it is written to
    hoisted = hoist(Layers(260, 8, 1).eval(), (whole[:8], torch.randn(8, 4)), context=["context"])
    kept = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in hoisted.example.values()}
    assert sum(kept.values()) < 2**20 and whole.untyped_storage().data_ptr() not in kept
    held = StorageWeakRef(whole.untyped_storage())
    del whole
    gc.collect()
    assert held.expired()
    assert hoisted.program is not None and hoisted.program.example["context"].untyped_storage().nbytes() < 2**20


def test_an_example_that_its_owner_changes_is_as_it_was():
    rows = torch.randn(8, 8), torch.randn(8, 4)
    hoisted, before = hoist(Layers(12, 8, 1).eval(), rows, context=["context"]), rows[0].clone()
    rows[0].zero_()
    assert torch.equal(hoisted.example["context"], before)


def test_an_archive_that_carries_more_than_its_rows_is_read_and_named(tmp_path):
    carrying = exported(example(), tmp_path / "carrying.pt2")
    extra = (1000 - 8) * sum(rows[:1].numel() * rows.element_size() for rows in example().values())
    with pytest.warns(CarriedDataWarning, match=rf"carrying\.pt2 carries {extra:,} bytes .* rows\[:8\]\.clone\(\)"):
        hoisted = hoist(carrying, None, context=CONTEXT)
    assert all(x.untyped_storage().nbytes() == x.numel() * x.element_size() for x in hoisted.example.values())
    own = exported({name: rows.clone() for name, rows in example().items()}, tmp_path / "own.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("error", CarriedDataWarning)
        hoist(own, None, context=CONTEXT)


@pytest.mark.parametrize("name", ["dcnv2", "deepfm"])
def test_an_archive_of_a_trainer_is_hardly_larger_than_its_weights(name, data, tmp_path):
    model = train.build_model(name, data)
    training.export(model.eval(), data, tmp_path / "model.pt2")
    weights = sum(x.numel() * x.element_size() for x in model.state_dict().values())
    assert (tmp_path / "model.pt2").stat().st_size < 1.1 * weights
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        assert not [name for name in archive.namelist() if b".py" in archive.read(name)], "no file of this machine"


def test_show_says_whose_rows_are_in_a_file(hoisted, artifact, tmp_path, capsys):
    assert cli.main(["show", str(artifact)]) == cli.DONE
    assert "8 example rows, made up" in capsys.readouterr().out
    options = ["--context=user", "--context=mood", "--no-verify", "--level", "expand", "--example"]
    assert cli.main(["hoist", f"{__name__}:build", *options, "--out", str(tmp_path / "given.rankhoist")]) == cli.DONE
    capsys.readouterr()
    assert cli.main(["show", str(tmp_path / "given.rankhoist"), "--json", str(tmp_path / "given.json")]) == cli.DONE
    assert "8 example rows, as they were given to hoist" in capsys.readouterr().out
    assert json.loads((tmp_path / "given.json").read_text())["example"] == {"rows": 8, "made_up": False}


def test_files_from_before_there_were_made_up_rows(hoisted, tmp_path):
    hoisted.save(tmp_path / "old", example=True)
    with container.opened(tmp_path / "old") as file:
        members = {name: file.read(name) for name in container.MEMBERS}
    model = json.loads(members["model.json"])
    assert model.pop("made_up") is False
    container.write(tmp_path / "old", {**members, "model.json": json.dumps(model).encode()})
    loaded = load(tmp_path / "old")
    assert not loaded.interface.made_up and torch.equal(loaded.example["user"], example()["user"])
    assert "as they were given" in str(contents(tmp_path / "old"))
    loaded.save(tmp_path / "new")
    assert not marks((tmp_path / "new").read_bytes()) and load(tmp_path / "new").interface.made_up


def test_made_up_rows_do_all_that_rows_are_for(hoisted, artifact):
    loaded = load(artifact)
    assert loaded.interface.made_up and {n: x.shape for n, x in loaded.example.items()} == {
        n: x.shape for n, x in hoisted.example.items()
    }
    assert loaded.example["tag"].max() < 30 and loaded.example["mood"].min() >= 0
    loaded.warm_up(requests=[1, 3])
    assert verify(loaded, build()[0], candidates=[1, 7], requests=[1, 3])


class Offset(nn.Module):
    """Ids that are computed, of which nobody knows the bound; a mask that is never empty; a length of 1 or more."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.top = nn.Embedding(20, 4), nn.Linear(5, 1)

    def forward(self, user: Tensor, length: Tensor, seen: Tensor, item: Tensor) -> Tensor:
        mask = torch.where(seen, 0.0, -torch.inf).softmax(1)
        mean = mask.sum(1, keepdim=True) / length[:, None]
        return self.top(torch.cat([self.table(user - 1) + self.table(item + 10), mean], 1))


def test_ids_that_are_computed(tmp_path):
    seen = torch.rand(8, 6) < 0.5
    seen[:, 0] = True
    rows = torch.arange(1, 9), torch.arange(1, 9) % 5 + 1, seen, torch.arange(8)
    hoisted = hoist(Offset().eval(), rows, context=["user", "length", "seen"])
    hoisted.save(tmp_path / "x")
    loaded = load(tmp_path / "x")
    made = loaded.example
    assert made["user"].min() >= 1 and made["length"].min() >= 1 and made["seen"][:, 0].all()
    assert made["user"].max() <= 8 and made["item"].max() <= 4, "no larger than a power of two that the example reaches"
    assert hoisted(*(made[n][:1] for n in ("user", "length", "seen")), made["item"]).isfinite().all()


def test_rows_that_cannot_be_made_up_are_left_out(tmp_path):
    class Far(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(3, 4)

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return (self.table(user - 1000) * self.table(item)).sum(1)

    hoisted = hoist(Far().eval(), (torch.tensor([1000, 1002]), torch.tensor([0, 2])), context=["user"])
    hoisted.save(tmp_path / "x")
    assert not load(tmp_path / "x").example and "no example rows" in str(contents(tmp_path / "x"))
    hoisted.save(tmp_path / "x", example=True)
    assert load(tmp_path / "x").example["user"].tolist() == [1000, 1002]


def test_buffers_that_nobody_reads_are_not_written(hoisted, artifact):
    model, loaded = build()[0], load(artifact)
    assert {"log", "norm.num_batches_tracked"} == set(hoisted.state_dict()) - set(loaded.state_dict())
    assert set(hoisted.state_dict()) == set(model.state_dict())
    state = {name: value * 2 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    new = copy.deepcopy(hoisted)
    for one in (loaded, new):
        one.update_weights(state)  # a trainer's, with all names
    given = {name: rows[:1] if name in CONTEXT else rows for name, rows in example().items()}
    assert torch.equal(loaded(**given), new(**given))
    loaded.update_weights(loaded.state_dict())
