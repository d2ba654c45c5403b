"""Jagged features over every protocol: lists of any length in JSON, values and what cuts them in the protocol v2."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving
import torch
import tritonclient.grpc
from bagged import DOUBLE, IDS, SIZES, Weighted, bags, starts
from rankhoist_client import CallError, Client, v2
from rankhoist_client import Jagged as Sent
from rankhoist_client.refusal import RequestError
from serving import Served

import rankhoist
from rankhoist import Jagged
from rankhoist.lab.loadtest.examples import drawn, read
from rankhoist.serve.batching import joined
from rankhoist.serve.inputs import Batch, Limits
from rankhoist.serve.model import ServedModel
from rankhoist.serve.states import States

PRICE = torch.linspace(-1, 1, len(SIZES), dtype=DOUBLE).unsqueeze(1)
CONTEXT = bags((4, 0, 3), True, seed=1)
WORDS = bags(SIZES, seed=2)
OFFSETS = [0, 4, 4, len(SIZES)]


@pytest.fixture(scope="module")
def hoisted() -> rankhoist.HoistedModel:
    torch.manual_seed(0)
    tags, words = bags(SIZES, True), bags(SIZES, seed=3)
    example = tags.values[0], starts(tags.lengths), words.values[0], starts(words.lengths), PRICE, tags.values[1]
    jagged = {"tags": "tag_offsets", "strengths": "tag_offsets", "words": "word_offsets"}
    return rankhoist.hoist(Weighted().eval(), example, context=["tags"], jagged=jagged)


@pytest.fixture(scope="module")
def server(hoisted: rankhoist.HoistedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("jagged") / "bags.rankhoist"
    hoisted.save(path)
    with serving.serving(path, "--grpc-port", 0, "--max-values", 30) as served:
        yield served


def scores(hoisted: rankhoist.HoistedModel, context: Jagged, offsets: list[int] | None = None) -> np.ndarray:
    """In this process."""
    return hoisted.score(hoisted.prepare([context]), [WORDS, PRICE], offsets).numpy()


def sent(given: Jagged, column: int = 0) -> Sent:
    return Sent(given.values[column].numpy(), given.lengths.numpy())


def tensors(context: Jagged = CONTEXT) -> dict[str, np.ndarray]:
    """All that a call of the protocol v2 has, by name."""
    return {
        "tags.values": context.values[0].numpy(), "strengths.values": context.values[1].numpy(),
        "tags.lengths": context.lengths.numpy(), "words.values": WORDS.values[0].numpy(),
        "words.lengths": WORDS.lengths.numpy(), "price": PRICE.numpy(),
    }  # fmt: skip


def body(**other: Any) -> dict[str, Any]:
    """A request of the JSON protocol."""
    context = {"tags": sent(CONTEXT[:1]).rows()[0], "strengths": sent(CONTEXT[:1], 1).rows()[0]}
    return {"context": context, "candidates": {"words": sent(WORDS).rows(), "price": PRICE.tolist()}} | other


def test_lists_of_any_length_in_json_as_columns_and_as_rows(server: Served, hoisted: rankhoist.HoistedModel):
    columns = body()
    rows = [dict(zip(columns["candidates"], row, strict=True)) for row in zip(*columns["candidates"].values())]  # noqa: B905
    in_a_list = {name: [bag] for name, bag in columns["context"].items()}
    want = scores(hoisted, CONTEXT[:1])
    for given in (columns, body(candidates=rows), body(context=in_a_list), body(context_key="once")):
        answer = server.call("/v1/models/bags/rank", given)
        assert answer.status == 200, answer.body
        assert np.allclose(answer.json["scores"], want, atol=1e-10)


def test_a_request_without_any_value_and_one_without_candidates(server: Served, hoisted: rankhoist.HoistedModel):
    answer = server.call("/v1/models/bags/rank", body(context={"tags": [], "strengths": []}))
    assert np.allclose(answer.json["scores"], scores(hoisted, CONTEXT[1:2]), atol=1e-10)
    assert server.call("/v1/models/bags/rank", body(candidates=[])).json["scores"] == []


def test_values_with_lengths_or_offsets_over_the_protocol_v2(server: Served, hoisted: rankhoist.HoistedModel):
    want = scores(hoisted, CONTEXT, OFFSETS)
    given = tensors() | {"request_offsets": np.array(OFFSETS)}
    assert np.allclose(server.outputs("bags", given)["scores"], want, atol=1e-10)
    given["words.offsets"] = np.array([0, *given.pop("words.lengths").cumsum()])
    given["tags.lengths"] = given["strengths.lengths"] = given["tags.lengths"].astype(np.int32)
    assert np.allclose(server.outputs("bags", given)["scores"], want, atol=1e-10)


def test_the_client_sends_bags_by_both_protocols(server: Served, hoisted: rankhoist.HoistedModel):
    context = {"tags": sent(CONTEXT[:1]), "strengths": sent(CONTEXT[:1], 1)}
    for protocol in ("binary", "json"):
        with Client(f"http://127.0.0.1:{server.port}", protocol=protocol) as client:
            ranking = client.rank("bags", context, {"words": sent(WORDS), "price": PRICE.numpy()})
            assert np.allclose(ranking.scores, scores(hoisted, CONTEXT[:1]), atol=1e-10)
            with pytest.raises(CallError, match="'words' has id 40 in row 1, expected 0 to 39"):
                wrong = Sent.of([[1], [2, IDS], *[[]] * 7])
                client.rank("bags", context, {"words": wrong, "price": PRICE.numpy()})


def test_grpc_takes_the_same_tensors(server: Served, hoisted: rankhoist.HoistedModel):
    entries = []
    for name, array in (tensors() | {"request_offsets": np.array(OFFSETS)}).items():
        entries.append(tritonclient.grpc.InferInput(name, list(array.shape), v2.datatype_of(array)))
        entries[-1].set_data_from_numpy(array)
    port = server.wait_for("serving")[0]["grpc_port"]
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert np.allclose(client.infer("bags", entries).as_numpy("scores"), scores(hoisted, CONTEXT, OFFSETS))
        names = {entry.name for entry in client.get_model_metadata("bags").inputs}
    assert names == {*tensors(), "request_offsets"}


def test_random_requests_and_those_of_a_file_are_what_the_server_takes(server: Served, tmp_path: Path):
    about = server.call("/v2/models/bags").json
    by_name = {entry["name"]: entry["parameters"] for entry in about["inputs"]}
    assert by_name["strengths.values"] == {"side": "context", "lengths": "tags.lengths"}
    assert by_name["words.values"] == {"side": "candidate", "maximum": IDS - 1, "lengths": "words.lengths"}
    (tmp_path / "requests.json").write_text(json.dumps([body(), body(context={"tags": [[2]], "strengths": [[0.5]]})]))
    for example in [*drawn(about, 5, 3, seed=0), *read(tmp_path / "requests.json", about)]:
        given = example.context | example.candidates
        assert server.outputs("bags", given)["scores"].shape == given["words.lengths"].shape


WHOLE = WORDS.lengths.numpy()
HUGE = np.array([2**62] * 4 + [0] * 5)  # adds up to nothing in 64 bits
WRONG: dict[str, tuple[dict[str, Any], int, str, str, str]] = {
    "negative": ({"words.lengths": WHOLE - 1}, 400, "shape", "words", "has length -1 in row 0, expected 0 or more"),
    "sum": ({"words.lengths": WHOLE[:-1]}, 400, "shape", "words", "add up to 44, and there are 49 values"),
    "huge": ({"words.lengths": HUGE}, 400, "shape", "words", "has length 4611686018427387904 in row 0"),
    "no_rows": ({"words.lengths": WHOLE[:0]}, 400, "shape", "words", "49 values, and lengths for no row"),
    "kind": ({"words.lengths": WHOLE * 1.0}, 400, "shape", "words.lengths", r"FP64 \[9\], expected INT64 \[N\]"),
    "axes": ({"words.lengths": WHOLE[None]}, 400, "shape", "words.lengths", r"expected INT64 \[N\]"),
    "both": ({"words.offsets": WHOLE}, 400, "unknown_input", "words", "say the same"),
    "ids": ({"words.values": np.ones(49)}, 400, "dtype", "words", "is FP64, expected INT64"),
    "shape": ({"words.values": np.ones((49, 2), int)}, 400, "shape", "words", r"INT64 'words.values' \[values\]"),
    "scalar": ({"words.values": np.array(3)}, 400, "shape", "words", "there are 0 values in all"),
    "bound": ({"words.values": np.full(49, IDS)}, 400, "out_of_vocabulary", "words", "in row 1, expected 0 to 39"),
    "others": ({"strengths.lengths": np.array([3, 1, 3])}, 400, "ragged", "strengths", "other sizes"),
    "rows": ({"tags.lengths": np.array([4, 3])}, 400, "shape", "request_offsets", r"expected INT64 \[3\]"),
    "weights": ({"strengths.values": np.full(7, np.nan)}, 400, "not_finite", "strengths", "in row 0"),
    "few": ({"strengths.values": np.ones(6)}, 400, "shape", "strengths", "add up to 7, and there are 6 values"),
    "many": ({"words.lengths": np.array([0, 49] + [0] * 7)}, 413, "too_large", "words", "in row 1, the most are 30"),
    "dense": ({"words": np.ones((9, 5), int)}, 400, "unknown_input", "words", "unknown feature 'words'"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_by_name(hoisted: rankhoist.HoistedModel, case: str):
    change, status, reason, name, said = WRONG[case]
    given = {n: v2.tensor_of(x) for n, x in (tensors() | {"request_offsets": np.array(OFFSETS)} | change).items()}
    with pytest.raises(RequestError, match=said) as refusal:
        ServedModel("bags", "1", hoisted).signature.check(given, Limits(100, requests=3, values=30))
    assert (refusal.value.status, refusal.value.reason, refusal.value.input) == (status, reason, name)


def test_lengths_that_are_missing_are_asked_for(hoisted: rankhoist.HoistedModel):
    given = {n: v2.tensor_of(x) for n, x in tensors().items() if n != "words.lengths"}
    with pytest.raises(
        RequestError, match=r"'words' is missing: INT64 'words.values' \[values\] and INT64 'words.lengths' \[N\]"
    ):
        ServedModel("bags", "1", hoisted).signature.check(given, Limits(100, requests=3))


JSON = {
    "no_list": ({"words": 3}, "shape", "is the number 3, expected a list"),
    "row": (
        {"words": [[1], 2, *[[]] * 7]},
        "shape",
        "'words' has a list of values per row, and row 1 has the number 2",
    ),
    "null": ({"words": [[1], [2, None], *[[]] * 7]}, "dtype", "row 1 has null"),
    "fraction": ({"words": [[1], [], [2, 2.5], *[[]] * 6]}, "dtype", "row 2 has the number 2.5"),
    "deep": ({"words": [[1], [[2]], *[[]] * 7]}, "dtype", "row 1 has a list"),
    "rows": ({"words": [[1], [2]]}, "ragged", "has 9 rows, expected 2"),
}


@pytest.mark.parametrize("case", JSON)
def test_what_does_not_fit_in_json_is_refused_by_row(server: Served, case: str):
    change, reason, said = JSON[case]
    answer = server.call("/v1/models/bags/rank", body(candidates=body()["candidates"] | change))
    assert (answer.status, answer.json["reason"]) == (400, reason) and said in answer.json["error"], answer.json
    both = server.call("/v1/models/bags/rank", body(context={"tags": [[1], [2]], "strengths": [[0.5], [0.5]]}))
    assert "'tags' has 2 rows, expected 1: a list of its values" in both.json["error"]


def test_requests_with_bags_are_joined_and_their_states_kept(hoisted: rankhoist.HoistedModel):
    model = ServedModel("bags", "1", hoisted, States(2**20, 60))
    bounds = itertools.pairwise(OFFSETS)
    batches = [
        Batch({"tags": CONTEXT[i : i + 1]}, {"words": WORDS[a:b], "price": PRICE[a:b]}, 1, b - a)
        for i, (a, b) in enumerate(bounds)
    ]
    want = scores(hoisted, CONTEXT, OFFSETS)
    together = model.score(joined(batches))
    assert np.allclose(together.outputs["scores"], want, atol=1e-10)
    for key in ("first", "first"):
        assert np.allclose(model.score(batches[0], key).outputs["scores"], want[:4], atol=1e-10)
    assert model.states.bytes > 0
    with pytest.raises(RequestError, match="another context"):  # the same values in other bags
        other = Jagged(*(x[:3] for x in CONTEXT[:1].values), lengths=torch.tensor([3]))
        model.score(Batch({"tags": other}, batches[0].candidates, 1, 4), "first")
