"""The Kubernetes manifests, against the API server's own schemas and against each other."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from canary import SERVICE_ALERTS
from promql import DEPLOY

MANIFESTS = DEPLOY / "kubernetes"
FILES = sorted(path for path in MANIFESTS.rglob("*.yaml") if path.name != "kustomization.yaml")
CORE = ("v1", "apps/v1", "autoscaling/v2", "policy/v1", "networking.k8s.io/v1")

Resource = dict[str, Any]


def resources() -> list[Resource]:
    return [found for path in FILES for found in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def of_kind(kind: str) -> dict[str, Resource]:
    return {found["metadata"]["name"]: found for found in resources() if found["kind"] == kind}


def labels_of_pods(deployment: Resource) -> dict[str, str]:
    labels: dict[str, str] = deployment["spec"]["template"]["metadata"]["labels"]
    return labels


def container(deployment: Resource) -> Resource:
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize(
    "resource", resources(), ids=lambda found: f"{found['kind']}-{found['metadata']['name']}"
)
def test_the_api_server_would_take_each_resource(resource: Resource) -> None:
    if resource["apiVersion"] not in CORE:
        pytest.skip(
            f"{resource['apiVersion']} is an extension, whose schema kubernetes-validate does not ship"
        )
    kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("overlay", ["base", "canary", "rollouts"])
def test_each_overlay_names_all_of_its_files_and_none_besides(overlay: str) -> None:
    folder = MANIFESTS / overlay
    named = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
    assert {name for name in named if not (folder / name).is_dir()} == files


@pytest.mark.parametrize("overlay", ["base", "canary", "rollouts"])
def test_overlays_are_put_together_by_kustomize_with_images_that_have_a_version(overlay: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed; https://kubernetes.io/docs/tasks/tools")
    command = ["kubectl", "kustomize", str(MANIFESTS / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for found in yaml.safe_load_all(done.stdout):
        if found["kind"] == "Deployment":
            assert ":" in container(found)["image"].rpartition("/")[2]


def test_the_bento_s_user_runs_without_rights() -> None:
    for deployment in of_kind("Deployment").values():
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        rights = container(deployment)["securityContext"]
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert rights["readOnlyRootFilesystem"]
        assert not rights["allowPrivilegeEscalation"]


def test_services_find_the_pods_of_their_track_only() -> None:
    deployments = of_kind("Deployment")
    for name, service in of_kind("Service").items():
        selector = service["spec"]["selector"].items()
        assert [n for n, found in deployments.items() if selector <= labels_of_pods(found).items()] == [name]
        (port,) = service["spec"]["ports"]
        assert port["targetPort"] in {p["name"] for p in container(deployments[name])["ports"]}


def test_the_candidate_is_the_champion_but_for_its_image_and_its_number() -> None:
    champion, candidate = (
        dict(of_kind("Deployment")[name]["spec"]) for name in ("tilewise", "tilewise-candidate")
    )
    assert candidate.pop("replicas") == 1
    assert "replicas" not in champion  # the autoscaler's
    text = yaml.safe_dump(candidate, sort_keys=True).replace("image: tilewise-candidate", "image: tilewise")
    assert text.replace("track: candidate", "track: champion") == yaml.safe_dump(champion, sort_keys=True)


def test_the_route_shares_tiles_out_by_weight_and_keeps_tasks_on_the_champion() -> None:
    tiles, rest = of_kind("HTTPRoute")["tilewise"]["spec"]["rules"]
    assert [match["path"]["value"] for match in tiles["matches"]] == ["/classify"]
    assert {backend["name"]: backend["weight"] for backend in tiles["backendRefs"]} == {
        "tilewise": 95,
        "tilewise-candidate": 5,
    }
    assert [backend["name"] for backend in rest["backendRefs"]] == ["tilewise"]
    ports = {name: service["spec"]["ports"][0]["port"] for name, service in of_kind("Service").items()}
    for backend in tiles["backendRefs"] + rest["backendRefs"]:
        assert backend["port"] == ports[backend["name"]]


def test_autoscaler_and_disruption_budget_mean_the_champion() -> None:
    scaler = of_kind("HorizontalPodAutoscaler")["tilewise"]["spec"]
    assert scaler["scaleTargetRef"]["name"] in of_kind("Deployment")
    assert 1 < scaler["minReplicas"] < scaler["maxReplicas"]
    budget = of_kind("PodDisruptionBudget")["tilewise"]["spec"]
    assert (
        budget["selector"]["matchLabels"].items() <= labels_of_pods(of_kind("Deployment")["tilewise"]).items()
    )


def test_prometheus_scrapes_both_tracks_under_the_job_that_the_rules_look_for() -> None:
    monitor = of_kind("ServiceMonitor")["tilewise"]["spec"]
    for service in of_kind("Service").values():
        assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert service["metadata"]["labels"][monitor["jobLabel"]] == "tilewise"
        assert monitor["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    (place,) = monitor["endpoints"][0]["metricRelabelings"]
    assert (place["regex"], place["replacement"]) == ("candidate;champion", "candidate")


def test_the_policy_opens_the_service_s_port_to_those_it_names_and_lets_nothing_else_in() -> None:
    policy = of_kind("NetworkPolicy")["tilewise"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    for deployment in of_kind("Deployment").values():
        assert policy["podSelector"]["matchLabels"].items() <= labels_of_pods(deployment).items()
    (way_in,) = policy["ingress"]
    assert way_in["from"]
    assert [port["port"] for port in way_in["ports"]] == ["http"]
    assert all(rule["to"] for rule in policy["egress"])


def rollout() -> Resource:
    return dict(of_kind("Rollout")["tilewise"]["spec"])


def test_a_rollout_names_the_services_the_route_and_the_pods_that_there_are() -> None:
    canary = rollout()["strategy"]["canary"]
    assert {canary["stableService"], canary["canaryService"]} == of_kind("Service").keys()
    for service, metadata in (("stableService", "stableMetadata"), ("canaryService", "canaryMetadata")):
        selector = of_kind("Service")[canary[service]]["spec"]["selector"]
        assert selector.items() <= (rollout()["selector"]["matchLabels"] | canary[metadata]["labels"]).items()
    assert canary["trafficRouting"]["plugins"]["argoproj-labs/gatewayAPI"]["httpRoute"] in of_kind(
        "HTTPRoute"
    )
    assert rollout()["workloadRef"]["name"] in of_kind("Deployment")
    assert {one["templateName"] for one in canary["analysis"]["templates"]} == of_kind(
        "AnalysisTemplate"
    ).keys()


FIRING = 'ALERTS{alertstate="firing", job="tilewise", '


@pytest.mark.parametrize(
    ("alert", "blames"),
    [
        ('alertname="TilewiseCanaryFails", action="rollback", place="candidate"}', [True, False]),
        ('alertname="TilewiseDown", track="candidate"}', [True, False]),
        ('alertname="TilewiseDown", track="champion"}', [False, False]),
        *((f'alertname="{name}", place="champion"}}', [False, True]) for name in SERVICE_ALERTS),
        ('alertname="TilewiseFails", place="candidate"}', [False, False]),
        ('alertname="TilewiseSlow"}', [False, False]),
    ],
)
def test_a_rollout_ends_by_the_alerts_that_end_a_canary(
    tmp_path: Path, alert: str, blames: list[bool]
) -> None:
    """Asked as Prometheus answers."""
    metrics = of_kind("AnalysisTemplate")["tilewise"]["spec"]["metrics"]
    queries = [metric["provider"]["prometheus"]["query"] for metric in metrics]
    assert {metric["successCondition"] for metric in metrics} == {"result[0] == 0"}
    asked = [
        {"expr": query, "eval_time": "1m", "exp_samples": [{"labels": "{}", "value": float(blamed)}]}
        for query, blamed in zip(queries, blames, strict=True)
    ]
    series = [{"series": FIRING + alert, "values": "1 1 1"}]
    case = {"interval": "1m", "input_series": series, "promql_expr_test": asked}
    file = tmp_path / "case.json"  # which is YAML, too
    file.write_text(json.dumps({"tests": [case]}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
