"""Dashboards and their provisioning, as far as they can be checked without a Grafana."""

import itertools
import json
from pathlib import Path

import pytest
import yaml
from promql import DASHBOARDS, DEPLOY, panels

PROVISIONING = DEPLOY / "grafana" / "provisioning"
WANTED = {
    "service": (
        "tilewise_requests_total",
        "tilewise_request_seconds",
        "tilewise_errors_total",
        "tilewise_waiting_tiles",
    ),
    "model": (
        "tilewise_tiles_total",
        "tilewise_confidence",
        "tilewise_outlier_score",
        "tilewise_drift",
        "by (band)",
    ),
    "candidate": (
        "tilewise:failure_share:5m",
        "tilewise:request_seconds:p99_5m",
        "tilewise_shadow_tiles_total",
    ),
}


def test_the_dashboards_show_all_that_is_to_be_watched() -> None:
    assert {path.stem for path in DASHBOARDS} == WANTED.keys()
    for path in DASHBOARDS:
        text = path.read_text(encoding="utf-8")
        assert [name for name in WANTED[path.stem] if name not in text] == []


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_a_title_an_own_number_and_a_place_of_their_own(path: Path) -> None:
    found = panels(path)
    assert len({panel["id"] for panel in found}) == len(found)
    assert all(panel["title"] for panel in found)
    for one, other in itertools.combinations([panel["gridPos"] for panel in found], 2):
        across = one["x"] < other["x"] + other["w"] and other["x"] < one["x"] + one["w"]
        down = one["y"] < other["y"] + other["h"] and other["y"] < one["y"] + one["h"]
        assert not (across and down), (one, other)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in found)


def test_dashboards_ask_the_data_source_that_is_provisioned() -> None:
    sources = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())["datasources"]
    (known,) = (source["uid"] for source in sources if source["type"] == "prometheus")
    for path in DASHBOARDS:
        asked = [target["datasource"]["uid"] for panel in panels(path) for target in panel.get("targets", ())]
        assert set(asked) == {known}


def test_dashboards_are_found_where_the_provider_looks() -> None:
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "tilewise.yml").read_text())["providers"]
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    mounts = [mount.split(":") for mount in compose["services"]["grafana"]["volumes"]]
    sources = {target: source for source, target, *_ in mounts}
    assert (DEPLOY / sources[provider["options"]["path"]]).samefile(DASHBOARDS[0].parent)
    assert (DEPLOY / sources["/etc/grafana/provisioning"]).samefile(PROVISIONING)


def test_each_dashboard_has_an_address_of_its_own() -> None:
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS]
    assert len({content["uid"] for content in contents}) == len(contents)
    assert all(
        "id" not in content for content in contents
    )  # Grafana's own; a foreign one would overwrite another's
