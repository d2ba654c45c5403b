"""Axes that vary over every protocol: histories of any length, the same length for what shares it, and bounds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving
import torch
import tritonclient.grpc
from lengthy import IDS, ROWS, attended, attends, hoisted_attends, reader, rows_of
from rankhoist_client import CallError, Client, v2
from rankhoist_client.refusal import RequestError
from serving import Served

import rankhoist
from rankhoist.lab.loadtest.examples import drawn, read
from rankhoist.serve.batching import joined
from rankhoist.serve.compute import Compute, Job
from rankhoist.serve.inputs import Batch, Limits
from rankhoist.serve.model import Scored, ServedModel
from rankhoist.serve.states import States, digest_of

OFFSETS = [0, 3, 3, ROWS]
SIZES = ((1, 0), (2, 1), (17, 4), (50, 30))  # of the history, and of the other


@pytest.fixture(scope="module")
def hoisted() -> rankhoist.HoistedModel:
    return hoisted_attends()


@pytest.fixture(scope="module")
def model(hoisted: rankhoist.HoistedModel) -> ServedModel:
    return ServedModel("any", "1", hoisted, States(2**20, 60), batch_up_to=100)


@pytest.fixture(scope="module")
def server(hoisted: rankhoist.HoistedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path = tmp_path_factory.mktemp("lengths") / "any.rankhoist"
    hoisted.save(path)
    with serving.serving(path, "--grpc-port", 0) as served:
        yield served


def arrays(*sides: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: x.numpy() for side in sides for name, x in side.items()}


def body(length: int = 5, other: int = 2, **more: Any) -> dict[str, Any]:
    """A request of the JSON protocol, for the scores that have an order."""
    context, candidates = attends(length, other)
    columns = {name: x.tolist() for name, x in candidates.items()}
    return {"context": {name: x[0].tolist() for name, x in context.items()}, "candidates": columns, **more}


@pytest.mark.parametrize("sizes", SIZES)
def test_lists_in_json_as_columns_and_as_rows(server: Served, sizes: tuple[int, int]):
    columns, expected = body(*sizes), attended(*attends(*sizes))
    rows = [dict(zip(columns["candidates"], row, strict=True)) for row in zip(*columns["candidates"].values())]  # noqa: B905
    in_a_list = {name: [one] for name, one in columns["context"].items()}
    for given in (columns, columns | {"candidates": rows}, columns | {"context": in_a_list}):
        answer = server.call("/v1/models/any/rank", given)
        assert answer.status == 200, answer.body
        for name, own in answer.json["scores"].items():
            assert np.allclose(own, expected[name], atol=1e-10)


def test_no_candidates_of_a_history(server: Served):
    columns = {"item": [], "matches": []}
    for candidates in (columns, []):
        answer = server.call("/v1/models/any/rank", body(5, candidates=candidates))
        assert answer.json["scores"] == {"scores": [], "weights": []}, answer.json


@pytest.mark.parametrize("sizes", SIZES)
def test_several_requests_of_one_length_over_the_protocol_v2(server: Served, sizes: tuple[int, int]):
    context, candidates = attends(*sizes, requests=3)
    got = server.outputs("any", arrays(context, candidates) | {"request_offsets": np.array(OFFSETS)})
    for name, own in attended(context, candidates, OFFSETS).items():
        assert np.allclose(got[name], own, atol=1e-10)


def test_the_client_sends_any_length_by_both_protocols(server: Served):
    for protocol in ("binary", "json"):
        with Client(f"http://127.0.0.1:{server.port}", protocol=protocol) as client:
            for sizes in SIZES:
                context, candidates = attends(*sizes)
                ranking = client.rank("any", arrays(context), arrays(candidates), context_key=f"{protocol} {sizes}")
                assert np.allclose(ranking.outputs["scores"], attended(context, candidates)["scores"], atol=1e-10)
            context["history"][0, 3] = IDS
            with pytest.raises(CallError, match="'history' has id 40 in row 0, expected 0 to 39"):
                client.rank("any", arrays(context), arrays(candidates))
            with pytest.raises(CallError, match="'other' has length 31 along axis 1, expected 0 to 30"):
                client.rank("any", *map(arrays, attends(5, 31)))


def test_grpc_takes_the_same_tensors_and_says_which_axes_are_free(server: Served):
    context, candidates = attends(17, 0, requests=3)
    entries = []
    for name, array in (arrays(context, candidates) | {"request_offsets": np.array(OFFSETS)}).items():
        entries.append(tritonclient.grpc.InferInput(name, list(array.shape), v2.datatype_of(array)))
        entries[-1].set_data_from_numpy(array)
    port = server.wait_for("serving")[0]["grpc_port"]
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
        got = client.infer("any", entries).as_numpy("scores")
        shapes = {entry.name: list(entry.shape) for entry in client.get_model_metadata("any").inputs}
    assert np.allclose(got, attended(context, candidates, OFFSETS)["scores"], atol=1e-10)
    two = {name: [-1, -1] for name in ("history", "times", "other", "matches")}
    assert shapes == two | {"item": [-1], "request_offsets": [-1]}


def test_metadata_document_and_page_say_the_bounds(server: Served):
    about = server.call("/v2/models/any").json
    axes = {entry["name"]: entry["parameters"].get("varying") for entry in about["inputs"]}
    assert axes["history"] == axes["matches"] == [axes["history"][0] | {"axis": 1, "minimum": 1, "maximum": 50}]
    assert axes["other"][0]["length"] != axes["history"][0]["length"] and axes["item"] is None
    assert [entry["shape"] for entry in about["outputs"]] == [[-1], [-1, -1]]
    document = server.call("/openapi.json").json["paths"]["/v1/models/any/rank"]["post"]
    request = document["requestBody"]["content"]["application/json"]
    other = request["schema"]["properties"]["context"]["properties"]["other"]
    assert (other["minItems"], other["maxItems"]) == (0, 30)
    weights = document["responses"]["200"]["content"]["application/json"]["schema"]["properties"]["scores"]
    assert "maxItems" not in weights["properties"]["weights"]["items"]
    assert server.call("/v1/models/any/rank", request["example"]).status == 200
    page = server.call("/", headers={"accept": "text/html"}).body.decode()
    assert "<td>1..50</td>" in page and "<td>0..30</td>" in page and "<td>any</td>" in page


def test_random_requests_and_those_of_a_file_are_what_the_server_takes(server: Served, tmp_path: Path):
    about = server.call("/v2/models/any").json
    (tmp_path / "requests.json").write_text(json.dumps([body(3, 0), body(7, 2)]))
    examples = [*drawn(about, 5, 4, seed=0), *read(tmp_path / "requests.json", about)]
    assert len({example.context["history"].shape for example in examples}) > 3
    for example in examples:
        given = example.context | example.candidates
        assert server.outputs("any", given)["weights"].shape == given["matches"].shape


GOOD = arrays(*attends(5, 2, requests=3)) | {"request_offsets": np.array(OFFSETS)}
WRONG: dict[str, tuple[dict[str, Any], int, str, str, str]] = {
    "none": (
        {n: GOOD[n][:, :0] for n in ("history", "times", "matches")}, 400, "shape", "history",
        "has length 0 along axis 1, expected 1 to 50",
    ),
    "long": ({"other": np.ones((3, 31), int)}, 400, "shape", "other", "has length 31 along axis 1, expected 0 to 30"),
    "many": ({"other": np.ones((3, 25), int)}, 413, "too_large", "other", "length 25 along axis 1, the most are 20"),
    "two": ({"times": GOOD["times"][:, :4]}, 400, "ragged", "times",
            "'times' has length 4 along axis 1, and 'history' has length 5 along axis 1: they have to be one"),
    "sides": ({"matches": GOOD["matches"][:, :4]}, 400, "ragged", "matches", "'matches' has length 4 along axis 1"),
    "flat": ({"other": np.ones(3, int)}, 400, "shape", "other", r"has shape \[3\], expected INT64 \[R, 0..30\]"),
    "deep": ({"other": np.ones((3, 2, 1), int)}, 400, "shape", "other", r"expected INT64 \[R, 0..30\]"),
    "scalar": ({"other": np.array(3)}, 400, "shape", "other", r"has shape \[\], expected INT64 \[R, 0..30\]"),
    "kind": ({"history": GOOD["times"]}, 400, "dtype", "history", "is FP64, expected INT64"),
    "id": ({"history": np.full((3, 5), IDS)}, 400, "out_of_vocabulary", "history", "in row 0, expected 0 to 39"),
    "nan": ({"times": np.full((3, 5), np.nan)}, 400, "not_finite", "times", "in row 0"),
    "rows": ({"other": np.ones((2, 3), int)}, 400, "ragged", "other", "has 2 rows, expected 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_by_name(model: ServedModel, case: str):
    change, status, reason, name, said = WRONG[case]
    given = {n: v2.tensor_of(x) for n, x in (GOOD | change).items()}
    with pytest.raises(RequestError, match=said) as refusal:
        model.signature.check(given, Limits(100, requests=3, values=20))
    assert (refusal.value.status, refusal.value.reason, refusal.value.input) == (status, reason, name)


JSON = {
    "number": ({"other": 3}, "shape", "'other' has no list, expected INT64 [R, 0..30]"),
    "null": ({"other": [1, None]}, "dtype", "row 0 has null"),
    "deep": ({"other": [[1], [2]]}, "shape", "'other' has 2 rows, expected 1"),
    "ragged": ({"other": [[1], [2, 3]]}, "ragged", "row 1 has 2 values where 1 are expected"),
    "long": ({"other": [1] * 31}, "shape", "'other' has length 31 along axis 1, expected 0 to 30"),
    "none": ({"history": []}, "shape", "'history' has length 0 along axis 1, expected 1 to 50"),
    "two": ({"times": [0.5]}, "ragged", "'times' has length 1 along axis 1, and 'history' has length 5 along axis 1"),
}


@pytest.mark.parametrize("case", JSON)
def test_what_does_not_fit_in_json_is_refused_by_name(server: Served, case: str):
    change, reason, said = JSON[case]
    answer = server.call("/v1/models/any/rank", body(context=body()["context"] | change))
    assert (answer.status, answer.json["reason"]) == (400, reason) and said in answer.json["error"], answer.json


def test_candidates_of_two_lengths_are_refused(server: Served):
    columns = body()["candidates"]
    columns["matches"][3] = columns["matches"][3][:4]
    answer = server.call("/v1/models/any/rank", body(candidates=columns))
    assert (answer.status, answer.json["reason"]) == (400, "ragged") and "row 3 has 4 values" in answer.json["error"]


# -- calls of several


def batch_of(model: ServedModel, *sizes: int, **more: int) -> Batch:
    given = {n: v2.tensor_of(x) for n, x in arrays(*attends(*sizes, **more)).items()}
    return model.signature.check(given, Limits(100))


def test_requests_are_joined_where_their_lengths_are_one(model: ServedModel):
    sizes = [(5, 2), (5, 2), (4, 2), (5, 3), (5, 2)]
    jobs: list[Job] = []

    async def ask() -> list[Scored]:
        compute = Compute(most=100)
        with compute._changed:  # nothing is taken before all wait
            jobs.extend(Job(model, batch_of(model, *own, seed=i)) for i, own in enumerate(sizes))
            compute._jobs.extend(jobs)
            compute._changed.notify()
        results = await asyncio.wait_for(asyncio.gather(*(job.future for job in jobs)), 60)
        compute.close()
        return results

    for i, scored in enumerate(asyncio.run(ask())):
        assert np.allclose(scored.outputs["weights"], attended(*attends(*sizes[i], seed=i))["weights"], atol=1e-10)
    begun = [job.begun for job in jobs]
    assert begun[0] == begun[1] == begun[4] and len({*begun}) == 3


def test_joined_requests_have_the_scores_of_each(model: ServedModel):
    batches = [batch_of(model, 6, 0, rows=n, seed=n) for n in (3, 0, 4)]
    together = model.score(joined(batches))
    alone = [model.score(batch).outputs["weights"] for batch in batches]
    assert np.allclose(together.outputs["weights"], np.concatenate(alone), atol=1e-10)


def test_a_state_is_that_of_its_lengths(model: ServedModel):
    batch = batch_of(model, 6, 2)
    assert np.allclose(model.score(batch, "a").outputs["scores"], model.score(batch, "a").outputs["scores"])
    with pytest.raises(RequestError, match="another context"):
        model.score(batch_of(model, 7, 2), "a")
    two, three = torch.arange(6).reshape(1, 2, 3), torch.arange(6).reshape(1, 3, 2)
    assert digest_of({"x": two}) != digest_of({"x": three}) == digest_of({"x": three.clone()})


# -- other models


def test_a_program_with_axes_of_its_own_is_served():
    rows = torch.export.Dim("rows", min=2, max=999)
    context, candidate = rows_of(9, ROWS)
    axes = {"history": {0: rows, 1: torch.export.Dim("length", min=2)}, "item": {0: rows}}
    program = torch.export.export(reader("masked"), (), context | candidate, dynamic_shapes=axes)
    model = ServedModel("own", "1", rankhoist.hoist(program, None, context=["history"]))
    (axis,) = model.metadata()["inputs"][0]["parameters"]["varying"]
    assert (axis["minimum"], axis["maximum"]) == (2, None)
    for length in (2, 300):
        context, candidate = rows_of(length)
        given = {n: v2.tensor_of(x) for n, x in arrays(context, candidate).items()}
        want = reader("masked")(context["history"].expand(ROWS, -1), candidate["item"]).detach()
        assert np.allclose(model.score(model.signature.check(given, Limits(10))).outputs["scores"], want, atol=1e-10)
    context, candidate = rows_of(1)
    with pytest.raises(RequestError, match="'history' has length 1 along axis 1, expected 2 or more"):
        model.signature.check({n: v2.tensor_of(x) for n, x in arrays(context, candidate).items()}, Limits(10))
