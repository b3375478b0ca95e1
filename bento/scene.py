"""A scene larger (or smaller) than a tile, classified window by window.

Windows are squares of the model's tile size on a grid that starts at the scene's upper left corner. The last
row and column are moved inwards, so that they end where the scene ends; a scene smaller than a tile is one
window, the rest of which is no data. A window with too few valid pixels is skipped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rasterio.io import DatasetReader
from rasterio.windows import Window

from bento.engine import Engine
from datasets.errors import TileShapeError
from datasets.geotiff import ReadingPlan, georeference_of, read_dn
from datasets.progress import Report, silent
from datasets.tile import BAND_COUNT, DN, Georeference, valid_mask

NO_CLASS = 255  # in a class map: no data, or a window that was skipped
NEAR_10_M = (8.0, 12.5)  # metres a pixel that networks trained at 10 m still know


@dataclass(frozen=True, slots=True)
class WindowAnswer:
    """What the network says of one window.

    Attributes:
        row, column: of the window's upper left pixel in the scene.
        height, width: of the part of the window that lies in the scene.
        valid_share: share (0-1) of the window's pixels with data in every band of the scene.
        probabilities: float32 (classes,), or None where the window was skipped.
    """

    row: int
    column: int
    height: int
    width: int
    valid_share: float
    probabilities: npt.NDArray[np.float32] | None

    @property
    def class_index(self) -> int:
        """The most probable class, or NO_CLASS."""
        return NO_CLASS if self.probabilities is None else int(self.probabilities.argmax())

    def footprint(self, place: Georeference) -> dict[str, Any] | None:
        """Return the window's outline as GeoJSON in EPSG:4326; None where a part of a sound scene has none."""
        offset = place.transform.translation(self.column, self.row)
        return Georeference(place.crs, place.transform @ offset).footprint(self.width, self.height)


@dataclass(frozen=True, slots=True)
class SceneAnswer:
    """A classified scene.

    Attributes:
        class_map: uint8 (height, width), class positions on the scene's own grid, NO_CLASS elsewhere.
        windows: every window, in reading order.
    """

    class_map: npt.NDArray[np.uint8]
    windows: list[WindowAnswer]


def place_of(dataset: DatasetReader, name: str) -> Georeference:
    """Return where a scene lies.

    Raises:
        TileShapeError: it does not say, or not in a way that leads to longitude and latitude.
    """
    if dataset.crs is None:
        raise TileShapeError(f"{name}: it has no coordinate reference system; set one with gdal_edit.py -a_srs EPSG:…")
    place = georeference_of(dataset)
    if place is None:
        raise TileShapeError(
            f"{name}: its coordinates are missing or lie nowhere on Earth; "
            "set them with gdal_edit.py -a_srs EPSG:… -a_ullr …"
        )
    return place


def check_ground_size(dataset: DatasetReader, name: str) -> None:
    """Refuse a scene whose pixels are not about 10 m: a network knows a class by its texture at one scale.

    Raises:
        TileShapeError: the scene's CRS is no map projection, or its pixels have another size.
    """
    if not dataset.crs.is_projected:
        raise TileShapeError(
            f"{name}: its pixels are measured in degrees, the model wants about 10 m; warp it first: "
            f"gdalwarp -t_srs EPSG:{_utm_zone(dataset)} -tr 10 10 -r cubic"
        )
    _, metres = dataset.crs.linear_units_factor
    size = abs(dataset.transform.determinant) ** 0.5 * metres
    if not NEAR_10_M[0] <= size <= NEAR_10_M[1]:
        step = f"{10 / metres:.6g}"
        raise TileShapeError(
            f"{name}: its pixels measure {size:.3g} m, the model wants about 10 m; "
            f"resample it first: gdalwarp -tr {step} {step} -r cubic"
        )


def classify_scene(
    engine: Engine,
    dataset: DatasetReader,
    plan: ReadingPlan,
    least_valid: float = 0.5,
    progress: Report = silent,
) -> SceneAnswer:
    """Classify an open scene, one row of windows after another.

    Raises:
        UnreadableImageError: a block of the scene cannot be decoded.
    """
    size = engine.metadata.tile_size
    class_map = np.full((dataset.height, dataset.width), NO_CLASS, np.uint8)
    windows: list[WindowAnswer] = []
    rows = starts(dataset.height, size)
    for done, row in enumerate(rows, start=1):
        height = min(size, dataset.height)
        strip = read_dn(dataset, plan, Window(0, row, dataset.width, height))
        valid = valid_mask(strip, plan.bands)
        for answer in _classify_strip(engine, strip, valid, row, least_valid):
            _paint(class_map, valid, answer, row)
            windows.append(answer)
        progress(plan.name, done, len(rows))
    return SceneAnswer(class_map, windows)


def starts(length: int, size: int) -> list[int]:
    """Return where windows of `size` begin along `length` pixels; the last one is moved inwards."""
    if length <= size:
        return [0]
    return [*range(0, length - size, size), length - size]


def _classify_strip(
    engine: Engine, strip: DN, valid: npt.NDArray[np.bool_], row: int, least_valid: float
) -> Iterator[WindowAnswer]:
    """Answer the windows of one strip (13, height <= size, width), from left to right."""
    size = engine.metadata.tile_size
    columns = starts(strip.shape[2], size)
    shares = [float(valid[:, c : c + size].sum()) / size**2 for c in columns]
    # A scene smaller than a tile is judged by what it has, not by what it could never have.
    possible = min(size, strip.shape[1]) * min(size, strip.shape[2]) / size**2
    kept = [i for i, share in enumerate(shares) if share >= least_valid * possible and share > 0]
    tiles = np.zeros((len(kept), BAND_COUNT, size, size), np.uint16)
    for place, index in enumerate(kept):
        part = strip[:, :, columns[index] : columns[index] + size]
        tiles[place, :, : part.shape[1], : part.shape[2]] = part
    answers = dict(zip(kept, engine.classify(tiles).probabilities, strict=True))
    height, width = min(size, strip.shape[1]), min(size, strip.shape[2])
    for index, column in enumerate(columns):
        yield WindowAnswer(row, column, height, width, shares[index] / possible, answers.get(index))


def _paint(class_map: npt.NDArray[np.uint8], valid: npt.NDArray[np.bool_], answer: WindowAnswer, row: int) -> None:
    """Write a window's class where its pixels are valid and no window before it has written."""
    across = slice(answer.column, answer.column + answer.width)
    down = slice(row, row + answer.height)
    free = valid[:, across] & (class_map[down, across] == NO_CLASS)
    class_map[down, across][free] = answer.class_index


def _utm_zone(dataset: DatasetReader) -> int:
    """Return the EPSG code of the UTM zone of the centre of a scene in degrees."""
    longitude, latitude = dataset.transform @ (dataset.width / 2, dataset.height / 2)
    zone = min(max(int((longitude + 180) // 6) + 1, 1), 60)
    return (32600 if latitude >= 0 else 32700) + zone
