"""The Python client against a real service, and against servers that refuse, hang up or are not there."""

import asyncio
import csv
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from gate import Gate, gate_before
from geotiffs import tile_file
from rasterio.io import MemoryFile
from servers import ROOT, Server, free_port, served

from tilewise.bento.client import (
    GEOTIFF,
    JSON,
    AsyncClient,
    Client,
    Result,
    ServiceError,
    TileError,
    raise_for_errors,
)
from tilewise.bento.inference.engine import Engine
from tilewise.datasets.acquire.synthetic import synthesise_scene, synthesise_tile
from tilewise.datasets.core.bands import BAND_NAMES, EUROSAT_MS_ORDER
from tilewise.datasets.readers.eurosat import CLASSES

KEY = "a-key-for-the-tests"
FOREST = synthesise_tile("Forest", 3, 1)
TILES = [synthesise_tile(label, 2, 1) for label in CLASSES]
PLAIN = tile_file(FOREST, EUROSAT_MS_ORDER, named=False)  # as EuroSAT's own files: no names, no tags


@pytest.fixture(scope="module")
def server(linear_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {
        "TILEWISE_WORKERS": "1",
        "TILEWISE_API_KEYS": KEY,
        "TILEWISE_MAX_SYNC_WINDOWS": "4",
        "TILEWISE_MAX_TILES": "70",
    }
    with served(linear_model, tmp_path_factory.mktemp("bentoml"), **settings) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, KEY, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def answers(engine: Engine) -> list[str]:
    """The class of each of TILES, by the model without a service."""
    found = engine.classify(np.stack([tile.pixels for tile in TILES])).probabilities.argmax(1)
    assert len(set(found)) >= 8  # so that an order that was lost shows
    return [CLASSES[index] for index in found]


@pytest.fixture
def gate(server: Server) -> Iterator[Gate]:
    with gate_before(server.url) as gate:
        yield gate


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("tiles")
    paths = [folder / f"{label}.tif" for label in CLASSES]
    for path, tile in zip(paths, TILES, strict=True):
        path.write_bytes(tile_file(tile))
    return paths


# What is asked, and in which form.


def test_files_are_answered_in_order_with_all_that_the_service_says(
    client: Client, server: Server, files: list[Path], answers: list[str]
) -> None:
    results = client.classify(files)
    assert [result.name for result in results] == [str(path) for path in files]
    assert [result.class_name for result in results] == answers
    headers = {"Authorization": f"Bearer {KEY}"}
    parts = {"tiles": files[0].read_bytes()}
    overrides = httpx.post(
        f"{server.url}/classify", files=parts, headers=headers, trust_env=False, timeout=30
    ).json()
    first = results[0]
    assert first.probabilities == pytest.approx(overrides["results"][0]["probabilities"], abs=1e-5)
    assert first.probability == first.probabilities[answers[0]]
    assert first.footprint == overrides["results"][0]["footprint"] == TILES[0].footprint
    assert (first.bands, first.level, first.valid_fraction, first.error) == (BAND_NAMES, "L1C", 1, None)
    assert first.model is not None
    assert first.model.sha256 == overrides["model"]["sha256"]


def test_bytes_arrays_and_files_of_the_same_tile_are_answered_alike(
    client: Client, files: list[Path], answers: list[str]
) -> None:
    pixels = np.stack([tile.pixels for tile in TILES])
    from_files = client.classify(files)
    for tiles in (pixels, list(pixels), [path.read_bytes() for path in files], (str(path) for path in files)):
        results = client.classify(tiles)
        for one, other in zip(results, from_files, strict=True):
            assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    assert [result.name for result in client.classify(pixels)] == [str(n) for n in range(len(TILES))]
    assert client.classify(files[3])[0].class_name == answers[3]
    rgb = client.classify(FOREST.pixels[[3, 2, 1]], bands=["B04", "B03", "B02"], level="L2A")[0]
    assert (rgb.bands, rgb.level) == (("B02", "B03", "B04"), "L2A")


def test_what_files_do_not_say_is_said_for_them(client: Client) -> None:
    (refused,) = client.classify(PLAIN)
    assert refused.error is not None
    assert refused.error.code == "bands_unknown"
    (result,) = client.classify(PLAIN, bands="eurosat", level="L1C", offset=0)
    assert (result.class_name, result.bands) == ("Forest", BAND_NAMES)


def test_a_bad_tile_has_its_error_among_good_ones(
    client: Client, files: list[Path], answers: list[str]
) -> None:
    results = client.classify([files[0], b"no tile", files[1]])
    assert [result.class_name for result in results] == [answers[0], None, answers[1]]
    assert results[1].error == TileError("unreadable_image", "1: not a GeoTIFF")
    assert results[1].probability is None
    with pytest.raises(ServiceError, match="1 of 3 tiles have no answer, the first is 1: ") as failed:
        raise_for_errors(results)
    assert failed.value.code == "tiles"
    assert raise_for_errors(results[:1]) == results[:1]


def test_no_tiles_are_no_request(client: Client) -> None:
    assert client.classify([]) == []


def test_the_model_is_described_and_readiness_told(client: Client) -> None:
    assert tuple(client.model()["classes"]) == CLASSES
    assert client.ready()


def test_refusals_are_told_with_their_code_and_way_out(server: Server, client: Client) -> None:
    with pytest.raises(ServiceError) as refused:
        client.classify(PLAIN, bands="B02,B99")
    assert (refused.value.code, refused.value.status) == ("unknown_band", 422)
    assert "B8A" in refused.value.hint
    assert refused.value.request_id
    for key in (None, "another-key-than-theirs"):
        with Client(server.url, key, trust_env=False) as stranger, pytest.raises(ServiceError) as refused:
            stranger.model()
        assert (refused.value.code, refused.value.status) == ("unauthorized", 401)


# Scenes and explanations.


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A scene that is answered at once, and one that becomes a task."""
    folder = tmp_path_factory.mktemp("scenes")
    for name, columns in (("small", 2), ("large", 4)):
        synthesise_scene(folder / f"{name}.tif", seed=1, rows=2, columns=columns)
    return [folder / "small.tif", folder / "large.tif"]


@pytest.mark.parametrize("place", [0, 1], ids=["at once", "as a task"])
def test_a_scene_comes_back_as_windows_or_as_a_map(client: Client, scenes: list[Path], place: int) -> None:
    windows = client.scene(scenes[place])
    assert len(windows["features"]) == (4, 8)[place]
    assert windows["name"] == scenes[place].name
    with MemoryFile(client.scene(scenes[place], GEOTIFF)) as memory, memory.open() as class_map:
        assert (class_map.height, class_map.width) == (128, (128, 256)[place])


def test_asyncio_sends_scenes_too_and_leaves_the_loop_free(
    client: Client, server: Server, scenes: list[Path]
) -> None:
    async def scenario() -> None:
        async with AsyncClient(server.url, KEY, trust_env=False) as asynchronous:
            small, large = await asyncio.gather(*(asynchronous.scene(scene) for scene in scenes))
            assert (len(small["features"]), len(large["features"])) == (4, 8)
            assert small == client.scene(scenes[0])
            picture = await asynchronous.explain(tile, size=32)
            assert picture.startswith(b"\x89PNG")

    tile = scenes[0].with_name("tile.tif")
    tile.write_bytes(tile_file(FOREST))
    asyncio.run(scenario())


def test_a_scene_that_is_refused_or_takes_too_long_is_told(
    client: Client, scenes: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ServiceError) as refused:
        client.scene(scenes[0], level="L3")
    assert (refused.value.code, refused.value.status) == ("invalid", 422)
    long = tmp_path / "long.tif"  # 128 windows: not done before the client looks, busy as it may be
    synthesise_scene(long, seed=1, rows=8, columns=16)
    with pytest.raises(ServiceError, match="/tasks/") as slow:
        client.scene(long, wait=0)
    assert slow.value.code == "timeout"
    with pytest.raises(FileNotFoundError):
        client.scene("no/such/scene.tif")


def test_a_scene_is_sent_again_whole_after_a_refusal(gate: Gate, scenes: list[Path]) -> None:
    gate.refusals = [(503, {}), None]
    with Client(gate.url, KEY, trust_env=False) as client:
        assert len(client.scene(scenes[0])["features"]) == 4
    assert gate.lengths == [scenes[0].stat().st_size] * 3


def test_an_answer_is_explained_by_a_picture_or_by_numbers(client: Client, files: list[Path]) -> None:
    assert client.explain(files[1], size=32).startswith(b"\x89PNG")
    numbers = client.explain(files[1], JSON, class_name="River", size=32, stride=16)
    assert (numbers["class"], numbers["size"], numbers["stride"]) == ("River", 32, 16)
    assert numbers["bands"].keys() == set(BAND_NAMES)


# Long lists.


def names(count: int) -> list[str]:
    return [str(n) for n in range(count)]


def test_a_long_list_becomes_several_requests_and_keeps_its_order(gate: Gate, answers: list[str]) -> None:
    pixels = np.stack([TILES[n % len(TILES)].pixels for n in range(130)])
    with Client(gate.url, KEY, trust_env=False) as client:
        results = client.classify(pixels)
    assert [result.name for result in results] == names(130)
    assert [result.class_name for result in results] == answers * 13
    assert [length // TILES[0].pixels.nbytes for length in gate.lengths] == [64, 64, 2]


def test_a_list_is_cut_by_bytes_too(gate: Gate, files: list[Path]) -> None:
    limit = 3 * files[0].stat().st_size
    with Client(gate.url, KEY, trust_env=False, bytes_per_request=limit) as client:
        client.classify(files)
    assert len(gate.lengths) > 2
    assert max(gate.lengths) < limit + 2000


def test_a_list_that_the_service_finds_too_long_is_cut_further(
    gate: Gate, answers: list[str], files: list[Path]
) -> None:
    with Client(gate.url, KEY, trust_env=False, tiles_per_request=100) as client:
        assert [result.class_name for result in client.classify(files * 8)] == answers * 8
        assert [
            result.class_name for result in client.classify(np.stack([t.pixels for t in TILES] * 8))
        ] == answers * 8
    assert len(gate.lengths) == 6  # 80 are too many, twice 40 are not


def test_asyncio_keeps_several_requests_on_the_way_but_no_more_than_it_may(
    gate: Gate, answers: list[str]
) -> None:
    gate.meet = threading.Barrier(3)

    async def scenario() -> list[Result]:
        async with AsyncClient(gate.url, KEY, concurrency=3, tiles_per_request=5, trust_env=False) as client:
            return await client.classify(tile.pixels for tile in TILES * 3)

    results = asyncio.run(scenario())
    assert [result.name for result in results] == names(30)
    assert [result.class_name for result in results] == answers * 3
    assert len(gate.lengths) == 6
    assert gate.max_at_once == 3


def test_asyncio_asks_all_that_can_be_asked(server: Server, files: list[Path], answers: list[str]) -> None:
    async def scenario() -> None:
        async with AsyncClient(server.url, KEY, trust_env=False) as client:
            assert await client.ready(wait=1)
            assert tuple((await client.model())["classes"]) == CLASSES
            results = await client.classify([*files, b"no tile"], coverage=None)
            assert [result.class_name for result in results] == [*answers, None]

    asyncio.run(scenario())


def test_who_has_enough_ends_the_stream_and_nothing_more_is_sent(gate: Gate) -> None:
    async def scenario() -> None:
        async with AsyncClient(gate.url, KEY, concurrency=2, tiles_per_request=1, trust_env=False) as client:
            stream = client.stream(tile.pixels for tile in TILES)
            assert (await anext(stream)).name == "0"
            await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(scenario())
    assert len(gate.lengths) <= 3
    with Client(gate.url, KEY, tiles_per_request=1, trust_env=False) as client:
        before = len(gate.lengths)
        assert next(client.stream(tile.pixels for tile in TILES)).name == "0"
    assert len(gate.lengths) == before + 1


# Services that are busy, or away.


def test_a_busy_service_is_asked_again_when_it_said(gate: Gate) -> None:
    gate.refusals = [(503, {"Retry-After": "1"}), (429, {"Retry-After": "1"})]
    with Client(gate.url, KEY, trust_env=False) as client:
        (result,) = client.classify(tile_file(FOREST))
    assert result.class_name == "Forest"
    assert len(gate.arrivals) == 3
    assert min(np.diff(gate.arrivals)) >= 1


def test_a_connection_that_drops_is_made_again(gate: Gate) -> None:
    async def ask() -> list[Result]:
        async with AsyncClient(gate.url, KEY, trust_env=False) as client:
            return await client.classify(tile_file(FOREST))

    gate.refusals = [None]
    with Client(gate.url, KEY, trust_env=False) as client:
        assert client.classify(tile_file(FOREST))[0].class_name == "Forest"
    gate.refusals = [None]
    assert asyncio.run(ask())[0].class_name == "Forest"
    assert len(gate.arrivals) == 4


def test_a_service_that_leaves_the_body_unread_is_asked_again(gate: Gate, answers: list[str]) -> None:
    gate.refusals = [(503, {"Connection": "close"})] * 2
    pixels = np.stack([tile.pixels for tile in TILES * 6])  # more than a connection's buffers hold
    with Client(gate.url, KEY, trust_env=False) as client:
        assert [result.class_name for result in client.classify(pixels)] == answers * 6
    assert gate.lengths[:2] == [0, 0]
    assert len(gate.lengths) == 3


def test_patience_has_an_end(gate: Gate) -> None:
    gate.refusals = [(503, {})] * 2
    with Client(gate.url, KEY, retries=1, trust_env=False) as client, pytest.raises(ServiceError) as refused:
        client.classify(tile_file(FOREST))
    assert (refused.value.code, refused.value.status) == ("overloaded", 503)
    assert len(gate.arrivals) == 2


def test_a_service_that_is_away_is_told_in_one_line() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url, retries=1, trust_env=False) as client:
        assert not client.ready()
        with pytest.raises(ServiceError) as away:
            client.classify(b"x")
    assert (away.value.code, away.value.status) == ("unreachable", None)
    assert str(away.value).startswith(f"{url}/classify cannot be reached: ")
    assert "\n" not in str(away.value)


@pytest.mark.parametrize("url", ["localhost:3000", "ftp://localhost", "http://", "", "http://[::1"])
def test_what_is_no_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ServiceError, match="http://localhost:3000 is one"):
        Client(url)


# Around it.


def test_the_client_needs_neither_the_service_nor_what_it_needs() -> None:
    program = "import sys, tilewise.bento.client; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "httpx" in loaded
    assert not loaded & {
        "bentoml",
        "onnxruntime",
        "rasterio",
        "starlette",
        "pydantic",
        "pyarrow",
        "torch",
        "osgeo",
    }


def command(*words: str, key: str = KEY) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tilewise", "classify", "--server", *words],
        cwd=ROOT,
        env=os.environ | {"TILEWISE_API_KEY": key, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_prints_tables_for_people_and_for_programs(
    server: Server, files: list[Path], answers: list[str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"no tile")
    table = command(server.url, str(files[0]), str(bad))
    assert table.returncode == 1
    head, first, last = table.stdout.splitlines()
    assert head.split()[:3] == ["name", "class", "probability"]
    assert first.split()[:2] == [str(files[0]), answers[0]]
    assert last.split()[0] == str(bad)
    assert "not a GeoTIFF" in last
    rows = list(csv.DictReader(io.StringIO(command(server.url, *map(str, files), "--format", "csv").stdout)))
    assert [row["class"] for row in rows] == answers
    overrides = command(server.url, str(files[1]), "--format", "json")
    assert overrides.returncode == 0
    (result,) = json.loads(overrides.stdout)
    assert result["class_name"] == answers[1]


def test_the_command_says_what_is_wrong_in_one_line(server: Server, files: list[Path]) -> None:
    refused = command(server.url, str(files[0]), key="not-theirs-not-theirs")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: this service needs an API key")
    gone = command(server.url, "no/such/tile.tif")
    assert gone.returncode == 1
    assert len(gone.stderr.splitlines()) == 1
