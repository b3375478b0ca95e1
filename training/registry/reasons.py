"""Whether there is a reason to retrain: asked of the service, of Prometheus, of the registry and of reviewed tiles."""

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
"""PSI above which a band has shifted (N. Siddiqi, Credit Risk Scorecards, 2006), as in deploy/prometheus/alerts.yml."""

_DRIFT, _MEASURE = "tilewise_drift", "psi"
_ACTION = "retrain"
_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Triggers:
    """What is a reason. None is not asked; of those that are asked, one is enough.

    Attributes:
        because: why, in words; without any other, a reason in itself.
        drift: URL of a service whose metrics tell of drift.
        max_psi: above which a band of it has drifted.
        alert: URL of a Prometheus in which an alert labelled `action: retrain` may fire.
        days: that the champion may be old.
        tiles: that people labelled since the champion was registered.
        reviewed: the folder that these are in.
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
        """Whether anything is to be asked."""
        return (self.drift, self.alert, self.days, self.tiles) != (None,) * 4


@dataclass(frozen=True, slots=True)
class Check:
    """What was asked, in words with its figure, and whether it is a reason."""

    overrides: str
    holds: bool


def check(triggers: Triggers, registry: Registry) -> list[Check]:
    """Return what each trigger that is asked says.

    Raises:
        TrainingError: nothing is asked, or whom is asked does not answer: silence is no sign that all is well.
    """
    if not triggers.conditional:
        if not triggers.because:
            raise TrainingError("no reason is said; say --because WHY, or a condition such as --if-drift URL")
        return [Check(triggers.because, True)]
    return list(_ask(triggers, registry))


def reason_of(checks: list[Check], because: str) -> str:
    """Return why there is a retraining, for the history: what holds, after what was said."""
    found = [check.overrides for check in checks if check.holds]
    return ": ".join(dict.fromkeys(word for word in (because, "; ".join(found)) if word))


def _ask(triggers: Triggers, registry: Registry) -> Iterator[Check]:
    if triggers.drift is not None:
        yield _drift(triggers.drift, triggers.max_psi)
    if triggers.alert is not None:
        yield _alert(triggers.alert)
    if triggers.days is not None:
        yield _age(registry, triggers.days)
    if triggers.tiles is not None:
        yield _labelled(registry, triggers.reviewed, triggers.tiles)


def _drift(url: str, limit: float) -> Check:
    text = _get(url, "/metrics", os.environ.get("TILEWISE_API_KEY")).text
    found = {
        sample.labels["band"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == _DRIFT and sample.labels.get("measure") == _MEASURE
    }
    if not found:
        return Check(f"{url} tells no drift: too few tiles yet, or the model has no reference", False)
    band, psi = max(found.items(), key=lambda item: item[1])
    return Check(f"{band} of {url} has a PSI of {psi:.3f}, {limit:g} is the most", psi > limit)


def _alert(url: str) -> Check:
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
        raise TrainingError(f"{url} answers as no Prometheus does; name its address, e.g. http://HOST:9090") from error
    return Check(f"{', '.join(firing) or f'no alert that asks to {_ACTION}'} fires in {url}", bool(firing))


def _age(registry: Registry, days: float) -> Check:
    moment = _champion_since(registry)
    if moment is None:
        return Check(f"{registry.name} has no champion", True)
    age = datetime.now(UTC) - moment
    return Check(
        f"the champion is {age / timedelta(days=1):.1f} days old, {days:g} is the most", age >= timedelta(days=days)
    )


def _labelled(registry: Registry, folder: Path, minimum: int) -> Check:
    count = reviewed_since(folder, _champion_since(registry) or datetime.min.replace(tzinfo=UTC))
    return Check(f"{count} tiles were labelled since the champion, {minimum} are enough", count >= minimum)


def _champion_since(registry: Registry) -> datetime | None:
    """Return when the champion was registered, which is shortly after it was trained."""
    champion = registry.by_alias(CHAMPION)
    return datetime.fromtimestamp(champion.creation_timestamp / 1000, UTC) if champion else None


def _get(url: str, path: str, key: str | None = None) -> httpx.Response:
    try:
        answer = httpx.get(
            url.rstrip("/") + path,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=_TIMEOUT_S,
            follow_redirects=True,
        )
        answer.raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise TrainingError(
            f"{url}: {path} cannot be read ({error}); say the right address, and a service's key in TILEWISE_API_KEY"
        ) from error
    return answer
