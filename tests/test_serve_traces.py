"""Where the time of a request went: the log of slow ones, and traces, in an app of this process and in a server."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import rankhoist_client.v2 as v2
import serving
import tritonclient.grpc
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from serving import inputs, rank_body
from tritonclient.utils import InferenceServerException

from rankhoist import cli
from rankhoist.serve.app import App
from rankhoist.serve.compute import Compute
from rankhoist.serve.config import Settings
from rankhoist.serve.metrics import STAGES
from rankhoist.serve.model import ServedModel
from rankhoist.serve.service import Service

pytest.importorskip("opentelemetry.sdk", reason="OpenTelemetry is not installed (extra: otel)")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased

from rankhoist.serve.tracing import Tracing

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADER = f"00-{TRACE}-{PARENT}-01"
TO_RANK, TO_INFER = "/v1/models/ranker/rank", "/v2/models/ranker/infer"


class Exchange:
    """A request as the app takes it, and its answer."""

    proto, method = "http", "POST"

    def __init__(self, path: str, body: bytes, headers: dict[str, str]) -> None:
        self.path, self.body = path, body
        self.method = "POST" if body else "GET"
        self.headers = {**headers, "content-length": str(len(body))}

    async def __call__(self) -> bytes:
        return self.body

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status, self.answer, self.found = status, body, dict(headers)


@pytest.fixture(scope="module")
def hoisted():
    return serving.hoisted_ranker()


def asked(hoisted, *requests: tuple[str, bytes, dict[str, str]], sampler: Any = None, **settings: Any):
    """Exchanges with an app of this process, and the spans that were exported."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(kept))

    async def ask() -> list[Exchange]:
        service = Service(Settings(**settings), Compute())
        service.desk.tracing = Tracing(provider)
        service.models["ranker"] = ServedModel("ranker", "7", hoisted)
        exchanges = [Exchange(*request) for request in requests]
        for exchange in exchanges:
            await App(service).__rsgi__(exchange, exchange)
        service.compute.close()
        return exchanges

    return asyncio.run(ask()), kept.get_finished_spans()


def rank(headers: dict[str, str] | None = None, **more: Any) -> tuple[str, bytes, dict[str, str]]:
    return TO_RANK, json.dumps(rank_body(inputs(1, 5), **more)).encode(), headers or {}


def infer() -> tuple[str, bytes, dict[str, str]]:
    body, length = v2.write_request({name: t.numpy() for name, t in inputs(1, 5).items()})
    return TO_INFER, body, {v2.HEADER_LENGTH: str(length)}


def test_a_request_is_a_span_with_its_stages(hoisted):
    (exchange, other), spans = asked(hoisted, rank({"traceparent": HEADER}), infer())
    assert exchange.status == other.status == 200, (exchange.answer, other.answer)
    *stages, request = spans[: len(STAGES) + 1]
    assert [span.name for span in stages] == list(STAGES)
    assert request.name == "POST /v1/models/{model}/rank" and request.kind.name == "SERVER"
    expected = {"http.response.status_code": 200, "rankhoist.model": "ranker", "rankhoist.version": "7"}
    assert expected.items() <= dict(request.attributes).items() and request.attributes["rankhoist.candidates"] == 5
    assert f"{request.context.trace_id:032x}" == TRACE and f"{request.parent.span_id:016x}" == PARENT
    assert exchange.found["traceparent"] == f"00-{TRACE}-{request.context.span_id:016x}-01"
    assert {span.parent.span_id for span in stages} == {request.context.span_id}
    moments = [request.start_time, *(moment for s in stages for moment in (s.start_time, s.end_time)), request.end_time]
    late = 1e6  # nanoseconds: the two clocks are read one after the other
    assert all(a <= b + late for a, b in itertools.pairwise(moments)), moments
    assert [span.name for span in spans[len(STAGES) + 1 :]] == [*STAGES, "POST /v2/models/{model}/infer"]
    assert spans[-1].parent is None and spans[-1].context.trace_id != request.context.trace_id


def test_a_refusal_is_traced_as_far_as_it_came(hoisted):
    (malformed, late), spans = asked(
        hoisted, (TO_RANK, b"{", {"traceparent": HEADER}), rank({"traceparent": HEADER}, timeout_ms=1e-6)
    )
    assert malformed.status == 400 and TRACE in malformed.found["traceparent"]
    assert late.status == 503 and TRACE in late.found["traceparent"]
    first, *stages, second = spans
    assert first.attributes["error.type"] == "malformed" and first.status.is_unset  # the caller's fault
    assert second.attributes["error.type"] == "deadline" and not second.status.is_ok
    assert [span.name for span in stages] == ["parse", "queue"]


@pytest.mark.parametrize("sent", ["", "00-0-0-00", HEADER[:-1] + "0", "ü" * 500])
def test_a_trace_that_is_not_kept_is_named_and_not_exported(hoisted, sent: str):
    (exchange,), spans = asked(hoisted, rank({"traceparent": sent}), sampler=ParentBased(ALWAYS_OFF))
    assert exchange.status == 200 and spans == ()
    assert not int(exchange.found["traceparent"][-2:], 16) & 1  # the flag of those that are kept
    assert (TRACE in exchange.found["traceparent"]) == (TRACE in sent)


def test_exemplars_name_traces_where_they_are_accepted(hoisted):
    metrics = ("/metrics", b"", {"accept": "application/openmetrics-text; version=1.0.0"})
    (_, exposed, plain), spans = asked(hoisted, rank(), metrics, ("/metrics", b"", {}))
    assert exposed.found["content-type"].startswith("application/openmetrics-text")
    families = {f.name: f for f in text_string_to_metric_families(exposed.answer.decode())}
    examples = [s.exemplar.labels for s in families["rankhoist_request_seconds"].samples if s.exemplar]
    assert f"{spans[-1].context.trace_id:032x}" in {labels["trace_id"] for labels in examples}
    assert plain.found["content-type"].startswith("text/plain") and b"trace_id" not in plain.answer


def test_slow_requests_are_logged_with_their_stages(hoisted, caplog: pytest.LogCaptureFixture):
    (_,), spans = asked(hoisted, rank(), slow_ms=1e-3)
    (line,) = [record for record in caplog.records if record.getMessage() == "slow request"]
    stages = [getattr(line, f"{stage}_ms") for stage in STAGES]
    assert line.ms >= sum(stages) > 0 and line.candidates == 5 and line.model == "ranker" and line.status == 200
    assert line.trace_id == f"{spans[-1].context.trace_id:032x}"
    caplog.clear()
    asked(hoisted, rank(), slow_ms=1e5)
    asked(hoisted, rank())
    assert [record for record in caplog.records if record.getMessage() == "slow request"] == []


def spans_of(text: str) -> list[dict[str, Any]]:
    """What the exporter to the console wrote: one JSON object after another."""
    found, decoder = [], json.JSONDecoder()
    while text := text.strip():
        span, end = decoder.raw_decode(text)
        found.append(span)
        text = text[end:]
    return found


def test_a_server_traces_both_protocols_and_sends_what_is_left_when_it_stops(hoisted, tmp_path: Path):
    hoisted.save(tmp_path / "ranker.rankhoist")
    arguments = [tmp_path / "ranker.rankhoist", "--grpc-port", 0, "--traces", "--slow-ms", 0.001]
    with (
        (tmp_path / "spans").open("w") as out,
        serving.serving(*arguments, stdout=out, OTEL_TRACES_EXPORTER="console", OTEL_SERVICE_NAME="clicks") as server,
    ):
        answer = server.call(TO_RANK, rank_body(inputs(1, 5)), {"traceparent": HEADER})
        assert answer.status == 200 and TRACE in answer.headers["traceparent"]
        client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.wait_for('serving')[0]['grpc_port']}")
        tensors = []
        for name, t in inputs(1, 5).items():
            tensors.append(tritonclient.grpc.InferInput(name, list(t.shape), v2.datatype_of(t.numpy())))
            tensors[-1].set_data_from_numpy(t.numpy())
        client.infer("ranker", tensors, headers={"traceparent": HEADER})
        with pytest.raises(InferenceServerException, match="missing"):
            client.infer("ranker", tensors[1:], headers={"traceparent": HEADER})
        exposed = server.call(
            "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
        ).body.decode()
        (counted,) = [f for f in text_string_to_metric_families(exposed) if f.name == "rankhoist_requests"]
        assert {sample.labels["protocol"] for sample in counted.samples} == {"rank", "grpc"}
        lines = server.wait_for("slow request", 2, trace_id=TRACE)
        assert {line["protocol"] for line in lines} == {"rank", "grpc"}
        assert all("queue_ms" in line for line in lines if line["status"] == 200)
    spans = spans_of((tmp_path / "spans").read_text())
    assert {span["context"]["trace_id"] for span in spans} == {f"0x{TRACE}"}
    requests = [span for span in spans if span["parent_id"] == f"0x{PARENT}"]
    assert [s["name"] for s in requests if s["name"].startswith("POST")] == ["POST /v1/models/{model}/rank"]
    assert [s["attributes"].get("error.type") for s in requests if "Grpc" in s["name"] or "GRPC" in s["name"]] == [
        None, "missing_input",
    ]  # fmt: skip
    assert {span["resource"]["attributes"]["service.name"] for span in spans} == {"clicks"}
    assert len(spans) == len(requests) + 2 * len(STAGES)


def test_an_exporter_that_there_is_not(tmp_path: Path, hoisted, monkeypatch, capsys):
    hoisted.save(tmp_path / "ranker.rankhoist")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "pigeon")
    assert cli.main(["serve", str(tmp_path / "ranker.rankhoist"), "--traces"]) == 2
    assert "'pigeon', for which no package is installed; there are console, otlp" in capsys.readouterr().err


def test_the_extra_is_named_where_it_is_absent(tmp_path: Path, hoisted, monkeypatch, capsys):
    hoisted.save(tmp_path / "ranker.rankhoist")
    monkeypatch.delitem(sys.modules, "rankhoist.serve.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    assert cli.main(["serve", str(tmp_path / "ranker.rankhoist"), "--traces"]) == 2
    assert "pip install 'rankhoist[otel]'" in capsys.readouterr().err
