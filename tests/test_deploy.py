"""The files of deploy/, as far as they can be checked without a container engine."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from rankhoist_client import Client
from serving import CONTEXT, hoisted_ranker, inputs, serving

from rankhoist import cli

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/rankhoist.json").read_text())
METRIC = re.compile(r"\brankhoist_\w+")
LABELS = re.compile(r"(\w+)=~?\"|(\w+)!=\"|by \(([\w, ]+)\)")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that has answered requests of every kind."""
    path = tmp_path_factory.mktemp("deploy") / "ranker.rankhoist"
    hoisted_ranker().save(path)
    with serving(path) as served:
        url = f"http://127.0.0.1:{served.port}"
        given = {name: x.numpy() for name, x in inputs(1, 20).items()}
        context = {name: given.pop(name) for name in CONTEXT}
        with Client(url) as client:
            for _ in range(2):
                client.rank("ranker", context, given, context_key="u")
            assert np.isfinite(client.rank("ranker", context, given).outputs["click"]).all()
        yield url


def exposed(url: str) -> dict[str, set[str]]:
    """Sample name -> label names, of a running server."""
    found: dict[str, set[str]] = {}
    with Client(url) as client:
        for family in text_string_to_metric_families(client.metrics()):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def queries() -> list[str]:
    """Of every panel, and of the dashboard's variables."""
    variables = [v["query"]["query"] for v in DASHBOARD["templating"]["list"]]
    return variables + [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def unknown(query: str, metrics: dict[str, set[str]]) -> set[str]:
    """Metrics and labels of a query that a server does not have."""
    names = set(METRIC.findall(query))
    labels = {n.strip() for groups in LABELS.findall(query) for group in groups for n in group.split(",") if n.strip()}
    known = set().union(*(metrics.get(name, set()) for name in names))
    return (names - metrics.keys()) | (labels - known)


def test_the_dashboard_asks_for_what_a_server_has(url: str):
    metrics = exposed(url)
    assert len(queries()) > 15
    assert {query: found for query in queries() if (found := unknown(query, metrics))} == {}


def test_every_kind_of_metric_is_on_the_dashboard(url: str):
    """A metric that the server gains, or renames, is seen here."""
    families = {re.sub(r"_(total|bucket|count|sum|created)$", "", name) for name in exposed(url)}
    shown = {re.sub(r"_(total|bucket|count|sum)$", "", name) for query in queries() for name in METRIC.findall(query)}
    assert families - shown == set()


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("sum(rate(rankhoist_requests[5m]))", {"rankhoist_requests"}),
        ('sum by (code) (rankhoist_requests_total{model="x", status!="200"})', {"code"}),
        ("histogram_quantile(0.9, sum by (le) (rate(rankhoist_request_seconds_bucket[1m])))", set()),
    ],
)
def test_a_wrong_query_is_noticed(url: str, query: str, found: set[str]):
    assert unknown(query, exposed(url)) == found


def test_panels_lie_side_by_side():
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for p in [panel["gridPos"]]
        for x in range(p["x"], p["x"] + p["w"])
        for y in range(p["y"], p["y"] + p["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_grafana_finds_its_files():
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
    assert source["url"] == "http://prometheus:9090" and "prometheus" in COMPOSE["services"]
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/rankhoist.yaml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in COMPOSE["services"]["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]


def test_what_compose_mounts_exists():
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), source
            elif not source.startswith("${"):
                assert source in COMPOSE["volumes"]
        for other in service.get("depends_on", []):
            assert other in COMPOSE["services"]
    build = COMPOSE["services"]["ranker"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DEPLOY / "Dockerfile")


def test_prometheus_reads_the_server():
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert host in COMPOSE["services"] and f"EXPOSE {port}" in DOCKERFILE
    assert COMPOSE["services"][host]["ports"] == [f"127.0.0.1:{port}:{port}"]


def commands() -> list[list[str]]:
    """The server's arguments in both files."""
    (last,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.M)
    return [json.loads(last), [word.replace("${WORKERS:-2}", "2") for word in COMPOSE["services"]["ranker"]["command"]]]


@pytest.mark.parametrize("command", commands(), ids=["Dockerfile", "compose"])
def test_the_server_s_arguments_are_known_and_reach_it_from_outside(command: list[str]):
    arguments: Any = cli.parser().parse_args(command)
    assert arguments.host == "0.0.0.0" and arguments.artifacts == ["/models/ranker.rankhoist"]


def test_the_image():
    """It does not run as root, holds the torch that the project is tested with, and copies what there is."""
    assert re.search(r"^USER 1\d{4}:1\d{4}$", DOCKERFILE, re.M)
    version = re.search(r"^TORCH +:= torch==(\S+)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert f"ARG TORCH={version}\n" in DOCKERFILE
    allowed = {line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M):
        for source in shlex.split(line)[:-1]:
            assert source in allowed and (ROOT / source).exists()


def test_the_health_check_asks_a_route_that_answers(url: str):
    (asked,) = re.findall(r"urlopen\('http://127.0.0.1:8000(/\S+?)'", DOCKERFILE)
    with Client(url) as client:
        assert asked == "/v2/health/ready" and client.ready()
