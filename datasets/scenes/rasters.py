"""Opening the rasters that scenes are made of: GeoTIFF and JPEG 2000 from disk, GeoTIFF by HTTP ranges.

This is for the files of whoever runs a batch. Uploads go through `tilewise.datasets.readers.geotiff.open_geotiff`, which knows neither
JPEG 2000 nor the network.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import rasterio
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from tilewise.datasets.core.errors import FetchError, UnreadableImageError
from tilewise.datasets.readers.geotiff import check_header, closed_world, why_unreadable

_MAX_BYTES = 32 * 2**20
_SECONDS = 30.0
_TELLING = ("etag", "last-modified", "content-length", "x-goog-hash", "content-md5")


def fetch_text(url: str) -> bytes:
    """Return what an http(s) address gives, of a bounded size.

    Raises:
        FetchError: there is no answer, another status than 200, or too long a text.
    """
    try:
        with httpx.stream("GET", url, timeout=_SECONDS, follow_redirects=True) as answer:
            if answer.status_code != 200:
                raise FetchError(f"{shown(url)}: the server answers {answer.status_code}")
            content = b""
            for piece in answer.iter_bytes():
                content += piece
                if len(content) > _MAX_BYTES:
                    raise FetchError(f"{shown(url)}: more than {_MAX_BYTES // 2**20} MiB, too long for STAC metadata")
            return content
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FetchError(f"{shown(url)}: no answer ({type(error).__name__}); is the network there?") from error


def remote_state(url: str) -> str:
    """Return a text that changes when the file at an address does, as far as its server tells.

    Raises:
        FetchError: there is no answer, or the server does not have the file.
    """
    try:
        answer = httpx.head(url, timeout=_SECONDS, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FetchError(f"{shown(url)}: no answer ({type(error).__name__}); is the network there?") from error
    if answer.status_code not in (200, 206):
        raise FetchError(f"{shown(url)}: the server answers {answer.status_code}")
    told = {name: answer.headers[name] for name in _TELLING if name in answer.headers}
    return hashlib.sha256(repr((urlsplit(url)._replace(query="").geturl(), sorted(told.items()))).encode()).hexdigest()


def shown(url: str) -> str:
    """Return an address as it may be printed: without a query, which may hold a key, and without a password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


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
