"""The manifests of deploy/kubernetes and deploy/kserve: they hold to Kubernetes' schemas and fit the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import serving
import yaml
from prometheus_client.parser import text_string_to_metric_families

from rankhoist import cli
from rankhoist.serve.config import Settings

VERSION = "1.31"  # of Kubernetes
DEPLOY = Path(__file__).parents[1] / "deploy"
CLUSTER, KSERVE = DEPLOY / "kubernetes", DEPLOY / "kserve"
MANIFESTS = [*CLUSTER.glob("*.yaml"), *KSERVE.glob("*.yaml")]
KINDS = {manifest["kind"]: manifest for path in MANIFESTS if "kind" in (manifest := yaml.safe_load(path.read_text()))}
POD = KINDS["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
(PREDICTOR,) = KINDS["ServingRuntime"]["spec"]["containers"]
SETTINGS = {name: field.default for name, field in Settings.model_fields.items()}


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"Kustomization", "ServingRuntime", "InferenceService"}))
def test_a_manifest_holds_to_its_schema(kind: str):
    """Strictly: no field that the schema lacks."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    kubernetes_validate.validate(KINDS[kind], VERSION, strict=True)
    wrong = {**KINDS[kind], "spec": {**KINDS[kind]["spec"], "unheard": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_a_kustomization_has_every_manifest():
    resources = KINDS["Kustomization"]["resources"]
    others = {"kustomization.yaml", "adapter.yaml"}  # itself, and values for a chart
    assert {*resources} | others == {path.name for path in CLUSTER.glob("*.yaml")} and len(resources) == 4
    assert KINDS["Kustomization"]["images"][0]["name"] == CONTAINER["image"]


def test_selectors_find_the_pods():
    labels = POD["metadata"]["labels"].items()
    spread = POD["spec"]["topologySpreadConstraints"][0]["labelSelector"]
    for selector in (KINDS["Deployment"]["spec"]["selector"], KINDS["PodDisruptionBudget"]["spec"]["selector"], spread):
        assert selector["matchLabels"].items() <= labels
    assert KINDS["Service"]["spec"]["selector"].items() <= labels
    target = KINDS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", KINDS["Deployment"]["metadata"]["name"])
    assert "replicas" not in KINDS["Deployment"]["spec"]  # it would undo what the autoscaler does
    least = KINDS["HorizontalPodAutoscaler"]["spec"]["minReplicas"]
    assert least > KINDS["PodDisruptionBudget"]["spec"]["maxUnavailable"]


def test_ports_and_volumes_are_those_of_the_container():
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    arguments: Any = cli.parser().parse_args(CONTAINER["args"])
    assert ports == {"http": SETTINGS["port"], "grpc": int(arguments.grpc_port)}
    assert {port["targetPort"] for port in KINDS["Service"]["spec"]["ports"]} == ports.keys()
    assert POD["metadata"]["annotations"]["prometheus.io/port"] == str(ports["http"])
    assert {m["name"] for m in CONTAINER["volumeMounts"]} == {v["name"] for v in POD["spec"]["volumes"]}
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    assert {m["mountPath"] for m in CONTAINER["volumeMounts"] if not m.get("readOnly")} == {"/tmp"}


def test_the_server_s_arguments_are_known_and_reach_it_from_outside():
    predictor = [word.replace("{{.Name}}", "ranker") for word in PREDICTOR["args"]]
    for command, place in ((CONTAINER["args"], "/models/ranker"), (predictor, "/mnt/models")):
        arguments: Any = cli.parser().parse_args(command)
        assert arguments.host == "0.0.0.0" and arguments.artifacts == [place] and arguments.name == ["ranker"]
        assert int(arguments.workers) == 2
    assert int(arguments.port) == PREDICTOR["ports"][0]["containerPort"]
    assert CONTAINER["resources"]["requests"]["cpu"] == "2"  # one for each worker


def test_there_is_time_to_drain():
    (_, seconds) = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert POD["spec"]["terminationGracePeriodSeconds"] > int(seconds) + SETTINGS["drain_seconds"]
    assert POD["spec"]["enableServiceLinks"] is False


def test_kserve_s_service_asks_for_the_runtime():
    model, runtime = KINDS["InferenceService"]["spec"]["predictor"]["model"], KINDS["ServingRuntime"]
    assert model["runtime"] == runtime["metadata"]["name"]
    formats = [{"name": f["name"], "version": f["version"]} for f in runtime["spec"]["supportedModelFormats"]]
    assert model["modelFormat"] in formats and model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert PREDICTOR["name"] == "kserve-container"  # the one that KServe looks for
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == str(PREDICTOR["ports"][0]["containerPort"])


def test_probes_and_the_autoscaler_ask_what_a_server_answers(tmp_path: Path):
    """A server as KServe starts it: a folder with one artifact, and a name."""
    serving.hoisted_packed().save(tmp_path / "v1.rankhoist")
    kinds = ("startupProbe", "readinessProbe", "livenessProbe")
    paths = [container[kind]["httpGet"]["path"] for container in (CONTAINER, PREDICTOR) for kind in kinds]
    with serving.serving(tmp_path, "--name", "ranker") as server:
        found = {path: server.call(path.replace("{{.Name}}", "ranker")).status for path in paths}
        assert found == dict.fromkeys(paths, 200) and len(found) == 5
        text = server.call("/metrics").body.decode()
    metrics = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    (metric,) = KINDS["HorizontalPodAutoscaler"]["spec"]["metrics"]
    (rule,) = yaml.safe_load((CLUSTER / "adapter.yaml").read_text())["rules"]["custom"]
    name = metric["pods"]["metric"]["name"]
    assert name in metrics and rule["seriesQuery"].startswith(f"{name}{{") and rule["name"]["matches"] == f"^{name}$"
    assert KINDS["Deployment"]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"] == "/metrics"
