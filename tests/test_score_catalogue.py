"""Scoring files whose candidates are items, in files of their own or such that come again: scores are equal."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers import assert_equal
from rich.console import Console
from scoring import Log, arrow, write
from torch import Tensor, nn

import rankhoist
from rankhoist.cli import main
from rankhoist.errors import ScoringError
from rankhoist.score import Options, run
from rankhoist.score.job import JOB
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
