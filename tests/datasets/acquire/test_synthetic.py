"""Synthetic tiles: the same every time, laid out as EuroSAT's, plausible, and never passed off as real."""

import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window
from sklearn.ensemble import RandomForestClassifier

from tilewise.datasets.acquire.synthetic import (
    MAX_TILES,
    SYNTHETIC_TAG,
    render,
    scene_index,
    synthesise,
    synthesise_scene,
    synthesise_tile,
    write_tile,
)
from tilewise.datasets.core.bands import BAND_NAMES, EUROSAT_MS_ORDER, positions
from tilewise.datasets.core.errors import NoTilesError, TilewiseError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.core.tile import DN, Tile
from tilewise.datasets.readers.eurosat import CLASSES, read_ms
from tilewise.datasets.readers.geotiff import read_tile
from tilewise.datasets.readers.sources import Format, find_source

SEED = 7
VEGETATION = ("AnnualCrop", "Forest", "HerbaceousVegetation", "Pasture", "PermanentCrop")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthesise(tmp_path_factory.mktemp("synthetic"), 3, SEED)


@pytest.fixture(scope="module")
def pixels() -> dict[str, DN]:
    """Twenty tiles of each class, (20, 13, 64, 64)."""
    return {label: np.stack([render(label, n, SEED) for n in range(1, 21)]) for label in CLASSES}


def mean_dn(tiles: DN, band: str) -> float:
    return float(tiles[:, BAND_NAMES.index(band)].mean())


def index_of(tiles: DN, plus: str, minus: str) -> float:
    """The normalised difference of two bands, mean of all pixels: NDVI for B08 and B04."""
    one, other = (tiles[:, BAND_NAMES.index(band)].astype(float) for band in (plus, minus))
    return float(((one - other) / (one + other)).mean())


# Determinism.


def test_two_runs_write_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = synthesise(tmp_path / "again", 3, SEED)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) == 3 * len(CLASSES) + 1
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((folder / file).read_bytes() == (again / file).read_bytes() for file in files)


def test_a_tile_depends_on_neither_the_others_nor_their_order(folder: Path) -> None:
    backwards = {(label, n): synthesise_tile(label, n, SEED) for n in (3, 1) for label in reversed(CLASSES)}
    for (label, n), tile in backwards.items():
        written = read_tile(folder / label / f"{label}_{n}.tif", ReadOptions())
        assert np.array_equal(written.pixels, tile.pixels)


def test_seed_class_and_number_each_make_another_tile() -> None:
    tiles = [
        render(*which) for which in (("Forest", 1, 0), ("Forest", 1, 1), ("Forest", 2, 0), ("Pasture", 1, 0))
    ]
    assert not any(np.array_equal(one, other) for one, other in combinations(tiles, 2))


# Files.


def test_files_are_laid_out_as_eurosat_but_name_their_bands(folder: Path) -> None:
    with rasterio.open(folder / "River" / "River_2.tif") as dataset:
        assert (dataset.driver, dataset.count, dataset.shape) == ("GTiff", 13, (64, 64))
        assert set(dataset.dtypes) == {"uint16"}
        assert dataset.descriptions == EUROSAT_MS_ORDER
        assert dataset.descriptions[-1] == "B8A"
        assert dataset.compression.name == "deflate"
        assert dataset.res == (10, 10)
        assert dataset.crs.to_epsg() // 100 == 326
        stored = dataset.read()
    expected = synthesise_tile("River", 2, SEED).pixels
    assert np.array_equal(stored[-1], expected[BAND_NAMES.index("B8A")])
    assert np.array_equal(stored, expected[positions(EUROSAT_MS_ORDER)])


def test_a_written_tile_reads_back_the_same_without_being_told_anything(tmp_path: Path) -> None:
    tile = synthesise_tile("Highway", 5, SEED)
    path = tmp_path / "new" / "tile.tif"
    write_tile(tile, path)
    back = read_tile(path, ReadOptions())
    assert np.array_equal(back.pixels, tile.pixels)
    assert (back.bands, back.level, back.georeference) == (BAND_NAMES, Level.L1C, tile.georeference)
    assert np.array_equal(read_ms(path).pixels, tile.pixels)
    assert [other.name for other in path.parent.iterdir()] == ["tile.tif"]


def test_every_pixel_is_data(pixels: dict[str, DN]) -> None:
    for tiles in pixels.values():
        assert (tiles.dtype, tiles.shape[1:]) == (np.uint16, (13, 64, 64))
        assert tiles.min() >= 1
    assert synthesise_tile("SeaLake", 1, SEED).valid_fraction == 1


def test_everything_says_that_it_is_synthetic(folder: Path, tmp_path: Path) -> None:
    card = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert (card["synthetic"], card["licence"], card["format"]) == (True, "CC0-1.0", Format.GEOTIFF)
    assert "not real" in card["notes"]
    scene = tmp_path / "scene.tif"
    synthesise_scene(scene, SEED, 1, 2)
    for path in [*folder.glob("*/*.tif"), scene]:
        with rasterio.open(path) as dataset:
            tags = dataset.tags()
        assert "no observation" in tags[SYNTHETIC_TAG]
        assert tags["PROCESSING_LEVEL"] == "Level-1C"
        assert (tags["QUANTIFICATION_VALUE"], tags["RADIO_ADD_OFFSET"]) == ("10000", "0")


def test_a_folder_is_a_source_of_labelled_tiles(folder: Path) -> None:
    source = find_source(folder)
    assert source.synthetic
    assert [(file.label, file.name) for file in source.files()] == [
        (label, f"{label}_{n}") for label in CLASSES for n in (1, 2, 3)
    ]


def test_an_interrupted_run_leaves_whole_files_alone_and_can_be_repeated(tmp_path: Path) -> None:
    def interrupt(_step: str, done: int, _total: int | None) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesise(tmp_path, 1, SEED, interrupt)
    source = find_source(tmp_path)
    assert source.synthetic
    assert all(source.read(file.path).valid_fraction == 1 for file in source.files())
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 4 + 1
    synthesise(tmp_path, 1, SEED)
    assert len(source.files()) == len(CLASSES)


def test_a_failure_while_writing_leaves_nothing_and_spares_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "tile.tif"
    good = synthesise_tile("Forest", 1, SEED)
    write_tile(good, path)
    before = path.read_bytes()
    with pytest.raises(IndexError):
        write_tile(Tile("cut", good.pixels[:12], good.bands, good.level), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    synthesise(tmp_path, 1, SEED, lambda _, done, total: seen.append((done, total)))
    assert seen == [(done, 10) for done in range(1, 11)]


# Positions.


def place_of(label: str, number: int) -> tuple[int, float, float]:
    """EPSG code, left and top of a tile."""
    place = synthesise_tile(label, number, SEED).georeference
    assert place is not None
    left, _, _, top = place.bounds(64, 64)
    return place.crs.to_epsg(), left, top


def test_footprints_never_overlap_and_four_tiles_of_each_class_share_a_block() -> None:
    numbers = (1, 2, 3, 4, 5, 9, 13, 17, 21, 22, 23, 24)
    places = [place_of(label, number) for number in numbers for label in CLASSES]
    for (zone, left, top), (other_zone, other_left, other_top) in combinations(places, 2):
        assert zone != other_zone or abs(left - other_left) >= 640 or abs(top - other_top) >= 640
    blocks = Counter((zone, left // 10_000, (top - 1) // 10_000) for zone, left, top in places)
    assert all(left % 10_000 <= 10_000 - 640 and (top - 1) % 10_000 >= 639 for _, left, top in places)
    assert list(blocks.values()) == [40, 10, 10, 10, 10, 40]
    assert len({zone for zone, *_ in blocks}) == 5


def test_tiles_lie_in_europe() -> None:
    for n in (1, 200, 4000):
        footprint = synthesise_tile("Pasture", n, 0).footprint
        assert footprint is not None
        longitudes, latitudes = zip(*footprint["coordinates"][0], strict=True)
        assert -10 < min(longitudes) < max(longitudes) < 25
        assert 36 < min(latitudes) < max(latitudes) < 60


# Spectra and textures.


def test_vegetation_is_green_in_the_infrared_and_water_is_dark(pixels: dict[str, DN]) -> None:
    ndvi = {label: index_of(tiles, "B08", "B04") for label, tiles in pixels.items()}
    assert ndvi["SeaLake"] < -0.1
    assert all(ndvi[label] > 0.3 for label in VEGETATION)
    assert ndvi["Industrial"] < 0.3 < ndvi["Forest"]
    assert max(ndvi, key=lambda label: ndvi[label]) in ("Forest", "Pasture")
    assert index_of(pixels["SeaLake"], "B03", "B11") > 0.5  # water by NDWI
    assert mean_dn(pixels["SeaLake"], "B11") < 200


def test_bands_behave_as_at_the_top_of_the_atmosphere(pixels: dict[str, DN]) -> None:
    water = [mean_dn(pixels["SeaLake"], band) for band in ("B01", "B02", "B03", "B04")]
    assert water == sorted(water, reverse=True)  # what is left is the blue path reflectance
    for tiles in pixels.values():
        assert mean_dn(tiles, "B10") == pytest.approx(10, abs=2)
        assert mean_dn(tiles, "B09") < mean_dn(tiles, "B8A")  # water vapour
    forest = pixels["Forest"]
    assert mean_dn(forest, "B04") < mean_dn(forest, "B05") < mean_dn(forest, "B06") < mean_dn(forest, "B08")
    assert mean_dn(forest, "B12") < mean_dn(forest, "B11") < mean_dn(forest, "B8A")


def test_brightness_is_in_the_order_a_person_expects(pixels: dict[str, DN]) -> None:
    red = {label: mean_dn(tiles, "B04") for label, tiles in pixels.items()}
    assert max(red, key=lambda label: red[label]) == "Industrial"
    assert sorted(red, key=lambda label: red[label])[:2] in (["Forest", "SeaLake"], ["SeaLake", "Forest"])
    assert all(200 < value < 4000 for value in red.values())


def test_texture_is_what_the_classes_are_made_of(pixels: dict[str, DN]) -> None:
    rough = {label: np.median(tiles[:, 3].std(axis=(1, 2))) for label, tiles in pixels.items()}
    assert min(rough, key=lambda label: rough[label]) == "SeaLake"
    assert rough["Industrial"] > rough["Residential"] > rough["Pasture"]


def test_coarse_bands_are_smoother_than_fine_ones(pixels: dict[str, DN]) -> None:
    homes = pixels["Residential"].astype(float)
    step = {
        band: np.abs(np.diff(homes[:, i], axis=2)).mean() / homes[:, i].mean()
        for i, band in enumerate(BAND_NAMES)
    }
    assert step["B09"] < step["B8A"] < step["B08"]
    assert step["B01"] < step["B02"]


def test_tiles_of_a_class_differ_in_state(pixels: dict[str, DN]) -> None:
    for label in VEGETATION:
        near_infrared = pixels[label][:, 7].mean(axis=(1, 2))
        assert near_infrared.std() / near_infrared.mean() > 0.05


def test_classes_can_be_told_apart_but_not_by_colour_alone(pixels: dict[str, DN]) -> None:
    tiles = np.concatenate([pixels[label] for label in CLASSES])
    labels = np.repeat(np.arange(len(CLASSES)), 20)
    held_out = np.tile(np.arange(20) >= 14, len(CLASSES))
    mean, spread = tiles.mean(axis=(2, 3)), tiles.std(axis=(2, 3))
    colour = _forest_score(mean, labels, held_out)
    with_texture = _forest_score(np.hstack([mean, spread]), labels, held_out)
    assert 0.3 < colour < 0.95
    assert with_texture > 0.7


def _forest_score(features: np.ndarray, labels: np.ndarray, held_out: np.ndarray) -> float:
    forest = RandomForestClassifier(100, random_state=0).fit(features[~held_out], labels[~held_out])
    return float(forest.score(features[held_out], labels[held_out]))


# Scenes.


def test_cells_of_a_scene_are_the_tiles_of_their_classes(tmp_path: Path) -> None:
    path, rows, columns = tmp_path / "scene.tif", 6, 5
    labels = synthesise_scene(path, SEED, rows, columns)
    assert [len(line) for line in labels] == [columns] * rows
    assert {label for line in labels for label in line} == set(CLASSES)
    with rasterio.open(path) as dataset:
        assert dataset.shape == (rows * 64, columns * 64)
        assert set(dataset.block_shapes) == {(256, 256)}
        assert dataset.descriptions == EUROSAT_MS_ORDER
        assert dataset.compression.name == "deflate"
        for row, column in ((0, 0), (3, 4), (4, 0), (5, 4)):
            cell = dataset.read(window=Window(column * 64, row * 64, 64, 64))
            expected = render(labels[row][column], scene_index(row, column, columns), SEED)
            assert np.array_equal(cell, expected[positions(EUROSAT_MS_ORDER)])


def test_a_scene_is_the_same_every_time_and_repeats_no_tile_of_a_data_set(tmp_path: Path) -> None:
    one, other = tmp_path / "one.tif", tmp_path / "other.tif"
    assert synthesise_scene(one, SEED, 2, 3) == synthesise_scene(other, SEED, 2, 3)
    assert one.read_bytes() == other.read_bytes()
    assert scene_index(0, 0, 3) > MAX_TILES
    assert synthesise_scene(one, SEED + 1, 2, 3) != synthesise_scene(other, SEED, 2, 3)


# Errors.


def test_an_unknown_class_is_refused_with_those_that_exist() -> None:
    with pytest.raises(NoTilesError, match=r"'Glacier'.*SeaLake"):
        synthesise_tile("Glacier", 1, SEED)


@pytest.mark.parametrize("index", [-1, 0, MAX_TILES + 1])
def test_numbers_out_of_range_are_refused(index: int) -> None:
    with pytest.raises(NoTilesError, match=str(MAX_TILES)):
        synthesise_tile("Forest", index, SEED)


@pytest.mark.parametrize(("tiles", "seed"), [(0, SEED), (MAX_TILES + 1, SEED), (1, -1)])
def test_a_run_that_cannot_be_made_writes_nothing(tmp_path: Path, tiles: int, seed: int) -> None:
    with pytest.raises(TilewiseError):
        synthesise(tmp_path, tiles, seed)
    assert list(tmp_path.iterdir()) == []


def test_a_scene_without_cells_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoTilesError, match="0 × 3"):
        synthesise_scene(tmp_path / "scene.tif", SEED, 0, 3)
    with pytest.raises(TilewiseError, match="-1"):
        synthesise_scene(tmp_path / "scene.tif", -1, 1, 3)
    assert list(tmp_path.iterdir()) == []


def test_tiles_of_another_origin_are_neither_overwritten_nor_mixed_in(tmp_path: Path) -> None:
    real = tmp_path / "Forest" / "Forest_1.tif"
    write_tile(synthesise_tile("Forest", 1, SEED), real)  # no card says where it is from
    with pytest.raises(TilewiseError, match=r"Forest_1\.tif"):
        synthesise(tmp_path, 1, SEED)
    more = synthesise(tmp_path / "more", 2, SEED)
    with pytest.raises(TilewiseError, match="10 tiles"):
        synthesise(more, 1, SEED)
