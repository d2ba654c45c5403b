"""The server's description of itself: what it says is what the server answers, for models of every kind of feature."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import serving
import torch
from rankhoist_client.refusal import REASONS
from serving import Served
from torch import nn

import rankhoist


class Odd(nn.Module):
    """A truth, ids in bfloat16 beside numbers, an id that is computed on the way; a first output without order."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hashed, self.top = nn.Embedding(400, 2), nn.Embedding(10, 2), nn.Linear(9, 2)

    def forward(self, dense, mixed, new, code):
        ids = [self.table(mixed[:, 1].long()), self.hashed(code % 10).reshape(-1, 4)]
        top = self.top(torch.cat([dense, mixed[:, :1], new.unsqueeze(1).to(dense.dtype), *ids], 1))
        return top, top.sum(1)


class Vectors(nn.Module):
    """Two values per candidate, and none that orders them."""

    def forward(self, user, item):
        return user * item


class Alone(nn.Module):
    """No context, one output of one column."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 1)

    def forward(self, item):
        return self.table(item)


def odd() -> rankhoist.HoistedModel:
    torch.manual_seed(0)
    rows = (torch.rand(4, 1), torch.rand(4, 2), torch.rand(4) < 0.5, torch.randint(0, 99, (4, 2)))
    example = tuple(x.bfloat16() if x.is_floating_point() else x for x in rows)
    return rankhoist.hoist(Odd().bfloat16().eval(), example, context=["dense", "code"])


class Bags(nn.Module):
    """A user's and an item's words in bags, a vector of two numbers with each of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item, self.top = nn.EmbeddingBag(40, 4), nn.EmbeddingBag(30, 4), nn.Linear(2, 4)

    def forward(self, words, counts, vectors, tags, offsets):
        owner = torch.repeat_interleave(torch.arange(counts.shape[0]), counts)
        summed = torch.zeros(counts.shape[0], 4).index_add(0, owner, self.top(vectors))
        return ((self.user(words, counts.cumsum(0) - counts) + summed) * self.item(tags, offsets)).sum(1)


def bags() -> rankhoist.HoistedModel:
    words, counts, offsets = torch.arange(8), torch.tensor([2, 1, 5]), torch.tensor([0, 1, 3])
    example = words, counts, torch.rand(8, 2), torch.arange(6), offsets
    named = {"words": {"lengths": "counts"}, "vectors": {"lengths": "counts"}, "tags": "offsets"}
    return rankhoist.hoist(Bags().eval(), example, context=["words"], jagged=named)


MODELS = {
    "ranker": serving.hoisted_ranker, "packed": serving.hoisted_packed, "odd": odd,
    "vectors": lambda: rankhoist.hoist(Vectors().eval(), (torch.rand(3, 2), torch.rand(3, 2)), context=["user"]),
    "bags": bags,
    "alone-1.0": lambda: rankhoist.hoist(Alone().eval(), (torch.arange(3),), context=[]),
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    paths: list[Path] = []
    for name, hoisted in MODELS.items():
        paths.append(tmp_path_factory.mktemp("models") / f"{name}.rankhoist")
        hoisted().save(paths[-1])
    with serving.serving(*paths) as served:
        yield served


@pytest.fixture(scope="module")
def document(server: Served) -> dict[str, Any]:
    found: dict[str, Any] = server.call("/openapi.json").json
    return found


def content(described: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = described["content"]["application/json"]
    return found


def check(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    """A value against a schema that may refer to others of the document."""
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(value)


def test_it_is_an_openapi_document(document: dict[str, Any]):
    validator = pytest.importorskip("openapi_spec_validator", reason="openapi-spec-validator is not installed")
    validator.validate(document)


def test_every_example_works_when_it_is_pasted(server: Served, document: dict[str, Any]):
    posts = {path: item["post"] for path, item in document["paths"].items() if "post" in item}
    assert len(posts) == 2 * len(MODELS) and "/v2/repository/index" in posts and "/v1/models/vectors/rank" not in posts
    for path, operation in posts.items():
        asked = content(operation["requestBody"])
        check(document, asked["schema"], asked["example"])
        answer = server.call(path, asked["example"])
        assert answer.status == 200, (path, answer.body)
        check(document, content(operation["responses"]["200"])["schema"], answer.json)


def test_both_examples_have_the_same_scores(server: Served, document: dict[str, Any]):
    examples = [
        content(document["paths"][path]["post"]["requestBody"])["example"]
        for path in ("/v1/models/ranker/rank", "/v2/models/ranker/infer")
    ]
    ranked, inferred = server.call("/v1/models/ranker/rank", examples[0]), server.call("/v2/models/ranker/infer", examples[1])  # fmt: skip # noqa: E501
    outputs = {output["name"]: output["data"] for output in inferred.json["outputs"]}
    assert ranked.json["scores"] == outputs and len(set(outputs["click"])) == 3


def test_every_route_that_is_read_answers_as_described(server: Served, document: dict[str, Any]):
    for path, item in document["paths"].items():
        if "get" in item:
            answer, described = server.call(path), item["get"]["responses"]["200"]
            assert answer.status == 200, path
            if "application/json" in described["content"]:
                check(document, content(described)["schema"], answer.json)


def test_a_refusal_is_as_described(server: Served, document: dict[str, Any]):
    refused = server.call("/v1/models/ranker/rank", {"context": {}, "candidates": {"item": [10**6]}})
    responses = document["paths"]["/v1/models/ranker/rank"]["post"]["responses"]
    assert responses[str(refused.status)] == {"$ref": f"#/components/responses/{refused.status}"}
    check(document, content(document["components"]["responses"][str(refused.status)])["schema"], refused.json)
    assert {int(status) for status in document["components"]["responses"]} == set(REASONS.values())


def test_schemas_refuse_what_the_server_refuses(server: Served, document: dict[str, Any]):
    asked = content(document["paths"]["/v1/models/ranker/rank"]["post"]["requestBody"])
    asked["example"]["context"]["user"] = serving.USERS  # the first id that there is not
    with pytest.raises(jsonschema.ValidationError, match="is greater than the maximum"):
        check(document, asked["schema"], asked["example"])
    assert server.call("/v1/models/ranker/rank", asked["example"]).status == 400


def test_routes_that_load_are_described_where_they_are_answered(document: dict[str, Any], tmp_path: Path):
    assert not [path for path in document["paths"] if path.endswith("/load")]
    MODELS["alone-1.0"]().save(tmp_path / "alone.rankhoist")
    with serving.serving(tmp_path / "alone.rankhoist", "--admin") as served:
        (path,) = [path for path in served.call("/openapi.json").json["paths"] if path.endswith("/load")]
        assert served.call(path, b"").status == 200
