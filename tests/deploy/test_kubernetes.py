"""The Kubernetes manifests, against the API server's schemas, what pods may do, and each other."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from canary import SERVICE_ALERTS
from monitoring import prometheus_rule
from promql import DEPLOY

MANIFESTS = DEPLOY / "kubernetes"
NOT_APPLIED = ("compose.yaml", "kustomization.yaml")
FILES = sorted(path for path in DEPLOY.rglob("*.yaml") if path.name not in NOT_APPLIED)
EXTENSIONS = {"AnalysisTemplate", "HTTPRoute", "PrometheusRule", "RayJob", "Rollout", "ServiceMonitor"}
WRITABLE_ROOT = {"ray-head", "ray-worker"}  # no Ray cluster has been run on a read-only root

Resource = dict[str, Any]


@cache
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


def pod_templates(part: Any, name: str) -> Iterator[tuple[str, Resource]]:
    """Give each pod template within a resource, with the name of its first container."""
    if isinstance(part, dict) and "containers" in part.get("spec", {}):
        yield f"{name}-{part['spec']['containers'][0]['name']}", part
    elif isinstance(part, dict | list):
        for inner in part.values() if isinstance(part, dict) else part:
            yield from pod_templates(inner, name)


PODS = dict(
    found
    for resource in resources()
    for found in pod_templates(resource, f"{resource['kind']}-{resource['metadata']['name']}")
)


def test_the_pods_of_all_workloads_are_known_here() -> None:
    assert sorted(name.partition("-")[0] for name in PODS) == ["Deployment"] * 2 + ["Job"] + ["RayJob"] * 2


def validate(resource: Resource) -> None:
    kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(
    "resource",
    [found for found in resources() if found["kind"] not in EXTENSIONS],
    ids=lambda found: f"{found['kind']}-{found['metadata']['name']}",
)
def test_the_api_server_would_take_each_resource(resource: Resource) -> None:
    validate(resource)


@pytest.mark.parametrize("template", PODS.values(), ids=PODS)
def test_the_api_server_would_take_each_pod_also_of_an_extension(template: Resource) -> None:
    validate({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "any"}, "template": template})


def test_the_readme_says_which_kinds_are_validated_and_which_are_not() -> None:
    readme = (DEPLOY / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (validated|not validated)\b[^|]*\|(.*)\|$", readme, re.MULTILINE))
    kinds = {found["kind"] for found in [*resources(), prometheus_rule()]}
    assert set(re.findall(r"`(\w+)`", rows["validated"])) == kinds - EXTENSIONS
    assert set(re.findall(r"`(\w+)`", rows["not validated"])) == EXTENSIONS
    for found in resources():
        if found["kind"] in EXTENSIONS:
            with pytest.raises(kubernetes_validate.SchemaNotFoundError):
                validate(found)


@pytest.mark.parametrize("template", PODS.values(), ids=PODS)
def test_pods_run_without_rights_and_within_limits(template: Resource) -> None:
    """As the namespace asks, which enforces Kubernetes' restricted standard, and on a read-only root."""
    pod = template["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not [key for key in pod if key.startswith("host")]
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
    for each in [*pod["containers"], *pod.get("initContainers", [])]:
        rights = dict(each["securityContext"])
        assert rights.pop("readOnlyRootFilesystem", False) is (each["name"] not in WRITABLE_ROOT)
        assert rights == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert "memory" in each["resources"]["limits"]


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
        if found["kind"] not in EXTENSIONS:
            validate(found)
        if found["kind"] == "Deployment":
            assert ":" in container(found)["image"].rpartition("/")[2]


def variables(deployment: Resource) -> dict[str, Resource]:
    return {variable["name"]: variable for variable in container(deployment)["env"]}


def test_without_its_keys_no_pod_of_the_service_starts() -> None:
    """An optional secret would leave the service open where it is absent."""
    for deployment in of_kind("Deployment").values():
        keys = variables(deployment)["TILEWISE_API_KEYS"]
        assert keys["valueFrom"] == {"secretKeyRef": {"name": "tilewise", "key": "api-keys"}}


def test_the_service_has_two_gigabytes_for_each_process() -> None:
    """700 MB with scenes, and bodies and tiles that are decoded at once (docs/security.md)."""
    for deployment in of_kind("Deployment").values():
        limit = re.fullmatch(r"(\d+)Gi", container(deployment)["resources"]["limits"]["memory"])
        assert limit
        assert int(limit[1]) >= 2 * int(variables(deployment)["TILEWISE_WORKERS"]["value"])


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


def test_only_pods_of_ray_and_the_submitter_reach_its_ports_and_the_operator_only_the_dashboard() -> None:
    """Ray lets everybody who reaches its ports run code."""
    policy = of_kind("NetworkPolicy")["tilewise-batch"]["spec"]
    pods_of_ray = {"podSelector": {"matchExpressions": [{"key": "ray.io/cluster", "operator": "Exists"}]}}
    assert policy["podSelector"] == pods_of_ray["podSelector"]
    assert policy["policyTypes"] == ["Ingress"]
    submitter = {"batch.kubernetes.io/job-name": next(iter(of_kind("RayJob")))}  # KubeRay names its Job so
    own, operator = policy["ingress"]
    assert own == {"from": [pods_of_ray, {"podSelector": {"matchLabels": submitter}}]}
    assert operator == {
        "from": [{"namespaceSelector": {"matchLabels": {"tilewise/may-manage-ray": "true"}}}],
        "ports": [{"port": 8265, "protocol": "TCP"}],
    }


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
