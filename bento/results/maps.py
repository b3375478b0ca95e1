"""Maps as Cloud-Optimised GeoTIFFs, taken row by row: memory holds one row of blocks, however large the scene.

The rows go to a temporary tiled GeoTIFF, which GDAL copies to the final form with overviews. What lies on disk in the
end is read back and compared, since GDAL may swallow an error of the disk.
"""

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.io import MemoryFile
from rasterio.shutil import copy as copy_raster
from rasterio.windows import Window

from tilewise.bento.inference.blending import NO_CLASS
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.datasets.core.files import ask_disk, telling_disk_errors
from tilewise.datasets.core.tile import Georeference
from tilewise.models.model_file import ModelMetadata

Colour = tuple[int, int, int]

KNOWN: dict[str, Colour] = {
    "AnnualCrop": (240, 205, 80),
    "Forest": (30, 100, 50),
    "HerbaceousVegetation": (140, 190, 90),
    "Highway": (70, 70, 80),
    "Industrial": (160, 60, 150),
    "Pasture": (90, 160, 60),
    "PermanentCrop": (205, 120, 50),
    "Residential": (215, 60, 60),
    "River": (80, 160, 220),
    "SeaLake": (25, 70, 160),
}
# Paul Tol's "muted" scheme (https://personal.sron.nl/~pault/), for classes of other data sets.
FURTHER: tuple[Colour, ...] = (
    (51, 34, 136),
    (136, 204, 238),
    (68, 170, 153),
    (17, 119, 51),
    (153, 153, 51),
    (221, 204, 119),
    (204, 102, 119),
    (136, 34, 85),
    (170, 68, 153),
)


def colours(classes: Sequence[str]) -> list[Colour]:
    """Return a colour (red, green, blue; 0-255) for each class, in order."""
    return [KNOWN.get(name, FURTHER[index % len(FURTHER)]) for index, name in enumerate(classes)]


_BLOCK = 512


def write_class_map(class_map: npt.NDArray[np.uint8], place: Georeference, metadata: ModelMetadata, path: Path) -> None:
    """Write a class map as Cloud-Optimised GeoTIFF on the scene's grid.

    It has a colour table, overviews by mode, 255 as no data, and the classes' names: as the band's category
    names (in the side-car file where GDAL keeps them) and as the tag CLASSES inside the file.
    """
    profile = {
        "driver": "GTiff",
        "height": class_map.shape[0],
        "width": class_map.shape[1],
        "count": 1,
        "dtype": "uint8",
        "nodata": NO_CLASS,
        "crs": place.crs,
        "transform": place.transform,
    }
    with MemoryFile() as memory, MemoryFile() as cog:
        with memory.open(**profile) as dataset:
            dataset.write(class_map, 1)
            table = {index: (*colour, 255) for index, colour in enumerate(colours(metadata.classes))}
            dataset.write_colormap(1, {**table, NO_CLASS: (0, 0, 0, 0)})
            dataset.set_band_description(1, "class")
            dataset.update_tags(CLASSES=json.dumps(list(metadata.classes)), MODEL=f"{metadata.name} {metadata.version}")
        options = {"COMPRESS": "DEFLATE", "BLOCKSIZE": _BLOCK, "OVERVIEW_RESAMPLING": "MODE"}
        with memory.open() as dataset:
            copy_raster(dataset, cog.name, driver="COG", **options, ADD_ALPHA="NO")
        # Not by GDAL's own hand: it tells of a full disk late and in many ways.
        with whole(path) as partial:
            partial.write_bytes(cog.read())
    with whole(path.with_name(f"{path.name}.aux.xml")) as partial:
        partial.write_text(category_names(metadata.classes), encoding="utf-8")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes `path` only when the block ends well."""
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def category_names(classes: Sequence[str]) -> str:
    """Return the content of the side-car file that GDAL and QGIS read the names of a map's classes from."""
    names = "".join(f"<Category>{escape(name)}</Category>" for name in classes)
    band = f'<PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand>'
    return f"<PAMDataset>{band}</PAMDataset>\n"


BLOCK = 512
STEPS = 250  # a probability of 1 in the maps of probabilities: uint8, steps of 0.004
NO_SHARE = 255
RESULT_TAG = "TILEWISE_RESULT"
MAP_SUFFIXES = (".classes.tif", ".confidence.tif", ".outlier.tif", ".probabilities.tif")
_PACKED = {"COMPRESS": "DEFLATE", "BLOCKSIZE": BLOCK, "ADD_ALPHA": "NO", "BIGTIFF": "IF_SAFER", "NUM_THREADS": "2"}

Rows = npt.NDArray[Any]
"""(bands, rows, width), of the layer's type."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One kind of map.

    Attributes:
        suffix: of its file.
        bands: what each band is called.
        dtype: of its numbers.
        no_data: the number that means none.
        resampling: how overviews are made.
        scale: what a number is multiplied by to get the value.
        palette: colour of each number, where there is a table of colours.
        categories: name of each number, where numbers are classes.
    """

    suffix: str
    bands: tuple[str, ...]
    dtype: str
    no_data: float
    resampling: str = "AVERAGE"
    scale: float = 1.0
    palette: Mapping[int, tuple[int, int, int, int]] = field(default_factory=dict)
    categories: tuple[str, ...] = ()


def class_layer(metadata: ModelMetadata) -> Layer:
    """The class of each pixel: uint8, position in the model's classes."""
    palette = {index: (*colour, 255) for index, colour in enumerate(colours(metadata.classes))}
    return Layer(
        suffix=".classes.tif",
        bands=("class",),
        dtype="uint8",
        no_data=NO_CLASS,
        resampling="MODE",
        palette={**palette, NO_CLASS: (0, 0, 0, 0)},
        categories=metadata.classes,
    )


def confidence_layer(_: ModelMetadata) -> Layer:
    """The probability of each pixel's class: uint8 in steps of 1 / STEPS."""
    return Layer(".confidence.tif", ("confidence",), "uint8", NO_SHARE, scale=1 / STEPS)


def outlier_layer(_: ModelMetadata) -> Layer:
    """How unlike the training data each pixel's window is: float32."""
    return Layer(".outlier.tif", ("outlier_score",), "float32", float("nan"))


def probability_layer(metadata: ModelMetadata) -> Layer:
    """The probability of every class: one uint8 band a class in steps of 1 / STEPS."""
    return Layer(".probabilities.tif", metadata.classes, "uint8", NO_SHARE, scale=1 / STEPS)


def to_steps(shares: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Return probabilities (0-1, NaN where there is none) as uint8: STEPS is 1, NO_SHARE is none."""
    steps = np.full(shares.shape, NO_SHARE, np.uint8)
    known = np.isfinite(shares)
    steps[known] = np.rint(shares[known] * STEPS).astype(np.uint8)
    return steps


class MapWriter:
    """Takes a layer's rows from top to bottom, and makes a file of them.

    Args:
        folder: that the file is made in.
        frame: the scene's grid.
        layer: what the rows hold.
        tags: further GeoTIFF tags.
    """

    def __init__(self, folder: Path, scene_info: SceneInfo, layer: Layer, tags: Mapping[str, str]) -> None:
        self.path = folder / (scene_info.name + layer.suffix)
        self._raw = folder / f".{self.path.name}.raw"
        self._layer, self._scene_info = layer, scene_info
        self._rows: list[Rows] = []
        self._held = self._written = 0
        self._sums = [_Sum(layer.no_data) for _ in layer.bands]
        self._checks: list[int] = []
        profile: dict[str, Any] = {
            "driver": "GTiff",
            "height": scene_info.height,
            "width": scene_info.width,
            "count": len(layer.bands),
            "dtype": layer.dtype,
            "nodata": layer.no_data,
            "crs": scene_info.place.crs,
            "transform": scene_info.place.transform,
        }
        tiles = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "interleave": "band", "bigtiff": "IF_SAFER"}
        with telling_disk_errors(self._raw):
            self._file = rasterio.open(self._raw, "w", **profile, **tiles, compress="zstd", zstd_level=1)
            self._describe(tags)

    def add(self, rows: Rows) -> None:
        """Take the next rows.

        Raises:
            OSError: the disk does not take them.
        """
        self._rows.append(rows)
        self._held += rows.shape[1]
        while self._held >= BLOCK:
            self._flush(BLOCK)

    def finish(self) -> list[Path]:
        """Make the file, when all rows were taken; return it and what lies beside it.

        Raises:
            OSError: the disk does not take it.
        """
        self._flush(self._held)
        assert self._written == self._scene_info.height  # noqa: S101 - blocks cover the scene
        with telling_disk_errors(self._raw):
            for band, total in enumerate(self._sums, start=1):
                self._file.update_tags(band, **total.tags())
            self._file.close()
        options = {**_PACKED, "OVERVIEW_RESAMPLING": self._layer.resampling}
        with telling_disk_errors(self.path):
            copy_raster(self._raw, self.path, driver="COG", **options)
        self._raw.unlink()
        self._compare()
        return [self.path, *self._name_categories()]

    def close(self) -> None:
        """Give up what is not finished; the folder is the caller's to remove."""
        with suppress(OSError), telling_disk_errors(self._raw):
            self._file.close()

    def _describe(self, tags: Mapping[str, str]) -> None:
        layer = self._layer
        self._file.update_tags(**{RESULT_TAG: layer.suffix.split(".")[1], **tags})
        self._file.descriptions = layer.bands
        if layer.palette:
            self._file.write_colormap(1, dict(layer.palette))
            self._file.update_tags(CLASSES=json.dumps(layer.categories))
        if layer.scale != 1:
            self._file.scales = (layer.scale,) * len(layer.bands)

    def _flush(self, count: int) -> None:
        """Write the first `count` of the rows that are held."""
        if not count:
            return
        held = np.concatenate(self._rows, axis=1)
        rows, rest = np.ascontiguousarray(held[:, :count]), held[:, count:]
        self._rows = [rest] if rest.shape[1] else []
        self._held -= count
        for band, total in zip(rows, self._sums, strict=True):
            total.add(band)
        self._checks.append(zlib.crc32(rows.data))
        with telling_disk_errors(self._raw):
            self._file.write(rows, window=Window(0, self._written, self._scene_info.width, count))
        self._written += count

    def _compare(self) -> None:
        """Read the file back; raises OSError where it holds anything else than was written."""
        try:
            with rasterio.open(self.path) as made:
                for index, check in enumerate(self._checks):
                    height = min(BLOCK, self._scene_info.height - index * BLOCK)
                    rows = made.read(window=Window(0, index * BLOCK, self._scene_info.width, height))
                    if zlib.crc32(np.ascontiguousarray(rows).data) != check:
                        raise ask_disk(self.path)
                levels = range(len(made.overviews(1)))
            for level in levels:
                with rasterio.open(self.path, overview_level=level) as overview:
                    for _, window in overview.block_windows(1):
                        overview.read(1, window=window)
        except rasterio.errors.RasterioError as error:
            raise ask_disk(self.path) from error

    def _name_categories(self) -> list[Path]:
        if not self._layer.categories:
            return []
        beside = self.path.with_name(f"{self.path.name}.aux.xml")
        beside.write_text(category_names(self._layer.categories), encoding="utf-8")
        return [beside]


class _Sum:
    """The statistics of a band, as GDAL keeps them in the file: of its numbers, without scale."""

    def __init__(self, no_data: float) -> None:
        self._no_data = no_data
        self._count = self._pixels = 0
        self._total = self._squares = 0.0
        self._minimum, self._limit = np.inf, -np.inf

    def add(self, numbers: npt.NDArray[Any]) -> None:
        """Take more of the band's numbers."""
        self._pixels += numbers.size
        known = numbers[np.isfinite(numbers)] if np.isnan(self._no_data) else numbers[numbers != self._no_data]
        if not known.size:
            return
        self._count += known.size
        self._total += float(known.sum(dtype=np.float64))
        self._squares += float(np.square(known, dtype=np.float64).sum())
        self._minimum, self._limit = min(self._minimum, float(known.min())), max(self._limit, float(known.max()))

    def tags(self) -> dict[str, str]:
        """Return them under GDAL's names; none where no number is known."""
        if not self._count:
            return {}
        mean = self._total / self._count
        spread = max(self._squares / self._count - mean**2, 0.0) ** 0.5
        return {
            "STATISTICS_MINIMUM": f"{self._minimum:.10g}",
            "STATISTICS_MAXIMUM": f"{self._limit:.10g}",
            "STATISTICS_MEAN": f"{mean:.10g}",
            "STATISTICS_STDDEV": f"{spread:.10g}",
            "STATISTICS_VALID_PERCENT": f"{100 * self._count / self._pixels:.4g}",
        }
