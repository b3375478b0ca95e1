"""Pictures of files, as their users get them: from a real service, over HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from geotiffs import geotiff, jpeg
from hostile.expanding import expanding_tiff
from rasterio.enums import Resampling
from rasterio.io import MemoryFile
from servers import served

from tilewise.bento.api.page import CLOUD_FRACTION
from tilewise.bento.inference.preview import LONGEST_SIDE, View, preview
from tilewise.datasets.acquire.synthetic import TAGS
from tilewise.datasets.core.bands import BAND_NAMES, RGB_BANDS, positions
from tilewise.datasets.core.errors import SceneTooLargeError
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.core.tile import DN

MAX_BYTES, MAX_PIXELS = 4 * 2**20, 700 * 700
RED, GREEN, BLUE, ALPHA = range(4)
WOOD, LIT, SNOW_AT_1600_NM = 900, 4500, 300  # DN
LAHINCH = {"bands": ",".join((*BAND_NAMES, "_", "_")), "level": "L1C", "scale": "0.0001", "offset": "0"}


@pytest.fixture(scope="module")
def service(linear_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = {
        "TILEWISE_WORKERS": "1",
        "TILEWISE_MAX_BYTES": str(MAX_BYTES),
        "TILEWISE_MAX_PIXELS": str(MAX_PIXELS),
    }
    with (
        served(linear_model, tmp_path_factory.mktemp("bentoml"), **settings) as server,
        httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client,
    ):
        yield client


def ask(service: httpx.Client, content: bytes, **query: str) -> httpx.Response:
    return service.post("/preview", params=query, content=content, headers={"Content-Type": "image/tiff"})


def picture(response: httpx.Response) -> npt.NDArray[np.uint8]:
    """The picture (4, height, width) that was answered."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    with MemoryFile(response.content) as memory, memory.open(driver="PNG") as dataset:
        return np.asarray(dataset.read())


def refusal(response: httpx.Response, status: int) -> dict[str, str]:
    assert response.status_code == status, response.text
    error: dict[str, str] = response.json()["error"]
    return error


def land(height: int = 64, width: int = 64) -> DN:
    """Land (13, height, width) whose bands all grow alike from left to right."""
    slope = np.linspace(500, 3000, width).astype(np.uint16)
    return np.broadcast_to(slope, (len(BAND_NAMES), height, width)).copy()


def with_bright_half(pixels: DN, band: str) -> DN:
    changed = pixels.copy()
    changed[positions((band,)), : pixels.shape[1] // 2] += 3000
    return changed


def file_of(pixels: DN, **more: Any) -> bytes:
    return geotiff(pixels, **({"names": BAND_NAMES, "tags": TAGS} | more))


def even(value: int) -> DN:
    return np.full((len(BAND_NAMES), 64, 64), value, np.uint16)


# What is seen.


@pytest.mark.parametrize(
    ("view", "band", "channel"),
    [
        ("true", "B04", RED),
        ("true", "B03", GREEN),
        ("true", "B02", BLUE),
        ("false", "B08", RED),
        ("false", "B04", GREEN),
        ("false", "B03", BLUE),
    ],
)
def test_each_band_is_seen_in_its_colour(service: httpx.Client, view: str, band: str, channel: int) -> None:
    seen = picture(ask(service, file_of(with_bright_half(even(1000), band)), view=view)).astype(int)
    assert seen.shape == (4, 64, 64)
    gain = seen[:, :32].mean(axis=(1, 2)) - seen[:, 32:].mean(axis=(1, 2))
    assert gain[channel] > 200
    assert np.abs(np.delete(gain, [channel, ALPHA])).max() == 0


def test_a_picture_is_in_true_colour_unless_it_is_said_otherwise(service: httpx.Client) -> None:
    content = file_of(with_bright_half(land(), "B02"))
    assert ask(service, content).content == ask(service, content, view="true").content
    assert ask(service, content).content != ask(service, content, view="false").content


def test_no_data_is_transparent_and_black(service: httpx.Client) -> None:
    pixels = land()
    pixels[positions(("B03",)), :16] = 0
    seen = picture(ask(service, file_of(pixels)))
    assert (seen[ALPHA, :16] == 0).all()
    assert (seen[ALPHA, 16:] == 255).all()
    assert (seen[:, :16] == 0).all()


def test_a_file_without_any_data_is_all_transparent(service: httpx.Client) -> None:
    response = ask(service, file_of(even(0)))
    assert not picture(response).any()
    assert CLOUD_FRACTION not in response.headers


def test_a_few_extreme_pixels_do_not_darken_the_rest(service: httpx.Client) -> None:
    glint = land()
    glint[:, :2, :2] = 65_000
    plain, glinting = picture(ask(service, file_of(land()))), picture(ask(service, file_of(glint)))
    assert np.abs(plain[:3, 8:].astype(int) - glinting[:3, 8:]).max() <= 8


def test_the_noise_of_a_flat_surface_is_not_blown_up(service: httpx.Client) -> None:
    noise = np.random.default_rng(1).normal(1000, 10, (len(BAND_NAMES), 64, 64)).astype(np.uint16)
    assert picture(ask(service, file_of(noise)))[:3].std() < 20


def test_a_large_file_is_shown_small_and_whole(service: httpx.Client) -> None:
    pixels = land(300, 640)[positions(RGB_BANDS)]
    seen = picture(ask(service, geotiff(pixels, names=RGB_BANDS)))
    assert seen.shape == (4, 240, LONGEST_SIDE)
    assert (np.diff(seen[RED].mean(axis=0)) >= 0).all()
    assert (seen[RED, :, 0] < 20).all()
    assert (seen[RED, :, -1] > 235).all()


def test_floats_with_not_a_number_are_shown(service: httpx.Client) -> None:
    numbers = land().astype(np.float32) / 10_000
    numbers[:, 0] = np.nan
    numbers[:, 1] = np.inf
    seen = picture(ask(service, geotiff(numbers, names=BAND_NAMES)))
    assert not seen[ALPHA, :2].any()
    assert seen[ALPHA, 2:].all()
    assert np.ptp(seen[RED, 2:]) > 240


def test_bands_without_names_are_shown_as_they_are_said(service: httpx.Client) -> None:
    content = geotiff(with_bright_half(even(1000), "B04"))
    assert refusal(ask(service, content), 422)["code"] == "bands_unknown"
    seen = picture(ask(service, content, bands="l1c"))
    assert seen[RED, 0, 0] > seen[RED, -1, -1] + 200


def test_a_form_is_taken_too(service: httpx.Client) -> None:
    content = file_of(with_bright_half(land(), "B08"))
    response = service.post("/preview", files={"tiles": ("a.tif", content)}, data={"view": "false"})
    assert response.content == ask(service, content, view="false").content


# What is cloud.


@pytest.mark.parametrize(
    ("pixels", "fraction"),
    [
        (even(WOOD), 0.0),
        (even(LIT), 1.0),
        (np.concatenate([even(LIT)[:, :16], even(WOOD)[:, 16:]], axis=1), 0.25),
        (np.concatenate([even(0)[:, :32], even(LIT)[:, 32:]], axis=1), 1.0),
    ],
    ids=["dark", "bright", "quarter", "no data is none"],
)
def test_the_share_that_is_as_bright_as_cloud_is_told(
    service: httpx.Client, pixels: DN, fraction: float
) -> None:
    assert float(ask(service, file_of(pixels)).headers[CLOUD_FRACTION]) == fraction


def test_snow_is_not_taken_for_cloud(service: httpx.Client) -> None:
    snow = even(LIT)
    snow[positions(("B11", "B12"))] = SNOW_AT_1600_NM
    assert float(ask(service, file_of(snow)).headers[CLOUD_FRACTION]) == 0


def test_cloud_is_measured_in_reflectance_whatever_the_numbers_are(service: httpx.Client) -> None:
    shifted = ask(service, geotiff(even(LIT), names=BAND_NAMES), offset="-4000")
    assert float(shifted.headers[CLOUD_FRACTION]) == 0
    floats = geotiff(even(LIT).astype(np.float32) / 10_000, names=BAND_NAMES)
    assert float(ask(service, floats, scale="1", offset="0").headers[CLOUD_FRACTION]) == 1


def test_nothing_is_said_of_cloud_without_radiometry_or_its_bands(service: httpx.Client) -> None:
    assert CLOUD_FRACTION not in ask(service, geotiff(even(LIT), names=BAND_NAMES)).headers
    three = geotiff(even(LIT)[positions(RGB_BANDS)], names=RGB_BANDS, tags=TAGS)
    assert CLOUD_FRACTION not in ask(service, three).headers


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("day", "min_fraction", "max_fraction"), [("09-18", 0, 0.02), ("09-26", 0, 0.02), ("10-18", 0.7, 1)]
)
def test_cloud_is_told_from_a_clear_sky_over_lahinch(
    service: httpx.Client, real_data: Path, day: str, min_fraction: float, max_fraction: float
) -> None:
    content = (real_data / "scenes" / "lahinch_l1c" / f"2017-{day}.tif").read_bytes()
    assert min_fraction <= float(ask(service, content, **LAHINCH).headers[CLOUD_FRACTION]) <= max_fraction


# What is refused.


def test_a_view_that_needs_a_missing_band_is_refused_and_names_it(service: httpx.Client) -> None:
    three = geotiff(land()[positions(RGB_BANDS)], names=RGB_BANDS, tags=TAGS)
    picture(ask(service, three, view="true"))
    error = refusal(ask(service, three, view="false", name="three.tif"), 422)
    assert error["code"] == "band_missing"
    assert "three.tif: it has no B08" in error["message"]
    assert error["hint"]


@pytest.mark.parametrize(
    ("name", "value"), [("view", "infrared"), ("coverage", "0.9"), ("level", "L3"), ("x", "1")]
)
def test_parameters_that_make_no_sense_are_refused(service: httpx.Client, name: str, value: str) -> None:
    assert refusal(ask(service, file_of(land()), **{name: value}), 422)["code"] == "invalid"


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (jpeg(), 415, "unreadable_image"),
        (b"", 415, "unreadable_image"),
        (file_of(land())[:3000], 415, "unreadable_image"),
        (geotiff(np.ones((3, 701, 700), np.uint8), names=RGB_BANDS), 413, "too_large"),
        (b"II*\x00" + bytes(MAX_BYTES), 413, "too_large"),
    ],
    ids=["a JPEG", "nothing", "truncated", "too many pixels", "too many bytes"],
)
def test_a_bad_file_is_refused(service: httpx.Client, content: bytes, status: int, code: str) -> None:
    assert refusal(ask(service, content), status)["code"] == code


def test_only_one_file_in_a_known_form_is_taken(service: httpx.Client) -> None:
    files = [("tiles", (f"{n}.tif", file_of(land()))) for n in range(2)]
    assert refusal(service.post("/preview", files=files), 413)["message"] == "more than one file"
    refusal(service.post("/preview", data={"tiles": "http://127.0.0.1/a.tif"}), 415)
    refusal(service.post("/preview", files={"other": ("a.tif", file_of(land()))}), 400)
    assert refusal(service.post("/preview", json={}), 415)["code"] == "unsupported_type"
    assert refusal(service.get("/preview"), 405)["code"] == "method"


def test_a_picture_is_read_block_by_block_and_can_be_stopped_between() -> None:
    content = file_of(land(256, 256), tiled=True, blockxsize=64, blockysize=64)
    called: list[int] = []

    def check() -> None:
        called.append(1)
        if len(called) > 5:
            raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        preview(content, ReadOptions(), "a.tif", View.TRUE, 10**6, check)
    assert len(called) == 6


def test_a_picture_shows_the_pixels_nearest_to_its_own_and_never_an_overview(tmp_path: Path) -> None:
    pixels = land(1024, 1024)
    pixels[:, 1::2, 1::2] += 500  # the odd rows and columns, of which the picture is made
    path = tmp_path / "a.tif"
    path.write_bytes(file_of(pixels, tiled=True, blockxsize=256, blockysize=256))
    with rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2], Resampling.average)
    content = path.read_bytes()
    plain = preview(file_of(pixels[:, 1::2, 1::2]), ReadOptions(), "a.tif", View.TRUE, 10**7)
    assert preview(content, ReadOptions(), "a.tif", View.TRUE, 10**7).png == plain.png


@pytest.mark.parametrize("form", [(4096, 512, 64, "float64"), (4096, 2048, 13, "float64")])
def test_much_decoding_is_refused_by_the_header(form: tuple[int, int, int, str]) -> None:
    bands = ("B04", "B03", "B02", *["_"] * (form[2] - 3))
    with pytest.raises(SceneTooLargeError, match="MiB when decoded"):
        preview(expanding_tiff(*form), ReadOptions(bands=bands), "a.tif", View.TRUE, 4096 * 4096)
