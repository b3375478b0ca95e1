"""Triggers of a retraining: drift of a service, alerts of Prometheus, age of the champion, newly labelled
tiles."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.quality.reviewed import DEFAULT as REVIEWED
from tilewise.datasets.quality.reviewed import reviewed_since
from tilewise.training.registry.registry import CHAMPION, Registry

SHIFT = 0.25
"""PSI above which a band has shifted (N. Siddiqi, Credit Risk Scorecards, 2006), as in
deploy/prometheus/alerts.yml."""

_DRIFT, _MEASURE = "tilewise_drift", "psi"
_ACTION = "retrain"
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Triggers:
    """The conditions of a retraining; those that are None are not checked, one of the others is enough.

    Attributes:
        because: the reason in words; without any condition, a reason in itself.
        drift: URL of a service whose metrics include drift.
        max_psi: PSI above which one of its bands has drifted.
        alert: URL of a Prometheus where an alert labelled `action: retrain` may fire.
        days: maximum age of the champion.
        tiles: number of tiles labelled since the champion was registered that is enough.
        reviewed: the folder of labelled tiles.
    """

    because: str = ""
    drift: str | None = None
    max_psi: float = SHIFT
    alert: str | None = None
    days: float | None = None
    tiles: int | None = None
    reviewed: Path = REVIEWED

    @property
    def conditional(self) -> bool:
        """Whether there is any condition."""
        return (self.drift, self.alert, self.days, self.tiles) != (None,) * 4


@dataclass(frozen=True, slots=True)
class TriggerCheck:
    """A condition with its measured figure in words, and whether it holds."""

    message: str
    holds: bool


def check_triggers(triggers: Triggers, registry: Registry) -> list[TriggerCheck]:
    """Check each condition that is set.

    Raises:
        TrainingError: no condition is set, or a source does not respond; no response is not taken for no
            reason.
    """
    if not triggers.conditional:
        if not triggers.because:
            raise TrainingError(
                "no reason to retrain is given; add --because WHY, or a condition such as --if-drift URL"
            )
        return [TriggerCheck(triggers.because, True)]
    return list(_check(triggers, registry))


def reason_of(checks: list[TriggerCheck], because: str) -> str:
    """Return the reason of a retraining, for the history: `because`, then the conditions that hold."""
    found = "; ".join(check.message for check in checks if check.holds)
    return ": ".join(dict.fromkeys(text for text in (because, found) if text))


def _check(triggers: Triggers, registry: Registry) -> Iterator[TriggerCheck]:
    if triggers.drift is not None:
        yield _drift(triggers.drift, triggers.max_psi)
    if triggers.alert is not None:
        yield _alert(triggers.alert)
    if triggers.days is not None:
        yield _age(registry, triggers.days)
    if triggers.tiles is not None:
        yield _labelled(registry, triggers.reviewed, triggers.tiles)


def _drift(url: str, limit: float) -> TriggerCheck:
    text = _get(url, "/metrics", os.environ.get("TILEWISE_API_KEY")).text
    found = {
        sample.labels["band"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == _DRIFT and sample.labels.get("measure") == _MEASURE
    }
    if not found:
        return TriggerCheck(
            f"{url} reports no drift: too few tiles yet, or the model has no reference histograms", False
        )
    band, psi = max(found.items(), key=lambda item: item[1])
    return TriggerCheck(f"{band} of {url} has a PSI of {psi:.3f}, the limit is {limit:g}", psi > limit)


def _alert(url: str) -> TriggerCheck:
    try:
        alerts: list[dict[str, Any]] = _get(url, "/api/v1/alerts").json()["data"]["alerts"]
        firing = sorted(
            {
                str(alert["labels"]["alertname"])
                for alert in alerts
                if alert["state"] == "firing" and alert["labels"].get("action") == _ACTION
            }
        )
    except (ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{url} is no Prometheus; name its address, e.g. http://HOST:9090") from error
    return TriggerCheck(
        f"{', '.join(firing) or f'no alert with action={_ACTION}'} fires in {url}", bool(firing)
    )


def _age(registry: Registry, days: float) -> TriggerCheck:
    moment = _champion_since(registry)
    if moment is None:
        return TriggerCheck(f"{registry.name} has no champion", True)
    age = datetime.now(UTC) - moment
    return TriggerCheck(
        f"the champion is {age / timedelta(days=1):.1f} days old, the limit is {days:g}",
        age >= timedelta(days=days),
    )


def _labelled(registry: Registry, folder: Path, minimum: int) -> TriggerCheck:
    count = reviewed_since(folder, _champion_since(registry) or datetime.min.replace(tzinfo=UTC))
    return TriggerCheck(
        f"{count} tiles were labelled since the champion, the minimum is {minimum}", count >= minimum
    )


def _champion_since(registry: Registry) -> datetime | None:
    """Return when the champion was registered, which is shortly after it was trained."""
    champion = registry.by_alias(CHAMPION)
    return datetime.fromtimestamp(champion.creation_timestamp / 1000, UTC) if champion else None


def _get(url: str, path: str, key: str | None = None) -> httpx.Response:
    try:
        response = httpx.get(
            url.rstrip("/") + path,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=_TIMEOUT_S,
            follow_redirects=True,
        )
        response.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TrainingError(
            f"{url}: {path} cannot be read ({error}); check the address, and set a service's key as "
            f"TILEWISE_API_KEY"
        ) from error
    return response
