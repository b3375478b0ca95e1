"""A real Prometheus and Alertmanager beside real services: what is wrong there comes out as an alert."""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import yaml
from click.testing import CliRunner
from geotiffs import tile_file
from monitoring import Monitoring, MonitoringError, hold_for, main, missing_programs, monitoring
from promql import alerts, dashboard_expressions, metrics_in, rules
from servers import Server, served
from tiny_onnx import write_model
from watched import tiles, until, watched_metadata

from tilewise.datasets.acquire.synthetic import synthesise_tile
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.console import make_read_options
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.datasets.readers.geotiff import read_tile

Tiles = npt.NDArray[np.uint16]
TRAINING, LATER = tiles(60, seed=1), tiles(60, seed=2)
OFFSET = np.uint16(1000)
SETTINGS = {"TILEWISE_WORKERS": "1", "TILEWISE_DRIFT_WINDOW": "128", "TILEWISE_DRIFT_MIN_TILES": "50"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing_programs()), reason=f"not installed; apt-get install {' '.join(missing_programs())}"
    ),
]


def model(path: Path, training: Tiles, version: str, answer: str = "Forest", logit: float = 6) -> Path:
    """Write a model that was trained on `training` a year ago and always gives the same answer."""
    weights = np.zeros((len(BAND_NAMES) + 1, len(CLASSES)), np.float32)
    weights[-1, CLASSES.index(answer)] = logit
    told = watched_metadata(training).model_copy(
        update={"version": version, "created": "2020-01-01T00:00:00+00:00"}
    )
    return write_model(path, told.model_dump_json(), weights=weights)


def post(url: str, pixels: Tiles, bands: tuple[str, ...] = BAND_NAMES, key: str = "") -> str:
    """Send tiles as an array, and return the version of the model that answered all of them."""
    stream = io.BytesIO()
    np.save(stream, pixels)
    headers = {"Content-Type": "application/octet-stream"} | ({"Tilewise-Key": key} if key else {})
    options = {"bands": ",".join(bands)}
    done = httpx.post(
        f"{url}/classify",
        content=stream.getvalue(),
        params=options,
        headers=headers,
        trust_env=False,
        timeout=30,
    )
    assert done.status_code == 200, done.text
    assert all("class" in result for result in done.json()["results"])
    return str(done.json()["model"]["version"])


def target(service: Server) -> str:
    return service.url.removeprefix("http://")


@pytest.fixture(scope="module")
def shadowed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service whose candidate answers in secret, which has been asked for all that it can do."""
    home = tmp_path_factory.mktemp("shadowed")
    candidate = model(home / "candidate.onnx", TRAINING, "2")
    more = {
        "TILEWISE_CANDIDATE": str(candidate),
        "TILEWISE_CANDIDATE_FRACTION": "1",
        "TILEWISE_PREDICTIONS": str(home / "p"),
    }
    with served(model(home / "model.onnx", TRAINING, "1"), home, **SETTINGS, **more) as server:
        scene = {"scene": ("scene.tif", tile_file(synthesise_tile("Forest", 1, 1)))}
        assert httpx.post(f"{server.url}/scene", files=scene, trust_env=False, timeout=30).status_code == 200
        post(server.url, LATER)
        until(lambda: "tilewise_drift{" in metrics_page(server), "drift is told")
        yield server


@pytest.fixture(scope="module")
def watch(shadowed: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitoring]:
    """Both programs beside it, with rules that hold for a second."""
    with monitoring(tmp_path_factory.mktemp("watch"), [target(shadowed)], hold="1s") as running:
        until(
            lambda: len(running.query("tilewise:role")) == 2,
            "the service is scraped and the rules are evaluated",
        )
        yield running


def metrics_page(service: Server) -> str:
    post(service.url, LATER)
    return httpx.get(f"{service.url}/metrics", trust_env=False, timeout=30).text


def test_rules_and_dashboards_ask_for_metrics_that_a_real_service_has(shadowed: Server) -> None:
    there = set(re.findall(r"^# TYPE (tilewise_\w+) ", metrics_page(shadowed), re.MULTILINE))
    asked = set().union(
        *(metrics_in(text) for text in [*dashboard_expressions(), *(r["expr"] for r in rules())])
    )
    assert asked - there == set()
    assert len(asked) > 20


def test_each_expression_of_the_dashboards_is_answered_by_a_real_prometheus(
    shadowed: Server, watch: Monitoring
) -> None:
    empty = (
        "ALERTS",
        "changes(",
        "canary",
        'role="candidate"',
    )  # no alert, no promotion, no canary until now
    waiting = {text for text in dashboard_expressions() if watch.query(text) == []}
    waiting -= {text for text in waiting if any(word in text for word in empty)}

    def all_answered() -> bool:
        post(shadowed.url, LATER)
        waiting.difference_update([text for text in waiting if watch.query(text)])
        return not waiting

    until(all_answered, "each expression has an answer")


def test_a_model_that_was_made_long_ago_is_told_of_with_a_way_to_the_runbook(watch: Monitoring) -> None:
    (alert,) = watch.await_alert("TilewiseModelOld")
    assert alert["labels"]["role"] == "champion"
    assert alert["annotations"]["runbook_url"].endswith("docs/runbook.md#tilewisemodelold")


def test_ordinary_tiles_raise_no_alert_and_a_forgotten_offset_does(
    shadowed: Server, watch: Monitoring
) -> None:
    until(
        lambda: len(watch.query('tilewise_drift{measure="psi"}')) == len(BAND_NAMES), "the drift is scraped"
    )
    assert watch.alerts("TilewiseInputDrifts") == []

    def is_told() -> bool:
        post(shadowed.url, LATER[:20] + OFFSET)
        return bool(watch.alerts("TilewiseOffsetLeftIn"))

    until(is_told, "the offset is told of", seconds=40)
    found = watch.await_alert("TilewiseInputDrifts")
    assert {alert["labels"]["action"] for alert in found} == {"retrain"}
    (offset,) = watch.await_alert("TilewiseOffsetLeftIn")
    assert offset["labels"]["severity"] == "critical"
    assert "somebody sends tiles with the offset in" in offset["annotations"]["summary"]


def test_a_canary_that_answers_otherwise_calls_for_a_rollback(watch: Monitoring, tmp_path: Path) -> None:
    candidate = model(tmp_path / "candidate.onnx", TRAINING, "4", answer="River", logit=1)
    more = {
        "TILEWISE_CANDIDATE": str(candidate),
        "TILEWISE_CANDIDATE_FRACTION": "0.5",
        "TILEWISE_CANDIDATE_MODE": "canary",
    }
    with served(model(tmp_path / "model.onnx", TRAINING, "3"), tmp_path, **SETTINGS, **more) as server:
        keys = {
            post(server.url, LATER[:1], key=str(n)): str(n) for n in range(16)
        }  # of a caller of each model
        watch.set_targets([target(server)])
        until(
            lambda: {s["metric"]["model"] for s in watch.query("tilewise:role")} >= {"3", "4"},
            "both are scraped",
        )
        for version in ["3"] * 4 + ["4"] * 10:
            assert post(server.url, LATER, key=keys[version]) == version
        for name in ("TilewiseCanaryUnsure", "TilewiseCanaryClassMix"):
            assert watch.await_alert(name)[0]["labels"]["action"] == "rollback"
        assert watch.alerts("TilewiseCanaryFails") == []


@pytest.mark.realdata
def test_level_2a_tiles_drift_from_a_model_of_level_1c(
    watch: Monitoring, real_data: Path, tmp_path: Path
) -> None:
    with served(
        model(tmp_path / "model.onnx", real_tiles(real_data, 120), "l1c"), tmp_path, **SETTINGS
    ) as server:
        watch.set_targets([target(server)])
        pixels, bands = level_2a(real_data, 60)

        def is_told() -> bool:
            post(server.url, pixels[:30], bands)
            return "B01" in bands_that_drift(watch, target(server))

        post(server.url, pixels, bands)
        until(is_told, "the alert of B01 fires", seconds=40)
        assert "B10" not in bands_that_drift(watch, target(server))  # Level-2A has none


def bands_that_drift(watch: Monitoring, instance: str) -> set[str]:
    """The bands whose alert Alertmanager holds, while Prometheus scrapes `instance` only."""
    scraped = {sample["metric"]["instance"] for sample in watch.query("tilewise_drift")}
    return (
        {alert["labels"]["band"] for alert in watch.alerts("TilewiseInputDrifts")}
        if scraped == {instance}
        else set()
    )


def real_tiles(folder: Path, limit: int) -> Tiles:
    """Real Level-1C tiles, drawn at random."""
    options = make_read_options("eurosat", "L1C", None, 0.0)
    with zipfile.ZipFile(folder / "EuroSAT_MS.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".tif")]
        drawn = np.random.default_rng(0).permutation(names)[:limit]
        return np.stack([read_tile(archive.read(name), options, name, 64).pixels for name in drawn])


def level_2a(folder: Path, limit: int) -> tuple[Tiles, tuple[str, ...]]:
    """Real Level-2A tiles, and their bands."""
    with np.load(folder / "l2a_unlabelled.npz") as held:
        return held["tiles"][:limit], tuple(str(band) for band in held["bands"])


def test_a_service_that_is_gone_is_told_of_and_holds_back_what_follows_from_it(watch: Monitoring) -> None:
    watch.set_targets(["127.0.0.1:9"])
    (gone,) = watch.await_alert("TilewiseGone")
    assert gone["labels"]["severity"] == "critical"
    watch.await_alert("TilewiseDown")
    until(
        lambda: watch.alerts("TilewiseDown")[0]["status"]["state"] == "suppressed",
        "the lesser alert is held back",
    )


def test_what_does_not_fire_is_said_with_what_does(watch: Monitoring) -> None:
    with pytest.raises(
        MonitoringError, match=r"TilewiseTasksWait did not fire in 0\.3 s; firing: .*Tilewise"
    ):
        watch.await_alert("TilewiseTasksWait", seconds=0.3)


def test_an_expression_that_makes_no_sense_is_an_error(watch: Monitoring) -> None:
    with pytest.raises(MonitoringError, match="parse error"):
        watch.query("sum(")


def test_a_rehearsal_shortens_how_long_conditions_hold_and_nothing_else() -> None:
    groups = {
        "groups": [{"name": "g", "rules": [{"alert": "A", "expr": "up", "for": "30m"}, {"record": "r"}]}]
    }
    held = hold_for(groups, "1s")
    assert held["groups"][0]["rules"] == [{"alert": "A", "expr": "up", "for": "1s"}, {"record": "r"}]


def test_rules_are_printed_for_the_prometheus_operator() -> None:
    done = CliRunner().invoke(main, ["rules"])
    assert done.exit_code == 0
    printed = yaml.safe_load(done.output)
    assert printed["kind"] == "PrometheusRule"
    assert [r["alert"] for g in printed["spec"]["groups"] for r in g["rules"] if "alert" in r] == [
        rule["alert"] for rule in alerts()
    ]


def test_where_the_programs_are_absent_the_way_to_them_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = CliRunner().invoke(main, ["watch", "http://127.0.0.1:9"])
    assert done.exit_code == 1
    assert "apt-get install prometheus prometheus-alertmanager" in done.output
