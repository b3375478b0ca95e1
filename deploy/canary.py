"""Canary release: raise a candidate's fraction of the requests step by step while Prometheus watches its
alerts.

    python deploy/canary.py run --prometheus http://127.0.0.1:9090 --haproxy /run/tilewise/balancer.sock \\
        --champion http://127.0.0.1:3000 --candidate http://127.0.0.1:3001 --steps 5,25,50 --minutes 10 \\
        --full 'tilewise promote --data data/packed --approve Ada'
    python deploy/canary.py share 0 --haproxy /run/tilewise/balancer.sock      # take it out
    python deploy/canary.py guard --prometheus http://127.0.0.1:9090 --minutes 30    # after a release

The rules in `deploy/prometheus/alerts.yml` decide when a candidate is rolled back (`action: rollback`). On
any other failure, from a lost Prometheus to Ctrl-C, the fraction is set to 0 too. Exit status: 0, success; 3,
rolled back; 1, failed.
"""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click
import httpx
from monitoring import PROJECT, running, service

from tilewise.datasets.core.console import one_line_errors, with_options
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.files import atomic_write

SERVICE_ALERTS = (
    "TilewiseGone",
    "TilewiseFails",
    "TilewiseInternalErrors",
    "TilewiseModelRefused",
    "TilewiseClassMixShifts",
)
"""Alerts that call for a rollback if they begin with a release; see docs/runbook.md."""

_POLL_S = 1.0
_BLIND_S = 15.0
_FOLLOW_S = 180.0
_COMMAND_S = 1800.0
_COUNT = (
    'sum(sum by (job, model) (tilewise_requests_total{path="/classify"}) * on (job, model) '
    'group_left (role) tilewise:role{role="candidate"})'
)
_FIGURES = {
    "failing": "tilewise:failure_share:5m",
    "p99 s": "tilewise:request_seconds:p99_5m",
    "confidence": "tilewise:confidence:mean30m",
}


class CanaryError(TilewiseError):
    """The canary cannot start or continue."""


class RolledBackError(TilewiseError):
    """An alert caused a rollback to the former release."""

    exit_status = 3


@dataclass(frozen=True, slots=True)
class CanaryPlan:
    """The steps of a canary release.

    Attributes:
        steps: percent of the requests, one step after another.
        seconds: duration of each step.
        minimum: requests that the candidate must have answered in a step.
        wait: seconds by which a step may be prolonged to reach them.
        patience: seconds within which Prometheus must see the candidate.
    """

    steps: tuple[int, ...]
    seconds: float
    minimum: int
    wait: float
    patience: float = 120.0


class Prometheus:
    """A client of Prometheus' query API.

    Args:
        url: of Prometheus.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each sample; raises httpx.HTTPError or CanaryError where the query
        fails."""
        params = {"query": expression}
        response = httpx.get(f"{self.url}/api/v1/query", params=params, trust_env=False, timeout=10)
        if response.status_code != httpx.codes.OK:
            raise CanaryError(f"{self.url}: the query {expression!r} failed: {response.text[:200]}")
        return [(sample["metric"], float(sample["value"][1])) for sample in response.json()["data"]["result"]]

    def one(self, expression: str) -> float | None:
        """Return the first sample's value; None: there is none."""
        return next((value for _, value in self.query(expression)), None)

    def firing(self, selector: str) -> set[str]:
        """Return the names of the firing alerts that match a label selector."""
        found = self.query(f'ALERTS{{alertstate="firing", {selector}}}')
        return {labels["alertname"] for labels, _ in found}

    def service_alerts(self) -> set[str]:
        """Return those of SERVICE_ALERTS that fire, except for the candidate's own service."""
        return self.firing(f'alertname=~"{"|".join(SERVICE_ALERTS)}", place!="candidate"')


class Watcher:
    """Decides whether the candidate must be rolled back.

    Args:
        prometheus: the source of alerts.
        known: alerts of the service that fired before the release, which did not cause them.
    """

    def __init__(self, prometheus: Prometheus, known: set[str]) -> None:
        self._prometheus, self._known = prometheus, known
        self._seen = time.monotonic()

    def check(self, of_candidate: bool = True) -> None:
        """Raise RolledBackError if an alert blames the release, or Prometheus does not respond for
        _BLIND_S."""
        try:
            blamed = self._blamed(of_candidate)
        except (httpx.HTTPError, CanaryError) as error:
            if time.monotonic() - self._seen > _BLIND_S:
                raise RolledBackError(
                    f"Prometheus does not respond, so alerts are unknown ({error})"
                ) from error
            return
        self._seen = time.monotonic()
        if blamed:
            raise RolledBackError(", ".join(sorted(blamed)))

    def _blamed(self, of_candidate: bool) -> set[str]:
        found = self._prometheus.service_alerts() - self._known
        if of_candidate:
            found |= self._prometheus.firing('action="rollback"')
            found |= self._prometheus.firing('alertname="TilewiseDown", track="candidate"')
        return found


CONFIGURATION = PROJECT / "deploy" / "haproxy" / "haproxy.cfg"
_BACKEND = "tiles"
_PATIENCE_S = 10
_KUBECTL_S = 60


class RouteError(TilewiseError):
    """The balancer refuses a weight."""


class Route(Protocol):
    """A load balancer."""

    def set_fraction(self, percent: int) -> None:
        """Send `percent` (0-100) of the requests to the candidate from now on; raises RouteError."""
        ...


class Haproxy:
    """HAProxy, run with `deploy/haproxy/haproxy.cfg`.

    Args:
        path: of its socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def set_fraction(self, percent: int) -> None:
        """See `Route`."""
        self._set(f"set server {_BACKEND}/candidate weight {percent}")
        self._set(f"set server {_BACKEND}/champion weight {100 - percent}")

    def weights(self) -> dict[str, int]:
        """Return the weight of each server, by name."""
        lines = self._send(f"show servers state {_BACKEND}").splitlines()
        names = next(line for line in lines if line.startswith("#")).removeprefix("# ").split()
        rows = [dict(zip(names, line.split(), strict=False)) for line in lines if f" {_BACKEND} " in line]
        return {row["srv_name"]: int(row["srv_uweight"]) for row in rows}

    def _set(self, command: str) -> None:
        message = self._send(command).strip()
        if message:  # it is silent on success
            raise RouteError(
                f"{self.path}: {command!r}: {message}; is this HAProxy run with {CONFIGURATION.name}?"
            )

    def _send(self, command: str) -> str:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(_PATIENCE_S)
                connection.connect(str(self.path))
                connection.sendall(f"{command}\n".encode())
                return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
        except OSError as error:
            raise RouteError(f"{self.path}: HAProxy does not respond ({error}); is it running?") from error


class KubernetesRoute:
    """The HTTPRoute of `deploy/kubernetes/canary`, changed by `kubectl`.

    Args:
        name: of the HTTPRoute.
        namespace: that it is in.
    """

    def __init__(self, name: str, namespace: str) -> None:
        self.name, self.namespace = name, namespace

    def set_fraction(self, percent: int) -> None:
        """See `Route`."""
        path = "/spec/rules/0/backendRefs/{}/weight"
        patch = [
            {"op": "replace", "path": path.format(index), "value": weight}
            for index, weight in enumerate((100 - percent, percent))
        ]
        words = ["kubectl", "--namespace", self.namespace, "patch", "httproute", self.name, "--type", "json"]
        try:
            done = subprocess.run(
                [*words, "--patch", json.dumps(patch)],
                capture_output=True,
                text=True,
                timeout=_KUBECTL_S,
                check=False,
            )
        except (FileNotFoundError, subprocess.TimeoutExpired) as error:
            raise RouteError(f"kubectl cannot set the weight: {error}") from error
        if done.returncode != 0:
            raise RouteError(f"httproute {self.name} does not take the weight: {done.stderr.strip()}")


@contextmanager
def balanced(folder: Path, listen: str, champion: str, candidate: str) -> Iterator[Haproxy]:
    """Run HAProxy on this machine for the length of the block; addresses are HOST:PORT, its files are in
    `folder`.

    Raises:
        ProgramError: it is not installed, or does not start; the champion must answer before.
    """
    with tempfile.TemporaryDirectory(prefix="tilewise-") as short:  # a socket's path may have 108 bytes
        control = Path(short, "balancer.sock")
        settings = {
            "TILEWISE_LISTEN": listen,
            "TILEWISE_CHAMPION": champion,
            "TILEWISE_CANDIDATE_SERVICE": candidate,
            "TILEWISE_BALANCER": str(control),
        }
        command = ["haproxy", "-db", "-f", str(CONFIGURATION)]
        with running("haproxy", command, folder, f"http://{listen}/readyz", settings):
            yield Haproxy(control)


def try_out(prometheus: Prometheus, route: Route, plan: CanaryPlan, report: Callable[[str], None]) -> None:
    """Raise the candidate's fraction step by step; leave it at the last step.

    Raises:
        RolledBackError: an alert blames the candidate; its fraction is 0.
        CanaryError: Prometheus does not see it, or it answers too few requests; its fraction is 0.
    """
    with removed_on_failure(route):
        watcher = Watcher(prometheus, prometheus.service_alerts())
        _await_candidate(prometheus, plan.patience)
        for share in plan.steps:
            answered = prometheus.one(_COUNT) or 0.0
            route.set_fraction(share)
            report(f"{share:3d} % to the candidate for {plan.seconds:g} s")
            _hold(prometheus, watcher, plan, answered)
            report(f"      {_evidence(prometheus, answered)}")


@contextmanager
def removed_on_failure(route: Route) -> Iterator[None]:
    """Set the candidate's fraction to 0 if the block fails."""
    try:
        yield
    except BaseException:
        route.set_fraction(0)
        raise


def _await_candidate(prometheus: Prometheus, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not prometheus.query('tilewise:role{role="candidate"}'):
        if time.monotonic() > end:
            raise CanaryError(
                f"{prometheus.url} sees no candidate after {seconds:g} s; its target needs the label track: "
                f"candidate "
                "(--targets writes it), and its model another version than the champion's"
            )
        time.sleep(_POLL_S)


def _hold(prometheus: Prometheus, watcher: Watcher, plan: CanaryPlan, before: float) -> None:
    """Watch for the duration of a step, and until the candidate has answered enough requests."""
    started = time.monotonic()
    while (passed := time.monotonic() - started) < plan.seconds + plan.wait:
        watcher.check()
        if passed >= plan.seconds and (prometheus.one(_COUNT) or 0.0) - before >= plan.minimum:
            return
        time.sleep(_POLL_S)
    longest = plan.seconds + plan.wait
    raise CanaryError(
        f"the candidate answered fewer than {plan.minimum} requests in {longest:g} s: too few to judge; "
        "give it more time (--wait), or a larger fraction"
    )


def _evidence(prometheus: Prometheus, before: float) -> str:
    """Return the figures of a step, the candidate's beside the champion's."""
    parts = [f"{(prometheus.one(_COUNT) or 0.0) - before:.0f} requests answered"]
    for name, series in _FIGURES.items():
        found = [prometheus.one(f'{series}{{role="{role}"}}') for role in ("candidate", "champion")]
        shown = ["–" if value is None else f"{value:.3f}" for value in found]
        parts.append(f"{name} {shown[0]} (champion {shown[1]})")
    return ", ".join(parts)


def make_champion(command: str, champion: str, candidate: str) -> None:
    """Run the command that promotes, and wait until the champion's service has the candidate's model.

    Raises:
        CanaryError: the command fails, or the service does not take up the model.
    """
    done = subprocess.run(shlex.split(command), timeout=_COMMAND_S, check=False)
    if done.returncode != 0:
        raise CanaryError(f"{command!r} ended with {done.returncode}, so the champion stays")
    end = time.monotonic() + _FOLLOW_S
    while served_by(champion) != served_by(candidate):
        if time.monotonic() > end:
            raise CanaryError(
                f"{champion} does not serve the promoted model after {_FOLLOW_S:g} s; its log says why"
            )
        time.sleep(_POLL_S)


def served_by(url: str) -> str:
    """Return the SHA-256 of a service's model; raises CanaryError where the service does not respond."""
    try:
        card = httpx.get(f"{url}/model", trust_env=False, timeout=30).raise_for_status().json()
    except httpx.HTTPError as error:
        raise CanaryError(f"{url}: the service does not respond: {error}") from error
    return str(card["sha256"])


@contextmanager
def scraped(targets: Path | None, candidate: str) -> Iterator[None]:
    """Add the candidate to Prometheus' file of targets, if there is one, for the duration of the block.

    The file is one that `file_sd_configs` reads; its other targets stay.
    """
    if targets is None:
        yield
        return
    group = {"targets": [httpx.URL(candidate).netloc.decode()], "labels": {"track": "candidate"}}
    _write(targets, [*_others(targets), group])
    try:
        yield
    finally:
        _write(targets, _others(targets))


def _others(targets: Path) -> list[dict[str, Any]]:
    known = json.loads(targets.read_text(encoding="utf-8")) if targets.exists() else []
    return [group for group in known if group.get("labels", {}).get("track") != "candidate"]


def _write(targets: Path, groups: list[dict[str, Any]]) -> None:
    with atomic_write(targets) as partial:
        partial.write_text(json.dumps(groups), encoding="utf-8")


def note_in_registry(version: str, why: str) -> None:
    """Mark a version of the registry (MLFLOW_TRACKING_URI) as refused, with the reason."""
    from tilewise.training.registry.registry import Registry  # seconds of imports that only a rollback needs
    from tilewise.training.tracking import Tracking

    registry = Registry(os.environ.get("MLFLOW_TRACKING_URI", Tracking.uri))
    registry.refuse(registry.find(version), "canary", why)


def _percents(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    try:
        steps = tuple(int(part) for part in text.split(","))
    except ValueError:
        steps = ()
    if not steps or list(steps) != sorted(set(steps)) or not 0 < steps[0] <= steps[-1] <= 100:
        raise click.BadParameter("percentages from 1 to 100, rising, e.g. 5,25,50,100")
    return steps


def _route_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --haproxy, --httproute and --namespace: what distributes the requests."""
    options = (
        click.option(
            "--haproxy",
            type=click.Path(path_type=Path),
            help="Socket of HAProxy with deploy/haproxy/haproxy.cfg.",
        ),
        click.option(
            "--httproute", help="HTTPRoute of deploy/kubernetes/canary, instead; changed by kubectl."
        ),
        click.option("--namespace", default="tilewise", show_default=True, help="Of the HTTPRoute."),
    )
    return with_options(command, options)


def _route(haproxy: Path | None, httproute: str | None, namespace: str) -> Route:
    if (haproxy is None) == (httproute is None):
        raise click.UsageError("name what distributes the requests: --haproxy SOCKET or --httproute NAME")
    return Haproxy(haproxy) if haproxy else KubernetesRoute(str(httproute), namespace)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Try a candidate on a fraction of the requests; roll it back automatically if alerts blame it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cancelled job rolls back, too


@main.command()
@click.option(
    "--prometheus",
    "url",
    required=True,
    help="URL of the Prometheus that scrapes both services, with the shipped rules.",
)
@click.option("--champion", required=True, help="URL of the champion's service.")
@click.option("--candidate", required=True, help="URL of the candidate's service.")
@click.option(
    "--serve",
    metavar="MODEL",
    help="Start the candidate's service here with this model: a file, or models:/….",
)
@click.option(
    "--steps", default="5,25,50", show_default=True, callback=_percents, help="Percentages, one step each."
)
@click.option("--minutes", default=10.0, show_default=True, type=click.FloatRange(0.01), help="Of each step.")
@click.option(
    "--min-requests",
    "minimum",
    default=100,
    show_default=True,
    type=click.IntRange(1),
    help="Requests that it must answer in each step.",
)
@click.option(
    "--wait",
    type=click.FloatRange(0),
    help="Minutes by which a step may be prolonged for that [twice its length].",
)
@click.option(
    "--targets", type=click.Path(path_type=Path), help="Prometheus' file of targets, to add the candidate to."
)
@click.option("--full", metavar="COMMAND", help="The command that makes it the champion after all steps.")
@click.option("--version", help="Of the registry: a rollback is written on it.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("artifacts/canary"), help="Of --serve's log."
)
@_route_options
@one_line_errors
def run(
    url: str,
    champion: str,
    candidate: str,
    serve: str | None,
    steps: tuple[int, ...],
    minutes: float,
    minimum: int,
    wait: float | None,
    targets: Path | None,
    full: str | None,
    version: str | None,
    folder: Path,
    haproxy: Path | None,
    httproute: str | None,
    namespace: str,
) -> None:
    """Raise the candidate's percentage by steps; exit with 3 if it was rolled back.

    Without --full the percentage stays at the last step. With it, the champion's service has the model in the
    end and the candidate's service gets no more requests.
    """
    route, plan = (
        _route(haproxy, httproute, namespace),
        CanaryPlan(steps, minutes * 60, minimum, 60 * (2 * minutes if wait is None else wait)),
    )
    prometheus = Prometheus(url.rstrip("/"))
    try:
        with ExitStack() as stack:
            if serve:
                stack.enter_context(_started(candidate, serve, folder))
            _refuse_same_model(champion, candidate)
            stack.enter_context(scraped(targets, candidate))
            try_out(prometheus, route, plan, click.echo)
            if full:
                with removed_on_failure(route):
                    make_champion(full, champion, candidate)
                route.set_fraction(0)
                click.echo("the champion's service has taken it up; the candidate's gets 0 %")
    except RolledBackError as error:
        if version:
            note_in_registry(version, f"canary: {error}")
        raise RolledBackError(f"rolled back, the candidate gets 0 %: {error}; see docs/runbook.md") from error


@contextmanager
def _started(url: str, model: str, folder: Path) -> Iterator[None]:
    command, settings = service(url, (folder / "bentoml").resolve(), model, TILEWISE_OPEN_METRICS="1")
    with running("candidate", command, folder, f"{url}/readyz", settings):
        yield


def _refuse_same_model(champion: str, candidate: str) -> None:
    if served_by(champion) == served_by(candidate):
        raise CanaryError(f"{candidate} serves the champion's own model; register another candidate first")


@main.command()
@click.argument("percent", type=click.IntRange(0, 100))
@_route_options
@one_line_errors
def share(percent: int, haproxy: Path | None, httproute: str | None, namespace: str) -> None:
    """Send PERCENT of the requests to the candidate; 0 takes it out."""
    _route(haproxy, httproute, namespace).set_fraction(percent)
    click.echo(f"{percent} % to the candidate")


@main.command()
@click.option("--prometheus", "url", required=True, help="URL of the Prometheus that watches the service.")
@click.option("--minutes", default=30.0, show_default=True, type=click.FloatRange(0.01), help="How long.")
@click.option(
    "--rollback",
    default=f"{shlex.quote(sys.executable)} -m tilewise rollback --by guard",
    help="The command that restores the former release; --why is added. Default: tilewise rollback.",
)
@one_line_errors
def guard(url: str, minutes: float, rollback: str) -> None:
    """Watch the service after a release, and restore the former release if alerts begin.

    Alerts that fired before the release are ignored. Exit status 3: it was rolled back.
    """
    prometheus = Prometheus(url.rstrip("/"))
    watcher = Watcher(prometheus, prometheus.service_alerts())
    end = time.monotonic() + minutes * 60
    try:
        while time.monotonic() < end:
            watcher.check(of_candidate=False)
            time.sleep(_POLL_S)
    except RolledBackError as error:
        _roll_back(shlex.split(rollback), str(error))
        raise RolledBackError(f"the former champion is back: {error}; see docs/runbook.md") from error
    click.echo(f"no alert in {minutes:g} minutes")


def _roll_back(command: Sequence[str], why: str) -> None:
    done = subprocess.run([*command, "--why", why], timeout=_COMMAND_S, check=False)
    if done.returncode != 0:
        raise CanaryError(
            f"{why}, and {shlex.join(command)!r} ended with {done.returncode}; roll back by hand now"
        )


if __name__ == "__main__":
    main()
