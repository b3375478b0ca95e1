"""The PromQL expressions that are shipped: of the rules and of the dashboards."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "alerts.yml"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
_SUFFIX = re.compile(r"_(?:bucket|sum|count)$")


def rules() -> list[dict[str, Any]]:
    """Return all rules, in order."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    """Return the rules that are alerts."""
    return [rule for rule in rules() if "alert" in rule]


def panels(dashboard: Path) -> list[dict[str, Any]]:
    """Return a dashboard's panels."""
    found: list[dict[str, Any]] = json.loads(dashboard.read_text(encoding="utf-8"))["panels"]
    return found


def dashboard_expressions() -> Iterator[str]:
    """Give each expression of the dashboards, with Grafana's variables as Grafana fills them in."""
    for dashboard in DASHBOARDS:
        content = json.loads(dashboard.read_text(encoding="utf-8"))
        targets = [target for panel in content["panels"] for target in panel.get("targets", ())]
        for asking in [*targets, *content["annotations"]["list"]]:
            yield asking["expr"].replace("$__rate_interval", "1m").replace("$job", ".*")


def metrics_in(expression: str) -> set[str]:
    """Return the names of the service's metrics in an expression, without the suffixes of a histogram's
    parts."""
    return {_SUFFIX.sub("", name) for name in re.findall(r"\btilewise_[a-z_]+", expression)}


def records_in(expression: str) -> set[str]:
    """Return the names of recorded series in an expression."""
    return set(re.findall(r"\btilewise:[\w:]+", expression))
