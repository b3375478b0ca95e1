"""The rules by Prometheus' own tools, and the runbook that they lead to."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from promql import DEPLOY, alerts, dashboard_expressions, records_in, rules

ROOT = DEPLOY.parent
TESTS = DEPLOY / "prometheus" / "alerts.test.yml"
RUNBOOK = ROOT / "docs" / "runbook.md"


def run(*command: str, cwd: Path = ROOT) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed; apt-get install prometheus prometheus-alertmanager")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_alert_fires_when_it_should_and_not_before() -> None:
    assert "SUCCESS" in run("promtool", "test", "rules", str(TESTS))


def test_the_configuration_is_what_both_programs_understand() -> None:
    run("promtool", "check", "config", "deploy/prometheus/prometheus.yml")
    run("amtool", "check-config", "deploy/alertmanager/alertmanager.yml")


def test_no_alert_is_without_a_test_that_lets_it_fire() -> None:
    cases = [
        case
        for test in yaml.safe_load(TESTS.read_text())["tests"]
        for case in test.get("alert_rule_test", ())
    ]
    fired = {case["alertname"] for case in cases if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in alerts()}


def test_each_alert_says_how_grave_it_is_and_leads_to_its_heading_in_the_runbook() -> None:
    headings = re.findall(r"^### (\w+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page.endswith("/docs/runbook.md")
        assert anchor == rule["alert"].lower()
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["labels"].get("action", "retrain") in {"rollback", "retrain"}


def test_only_alerts_of_the_candidate_call_for_its_rollback() -> None:
    assert {rule["alert"] for rule in alerts() if rule["labels"].get("action") == "rollback"} == {
        rule["alert"] for rule in alerts() if rule["alert"].startswith("TilewiseCanary")
    }


def test_recorded_series_that_are_asked_for_are_recorded() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    asked = set().union(
        *(records_in(text) for text in [*dashboard_expressions(), *(r["expr"] for r in rules())])
    )
    assert asked == recorded
