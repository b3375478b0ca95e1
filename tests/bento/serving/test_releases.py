"""A champion and a candidate: taken up without a pause, refused when broken, shared out by key."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from geotiffs import tile_file
from mlflow.tracking import MlflowClient
from prometheus_client import REGISTRY
from servers import served
from tiny_onnx import calibrated, metadata, write_model

from tilewise.bento.inference.precision import Precision
from tilewise.bento.serving.releases import AliasSource, FileSource, Mode, Releases, created_at
from tilewise.datasets.acquire.synthetic import synthesise_tile
from tilewise.datasets.core.errors import ModelFileError
from tilewise.datasets.core.files import sha256_of
from tilewise.datasets.core.tile import BAND_COUNT
from tilewise.models.model_file import int8_of, open_model

TILE = tile_file(synthesise_tile("Forest", 1, 2))
PATIENCE_S = 30


def model(path: Path, version: str, answer: int = 0) -> Path:
    """Write a model of two classes that always answers class `answer`; replaced at one stroke."""
    weights = np.zeros((BAND_COUNT + 1, 2), np.float32)
    weights[-1, answer] = 5
    described = metadata(("A", "B")).model_copy(update={"version": version}).model_dump_json()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_model(path.with_suffix(".new"), described, weights=weights).replace(path)
    return path


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def test_a_file_that_is_replaced_is_taken_up(tmp_path: Path) -> None:
    path = model(tmp_path / "model.onnx", "1")
    releases = Releases(FileSource(path), every=0.05)
    assert releases.champion.metadata.version == "1"
    model(path, "2")
    until(lambda: releases.champion.metadata.version == "2")
    releases.close()


def gauge(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_the_metrics_say_which_model_holds_its_place_and_when_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"

    def put(version: str, created: str, flags: bool) -> None:
        described = calibrated(("A", "B")) if flags else metadata(("A", "B"))
        described = described.model_copy(update={"version": version, "created": created})
        write_model(path.with_suffix(".new"), described.model_dump_json()).replace(path)

    put("told-1", "2026-01-02T03:04:05+00:00", flags=True)
    releases = Releases(FileSource(path), every=0.05)
    assert gauge("tilewise_model_serves", role="champion", model="told-1") == 1
    assert gauge("tilewise_model_created_timestamp_seconds", role="champion") == 1767323045
    assert gauge("tilewise_model_false_alarms", role="champion") == 0.01
    put("told-2", "some day", flags=False)
    until(lambda: gauge("tilewise_model_serves", role="champion", model="told-2") == 1)
    releases.close()
    assert gauge("tilewise_model_serves", role="champion", model="told-1") == 0
    assert gauge("tilewise_model_created_timestamp_seconds", role="champion") == 0
    assert gauge("tilewise_model_false_alarms", role="champion") == 0


def test_a_time_without_a_zone_is_taken_as_utc() -> None:
    overrides = metadata().model_copy(update={"created": "1970-01-01T00:01:00"})
    assert created_at(overrides) == 60


def test_a_broken_replacement_is_refused_and_the_old_model_stays(tmp_path: Path) -> None:
    path = model(tmp_path / "model.onnx", "1")
    releases = Releases(FileSource(path), every=0.05)
    path.write_bytes(b"nonsense")
    time.sleep(0.3)
    assert releases.champion.metadata.version == "1"
    model(path, "3")
    until(lambda: releases.champion.metadata.version == "3")
    path.unlink()
    time.sleep(0.2)
    assert releases.champion.metadata.version == "3"
    releases.close()


def test_a_model_whose_answers_are_no_probabilities_is_refused(tmp_path: Path) -> None:
    weights = np.full((BAND_COUNT + 1, 2), np.nan, np.float32)
    path = write_model(tmp_path / "model.onnx", metadata().model_dump_json(), weights=weights)
    with pytest.raises(ModelFileError, match="do not sum to 1"):
        Releases(FileSource(path))


def test_without_a_champion_there_is_nothing_to_serve(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="there is no such model"):
        Releases(FileSource(tmp_path / "none.onnx"))


def test_a_candidate_that_cannot_be_loaded_is_done_without(tmp_path: Path) -> None:
    champion = FileSource(model(tmp_path / "a.onnx", "1"))
    releases = Releases(champion, FileSource(tmp_path / "none.onnx"), Mode.CANARY, 1.0)
    assert releases.candidate is None
    assert releases.route("anybody") is releases.champion


def test_a_canary_answers_its_share_and_always_the_same_callers(tmp_path: Path) -> None:
    champion, candidate = model(tmp_path / "a.onnx", "1"), model(tmp_path / "b.onnx", "2", answer=1)
    releases = Releases(FileSource(champion), FileSource(candidate), Mode.CANARY, 0.2)
    keys = [f"caller {n}" for n in range(5000)]
    chosen = {key for key in keys if releases.route(key) is releases.candidate}
    assert len(chosen) / len(keys) == pytest.approx(0.2, abs=0.02)
    assert chosen == {key for key in keys if releases.route(key) is releases.candidate}
    assert all(releases.shadow(key) is None for key in keys)
    wider = Releases(FileSource(champion), FileSource(candidate), Mode.CANARY, 0.4)
    assert all(wider.route(key) is wider.candidate for key in chosen)  # a growing share sends nobody back


def test_a_shadow_never_answers(tmp_path: Path) -> None:
    champion, candidate = model(tmp_path / "a.onnx", "1"), model(tmp_path / "b.onnx", "2", answer=1)
    releases = Releases(FileSource(champion), FileSource(candidate), Mode.SHADOW, 1.0)
    assert releases.route("anybody") is releases.champion
    assert releases.shadow("anybody") is releases.candidate


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with two versions of `tilewise`, `champion` being the first."""
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("releases", artifact_location=(folder / "artifacts").as_uri())
    client.create_registered_model("tilewise")
    for version in ("1", "2"):
        run = client.create_run(experiment)
        client.log_artifact(run.info.run_id, str(model(folder / version / "model.onnx", version)), "model")
        client.create_model_version("tilewise", f"{run.info.artifact_uri}/model", run.info.run_id)
    client.set_registered_model_alias("tilewise", "champion", "1")
    return folder


@pytest.fixture
def tracking(registry: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MlflowClient:
    uri = f"sqlite:///{registry}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return MlflowClient(uri)


def test_an_alias_names_a_version_and_rollback_is_moving_it_back(tracking: MlflowClient) -> None:
    releases = Releases(AliasSource("models:/tilewise@champion"), every=0.2)
    assert releases.champion.metadata.version == "1"
    tracking.set_registered_model_alias("tilewise", "champion", "2")
    until(lambda: releases.champion.metadata.version == "2")
    tracking.set_registered_model_alias("tilewise", "champion", "1")
    until(lambda: releases.champion.metadata.version == "1")
    releases.close()


def test_a_version_can_be_named_by_its_number(tracking: MlflowClient) -> None:
    assert Releases(AliasSource("models:/tilewise/2")).champion.metadata.version == "2"


def test_a_version_whose_file_is_not_the_registered_one_is_not_served(tracking: MlflowClient) -> None:
    releases = Releases(AliasSource("models:/tilewise@champion"))
    sha256 = releases.champion.sha256
    tracking.set_model_version_tag("tilewise", "1", "sha256", sha256)
    try:
        assert AliasSource("models:/tilewise/1").find().path.is_file()
        tracking.set_model_version_tag("tilewise", "1", "sha256", "0" * 64)
        with pytest.raises(ModelFileError, match="is not the registered one"):
            AliasSource("models:/tilewise/1").find()
    finally:
        tracking.delete_model_version_tag("tilewise", "1", "sha256")


@pytest.fixture
def with_int8(tmp_path: Path) -> Path:
    """A model file in a folder of its own, with an INT8 file beside it."""
    fp32 = model(tmp_path / "stored/model.onnx", "3")
    quantised = {"version": "3", "precision": "int8", "quantised_from": sha256_of(fp32)}
    write_model(int8_of(fp32), metadata(("A", "B")).model_copy(update=quantised).model_dump_json())
    return fp32


def source_with(tracking: MlflowClient, fp32: Path, **tags: str) -> AliasSource:
    """Make the files beside `fp32` a version with these tags."""
    version = tracking.create_model_version("tilewise", fp32.parent.as_uri(), tags=tags)
    return AliasSource(f"models:/tilewise/{version.version}", Precision.INT8)


def forge(int8: Path) -> None:
    """Replace an INT8 file by one that is sound, says the same of itself, and answers otherwise."""
    described = open_model(int8).metadata.model_dump_json()
    write_model(int8, described, weights=np.ones((BAND_COUNT + 1, 2), np.float32))


@pytest.mark.parametrize("changed", ["in the store", "on this machine"])
def test_an_int8_file_that_was_changed_after_registration_is_not_served(
    tracking: MlflowClient, with_int8: Path, changed: str
) -> None:
    digests = {"sha256": sha256_of(with_int8), "int8_sha256": sha256_of(int8_of(with_int8))}
    source = source_with(tracking, with_int8, **digests)
    if changed == "in the store":
        forge(int8_of(with_int8))
    else:
        served = Releases(source).champion
        assert served.sha256 == digests["int8_sha256"]
        forge(source.find().path)
    refused = r"models:/tilewise/\d+: .*model\.int8\.onnx is not the registered one \(its SHA-256 differs\)"
    for precision in Precision:
        with pytest.raises(ModelFileError, match=refused):
            AliasSource(source.uri, precision).find()
    if changed == "on this machine":
        with pytest.raises(ModelFileError, match=refused):
            source.find_last()


@pytest.mark.parametrize("registered", [{"int8_sha256": "none"}, {"int8_sha256": ""}, {}])
def test_an_int8_file_that_the_registry_does_not_know_is_not_served(
    tracking: MlflowClient, with_int8: Path, registered: dict[str, str]
) -> None:
    source = source_with(tracking, with_int8, sha256=sha256_of(with_int8), **registered)
    with pytest.raises(ModelFileError, match=r"model\.int8\.onnx .*\(the registry has no such file\)"):
        Releases(source)


def test_an_int8_file_of_a_version_without_any_digest_is_served(
    tracking: MlflowClient, with_int8: Path
) -> None:
    found = source_with(tracking, with_int8).find()
    assert found.path.read_bytes() == int8_of(with_int8).read_bytes()


def test_where_the_registry_is_down_a_service_starts_with_the_version_that_it_had(
    tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.exceptions import MlflowException

    source = AliasSource("models:/tilewise@champion")
    Releases(source)

    def unreachable(*_: object) -> None:
        raise MlflowException("API request failed: Connection refused")

    with monkeypatch.context() as down:
        down.setattr(MlflowClient, "get_model_version_by_alias", unreachable)
        releases = Releases(source)
        assert releases.champion.metadata.version == "1"
        assert "starting with tilewise:1, which was found here before" in caplog.text
        with pytest.raises(ModelFileError, match="Connection refused"):
            Releases(AliasSource("models:/tilewise@never_seen"))


def test_workers_that_ask_the_registry_at_once_all_find_their_model(
    tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for first in range(6):
        source = AliasSource("models:/tilewise@champion" if first % 2 else "models:/tilewise/1")
        with ThreadPoolExecutor(8) as workers:
            found = list(workers.map(lambda _: source.find().identity, range(16)))  # noqa: B023
        assert found == ["tilewise:1"] * 16
        for record in tmp_path.rglob("*.json"):
            record.unlink(missing_ok=True)


def test_a_cached_version_that_was_changed_is_not_started_with(
    tracking: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = AliasSource("models:/tilewise@champion")
    tracking.set_model_version_tag("tilewise", "1", "sha256", Releases(source).champion.sha256)
    try:
        path = source.find().path
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        content = path.read_bytes()
        model(path, "forged")
        last = source.find_last
        with pytest.raises(ModelFileError, match="is not the registered one"):
            last()
        path.write_bytes(content)
        assert last() is not None
    finally:
        tracking.delete_model_version_tag("tilewise", "1", "sha256")


@pytest.mark.parametrize("uri", ["models:/tilewise@nobody", "models:/unknown@champion", "models:/tilewise"])
def test_a_name_that_the_registry_does_not_know_is_one_line(tracking: MlflowClient, uri: str) -> None:
    with pytest.raises(ModelFileError) as refused:
        Releases(AliasSource(uri))
    assert str(refused.value).startswith(uri)
    assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_a_new_champion_takes_over_under_load_without_a_failed_request(tmp_path: Path) -> None:
    path = model(tmp_path / "model.onnx", "1")
    statuses: list[int] = []
    versions: list[str] = []
    stop = threading.Event()

    def ask(url: str) -> None:
        with httpx.Client(trust_env=False, timeout=30) as client:
            while not stop.is_set():
                answer = client.post(f"{url}/classify", files=[("tiles", ("t.tif", TILE))] * 3)
                statuses.append(answer.status_code)
                versions.append(answer.json()["model"]["version"])

    with served(path, tmp_path, TILEWISE_WORKERS="2", TILEWISE_RELOAD_SECONDS="1") as server:
        threads = [threading.Thread(target=ask, args=(server.url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: len(versions) > 20)
        model(path, "2", answer=1)
        until(lambda: versions[-8:] == ["2"] * 8)
        stop.set()
        for thread in threads:
            thread.join(30)
    assert set(statuses) == {200}
    assert set(versions) == {"1", "2"}


@pytest.mark.slow
def test_a_shadow_and_a_canary_in_service(tmp_path: Path) -> None:
    champion, candidate = model(tmp_path / "a.onnx", "1"), model(tmp_path / "b.onnx", "2", answer=1)
    settings = {"TILEWISE_CANDIDATE": str(candidate), "TILEWISE_WORKERS": "1"}
    files = [("tiles", ("t.tif", TILE))] * 2
    shadow = {**settings, "TILEWISE_CANDIDATE_MODE": "shadow", "TILEWISE_CANDIDATE_FRACTION": "1"}
    with (
        served(champion, tmp_path, **shadow) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client,
    ):
        for _ in range(3):
            assert client.post("/classify", files=files).json()["model"]["version"] == "1"
        until(
            lambda: (
                'tilewise_shadow_tiles_total{agrees="no",candidate="2"} 6.0' in client.get("/metrics").text
            )
        )
        assert client.get("/model").json()["candidate"]["mode"] == "shadow"
    canary = {**settings, "TILEWISE_CANDIDATE_MODE": "canary", "TILEWISE_CANDIDATE_FRACTION": "0.5"}
    with (
        served(champion, tmp_path, **canary) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client,
    ):
        seen = {}
        for key in (f"caller {n}" for n in range(30)):
            found = {
                client.post("/classify", files=files, headers={"Tilewise-Key": key}).json()["model"][
                    "version"
                ]
            }
            found |= {
                client.post("/classify", files=files, headers={"Tilewise-Key": key}).json()["model"][
                    "version"
                ]
            }
            assert len(found) == 1  # sticky
            seen[key] = found.pop()
        assert {*seen.values()} == {"1", "2"}
