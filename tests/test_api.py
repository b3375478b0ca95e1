"""The Python API: `import tilewise` is cheap, and `tilewise.load` classifies files, arrays and DataArrays."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
from eopf_product import NAME, write_eopf
from rasterio.crs import CRS

import tilewise
from tilewise.bento.inference.engine import Engine
from tilewise.datasets.acquire.synthetic import synthesise_scene, synthesise_tile, write_tile
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.errors import (
    BandsUnknownError,
    RadiometryUnknownError,
    TileShapeError,
    UnknownBandError,
)
from tilewise.datasets.readers.eurosat import CLASSES

ROOT = Path(__file__).parents[1]
FOREST = synthesise_tile("Forest", 3, 1)


@pytest.fixture(scope="module")
def model(skilled_model: Path) -> tilewise.Model:
    return tilewise.load(skilled_model, precision="fp32")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("tiles")
    for label in CLASSES:
        write_tile(synthesise_tile(label, 2, 1), folder / f"{label}.tif")
    return sorted(folder.iterdir())


def data_array(
    pixels: np.ndarray, bands: Any, *, dims: tuple[str, ...] = ("band", "y", "x"), **attrs: Any
) -> xr.DataArray:
    sizes = dict(zip(dims, pixels.shape, strict=True))
    coords = {
        "band": list(bands),
        "x": 500_005 + 10.0 * np.arange(sizes["x"]),
        "y": 4_999_995 - 10.0 * np.arange(sizes["y"]),
        "spatial_ref": ((), 0, {"crs_wkt": CRS.from_epsg(32631).to_wkt()}),
    }
    return xr.DataArray(pixels, coords, dims, "field", attrs)


# Importing.


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, tilewise; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "tilewise" in loaded
    assert not loaded & {"onnxruntime", "rasterio", "torch", "bentoml", "numpy", "httpx", "click", "pyarrow"}


def test_every_public_name_is_there_and_others_are_not() -> None:
    assert all(getattr(tilewise, name).__module__.startswith("tilewise.") for name in tilewise.__all__)
    assert set(tilewise.__all__) <= set(dir(tilewise))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tilewise.nothing  # noqa: B018


# Tiles.


def test_the_model_that_ships_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = tilewise.load()
    assert shipped.classes == CLASSES
    assert "pretrained" in repr(shipped)
    with pytest.raises(tilewise.TilewiseError, match="there is no such model"):
        tilewise.load("none.onnx")


def test_one_file_is_one_result_and_a_list_is_a_list(model: tilewise.Model, files: list[Path]) -> None:
    results = model.classify(files)
    assert [result.name for result in results] == [str(path) for path in files]
    pixels = np.stack([synthesise_tile(path.stem, 2, 1).pixels for path in files])
    expected = Engine(model.path).classify(pixels).probabilities.argmax(1)
    assert [result.class_name for result in results] == [CLASSES[index] for index in expected]
    assert len(set(expected)) > 2, "else a lost order would not show"
    one = model.classify(files[3])
    assert one.probabilities == results[3].probabilities
    assert one.probability == max(one.probabilities.values())
    assert (one.bands, one.level, one.valid_fraction) == (BAND_NAMES, "L1C", 1)
    assert one.footprint is not None
    assert one.footprint["type"] == "Polygon"
    assert model.classify(files[3].read_bytes()).probabilities == one.probabilities
    assert model.classify([]) == []


def test_arrays_of_dn_and_of_reflectance_give_the_answer_of_the_file(
    model: tilewise.Model, tmp_path: Path
) -> None:
    write_tile(FOREST, tmp_path / "forest.tif")
    expected = model.classify(tmp_path / "forest.tif").probabilities
    pixels = FOREST.pixels
    assert model.classify(pixels).probabilities == expected
    assert model.classify(pixels / 10_000, scale=1).probabilities == pytest.approx(expected, abs=1e-4)
    assert model.classify(pixels + np.uint16(1000), scale=1e-4, offset=-1000).probabilities == expected
    several = model.classify(np.stack([pixels, pixels]), level="L2A")
    assert [(result.name, result.level) for result in several] == [("0", "L2A"), ("1", "L2A")]
    rgb = model.classify(pixels[[3, 2, 1]], bands=["red", "green", "blue"])
    assert rgb.bands == ("B02", "B03", "B04")
    assert rgb.probabilities == model.classify(pixels[[3, 2, 1]], bands="rgb").probabilities


def test_nan_and_0_are_no_data(model: tilewise.Model) -> None:
    numbers = (FOREST.pixels / 10_000).astype(np.float32)
    numbers[:, :16] = np.nan
    numbers[:, 16:32] = 0
    assert model.classify(numbers, scale=1).valid_fraction == 0.5
    with pytest.raises(tilewise.TilewiseError, match="no pixel holds data"):
        model.classify(np.full_like(numbers, np.nan), scale=1)


def test_a_data_array_names_its_bands_and_its_place(model: tilewise.Model) -> None:
    expected = model.classify(FOREST.pixels[[1, 2, 3, 7]], bands="10m").probabilities
    array = data_array(FOREST.pixels[[3, 2, 1, 7]], ["red", "green", "blue", "nir"])
    result = model.classify(array)
    assert result.probabilities == expected
    assert result.bands == ("B02", "B03", "B04", "B08")
    longitudes = [point[0] for point in result.footprint["coordinates"][0]]
    assert 2.9 < min(longitudes) < max(longitudes) < 3.1
    last = data_array(FOREST.pixels.transpose(1, 2, 0), BAND_NAMES, dims=("y", "x", "band"))
    assert model.classify(last).probabilities == model.classify(FOREST.pixels).probabilities
    described = data_array(FOREST.pixels, range(1, 14), long_name=BAND_NAMES)  # as rioxarray opens a GeoTIFF
    assert model.classify(described).bands == BAND_NAMES


@pytest.mark.parametrize(
    ("tiles", "options", "error", "text"),
    [
        (FOREST.pixels / 10_000, {}, RadiometryUnknownError, "scale=1 for reflectance"),
        (FOREST.pixels[:3], {}, TileShapeError, "name the bands"),
        (FOREST.pixels[:, :32], {}, TileShapeError, "64, 64"),
        (FOREST.pixels, {"coverage": 0.2}, tilewise.TilewiseError, "a coverage of 0.2"),
        (FOREST.pixels, {"level": "L3"}, RadiometryUnknownError, "L1C or L2A"),
        (data_array(FOREST.pixels, range(13)), {}, BandsUnknownError, "name them with bands="),
        ("none.tif", {}, FileNotFoundError, "none.tif"),
        (b"no tile", {}, tilewise.TilewiseError, "not a GeoTIFF"),
        (7, {}, TileShapeError, "neither a path nor an array"),
        ([7], {}, TileShapeError, "neither a path nor an array"),
    ],
    ids=str,
)
def test_what_cannot_be_classified_is_an_error(
    model: tilewise.Model, tiles: Any, options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        model.classify(tiles, **options)


def test_in_a_list_a_bad_tile_has_its_error(model: tilewise.Model, files: list[Path]) -> None:
    first, second = model.classify([files[0], b"no tile"])
    assert first.error is None
    assert second.error is not None
    assert "not a GeoTIFF" in second.error.message
    with pytest.raises(tilewise.ServiceError, match="1 of 2 tiles have no answer"):
        tilewise.raise_for_errors([first, second])


# Scenes.


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes") / "scene.tif"
    synthesise_scene(path, 1, 2, 3)
    return path


def test_a_scene_becomes_a_class_map_and_a_table_of_windows(
    model: tilewise.Model, scene: Path, tmp_path: Path
) -> None:
    found = model.classify_scene(scene)
    assert (found.name, found.files, found.classes) == ("scene", (), CLASSES)
    assert (found.class_map.shape, found.class_map.dtype) == ((128, 192), np.uint8)
    with rasterio.open(scene) as dataset:
        assert (found.crs, found.transform) == (dataset.crs, dataset.transform)
    assert found.windows.num_rows == 6
    for row in found.windows.to_pylist():
        assert found.classes[found.class_map[row["row"], row["column"]]] == row["class"]
    kept = model.classify_scene(scene, tmp_path / "maps", stride=32)
    assert kept.windows.num_rows == 15
    assert {path.name for path in kept.files} >= {"scene.classes.tif", "scene.stac.json"}
    assert all(path.is_file() for path in kept.files)


def test_a_data_array_is_a_scene_too(model: tilewise.Model, scene: Path) -> None:
    with rasterio.open(scene) as dataset:
        order = [dataset.descriptions.index(band) + 1 for band in BAND_NAMES]
        pixels = dataset.read(order)
    array = data_array(pixels / np.float32(10_000), BAND_NAMES)
    found = model.classify_scene(array, level="L1C", scale=1)
    assert found.name == "field"
    assert found.crs == CRS.from_epsg(32631)
    assert (found.transform.c, found.transform.f) == (500_000, 5_000_000)
    assert (found.class_map == model.classify_scene(scene).class_map).all()


@pytest.fixture(scope="module")
def dataset(scene: Path) -> xr.Dataset:
    """The scene as a Dataset with a variable for each band, lazily computed as far as xarray is."""
    with rasterio.open(scene) as opened:
        order = [opened.descriptions.index(band) + 1 for band in BAND_NAMES]
        array = data_array(opened.read(order), [name.lower() for name in BAND_NAMES])
    return array.to_dataset("band")


def test_a_dataset_with_a_variable_for_each_band_is_a_scene(
    model: tilewise.Model, scene: Path, dataset: xr.Dataset
) -> None:
    found = model.classify_scene(dataset, level="L1C")
    assert (found.crs, found.transform.c, found.transform.f) == (CRS.from_epsg(32631), 500_000, 5_000_000)
    assert (found.class_map == model.classify_scene(scene).class_map).all()
    with_others = dataset.assign(aot=dataset["b02"], time_of_day=((), 7))
    assert (model.classify_scene(with_others, level="L1C").class_map == found.class_map).all()


def test_the_scene_classification_of_a_dataset_masks_its_clouds(
    model: tilewise.Model, dataset: xr.Dataset
) -> None:
    scl = xr.full_like(dataset["b02"], 4, dtype=np.uint8)
    scl[:, :64] = 9  # clouds, high probability
    found = model.classify_scene(dataset.assign(scl=scl), level="L2A")
    assert (found.class_map[:, :64] == 255).all()
    assert (found.class_map[:, 64:] != 255).all()
    kept = model.classify_scene(dataset.assign(scl=scl), level="L2A", clouds="none")
    assert (kept.class_map != 255).all()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda d: d[["b02"]].rename(b02="ndvi"), BandsUnknownError, "no variable .* it has ndvi"),
        (lambda d: d.assign(blue=d["b02"]), UnknownBandError, "a band is named twice"),
        (lambda d: d.assign(b03=d["b03"].expand_dims("time")), TileShapeError, "B03 is not .y, x."),
        (lambda d: d.drop_vars("spatial_ref"), TileShapeError, "a CRS"),
        (lambda d: d.astype("float32"), RadiometryUnknownError, "scale=1 for reflectance"),
    ],
)
def test_a_dataset_that_is_no_scene_says_why(
    model: tilewise.Model, dataset: xr.Dataset, change: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        model.classify_scene(change(dataset), level="L1C")


def test_a_product_in_eopf_zarr_is_classified_in_place_and_as_xarray_eopf_opens_it(
    model: tilewise.Model, scene: Path, tmp_path: Path
) -> None:
    with rasterio.open(scene) as dataset:
        order = [dataset.descriptions.index(band) + 1 for band in BAND_NAMES]
        pixels = dataset.read(order)[:, :120]  # whole pixels of 60 m
    product = write_eopf(tmp_path / NAME, pixels)
    found = model.classify_scene(product, clouds="none")
    expected = model.classify_scene(data_array(pixels, BAND_NAMES), level="L2A", clouds="none")
    assert (found.class_map == expected.class_map).mean() > 0.9  # bands of 20 and 60 m are resampled
    clouded = model.classify_scene(product)
    assert (clouded.class_map[:64, :64] == 255).all()
    assert (clouded.class_map[64:] == found.class_map[64:]).all()
    pytest.importorskip("xarray_eopf")
    opened = xr.open_dataset(str(product), engine="eopf-zarr", resolution=10)
    theirs = model.classify_scene(opened, level="L2A", scale=1, clouds="none")
    assert (theirs.crs, theirs.transform) == (found.crs, found.transform)
    assert (theirs.class_map == found.class_map).mean() > 0.9


def test_a_scene_that_cannot_be_classified_is_an_error(model: tilewise.Model, tmp_path: Path) -> None:
    (tmp_path / "broken.tif").write_bytes(b"II*\x00nothing")
    with pytest.raises(tilewise.TilewiseError, match=r"broken\.tif"):
        model.classify_scene(tmp_path / "broken.tif")
    without_crs = data_array(FOREST.pixels, BAND_NAMES).drop_vars("spatial_ref")
    with pytest.raises(TileShapeError, match="a CRS"):
        model.classify_scene(without_crs, level="L1C")
