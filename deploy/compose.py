"""Run deploy/compose.yaml without Docker, and check that its services work together.

    unshare --net --mount --pid --fork --kill-child --mount-proc python deploy/compose.py ROOTS.json

`deploy/ci/images compose` makes the roots and calls it so: the services have a network and processes of their
own, and end with this one. Commands, variables, volumes, order and health checks are those of the file. The
images of the service and of MLflow are ours; Debian's Prometheus, Alertmanager and PostgreSQL stand in for
theirs; Grafana is left out. Every service has an address of its own, which a DNS server here knows by the
service's name, as Docker's does.
"""

import json
import os
import re
import secrets
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import httpx
import psycopg
import yaml
from containers import DEPLOY, Root, Volume, bootstrap, run
from monitoring import START_S, started

from tilewise.bento.client import Client
from tilewise.datasets.acquire.synthetic import synthesise_tile, write_tile
from tilewise.datasets.core.console import one_line_errors

STAND_IN_PACKAGES = "prometheus,prometheus-alertmanager,postgresql,wget"
LEFT_OUT = {"grafana": "Debian has no Grafana"}
SCRAPE_SECONDS = 90
_VARIABLE = r"\$\{(\w+)(:[-?])([^}]*)\}"
_QUIET = {"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}
_POSTGRES = """
set -e; cd /; export PATH="$(echo /usr/lib/postgresql/*/bin):$PATH" PGDATA=/var/lib/postgresql/data
mkdir -p /run/postgresql; printf %s "$POSTGRES_PASSWORD" > /tmp/password
initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth=scram-sha-256 --locale=C.UTF-8
echo "CREATE DATABASE $POSTGRES_DB" | postgres --single postgres
echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
exec postgres -c listen_addresses='*'
"""
# User and first words of the programs that stand in. Alertmanager finds no private address to advertise here.
STAND_INS = {
    "prometheus": ("nobody:nogroup", ["prometheus"]),
    "alertmanager": (
        "nobody:nogroup",
        ["prometheus-alertmanager", "--cluster.advertise-address=127.0.1.1:9094"],
    ),
    "postgres": ("postgres:postgres", ["sh", "-c", _POSTGRES]),
}


@dataclass(frozen=True)
class Service:
    """A service of the compose file, and the root that it runs on."""

    name: str
    spec: dict[str, Any]
    root: Root
    volumes: tuple[Volume, ...]

    @property
    def command(self) -> list[str]:
        """Its entry point and command."""
        return [*self.spec.get("entrypoint", self.root.entrypoint), *self.spec.get("command", ())]

    @property
    def user(self) -> str:
        """Its user and group."""
        return "root:root" if self.spec.get("user") == "root" else self.root.user

    @property
    def health(self) -> list[str]:
        """The command of its health check."""
        kind, *words = self.spec["healthcheck"]["test"]
        return ["sh", "-c", *words] if kind == "CMD-SHELL" else words

    @property
    def patience(self) -> float:
        """Seconds after which Docker would call it unhealthy."""
        check = self.spec["healthcheck"]
        start, interval = (float(check.get(key, "0s").rstrip("s")) for key in ("start_period", "interval"))
        return start + interval * int(check["retries"])


@one_line_errors
def main() -> None:
    """Start all services, check them together, and end them."""
    roots = {name: Root.from_json(root) for name, root in json.loads(Path(sys.argv[1]).read_text()).items()}
    os.environ |= _QUIET | {"NO_PROXY": "*"}
    work = Path(sys.argv[1]).with_suffix("")
    work.mkdir()
    with ExitStack() as stack:
        passwords = {key: secrets.token_hex(24) for key in ("POSTGRES_PASSWORD", "GRAFANA_PASSWORD")}
        specs = read(passwords)
        services = [make_service(name, specs[name], roots, work) for name in in_order(specs)]
        open_network([service.name for service in services], work)
        for service in services:
            start(service, work, stack)
        check_tile(work)
        check_monitoring()
        check_registry(passwords["POSTGRES_PASSWORD"], work)
        stack.close()
        check_log(work)
    print("  not run: " + ", ".join(f"{name} ({why})" for name, why in LEFT_OUT.items()))


def read(variables: dict[str, str]) -> dict[str, Any]:
    """Return the services of the compose file with its variables replaced, as Docker Compose does.

    Raises:
        KeyError: a variable without a default is not among `variables`.
    """
    content = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    services: dict[str, Any] = replace(content["services"], variables)
    return services


def replace(content: Any, variables: dict[str, str]) -> Any:
    """Return YAML's content with `${NAME:-default}` and `${NAME:?message}` replaced in its strings."""
    if isinstance(content, dict):
        return {key: replace(value, variables) for key, value in content.items()}
    if isinstance(content, list):
        return [replace(value, variables) for value in content]
    return re.sub(_VARIABLE, partial(value_of, variables), content) if isinstance(content, str) else content


def value_of(variables: dict[str, str], found: "re.Match[str]") -> str:
    """Return the value of a variable in the compose file."""
    name, kind, default = found.groups()
    return variables.get(name, default) if kind == ":-" else variables[name]


def in_order(specs: dict[str, Any]) -> list[str]:
    """Return the services that can run here, each after those that it depends on."""
    order = TopologicalSorter({name: set(spec.get("depends_on", ())) for name, spec in specs.items()})
    return [name for name in order.static_order() if name not in LEFT_OUT]


def make_service(name: str, spec: dict[str, Any], roots: dict[str, Root], work: Path) -> Service:
    """Return a service with its root; a new volume belongs to the owner of its folder in the image."""
    if name in STAND_INS:
        user, program = STAND_INS[name]
        root = Root(roots["debian"].folder, user, {"PATH": "/usr/sbin:/usr/bin"}, tuple(program))
    else:
        root = roots[spec["image"]]
    volumes = []
    for text in spec.get("volumes", ()):
        source, target, *options = text.split(":")
        path = (DEPLOY if source.startswith(".") else work) / source
        if not path.exists():
            make_volume(path, root, target, stand_in=name in STAND_INS)
        volumes.append(Volume(path, target, *options))
    return Service(name, spec, root, tuple(volumes))


def make_volume(path: Path, root: Root, target: str, stand_in: bool) -> None:
    """Make a named volume."""
    inside = root.folder / target.lstrip("/")
    if stand_in:  # Debian's packages lack the folders that the official images have
        user, group = root.user.split(":")
        run("chroot", root.folder, "install", "--directory", f"--owner={user}", f"--group={group}", target)
    path.mkdir()
    os.chown(path, inside.stat().st_uid, inside.stat().st_gid)


def start(service: Service, work: Path, stack: ExitStack) -> None:
    """Start a service and wait until it is healthy; one without a health check must end by itself."""
    variables = {key: str(value) for key, value in service.spec.get("environment", {}).items()}
    command = service.root.enter(service.command, variables, service.volumes, service.user)
    if "healthcheck" not in service.spec:
        run(*command, timeout=START_S)
        print(f"  {service.name} ended successfully")
        return
    log, began = work / f"{service.name}.log", time.monotonic()
    process = stack.enter_context(started(service.name, command, work))
    await_healthy(service, process, log)
    seconds = time.monotonic() - began
    print(f"  {service.name} is healthy after {seconds:.0f} s (limit {service.patience:.0f} s)", flush=True)


def await_healthy(service: Service, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a service's own health check; this machine's cores may be busy."""
    end = time.monotonic() + max(service.patience, START_S)
    check = service.root.join(process.pid, service.health, service.user)
    while time.monotonic() < end and process.poll() is None:
        if subprocess.run(check, capture_output=True, check=False, timeout=60).returncode == 0:
            return
        time.sleep(1)
    sys.exit(f"{service.name} is not healthy; its last output:\n{log.read_text(errors='replace')[-2000:]}")


def open_network(names: list[str], work: Path) -> None:
    """Open the loopback interface, and let the services' names resolve to addresses of their own."""
    run("ip", "link", "set", "lo", "up")
    addresses = {name: f"127.0.1.{number}" for number, name in enumerate(names, 1)}
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    threading.Thread(target=answer_names, args=(server, addresses), daemon=True).start()
    (work / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    run("mount", "--bind", work / "resolv.conf", Path("/etc/resolv.conf").resolve())


def answer_names(server: socket.socket, addresses: dict[str, str]) -> None:
    """Answer DNS queries for `addresses` (RFC 1035); other names do not exist."""
    while True:
        query, sender = server.recvfrom(512)
        labels, place = [], 12
        while length := query[place]:
            labels.append(query[place + 1 : place + 1 + length].decode("ascii", "replace"))
            place += 1 + length
        (kind,) = struct.unpack("!H", query[place + 1 : place + 3])
        address = addresses.get(".".join(labels).lower())
        answer = b""
        if address and kind == 1:  # type A
            answer = struct.pack("!HHHIH", 0xC00C, 1, 1, 5, 4) + socket.inet_aton(address)
        flags = 0x8580 if address else 0x8583  # an authoritative answer, or no such name
        header = query[:2] + struct.pack("!HHHHH", flags, 1, bool(answer), 0, 0)
        server.sendto(header + query[12 : place + 5] + answer, sender)


def check_tile(work: Path) -> None:
    """Classify a tile by the service's name."""
    write_tile(synthesise_tile("Forest", 1, 1), work / "tile.tif")
    with Client("http://tilewise:3000") as client:
        (result,) = client.classify([work / "tile.tif"])
    print(f"  tilewise classifies a tile: {result.class_name}")


def check_monitoring() -> None:
    """Wait until Prometheus has scraped the service and has found Alertmanager."""

    def scraped() -> bool:
        found = ask_prometheus("query?query=sum(tilewise_requests_total{job='tilewise'})")["result"]
        return bool(found)

    await_true("Prometheus has the service's figures", scraped)
    targets = ask_prometheus("targets")["activeTargets"]
    states = {target["scrapeUrl"]: target["health"] for target in targets}
    known = [entry["url"] for entry in ask_prometheus("alertmanagers")["activeAlertmanagers"]]
    if "up" not in {state for url, state in states.items() if ":3000" in url} or not known:
        sys.exit(f"targets: {states}; Alertmanagers: {known}")
    rules = sum(len(group["rules"]) for group in ask_prometheus("rules")["groups"])
    print(f"  prometheus scrapes {states}, sends alerts to {known[0]} and has {rules} rules")


def ask_prometheus(path: str) -> Any:
    """Return the data of an answer of Prometheus' API."""
    return (
        httpx.get(f"http://prometheus:9090/api/v1/{path}", trust_env=False).raise_for_status().json()["data"]
    )


def await_true(what: str, holds: Callable[[], bool]) -> None:
    """Wait until `holds`, at most SCRAPE_SECONDS."""
    end = time.monotonic() + SCRAPE_SECONDS
    while not holds():
        if time.monotonic() > end:
            sys.exit(f"not within {SCRAPE_SECONDS} s: {what}")
        time.sleep(1)


def check_registry(password: str, work: Path) -> None:
    """Store a run with a figure and a file through MLflow's server, and find both again."""
    import mlflow

    mlflow.set_tracking_uri("http://mlflow:5000")
    (work / "note.txt").write_text("kept")
    with mlflow.start_run(run_name="compose") as active:
        mlflow.log_metric("accuracy", 0.5)
        mlflow.log_artifact(str(work / "note.txt"))
    fetched = mlflow.artifacts.download_artifacts(run_id=active.info.run_id, artifact_path="note.txt")
    address = f"postgresql://mlflow:{password}@postgres:5432/mlflow"
    with psycopg.connect(address) as connection:
        query = "SELECT name FROM runs WHERE run_uuid = %s"
        row = connection.execute(query, [active.info.run_id]).fetchone()
    stored = list((work / "artifacts").rglob("note.txt"))
    if row != ("compose",) or Path(fetched).read_text() != "kept" or not stored:
        sys.exit(f"the run is not stored: {row}, {stored}")
    print("  mlflow stores a run in postgres and its file in the volume; both are read again")


def check_log(work: Path) -> None:
    """Look for the prediction log that the service wrote when it ended."""
    logs = list((work / "predictions" / "predictions").glob("*.parquet"))
    if not logs:
        sys.exit("the volume has no prediction log")
    print(f"  all ended; the volume `predictions` has {len(logs)} file")


def make_stand_ins(folder: Path) -> Root:
    """Make a Debian with the programs that stand in for images that cannot be had."""
    bootstrap(STAND_IN_PACKAGES, folder)
    return Root(folder)


if __name__ == "__main__":
    main()
