"""What the tests of artifacts share: models of every kind, their files, and changes to a file."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from helpers import Function
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from rankhoist import HoistedModel, Split, hoist
from rankhoist.runtime import container

OFFSETS = [0, 4, 4, 11]
ADVICE = "damaged or incomplete: copy it again"


class Ranker(nn.Module):
    """Embeddings, a cross layer, a norm, an index, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(20, 24), nn.Embedding(30, 8)
        self.cross, self.hidden = nn.Linear(35, 35), nn.Linear(35, 6)
        self.norm, self.out = nn.BatchNorm1d(6), nn.Linear(6, 1)
        self.norm.running_mean.normal_()
        self.register_buffer("order", torch.arange(6).flip(0))

    def forward(self, user: Tensor, dense: Tensor, item: Tensor) -> dict[str, Tensor]:
        x = torch.cat([self.user(user), self.item(item), dense], 1)
        x = x * self.cross(x) + x
        h = torch.relu(self.norm(self.hidden(x)))[:, self.order]
        return {"logit": self.out(h).squeeze(1), "hidden": h}


class Tied(nn.Module):
    """One table under two names, and weights that are views of another's memory."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(20, 8), nn.Embedding(20, 8)
        self.item.weight = self.user.weight
        whole = torch.randn(16, 5)
        self.top = nn.Linear(16, 5, bias=False)
        self.top.weight = nn.Parameter(whole.t())
        self.register_buffer("scale", whole[3])
        self.shift = torch.rand(5)  # in no state dict

    def forward(self, user: Tensor, item: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = self.top(torch.cat([self.user(user), self.item(item)], 1))
        return x * self.scale + self.shift, [x.sum(1), x.argmax(1)]


class Nested(nn.Module):
    """Inputs in dicts, one with a default; norms and pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.top = nn.LayerNorm(12), nn.Linear(12, 3)
        self.pairs = torch.triu_indices(3, 3, 1)

    def forward(self, user: dict[str, Tensor], item: dict[str, Tensor], unused: None = None) -> Tensor:
        x = torch.cat([user["age"], user["taste"], item["price"]], 1)
        fields = x.reshape(-1, 3, 4)
        dots = fields @ fields.mT
        return self.top(self.norm(x)) + dots[:, self.pairs[0], self.pairs[1]] + dots.softmax(-1)[:, 0]


class Packed(nn.Module):
    """One matrix with columns of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.top = nn.Embedding(50, 4), nn.Linear(10, 1)

    def forward(self, X: Tensor) -> Tensor:
        return self.top(torch.cat([self.table(X[:, 0].long()), self.table(X[:, 2].long()), X[:, 1::2]], 1))


def ids(count: int, rows: int) -> Tensor:
    return torch.randint(0, count, (rows,))


def ranker_inputs(requests: int, rows: int) -> tuple[Any, ...]:
    return ids(20, requests), torch.randn(requests, 3), ids(30, rows)


def low(requests: int, rows: int) -> tuple[Any, ...]:
    return torch.randn(requests, 6).bfloat16(), torch.randn(rows, 2).bfloat16()


def nested(requests: int, rows: int) -> tuple[Any, ...]:
    user = {"age": torch.randn(requests, 1), "taste": torch.randn(requests, 7)}
    return user, {"price": torch.randn(rows, 4)}


def rounding(c: Tensor, k: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(F.linear(torch.cat([c, k], 1), w)).masked_fill(k[:, :1] > 0, float("-inf")).float()


# model, inputs of (context rows, candidate rows), context
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int, int], tuple[Any, ...]], Any]] = {
    "ranker": (Ranker, ranker_inputs, ["user", "dense"]),
    "tied": (Tied, lambda r, n: (ids(20, r), ids(20, n)), ["user"]),
    "nested": (Nested, nested, ["age", "taste"]),
    "packed": (Packed, lambda r, n: (Split(torch.rand(r, 2), torch.rand(n, 2)),), {"X": [0, 1]}),
    "bfloat16": (lambda: Function(rounding, w=torch.randn(4, 8).bfloat16()), low, ["context"]),
}


def whole(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(torch.cat([x.context, x.candidate], 1) if isinstance(x, Split) else x for x in inputs)


@cache
def made(name: str) -> tuple[nn.Module, HoistedModel]:
    """The model of a case, and what it is hoisted to."""
    torch.manual_seed(0)
    build_model, inputs, context = CASES[name]
    model = build_model().eval()
    return model, hoist(model, whole(inputs(5, 5)), context=context)


@cache
def saved_ranker() -> bytes:
    """The file of the hoisted ranker."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.rankhoist"
        made("ranker")[1].save(path)
        return path.read_bytes()


def identical(one: Any, other: Any) -> bool:
    """The same structure, and tensors equal bit for bit."""
    left, right = pytree.tree_flatten(one), pytree.tree_flatten(other)
    pairs = zip(left[0], right[0], strict=True)
    return left[1] == right[1] and all(
        type(x) is type(y) and (x.dtype == y.dtype and torch.equal(x, y) if isinstance(x, Tensor) else x == y)
        for x, y in pairs
    )


def assert_scores_alike(one: HoistedModel, other: HoistedModel, inputs: Callable[[int, int], tuple[Any, ...]]) -> None:
    """For one request and for three, with a few candidates and with many."""
    for count in (0, 1, 7, 300, 3000):
        given = inputs(1, count)
        assert identical(one(*given), other(*given)), count
    given = inputs(3, 11)
    assert identical(one(*given, request_offsets=OFFSETS), other(*given, request_offsets=OFFSETS))


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewrite(path: Path, contents: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """A zip with these members, whatever they are."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)


def forge(path: Path, member: str, change: Callable[[Any], Any]) -> None:
    """Change the data of a JSON member in place, with right checksums."""
    contents = members(path)
    del contents[container.MANIFEST]
    data = json.loads(contents[member])
    change(data)
    container.write(path, contents | {member: json.dumps(data).encode()})
