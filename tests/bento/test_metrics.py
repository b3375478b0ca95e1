"""What a real service says in `/metrics`, and that the documentation names all of it."""

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from geotiffs import jpeg, tile_file
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families
from servers import ROOT, Server, served
from watched import samples, tiles, until, watched_model

from tilewise.bento import metrics
from tilewise.datasets.acquire.synthetic import synthesise_tile

FOREST = synthesise_tile("Forest", 3, 1)
DOCUMENT = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("metrics")
    settings = {
        "TILEWISE_WORKERS": "2",
        "TILEWISE_DRIFT_MIN_TILES": "5",
        "TILEWISE_PREDICTIONS": str(home / "log"),
    }
    with served(watched_model(home / "model.onnx", tiles(20, seed=1)), home, **settings) as server:
        yield server


STAGES = ("receive", "read", "read_apart", "describe", "write")


def post(service: Server, *contents: bytes, **headers: str) -> httpx.Response:
    files = [("tiles", (f"{n}.tif", content)) for n, content in enumerate(contents)]
    return httpx.post(f"{service.url}/classify", files=files, headers=headers, trust_env=False, timeout=30)


def families(service: Server) -> dict[str, str]:
    """The metrics' names, as Prometheus stores them, and their types."""
    text = httpx.get(f"{service.url}/metrics", trust_env=False, timeout=30).text
    found = text_string_to_metric_families(text)
    return {family.name + "_total" * (family.type == "counter"): family.type for family in found}


def test_tiles_errors_batches_waits_and_stages_are_counted(service: Server) -> None:
    for _ in range(3):
        assert post(service, tile_file(FOREST), jpeg(), tile_file(FOREST)).status_code == 200
    (tiled,) = samples(service.url, "tilewise_tiles_total").values()
    assert tiled == 6
    assert samples(service.url, "tilewise_errors_total")['code="unreadable_image"'] == 3
    assert samples(service.url, "tilewise_batch_tiles_sum")[""] == 9
    assert samples(service.url, "tilewise_wait_seconds_count")[""] == 3
    assert samples(service.url, "tilewise_waiting_tiles") == {"": 0}
    stages = samples(service.url, "tilewise_seconds_count")
    assert set(stages) == {f'stage="{stage}"' for stage in STAGES}
    assert stages.pop('stage="read_apart"') <= 2, "only the first tile of each process, for its CRS"
    assert all(count == 3 for count in stages.values())
    assert sum(samples(service.url, "tilewise_infer_seconds_count").values()) == 3
    assert sum(samples(service.url, "tilewise_confidence_count").values()) == 6
    assert sum(samples(service.url, "tilewise_outlier_score_count").values()) == 6


def test_requests_are_counted_by_the_model_that_answered_them(service: Server) -> None:
    before = samples(service.url, "tilewise_requests_total")
    labels = 'model="0",path="/classify",status="200"'
    assert post(service, tile_file(FOREST)).status_code == 200
    assert samples(service.url, "tilewise_requests_total")[labels] == before.get(labels, 0) + 1
    assert samples(service.url, "tilewise_request_seconds_count")['model="0",path="/classify"'] >= 1
    httpx.get(f"{service.url}/nothing", trust_env=False)
    assert samples(service.url, "tilewise_requests_total")['model="",path="other",status="404"'] >= 1


def test_what_alerts_count_is_there_before_it_first_happens(service: Server) -> None:
    errors = samples(service.url, "tilewise_errors_total")
    assert (errors['code="internal"'], errors['code="overloaded"']) == (0, 0)
    refused = samples(service.url, "tilewise_model_refused_total")
    assert refused == {'role="candidate"': 0, 'role="champion"': 0}
    assert set(samples(service.url, "tilewise_predictions_total")) == {
        f'outcome="{outcome}"' for outcome in ("dropped", "failed", "written")
    }


def test_paths_that_anybody_can_think_up_make_no_new_series(service: Server) -> None:
    def ask(name: str) -> None:
        httpx.get(f"{service.url}/{name}", trust_env=False, headers={"X-Request-ID": name}, timeout=30)
        httpx.get(f"{service.url}/tasks/{name}", trust_env=False, timeout=30)

    ask("before")
    before = set(samples(service.url, "tilewise_requests_total"))
    for n in range(8):
        ask(f"scan-{n}")
    after = samples(service.url, "tilewise_requests_total")
    assert set(after) <= before | {'path="/tasks/{id}",status="404"', 'path="other",status="404"'}
    assert "scan" not in httpx.get(f"{service.url}/metrics", trust_env=False, timeout=30).text


def test_every_metric_is_in_the_documentation_with_its_type_and_no_other(service: Server) -> None:
    table = dict(re.findall(r"^\| `(tilewise_\w+)` \| (\w+) \|", DOCUMENT, re.MULTILINE))
    ours = [item.describe()[0] for item in vars(metrics).values() if isinstance(item, MetricWrapperBase)]
    counting = {item.name + "_total" * (item.type == "counter"): item.type for item in ours}
    assert counting.items() <= table.items()
    assert table.keys() <= counting.keys()
    assert families(service).items() <= table.items()


def test_rules_and_text_of_the_documentation_name_metrics_that_there_are() -> None:
    table = set(re.findall(r"^\| `(tilewise_\w+)` \|", DOCUMENT, re.MULTILINE))
    assert set(re.findall(r"\btilewise_[a-z_]+\b", DOCUMENT)) == table


def test_the_gauges_of_a_killed_process_go_when_another_takes_its_place(service: Server) -> None:
    folder = service.log.parent / "prometheus_multiproc_dir"
    pids = {int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_livesum_*.db")}
    victim = max(pids)
    assert len(pids) == 2
    os.kill(victim, signal.SIGKILL)
    until(
        lambda: not (folder / f"gauge_livesum_{victim}.db").exists(),
        "the dead process is forgotten",
        seconds=40,
    )
    assert post(service, tile_file(FOREST)).status_code == 200


def test_only_the_dead_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(metrics.SHARED_FOLDER, str(tmp_path))
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, timeout=30
    )
    dead, alive = int(ended.stdout), os.getpid()
    for pid in (dead, alive):
        for kind in ("gauge_livesum", "gauge_livemax", "counter"):
            (tmp_path / f"{kind}_{pid}.db").touch()
    metrics.remove_gauges_of_dead_processes()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {
        f"counter_{dead}.db",
        *(f"{k}_{alive}.db" for k in ("gauge_livesum", "gauge_livemax", "counter")),
    }


def test_tiles_as_an_array_are_counted_too(service: Server) -> None:
    before = sum(samples(service.url, "tilewise_tiles_total").values())
    stream = io.BytesIO()
    np.save(stream, tiles(5, seed=3))
    headers = {"Content-Type": "application/octet-stream"}
    httpx.post(
        f"{service.url}/classify", content=stream.getvalue(), headers=headers, trust_env=False, timeout=30
    )
    assert sum(samples(service.url, "tilewise_tiles_total").values()) == before + 5
