"""Maps of classified scenes as Cloud-Optimised GeoTIFFs (COG), written row by row.

Memory holds one row of blocks, however large the scene is. Rows go to a temporary tiled GeoTIFF, which GDAL
copies to the final COG with overviews. The finished file is read back and compared, because GDAL may swallow
disk errors.
"""

import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.features import sieve
from rasterio.shutil import copy as copy_raster
from rasterio.windows import Window

from tilewise.bento.inference.blending import NO_CLASS, OUT_OF_DISTRIBUTION
from tilewise.bento.inference.window_grid import SceneInfo
from tilewise.datasets.core.files import ask_disk, telling_disk_errors
from tilewise.models.class_colours import Colour, colours
from tilewise.models.model_file import ModelMetadata

UNLIKE = "out_of_distribution"
"""Name of what is unlike the training data, beside the names of classes."""
UNLIKE_COLOUR: Colour = (175, 175, 175)

BLOCK = 512  # pixels a side of the blocks inside the files
STEPS = 250  # a probability of 1 in the maps of probabilities: uint8, steps of 0.004
NO_PROBABILITY = 255
RESULT_TAG = "TILEWISE_RESULT"
MAP_SUFFIXES = (".classes.tif", ".probability.tif", ".outlier.tif", ".probabilities.tif")
_PACKED = {
    "COMPRESS": "DEFLATE",
    "BLOCKSIZE": BLOCK,
    "ADD_ALPHA": "NO",
    "BIGTIFF": "IF_SAFER",
    "NUM_THREADS": "2",
}

Rows = npt.NDArray[Any]
"""(bands, rows, width), of the map's data type."""


@dataclass(frozen=True, slots=True)
class MapSpec:
    """How one kind of map is stored.

    Attributes:
        suffix: of the file name.
        bands: band descriptions.
        dtype: NumPy name of the data type.
        no_data: the number that means no value.
        resampling: GDAL's name of how overviews are made.
        scale: factor from stored numbers to values.
        palette: RGBA colour of each number; empty: no colour table.
        categories: class name of each number; empty: numbers are no classes.
    """

    suffix: str
    bands: tuple[str, ...]
    dtype: str
    no_data: float
    resampling: str = "AVERAGE"
    scale: float = 1.0
    palette: Mapping[int, tuple[int, int, int, int]] = field(default_factory=dict)
    categories: tuple[str, ...] = ()


def class_spec(metadata: ModelMetadata) -> MapSpec:
    """Describe the map of classes: uint8, index in the model's classes, or OUT_OF_DISTRIBUTION."""
    palette = {index: (*colour, 255) for index, colour in enumerate(colours(metadata.classes))}
    return MapSpec(
        suffix=".classes.tif",
        bands=("class",),
        dtype="uint8",
        no_data=NO_CLASS,
        resampling="MODE",
        palette={**palette, OUT_OF_DISTRIBUTION: (*UNLIKE_COLOUR, 255), NO_CLASS: (0, 0, 0, 0)},
        categories=metadata.classes,
    )


def probability_spec(_: ModelMetadata) -> MapSpec:
    """Describe the map of the answered class's probability: uint8 in steps of 1 / STEPS."""
    return MapSpec(".probability.tif", ("probability",), "uint8", NO_PROBABILITY, scale=1 / STEPS)


def outlier_spec(_: ModelMetadata) -> MapSpec:
    """Describe the map of outlier scores: float32, larger for windows unlike the training data."""
    return MapSpec(".outlier.tif", ("outlier_score",), "float32", float("nan"))


def probabilities_spec(metadata: ModelMetadata) -> MapSpec:
    """Describe the map of all classes' probabilities: one uint8 band a class in steps of 1 / STEPS."""
    return MapSpec(".probabilities.tif", metadata.classes, "uint8", NO_PROBABILITY, scale=1 / STEPS)


def to_steps(probabilities: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Return probabilities (0-1, NaN: none) as uint8 steps: STEPS means 1, NO_PROBABILITY means none."""
    steps = np.full(probabilities.shape, NO_PROBABILITY, np.uint8)
    known = np.isfinite(probabilities)
    steps[known] = np.rint(probabilities[known] * STEPS).astype(np.uint8)
    return steps


def category_names(names: Mapping[int, str]) -> str:
    """Return the `.aux.xml` content from which GDAL and QGIS read the names of a map's numbers."""
    every = (names.get(number, "") for number in range(max(names) + 1))
    categories = "".join(f"<Category>{escape(name)}</Category>" for name in every)
    band = f'<PAMRasterBand band="1"><CategoryNames>{categories}</CategoryNames></PAMRasterBand>'
    return f"<PAMDataset>{band}</PAMDataset>\n"


def qgis_style(legend: Mapping[int, tuple[str, Colour]]) -> str:
    """Return the style of a map for QGIS, which loads `NAME.qml` with `NAME.tif` by itself.

    The form is that of QgsPalettedRasterRenderer.

    Args:
        legend: name and colour of each number that means something.
    """
    entries = "".join(
        f'<paletteEntry value="{value}" alpha="255" color="#{red:02x}{green:02x}{blue:02x}" '
        f"label={quoteattr(name)}/>"
        for value, (name, (red, green, blue)) in legend.items()
    )
    renderer = f'<rasterrenderer type="paletted" band="1" opacity="1"><colorPalette>{entries}</colorPalette>'
    return (
        "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
        f'<qgis version="3.22"><pipe>{renderer}</rasterrenderer></pipe></qgis>\n'
    )


def model_tags(metadata: ModelMetadata, sha256: str) -> dict[str, str]:
    """Return the GeoTIFF tags that name the model of a map."""
    tags = {"MODEL": f"{metadata.name} {metadata.version}", "MODEL_SHA256": sha256}
    return {**tags, **({"TILEWISE_SYNTHETIC_MODEL": "yes"} if metadata.synthetic else {})}


class MapWriter:
    """Write one map as a COG from rows that come from top to bottom.

    Args:
        folder: where the file is made.
        scene_info: the map's grid, and the stem of its file name.
        spec: how the map is stored.
        tags: further GeoTIFF tags.
        min_pixels: of a map of classes: smaller patches get the class of their largest neighbour.
    """

    def __init__(
        self,
        folder: Path,
        scene_info: SceneInfo,
        spec: MapSpec,
        tags: Mapping[str, str],
        *,
        min_pixels: int = 1,
    ) -> None:
        self._min_pixels = min_pixels
        self.path = folder / (scene_info.name + spec.suffix)
        self._raw = folder / f".{self.path.name}.raw"
        self._spec, self._scene_info = spec, scene_info
        self._rows: list[Rows] = []
        self._held = self._written = 0
        self._statistics = [_BandStatistics(spec.no_data) for _ in spec.bands]
        self._checksums: list[int] = []
        profile: dict[str, Any] = {
            "driver": "GTiff",
            "height": scene_info.height,
            "width": scene_info.width,
            "count": len(spec.bands),
            "dtype": spec.dtype,
            "nodata": spec.no_data,
            "crs": scene_info.georeference.crs,
            "transform": scene_info.georeference.transform,
        }
        tiles = {
            "tiled": True,
            "blockxsize": BLOCK,
            "blockysize": BLOCK,
            "interleave": "band",
            "bigtiff": "IF_SAFER",
        }
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
        """Make the COG once all rows were added; return it and its side-car files, if it has any.

        Raises:
            OSError: the disk does not take it, or it reads back differently.
        """
        self._flush(self._held)
        assert self._written == self._scene_info.height  # noqa: S101 - blocks cover the scene
        with telling_disk_errors(self._raw):
            if self._min_pixels > 1:
                self._sieve()
            for band, statistics in enumerate(self._statistics, start=1):
                self._file.update_tags(band, **statistics.tags())
            self._file.close()
        options = {**_PACKED, "OVERVIEW_RESAMPLING": self._spec.resampling}
        with telling_disk_errors(self.path):
            copy_raster(self._raw, self.path, driver="COG", **options)
        self._raw.unlink()
        self._verify()
        return [self.path, *self._write_side_cars()]

    def close(self) -> None:
        """Give up an unfinished map; the caller removes the folder."""
        with suppress(OSError), telling_disk_errors(self._raw):
            self._file.close()

    def _describe(self, tags: Mapping[str, str]) -> None:
        spec = self._spec
        self._file.update_tags(**{RESULT_TAG: spec.suffix.split(".")[1], **tags})
        self._file.descriptions = spec.bands
        if spec.palette:
            self._file.write_colormap(1, dict(spec.palette))
            self._file.update_tags(CLASSES=json.dumps(spec.categories))
        if spec.scale != 1:
            self._file.scales = (spec.scale,) * len(spec.bands)

    def _flush(self, count: int) -> None:
        """Write the first `count` of the rows that are held."""
        if not count:
            return
        held = np.concatenate(self._rows, axis=1)
        rows, rest = np.ascontiguousarray(held[:, :count]), held[:, count:]
        self._rows = [rest] if rest.shape[1] else []
        self._held -= count
        self._write(rows)

    def _write(self, rows: Rows) -> None:
        """Write whole rows below those that were written."""
        for band, statistics in zip(rows, self._statistics, strict=True):
            statistics.add(band)
        self._checksums.append(zlib.crc32(np.ascontiguousarray(rows).data))
        with telling_disk_errors(self._raw):
            window = Window(0, self._written, self._scene_info.width, rows.shape[1])
            self._file.write(rows, window=window)
        self._written += rows.shape[1]

    def _verify(self) -> None:
        """Read the finished file back; raise OSError if rows differ or an overview cannot be decoded."""
        try:
            with rasterio.open(self.path) as made:
                for index, checksum in enumerate(self._checksums):
                    height = min(BLOCK, self._scene_info.height - index * BLOCK)
                    rows = made.read(window=Window(0, index * BLOCK, self._scene_info.width, height))
                    if zlib.crc32(np.ascontiguousarray(rows).data) != checksum:
                        raise ask_disk(self.path)
                levels = range(len(made.overviews(1)))
            for level in levels:
                with rasterio.open(self.path, overview_level=level) as overview:
                    for _, window in overview.block_windows(1):
                        overview.read(1, window=window)
        except rasterio.errors.RasterioError as error:
            raise ask_disk(self.path) from error

    def _write_side_cars(self) -> list[Path]:
        """Write the class names for GDAL and the style for QGIS, where numbers are classes."""
        classes = self._spec.categories
        if not classes:
            return []
        named = {**dict(enumerate(classes)), OUT_OF_DISTRIBUTION: UNLIKE}
        legend = dict(enumerate(zip(classes, colours(classes), strict=True)))
        legend[OUT_OF_DISTRIBUTION] = ("unlike the training data", UNLIKE_COLOUR)
        names, style = self.path.with_name(f"{self.path.name}.aux.xml"), self.path.with_suffix(".qml")
        names.write_text(category_names(named), encoding="utf-8")
        style.write_text(qgis_style(legend), encoding="utf-8")
        return [names, style]

    def _sieve(self) -> None:
        """Give patches of fewer than `min_pixels` the class of their largest neighbour, by GDAL's sieve.

        A patch is of pixels that share an edge; what has no class is neither changed nor given to others. All
        of the map is in memory, three bytes a pixel.
        """
        self._file.close()
        with rasterio.open(self._raw) as dataset:
            numbers = dataset.read(1)
        kept = sieve(numbers, self._min_pixels, mask=numbers < OUT_OF_DISTRIBUTION, connectivity=4)
        self._statistics, self._checksums, self._written = [_BandStatistics(self._spec.no_data)], [], 0
        self._file = rasterio.open(self._raw, "r+")
        for top in range(0, len(kept), BLOCK):
            self._write(kept[None, top : top + BLOCK])


def count_numbers(path: Path) -> npt.NDArray[np.int64]:
    """Return int64 (256,): how many pixels of a finished map of uint8 have each number."""
    counts = np.zeros(256, np.int64)
    with rasterio.open(path) as dataset:
        for _, window in dataset.block_windows(1):
            counts += np.bincount(dataset.read(1, window=window).ravel(), minlength=256)
    return counts


class _BandStatistics:
    """The statistics of a band as GDAL keeps them in the file: of its stored numbers, without scale."""

    def __init__(self, no_data: float) -> None:
        self._no_data = no_data
        self._count = self._pixels = 0
        self._sum = self._squares = 0.0
        self._minimum, self._maximum = np.inf, -np.inf

    def add(self, numbers: npt.NDArray[Any]) -> None:
        """Take more of the band's numbers."""
        self._pixels += numbers.size
        known = (
            numbers[np.isfinite(numbers)] if np.isnan(self._no_data) else numbers[numbers != self._no_data]
        )
        if not known.size:
            return
        self._count += known.size
        self._sum += float(known.sum(dtype=np.float64))
        self._squares += float(np.square(known, dtype=np.float64).sum())
        self._minimum, self._maximum = (
            min(self._minimum, float(known.min())),
            max(self._maximum, float(known.max())),
        )

    def tags(self) -> dict[str, str]:
        """Return the statistics under GDAL's names; empty where no number is known."""
        if not self._count:
            return {}
        mean = self._sum / self._count
        deviation = max(self._squares / self._count - mean**2, 0.0) ** 0.5
        return {
            "STATISTICS_MINIMUM": f"{self._minimum:.10g}",
            "STATISTICS_MAXIMUM": f"{self._maximum:.10g}",
            "STATISTICS_MEAN": f"{mean:.10g}",
            "STATISTICS_STDDEV": f"{deviation:.10g}",
            "STATISTICS_VALID_PERCENT": f"{100 * self._count / self._pixels:.4g}",
        }
