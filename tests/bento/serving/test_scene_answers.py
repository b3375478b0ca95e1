"""Uploaded scenes: covered by windows without a gap, each classified as a tile; refused if not about 10 m."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from affine import Affine
from geotiffs import CORNER, UTM, geotiff
from rasterio.crs import CRS

from tilewise.bento.inference.blending import NO_CLASS
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.window_grid import starts
from tilewise.bento.serving.scene_answers import ClassifiedScene, SceneRequest, answer_scene, count_windows
from tilewise.datasets.acquire.synthetic import TAGS, render, scene_index, synthesise_scene
from tilewise.datasets.core.bands import BAND_NAMES, band_of_description
from tilewise.datasets.core.errors import SceneTooLargeError, TileShapeError, UnreadableImageError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.core.tile import DN
from tilewise.datasets.readers.geotiff import open_geotiff
from tilewise.datasets.scenes.clouds import find_clouds, table_for

ROWS, COLUMNS, SEED = 4, 5, 11
MIXED = ("Forest", "SeaLake", "Pasture", "SeaLake", "Forest", "AnnualCrop", "Industrial", "River")


@dataclass(frozen=True)
class Scene:
    """A synthetic scene and its cells as tiles, in reading order."""

    path: Path
    cells: DN


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    labels = synthesise_scene(path, SEED, ROWS, COLUMNS)
    positions = [(row, column) for row in range(ROWS) for column in range(COLUMNS)]
    return Scene(
        path, np.stack([render(labels[r][c], scene_index(r, c, COLUMNS), SEED) for r, c in positions])
    )


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    """The private file that a service keeps an upload in."""
    return tmp_path / "upload"


def classified(
    engine: Engine, upload: Path, content: bytes, read_options: ReadOptions | None = None, **options: Any
) -> ClassifiedScene:
    upload.write_bytes(content)
    request = SceneRequest("scene.tif", read_options or ReadOptions(), **options)
    return answer_scene(engine, upload, request, lambda _: None)


def mosaic(height: int, width: int) -> DN:
    """Synthetic land (13, height, width) of many classes."""
    down, across = -(-height // 64), -(-width // 64)
    cells = [render(MIXED[n % len(MIXED)], n + 1, seed=4) for n in range(down * across)]
    rows = [np.concatenate(cells[row * across : (row + 1) * across], axis=2) for row in range(down)]
    return np.concatenate(rows, axis=1)[:, :height, :width]


def painted(answer: ClassifiedScene, valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """The class map that the windows of `answer` make; where two overlap, the first one's class is seen."""
    painted = np.full(valid.shape, NO_CLASS, np.uint8)
    for window in reversed(answer.windows):
        if window.class_index != NO_CLASS:
            painted[window.row :, window.column :][: window.height, : window.width] = window.class_index
    return np.where(valid, painted, NO_CLASS).astype(np.uint8)


def without_clouds(pixels: DN) -> DN:
    """Pixels as a scene has them: some bright roofs are taken for cloud."""
    table = table_for(BAND_NAMES)
    assert table is not None
    return np.where(find_clouds(pixels, BAND_NAMES, Level.L1C, table), np.uint16(0), pixels)


def named(pixels: npt.NDArray[Any], **options: Any) -> bytes:
    return geotiff(pixels, names=BAND_NAMES, tags=TAGS, **options)


# Where windows begin.


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 100, 127, 128, 129, 191, 192, 193, 640, 641, 10_980])
def test_windows_cover_every_pixel_and_stay_inside(length: int) -> None:
    found = starts(length, 64)
    covered = np.zeros(length, bool)
    for start in found:
        covered[start : start + 64] = True
    assert covered.all()
    assert found == sorted(set(found))
    assert found[0] == 0
    assert found[-1] + 64 <= max(length, 64)
    assert len(found) == -(-length // 64), "no more windows than are needed"


# Classes and their positions.


def test_a_scene_is_classified_as_its_tiles_are(engine: Engine, upload: Path, scene: Scene) -> None:
    answer = classified(engine, upload, scene.path.read_bytes())
    cells = np.stack([without_clouds(cell) for cell in scene.cells])
    expected = engine.classify(cells).probabilities
    assert len({int(row.argmax()) for row in expected}) >= 5, "the scene must be varied"
    assert answer.class_map.shape == (ROWS * 64, COLUMNS * 64)
    found = np.stack([window.probabilities for window in answer.windows if window.probabilities is not None])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for index, row in enumerate(expected):
        down, across = divmod(index, COLUMNS)
        block = answer.class_map[down * 64 : (down + 1) * 64, across * 64 : (across + 1) * 64]
        assert (block[(cells[index] > 0).all(axis=0)] == row.argmax()).all()


def test_windows_are_told_in_reading_order_with_their_places(
    engine: Engine, upload: Path, scene: Scene
) -> None:
    positions = [
        (window.row, window.column) for window in classified(engine, upload, scene.path.read_bytes()).windows
    ]
    assert positions == [(row * 64, column * 64) for row in range(ROWS) for column in range(COLUMNS)]


def test_the_last_windows_are_moved_inwards_and_fill_only_what_is_left(engine: Engine, upload: Path) -> None:
    pixels = mosaic(100, 200)
    answer = classified(engine, upload, named(pixels))
    pixels = without_clouds(pixels)
    assert [(w.row, w.column) for w in answer.windows] == [(r, c) for r in (0, 36) for c in (0, 64, 128, 136)]
    assert all((w.height, w.width) == (64, 64) for w in answer.windows)
    for window in answer.windows:
        tile = pixels[:, window.row : window.row + 64, window.column : window.column + 64]
        assert window.class_index == engine.classify(tile[None]).probabilities.argmax()
    assert len({window.class_index for window in answer.windows}) > 2, "the scene must be varied"
    np.testing.assert_array_equal(answer.class_map, painted(answer, (pixels > 0).all(axis=0)))


@pytest.mark.parametrize(("height", "width"), [(32, 39), (1, 1), (20, 130), (130, 20)])
def test_a_scene_smaller_than_a_tile_is_classified_with_the_rest_as_no_data(
    engine: Engine, upload: Path, height: int, width: int
) -> None:
    pixels = mosaic(height, width)
    answer = classified(engine, upload, named(pixels))
    first = answer.windows[0]
    tile = np.zeros((1, 13, 64, 64), np.uint16)
    tile[0, :, : first.height, : first.width] = pixels[:, :64, :64]
    assert (first.height, first.width) == (min(height, 64), min(width, 64))
    assert first.valid_fraction == 1
    assert first.class_index == engine.classify(tile).probabilities.argmax()
    assert answer.class_map.shape == (height, width)
    assert (answer.class_map != NO_CLASS).all()


# No data.


def test_windows_with_too_little_data_are_skipped_and_stay_empty_in_the_map(
    engine: Engine, upload: Path
) -> None:
    pixels = mosaic(64, 192)
    pixels[:, :40, :64] = 0  # three eighths are left
    pixels[:, :30, 64:128] = 0  # more than half is left
    answer = classified(engine, upload, named(pixels))
    assert [window.probabilities is None for window in answer.windows] == [True, False, False]
    assert [window.valid_fraction for window in answer.windows] == pytest.approx([24 / 64, 34 / 64, 1])
    assert (answer.class_map[:, :64] == NO_CLASS).all()
    assert (answer.class_map[:30, 64:128] == NO_CLASS).all()
    assert (answer.class_map[30:, 64:] != NO_CLASS).all()
    assert answer.windows[0].class_index == NO_CLASS


def test_the_min_share_of_data_is_the_callers_choice(engine: Engine, upload: Path) -> None:
    pixels = mosaic(64, 192)
    pixels[:, :40, :64] = 0
    pixels[:, :, 128:] = 0
    skipped = {
        minimum: [
            w.probabilities is None
            for w in classified(engine, upload, named(pixels), min_valid_fraction=minimum).windows
        ]
        for minimum in (0.0, 0.375, 0.4, 1.0)
    }
    assert skipped == {
        0.0: [False, False, True],  # a window without any data has no class
        0.375: [False, False, True],
        0.4: [True, False, True],
        1.0: [True, False, True],
    }


def test_a_scene_of_nothing_is_an_empty_map(engine: Engine, upload: Path) -> None:
    answer = classified(engine, upload, named(np.zeros((13, 70, 70), np.uint16)))
    assert (answer.class_map == NO_CLASS).all()
    assert all(window.probabilities is None for window in answer.windows)


def test_nan_and_the_declared_no_data_value_leave_holes_in_the_map(engine: Engine, upload: Path) -> None:
    pixels = mosaic(64, 64).astype(np.float32)
    pixels[2, 10:20, 10:20] = np.nan
    pixels[7, 40, 50] = -9999
    content = geotiff(pixels, names=BAND_NAMES, nodata=-9999)
    answer = classified(engine, upload, content, ReadOptions(scale=0.0001, offset=0))
    hole = np.zeros((64, 64), bool)
    hole[10:20, 10:20] = hole[40, 50] = True
    np.testing.assert_array_equal(answer.class_map == NO_CLASS, hole)


def test_a_neighbour_covers_what_a_skipped_window_left(engine: Engine, upload: Path) -> None:
    pixels = mosaic(64, 100)
    pixels[:, :, :34] = 0  # the first window is skipped; the second, moved inwards, begins at 36
    answer = classified(engine, upload, named(pixels))
    assert answer.windows[0].probabilities is None
    assert (answer.class_map[:, :36] == NO_CLASS).all()
    assert (answer.class_map[:, 36:] == answer.windows[1].class_index).all()


# Places and scales.


def checked(upload: Path, crs: CRS | None, transform: Affine, size: int = 70, max_pixels: int = 10**6) -> int:
    """Check a scene by its header; return how many windows it has."""
    upload.write_bytes(named(np.ones((13, size, size), np.uint16), crs=crs, transform=transform))
    return count_windows(upload, SceneRequest("scene.tif"), 64, max_pixels)


def refusal(upload: Path, crs: CRS | None, transform: Affine, size: int = 70) -> str:
    with pytest.raises(TileShapeError) as caught:
        checked(upload, crs, transform, size)
    return str(caught.value)


def pixels_of(width: float, height: float | None = None) -> Affine:
    return Affine(width, 0, 540_000, 0, -(height or width), 4_740_000)


@pytest.mark.parametrize("size", [8, 10, 12.5])
def test_pixels_of_about_10_m_pass(upload: Path, size: float) -> None:
    assert checked(upload, UTM, pixels_of(size)) == 4


def test_a_turned_scene_of_10_m_passes(upload: Path) -> None:
    assert checked(upload, UTM, CORNER * Affine.rotation(30)) == 4


@pytest.mark.parametrize(("size", "metres"), [(20, "20 m"), (60, "60 m"), (7.9, "7.9 m"), (0.5, "0.5 m")])
def test_pixels_of_another_size_are_refused_with_the_way_to_resample(
    upload: Path, size: float, metres: str
) -> None:
    message = refusal(upload, UTM, pixels_of(size))
    assert f"scene.tif: its pixels measure {metres}" in message
    assert "gdalwarp -tr 10 10" in message
    assert "--warp" not in message, "an option of batch inference, which the service does not have"


@pytest.mark.parametrize(
    ("longitude", "latitude", "zone"),
    [(2.8, 42.3, 32631), (-179.9, 10, 32601), (179.5, -17, 32760), (-9.1, 52.9, 32629)],
)
def test_a_scene_in_degrees_is_refused_with_its_utm_zone(
    upload: Path, longitude: float, latitude: float, zone: int
) -> None:
    message = refusal(upload, CRS.from_epsg(4326), Affine(0.0001, 0, longitude, 0, -0.0001, latitude))
    assert "measured in degrees" in message
    assert f"gdalwarp -t_srs EPSG:{zone} -tr 10 10" in message


def test_feet_are_brought_to_metres(upload: Path) -> None:
    feet = CRS.from_epsg(2263)
    assert checked(upload, feet, Affine(32.8, 0, 980_000, 0, -32.8, 200_000)) == 4
    message = refusal(upload, feet, Affine(10, 0, 980_000, 0, -10, 200_000))
    assert "measure 3.05 m" in message
    assert "gdalwarp -tr 32.8083 32.8083" in message, "in the units of the CRS"


def test_the_map_has_the_georeference_of_the_scene(engine: Engine, upload: Path) -> None:
    answer = classified(engine, upload, named(mosaic(70, 70), crs=UTM, transform=CORNER))
    assert (answer.georeference.crs, answer.georeference.transform) == (UTM, CORNER)


@pytest.mark.parametrize(
    ("crs", "transform", "reason"),
    [
        (None, CORNER, "no coordinate reference system; set one with gdal_edit.py -a_srs"),
        (UTM, Affine.identity(), "missing or not on Earth; set them with gdal_edit.py"),
        (UTM, Affine(10, 0, 1e12, 0, -10, 1e12), "missing or not on Earth"),
        (CRS.from_wkt('LOCAL_CS["a garden",UNIT["metre",1]]'), CORNER, "missing or not on Earth"),
    ],
)
def test_a_scene_without_a_georeference_is_refused(
    upload: Path, crs: CRS | None, transform: Affine, reason: str
) -> None:
    message = refusal(upload, crs, transform)
    assert message.startswith("scene.tif: ")
    assert reason in message


def test_a_scene_of_too_many_pixels_is_refused_by_its_header(upload: Path) -> None:
    with pytest.raises(SceneTooLargeError, match="70 × 70 pixels, 4,000 and 252 on a side are the most"):
        checked(upload, UTM, pixels_of(10), max_pixels=4000)


@pytest.mark.parametrize("blocks", [{}, {"tiled": True, "blockxsize": 64, "blockysize": 64}])
def test_a_block_that_cannot_be_decoded_is_an_error_and_no_hole(
    engine: Engine, upload: Path, blocks: dict[str, Any]
) -> None:
    """Batch inference goes on without the block and counts it; a response of the service cannot."""
    content = bytearray(named(mosaic(256, 256), compress="deflate", interleave="pixel", **blocks))
    upload.write_bytes(content)
    with open_geotiff(upload) as dataset:
        offset = int(dataset.get_tag_item("BLOCK_OFFSET_0_1", "TIFF", bidx=1))
    content[offset : offset + 2000] = b"\xff" * 2000
    with pytest.raises(UnreadableImageError) as caught:
        classified(engine, upload, bytes(content))
    assert str(caught.value) == "scene.tif: truncated or corrupt, its pixels cannot be decoded"


# Real scenes.


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "clear"), [("2017-09-18", 1), ("2017-09-26", 1), ("2017-10-18", 0)])
def test_a_real_scene_with_holes_is_classified_in_place(
    engine: Engine, upload: Path, real_data: Path, name: str, clear: int
) -> None:
    path = real_data / "scenes" / "lahinch_l1c" / f"{name}.tif"
    answer = classified(engine, upload, path.read_bytes(), ReadOptions(scale=0.0001, offset=0))
    assert answer.bands == BAND_NAMES
    assert answer.level == "L1C"
    assert answer.georeference.crs == CRS.from_epsg(32629)
    with open_geotiff(path) as dataset:
        bands = [index for index, text in enumerate(dataset.descriptions, 1) if band_of_description(text)]
        numbers = dataset.read(bands)
    valid = np.isfinite(numbers).all(axis=0) & (numbers != 0).all(axis=0)
    assert 0 < valid.sum() < valid.size
    masked = answer.class_map == NO_CLASS
    assert masked[~valid].all()
    assert (~masked & valid).sum() / valid.sum() == pytest.approx(clear, abs=0.02), "the last is all cloud"
    np.testing.assert_array_equal(answer.class_map[~masked], painted(answer, valid)[~masked])


@pytest.mark.realdata
def test_a_real_scene_smaller_than_a_tile_is_one_window(
    engine: Engine, upload: Path, real_data: Path
) -> None:
    path = real_data / "scenes" / "waterville_l1c" / "2017-09-21.tif"
    answer = classified(engine, upload, path.read_bytes(), ReadOptions(scale=0.0001, offset=0))
    (window,) = answer.windows
    assert (window.height, window.width) == (32, 39)
    assert window.valid_fraction > 0.9
