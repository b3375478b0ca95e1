"""A candidate in a service of its own: its share of the requests is raised step by step while Prometheus watches it.

    python deploy/canary.py run --prometheus http://127.0.0.1:9090 --haproxy /run/tilewise/balancer.sock \\
        --champion http://127.0.0.1:3000 --candidate http://127.0.0.1:3001 --steps 5,25,50 --minutes 10 \\
        --full 'tilewise promote --data data/packed --approve Ada'
    python deploy/canary.py share 0 --haproxy /run/tilewise/balancer.sock      # take it out, whatever it did
    python deploy/canary.py guard --prometheus http://127.0.0.1:9090 --minutes 30    # after a release

The rules in `deploy/prometheus/alerts.yml` say what is wrong with a candidate (`action: rollback`); this only obeys.
Whatever else happens, from a lost Prometheus to Ctrl-C, the share goes back to 0: no evidence is no promotion.
Exit status: 0, all went well; 3, rolled back; 1, it could not be done.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
from programs import running, service
from routes import Haproxy, KubernetesRoute, Route

from tilewise.datasets.core.console import one_line_errors, with_options
from tilewise.datasets.core.errors import TilewiseError

SERVICE_ALERTS = (
    "TilewiseGone",
    "TilewiseFails",
    "TilewiseInternalErrors",
    "TilewiseModelRefused",
    "TilewiseClassMixShifts",
)
"""Alerts that, where they begin with a release, call for the release before it; docs/runbook.md says why."""

_POLL_S = 1.0
_BLIND_S = 15.0
_FOLLOW_S = 180.0
_COMMAND_S = 1800.0
_COUNT = (
    'sum(sum by (job, model) (tilewise_requests_total{path="/classify"}) * on (job, model) group_left (place) '
    'tilewise:place{place="candidate"})'
)
_FIGURES = {
    "failing": "tilewise:failure_share:5m",
    "p99 s": "tilewise:request_seconds:p99_5m",
    "confidence": "tilewise:confidence:mean30m",
}


class CanaryError(TilewiseError):
    """A canary that cannot begin or go on."""


class RolledBackError(TilewiseError):
    """The release before is back: an alert said so."""

    exit_status = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """How a candidate is tried.

    Attributes:
        steps: shares of the requests, percent, one after another.
        seconds: of each step.
        least: requests that the candidate must have answered in a step.
        wait: seconds that a step may last longer for that.
        patience: seconds until Prometheus must have seen the candidate.
    """

    steps: tuple[int, ...]
    seconds: float
    minimum: int
    wait: float
    patience: float = 120.0


class Prometheus:
    """What Prometheus says now.

    Args:
        url: of its API.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each sample; raises httpx.HTTPError or CanaryError where there is no answer."""
        asked = {"query": expression}
        answer = httpx.get(f"{self.url}/api/v1/query", params=asked, trust_env=False, timeout=10)
        if answer.status_code != httpx.codes.OK:
            raise CanaryError(f"{self.url}: it does not answer {expression!r}: {answer.text[:200]}")
        return [(sample["metric"], float(sample["value"][1])) for sample in answer.json()["data"]["result"]]

    def one(self, expression: str) -> float | None:
        """Return the first sample's value, None where there is none."""
        return next((value for _, value in self.ask(expression)), None)

    def firing(self, selector: str) -> set[str]:
        """Return the names of the alerts that fire and that a selector of labels fits."""
        found = self.ask(f'ALERTS{{alertstate="firing", {selector}}}')
        return {labels["alertname"] for labels, _ in found}

    def of_service(self) -> set[str]:
        """Return those of SERVICE_ALERTS that fire, other than for the candidate's own service."""
        return self.firing(f'alertname=~"{"|".join(SERVICE_ALERTS)}", place!="candidate"')


class Watcher:
    """Tells whether the candidate must go.

    Args:
        prometheus: what it looks at.
        known: alerts of the service that fired before, and that the release has not caused.
    """

    def __init__(self, prometheus: Prometheus, known: set[str]) -> None:
        self._prometheus, self._known = prometheus, known
        self._seen = time.monotonic()

    def check(self, of_candidate: bool = True) -> None:
        """Raise RolledBackError where an alert blames the release, or where Prometheus is lost for _BLIND_S."""
        try:
            blamed = self._blamed(of_candidate)
        except (httpx.HTTPError, CanaryError) as error:
            if time.monotonic() - self._seen > _BLIND_S:
                raise RolledBackError(f"Prometheus is not to be had, so nobody watches ({error})") from error
            return
        self._seen = time.monotonic()
        if blamed:
            raise RolledBackError(", ".join(sorted(blamed)))

    def _blamed(self, of_candidate: bool) -> set[str]:
        found = self._prometheus.of_service() - self._known
        if of_candidate:
            found |= self._prometheus.firing('action="rollback"')
            found |= self._prometheus.firing('alertname="TilewiseDown", track="candidate"')
        return found


def try_out(prometheus: Prometheus, route: Route, plan: Plan, report: Callable[[str], None]) -> None:
    """Raise the candidate's share step by step; leaves it at the last step.

    Raises:
        RolledBackError: an alert blames it; the share is 0.
        CanaryError: it is not to be seen, or answers too little to be judged; the share is 0.
    """
    with taken_out_on_trouble(route):
        watcher = Watcher(prometheus, prometheus.of_service())
        _await_candidate(prometheus, plan.patience)
        for share in plan.steps:
            answered = prometheus.one(_COUNT) or 0.0
            route.set_fraction(share)
            report(f"{share:3d} % to the candidate for {plan.seconds:g} s")
            _hold(prometheus, watcher, plan, answered)
            report(f"      {_evidence(prometheus, answered)}")


@contextmanager
def taken_out_on_trouble(route: Route) -> Iterator[None]:
    """Set the candidate's share to 0 where the block ends otherwise than well."""
    try:
        yield
    except BaseException:
        route.set_fraction(0)
        raise


def _await_candidate(prometheus: Prometheus, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not prometheus.ask('tilewise:place{place="candidate"}'):
        if time.monotonic() > end:
            raise CanaryError(
                f"{prometheus.url} sees no candidate after {seconds:g} s; its target needs the label track: candidate "
                "(--targets writes it), and its model another version than the champion's"
            )
        time.sleep(_POLL_S)


def _hold(prometheus: Prometheus, watcher: Watcher, plan: Plan, before: float) -> None:
    """Watch for as long as a step lasts, and until the candidate has answered enough."""
    begun = time.monotonic()
    while (passed := time.monotonic() - begun) < plan.seconds + plan.wait:
        watcher.check()
        if passed >= plan.seconds and (prometheus.one(_COUNT) or 0.0) - before >= plan.minimum:
            return
        time.sleep(_POLL_S)
    longest = plan.seconds + plan.wait
    raise CanaryError(
        f"the candidate answered fewer than {plan.minimum} requests in {longest:g} s: too few to judge; "
        "give it more time (--wait), or a larger share"
    )


def _evidence(prometheus: Prometheus, before: float) -> str:
    """Return what a step showed, the candidate's figure beside the champion's."""
    parts = [f"{(prometheus.one(_COUNT) or 0.0) - before:.0f} requests answered"]
    for name, series in _FIGURES.items():
        found = [prometheus.one(f'{series}{{place="{place}"}}') for place in ("candidate", "champion")]
        overrides = ["–" if value is None else f"{value:.3f}" for value in found]
        parts.append(f"{name} {overrides[0]} (champion {overrides[1]})")
    return ", ".join(parts)


def make_champion(command: str, champion: str, candidate: str) -> None:
    """Run the command that promotes, and wait until the champion's service answers with the candidate's model.

    Raises:
        CanaryError: the command fails, or the service does not follow.
    """
    done = subprocess.run(shlex.split(command), timeout=_COMMAND_S, check=False)
    if done.returncode != 0:
        raise CanaryError(f"{command!r} ends with {done.returncode}, so the champion stays")
    end = time.monotonic() + _FOLLOW_S
    while served_by(champion) != served_by(candidate):
        if time.monotonic() > end:
            raise CanaryError(f"{champion} does not serve the promoted model after {_FOLLOW_S:g} s; its log says why")
        time.sleep(_POLL_S)


def served_by(url: str) -> str:
    """Return the sha256 of the model that a service answers with; raises CanaryError where it does not answer."""
    try:
        card = httpx.get(f"{url}/model", trust_env=False, timeout=30).raise_for_status().json()
    except httpx.HTTPError as error:
        raise CanaryError(f"{url}: the service does not answer: {error}") from error
    return str(card["sha256"])


@contextmanager
def scraped(targets: Path | None, candidate: str) -> Iterator[None]:
    """Let Prometheus scrape the candidate for the length of the block: by its file of targets, if there is one.

    The file is one that `file_sd_configs` reads; what is in it stays.
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
    unfinished = targets.with_suffix(".part")
    unfinished.write_text(json.dumps(groups), encoding="utf-8")
    unfinished.replace(targets)


def note_in_registry(version: str, why: str) -> None:
    """Write on a version of the registry (MLFLOW_TRACKING_URI) that it was taken out, and why."""
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
        raise click.BadParameter("shares from 1 to 100, rising, e.g. 5,25,50,100")
    return steps


def _route_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --haproxy, --httproute and --namespace: what shares the requests out."""
    options = (
        click.option(
            "--haproxy", type=click.Path(path_type=Path), help="Socket of HAProxy with deploy/haproxy/haproxy.cfg."
        ),
        click.option("--httproute", help="HTTPRoute of deploy/kubernetes/canary, instead; changed by kubectl."),
        click.option("--namespace", default="tilewise", show_default=True, help="Of the HTTPRoute."),
    )
    return with_options(command, options)


def _route(haproxy: Path | None, httproute: str | None, namespace: str) -> Route:
    if (haproxy is None) == (httproute is None):
        raise click.UsageError("say what shares the requests out: --haproxy SOCKET or --httproute NAME")
    return Haproxy(haproxy) if haproxy else KubernetesRoute(str(httproute), namespace)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Try a candidate on a share of the requests; roll it back by itself where alerts blame it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is cancelled takes the candidate out, too


@main.command()
@click.option("--prometheus", "url", required=True, help="That scrapes both services, with the shipped rules.")
@click.option("--champion", required=True, help="URL of the service that answers.")
@click.option("--candidate", required=True, help="URL of the candidate's service.")
@click.option(
    "--serve", metavar="MODEL", help="Start the candidate's service here with this model: a file, or models:/…."
)
@click.option("--steps", default="5,25,50", show_default=True, callback=_percents, help="Shares, percent.")
@click.option("--minutes", default=10.0, show_default=True, type=click.FloatRange(0.01), help="Of each step.")
@click.option(
    "--least", default=100, show_default=True, type=click.IntRange(1), help="Requests a step that it must answer."
)
@click.option(
    "--wait", type=click.FloatRange(0), help="Minutes that a step may last longer for that [twice its length]."
)
@click.option(
    "--targets", type=click.Path(path_type=Path), help="Prometheus' file of targets, to add the candidate to."
)
@click.option("--full", metavar="COMMAND", help="What makes it the champion, when all steps went well.")
@click.option("--version", help="Of the registry: a rollback is written on it.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("artifacts/canary"), help="Of --serve's log.")
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
    """Raise the candidate's share by steps; exit with 3 if it was rolled back.

    Without --full the share stays at the last step; with it, the champion's service has taken the model up and the
    candidate's is no longer asked.
    """
    route, plan = (
        _route(haproxy, httproute, namespace),
        Plan(steps, minutes * 60, minimum, 60 * (2 * minutes if wait is None else wait)),
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
                with taken_out_on_trouble(route):
                    make_champion(full, champion, candidate)
                route.set_fraction(0)
                click.echo("the champion's service has taken it up; the candidate's is asked no more")
    except RolledBackError as error:
        if version:
            note_in_registry(version, f"canary: {error}")
        raise RolledBackError(
            f"rolled back, the candidate gets 0 %: {error}; docs/runbook.md says what it means"
        ) from error


@contextmanager
def _started(url: str, model: str, folder: Path) -> Iterator[None]:
    command, settings = service(url, (folder / "bentoml").resolve(), model, TILEWISE_OPEN_METRICS="1")
    with running("candidate", command, folder, f"{url}/readyz", settings):
        yield


def _refuse_same_model(champion: str, candidate: str) -> None:
    if served_by(champion) == served_by(candidate):
        raise CanaryError(f"{candidate} serves the champion's own model; there is nothing to try")


@main.command()
@click.argument("percent", type=click.IntRange(0, 100))
@_route_options
@one_line_errors
def share(percent: int, haproxy: Path | None, httproute: str | None, namespace: str) -> None:
    """Let the candidate answer PERCENT of the requests; 0 takes it out."""
    _route(haproxy, httproute, namespace).set_fraction(percent)
    click.echo(f"{percent} % to the candidate")


@main.command()
@click.option("--prometheus", "url", required=True, help="That watches the service.")
@click.option("--minutes", default=30.0, show_default=True, type=click.FloatRange(0.01), help="How long.")
@click.option(
    "--rollback",
    default=f"{shlex.quote(sys.executable)} -m training rollback --by guard",
    help="The command that brings the release before back; --why is added. Default: tilewise rollback.",
)
@one_line_errors
def guard(url: str, minutes: float, rollback: str) -> None:
    """Watch the service after a release, and bring the release before back where alerts begin.

    What fired before is not blamed on it. Exit status 3 says that it was rolled back.
    """
    prometheus = Prometheus(url.rstrip("/"))
    watcher = Watcher(prometheus, prometheus.of_service())
    end = time.monotonic() + minutes * 60
    try:
        while time.monotonic() < end:
            watcher.check(of_candidate=False)
            time.sleep(_POLL_S)
    except RolledBackError as error:
        _roll_back(shlex.split(rollback), str(error))
        raise RolledBackError(f"the champion before is back: {error}; docs/runbook.md says what it means") from error
    click.echo(f"no alert in {minutes:g} minutes")


def _roll_back(command: Sequence[str], why: str) -> None:
    done = subprocess.run([*command, "--why", why], timeout=_COMMAND_S, check=False)
    if done.returncode != 0:
        raise CanaryError(f"{why}, and {shlex.join(command)!r} ends with {done.returncode}: roll back by hand, now")


if __name__ == "__main__":
    main()
