"""Scenes over HTTP, as users meet them: a real service of two processes, its windows, maps and tasks."""

import json
import math
import os
import re
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from affine import Affine
from geotiffs import UTM, geotiff, jpeg
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.warp import transform as transform_coordinates
from servers import served
from tiny_onnx import metadata, write_model

from tilewise.bento.inference.blending import NO_CLASS
from tilewise.bento.inference.engine import Engine
from tilewise.bento.serving.scene_answers import ClassifiedScene, SceneRequest, answer_scene
from tilewise.datasets.acquire.synthetic import TAGS, render
from tilewise.datasets.core.bands import BAND_NAMES, EUROSAT_MS_ORDER, positions
from tilewise.datasets.core.tile import BAND_COUNT, DN
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.datasets.readers.geotiff import open_geotiff
from tilewise.models.class_colours import KNOWN

GEOJSON, MAP = "application/geo+json", "image/tiff"
MAX_AT_ONCE, MAX_PIXELS, MAX_BYTES, MAX_TASKS = 12, 1024 * 1024, 40 * 2**20, 2
LONG, LONGER = 16 * 16, 32 * 32  # windows
WAIT_S = 30
ALICE, BOB = ({"Authorization": f"Bearer {name * 16}"} for name in ("a", "b"))


def land(rows: int, columns: int) -> DN:
    """Synthetic land (13, 64 · rows, 64 · columns) of many classes."""
    cells = [
        [render(CLASSES[(3 * r + c) % 10], r * columns + c + 1, seed=4) for c in range(columns)]
        for r in range(rows)
    ]
    return np.concatenate([np.concatenate(row, axis=2) for row in cells], axis=1)


ONE_HUGE_BLOCK = {
    "compress": "deflate",
    "tiled": True,
    "blockxsize": 4096,
    "blockysize": 4096,
    "sparse_ok": True,
}
SMALL = land(2, 3)[:, :100]


def file_of(pixels: DN = SMALL, **more: Any) -> bytes:
    return geotiff(pixels, **({"names": BAND_NAMES, "tags": TAGS} | more))


def even(height: int, width: int) -> DN:
    """Land of one colour (13, height, width), dark and different in each band: no cloud, and no fill."""
    levels = np.arange(300, 300 + 50 * len(BAND_NAMES), 50, dtype=np.uint16)
    return np.broadcast_to(levels[:, None, None], (len(BAND_NAMES), height, width)).copy()


@cache
def long_file(windows: int = LONG) -> bytes:
    """A scene that takes a second or more with the slow model, in few bytes."""
    side = 64 * math.isqrt(windows)
    return file_of(even(side, side), compress="deflate", tiled=True, blockxsize=256, blockysize=256)


@dataclass(frozen=True)
class Service:
    client: httpx.Client
    url: str
    tasks: Path
    log: Path
    places: list[str] = field(default_factory=list)

    def send(self, content: bytes | None = None, query: str = "", **headers: str) -> httpx.Response:
        kind = {"Content-Type": "image/tiff"} | ALICE
        return self.client.post(f"/scene{query}", content=content or file_of(), headers=kind | headers)

    def get(self, path: str, accept: str = "*/*", caller: dict[str, str] = ALICE) -> httpx.Response:
        try:
            return self.client.get(path, headers={"Accept": accept} | caller)
        except httpx.TransportError:  # of the process that was killed
            return self.client.get(path, headers={"Accept": accept} | caller)

    def submit(self, content: bytes | None = None) -> str:
        response = self.send(content, Prefer="respond-async")
        assert response.status_code == 202, response.text
        self.places.append(response.headers["location"])
        return self.places[-1]

    def wait(self, place: str, *states: str) -> dict[str, Any]:
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            told: dict[str, Any] = self.get(place).json()
            if told["status"] in (states or ("done", "failed")):
                return told
            time.sleep(0.05)
        raise AssertionError(f"the task stays {told}")

    def kept(self) -> list[Path]:
        """What lies on disk of scenes and results."""
        return [path for path in self.tasks.iterdir() if path.is_dir()]

    def workers(self) -> int:
        """How many processes have signed on to the ledger."""
        with sqlite3.connect(self.tasks / "tasks.db") as database:
            (count,) = database.execute("SELECT count(*) FROM workers").fetchone()
        return int(count)

    def worker_of(self, place: str) -> int:
        """The process that works on a task, as the ledger has it."""
        with sqlite3.connect(self.tasks / "tasks.db") as database:
            (name,) = database.execute(
                "SELECT worker FROM tasks WHERE id = ?", (place.rpartition("/")[2],)
            ).fetchone()
        return int(name.split(":")[1])


@pytest.fixture(scope="module")
def model(linear_model: Path) -> Path:
    return linear_model


@pytest.fixture(scope="module")
def service(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("bentoml")
    tasks = home / "tasks"
    settings = {
        "TILEWISE_WORKERS": "2",
        "TILEWISE_THREADS": "1",
        "TILEWISE_MAX_SYNC_WINDOWS": str(MAX_AT_ONCE),
        "TILEWISE_MAX_PIXELS": str(MAX_PIXELS),
        "TILEWISE_MAX_SCENE_BYTES": str(MAX_BYTES),
        "TILEWISE_MAX_TASKS": str(MAX_TASKS),
        "TILEWISE_TASKS": str(tasks),
        "TILEWISE_TURNOVER": "1",  # so that requests meet either process
        "TILEWISE_API_KEYS": f"alice:{'a' * 16},bob:{'b' * 16}",
    }
    with (
        served(model, home, **settings) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client,
    ):
        yield both_up(Service(client, server.url, tasks, server.log))


def both_up(service: Service) -> Service:
    """Wait until both processes serve: one is ready before the other."""
    until(lambda: service.workers() == 2)
    return service


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def classified(engine: Engine, folder: Path) -> ClassifiedScene:
    """SMALL as this process classifies it."""
    (folder / "scene.tif").write_bytes(file_of())
    return answer_scene(engine, folder / "scene.tif", SceneRequest("scene"), lambda _: None)


def refusal(response: httpx.Response, status: int) -> dict[str, str]:
    assert response.status_code == status, response.text
    error: dict[str, str] = response.json()["error"]
    assert set(error) == {"code", "message", "hint"}
    return error


def class_map(content: bytes) -> Any:
    with MemoryFile(content) as memory, memory.open(driver="GTiff") as dataset:
        return dataset.read(1), dataset.profile, dataset.tags(), dataset.tags(ns="IMAGE_STRUCTURE")


# Answers on the connection.


def test_windows_are_features_with_class_probabilities_and_place(
    service: Service, engine: Engine, tmp_path: Path
) -> None:
    response = service.send(query="?name=coast.tif")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == GEOJSON
    told = response.json()
    expected = classified(engine, tmp_path)
    assert (told["type"], told["name"], told["bands"]) == ("FeatureCollection", "coast.tif", list(BAND_NAMES))
    assert told["model"]["sha256"] == engine.sha256
    assert len(told["features"]) == len(expected.windows) == 6
    for feature, window in zip(told["features"], expected.windows, strict=True):
        found = feature["properties"]
        assert window.probabilities is not None
        assert list(found["probabilities"].values()) == pytest.approx(window.probabilities.tolist(), abs=1e-5)
        assert found["class"] == CLASSES[window.class_index]
        assert found["probability"] == max(found["probabilities"].values())
        assert (found["row"], found["column"]) == (window.row, window.column)
        assert found["valid_fraction"] == pytest.approx(window.valid_fraction, abs=1e-5)  # clouds are cut out
        assert feature["geometry"]["type"] == "Polygon"
        ((west, north), *_) = feature["geometry"]["coordinates"][0]
        x, y = 540_000 + 10 * window.column, 4_740_000 - 10 * window.row  # the corner, UTM 29 N
        ((expected_west,), (expected_north,)) = transform_coordinates("EPSG:32629", "EPSG:4326", [x], [y])
        assert (west, north) == pytest.approx((expected_west, expected_north), abs=2e-6)  # 0.2 m
    assert len({feature["properties"]["class"] for feature in told["features"]}) > 2


def test_a_class_map_lies_on_the_scenes_own_grid(service: Service, engine: Engine, tmp_path: Path) -> None:
    response = service.send(query="?name=../a%20b.tif", Accept="image/tiff")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == MAP
    assert response.headers["content-disposition"] == 'attachment; filename=".._a_b.classes.tif"'
    numbers, profile, tags, structure = class_map(response.content)
    expected = classified(engine, tmp_path)
    assert (profile["crs"], profile["transform"]) == (UTM, expected.georeference.transform)
    np.testing.assert_array_equal(numbers, expected.class_map)
    assert json.loads(tags["CLASSES"]) == list(CLASSES)
    assert structure["LAYOUT"] == "COG"


def test_a_form_with_a_file_and_fields_does_as_well(service: Service) -> None:
    plain = geotiff(SMALL[positions(EUROSAT_MS_ORDER)])
    fields = {"bands": "eurosat", "level": "L1C", "offset": "0"}
    form = service.client.post("/scene", files={"scene": ("coast.tif", plain)}, data=fields, headers=ALICE)
    assert form.status_code == 200, form.text
    assert form.json()["name"] == "coast.tif"
    query = service.send(plain, "?bands=eurosat&level=L1C&offset=0")
    assert form.json()["features"] == query.json()["features"] == service.send().json()["features"]


def test_windows_with_too_little_data_have_no_class(service: Service) -> None:
    pixels = SMALL.copy()
    pixels[:, :40, :64] = 0
    told = service.send(file_of(pixels)).json()["features"][0]["properties"]
    assert {told[key] for key in ("class", "probability", "probabilities", "prediction_set", "outlier")} == {
        None
    }
    assert told["valid_fraction"] == pytest.approx(24 / 64)
    assert service.send(file_of(pixels), "?min_valid_fraction=0.3").json()["features"][0]["properties"][
        "class"
    ]
    numbers, *_ = class_map(service.send(file_of(pixels), Accept=MAP).content)
    assert (numbers[:36, :64] == NO_CLASS).all()


def test_pixels_are_counted_by_class_and_what_has_none(
    service: Service, engine: Engine, tmp_path: Path
) -> None:
    counted = service.send().json()["pixels"]
    expected = classified(engine, tmp_path).class_map
    assert list(counted) == [*CLASSES, "out_of_distribution", "no_class"]
    assert sum(counted.values()) == expected.size
    assert counted["no_class"] == (expected == NO_CLASS).sum()


def test_a_picture_of_the_map_is_transparent_where_nothing_is_known(service: Service) -> None:
    pixels = SMALL.copy()
    pixels[:, :64, :64] = 0
    response = service.send(file_of(pixels), Accept="image/png")
    assert response.headers["content-type"] == "image/png"
    with MemoryFile(response.content) as memory, memory.open() as dataset:
        picture = dataset.read()
    numbers, *_ = class_map(service.send(file_of(pixels), Accept=MAP).content)
    grown = picture.shape[1] // numbers.shape[0]
    opaque = np.repeat(np.repeat(numbers != NO_CLASS, grown, axis=0), grown, axis=1)
    np.testing.assert_array_equal(picture[3] == 255, opaque)
    assert not opaque[:8, :8].any()
    top_right = KNOWN[CLASSES[numbers[40, 150]]]
    assert tuple(picture[:3, 40 * grown, 150 * grown]) == top_right


def test_stride_clouds_and_warp_are_those_of_batch_inference(service: Service) -> None:
    cloud = SMALL.copy()
    cloud[:, :64, :64] = np.linspace(6500, 8500, 13, dtype=np.uint16)[:, None, None]
    overlapping = service.send(query="?stride=32", Prefer="respond-async")
    assert overlapping.json()["windows"] == 15
    place = overlapping.headers["location"]
    until(lambda: service.client.get(place, headers=ALICE).json()["status"] == "done")
    assert service.client.delete(place, headers=ALICE).status_code == 204
    assert service.send(file_of(cloud)).json()["features"][0]["properties"]["class"] is None
    assert service.send(file_of(cloud), "?clouds=none").json()["features"][0]["properties"]["class"]
    degrees = {"crs": CRS.from_epsg(4326), "transform": Affine(1.2e-4, 0, -8.5, 0, -9e-5, 42.8)}
    refused = refusal(service.send(file_of(**degrees)), 422)
    assert (refused["code"], "send warp=true" in refused["hint"]) == ("tile_shape", True)
    warped = service.send(file_of(**degrees), "?warp=true", Accept=MAP)
    _, profile, *_ = class_map(warped.content)
    assert (profile["crs"], profile["transform"].a) == (UTM, 10)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?stride=3", "stride is a number of pixels from 4 to 64, not '3'"),
        ("?stride=x", "stride is a number"),
        ("?clouds=fog", "clouds is none, auto, scl, qa60, probability, pixels or probability:PERCENT"),
        ("?clouds=file:secret.tif", "clouds is none"),
        ("?warp=yes", "warp is true or false, not 'yes'"),
    ],
)
def test_choices_that_make_no_sense_are_refused(service: Service, query: str, message: str) -> None:
    assert refusal(service.send(query=query), 422)["message"].startswith(message)


def test_windows_that_overlap_too_much_are_refused_by_the_header(service: Service) -> None:
    side = math.isqrt(MAX_PIXELS) // 64 * 64
    content = file_of(even(side, side), compress="deflate")
    error = refusal(service.send(content, "?stride=4"), 413)
    assert "choose a larger stride" in error["hint"]


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("*/*", GEOJSON),
        ("image/tiff;application=geotiff;profile=cloud-optimized", MAP),
        ("image/*", MAP),
        ("application/geo+json;q=0.5, image/tiff", MAP),
        ("image/tiff;q=0, */*", GEOJSON),
    ],
)
def test_the_form_is_the_callers_choice(service: Service, accept: str, form: str) -> None:
    response = service.send(Accept=accept)
    assert (response.status_code, response.headers["content-type"]) == (200, form)


def test_another_form_is_refused_with_those_there_are(service: Service) -> None:
    error = refusal(service.send(Accept="text/html"), 406)
    assert error["code"] == "not_acceptable"
    assert GEOJSON in error["hint"]
    assert MAP in error["hint"]


# Refusals.


@pytest.mark.parametrize(
    ("content", "query", "status", "code", "named"),
    [
        (jpeg(), "", 415, "unreadable_image", "not a GeoTIFF but a JPEG"),
        (file_of()[:400], "", 415, "unreadable_image", "truncated or corrupt"),
        (file_of(crs=None), "", 422, "tile_shape", "coordinate reference system"),
        (geotiff(SMALL), "", 422, "bands_unknown", "no names"),
        (geotiff(SMALL[:3], names=("B04", "B03", "B02")), "", 422, "radiometry_unknown", "level"),
        (file_of(), "?min_valid_fraction=2", 422, "invalid", "min_valid_fraction"),
        (file_of(), "?least=1", 422, "invalid", "unknown parameter 'least'"),
        (
            file_of(np.ones((BAND_COUNT, 1040, 1040), np.uint16), compress="deflate"),
            "",
            413,
            "too_large",
            "1040 × 1040",
        ),
        (
            file_of(np.ones((BAND_COUNT, 8, 4100), np.uint16), compress="deflate"),
            "",
            413,
            "too_large",
            "4,096 on a side",
        ),
    ],
)
def test_what_cannot_be_classified_is_refused_at_once_and_not_kept(
    service: Service, content: bytes, query: str, status: int, code: str, named: str
) -> None:
    error = refusal(service.send(content, query, Prefer="respond-async"), status)
    assert error["code"] == code
    assert named in error["message"] + error["hint"]
    assert str(service.tasks) not in str(error)
    until(lambda: not service.kept())


def test_a_body_that_is_no_scene_is_refused(service: Service) -> None:
    json_body = service.client.post("/scene", json={"url": "http://localhost/scene.tif"}, headers=ALICE)
    assert "image/tiff" in refusal(json_body, 415)["hint"]
    url = service.client.post("/scene", data={"scene": "http://localhost/scene.tif"}, headers=ALICE)
    assert refusal(url, 415)
    no_file = service.client.post("/scene", files={"tiles": ("a.tif", file_of())}, headers=ALICE)
    assert "'scene'" in refusal(no_file, 400)["message"]
    text = service.client.post("/scene", files={"scene": (None, "http://localhost/a.tif")}, headers=ALICE)
    assert "'scene'" in refusal(text, 400)["message"]


def test_bytes_are_bounded_whether_they_are_announced_or_not(service: Service) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(MAX_BYTES // 2**20 + 8):
            yield bytes(2**20)

    assert refusal(service.send(bytes(MAX_BYTES + 1)), 413)["code"] == "too_large"
    headers = {"Content-Type": "image/tiff"} | ALICE
    try:
        response = service.client.post("/scene", content=endless(), headers=headers)
    except httpx.WriteError:
        pass  # the service had said no and closed before all was sent
    else:
        assert refusal(response, 413)["code"] == "too_large"
    until(lambda: not service.kept())


# Tasks.


def test_a_larger_scene_becomes_a_task_that_either_process_tells_of(service: Service) -> None:
    pixels = land(4, 4)
    response = service.send(file_of(pixels), "?name=big.tif")
    assert response.status_code == 202, response.text
    place = response.headers["location"]
    assert re.fullmatch(r"/tasks/[\w-]{32}", place)
    assert response.headers["retry-after"].isdigit()
    told = service.wait(place)
    assert (told["status"], told["progress"], told["windows"], told["error"]) == ("done", 1, 16, None)
    assert told["created"] < told["finished"] < told["expires"]
    answers = [service.get(told["links"]["result"]) for _ in range(6)]
    assert len(answers[0].json()["features"]) == 16
    assert len({answer.content for answer in answers}) == 1
    result = service.get(told["links"]["result"], accept=MAP)
    assert result.headers["content-disposition"] == 'attachment; filename="big.classes.tif"'
    assert class_map(result.content)[0].shape == (256, 256)
    assert not (service.tasks / told["id"] / "scene.tif").exists(), "only the results are kept"
    assert service.client.delete(place, headers=ALICE).status_code == 204
    assert refusal(service.get(place), 404)
    assert not service.kept()


def test_a_task_answers_as_the_connection_does(service: Service) -> None:
    response = service.send(Prefer="respond-async, wait=10")
    assert response.status_code == 202
    assert response.headers["preference-applied"] == "respond-async"
    place = response.headers["location"]
    service.wait(place)
    assert service.get(f"{place}/result").json() == service.send().json()
    assert service.get(f"{place}/result", accept=MAP).content == service.send(Accept=MAP).content
    assert refusal(service.get(f"{place}/result", accept="text/html"), 406)
    whole = service.send(Accept=MAP).content
    parts = {
        "bytes=0-9": (206, whole[:10]),
        "bytes=10-": (206, whole[10:]),
        "bytes=-7": (206, whole[-7:]),
        "bytes=5-2": (200, whole),
        "bytes=99999999-": (200, whole),
        "lines=1": (200, whole),
        "bytes=0-1,4-5": (200, whole),
    }
    for asked, (status, content) in parts.items():
        part = service.client.get(f"{place}/result", headers={**ALICE, "Accept": MAP, "Range": asked})
        assert (part.status_code, part.content) == (status, content), asked
    for path in service.tasks.glob(f"{place.removeprefix('/tasks/')}/*.result"):
        path.unlink()  # as a DELETE does that comes at this moment
    assert refusal(service.get(f"{place}/result"), 404)["code"] == "not_found"
    service.client.delete(place, headers=ALICE)


def test_a_task_is_only_seen_with_the_key_it_was_made_with(service: Service) -> None:
    place = service.submit()
    service.wait(place)
    for path in (place, f"{place}/result"):
        assert refusal(service.get(path, caller=BOB), 404)["code"] == "not_found"
    assert refusal(service.client.delete(place, headers=BOB), 404)
    assert refusal(service.get(place, caller={}), 401)
    assert service.get(place).status_code == 200
    service.client.delete(place, headers=ALICE)


def test_a_scene_that_breaks_on_the_way_fails_with_its_reason(service: Service) -> None:
    content = bytearray(file_of(land(4, 4), compress="deflate"))
    content[len(content) // 2 : len(content) // 2 + 4000] = bytes(4000)
    place = service.submit(bytes(content))
    told = service.wait(place)
    assert told["status"] == "failed"
    assert told["error"]["code"] == "unreadable_image"
    assert refusal(service.get(f"{place}/result"), 415) == told["error"]
    assert (
        refusal(service.send(file_of(SMALL, compress="deflate")[:-3000]), 415)["code"] == "unreadable_image"
    )
    service.client.delete(place, headers=ALICE)


# Long work, with a network that takes its time.


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of `tiny_onnx` behind many passes over the tile that change nothing."""
    import onnx
    from onnx import helper

    path = write_model(tmp_path_factory.mktemp("slow") / "model.onnx", metadata().model_dump_json())
    graph = onnx.load(str(path))
    nodes = list(graph.graph.node)
    work = [helper.make_node("Erf", ["dn" if i == 0 else f"e{i - 1}"], [f"e{i}"]) for i in range(120)]
    work += [
        helper.make_node("Mul", ["e119", "nought"], ["zeros"]),
        helper.make_node("Add", ["dn", "zeros"], ["same"]),
    ]
    nodes[1].input[0] = "same"
    del graph.graph.node[:]
    graph.graph.node.extend([nodes[0], *work, *nodes[1:]])
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), "nought"))
    onnx.save(graph, str(path))
    return path


@pytest.fixture(scope="module")
def slow_service(slow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("bentoml")
    settings = {
        "TILEWISE_WORKERS": "2",
        "TILEWISE_THREADS": "1",
        "TILEWISE_MAX_TASKS": str(2 * MAX_TASKS),  # one caller has half of them
        "TILEWISE_TASKS": str(home / "tasks"),
        "TILEWISE_TASKS_BYTES": str(MAX_BYTES),
        "TILEWISE_MAX_SYNC_WINDOWS": str(LONG),
        "TILEWISE_TURNOVER": "1",
    }
    with (
        served(slow_model, home, **settings) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client,
    ):
        yield both_up(Service(client, server.url, home / "tasks", server.log))


@pytest.fixture
def slow(slow_service: Service) -> Iterator[Service]:
    """The service with the slow model; a test's tasks go with it."""
    yield slow_service
    for place in slow_service.places:
        slow_service.client.delete(place)
    slow_service.places.clear()
    until(lambda: not slow_service.kept())


def test_waiting_tasks_are_bounded_and_a_removed_one_stops(slow: Service) -> None:
    running = [slow.submit(long_file(LONGER)) for _ in range(2)]
    for place in running:
        slow.wait(place, "running")
    waiting = [slow.submit(long_file(LONGER)) for _ in range(MAX_TASKS)]
    told = slow.get(waiting[1]).json()
    assert (told["status"], told["ahead"]) == ("waiting", 1)
    not_done = slow.get(f"{waiting[0]}/result")
    assert refusal(not_done, 409)["code"] == "not_done"
    assert not_done.headers["retry-after"].isdigit()
    full = slow.send(long_file(), Prefer="respond-async")
    assert refusal(full, 429)["code"] == "too_many_tasks"
    assert full.headers["retry-after"].isdigit()
    assert slow.client.delete(running[0]).status_code == 204
    assert slow.wait(waiting[0], "running")


def test_bytes_on_disk_are_bounded(slow: Service) -> None:
    slow.submit(long_file())
    whole = slow.client.post(
        "/scene",
        content=bytes(MAX_BYTES - 1000),
        headers={"Content-Type": "image/tiff", "Expect": "100-continue"},
    )
    assert refusal(whole, 503)["code"] == "storage_full"
    assert whole.headers["retry-after"].isdigit()


def test_tiles_are_answered_while_scenes_are_worked_on(slow: Service) -> None:
    places = [slow.submit(long_file(LONGER)) for _ in range(2)]
    for place in places:
        slow.wait(place, "running")
    tile = file_of(land(1, 1))
    for _ in range(10):
        answer = slow.client.post("/classify", content=tile, headers={"Content-Type": "image/tiff"})
        assert answer.status_code == 200
    states = [slow.get(place).json() for place in places]
    assert [told["status"] for told in states] == ["running", "running"], "or the tiles waited for the scenes"


def test_the_work_stops_when_the_client_goes(slow: Service) -> None:
    content = long_file()
    host, port = slow.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = "POST /scene HTTP/1.1\r\nHost: x\r\nContent-Type: image/tiff\r\n"
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        until(lambda: bool(slow.kept()))
        time.sleep(0.3)
        assert slow.kept(), "it is being worked on"
    left = time.monotonic()
    until(lambda: not slow.kept())
    whole = time.monotonic()
    slow.send(content)
    assert whole - left < time.monotonic() - whole, "before it could have been done"


def test_the_work_of_a_killed_process_is_taken_up_by_another(slow: Service) -> None:
    place = slow.submit(long_file(windows=64))
    slow.wait(place, "running")
    killed = slow.worker_of(place)
    os.kill(killed, signal.SIGKILL)
    until(lambda: slow.wait(place, "running", "done")["status"] == "done")
    assert len(slow.get(f"{place}/result").json()["features"]) == 64


# Real scenes.


@pytest.mark.realdata
def test_a_real_scene_is_answered_in_both_forms(service: Service, real_data: Path) -> None:
    content = (real_data / "scenes" / "lahinch_l1c" / "2017-09-18.tif").read_bytes()
    query = "?scale=0.0001&offset=0&name=lahinch.tif"
    told = service.send(content, query).json()
    numbers, profile, *_ = class_map(service.send(content, query, Accept=MAP).content)
    classes = {feature["properties"]["class"] for feature in told["features"]} - {None}
    assert classes == {CLASSES[index] for index in np.unique(numbers) if index != NO_CLASS}
    with open_geotiff(content) as dataset:
        assert (profile["height"], profile["width"], profile["crs"]) == (
            dataset.height,
            dataset.width,
            dataset.crs,
        )
