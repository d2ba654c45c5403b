"""Scoring files whose candidates are items, in files of their own or such that come again: scores are equal."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import assert_equal
from rich.console import Console
from scoring import Log, arrow, changed, write
from torch import Tensor, nn

import rankhoist
from rankhoist.cli import main
from rankhoist.errors import InputError, ScoringError
from rankhoist.score import Options, run
from rankhoist.score.files import Cursor, Files
from rankhoist.score.job import JOB
from rankhoist.score.named import COMPARED
from rankhoist.score.stocked import Repeats, Seen, keys

QUIET = Console(quiet=True)
ITEMS, SIZES = 12, [7, 0, 40, 1, 25, 60, 3]
CONTEXT = ("user", "packed.context")


class Ranker(nn.Module):
    """An item tower; a packed input of all three sides, and a place that is the pair's."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, 4), nn.Embedding(ITEMS, 8)
        self.tower = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 8))
        self.top = nn.Linear(4 + 8 + 8 + 4 + 1, 1)

    def forward(self, user: Tensor, item: Tensor, text: Tensor, packed: Tensor, place: Tensor) -> Tensor:
        x = torch.cat([self.users(user), self.items(item), self.tower(text), packed, place], 1)
        return self.top(x).squeeze(1)


def rows(count: int, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "user": torch.randint(50, (count,), generator=g), "item": torch.randint(ITEMS, (count,), generator=g),
        "text": torch.randn(count, 64, generator=g), "packed": torch.randn(count, 4, generator=g),
        "place": torch.rand(count, 1, generator=g),
    }  # fmt: skip


@pytest.fixture(scope="module")
def model() -> rankhoist.HoistedModel:
    torch.manual_seed(0)
    given = {"user": True, "packed": [1]}, {"item": True, "text": True, "packed": [0, 3]}
    return rankhoist.hoist(Ranker().eval(), tuple(rows(8, 0).values()), context=given[0], item=given[1])


@pytest.fixture(scope="module")
def artifact(model, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.rankhoist"
    model.save(path)
    return str(path)


class Pairs:
    """Requests whose candidates are some of the items."""

    def __init__(self, model: rankhoist.HoistedModel) -> None:
        self.offsets = [0, *np.cumsum(SIZES).tolist()]
        count, own = self.offsets[-1], rows(len(SIZES), 1)
        g = torch.Generator().manual_seed(2)
        self.items = {n: x for n, x in rows(ITEMS, 3).items() if n in ("item", "text", "packed")}
        self.drawn = torch.randint(ITEMS, (count,), generator=g)
        self.context = {"user": own["user"], "packed.context": own["packed"][:, [1]]}
        self.place, pair = torch.rand(count, 1, generator=g), torch.randn(count, 1, generator=g)
        mine = {n: x[self.drawn] for n, x in self.items.items()}
        self.pair = {"place": self.place, "packed.pair": pair}
        whole = torch.stack([mine["packed"][:, 0], pair[:, 0], mine["packed"][:, 3]], 1)
        self.whole = {"item": mine["item"], "text": mine["text"], "packed.candidate": whole, "place": self.place}
        split = rankhoist.Split(self.context["packed.context"], whole)
        args = (self.context["user"], mine["item"], mine["text"], split, self.place)
        self.expected = model(*args, request_offsets=self.offsets)

    def names(self, kind: str) -> pa.Array:
        return pa.array([f"sku {i}" if kind == "texts" else 7 * i for i in self.drawn.tolist()])

    def items_table(self, kind: str) -> pa.Table:
        ids = pa.array([f"sku {i}" if kind == "texts" else 7 * i for i in range(ITEMS)])
        columns = {
            "item": self.items["item"],
            "text": self.items["text"],
            "packed.item": self.items["packed"][:, [0, 3]],
        }
        return pa.table({"sku": ids, **{n: arrow(x) for n, x in columns.items()}})

    def log(self, candidate: dict[str, Tensor]) -> Log:
        return Log(self.context, candidate, self.offsets)


def table(pairs: Pairs, layout: str, candidate: dict[str, Tensor], ids: pa.Array | None) -> pa.Table:
    """The candidates in one of the layouts, with their items' ids."""
    log = pairs.log(candidate)
    made = {"nested": log.nested, "repeated": log.repeated, "joined": log.candidates_table}[layout]()
    if ids is not None and layout == "nested":
        ids = pa.ListArray.from_arrays(pa.array(pairs.offsets, pa.int32()), ids)
    return made if ids is None else made.append_column("sku", ids)


def scored(given: Options, **how) -> list[float]:
    run(given, console=QUIET, **how)
    return pq.read_table(given.out)["scores"].to_pylist()


def options(pairs: Pairs, artifact: str, folder: Path, layout: str, candidates: pa.Table, **more) -> Options:
    flag = "requests" if layout == "nested" else "candidates"
    files = {flag: [write(candidates, folder / flag, files=2)]}
    if layout == "joined":
        files["requests"] = [write(pairs.log(pairs.pair).requests_table(), folder / "requests")]
    return Options(artifact, str(folder / "scores"), **files, part_rows=50, **more)


@pytest.mark.parametrize(("layout", "kind"), [("nested", "texts"), ("repeated", "numbers"), ("joined", "texts")])
def test_candidates_name_items_of_files(layout: str, kind: str, model, artifact: str, tmp_path: Path):
    pairs = Pairs(model)
    items = write(pairs.items_table(kind), tmp_path / "items", files=2, group=7)
    candidates = table(pairs, layout, pairs.pair, pairs.names(kind))
    given = options(pairs, artifact, tmp_path, layout, candidates, catalogue=[items], item_id="sku", keep=["sku"])
    assert_equal(torch.tensor(scored(given)), pairs.expected)
    assert pq.read_table(given.out)["sku"].to_pylist() == pairs.names(kind).to_pylist()
    assert not list(Path(given.out).glob("_catalogue*"))
    before = pq.read_table(given.out)
    (Path(given.out) / "part-000001.parquet").unlink()
    scored(given)
    assert pq.read_table(given.out).equals(before)
    with pytest.raises(ScoringError, match="was begun with --catalogue"):
        run(Options(artifact, given.out, given.requests, given.candidates, part_rows=50, keep=["sku"]), console=QUIET)


def test_a_store_may_be_there(model, artifact: str, tmp_path: Path):
    pairs = Pairs(model)
    items = {**pairs.items, "packed": pairs.items["packed"][:, [0, 3]]}
    model.catalogue(items, ids=7 * torch.arange(ITEMS), path=tmp_path / "store")
    candidates = table(pairs, "repeated", pairs.pair, pairs.names("numbers"))
    given = options(
        pairs, artifact, tmp_path, "repeated", candidates, catalogue=[str(tmp_path / "store")], item_id="sku"
    )
    assert_equal(torch.tensor(scored(given, workers=2)), pairs.expected)
    assert (tmp_path / "store" / "index.npz").exists()


@pytest.mark.parametrize("layout", ["nested", "repeated", "joined"])
def test_items_that_come_again_are_computed_once(layout: str, model, artifact: str, tmp_path: Path, monkeypatch):
    """Where that pays; all rows have all inputs, and none has an id."""
    made: list[int] = []
    of = Repeats.of

    def watched(self: Repeats, block):
        stocked = of(self, block)
        made.append(len(stocked.store))
        return stocked

    monkeypatch.setattr(Repeats, "of", watched)
    pairs = Pairs(model)
    given = options(pairs, artifact, tmp_path, layout, table(pairs, layout, pairs.whole, None))
    assert_equal(torch.tensor(scored(given)), pairs.expected)
    assert made and max(made) <= ITEMS


def test_items_that_do_not_come_again_are_not_looked_for(model, artifact: str, tmp_path: Path):
    pairs = Pairs(model)
    pairs.whole["text"] = torch.randn(len(pairs.drawn), 64)
    given = options(pairs, artifact, tmp_path, "repeated", table(pairs, "repeated", pairs.whole, None))
    scored(given)
    assert '"repeats": false' in (Path(given.out) / JOB).read_text()


def test_two_items_are_the_same_where_all_of_their_bits_are():
    same = {"a": torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, 1.0]]), "b": torch.tensor([1, 1, 1])}
    other = {"a": same["a"][:, 1], "b": torch.tensor([1, 2, 1])}
    for given in (same, other, {"a": torch.tensor([[1, 2], [2, 1], [1, 2]])}):
        assert [x.tolist() for x in Seen().add(keys(given))] == [[0, 1, 0], [0, 1]]
    assert len(keys({"a": torch.empty(0, 3)})) == 0
    assert [x.tolist() for x in Seen().add(keys({"a": torch.empty(3, 0)}))] == [[0, 0, 0], [0]]


def test_items_are_numbered_as_they_come():
    seen, g = Seen(), np.random.default_rng(0)
    known: dict[int, int] = {}
    for _ in range(4):
        drawn = g.integers(30, size=20)
        numbers, first = seen.add(keys({"a": torch.from_numpy(drawn)}))
        new = list(dict.fromkeys(int(x) for x in drawn if x not in known))
        known |= {x: len(known) + i for i, x in enumerate(new)}
        assert numbers.tolist() == [known[x] for x in drawn] and drawn[first].tolist() == new
    assert seen.count == len(known) < 30 + 1


def test_an_id_outside_of_its_table_is_named(model, artifact: str, tmp_path: Path):
    pairs = Pairs(model)
    pairs.whole["item"][60] = ITEMS
    given = options(pairs, artifact, tmp_path, "repeated", table(pairs, "repeated", pairs.whole, None))
    with pytest.raises(ScoringError, match=f"row 60, column 'item': {ITEMS} is not in the model's vocabulary"):
        scored(given)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda ids: [*ids[:59], "nothing", *ids[60:]], "row 59, column 'sku': no item 'nothing' in the catalogue"),
        (lambda ids: [*ids[:59], None, *ids[60:]], "row 59, column 'sku': a null"),
        (lambda ids: [0.5] * len(ids), "an item's id is a number or a text"),
    ],
)
def test_an_id_that_is_none_is_named(change, said: str, model, artifact: str, tmp_path: Path):
    pairs = Pairs(model)
    items = write(pairs.items_table("texts"), tmp_path / "items")
    candidates = table(pairs, "repeated", pairs.pair, pa.array(change(pairs.names("texts").to_pylist())))
    given = options(pairs, artifact, tmp_path, "repeated", candidates, catalogue=[items], item_id="sku")
    with pytest.raises(ScoringError, match=said):
        scored(given)


# -- rows of one id


def replaced(pairs: Pairs, given: pa.Table, column: str, changes: dict[int, object]) -> pa.Table:
    """With other values of some candidates."""
    field, values = given.schema.field(column), given[column].to_pylist()
    nested = len(values) < pairs.offsets[-1]
    for place, value in changes.items():
        request = int(np.searchsorted(pairs.offsets, place, side="right")) - 1
        row, at = (values[request], place - pairs.offsets[request]) if nested else (values, place)
        row[at] = value
    return given.set_column(given.schema.get_field_index(column), field, pa.array(values, field.type))


def firsts(pairs: Pairs, parts: list[tuple[int, int]]) -> set[int]:
    """The candidates that are the first of their item in a part."""
    return {low + int(i) for low, end in parts for i in np.unique(pairs.drawn[low:end], return_index=True)[1]}


def by_id(pairs: Pairs, artifact: str, folder: Path, layout: str, candidates: pa.Table, **more) -> Options:
    return options(pairs, artifact, folder, layout, candidates, item_id="sku", **more)


@pytest.mark.parametrize(
    ("layout", "kind", "block"),
    [("nested", "texts", 16), ("repeated", "numbers", 16), ("joined", "texts", 16), ("nested", "numbers", 500),
     ("joined", "numbers", 500), ("repeated", "texts", 500)],
)  # fmt: skip
def test_rows_of_one_id_share_the_inputs_of_the_first(layout, kind, block, artifact, tmp_path, monkeypatch):
    """Those of the others are not even read: they are nulls, and an id outside of its table."""
    monkeypatch.setattr("rankhoist.score.layouts.BLOCK", block)
    monkeypatch.setattr("rankhoist.score.named.COMPARED", 1000)  # the first of a block, which is in all of these right
    pairs = Pairs(rankhoist.load(artifact))
    made = table(pairs, layout, pairs.whole, pairs.names(kind))
    given = by_id(pairs, artifact, tmp_path / "whole", layout, made, keep=["sku"])
    assert_equal(torch.tensor(scored(given)), pairs.expected)
    job = json.loads((Path(given.out) / JOB).read_text())
    assert job["repeats"] and [part["rows"] for part in job["parts"]] == [73, 60, 3]
    read = firsts(pairs, [(0, 73), (73, 133), (133, 136)]) | set(pairs.offsets)  # blocks begin where requests do
    others = [i for i in range(pairs.offsets[-1]) if i not in read]
    assert len(others) > 80
    for column, value in (("text", None), ("item", ITEMS + 5)):
        made = replaced(pairs, made, column, dict.fromkeys(others, value))
    again = by_id(pairs, artifact, tmp_path / "spoiled", layout, made, keep=["sku"])
    assert scored(again) == scored(given)
    assert pq.read_table(again.out)["sku"].to_pylist() == pairs.names(kind).to_pylist()


@pytest.mark.parametrize("layout", ["nested", "repeated", "joined"])
@pytest.mark.parametrize(
    ("column", "change", "said"),
    [("text", lambda x: [*x[:-1], 9.0], ""), ("item", lambda x: (x + 1) % ITEMS, ""),
     ("packed.candidate", lambda x: [x[0], x[1], 9.0], ""), ("text", lambda x: [*x[:-1], None], "a null; expected")],
)  # fmt: skip
def test_rows_of_one_id_that_differ_are_named(layout: str, column: str, change, said: str, artifact, tmp_path):
    pairs, place = Pairs(rankhoist.load(artifact)), 2 * COMPARED
    assert place not in firsts(pairs, [(0, 73)])
    flat = table(pairs, "repeated", pairs.whole, None)[column].to_pylist()
    made = table(pairs, layout, pairs.whole, pairs.names("texts"))
    made = replaced(pairs, made, column, {place: change(flat[place])})
    said = said or f"another value than in the first row of the same item, sku 'sku {int(pairs.drawn[place])}'"
    where = f"0.parquet, row 2(, candidate {place - 7})?" if layout == "nested" else f"0.parquet, row {place}"
    with pytest.raises(ScoringError, match=f"{where}, column {column!r}: {said}"):
        scored(by_id(pairs, artifact, tmp_path, layout, made))


def test_the_rows_of_an_id_may_differ_in_what_is_the_pair_s(artifact: str, tmp_path: Path):
    pairs = Pairs(rankhoist.load(artifact))
    assert len(pairs.whole["packed.candidate"][:, 1].unique()) == pairs.offsets[-1]
    made = table(pairs, "repeated", pairs.whole, pairs.names("numbers"))
    given = by_id(pairs, artifact, tmp_path, "repeated", made, check_items=True)
    assert_equal(torch.tensor(scored(given)), pairs.expected)


def test_all_rows_of_an_id_are_compared_if_asked_for(artifact: str, tmp_path: Path):
    pairs = Pairs(rankhoist.load(artifact))
    pairs.whole["text"][:, 3] = torch.nan  # which is like itself
    made = table(pairs, "repeated", pairs.whole, pairs.names("numbers"))
    scored(by_id(pairs, artifact, tmp_path / "alike", "repeated", made, check_items=True, allow_nan=True))
    place = max(set(range(68)) - firsts(pairs, [(0, 73)]) - set(range(0, 73, COMPARED)))
    made = replaced(pairs, made, "text", {place: [0.0] * 64})
    given = by_id(pairs, artifact, tmp_path / "other", "repeated", made, check_items=True, allow_nan=True)
    with pytest.raises(ScoringError, match=f"row {place}, column 'text': another value"):
        scored(given)
    scored(replace(given, check_items=False))  # this row is none of the few that are compared


def test_ids_of_pairs_go_on_and_are_not_exchanged(artifact: str, tmp_path: Path):
    pairs = Pairs(rankhoist.load(artifact))
    made = table(pairs, "joined", pairs.whole, pairs.names("texts"))
    given = by_id(pairs, artifact, tmp_path, "joined", made)
    scored(given)
    before = pq.read_table(given.out)
    for part in ("part-000000.parquet", "part-000001.parquet"):
        (Path(given.out) / part).unlink()
    scored(given)
    assert pq.read_table(given.out).equals(before)
    for other in (None, "item"):
        with pytest.raises(ScoringError, match=f"was begun with --item-id sku, not {other}"):
            scored(replace(given, item_id=other))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda ids: [*ids[:59], None, *ids[60:]], "row 59, column 'sku': a null; expected the id of an item"),
        (lambda ids: [0.5] * len(ids), "an item's id is a number or a text"),
        (None, "no column 'sku', which has the ids of items"),
    ],
)
def test_a_row_without_an_item_is_named(change, said: str, artifact: str, tmp_path: Path):
    pairs = Pairs(rankhoist.load(artifact))
    ids = None if change is None else pa.array(change(pairs.names("texts").to_pylist()))
    given = by_id(pairs, artifact, tmp_path, "repeated", table(pairs, "repeated", pairs.whole, ids))
    with pytest.raises(ScoringError, match=said):
        scored(given)


def test_lists_of_items_are_of_one_length(artifact: str, tmp_path: Path):
    pairs = Pairs(rankhoist.load(artifact))
    made = table(pairs, "nested", pairs.whole, pairs.names("texts"))
    made = changed(made, "text", 2, made["text"][2].as_py()[:-1])
    with pytest.raises(ScoringError, match="row 2, column 'text': a list of 39, where 'item' has 40: one value per"):
        scored(by_id(pairs, artifact, tmp_path, "nested", made))


def test_a_value_outside_of_its_table_is_named_by_rows_of_ids(artifact: str, tmp_path: Path):
    pairs = Pairs(rankhoist.load(artifact))
    wrong = {int(i): ITEMS for i in torch.nonzero(pairs.drawn == 5).flatten()}
    made = replaced(pairs, table(pairs, "nested", pairs.whole, pairs.names("numbers")), "item", wrong)
    with pytest.raises(ScoringError, match=f"row 0, candidate {min(wrong)}, column 'item': {ITEMS} is not in the"):
        scored(by_id(pairs, artifact, tmp_path / "item", "nested", made))
    pairs.context["user"][3] = 50
    made = table(pairs, "repeated", pairs.whole, pairs.names("numbers"))
    with pytest.raises(ScoringError, match="row 47, column 'user': 50 is not in the model's vocabulary"):
        scored(by_id(pairs, artifact, tmp_path / "user", "repeated", made))


def test_ids_that_do_not_come_again_are_left_alone(artifact: str, tmp_path: Path):
    pairs, said = Pairs(rankhoist.load(artifact)), io.StringIO()
    made = table(pairs, "repeated", pairs.whole, pa.array(range(pairs.offsets[-1])))
    given = by_id(pairs, artifact, tmp_path, "repeated", made)
    run(given, console=Console(file=said, width=200))
    assert_equal(torch.tensor(pq.read_table(given.out)["scores"].to_pylist()), pairs.expected)
    assert "rows of one sku share nothing: by predicted time it does not pay here" in said.getvalue()


class Tower(nn.Module):
    """An item, and nothing that is the pair's."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.tower = nn.Embedding(50, 4), nn.Linear(64, 4)

    def forward(self, user: Tensor, text: Tensor) -> Tensor:
        return (self.users(user) * torch.relu(self.tower(text))).sum(1)


def tower(folder: Path, item: list[str] | None) -> tuple[Options, pa.Table, Tensor]:
    """A job over requests of ten items, its file, and the scores."""
    folder.mkdir()
    g = torch.Generator().manual_seed(0)
    users, drawn = torch.randint(50, (3,), generator=g), torch.randint(5, (30,), generator=g)
    text = torch.randn(5, 64, generator=g)[drawn]
    model = rankhoist.hoist(Tower().eval(), (users.repeat_interleave(10), text), context=["user"], item=item)
    model.save(folder / "tower.rankhoist")
    log = Log({"user": users}, {"text": text}, [0, 10, 20, 30])
    ids = pa.ListArray.from_arrays(pa.array(log.offsets, pa.int32()), pa.array(drawn.numpy()))
    files = [str(folder / "file.parquet")]
    given = Options(str(folder / "tower.rankhoist"), str(folder / "scores"), files, item_id="sku")
    return given, log.nested().append_column("sku", ids), model(users, text, request_offsets=log.offsets)


def test_a_model_without_pairs_or_without_items(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("rankhoist.score.job.items_repeat", lambda *_: True)  # so small a tower does not pay
    given, made, expected = tower(tmp_path / "items", ["text"])
    pq.write_table(made, given.requests[0])
    assert_equal(torch.tensor(scored(given)), expected)
    pq.write_table(changed(made, "text", 1, made["text"][1].as_py()[:-1]), given.requests[0])
    with pytest.raises(ScoringError, match="row 1, column 'text': a list of 9, where 'sku' has 10: one value per"):
        scored(replace(given, out=str(tmp_path / "shorter")))
    given, made, _ = tower(tmp_path / "none", None)
    pq.write_table(made, given.requests[0])
    with pytest.raises(InputError, match="no input is marked as the item's"):
        scored(given)


def test_the_command_by_ids(artifact: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    pairs = Pairs(rankhoist.load(artifact))
    candidates = write(table(pairs, "repeated", pairs.whole, pairs.names("texts")), tmp_path / "pairs")
    flags = ["score", artifact, "--candidates", candidates, "--out", str(tmp_path / "scores"), "--check-items"]
    assert main([*flags, "--item-id", "sku"]) == 0
    assert_equal(torch.tensor(pq.read_table(tmp_path / "scores")["scores"].to_pylist()), pairs.expected)
    assert main(flags) != 0
    assert "--check-items compares rows of one id: give --item-id" in capsys.readouterr().err


def test_some_rows_of_files(tmp_path: Path):
    values, g = np.arange(60), np.random.default_rng(0)
    folder = write(pa.table({"a": values, "b": [[int(x)] * (x % 3) for x in values]}), tmp_path / "f", 3, group=7)
    files = Files(sorted(Path(folder).iterdir()))
    cursor = Cursor(files, ["b"], 4)
    for low, high in ((0, 60), (3, 9), (8, 30), (30, 31), (2, 60), (59, 60)):  # onwards, and back
        rows = np.unique(g.integers(low, high, 8))
        piece = cursor.take(rows)
        assert piece.column("b").to_pylist() == [[x] * (x % 3) for x in rows.tolist()]
        assert [piece.where(i) for i in range(len(rows))] == [files.where(x) for x in rows.tolist()]


# -- the job and the command


def test_a_model_is_loaded_once(artifact: str, tmp_path: Path, monkeypatch):
    """For a new job, its catalogue and its parts; a job that is finished needs none."""
    made: list[str] = []
    for place in ("run", "scorer"):
        module = sys.modules[f"rankhoist.score.{place}"]
        monkeypatch.setattr(module, "load", lambda path: made.append(path) or rankhoist.load(path))
    pairs = Pairs(rankhoist.load(artifact))
    items = write(pairs.items_table("texts"), tmp_path / "items")
    candidates = table(pairs, "joined", pairs.pair, pairs.names("texts"))
    given = options(pairs, artifact, tmp_path, "joined", candidates, catalogue=[items], item_id="sku")
    assert_equal(torch.tensor(scored(given)), pairs.expected)
    assert made == [artifact]
    scored(given)
    assert made == [artifact]


def test_the_command(model, artifact: str, tmp_path: Path):
    pairs = Pairs(model)
    items = write(pairs.items_table("texts"), tmp_path / "items")
    candidates = write(table(pairs, "repeated", pairs.pair, pairs.names("texts")), tmp_path / "pairs")
    flags = ["--candidates", candidates, "--catalogue", items, "--item-id", "sku", "--out", str(tmp_path / "scores")]
    assert main(["score", artifact, *flags]) == 0
    assert_equal(torch.tensor(pq.read_table(tmp_path / "scores")["scores"].to_pylist()), pairs.expected)
    assert main(["score", artifact, *flags[:4], "--out", str(tmp_path / "others")]) != 0  # no column item_id
