"""Opening the rasters that scenes are made of: GeoTIFF and JPEG 2000 from disk, GeoTIFF by HTTP ranges.

This is for the files of whoever runs a batch. Uploads go through `datasets.geotiff.open_geotiff`, which knows neither
JPEG 2000 nor the network.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import rasterio
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from datasets.errors import UnreadableImageError
from datasets.geotiff import check_header, closed_world, why_unreadable

RASTER_SUFFIXES = (".tif", ".tiff", ".jp2")
_JP2 = b"\x00\x00\x00\x0cjP  \r\n\x87\n"  # the signature box, ISO/IEC 15444-1 annex I
_CACHE_MB = 64

# Threads of our own read different parts of a scene; GDAL's would fight with them and with the network for the cores.
_SCENES: dict[str, Any] = {
    "GDAL_NUM_THREADS": "1",
    "GDAL_CACHEMAX": _CACHE_MB,
}
_REMOTE: dict[str, Any] = {
    "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ".tif,.tiff",
    "GDAL_HTTP_CONNECTTIMEOUT": "20",
    "GDAL_HTTP_TIMEOUT": "60",
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
}


@contextmanager
def scene_world(*, remote: bool = False) -> Iterator[None]:
    """Set GDAL up for reading scenes, in this thread, for the length of the block; `remote`: with a network."""
    with closed_world(), rasterio.Env(**(_SCENES | _REMOTE if remote else _SCENES)):
        yield


def is_remote(place: str | Path) -> bool:
    """Say whether a place is an address on the web and no path."""
    return isinstance(place, str) and urlsplit(place).scheme in ("http", "https")


def name_of(place: str | Path) -> str:
    """Return what a place is called in messages: its last part, without a query that may hold a key."""
    return Path(urlsplit(str(place)).path).name if is_remote(place) else Path(place).name


def open_raster(place: str | Path) -> DatasetReader:
    """Open a raster of a scene; the caller closes it, and reads it within `scene_world` in one thread.

    Raises:
        UnreadableImageError: it cannot be opened.
        TileShapeError: its header tells of what no Sentinel-2 file has.
    """
    name = name_of(place)
    with scene_world(remote=is_remote(place)):
        try:
            dataset = _open(place)
        except (RasterioError, OSError, ValueError) as error:
            raise UnreadableImageError(f"{name}: {_why(place)}") from error
        try:
            check_header(dataset, name)
        except BaseException:
            dataset.close()
            raise
        return dataset


def _open(place: str | Path) -> DatasetReader:
    if is_remote(place):
        return rasterio.open(f"/vsicurl/{place}", driver="GTiff")
    if not Path(place).is_file():  # GDAL would take `/vsicurl/…` and the like for a path
        raise FileNotFoundError(place)
    return rasterio.open(place, driver="JP2OpenJPEG" if _is_jp2(Path(place)) else "GTiff")


def _is_jp2(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_JP2)) == _JP2
    except OSError:
        return False


def _why(place: str | Path) -> str:
    if is_remote(place):
        where = urlsplit(str(place)).netloc
        return f"{where} does not give it as a GeoTIFF (.tif) read by ranges; download it and classify it from disk"
    if _is_jp2(Path(place)):
        return "a truncated or corrupt JPEG 2000 file"
    return why_unreadable(Path(place))
