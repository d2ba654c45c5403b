"""Traces for OpenTelemetry: a span for each request for scores, and in it one for each stage.

Where they go and how many are kept is said by OpenTelemetry's own variables, in the environment of the server:

    OTEL_EXPORTER_OTLP_ENDPOINT     default http://localhost:4318
    OTEL_TRACES_EXPORTER            default otlp; `console` writes them to standard output
    OTEL_TRACES_SAMPLER             for example parentbased_traceidratio, with OTEL_TRACES_SAMPLER_ARG=0.01

A trace that a caller began (`traceparent`) is continued, with the caller's choice whether it is kept.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from importlib.metadata import entry_points

from rankhoist.errors import ExtraError, ServeError
from rankhoist.serve.asked import Asked

MISSING = "traces need packages that are not installed: pip install 'rankhoist[otel]'"

try:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ExtraError(MISSING) from error

EXPORTERS = "opentelemetry_traces_exporter"  # the entry points by which packages offer theirs
PROTOCOLS = {"otlp": "otlp_proto_http"}  # what is meant where no protocol is named
# Name and attributes of a span, by protocol, as OpenTelemetry's conventions have them.
SERVICE, METHOD = "inference.GRPCInferenceService", "ModelInfer"
HTTP = {"http.request.method": "POST"}
SPANS = {
    "rank": ("POST /v1/models/{model}/rank", HTTP | {"http.route": "/v1/models/{model}/rank"}),
    "v2": ("POST /v2/models/{model}/infer", HTTP | {"http.route": "/v2/models/{model}/infer"}),
    "grpc": (f"{SERVICE}/{METHOD}", {"rpc.system": "grpc", "rpc.service": SERVICE, "rpc.method": METHOD}),
}
CONTEXT = TraceContextTextMapPropagator()


class Tracing:
    """The spans of one process.

    Args:
        provider: makes and exports them; by default as the environment says.

    Raises:
        ServeError: the environment names an exporter that there is not.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider or _provider()
        self._tracer = self._provider.get_tracer("rankhoist")

    def begin(self, protocol: str, headers: Mapping[str, str]) -> tuple[Span, dict[str, str]]:
        """The span of a request that arrives now, and the headers by which its answer names it."""
        name, attributes = SPANS[protocol]
        span = self._tracer.start_span(name, CONTEXT.extract(headers), SpanKind.SERVER, attributes)
        answer: dict[str, str] = {}
        CONTEXT.inject(answer, set_span_in_context(span))
        return span, answer

    def end(self, asked: Asked) -> dict[str, str] | None:
        """End the span of a request, with its stages; returns what names it beside a measured number, if it is kept."""
        span = asked.span
        assert span is not None, "it was begun"
        if not span.is_recording():
            return None
        past = time.time_ns() - time.perf_counter_ns()
        parent = set_span_in_context(span)
        for stage, (start, end) in asked.stages.items():
            self._tracer.start_span(stage, parent, start_time=past + int(1e9 * start)).end(past + int(1e9 * end))
        span.set_attribute("rankhoist.model", asked.name)
        if asked.model is not None:
            span.set_attribute("rankhoist.version", asked.model.version)
        if asked.rows is not None:
            span.set_attribute("rankhoist.candidates", asked.rows)
        if asked.protocol != "grpc":
            span.set_attribute("http.response.status_code", asked.status)
        if asked.status != 200:
            span.set_attribute("error.type", asked.reason)
        if asked.status >= 500:
            span.set_status(Status(StatusCode.ERROR, asked.said))
        span.end()
        found = span.get_span_context()
        return {"trace_id": f"{found.trace_id:032x}", "span_id": f"{found.span_id:016x}"}

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()


def _provider() -> TracerProvider:
    resource = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "rankhoist")})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter()))
    return provider


def exporter() -> SpanExporter:
    """As OTEL_TRACES_EXPORTER names it.

    Raises:
        ExtraError: the exporter of the extra `otel` is not installed.
        ServeError: there is none of that name.
    """
    wanted = os.environ.get("OTEL_TRACES_EXPORTER", "otlp")
    found = [*entry_points(group=EXPORTERS, name=PROTOCOLS.get(wanted, wanted))]
    if found:
        made: SpanExporter = found[0].load()()
        return made
    if wanted in PROTOCOLS:
        raise ExtraError(MISSING)
    known = ", ".join(sorted({*PROTOCOLS, *entry_points(group=EXPORTERS).names}))
    raise ServeError(f"OTEL_TRACES_EXPORTER is {wanted!r}, for which no package is installed; there are {known}")
