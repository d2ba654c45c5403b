"""What is measured, for Prometheus: the workers write to files in one folder, and any of them answers for all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from rankhoist.runtime import Store
from rankhoist.runtime.replays import Counts

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus_client when it is imported
STAGES = ("parse", "queue", "context", "candidate", "encode")
Stages = dict[str, tuple[float, float]]  # stage -> when it began and when it ended, by time.perf_counter()
SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
COUNTS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)

REQUESTS = Counter("rankhoist_requests", "Requests for scores, by HTTP status", ["model", "protocol", "status"])
LATENCY = Histogram("rankhoist_request_seconds", "From the whole body to the answer", ["model"], buckets=SECONDS)
STAGE = Histogram("rankhoist_stage_seconds", "Parts of a request", ["model", "stage"], buckets=SECONDS)
CANDIDATES = Histogram("rankhoist_candidates", "Candidates per request", ["model"], buckets=COUNTS)
BATCH = Histogram(
    "rankhoist_batch_requests", "Requests per call", ["model"], buckets=(1, 2, 3, 4, 6, 8, 16, 32, 64, 128)
)
HITS = Counter("rankhoist_state_cache_hits", "Requests whose prepared state was kept", ["model"])
GROWN = Counter("rankhoist_state_cache_grown", "Requests whose context went on from one that was kept", ["model"])
MISSES = Counter("rankhoist_state_cache_misses", "Requests with a context_key that was not kept", ["model"])
BYTES = Gauge("rankhoist_state_cache_bytes", "Held by prepared states", ["model"], multiprocess_mode="livesum")
CALLS = Counter(
    "rankhoist_recorded_calls", "Stages that were replayed on a GPU, and those run as they are", ["model", "how"]
)
WAITING = Gauge("rankhoist_queue_length", "Requests that are read, wait or are scored", multiprocess_mode="livesum")
READY = Gauge("rankhoist_workers_ready", "Workers that answer", multiprocess_mode="livesum")
VERSION = Gauge("rankhoist_model_version", "1 for what is served", ["model", "version"], multiprocess_mode="livemax")
ITEMS = Gauge("rankhoist_catalogue_items", "In a catalogue", ["model"], multiprocess_mode="livemax")
ITEM_BYTES = Gauge("rankhoist_catalogue_bytes", "Of a catalogue's tables", ["model"], multiprocess_mode="livemax")
EDITION = Gauge(
    "rankhoist_catalogue_edition", "1, and 1 more with every change", ["model"], multiprocess_mode="livemin"
)
CHANGED = Gauge(
    "rankhoist_catalogue_changed_timestamp_seconds", "When a catalogue last changed, since 1970", ["model"],
    multiprocess_mode="livemin",
)  # fmt: skip


class ModelMetrics:
    """The metrics of one model, ready to be written."""

    def __init__(self, model: str) -> None:
        self.model, self.has_catalogue = model, False
        self.latency, self.candidates, self.batch = LATENCY.labels(model), CANDIDATES.labels(model), BATCH.labels(model)
        self.stage = {stage: STAGE.labels(model, stage) for stage in STAGES}
        self.calls = {how: CALLS.labels(model, how) for how in ("replayed", "as_they_are")}
        self._counted = Counts()
        self.hits, self.misses, self.bytes = HITS.labels(model), MISSES.labels(model), BYTES.labels(model)
        self.grown = GROWN.labels(model)

    def count(self, now: Counts) -> None:
        """How calls were run so far; a model that records none has none."""
        before, self._counted = self._counted, now
        for how, counter in self.calls.items():
            if (more := getattr(now, how) - getattr(before, how)) > 0:
                counter.inc(more)

    def catalogue(self, store: Store | None) -> None:
        """Say what the model's catalogue is; nothing of a model that never had one."""
        if store is None and not self.has_catalogue:
            return
        self.has_catalogue = True
        values = (0, 0, 0, 0) if store is None else (len(store), store.bytes, *store.edition.about)
        for gauge, value in zip((ITEMS, ITEM_BYTES, EDITION, CHANGED), values, strict=True):
            gauge.labels(self.model).set(value)


@cache
def counted(model: str, protocol: str, status: int) -> Counter:
    """The counter of such answers."""
    return REQUESTS.labels(model, protocol, str(status))


def exposed(accepted: str = "") -> tuple[bytes, str]:
    """All metrics, of all workers where there are several, and the format: the one of OpenMetrics where it is accepted.

    That one has exemplars, which are kept in the memory of one process: not where there are workers.
    """
    write, content_type = choose_encoder(accepted)
    if FOLDER not in os.environ:
        return write(REGISTRY), content_type
    registry = CollectorRegistry()
    registry.register(_Workers())
    return write(registry), content_type


class _Workers(Collector):
    """The metrics of all workers, without the versions that are served no more: files keep what was in them."""

    def collect(self) -> Iterator[Metric]:
        collector = MultiProcessCollector(None)  # type: ignore[no-untyped-call]
        for metric in collector.collect():  # type: ignore[no-untyped-call]
            if metric.name == "rankhoist_model_version":
                metric.samples = [sample for sample in metric.samples if sample.value]
            yield metric
