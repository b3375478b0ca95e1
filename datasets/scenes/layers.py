"""The layers of a scene: rasters of bands as DN, and the raster of its cloud mask."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rasterio.crs import CRS
from rasterio.io import DatasetReader

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.errors import SceneError
from tilewise.datasets.core.radiometry import FileFacts, Level, ReadOptions, decide_radiometry
from tilewise.datasets.readers.geotiff import ReadingPlan
from tilewise.datasets.scenes.ground import Grid, grid_of
from tilewise.datasets.scenes.options import CloudKind, CloudMask
from tilewise.datasets.scenes.rasters import name_of, open_raster

SCL_CLOUDS = (3, 8, 9, 10)  # shadow, cloud of medium and high probability, thin cirrus (L2A ATBD, table 3)
_QA60_CLOUDS = (1 << 10) | (1 << 11)  # opaque clouds and cirrus


@dataclass(frozen=True, slots=True)
class Layer:
    """Some bands of a scene in one raster.

    Attributes:
        source: its path or URL.
        plan: which of its bands are read, and how their numbers become DN.
        grid: its own grid.
        block: (height, width) of its blocks.
    """

    source: str | Path
    plan: ReadingPlan
    grid: Grid
    block: tuple[int, int]


@dataclass(frozen=True, slots=True)
class CloudLayer:
    """The raster of a cloud mask.

    Attributes:
        source: its path or URL.
        indexes: 1-based raster bands; a pixel is cloud where any of them marks it.
        mask: meaning of their numbers.
        grid: its own grid.
        flags: its bands are 0 or 1 (MSK_CLASSI), instead of QA60's bits.
    """

    source: str | Path
    indexes: tuple[int, ...]
    mask: CloudMask
    grid: Grid
    flags: bool = False

    def is_cloud(self, numbers: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
        """Return bool (height, width) for `numbers` (bands, height, width); unknown numbers are cloud."""
        known = np.isfinite(numbers)
        values = np.where(known, numbers, 0)
        if self.mask.kind is CloudKind.SCL:
            clouds = np.isin(values, SCL_CLOUDS)
        elif self.mask.kind is CloudKind.QA60:
            clouds = values != 0 if self.flags else (values.astype(np.int64) & _QA60_CLOUDS) != 0
        else:
            clouds = values >= self.mask.percent
        return np.asarray((clouds | ~known).any(axis=0))


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a scene that a reader found.

    Attributes:
        layers: its bands.
        clouds: its cloud mask; None where none was requested, or none was found by CloudKind.AUTO.
        level: processing level.
        taken: acquisition time, UTC; None: unknown.
        platform: satellite; None: unknown.
    """

    layers: tuple[Layer, ...]
    clouds: CloudLayer | None
    level: Level | None
    taken: datetime | None = None
    platform: str | None = None


@dataclass(frozen=True, slots=True)
class BandFile:
    """A raster with one band, according to its name or to metadata beside it.

    Attributes:
        source: path or URL.
        band: canonical name.
        tags: metadata of this band from elsewhere than the raster.
        index: 1-based raster band.
        scale, offset: from that metadata: reflectance per unit, and the offset added to reflectance.
        no_data: no-data value from that metadata.
        crs: from that metadata, where the raster has none itself.
    """

    source: str | Path
    band: str
    tags: Mapping[str, str]
    index: int = 1
    scale: float | None = None
    offset: float | None = None
    no_data: float | None = None
    crs: CRS | None = None


def layer_of_band(
    file: BandFile, name: str, bands: tuple[str, ...], options: ReadOptions
) -> tuple[Layer, Level]:
    """Return the layer of a raster with one of the `bands` of the scene `name`, and its processing level.

    Raises:
        RadiometryUnknownError: level, scale or offset are neither in any metadata nor given.
        UnreadableImageError: the raster cannot be opened.
    """
    with open_raster(file.source) as dataset:
        scale, offset = _declared(dataset, file)
        tags = {**dataset.tags(), **file.tags}
        facts = FileFacts(name, dataset.dtypes[0], tags, bands, scale, offset)
        radiometry = decide_radiometry(facts, options)
        no_data = dataset.nodata if file.no_data is None else file.no_data
        plan = ReadingPlan(name_of(file.source), (file.index,), (file.band,), radiometry, no_data)
        grid = grid_of(dataset, name_of(file.source), file.crs)
        return Layer(file.source, plan, grid, block_of(dataset)), radiometry.level


def cloud_layer(
    source: str | Path,
    mask: CloudMask,
    indexes: tuple[int, ...] = (1,),
    *,
    flags: bool = False,
    crs: CRS | None = None,
) -> CloudLayer:
    """Return the layer of a raster with a cloud mask; `crs`: where the raster has none itself.

    Raises:
        TilewiseError: it cannot be opened, lacks a band, or has no georeference.
    """
    with open_raster(source) as dataset:
        if max(indexes) > dataset.count:
            raise SceneError(
                f"{name_of(source)}: a cloud mask of {dataset.count} bands; {max(indexes)} are needed"
            )
        return CloudLayer(source, indexes, mask, grid_of(dataset, name_of(source), crs), flags)


_AUTOMATIC = (CloudKind.SCL, CloudKind.PROBABILITY, CloudKind.QA60)
# QA60 is empty in between: https://developers.google.com/earth-engine/datasets/catalog/COPERNICUS_S2_HARMONIZED
_EMPTY_QA60 = (datetime(2022, 1, 25, tzinfo=UTC), datetime(2024, 2, 29, tzinfo=UTC))


def choose_mask(
    name: str, mask: CloudMask | None, taken: datetime | None, find: Callable[[CloudMask], CloudLayer | None]
) -> CloudLayer | None:
    """Return the layer of a scene's cloud mask.

    Args:
        name: of the scene, in messages.
        mask: the requested one.
        taken: acquisition time of the scene, UTC; QA60 is not trusted by CloudKind.AUTO where it was empty.
        find: returns the layer of one kind of mask, None where the scene has none.

    Raises:
        SceneError: the scene does not have the mask that was requested by its kind.
    """
    if mask is None or mask.kind in (CloudKind.FILE, CloudKind.PIXELS):
        return None
    if mask.kind is CloudKind.AUTO:
        found = (find(replace(mask, kind=kind)) for kind in _AUTOMATIC)
        return next((layer for layer in found if layer and not _is_empty_qa60(layer, taken)), None)
    layer = find(mask)
    if layer is None:
        raise SceneError(
            f"{name}: it has no cloud mask {mask.kind.value.upper()}; let it be chosen (--clouds auto), or "
            "name a mask of your own (--clouds file:{stem}_clouds.tif)"
        )
    return layer


def _is_empty_qa60(layer: CloudLayer, taken: datetime | None) -> bool:
    of_google = layer.mask.kind is CloudKind.QA60 and not layer.flags
    return of_google and taken is not None and _EMPTY_QA60[0] <= in_utc(taken) < _EMPTY_QA60[1]


def in_utc(time: datetime) -> datetime:
    """Return a time with its zone; one without is in UTC."""
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def block_of(dataset: DatasetReader) -> tuple[int, int]:
    """Return (height, width) of the blocks of a raster."""
    height, width = dataset.block_shapes[0]
    return int(height), int(width)


def in_canonical_order(plan: ReadingPlan) -> ReadingPlan:
    """Return the same plan with its bands in the order of a tile, so that whole tiles are read at once."""
    pairs = sorted(zip(plan.bands, plan.indexes, strict=True), key=lambda pair: BAND_NAMES.index(pair[0]))
    bands, indexes = zip(*pairs, strict=True)
    return replace(plan, bands=bands, indexes=indexes)


def _declared(dataset: DatasetReader, file: BandFile) -> tuple[float | None, float | None]:
    """Return scale and offset of reflectance: from metadata beside the raster, else its own, or None."""
    scale, offset = file.scale, file.offset or 0.0
    if scale is None:
        scale, offset = dataset.scales[file.index - 1], dataset.offsets[file.index - 1]
    usable = 0 < scale < math.inf and math.isfinite(offset) and (scale, offset) != (1.0, 0.0)
    return (scale, offset) if usable else (None, None)
