"""Fuzzing, in short: whatever is uploaded, the answer is a refusal or an answer, never a failure.

The long run is `python benchmarks/fuzz.py`; here are some hundred of its requests, and files that Hypothesis
makes, which shrink to the smallest one that fails. Both are the same in every run.
"""

import asyncio
import json
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest
from hostile import arrays, tiffs
from hostile.requests import Hostile, Sent
from hostile.service import Heard, Workers, ask
from hostile.sound import sound_files
from hostile.watch import Canary
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from servers import Server
from starlette.exceptions import HTTPException

from tilewise.bento.api.bodies import parse_npy
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.uploads import Upload, classify_uploads
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.radiometry import Level, ReadOptions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the canary is watched by Linux's inotify")

FILES = sound_files()
SOUND = [tiffs.parse(file) for file in FILES]
REQUESTS = 800
AT_ONCE = 16
SAME_EVERY_TIME = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    max_examples=500,
)

known_tags = sorted({entry.tag for sound in SOUND for entry in sound.entries} | set(tiffs.NUMBERS))
numbers = st.sampled_from(tiffs.ODD) | st.integers(0, 2**32 - 1)
entries = st.builds(
    tiffs.Entry,
    tag=st.sampled_from(known_tags) | st.integers(0, 65535),
    kind=st.integers(0, 20),
    count=st.integers(0, 70) | numbers,
    data=st.binary(max_size=80),
    place=st.none() | numbers,
)
texts = st.builds(
    tiffs.text, st.sampled_from([tiffs.GDAL_METADATA, tiffs.GDAL_NO_DATA, tiffs.GEO_ASCII]), st.binary()
)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Sound files with some entries of their directories replaced, and perhaps cut off."""
    sound = draw(st.sampled_from(SOUND))
    changed = tiffs.put(list(sound.entries), *draw(st.lists(entries | texts, min_size=1, max_size=4)))
    content = tiffs.build(
        sound, changed, draw(st.none() | st.just(0) | numbers.filter(lambda place: place < 2**32))
    )
    return content[: draw(st.none() | st.integers(0, len(content)))]


def test_the_files_that_are_mutated_are_sound(engine: Engine) -> None:
    overrides = ReadOptions(level=Level.L2A, scale=0.0001, offset=0)
    assert all(
        "class" in result
        for result in classify_uploads(engine, [Upload("a", file, overrides) for file in FILES])
    )


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # GDAL's messages hold bytes of files
@SAME_EVERY_TIME
@given(
    content=files(),
    overrides=st.sampled_from([ReadOptions(), ReadOptions(level=Level.L2A, scale=0.0001, offset=0)]),
)
def test_any_file_is_answered_or_refused(engine: Engine, content: bytes, overrides: ReadOptions) -> None:
    (result,) = classify_uploads(engine, [Upload("a.tif", content, overrides)])
    json.dumps(result, allow_nan=False).encode()
    assert result.get("error", {}).get("code") != "internal"
    assert "error" in result or abs(sum(result["probabilities"].values()) - 1) < 1e-3


headers = st.builds(
    lambda descr, fortran, shape: (
        f"{{'descr': {descr!r}, 'fortran_order': {fortran!r}, 'shape': {shape!r}, }}\n"
    ),
    st.sampled_from(arrays.DTYPES)
    | st.text(max_size=5)
    | st.lists(st.tuples(st.text(max_size=2), st.just("<u2"))),
    st.booleans() | st.none(),
    st.lists(st.integers(-2, 70) | st.integers(), max_size=5).map(tuple) | st.text(max_size=3),
)


@SAME_EVERY_TIME
@given(
    header=headers.map(str.encode) | st.binary(max_size=60) | st.sampled_from(arrays.SHAPES).map(str.encode),
    body=st.binary(max_size=20) | st.just(b"\1\0" * 13 * 4096),
    version=st.tuples(st.integers(0, 4), st.integers(0, 1)),
    length=st.none() | numbers,
)
def test_any_array_is_read_or_refused(
    header: bytes, body: bytes, version: tuple[int, int], length: int | None
) -> None:
    with suppress(HTTPException, TilewiseError):  # any other error is a failure
        assert len(parse_npy(arrays.array_file(header, body, version, length), ReadOptions(), 256)) <= 1


def test_hostile_requests_of_all_kinds_are_answered_or_refused(unguarded: Server, tmp_path: Path) -> None:
    canary = Canary(tmp_path)
    hostile = Hostile(SOUND, FILES, canary.names, seed=20)
    requests = [hostile.request(index) for index in range(REQUESTS)]
    answers = asyncio.run(send(int(unguarded.url.rpartition(":")[2]), requests))
    faults = [(index, heard.fault) for index, heard in enumerate(answers) if heard.fault]
    assert not faults
    silent = [
        index for index, heard in enumerate(answers) if not heard.status and requests[index].kind != "wire"
    ]
    # A machine that stalls for two seconds has sent nothing, on any connection, in the time of a head.
    assert len(silent) <= 2 * AT_ONCE
    again = asyncio.run(send(int(unguarded.url.rpartition(":")[2]), [requests[index] for index in silent]))
    assert all(heard.status and not heard.fault for heard in again), silent
    assert Counter(heard.status // 100 for heard in answers)[2] > REQUESTS // 20  # some are still sound
    assert len({request.kind for request in requests}) >= 9
    assert canary.look() == (0, 0)
    assert "Traceback" not in unguarded.log.read_text()


async def send(port: int, requests: list[Sent]) -> list[Heard]:
    """Send each over a connection of its own, some at a time."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(request: Sent) -> Heard:
        async with places:
            heard, streams = await ask(port, request.content)
            if streams is not None:
                streams[1].close()
            return heard

    return await asyncio.gather(*(one(request) for request in requests))


def test_the_processes_are_those_that_were_started(unguarded: Server, client: httpx.Client) -> None:
    port = int(unguarded.url.rpartition(":")[2])
    (parent,) = {
        process.pid: process for process in psutil.Process().children() if str(port) in process.cmdline()
    }.values()
    workers = Workers(parent)
    assert len(workers.at_start) == 2
    before = workers.megabytes
    hostile = Hostile(SOUND, FILES, ["/nowhere"], seed=21)
    asyncio.run(send(port, [hostile.request(index) for index in range(200)]))
    assert workers.ids() == workers.at_start
    assert workers.megabytes < 2 * before + 200
    assert client.get("/readyz").status_code == 200


@pytest.mark.slow
def test_requests_made_from_the_description_are_answered_or_refused(unguarded: Server) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_url(f"{unguarded.url}/openapi.json")
    asked = set()
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(SAME_EVERY_TIME, max_examples=4, phases=[Phase.generate])
        @given(case=operation.as_strategy())
        def answered(case: object) -> None:
            response = case.call(base_url=unguarded.url)  # type: ignore[attr-defined]
            assert response.status_code < 500, response.text

        answered()
        asked.add(f"{operation.method.upper()} {operation.path}")
    assert {"POST /classify", "POST /scene", "POST /explain", "POST /preview", "GET /model"} <= asked
