"""The threats of docs/security.md, one by one, against a real service and real files."""

import json
import pickle
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from geotiffs import geotiff, tile_file
from hardened import FILED_KEY, KEY, say
from hostile import arrays, tiffs
from hostile.requests import multipart, other_formats, part
from hostile.watch import Canary
from servers import ROOT, Server

from tilewise.datasets.acquire.synthetic import TAGS, synthesise_tile
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.readers.geotiff import MAX_PADDING_BYTES, open_geotiff, read_tile

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the canary is watched by Linux's inotify")

FOREST = synthesise_tile("Forest", 1, 2)
TILE = tile_file(FOREST, compress="deflate")
SOUND = tiffs.parse(TILE)
ROUTES = ("/classify", "/preview", "/scene", "/explain")
TIFF = {"content-type": "image/tiff"}
FORM = {"content-type": "multipart/form-data; boundary=x"}


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    """A file and a port that must not be touched."""
    canary = Canary(tmp_path)
    yield canary
    assert canary.look() == (0, 0)


def with_entries(*entries: tiffs.Entry) -> bytes:
    """A sound tile with other entries in its directory."""
    return tiffs.build(SOUND, tiffs.put(list(SOUND.entries), *entries))


def refused(response: httpx.Response, *statuses: int) -> dict[str, str]:
    assert response.status_code in statuses, response.text
    error: dict[str, str] = response.json()["error"]
    return error


def still_serves(client: httpx.Client) -> None:
    response = client.post("/classify", content=TILE, headers=TIFF)
    assert response.json()["results"][0]["class"] == "Forest"


# Files outside the upload, and the network.


def test_the_canary_tells_when_it_is_touched(tmp_path: Path) -> None:
    canary = Canary(tmp_path)
    canary.path.read_bytes()
    with pytest.raises(httpx.TransportError):
        httpx.get(canary.names[2], timeout=0.5, trust_env=False)
    opened, called = canary.look()
    assert opened
    assert called == 1


@pytest.mark.parametrize("route", ROUTES)
def test_no_upload_makes_the_service_open_a_file_or_a_connection(
    client: httpx.Client, canary: Canary, route: str
) -> None:
    for name in (canary.names[0], canary.names[-1]):
        files = [with_entries(tiffs.text(tiffs.GDAL_METADATA, text)) for text in tiffs.references(name)]
        files += [
            with_entries(*tiffs.geo_keys(SOUND, text, key))
            for text in tiffs.esri(name)
            for key in (1026, 3073)
        ]
        for content in [*files, *other_formats(name)]:
            assert client.post(route, content=content, headers=TIFF).status_code < 500


def test_metadata_that_name_another_file_as_overviews_are_refused(
    client: httpx.Client, canary: Canary
) -> None:
    metadata = tiffs.text(
        tiffs.GDAL_METADATA, tiffs.gdal_metadata([("OVERVIEW_FILE", "OVERVIEWS", canary.names[0])])
    )
    error = refused(
        client.post("/preview?bands=l1c&level=L1C&offset=0", content=with_entries(metadata), headers=TIFF),
        415,
    )
    assert "OVERVIEW_FILE" in error["hint"]


def test_a_local_file_is_read_without_its_side_cars(tmp_path: Path, canary: Canary) -> None:
    path = tmp_path / "tile.tif"
    path.write_bytes(geotiff(FOREST.pixels, crs=None, compress="deflate"))
    names = "".join(
        f'<PAMRasterBand band="{n}"><Description>{band}</Description></PAMRasterBand>'
        for n, band in enumerate(BAND_NAMES, 1)
    )
    overviews = f'<Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{canary.path}</MDI></Metadata>'
    (tmp_path / "tile.tif.aux.xml").write_text(f"<PAMDataset>{overviews}{names}</PAMDataset>")
    for suffix in (".ovr", ".msk"):
        (tmp_path / f"tile.tif{suffix}").write_bytes(TILE)
    with open_geotiff(path) as dataset:
        assert dataset.overviews(1) == []
        assert not any(dataset.descriptions)
        assert dataset.files == [str(path)]


def test_a_url_where_a_file_belongs_is_refused_and_not_followed(client: httpx.Client, canary: Canary) -> None:
    for name in canary.names:
        body = multipart([part(b"tiles", name.encode(), None)])
        refused(client.post("/classify", content=body, headers=FORM), 400)
        refused(client.post("/classify", json={"tiles": name}), 400)
        refused(client.post("/classify", json={"tiles": [{"url": name}]}), 422)
        content = client.post("/classify", json={"tiles": [{"content": name}]})
        assert content.status_code in (200, 422), "not base64, or bytes that are no tile"
        assert client.post("/classify", content=name.encode(), headers=TIFF).status_code == 415


def test_the_service_calls_nobody(tmp_path: Path) -> None:
    code = "import os, tilewise.bento.inference.engine; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "1", done.stderr


# Code in uploads.


class Bomb:
    """Tells by a file that it was unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_nothing_is_unpickled(client: httpx.Client, tmp_path: Path) -> None:
    mark = tmp_path / "unpickled"
    pickled = pickle.dumps(Bomb(mark))
    pickle.loads(pickled)  # noqa: S301 - our own, to see that it works
    assert mark.exists()
    mark.unlink()
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
    for body in (arrays.array_file(header, pickled), pickled):
        refused(
            client.post("/classify", content=body, headers={"content-type": "application/octet-stream"}), 400
        )
    for kind in ("application/vnd.bentoml+pickle", "application/python-pickle"):
        refused(client.post("/classify", content=pickled, headers={"content-type": kind}), 415)
    assert not mark.exists()


@pytest.mark.parametrize(
    "header",
    ["(" * 300, "-" * 3000 + "1", "{'descr': " * 400, "'''", "{'descr': '<u2', 'shape': (9**9**9,)}"],
)
def test_an_array_header_that_python_cannot_parse_is_refused(client: httpx.Client, header: str) -> None:
    for version in ((1, 0), (2, 0), (3, 0), (9, 9)):
        body = arrays.array_file(header.encode(), b"", version)
        error = refused(
            client.post("/classify", content=body, headers={"content-type": "application/x-npy"}), 400
        )
        assert error["message"] == "a broken .npy file"


# More than its size.


def test_a_small_file_that_decodes_to_gigabytes_is_refused_by_its_header(client: httpx.Client) -> None:
    big = tiffs.number(SOUND, tiffs.TILE_WIDTH, 16384), tiffs.number(SOUND, tiffs.TILE_LENGTH, 16384)
    entries = [
        entry
        for entry in SOUND.entries
        if entry.tag not in (tiffs.STRIP_OFFSETS, tiffs.STRIP_COUNTS, tiffs.ROWS)
    ]
    places = (
        tiffs.number(SOUND, tiffs.TILE_OFFSETS, *[8] * 13),
        tiffs.number(SOUND, tiffs.TILE_COUNTS, *[900] * 13),
    )
    error = refused(
        client.post("/classify", content=tiffs.build(SOUND, tiffs.put(entries, *big, *places)), headers=TIFF),
        422,
    )
    assert error["code"] == "tile_shape"


def test_a_tile_in_blocks_that_are_all_padding_is_refused_before_they_are_decoded() -> None:
    pixels = np.ones((13, 64, 64), np.uint16)
    blocks = {"tiled": True, "blockxsize": 1024, "blockysize": 1024 * (1 + MAX_PADDING_BYTES // (13 * 2**21))}
    content = geotiff(pixels, names=BAND_NAMES, tags=TAGS, compress="deflate", **blocks)
    assert len(content) < 1_000_000
    with pytest.raises(TilewiseError, match="when decoded"):
        read_tile(content, ReadOptions())
    ordinary = geotiff(
        pixels, names=BAND_NAMES, tags=TAGS, compress="deflate", tiled=True, blockxsize=512, blockysize=512
    )
    assert read_tile(ordinary, ReadOptions()).valid_fraction == 1


def test_a_scene_larger_than_allowed_is_refused_by_its_header(client: httpx.Client) -> None:
    wide = tiffs.number(SOUND, tiffs.WIDTH, 2**31 - 1), tiffs.number(SOUND, tiffs.LENGTH, 2**31 - 1)
    for route in ("/scene", "/preview"):
        response = client.post(
            f"{route}?bands=l1c&level=L1C&offset=0", content=with_entries(*wide), headers=TIFF
        )
        refused(response, 413, 415, 422)
    still_serves(client)


def test_xml_that_grows_or_nests_without_end_costs_nothing(client: httpx.Client) -> None:
    laughs = "".join(f'<!ENTITY l{i} "{10 * f"&l{i - 1};"}">' for i in range(1, 10))
    bombs = [
        f'<!DOCTYPE l [<!ENTITY l0 "ha">{laughs}]><GDALMetadata><Item name="x">&l9;</Item></GDALMetadata>',
        "<GDALMetadata>" + "<a>" * 50_000,
        tiffs.gdal_metadata([(f"N{n}", "", "v") for n in range(400_000)]),  # would take GDAL minutes
    ]
    for bomb in bombs:
        began = time.monotonic()
        content = with_entries(tiffs.text(tiffs.GDAL_METADATA, bomb))
        assert client.post("/classify", content=content, headers=TIFF).status_code < 500
        assert time.monotonic() - began < 20
    still_serves(client)


def test_directories_that_lead_in_circles_come_to_an_end(client: httpx.Client) -> None:
    entries = [*SOUND.entries, tiffs.number(SOUND, tiffs.SUB_IFDS, *[len(SOUND.content)] * 50)]
    for following in (None, 8, 2**32 - 1):
        content = tiffs.build(SOUND, entries, following)
        for route in ROUTES:
            assert client.post(route, content=content, headers=TIFF).status_code < 500
    still_serves(client)


def test_a_form_of_ten_thousand_parts_or_of_endless_headers_is_refused(client: httpx.Client) -> None:
    forms = [
        multipart([part(b"tiles", b"x")] * 10_000),
        multipart([part(b"level", b"L1C", None)] * 10_000),
        multipart([part(b"tiles", b"x", headers=b"X: y\r\n" * 10_000)]),
        multipart([part(b"tiles", b"x", headers=b"X: " + b"y" * 1_000_000 + b"\r\n")]),
        multipart([part(b"level", b"L" * 1_000_000, None)]),
    ]
    for form in forms:
        refused(client.post("/classify", content=form, headers=FORM), 400, 413)
    still_serves(client)


@pytest.mark.parametrize(
    "charset", ["punycode", "idna", "undefined", "base64", "utf-7", "\\x00", "unicode_escape"]
)
def test_a_form_in_another_charset_is_refused_before_it_is_decoded(
    client: httpx.Client, charset: str
) -> None:
    body = multipart([part(b"level", b"a-" * 4000, None), part(b"tiles", TILE, b"\\ud800.tif")])
    kind = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
    for route in ("/classify", "/preview"):
        assert "charset" in refused(client.post(route, content=body, headers=kind), 400)["message"]


def test_a_client_that_leaves_in_the_middle_is_no_failure_of_ours(
    client: httpx.Client, unguarded: Server
) -> None:
    host, _, port = unguarded.url.removeprefix("http://").partition(":")
    for route in ROUTES:
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Type: image/tiff\r\n"
            connection.sendall(f"{head}Content-Length: 9999\r\n\r\n".encode() + b"II*")
    still_serves(client)
    time.sleep(0.2)
    log = unguarded.log.read_text()
    assert "Traceback" not in log
    assert '"status": 500' not in log


# What answers and logs tell.


def test_errors_tell_nothing_of_the_server(client: httpx.Client) -> None:
    broken = (b"", b"II*\0", TILE[:500], with_entries(tiffs.number(SOUND, tiffs.COMPRESSION, 7)))
    answers = [
        client.post(route, content=content, headers=TIFF).text for route in ROUTES for content in broken
    ]
    answers += [
        client.get(path).text
        for path in ("/nothing", "/../../etc/passwd", "/%2e%2e/x", "/tasks/x", "/docs.json")
    ]
    answers += [
        client.post("/classify", content=b"x", headers=kind).text
        for kind in (FORM, {"content-type": "application/x-npy"})
    ]
    for text in answers:
        assert set(json.loads(text)) == {"error"}
        leaks = r"/tmp/|/usr/|site-packages|\.py\b|Traceback|vsimem|line \d|0x[0-9a-f]{6}"  # noqa: S108
        assert not re.search(leaks, text), text
        assert str(ROOT) not in text


def test_names_of_files_are_given_back_as_text_and_write_nothing(client: httpx.Client) -> None:
    for name in (b"../../../tmp/x.tif", b"/etc/passwd", b"<img src=x onerror=alert(1)>.tif", b"a\\..\\b.tif"):
        body = multipart([part(b"tiles", TILE, name)])
        response = client.post("/classify", content=body, headers=FORM)
        assert response.headers["content-type"] == "application/json"
        assert "class" in response.json()["results"][0]


def test_logs_hold_nothing_that_an_uploader_wrote(client: httpx.Client, unguarded: Server) -> None:
    metadata = tiffs.text(
        tiffs.GDAL_METADATA, '<GDALMetadata><Item name="forged\n{"level":"error"}" bad=forged-entry>'
    )
    client.post("/classify", content=with_entries(metadata), headers=TIFF)
    client.post("/classify?name=forged-entry%0aforged-entry", content=b"forged-entry", headers=TIFF)
    client.post("/classify", content=b"--x forged-entry\r\n", headers=FORM)
    client.get("/model", headers={"x-odd": "forged-entry", "user-agent": "forged-entry"})
    log = unguarded.log.read_text()
    assert "forged" not in log


def test_a_task_is_seen_with_the_key_alone_that_made_it(guarded: Server) -> None:
    headers = {**TIFF, "prefer": "respond-async", "x-api-key": KEY}
    scene = geotiff(np.tile(FOREST.pixels, (1, 2, 2)), names=BAND_NAMES, tags=TAGS)
    with httpx.Client(base_url=guarded.url, trust_env=False, timeout=20) as client:
        made = client.post("/scene", content=scene, headers=headers)
        assert made.status_code == 202, made.text
        place = made.headers["location"]
        assert client.get(place, headers={"x-api-key": KEY}).status_code == 200
        for path in (place, f"{place}/result"):
            assert client.get(path, headers={"x-api-key": FILED_KEY}).status_code == 404
            assert client.get(path).status_code == 401
        assert client.delete(place, headers={"x-api-key": FILED_KEY}).status_code == 404
        assert client.delete(place, headers={"x-api-key": KEY}).status_code < 300


# Half-sized numbers and the like in the head.


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"Transfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nabc",
        b"Content-Length: -5\r\n\r\nabc",
    ],
)
def test_a_request_whose_end_is_in_doubt_is_not_served(unguarded: Server, head: bytes) -> None:
    smuggled = b"GET /model HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = say(
        unguarded.url, b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/tiff\r\n" + head + smuggled
    )
    assert answer.status in (0, 400)


def test_every_threat_of_the_document_has_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    rows = [line for line in page.splitlines() if re.match(r"\| T\d+", line)]
    assert len(rows) >= 20
    assert all("`tests/" in row for row in rows)
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"
