"""The compose file, as far as it can be checked without Docker."""

import re
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import compose
import pytest
import yaml
from promql import DEPLOY

from tilewise.bento.settings import Settings

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
EXAMPLE = (DEPLOY / "compose.env.example").read_text(encoding="utf-8")


def test_all_that_watches_the_service_is_started_with_it() -> None:
    assert {"tilewise", "prometheus", "alertmanager", "grafana", "mlflow", "postgres"} <= SERVICES.keys()


def test_files_that_are_mounted_are_there_and_volumes_are_declared() -> None:
    mounts = [mount.split(":") for service in SERVICES.values() for mount in service.get("volumes", ())]
    for source, *_ in mounts:
        assert (DEPLOY / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
    assert {source for source, *_ in mounts if not source.startswith(".")} == COMPOSE["volumes"].keys()
    assert (DEPLOY / SERVICES["mlflow"]["build"]["context"] / "Dockerfile").is_file()


def test_nothing_is_reached_from_outside_unless_the_operator_says_so() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert all(port.startswith(("127.0.0.1:", "${TILEWISE_ADDRESS:-127.0.0.1}:")) for port in ports)


def test_mlflow_is_reached_by_those_alone_who_need_it() -> None:
    assert set(COMPOSE["networks"]) == {"default", "registry"}
    reaching = {name for name, service in SERVICES.items() if "registry" in service.get("networks", ())}
    assert reaching == {"tilewise", "mlflow", "postgres"}


def test_foreign_images_have_a_version_and_no_service_has_rights_that_it_does_not_need() -> None:
    for name, service in SERVICES.items():
        if not service["image"].startswith(("${", "tilewise-")):
            assert re.search(r":v?\d+\.\d+", service["image"]), name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "healthcheck" in service or service["restart"] == "no", name


def test_no_password_has_a_default_and_each_is_in_the_example() -> None:
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    secret = set(re.findall(r"\$\{(\w*PASSWORD\w*)", text))
    assert secret == set(re.findall(r"\$\{(\w*PASSWORD\w*):\?", text))
    assert {name for name in secret if re.search(rf"^{name}=$", EXAMPLE, re.MULTILINE)} == secret


def test_the_service_s_variables_are_settings_that_there_are() -> None:
    known = {f"TILEWISE_{name.upper()}" for name in Settings.model_fields}
    variables = {name for name in SERVICES["tilewise"]["environment"] if name.startswith("TILEWISE_")}
    assert variables <= known
    of_compose = {"TILEWISE_IMAGE", "TILEWISE_PORT", "TILEWISE_ADDRESS"}
    assert set(re.findall(r"TILEWISE_\w+", EXAMPLE)) <= known | of_compose


def test_prometheus_and_grafana_look_for_services_under_their_names_here() -> None:
    prometheus = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    (alertmanager,) = prometheus["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert alertmanager.split(":")[0] in SERVICES
    job = next(job for job in prometheus["scrape_configs"] if job["job_name"] == "tilewise")
    assert set(job["dns_sd_configs"][0]["names"]) <= SERVICES.keys()
    sources = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())[
        "datasources"
    ]
    assert {re.search(r"//(\w+):", source["url"])[1] for source in sources} <= SERVICES.keys()  # type: ignore[index]


def test_mlflow_s_image_has_the_version_that_the_project_is_tested_with() -> None:
    image = (DEPLOY / "mlflow" / "requirements.in").read_text(encoding="utf-8")
    pinned = re.search(r"^mlflow==(\S+)", Path(DEPLOY.parent / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert f"mlflow=={pinned[1]}\n" in image


def test_variables_are_replaced_as_docker_compose_does() -> None:
    content = {"a": ["${SET:-other} and ${UNSET:-}", 1], "b": "${NEEDED:?say so}"}
    replaced = compose.replace(content, {"SET": "here", "NEEDED": "given"})
    assert replaced == {"a": ["here and ", 1], "b": "given"}
    with pytest.raises(KeyError):
        compose.replace("${NEEDED:?say so}", {})


def test_a_run_without_docker_has_each_service_after_those_that_it_depends_on() -> None:
    names = compose.in_order(compose.read({"POSTGRES_PASSWORD": "a", "GRAFANA_PASSWORD": "b"}))
    assert set(names) == SERVICES.keys() - {"grafana"}
    for first, second in (("predictions-owner", "tilewise"), ("postgres", "mlflow")):
        assert names.index(first) < names.index(second)
    assert names.index("alertmanager") < names.index("prometheus")


def test_names_resolve_as_docker_s_server_resolves_them() -> None:
    server, client = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with server, client:
        server.bind(("127.0.0.1", 0))
        client.settimeout(10)
        threading.Thread(
            target=compose.answer_names, args=(server, {"tilewise": "127.0.1.7"}), daemon=True
        ).start()
        for name, kind, code, address in (
            ("tilewise", 1, 0, "127.0.1.7"),
            ("tilewise", 28, 0, None),
            ("other", 1, 3, None),
        ):
            question = bytes([len(name)]) + name.encode() + b"\0" + struct.pack("!HH", kind, 1)
            client.sendto(b"id" + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + question, server.getsockname())
            answer = client.recv(512)
            assert answer[:2] == b"id"
            assert answer[3] & 15 == code
            assert answer[12 : 12 + len(question)] == question
            assert answer[12 + len(question) :][-4:] == (socket.inet_aton(address) if address else b"")
