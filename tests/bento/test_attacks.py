"""Cheap ways to stop the service, each beside an honest caller from another address (Linux has 127.0.0.0/8).

`python benchmarks/fuzz.py --attacks` runs them at full size and measures.
"""

import asyncio
import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hostile.attacks import ATTACKER, honest_scene, honest_tile, padded_tile, sound_scene
from hostile.expanding import expanding_tiff
from hostile.requests import multipart, part, post
from hostile.service import Heard, Workers, ask, serving
from hostile.sound import sound_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it has addresses to attack from")

ROOM = 4 * 2**20
SCENES = 16 * 2**20
FORM = b"multipart/form-data; boundary=x"
SETTINGS = {
    "TILEWISE_WORKERS": "1",
    "TILEWISE_THREADS": "1",
    "TILEWISE_ROOM": str(ROOM),
    "TILEWISE_MAX_BYTES": str(ROOM),
    "TILEWISE_MAX_SCENE_BYTES": str(SCENES),
    "TILEWISE_TASKS_BYTES": str(SCENES),
    "TILEWISE_MAX_WAIT_SECONDS": "2",
    "TILEWISE_MAX_TASKS": "4",
    "TILEWISE_MAX_SYNC_WINDOWS": "16",
}


@pytest.fixture(scope="module")
def port(linear_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a service of one process with little room listens."""
    with serving(linear_model, tmp_path_factory.mktemp("attacked"), settings=SETTINGS) as (port, _):
        yield port


def heard(port: int, request: bytes, address: str = "127.0.0.1") -> Heard:
    async def once() -> Heard:
        answer, streams = await ask(port, request, address=address, patience=60)
        if streams:
            streams[1].close()
        return answer

    return asyncio.run(once())


@contextmanager
def announced(port: int, path: bytes, length: int, connections: int) -> Iterator[None]:
    """Keep connections from the attacker's address that announce bodies and send four bytes of them."""
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: image/tiff\r\nContent-Length: %d\r\n\r\nII*\0"
    with ExitStack() as opened:
        for _ in range(connections):
            connection = socket.create_connection(("127.0.0.1", port), 10, source_address=(ATTACKER, 0))
            opened.enter_context(connection).sendall(head % (path, length))
        yield


def test_bodies_that_are_announced_and_never_come_keep_no_tile_out(port: int) -> None:
    with announced(port, b"/classify", ROOM, 24):
        assert [heard(port, honest_tile()).status for _ in range(5)] == [200] * 5


def test_scenes_that_are_announced_and_never_come_keep_no_scene_out(port: int) -> None:
    with announced(port, b"/scene", SCENES, 10):
        assert [heard(port, honest_scene()).status for _ in range(3)] == [200] * 3


def test_one_address_cannot_take_all_places_of_waiting_tasks(port: int) -> None:
    scene = sound_scene()
    task = post(b"/scene", b"image/tiff", scene, b"Prefer: respond-async\r\n")
    statuses = [heard(port, task, ATTACKER).status for _ in range(12)]
    assert 429 in statuses or statuses == [202] * 12  # they may be done as fast as they come
    assert heard(port, task).status == 202


@pytest.mark.slow
def test_an_address_whose_requests_are_refused_is_slowed_down_and_no_other_is(
    linear_model: Path, tmp_path: Path
) -> None:
    settings = SETTINGS | {"TILEWISE_REFUSED_RATE": "2"}
    bad = post(b"/classify", b"image/tiff", b"not a tile")

    async def attack(port: int) -> tuple[int, int]:
        refused = 0

        async def send() -> None:
            nonlocal refused
            while True:
                answer, _ = await ask(port, bad, address=ATTACKER)
                refused += answer.status == 415

        attacks = [asyncio.create_task(send()) for _ in range(8)]
        answered = 0
        for _ in range(20):
            answer, _ = await ask(port, honest_tile())
            answered += answer.status == 200
            await asyncio.sleep(0.1)
        for one in attacks:
            one.cancel()
        await asyncio.gather(*attacks, return_exceptions=True)
        return answered, refused

    with serving(linear_model, tmp_path, settings=settings) as (port, _):
        answered, refused = asyncio.run(attack(port))
    assert answered == 20
    assert 4 <= refused < 40, "unlimited, it is some hundreds"


def test_a_picture_of_gigabytes_is_refused_by_the_header(port: int) -> None:
    file = expanding_tiff(4096, 512, 64, "float64")
    bands = b"B04,B03,B02" + 61 * b",_"
    answer = heard(port, post(b"/preview?bands=" + bands, b"image/tiff", file))
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (413, "too_large")
    assert "8,192 MiB when decoded" in json.loads(answer.body)["error"]["message"]


def test_padding_beyond_what_a_request_may_decode_is_refused_tile_by_tile(port: int) -> None:
    body = multipart([part(b"tiles", padded_tile())] * 24)
    answer = heard(port, post(b"/classify", FORM, body), ATTACKER)
    results = json.loads(answer.body)["results"]
    assert (answer.status, len(results)) == (200, 24)
    refused = [result["error"] for result in results if "error" in result]
    assert 1 <= len(refused) < 24
    assert {error["code"] for error in refused} == {"too_large"}
    assert "the tiles of this request take more than 512 MiB" in refused[0]["message"]


def spent_until_quiet(workers: Workers) -> float:
    """Seconds of processor that a service has taken when, for a second, it takes next to none."""
    spent = workers.processor_seconds
    for _ in range(60):
        time.sleep(1)
        before, spent = spent, workers.processor_seconds
        if spent - before < 0.05:
            break
    return spent


@pytest.mark.slow
def test_a_picture_that_takes_too_long_is_stopped_and_not_only_answered(
    linear_model: Path, tmp_path: Path
) -> None:
    settings = SETTINGS | {"TILEWISE_REQUEST_SECONDS": "1", "TILEWISE_MAX_PIXELS": str(8192**2)}
    file = expanding_tiff(8192, 16, 3, "uint8")  # to decode its 262,144 blocks takes far more than a second
    request = post(b"/preview?bands=rgb", b"image/tiff", file)
    with serving(linear_model, tmp_path, settings=settings) as (port, process):
        workers = Workers(process)
        before = spent_until_quiet(workers)
        assert heard(port, request).status == 504
        assert spent_until_quiet(workers) - before < 3, "it worked on, before or after it answered"
        assert heard(port, honest_tile()).status == 200


@pytest.mark.slow
def test_scenes_that_the_disk_does_not_take_are_answered_with_503_and_tiles_need_no_disk(
    linear_model: Path, tmp_path: Path
) -> None:
    limit = 2 * 2**20
    large = bytes(limit + 2**20)
    with serving(linear_model, tmp_path, settings=SETTINGS, max_file_bytes=limit) as (port, _):
        requests = [
            post(b"/scene", b"image/tiff", large),
            post(b"/scene", FORM, multipart([part(b"scene", large)])),
        ]
        for request in requests:
            answer = heard(port, request, ATTACKER)
            assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "storage_full")
            assert b"retry-after: 30" in answer.head
        assert heard(port, honest_scene()).status == 200
        files = [part(b"tiles", large), *(part(b"tiles", file) for file in sound_files()[:1])]
        found = json.loads(heard(port, post(b"/classify", FORM, multipart(files))).body)["results"]
        assert found[0]["error"]["code"] == "unreadable_image"
        assert found[1]["class"]
    assert "Traceback" not in (tmp_path / "log").read_text()
