"""The service as its users see it: a real `bentoml serve` process, over HTTP."""

import base64
import hashlib
import io
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pystac
import pytest
from geotiffs import geotiff, jpeg, tile_file
from PIL import Image
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rasterio.warp import transform_bounds
from servers import ROOT, command, environment, free_port, served
from stac_rules import SCHEMAS

from tilewise.bento.inference.device import cuda_missing
from tilewise.datasets.acquire.synthetic import synthesise_tile
from tilewise.datasets.core.bands import BAND_NAMES, EUROSAT_MS_ORDER, RGB_BANDS
from tilewise.datasets.readers.eurosat import CLASSES

MAX_TILES, MAX_BYTES = 12, 4 * 2**20
FOREST = synthesise_tile("Forest", 3, 1)
TILES = [synthesise_tile(label, 2, 1) for label in CLASSES]
PLAIN = tile_file(FOREST, EUROSAT_MS_ORDER, named=False)  # as EuroSAT's own files: no names, no tags
EUROSAT = {"bands": "eurosat", "level": "L1C", "offset": "0"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server of files on loopback, which has `wood.tif`."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "wood.tif").write_bytes(tile_file(FOREST))
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def service(
    model_file: Path, store: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[httpx.Client]:
    failed = request.session.testsfailed
    settings = {
        "TILEWISE_THREADS": "1",
        "TILEWISE_MAX_TILES": str(MAX_TILES),
        "TILEWISE_MAX_BYTES": str(MAX_BYTES),
        "TILEWISE_URL_HOSTS": f"{store}=127.0.0.0/8",
    }
    with served(model_file, tmp_path_factory.mktemp("bentoml"), **settings) as server:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
            yield client
        if request.session.testsfailed > failed:
            print(f"the log of the service:\n{server.log.read_text()}")


def post(service: httpx.Client, *files: bytes, **fields: str) -> list[dict[str, Any]]:
    """Upload tiles called 0.tif, 1.tif, …; return their results."""
    parts = [("tiles", (f"{n}.tif", content)) for n, content in enumerate(files)]
    response = service.post("/classify", files=parts, data=fields)
    assert response.status_code == 200, response.text
    results: list[dict[str, Any]] = response.json()["results"]
    return results


def refusal(response: httpx.Response, status: int) -> dict[str, str]:
    """The error of a request that was refused as a whole: one line, in the one shape."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error: dict[str, str] = response.json()["error"]
    assert set(error) == {"code", "message", "hint"}
    assert error["message"]
    assert "\n" not in error["message"] + error["hint"]
    return error


# Tiles with complete metadata.


def test_a_tile_is_answered_with_its_class_bands_and_place(service: httpx.Client, model_file: Path) -> None:
    response = service.post("/classify", files={"tiles": ("wood.tif", tile_file(FOREST), "image/tiff")})
    assert response.status_code == 200
    (result,) = response.json()["results"]
    sha256 = hashlib.sha256(model_file.read_bytes()).hexdigest()
    assert response.json()["model"] == {"name": "test", "version": "0", "sha256": sha256}
    assert result["name"] == "wood.tif"
    assert tuple(result["probabilities"]) == CLASSES
    assert sum(result["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert result["class"] == max(result["probabilities"], key=result["probabilities"].__getitem__)
    assert result["valid_fraction"] == 1
    assert result["bands"] == list(BAND_NAMES)
    assert result["level"] == "L1C"


def test_the_footprint_lies_where_the_tile_lies(service: httpx.Client) -> None:
    (result,) = post(service, tile_file(FOREST))
    assert FOREST.georeference is not None
    bounds = transform_bounds(FOREST.georeference.crs, "EPSG:4326", *FOREST.georeference.bounds(64, 64))
    (ring,) = result["footprint"]["coordinates"]
    assert result["footprint"]["type"] == "Polygon"
    assert ring[0] == ring[-1]
    longitudes, latitudes = zip(*ring, strict=True)
    found = (min(longitudes), min(latitudes), max(longitudes), max(latitudes))
    assert found == pytest.approx(bounds, abs=1e-4)


def test_many_tiles_are_answered_in_order_as_if_each_had_come_alone(service: httpx.Client) -> None:
    files = [tile_file(tile) for tile in TILES]
    together = post(service, *files)
    assert [result["name"] for result in together] == [f"{n}.tif" for n in range(len(files))]
    assert [result["footprint"] for result in together] == [tile.footprint for tile in TILES]
    for file, result in zip(files, together, strict=True):
        (alone,) = post(service, file)
        assert result["probabilities"] == pytest.approx(alone["probabilities"], abs=2e-5)


def test_requests_at_the_same_time_are_each_answered_with_their_own_tile(service: httpx.Client) -> None:
    files = [tile_file(tile) for tile in TILES]
    alone = [post(service, file) for file in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda file: post(service, file), files * 4))
    assert together == alone * 4


def test_a_name_is_given_back_as_it_came(service: httpx.Client) -> None:
    name = "../Wald & Wiese ä (1).tif"
    response = service.post("/classify", files={"tiles": (name, tile_file(FOREST))})
    assert response.json()["results"][0]["name"] == name


def test_bands_are_taken_by_name_wherever_they_stand(service: httpx.Client) -> None:
    canonical, last = tile_file(FOREST, BAND_NAMES), tile_file(FOREST, EUROSAT_MS_ORDER)
    one, other = post(service, canonical, last)
    assert canonical != last
    assert one["bands"] == other["bands"] == list(BAND_NAMES)
    assert one["probabilities"] == other["probabilities"]
    # The network would notice: the same numbers under each other's names have another answer.
    mixed = geotiff(tile_pixels(EUROSAT_MS_ORDER), names=BAND_NAMES, tags={"PROCESSING_BASELINE": "02.05"})
    (wrong,) = post(service, mixed)
    assert wrong["probabilities"] != one["probabilities"]


def tile_pixels(bands: tuple[str, ...]) -> np.ndarray[Any, np.dtype[np.uint16]]:
    return FOREST.pixels[[BAND_NAMES.index(band) for band in bands]]


# Tiles with incomplete metadata, described by form fields.


def test_a_tile_without_names_is_answered_once_the_request_says_what_it_holds(service: httpx.Client) -> None:
    (named,) = post(service, tile_file(FOREST, EUROSAT_MS_ORDER))
    (described,) = post(service, PLAIN, **EUROSAT)
    assert described == named


def test_an_offset_that_was_said_is_taken_off(service: httpx.Client) -> None:
    lifted = geotiff(tile_pixels(EUROSAT_MS_ORDER) + np.uint16(1000), crs=None)
    (plain,) = post(service, PLAIN, **EUROSAT)
    (since_2022,) = post(service, lifted, **(EUROSAT | {"offset": "-1000"}))
    assert since_2022["probabilities"] == plain["probabilities"]


def test_a_tile_that_nobody_describes_is_refused_with_the_way_to_describe_it(service: httpx.Client) -> None:
    (result,) = post(service, PLAIN)
    assert set(result) == {"name", "error"}
    assert result["error"]["code"] == "bands_unknown"
    assert "eurosat" in result["error"]["hint"]
    (result,) = post(service, PLAIN, bands="l1c")
    assert result["error"]["code"] == "radiometry_unknown"
    assert "offset" in result["error"]["hint"]


# Bad tiles among good ones.


def test_each_bad_tile_gets_its_own_error_and_harms_no_neighbour(service: httpx.Client) -> None:
    good = tile_file(FOREST)
    unnamed = geotiff(tile_pixels(RGB_BANDS))
    small = geotiff(FOREST.pixels[:, :, :63], names=BAND_NAMES, tags={"RADIO_ADD_OFFSET": "0"})
    broken = jpeg()
    results = post(service, good, broken, good, good[: len(good) // 2], unnamed, small, b"", good)
    (alone,) = post(service, good)
    for index in (0, 2, 7):
        assert results[index] == alone | {"name": f"{index}.tif"}
    errors = {index: results[index]["error"] for index in (1, 3, 4, 5, 6)}
    assert {index: error["code"] for index, error in errors.items()} == {
        1: "unreadable_image",
        3: "unreadable_image",
        4: "bands_unknown",
        5: "tile_shape",
        6: "unreadable_image",
    }
    assert "not a readable JPEG" in errors[1]["message"]
    assert "truncated" in errors[3]["message"]
    assert "3 bands have no names" in errors[4]["message"]
    assert "63 × 64" in errors[5]["message"]
    assert all(results[index]["name"] == f"{index}.tif" for index in errors)
    assert all("\n" not in error["message"] for error in errors.values())


def test_the_service_goes_on_after_bad_tiles(service: httpx.Client) -> None:
    post(service, *[b"II*\0" + bytes([n]) * 500 for n in range(MAX_TILES)])
    (result,) = post(service, tile_file(FOREST))
    assert "class" in result


# Requests that are refused as a whole.


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"bands": "B02,B99"}, "'B99'"),
        ({"bands": "B02,B02"}, "twice"),
        ({"level": "L3"}, "'L3'"),
        ({"scale": "ten"}, "'ten'"),
        ({"offset": "nan"}, "'nan'"),
        ({"ofset": "-1000"}, "'ofset'"),
    ],
)
def test_a_wrong_field_refuses_the_request_and_is_named(
    service: httpx.Client, fields: dict[str, str], named: str
) -> None:
    response = service.post("/classify", files={"tiles": tile_file(FOREST)}, data=fields)
    assert named in refusal(response, 422)["message"]


def test_an_unknown_band_is_answered_with_the_list_of_those_that_exist(service: httpx.Client) -> None:
    response = service.post("/classify", files={"tiles": tile_file(FOREST)}, data={"bands": "B99"})
    error = refusal(response, 422)
    assert error["code"] == "unknown_band"
    assert all(band in error["hint"] for band in BAND_NAMES)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"data": {"level": "L1C"}},
        {"files": {"tile": b"under another name"}, "data": {"level": "L1C"}},
        {"content": tile_file(FOREST), "headers": {"content-type": "image/webp"}},
    ],
    ids=["nothing", "only fields", "another field", "another type"],
)
def test_a_request_without_a_file_is_told_how_to_send_one(
    service: httpx.Client, body: dict[str, Any]
) -> None:
    response = service.post("/classify", **body)
    if "files" in body:
        assert "'tile'" in refusal(response, 422)["message"]
    else:
        assert "curl -F tiles=@" in refusal(response, 415)["hint"]


@pytest.mark.parametrize("text", ["http://127.0.0.1/tile.tif", "/etc/hostname", ""])
def test_a_string_in_the_place_of_a_file_is_refused_and_not_followed(
    service: httpx.Client, text: str
) -> None:
    assert refusal(service.post("/classify", data={"tiles": text}), 415)
    only = service.post("/classify", files=[("tiles", (None, text.encode()))])
    assert refusal(only, 400)
    as_part = [("tiles", (None, text.encode())), ("tiles", ("a.tif", tile_file(FOREST)))]
    assert refusal(service.post("/classify", files=as_part), 400)


def test_a_multipart_body_that_is_none_is_refused(service: httpx.Client) -> None:
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        response = service.post("/classify", content=b"nonsense", headers={"content-type": kind})
        refusal(response, 400)


def test_more_tiles_than_allowed_are_refused(service: httpx.Client) -> None:
    parts = [("tiles", (f"{n}.tif", b"x")) for n in range(MAX_TILES + 1)]
    error = refusal(service.post("/classify", files=parts), 413)
    assert error["code"] == "too_large"
    assert f"more than {MAX_TILES} files" in error["message"]


def test_a_body_that_is_too_long_is_refused_by_its_header(service: httpx.Client) -> None:
    response = service.post("/classify", files={"tiles": bytes(MAX_BYTES + 1)})
    error = refusal(response, 413)
    assert error["code"] == "too_large"
    assert f"{MAX_BYTES:,}" in error["hint"]


def test_a_body_that_hides_its_length_is_refused_once_it_is_too_long(service: httpx.Client) -> None:
    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="tiles"; filename="a.tif"\r\n\r\n'
        for _ in range(MAX_BYTES // 2**16 + 1):
            yield bytes(2**16)
        yield b"\r\n--x--\r\n"

    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert refusal(service.post("/classify", content=body(), headers=kind), 413)["code"] == "too_large"


def test_other_methods_and_paths_are_refused(service: httpx.Client) -> None:
    assert refusal(service.get("/classify"), 405)["code"] == "method"
    assert service.get("/no/such/thing").status_code == 404


# The model, health and metrics.


def test_the_model_describes_itself(service: httpx.Client, model_file: Path) -> None:
    response = service.get("/model")
    assert response.status_code == 200
    card = response.json()
    assert tuple(card["classes"]) == CLASSES
    assert tuple(card["bands"]) == BAND_NAMES
    assert (card["name"], card["tile_size"], card["quantification"]) == ("test", 64, 10_000)
    assert card["synthetic"] is True
    assert card["sha256"] == hashlib.sha256(model_file.read_bytes()).hexdigest()
    assert "histograms" not in card


def test_the_model_describes_itself_as_a_stac_item(service: httpx.Client, model_file: Path) -> None:
    response = service.get("/model.stac.json")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/geo+json")
    item = response.json()
    validator = JsonSchemaSTACValidator()
    validator.schema_cache |= SCHEMAS
    pystac.Item.from_dict(item).validate(validator)
    assert item["links"] == [
        {"rel": "self", "href": f"{service.base_url}/model.stac.json", "type": "application/geo+json"}
    ]
    name = item["assets"]["model"]["href"].removeprefix("ni:///sha-256;")
    assert base64.urlsafe_b64decode(f"{name}=") == hashlib.sha256(model_file.read_bytes()).digest()
    (output,) = item["properties"]["mlm:output"]
    assert [known["description"] for known in output["classification:classes"]] == list(CLASSES)


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_health_is_told(service: httpx.Client, path: str) -> None:
    assert service.get(path).status_code == 200


def test_metrics_count_the_requests(service: httpx.Client) -> None:
    post(service, tile_file(FOREST))
    response = service.get("/metrics")
    assert response.status_code == 200
    answered = [line for line in response.text.splitlines() if line.startswith("tilewise_requests_total{")]
    (line,) = [line for line in answered if 'path="/classify",status="200"' in line]
    assert float(line.split()[-1]) >= 1


# Services that cannot start.


def error_at_start(model: Path, home: Path, **settings: str) -> str:
    """What `bentoml serve` writes to stderr before it exits."""
    done = subprocess.run(
        command(f"http://127.0.0.1:{free_port()}"),
        cwd=ROOT,
        env=environment(model, home, **settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr


def test_without_a_model_the_service_stops_at_once_and_says_how_to_make_one(tmp_path: Path) -> None:
    nowhere = tmp_path / "model.onnx"
    expected = f"error: {nowhere}: there is no such model; `tilewise train` makes one"
    assert expected in error_at_start(nowhere, tmp_path).splitlines()


def test_with_a_corrupt_model_or_a_wrong_setting_the_service_stops_at_once(
    tmp_path: Path, model_file: Path
) -> None:
    corrupt = tmp_path / "model.onnx"
    corrupt.write_bytes(model_file.read_bytes()[:5000])
    expected = f"error: {corrupt}: not a readable ONNX file; export it again"
    assert expected in error_at_start(corrupt, tmp_path).splitlines()
    lines = error_at_start(model_file, tmp_path, TILEWISE_THREADS="two").splitlines()
    assert "error: TILEWISE_THREADS is a whole number of 0 or more, not 'two'" in lines


@pytest.mark.skipif(cuda_missing() is None, reason="onnxruntime has a GPU here")
def test_a_gpu_that_is_asked_for_and_not_there_stops_the_service_at_once(
    tmp_path: Path, model_file: Path
) -> None:
    lines = error_at_start(model_file, tmp_path, TILEWISE_DEVICE="cuda").splitlines()
    assert f"error: TILEWISE_DEVICE is cuda, but {cuda_missing()}" in lines


# What else people send.


def said(error: dict[str, str]) -> str:
    """The whole sentence of an error: what is wrong; what to do."""
    return f"{error['message']}; {error['hint']}" if error["hint"] else error["message"]


def picture(kind: str, side: int = 64) -> bytes:
    """A photo of land as EuroSAT's RGB tiles are, in a file format."""
    rgb = np.clip(FOREST.pixels[[3, 2, 1], :side, :side] * 254 / 2750 + 1, 1, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(rgb.transpose(1, 2, 0)).save(stream, kind, **({"quality": 100} if kind == "JPEG" else {}))
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("fields", [{}, {"bands": "eurosat-rgb"}])
def test_a_picture_is_read_as_eurosat_s_rgb_tiles_are(
    service: httpx.Client, kind: str, fields: dict[str, str]
) -> None:
    (answer,) = post(service, picture(kind), **fields)
    assert (answer["bands"], answer["level"]) == (["B02", "B03", "B04"], "L1C")
    body = {"content": picture(kind), "params": fields, "headers": {"Content-Type": f"image/{kind.lower()}"}}
    (alone,) = service.post("/classify", **body).json()["results"]
    assert alone["probabilities"] == answer["probabilities"]


def test_an_eight_bit_geotiff_and_a_png_of_the_same_bytes_are_one_tile(service: httpx.Client) -> None:
    png = picture("PNG")
    rgb = np.asarray(Image.open(io.BytesIO(png))).transpose(2, 0, 1)
    (of_tiff,) = post(service, geotiff(rgb), bands="eurosat-rgb")
    (of_png,) = post(service, png)
    assert of_tiff["probabilities"] == of_png["probabilities"]


@pytest.mark.parametrize(
    ("content", "fields", "code", "message"),
    [
        (picture("PNG", 32), {}, "shape", "0.tif: 32 × 32 pixels, but a tile has 64 × 64"),
        (picture("JPEG")[:200], {}, "unreadable", "0.tif: not a readable JPEG or PNG"),
        (
            picture("PNG"),
            {"bands": "rgb", "scale": "0.0001"},
            "bands",
            "0.tif: a JPEG or PNG is read as EuroSAT's RGB tiles are; leave bands, level, scale and offset "
            "out, or give bands=eurosat-rgb alone",
        ),
    ],
)
def test_a_picture_that_is_no_tile_says_why(
    service: httpx.Client, content: bytes, fields: dict[str, str], code: str, message: str
) -> None:
    (answer,) = post(service, content, **fields)
    assert said(answer["error"]) == message
    assert code in answer["error"]["code"]


def test_files_in_json_are_answered_as_in_a_form(service: httpx.Client) -> None:
    files = [
        {"name": "a.tif", "content": base64.b64encode(PLAIN).decode()},
        {"content": base64.b64encode(PLAIN).decode()},
    ]
    stated = {"bands": "l1c", "level": "L1C", "offset": 0}
    answer = service.post("/classify", json={"tiles": files} | stated).json()
    (of_form,) = post(service, PLAIN, bands="l1c", level="L1C", offset="0")
    assert [result["name"] for result in answer["results"]] == ["a.tif", "1"]
    assert all(result["probabilities"] == of_form["probabilities"] for result in answer["results"])


def test_files_are_fetched_from_a_host_that_the_operator_names(service: httpx.Client, store: str) -> None:
    """And one that is not there fails alone."""
    files = [
        {"url": f"{store}/wood.tif"},
        {"url": f"{store}/none.tif"},
        {"url": f"{store}/wood.tif", "name": "b"},
    ]
    first, missing, named = service.post("/classify", json={"tiles": files}).json()["results"]
    (of_form,) = post(service, tile_file(FOREST))
    assert first == of_form | {"name": "wood.tif"}
    assert named == of_form | {"name": "b"}
    assert missing["name"] == "none.tif"
    assert missing["error"] == {
        "code": "not_fetched",
        "message": "none.tif: 127.0.0.1 answered with status 404",
        "hint": "the address must answer by itself, without a login or a redirect",
    }


def test_a_host_to_fetch_from_that_is_none_stops_the_service_at_once(
    tmp_path: Path, model_file: Path
) -> None:
    lines = error_at_start(model_file, tmp_path, TILEWISE_URL_HOSTS="a.org/tiles").splitlines()
    assert (
        "error: TILEWISE_URL_HOSTS: 'a.org/tiles' is no host; write HOST, HOST:PORT or http://HOST:PORT, and "
        "for a host in a network of yours HOST=10.0.0.0/8"
    ) in lines


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body is no JSON"),
        (
            b"[]",
            400,
            'a JSON body has a list \'tiles\': {"tiles": [{"name": "tile.tif", "content": "BASE64"}]}',
        ),
        (
            b'{"tiles": ["x"]}',
            422,
            "tiles[0] has no text 'content', the file's bytes in base64, and no 'url'",
        ),
        (
            b'{"tiles": [{"content": "", "url": "http://localhost/"}]}',
            422,
            "tiles[0] has both a 'content' and a 'url'",
        ),
        (
            b'{"tiles": [{"url": "http://localhost:1/a.tif"}]}',
            422,
            "tiles[0]: this service does not fetch from http://localhost:1",
        ),
        (b'{"tiles": [{"content": "%"}]}', 422, "tiles[0]: its content is not base64"),
        (b'{"tiles": [{"content": ""}], "band": "rgb"}', 422, "unknown parameter 'band'; there are"),
    ],
)
def test_a_json_body_that_is_wrong_says_where(
    service: httpx.Client, body: bytes, status: int, message: str
) -> None:
    answer = service.post("/classify", content=body, headers={"Content-Type": "application/json"})
    assert said(refusal(answer, status)).startswith(message)


def send_array(service: httpx.Client, array: np.ndarray, **query: str) -> httpx.Response:
    stream = io.BytesIO()
    np.save(stream, array)
    headers = {"Content-Type": "application/octet-stream"}
    return service.post("/classify", content=stream.getvalue(), params=query, headers=headers)


def test_an_array_has_its_bands_first_or_last_and_any_scale(service: httpx.Client) -> None:
    pixels = FOREST.pixels
    reflectance = pixels.astype(np.float64) / 10_000
    forms = [
        send_array(service, pixels[None], level="L1C"),
        send_array(service, pixels, level="L1C"),
        send_array(service, pixels.transpose(1, 2, 0), level="L1C"),
        send_array(service, reflectance, level="L1C", scale="1"),
        send_array(service, (pixels.astype(np.int32) + 1000), level="L1C", offset="-1000"),
    ]
    answers = [form.json()["results"] for form in forms]
    assert all(answer == answers[0] for answer in answers), [form.text[:200] for form in forms]
    (ten,) = send_array(service, pixels[[1, 2, 3, 4, 5, 6, 7, 8, 11, 12]], bands="20m").json()["results"]
    assert ten["bands"] == ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]


def test_an_array_of_floats_needs_a_scale(service: httpx.Client) -> None:
    error = refusal(send_array(service, FOREST.pixels.astype(np.float32)), 422)
    assert said(error) == (
        "an array of float32 needs a scale: scale=1 for reflectance 0-1, scale=0.0001 for DN"
    )


# Errors that name the mistake.


def test_a_file_in_another_field_says_which_field_it_is(service: httpx.Client) -> None:
    error = refusal(service.post("/classify", files={"file": ("a.tif", PLAIN)}), 422)
    assert said(error) == (
        "a file in the field 'file'; files go into the field 'tiles': curl -F tiles=@tile.tif"
    )


def test_a_tiff_sent_as_an_array_says_how_to_send_it(service: httpx.Client) -> None:
    answer = service.post("/classify", content=PLAIN, headers={"Content-Type": "application/octet-stream"})
    assert said(refusal(answer, 400)) == (
        "a TIFF with the media type of an array; send it with 'Content-Type: image/tiff', or in a form: "
        "curl -F tiles=@tile.tif"
    )


def test_an_array_sent_as_a_file_says_how_to_send_it(service: httpx.Client) -> None:
    stream = io.BytesIO()
    np.save(stream, FOREST.pixels)
    (answer,) = post(service, stream.getvalue())
    assert said(answer["error"]) == (
        "0.tif: a NumPy array, which is sent as the body and not in a form: curl --data-binary @0.tif "
        "-H 'Content-Type: application/octet-stream'"
    )


@pytest.mark.parametrize(
    ("count", "hint"),
    [
        (13, "bands=B01,B02,B03,… or l1c or eurosat"),
        (12, "bands=B01,B02,B03,… or l2a"),
        (10, "bands=B01,B02,B03,… or 20m"),
        (3, "bands=B01,B02,B03 or rgb or eurosat-rgb"),
        (2, "bands=B01,B02"),
    ],
)
def test_the_hint_offers_only_lists_of_the_file_s_length(
    service: httpx.Client, count: int, hint: str
) -> None:
    (answer,) = post(service, geotiff(FOREST.pixels[:count]))
    assert said(answer["error"]) == (
        f"0.tif: its {count} bands have no names; give them in the file's order: {hint} (--bands on the "
        "command line, a field of a request)"
    )


def test_eurosat_s_band_list_says_level_and_offset_too(service: httpx.Client) -> None:
    (short,), (long,) = post(service, PLAIN, bands="eurosat"), post(service, PLAIN, **EUROSAT)
    assert short == long


def test_a_field_that_is_said_twice_is_refused(service: httpx.Client) -> None:
    twice = refusal(
        service.post("/classify", files=[("tiles", ("a.tif", PLAIN))], data={"level": ["L1C", "L2A"]}), 422
    )
    assert said(twice) == "'level' is given 2 times; give it once"
    query = refusal(
        service.post("/classify?bands=rgb&bands=10m", content=PLAIN, headers={"Content-Type": "image/tiff"}),
        422,
    )
    assert said(query) == "'bands' is given 2 times; give it once"


@pytest.mark.parametrize("mark", ["_", "-"])
def test_a_band_is_left_out_by_an_underscore_or_a_hyphen(service: httpx.Client, mark: str) -> None:
    file = geotiff(FOREST.pixels[[1, 2, 3]])
    (answer,) = post(service, file, bands=f"B02,{mark},B04", level="L1C", offset="0")
    assert answer["bands"] == ["B02", "B04"]
