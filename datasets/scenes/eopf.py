"""Read a scene from a product in EOPF Zarr, Sentinel-2's coming form: Level-1C or Level-2A, a folder.

Its arrays are read in place by GDAL's Zarr driver, which finds their place, scale, offset and no-data value.
The CRS, which it does not find, comes from the attributes of the product. Zarr is of version 2; version 3 is
read by GDAL from its own 3.11 on, which rasterio's wheels do not have yet.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rasterio.crs import CRS
from rasterio.errors import CRSError

from tilewise.datasets.core.bands import BAND_NAMES, find_band
from tilewise.datasets.core.errors import SceneError, UnknownBandError, UnreadableImageError
from tilewise.datasets.scenes.band_files import platform_in
from tilewise.datasets.scenes.layers import (
    BandFile,
    CloudLayer,
    Parts,
    choose_mask,
    cloud_layer,
    layer_of_band,
)
from tilewise.datasets.scenes.options import CloudKind, CloudMask, SceneOptions
from tilewise.datasets.scenes.rasters import ARRAY_METADATA, zarr_source
from tilewise.datasets.scenes.stac import mapping_of, taken_of

SUFFIX = ".zarr"
BANDS = "measurements/reflectance"
RESOLUTIONS = ("r10m", "r20m", "r60m")  # from the finest
_MASKS = {
    CloudKind.SCL: ("conditions/mask/l2a_classification", "scl"),
    CloudKind.PROBABILITY: ("quality/probability", "cld"),
}
_MAX_ATTRIBUTES = 32 * 2**20


def is_eopf(folder: Path) -> bool:
    """Return whether a folder is a product of Sentinel-2 in EOPF Zarr."""
    return folder.suffix.lower() == SUFFIX and (folder / BANDS).is_dir()


def read_eopf(folder: Path, options: SceneOptions) -> Parts:
    """Return the parts of a product in EOPF Zarr; of a band in several resolutions the finest is read.

    Raises:
        SceneError: it has no bands, or names no CRS.
        UnreadableImageError: its attributes are not JSON, or an array cannot be opened.
        RadiometryUnknownError: the radiometry is neither in its attributes nor given.
    """
    attributes = _attributes_of(folder)
    properties = mapping_of(mapping_of(attributes.get("stac_discovery")).get("properties"))
    crs = _crs_of(mapping_of(attributes.get("other_metadata")), properties, folder.name)
    found = dict(_bands_in(folder))
    bands = tuple(band for band in BAND_NAMES if band in found)
    if not bands:
        raise SceneError(f"{folder.name}: no band under {BANDS}; download the product again")
    level = properties.get("processing:level")
    tags = {"PROCESSING_LEVEL": level} if isinstance(level, str) else {}
    layers, read_as = [], None
    for band in bands:
        file = BandFile(zarr_source(folder, found[band]), band, tags, crs=crs)
        layer, read_as = layer_of_band(file, folder.name, bands, options.read_options)
        layers.append(layer)
    taken = taken_of(properties)
    clouds = choose_mask(folder.name, options.clouds, taken, partial(_clouds, folder, crs))
    return Parts(tuple(layers), clouds, read_as, taken, platform_in(folder.name))


def _attributes_of(folder: Path) -> Mapping[str, Any]:
    """Return the attributes of a product's root group."""
    path = folder / ".zattrs"
    if not path.is_file() and (folder / "zarr.json").is_file():
        raise SceneError(
            f"{folder.name}: Zarr of version 3 is not read; open it with xarray, and classify the Dataset "
            "(docs/batch.md#from-python)"
        )
    try:
        with path.open("rb") as file:
            return mapping_of(json.loads(file.read(_MAX_ATTRIBUTES)))
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableImageError(
            f"{folder.name}: {path.name} is missing, or not valid JSON; download the product again"
        ) from error


def _crs_of(other: Mapping[str, Any], properties: Mapping[str, Any], name: str) -> CRS:
    for given in (other.get("horizontal_CRS_code"), properties.get("proj:code"), properties.get("proj:epsg")):
        try:
            if isinstance(given, str | int):
                return CRS.from_user_input(given)
        except CRSError:
            continue
    raise SceneError(
        f"{name}: neither horizontal_CRS_code of other_metadata nor proj:code of stac_discovery is a CRS; "
        "download the product again"
    )


def _bands_in(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (canonical name, array) of the bands of a product; of several, the finest last."""
    for resolution in reversed(RESOLUTIONS):
        group = folder / BANDS / resolution
        for path in sorted(group.iterdir()) if group.is_dir() else ():
            if _is_array(path):
                try:
                    yield find_band(path.name).name, f"{BANDS}/{resolution}/{path.name}"
                except UnknownBandError:  # the coordinates x and y
                    continue


def _clouds(folder: Path, crs: CRS, mask: CloudMask) -> CloudLayer | None:
    """Return the layer of the finest cloud mask of a kind, None where the product has none."""
    group, name = _MASKS.get(mask.kind, ("", ""))
    arrays = (f"{group}/{resolution}/{name}" for resolution in RESOLUTIONS)
    found = next((array for array in arrays if name and _is_array(folder / array)), None)
    return cloud_layer(zarr_source(folder, found), mask, crs=crs) if found else None


def _is_array(path: Path) -> bool:
    return (path / ARRAY_METADATA).is_file()
