"""Run programs for the duration of a block: services, Prometheus and Alertmanager with the shipped rules.

    python deploy/monitoring.py watch http://127.0.0.1:3000    # beside a service that runs, until Ctrl-C
    python deploy/monitoring.py rules                          # the rules as a PrometheusRule, for kubectl
    apply -f -

For tests and rehearsals:

    with monitoring(folder, ["127.0.0.1:3000"], hold="1s") as watch:
        watch.await_alert("TilewiseInputDrifts")

They differ from `deploy/compose.yaml` in addresses and, for rehearsals, in how long a condition must hold.
The programs are Debian's `prometheus` and `prometheus-alertmanager`; nothing else is contacted.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import yaml

from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.files import atomic_write

HERE = Path(__file__).parent
PROJECT = HERE.resolve().parent
START_S = 180.0  # on a machine whose cores are busy
_STOP_S = 15.0
RULES = HERE / "prometheus" / "alerts.yml"
PROMETHEUS_CONFIGURATION = HERE / "prometheus" / "prometheus.yml"
ALERTMANAGER_CONFIGURATION = HERE / "alertmanager" / "alertmanager.yml"
PROGRAMS = {"prometheus": "prometheus", "prometheus-alertmanager": "prometheus-alertmanager"}
JOB = "tilewise"
_PATIENCE_S = 30.0
_RULES_HOLD = "the rules' own"

Alert = dict[str, Any]
Sample = dict[str, Any]


class ProgramError(TilewiseError):
    """A program that does not start, or ends unexpectedly."""


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    folder: Path,
    ready: str,
    settings: Mapping[str, str] | None = None,
    cwd: Path = PROJECT,
    patience: float = START_S,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `command` for the duration of the block, which begins when the URL `ready` returns 200.

    Its output goes to `<folder>/<name>.log`.

    Raises:
        ProgramError: it is not installed, ends, or is not ready within `patience` seconds; with its last
            output.
    """
    with started(name, command, folder, settings, cwd) as process:
        _await_ready(name, process, ready, folder / f"{name}.log", patience)
        yield process


@contextmanager
def started(
    name: str,
    command: Sequence[str],
    folder: Path,
    settings: Mapping[str, str] | None = None,
    cwd: Path = PROJECT,
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `command` as `running` does, and begin the block at once."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.log").open("ab") as stream:
        try:
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=os.environ | dict(settings or {}),
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise ProgramError(f"{command[0]} is not installed; apt-get install {command[0]}") from error
    try:
        yield process
    finally:
        stop(process)


def service(url: str, home: Path, model: str, **settings: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of a service.

    Args:
        url: the address that it listens on, http://HOST:PORT.
        home: BentoML's folder: each service of a machine needs its own.
        model: a model file, or `models:/NAME@ALIAS`.
        settings: more environment variables.
    """
    at = httpx.URL(url)
    command = [sys.executable, "-m", "bentoml", "serve", ".", "--host", at.host, "--port", str(at.port)]
    own = {"TILEWISE_MODEL": model, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    return command, own | settings


def stop(process: subprocess.Popen[Any]) -> None:
    """End a program and its children: by SIGTERM, then by SIGKILL."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            continue
        return


def answers(url: str) -> bool:
    """Return whether a URL returns 200 within a few seconds."""
    try:
        return httpx.get(url, trust_env=False, timeout=5).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False


def _await_ready(name: str, process: subprocess.Popen[bytes], url: str, log: Path, patience: float) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        if answers(url):
            return
        time.sleep(0.2)
    words = log.read_text(errors="replace").strip().splitlines()[-5:]
    raise ProgramError(f"{name} is not ready ({url}); its last output: {' / '.join(words) or 'none'}")


class MonitoringError(Exception):
    """Prometheus or Alertmanager is not installed, does not start, or an alert did not fire in time."""


def missing_programs() -> list[str]:
    """Return the Debian packages whose programs are not installed."""
    return [package for package, program in PROGRAMS.items() if shutil.which(program) is None]


@dataclass(frozen=True, slots=True)
class Monitoring:
    """Both programs, running.

    Attributes:
        prometheus, alertmanager: their URLs.
        folder: of their configuration, data and logs.
    """

    prometheus: str
    alertmanager: str
    folder: Path

    def set_targets(self, targets: Sequence[str]) -> None:
        """Scrape services at `targets` (`host:port`) from now on; takes effect within a second."""
        with atomic_write(self.folder / "targets.json") as partial:
            partial.write_text(json.dumps([{"targets": list(targets)}]))

    def query(self, expression: str) -> list[Sample]:
        """Return the present samples of a PromQL expression: `{"metric": {labels}, "value": [time, "text"]}`.

        Raises:
            MonitoringError: the expression is malformed.
        """
        answer = httpx.get(
            f"{self.prometheus}/api/v1/query", params={"query": expression}, trust_env=False, timeout=30
        )
        content = answer.json()
        if content["status"] != "success":
            raise MonitoringError(f"{expression}: {content['error']}")
        found: list[Sample] = content["data"]["result"]
        return found

    def alerts(self, name: str | None = None) -> list[Alert]:
        """Return the alerts in Alertmanager: of that name, or all."""
        filters = {"filter": f'alertname="{name}"'} if name else {}
        answer = httpx.get(f"{self.alertmanager}/api/v2/alerts", params=filters, trust_env=False, timeout=30)
        answer.raise_for_status()
        found: list[Alert] = answer.json()
        return found

    def await_alert(self, name: str, seconds: float = _PATIENCE_S) -> list[Alert]:
        """Return the alerts of a name as soon as Alertmanager has one.

        Raises:
            MonitoringError: it has none within `seconds`; names the alerts that it has.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found = self.alerts(name)
            if found:
                return found
            time.sleep(0.2)
        others = sorted({alert["labels"]["alertname"] for alert in self.alerts()})
        raise MonitoringError(
            f"{name} did not fire in {seconds:g} s; firing: {', '.join(others) or 'nothing'}"
        )


@contextmanager
def monitoring(
    folder: Path, targets: Sequence[str], hold: str | None = None, scrape: str = "1s"
) -> Iterator[Monitoring]:
    """Run both programs on free loopback ports for the duration of the block, all their files in `folder`.

    Args:
        folder: is created; may be used again, with its data.
        targets: services, as `host:port`.
        hold: how long a condition must hold before it is an alert, for all rules; None: what each rule says.
        scrape: between two scrapes and two evaluations of the rules.

    Raises:
        MonitoringError: a program is not installed or does not start; with its output.
    """
    _require_programs()
    folder.mkdir(parents=True, exist_ok=True)
    ports = free_ports(3)
    watch = Monitoring(f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", folder)
    write_configuration(watch, hold, scrape)
    watch.set_targets(targets)
    with ExitStack() as stack:
        stack.enter_context(_running(_alertmanager_command(watch, ports[2]), watch.alertmanager, folder))
        stack.enter_context(_running(_prometheus_command(watch), watch.prometheus, folder))
        yield watch


def write_configuration(watch: Monitoring, hold: str | None, scrape: str) -> None:
    """Write the shipped rules and configuration into the folder, with local addresses."""
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    prometheus = yaml.safe_load(PROMETHEUS_CONFIGURATION.read_text(encoding="utf-8"))
    contents = {
        "alerts.yml": rules if hold is None else hold_for(rules, hold),
        "prometheus.yml": _with_local_addresses(prometheus, watch, scrape),
        "alertmanager.yml": yaml.safe_load(ALERTMANAGER_CONFIGURATION.read_text(encoding="utf-8")),
    }
    for name, content in contents.items():
        (watch.folder / name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def hold_for(rules: dict[str, Any], hold: str) -> dict[str, Any]:
    """Return the rules with every `for` duration replaced by `hold`, e.g. `1s`."""
    groups = [
        group | {"rules": [rule | {"for": hold} if "for" in rule else rule for rule in group["rules"]]}
        for group in rules["groups"]
    ]
    return rules | {"groups": groups}


def prometheus_rule() -> dict[str, Any]:
    """Return the shipped rules as a PrometheusRule of the Prometheus operator."""
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))
    labels = {"app.kubernetes.io/name": "tilewise"}
    head = {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule"}
    return head | {"metadata": {"name": "tilewise", "labels": labels}, "spec": rules}


def free_ports(count: int) -> list[int]:
    """Return different free ports of the loopback interface."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _require_programs() -> None:
    missing = missing_programs()
    if missing:
        raise MonitoringError(f"not installed: {', '.join(missing)}; apt-get install {' '.join(missing)}")


def _with_local_addresses(configuration: dict[str, Any], watch: Monitoring, scrape: str) -> dict[str, Any]:
    """Return Prometheus' configuration with targets from `targets.json` in place of DNS."""
    job = next(job for job in configuration["scrape_configs"] if job["job_name"] == JOB)
    others = {key: value for key, value in job.items() if key != "dns_sd_configs"}
    files = [{"files": [str(watch.folder / "targets.json")], "refresh_interval": "1s"}]
    alertmanager = watch.alertmanager.removeprefix("http://")
    return configuration | {
        "global": configuration["global"] | {"scrape_interval": scrape, "evaluation_interval": scrape},
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": [others | {"file_sd_configs": files}],
    }


def _prometheus_command(watch: Monitoring) -> list[str]:
    return [
        PROGRAMS["prometheus"],
        f"--config.file={watch.folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={watch.folder / 'prometheus'}",
        f"--web.listen-address={watch.prometheus.removeprefix('http://')}",
    ]


def _alertmanager_command(watch: Monitoring, cluster_port: int) -> list[str]:
    return [
        PROGRAMS["prometheus-alertmanager"],
        f"--config.file={watch.folder / 'alertmanager.yml'}",
        f"--storage.path={watch.folder / 'alertmanager'}",
        f"--web.listen-address={watch.alertmanager.removeprefix('http://')}",
        f"--cluster.listen-address=127.0.0.1:{cluster_port}",
        f"--cluster.advertise-address=127.0.0.1:{cluster_port}",
    ]


@contextmanager
def _running(command: list[str], url: str, folder: Path) -> Iterator[None]:
    """Run one of the programs for the duration of the block."""
    with ExitStack() as stack:
        try:
            program = running(
                command[0], command, folder, f"{url}/-/ready", cwd=Path.cwd(), patience=_PATIENCE_S
            )
            stack.enter_context(program)
        except ProgramError as error:
            raise MonitoringError(str(error)) from error
        yield


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Watch a service with Prometheus and Alertmanager, without containers."""


@main.command(short_help="Scrape services and print alerts until Ctrl-C.")
@click.argument("urls", nargs=-1, required=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Keeps data and logs [a temporary one].")
@click.option("--hold", metavar="DURATION", help=f"How long conditions must hold, e.g. 10s [{_RULES_HOLD}].")
def watch(urls: tuple[str, ...], folder: Path | None, hold: str | None) -> None:
    """Scrape the services at URLS every 5 seconds, and print the alerts that come and go, until Ctrl-C.

    \b
    python deploy/monitoring.py watch http://127.0.0.1:3000
    """
    targets = [httpx.URL(url if "//" in url else f"http://{url}").netloc.decode() for url in urls]
    with tempfile.TemporaryDirectory() as temporary:
        try:
            with monitoring(folder or Path(temporary), targets, hold, "5s") as programs:
                _report(programs)
        except MonitoringError as error:
            raise click.ClickException(str(error)) from None
        except httpx.TransportError as error:
            raise click.ClickException(f"Alertmanager stopped responding ({error}); start again") from None
        except KeyboardInterrupt:
            click.echo("stopped")


@main.command()
def rules() -> None:
    """Print the rules as a PrometheusRule of the Prometheus operator."""
    yaml.safe_dump(prometheus_rule(), sys.stdout, sort_keys=False, allow_unicode=True)


def _report(programs: Monitoring) -> None:
    """Print the addresses and, until interrupted, each alert that begins or ends."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends both programs, too
    click.echo(
        f"Prometheus    {programs.prometheus}\nAlertmanager  {programs.alertmanager}\nCtrl-C stops both."
    )
    known: dict[str, str] = {}
    while True:
        now = {alert["fingerprint"]: _one_line(alert) for alert in programs.alerts()}
        for key in sorted(now.keys() - known.keys(), key=now.__getitem__):
            click.echo(f"{time.strftime('%H:%M:%S')} fires  {now[key]}")
        for key in sorted(known.keys() - now.keys(), key=known.__getitem__):
            click.echo(f"{time.strftime('%H:%M:%S')} ended  {known[key]}")
        known = now
        time.sleep(2)


def _one_line(alert: Alert) -> str:
    return f"{alert['labels']['alertname']}: {alert['annotations'].get('summary', '')}"


if __name__ == "__main__":
    main()
