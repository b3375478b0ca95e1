"""Clouds found in pixels alone, against the masks that come with real scenes (docs/decisions/0032).

    python benchmarks/clouds.py DATA          # measures the tables in datasets/scenes/clouds.py
    python benchmarks/clouds.py DATA --fit    # fits them anew and prints them; needs scikit-learn

DATA is the folder of real data: `scenes/lahinch_l1c`, `scenes/waterville_l1c` (cloud: probability of 50 % or
more), `scenes/safe_l2a` (cloud: SCL classes 8, 9, 10, at 60 m), `EuroSAT_MS.zip` with its published spatial
lists, and `l2a_unlabelled.npz`. The last two are taken for clear, though a few of their tiles are not.

Fitted on: Lahinch; every other band of 110 rows of the SAFE product; EuroSAT's training list; every other
Level-2A tile. Measured on what is left: Waterville, the other bands of rows, the validation list, the other
tiles.

A window is 64 pixels at 10 m, 11 pixels of the SAFE product, 16 of Waterville, which is smaller than a tile.
It is cloudy where more than 30 % of its valid pixels are, by the mask or by the detector.
"""

import argparse
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.windows import Window

from tilewise.datasets.core.bands import BAND_NAMES, EUROSAT_MS_ORDER, L2A_BANDS, positions
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.core.tile import DN, place_bands
from tilewise.datasets.readers.geotiff import read_bands
from tilewise.datasets.scenes import SceneOptions, find_scenes
from tilewise.datasets.scenes.clouds import (
    TABLES,
    CloudWeights,
    darkest_of,
    difference_to_red,
    log_odds,
    read_inputs,
)
from tilewise.datasets.scenes.rasters import open_raster, scene_gdal
from tilewise.datasets.scenes.safe import read_safe

LIMIT = 0.3  # of a window's pixels
# Of each kind of clear windows that the tables are fitted on. EuroSAT's Level-1C tiles are clear but for a
# few; of the SAFE product's windows many have up to 30 % of cloud.
MAX_FALSE = {Level.L1C: 0.015, Level.L2A: 0.045}
BAND_SETS = (("B02", "B03", "B04", "NIR", "B11"), ("B02", "B03", "B04", "NIR"), ("B02", "B03", "B04"))
ROWS = 110  # of the SAFE product: ten windows
SAMPLES = 40_000  # pixels of each kind

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Area:
    """Pixels whose clouds are known.

    Attributes:
        name: row of the table.
        level: processing level.
        bands: canonical names.
        pixels: uint16 (13, height, width).
        cloud: bool (height, width), by the mask.
        side: pixels of a window.
        fitted: whether the tables are fitted on it.
    """

    name: str
    level: Level
    bands: tuple[str, ...]
    pixels: DN
    cloud: Mask
    side: int
    fitted: bool

    @property
    def valid(self) -> Mask:
        return np.asarray((self.pixels[positions(("B02", "B03", "B04", "B11"))] > 0).all(axis=0))


def read_areas(data: Path) -> list[Area]:
    return [
        *_read_gee(data / "scenes" / "lahinch_l1c", "Lahinch", 64, fitted=True),
        *_read_gee(data / "scenes" / "waterville_l1c", "Waterville", 16, fitted=False),
        *_read_product(next((data / "scenes" / "safe_l2a").glob("*.SAFE"))),
        *_read_eurosat(data),
        *_read_unlabelled(data / "l2a_unlabelled.npz"),
    ]


def _read_gee(folder: Path, name: str, side: int, *, fitted: bool) -> Iterator[Area]:
    for source in find_scenes([folder], SceneOptions(ReadOptions(scale=1e-4, offset=0), clouds=None)):
        with source.open() as scene, rasterio.open(source.paths[0]) as dataset:
            pixels = scene.read(Window(0, 0, scene.width, scene.height))
            cloud = np.nan_to_num(dataset.read(15)) >= 50
            yield Area(name, Level.L1C, scene.bands, pixels, cloud, side, fitted)


def _read_product(folder: Path) -> Iterator[Area]:
    """Yield the SAFE product's bands of rows at 60 m."""
    layers = read_safe(folder, SceneOptions(clouds=None)).layers
    pixels = np.zeros((len(BAND_NAMES), layers[0].grid.height, layers[0].grid.width), np.uint16)
    with scene_gdal():
        for layer in layers:
            with open_raster(layer.source) as dataset:
                pixels[positions(layer.plan.bands)] = read_bands(dataset, layer.plan)
    (path,) = folder.glob("GRANULE/*/IMG_DATA/R60m/*_SCL_60m.jp2")
    with rasterio.open(path) as dataset:
        cloud = np.isin(dataset.read(1), (8, 9, 10))
    bands = tuple(band for layer in layers for band in layer.plan.bands)
    for number, top in enumerate(range(0, len(cloud), ROWS)):
        part = np.s_[top : top + ROWS]
        yield Area("SAFE product", Level.L2A, bands, pixels[:, part], cloud[part], 11, number % 2 == 0)


def _read_eurosat(data: Path) -> Iterator[Area]:
    listed = (data / "splits" / "eurosat-spatial-val.txt").read_text().split()
    held_out = {Path(name).stem for name in listed}
    tiles: dict[bool, list[DN]] = {True: [], False: []}
    with zipfile.ZipFile(data / "EuroSAT_MS.zip") as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".tif")):
            with rasterio.open(f"/vsizip/{data / 'EuroSAT_MS.zip'}/{name}") as dataset:
                fitted = Path(name).stem not in held_out
                tiles[fitted].append(place_bands(dataset.read(), EUROSAT_MS_ORDER))
    for fitted, found in tiles.items():
        yield _of_clear_tiles("EuroSAT", Level.L1C, BAND_NAMES, found, fitted=fitted)


def _read_unlabelled(path: Path) -> Iterator[Area]:
    with np.load(path) as arrays:
        tiles = [place_bands(tile, L2A_BANDS) for tile in arrays["tiles"]]
    for fitted in (True, False):
        yield _of_clear_tiles("unlabelled tiles", Level.L2A, L2A_BANDS, tiles[not fitted :: 2], fitted=fitted)


def _of_clear_tiles(
    name: str, level: Level, bands: tuple[str, ...], tiles: Sequence[DN], *, fitted: bool
) -> Area:
    pixels = np.concatenate(tiles, axis=2)
    return Area(name, level, bands, pixels, np.zeros(pixels.shape[1:], bool), 64, fitted)


@dataclass(frozen=True)
class Windows:
    """Windows of one name and level, half of whose pixels are valid.

    Attributes:
        cloudy: bool (n,), by the mask.
        odds: float32 (n,), the largest log-odds that more than LIMIT of the valid pixels reach: with a bias
            above the negative of it the detector takes the window for cloudy.
    """

    cloudy: Mask
    odds: npt.NDArray[np.float32]


def read_windows(area: Area, odds: npt.NDArray[np.float32]) -> Windows:
    valid = _cut(area.valid, area.side, False)
    count = valid.sum(axis=1)
    kept = count > area.side**2 / 2
    cloud = (_cut(area.cloud, area.side, False) & valid).sum(axis=1)
    ordered = np.sort(np.where(valid, _cut(odds, area.side, -np.inf), -np.inf), axis=1)[:, ::-1]
    at_limit = np.take_along_axis(ordered, (LIMIT * count).astype(int)[:, None], axis=1)[:, 0]
    return Windows((cloud > LIMIT * count)[kept], at_limit[kept])


def _cut(values: npt.NDArray[Any], side: int, fill: Any) -> npt.NDArray[Any]:
    """Return (windows, side * side); what is left over at the edges is cut off, what is missing filled."""
    height, width = (max(length - length % side, side) for length in values.shape)
    padded = np.full((height, width), fill, values.dtype)
    part = values[:height, :width]
    padded[: part.shape[0], : part.shape[1]] = part
    blocks = padded.reshape(height // side, side, width // side, side).swapaxes(1, 2)
    return np.asarray(blocks.reshape(-1, side * side))


Kinds = dict[tuple[str, Level, bool], Windows]
"""By name, level and whether the tables are fitted on it."""


def measure(areas: Sequence[Area], table: CloudWeights) -> Kinds:
    found: dict[tuple[str, Level, bool], list[Windows]] = {}
    for area in areas:
        windows = read_windows(area, log_odds(area.pixels, area.bands, table))
        found.setdefault((area.name, area.level, area.fitted), []).append(windows)
    return {
        key: Windows(np.concatenate([w.cloudy for w in each]), np.concatenate([w.odds for w in each]))
        for key, each in found.items()
    }


def _inputs(area: Area, chosen: npt.NDArray[np.intp], names: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """Return (pixels, inputs) in the order of a table's weights."""
    pixels = area.pixels.reshape(len(BAND_NAMES), 1, -1)[:, :, chosen]
    values = read_inputs(pixels, area.bands, names)
    differences = [difference_to_red(values, name) for name in names if name != "B04"]
    columns = [*values.values(), darkest_of(values), *differences]
    return np.stack([column[0] for column in columns], axis=1).astype(np.float64)


def fit(areas: Sequence[Area], names: tuple[str, ...]) -> CloudWeights:
    """Fit a logistic regression on pixels, then choose each level's threshold."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    fitted = [area for area in areas if area.fitted]
    inputs, labels = [], []
    for area in fitted:
        per_area = SAMPLES // sum(other.name == area.name for other in fitted)
        for label in (False, True):
            here = np.flatnonzero((area.valid & (area.cloud == label)).ravel())
            chosen = rng.choice(here, min(per_area, len(here)), replace=False)
            inputs.append(_inputs(area, chosen, names))
            labels.append(np.full(len(chosen), label))
    x, y = np.concatenate(inputs), np.concatenate(labels)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    model = LogisticRegression(max_iter=3000, class_weight="balanced")
    model.fit((x - mean) / deviation, y)
    weights = model.coef_[0] / deviation
    bias = float(model.intercept_[0] - weights @ mean)
    return _at_its_thresholds(fitted, _table(names, weights, bias))


def _table(names: tuple[str, ...], weights: npt.NDArray[np.float64], bias: float) -> CloudWeights:
    rounded = [round(float(weight), 3) for weight in weights]
    count = len(names)
    others = [name for name in names if name != "B04"]
    return CloudWeights(
        dict.fromkeys(Level, round(bias, 3)),
        dict(zip(names, rounded[:count], strict=True)),
        rounded[count],
        dict(zip(others, rounded[count + 1 :], strict=True)),
    )


def _at_its_thresholds(fitted: Sequence[Area], table: CloudWeights) -> CloudWeights:
    """Return the table with the largest biases at which no kind of clear window is flagged too often."""
    limits: dict[Level, float] = {}
    for (_, level, _), windows in measure(fitted, table).items():
        others = np.sort(windows.odds[~windows.cloudy])[::-1]
        highest = float(others[int(MAX_FALSE[level] * len(others))])
        limits[level] = max(limits.get(level, -np.inf), highest)
    return replace(table, bias={level: round(-limit, 3) for level, limit in limits.items()})


def print_rows(areas: Sequence[Area], table: CloudWeights) -> None:
    print(f"\n{', '.join(table.reflectance)}\n")
    print("| windows of | fitted on | cloudy | caught | other | flagged |")
    print("|---|---|---:|---:|---:|---:|")
    rows = {}
    for (name, level, fitted), windows in measure(areas, table).items():
        flagged, cloudy = windows.odds > -table.bias[level], windows.cloudy
        counts = [cloudy.sum(), (cloudy & flagged).sum(), (~cloudy).sum(), (~cloudy & flagged).sum()]
        rows[f"{name}, {level}", "yes" if fitted else "no"] = np.array(counts)
    rows["all that is held out", "no"] = np.sum([row for (_, f), row in rows.items() if f == "no"], axis=0)
    for (label, fit_on), (cloudy, caught, others, wrong) in rows.items():
        share = [f"{100 * a / b:.1f} %" if b else "–" for a, b in ((caught, cloudy), (wrong, others))]
        print(f"| {label} | {fit_on} | {cloudy:,} | {share[0]} | {others:,} | {share[1]} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--fit", action="store_true")
    arguments: Any = parser.parse_args()
    areas = read_areas(arguments.data)
    tables = tuple(fit(areas, names) for names in BAND_SETS) if arguments.fit else TABLES
    for table in tables:
        if arguments.fit:
            print(table)
        print_rows(areas, table)


if __name__ == "__main__":
    main()
