"""Models of torchrec: a container of bags whose keys are inputs by themselves, some of them context."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import assert_equal, at_every_level, rates_of
from torch import Tensor, nn

import rankhoist
from rankhoist import Jagged, Split
from rankhoist.capture import Program, capture
from rankhoist.capture.packs import opened
from rankhoist.compiler.graph.node import Rate
from rankhoist.compiler.rules import all_rules
from rankhoist.errors import InputError

pytest.importorskip("torchrec", reason="torchrec 1.8.0 and fbgemm-gpu-cpu 1.8.0 are not installed")
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    JaggedTensor,
    KeyedJaggedTensor,
)
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM, DLRM_DCN

from benchmarks import jagged

IDS, WIDTH, DENSE = 50, 8, 4
USER, ITEM = ["user_a", "user_b"], ["item_a", "item_b"]
DOUBLE = torch.float64


def collection(weighted: bool = False) -> EmbeddingBagCollection:
    """A table per user key; the item's keys share one."""
    names = {f"t_{key}": [key] for key in USER} | {"shared": ITEM}
    tables = [EmbeddingBagConfig(IDS, WIDTH, name=name, feature_names=keys) for name, keys in names.items()]
    return EmbeddingBagCollection(tables=tables, is_weighted=weighted)


def container(keys: list[str], rows: int, seed: int, weighted: bool = False) -> KeyedJaggedTensor:
    """Bags of 0 to 20 ids."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(21, (len(keys) * rows,), generator=g)
    total = int(lengths.sum())
    weights = torch.rand(total, generator=g, dtype=DOUBLE) if weighted else None
    return KeyedJaggedTensor(keys, torch.randint(IDS, (total,), generator=g), weights=weights, lengths=lengths)


class Whole(nn.Module):
    """A model of dense features and bags, as torchrec has them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        if name == "deepfm":
            self.model = SimpleDeepFMNN(DENSE, collection(), hidden_layer_size=16, deep_fm_dimension=8)
        elif name == "dlrm":
            self.model = DLRM(collection(), DENSE, [16, WIDTH], [16, 1])
        else:
            self.model = DLRM_DCN(collection(), DENSE, [16, WIDTH], [16, 1], dcn_num_layers=2, dcn_low_rank_dim=4)

    def forward(self, dense: Tensor, features: KeyedJaggedTensor) -> Tensor:
        return self.model(dense, features).squeeze(1)


class Weighted(nn.Module):
    """Ids with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.bags, self.top = collection(weighted=True), nn.Linear(4 * WIDTH, 1)

    def forward(self, dense: Tensor, features: KeyedJaggedTensor) -> Tensor:
        return self.top(self.bags(features).values().to(dense.dtype)).squeeze(1) + dense.sum(1)


class Sequences(nn.Module):
    """Vectors of single ids, padded."""

    def __init__(self) -> None:
        super().__init__()
        tables = [EmbeddingConfig(IDS, WIDTH, name=f"t_{k}", feature_names=[k]) for k in [*USER, *ITEM]]
        self.vectors, self.top = EmbeddingCollection(tables=tables), nn.Linear(WIDTH, 1)

    def forward(self, dense: Tensor, features: KeyedJaggedTensor) -> Tensor:
        found = self.vectors(features)
        own = found["user_a"].to_padded_dense(6).mean(1) * found["item_b"].to_padded_dense(4).amax(1)
        return self.top(own.to(dense.dtype)).squeeze(1) + dense.sum(1)


class Inside(nn.Module):
    """Two ids of the user and one of the item, put into a container by the model itself."""

    def __init__(self) -> None:
        super().__init__()
        tables = {"b": ["b"], "ac": ["a", "c"]}
        self.bags = EmbeddingBagCollection(
            tables=[EmbeddingBagConfig(IDS, WIDTH, name=n, feature_names=k) for n, k in tables.items()]
        )
        self.top = nn.Sequential(nn.Linear(3 * WIDTH, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        lengths = torch.ones(3 * a.shape[0], dtype=torch.long)
        features = KeyedJaggedTensor(["a", "b", "c"], torch.cat([a, b, c]), lengths=lengths)
        return self.top(self.bags(features).values().to(self.top[0].weight.dtype)).squeeze(1)


def captured(model: nn.Module, weighted: bool = False) -> Program:
    example = torch.randn(4, DENSE, dtype=DOUBLE), container([*USER, *ITEM], 4, 0, weighted)
    return capture(model, example, ["dense", "user_*"], all_rules())


def whole_rows(user: KeyedJaggedTensor, item: KeyedJaggedTensor, owner: Tensor) -> KeyedJaggedTensor:
    """One container with the user's bags repeated, made by torchrec alone."""
    lengths, values, weights = [], [], []
    for side, places in ((user, owner.tolist()), (item, range(len(owner)))):
        keys = side.keys()
        for key in keys:
            bags = side[key]
            ends = [0, *bags.lengths().cumsum(0).tolist()]
            lengths.append(bags.lengths()[list(places)])
            values += [bags.values()[ends[r] : ends[r + 1]] for r in places]
            if bags.weights_or_none() is not None:
                weights += [bags.weights()[ends[r] : ends[r + 1]] for r in places]
    keys = [*user.keys(), *item.keys()]
    return KeyedJaggedTensor(
        keys, torch.cat(values), weights=torch.cat(weights) if weights else None, lengths=torch.cat(lengths)
    )


def check(model: nn.Module, program: Program, weighted: bool = False) -> list[rankhoist.HoistedModel]:
    """Equal at every level: one request, three ragged ones, one of them without candidates."""
    made = [*at_every_level(program).values()]
    item = container(ITEM, 9, 2, weighted)
    for offsets in ([0, 9], [0, 4, 4, 9]):
        requests = len(offsets) - 1
        dense, user = torch.randn(requests, DENSE, dtype=DOUBLE), container(USER, requests, 1, weighted)
        owner = torch.repeat_interleave(torch.arange(requests), torch.tensor(offsets).diff())
        want = model(dense[owner], whole_rows(user, item, owner)).detach()
        for hoisted in made:
            got = hoisted(dense, Split(user, item), request_offsets=offsets)
            assert_equal(got, want, f"{hoisted.level}, {offsets}")
            assert not [r for r in hoisted.plan.reasons.values() if "please report" in r], "a rule broke"
    return made


@pytest.mark.parametrize("name", [
    "dlrm_dcn", pytest.param("dlrm", marks=pytest.mark.slow), pytest.param("deepfm", marks=pytest.mark.slow),
])  # fmt: skip
def test_torchrecs_rankers_are_equal_at_every_level(name: str):
    torch.manual_seed(0)
    model = Whole(name).eval().double()
    made = check(model, captured(model))
    for hoisted in made[1:]:
        bags = [n.rate for n in hoisted.plan.nodes if "embedding_bag" in str(n.op)]
        assert sorted(bags) == [Rate.REQUEST] * 2 + [Rate.ITEM] * 2, hoisted.level


@pytest.fixture(scope="module")
def weighted() -> tuple[nn.Module, list[rankhoist.HoistedModel]]:
    torch.manual_seed(0)
    model = Weighted().eval().double()
    return model, check(model, captured(model, weighted=True), weighted=True)


def test_weights_of_ids(weighted):
    assert {Rate.REQUEST, Rate.ITEM} <= rates_of(weighted[1][-1], "embedding_bag")


@pytest.mark.slow
def test_sequences_of_ids():
    torch.manual_seed(0)
    model = Sequences().eval().double()
    made = check(model, captured(model))
    assert {Rate.REQUEST, Rate.ITEM} <= rates_of(made[-1], "aten.embedding")
    assert rates_of(made[-1], "jagged_to_padded_dense") == {Rate.REQUEST, Rate.ITEM}


def test_a_container_that_the_model_makes():
    torch.manual_seed(0)
    model = Inside().eval().double()
    program = capture(model, tuple(torch.randint(IDS, (4,)) for _ in range(3)), ["a", "b"], all_rules())
    a, b, c = torch.randint(IDS, (1,)), torch.randint(IDS, (1,)), torch.randint(IDS, (7,))
    for hoisted in at_every_level(program).values():
        assert_equal(hoisted(a, b, c), model(a.expand(7), b.expand(7), c).detach(), hoisted.level)
    assert {Rate.REQUEST, Rate.ITEM} <= rates_of(hoisted, "embedding_bag")


def test_a_hoisted_model_is_called_by_containers_or_by_keys(weighted, tmp_path):
    model, (*_, hoisted) = weighted
    dense, user, item = torch.randn(1, DENSE, dtype=DOUBLE), container(USER, 1, 1, True), container(ITEM, 5, 2, True)
    want = hoisted(dense, Split(user, item))
    by_key = {k: Jagged(user[k].values(), user[k].weights(), lengths=user[k].lengths()) for k in USER}
    for context in ({"dense": dense, "features": user}, {"dense": dense} | by_key, [dense, user]):
        assert_equal(hoisted.score(hoisted.prepare(context), item), want)
    hoisted.save(tmp_path / "bags.rankhoist")
    assert_equal(rankhoist.load(tmp_path / "bags.rankhoist")(dense, Split(user, item)), want)
    assert rankhoist.verify(hoisted, model, candidates=(1, 7), seed=1).passed
    with pytest.raises(InputError, match="missing context inputs: user_b"):
        hoisted.prepare({"dense": dense, "features": container(USER[:1], 1, 1, True)})


def test_a_container_is_opened_key_by_key():
    bags = container([*USER, *ITEM], 3, 0, weighted=True)
    for key, own in opened(bags).items():
        want = bags[key].values(), bags[key].weights(), bags[key].lengths()
        assert all(torch.equal(a, b) for a, b in zip((*own.values, own.lengths), want, strict=True)), key
    with pytest.raises(InputError, match=r"add up to 2 .*, not 3"):
        opened(KeyedJaggedTensor(USER, torch.arange(3), lengths=torch.tensor([1, 1])))


def test_its_benchmark_runs_and_writes_what_it_found(tmp_path):
    jagged.main(["--tiny", "--seconds", "0.01", "--only", "DeepFM", "--out", str(tmp_path)])
    (found,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert [*found["results"][0]["ms"]] == ["eager", "by hand", "request", "full"]
    assert "| DeepFM |" in next(tmp_path.glob("*.md")).read_text()


def test_one_bag_per_row_without_a_key():
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.item = nn.EmbeddingBag(IDS, WIDTH, mode="sum"), nn.Embedding(IDS, WIDTH)

        def forward(self, tags: JaggedTensor, item: Tensor) -> Tensor:
            return (self.bag(tags.values(), tags.offsets()[:-1]) * self.item(item)).sum(1)

    torch.manual_seed(0)
    model = One().eval().double()
    tags = JaggedTensor(torch.randint(IDS, (7,)), lengths=torch.tensor([3, 0, 4]))
    hoisted = rankhoist.hoist(model, (tags, torch.randint(IDS, (3,))), context=["tags"], level="request")
    item, one = torch.randint(IDS, (5,)), torch.randint(IDS, (4,))
    want = model(JaggedTensor(one.repeat(5), lengths=torch.full((5,), 4)), item)
    assert_equal(hoisted(JaggedTensor(one, lengths=torch.tensor([4])), item), want.detach())
    assert Rate.REQUEST in rates_of(hoisted, "embedding_bag")
