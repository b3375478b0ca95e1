"""Open the rasters of scenes: GeoTIFF, JPEG 2000 and Zarr from disk, GeoTIFF by HTTP or from a bucket.

URLs of Azure Blob Storage are signed by the Planetary Computer when they are opened. Buckets (`s3://`,
`gs://`) are read by GDAL's own handlers, with the credentials that GDAL finds (AWS_ACCESS_KEY_ID,
~/.aws/credentials, GOOGLE_APPLICATION_CREDENTIALS and their like). Metadata are fetched by HTTP alone.

This is for trusted files, such as those of a batch run. Uploads are opened by
`tilewise.datasets.readers.geotiff.open_geotiff`, which supports neither JPEG 2000, Zarr nor the network.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import rasterio
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from tilewise.datasets.core.errors import FetchError, UnreadableImageError
from tilewise.datasets.readers.geotiff import check_header, isolated_gdal, why_unreadable

_WEB = ("http", "https")
_BUCKETS = {"s3": "/vsis3/", "gs": "/vsigs/"}
_SIGNED_HOSTS = ".blob.core.windows.net"  # where the Planetary Computer keeps its files
_MAX_BLOCKS = 10_000  # of a file in a bucket, of which the state is looked at
RASTER_SUFFIXES = (".tif", ".tiff", ".jp2")
_JP2 = b"\x00\x00\x00\x0cjP  \r\n\x87\n"  # the signature box, ISO/IEC 15444-1 annex I
_ZIPPED = "/vsizip/{"
_ZARR = 'ZARR:"'
ARRAY_METADATA = ".zarray"  # the file beside the chunks of an array
_CACHE_MB = 64

# Our own threads read different parts of a scene; GDAL's would compete with them for the cores.
_LOCAL: dict[str, Any] = {
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

_MAX_BYTES = 32 * 2**20
_TIMEOUT_S = 30.0
_STATE_HEADERS = ("etag", "last-modified", "content-length", "x-goog-hash", "content-md5")


@contextmanager
def scene_gdal(*, remote: bool = False) -> Iterator[None]:
    """Set GDAL up for reading scenes, in this thread, during the block; `remote`: with a network."""
    with isolated_gdal(), rasterio.Env(**(_LOCAL | _REMOTE if remote else _LOCAL)):
        yield


def is_remote(source: str | Path) -> bool:
    """Return whether a source is a URL that can be read (http, https, s3, gs), not a path."""
    return isinstance(source, str) and urlsplit(source).scheme in (*_WEB, *_BUCKETS)


def address_of(source: str | Path) -> str:
    """Return what GDAL opens for a remote source; where its storage wants a signature, with a valid one.

    Raises:
        FetchError: no signature is given for it, or the package that fetches one is not installed.
    """
    parts = urlsplit(str(source))
    if parts.scheme in _BUCKETS:
        return f"{_BUCKETS[parts.scheme]}{parts.netloc}{parts.path}"
    return f"/vsicurl/{_signed(str(source))}"


def _signed(url: str) -> str:
    """Return the URL of a file, signed where it is in Azure's blob storage and not public.

    The package keeps a signature until a minute before it expires, and then fetches another.
    """
    if not (urlsplit(url).hostname or "").endswith(_SIGNED_HOSTS):
        return url
    try:
        from planetary_computer import sign_url
        from requests import RequestException
    except ImportError as error:
        raise FetchError(
            f"{shown(url)}: its address has to be signed; pip install 'tilewise[stac]'"
        ) from error
    try:
        return str(sign_url(url))
    except (RequestException, ValueError) as error:
        raise FetchError(
            f"{shown(url)}: the Planetary Computer gives no signature for it ({type(error).__name__}); check "
            "the network, and PC_SDK_SUBSCRIPTION_KEY if you have one"
        ) from error


def zipped_source(archive: Path, member: str) -> str:
    """Return the source that opens a member of a zip archive in place, by GDAL's /vsizip/."""
    return f"{_ZIPPED}{archive.absolute()}}}/{member}"


def is_zipped(source: str | Path) -> bool:
    """Return whether a source is of `zipped_source`."""
    return isinstance(source, str) and source.startswith(_ZIPPED)


def zarr_source(store: Path, array: str) -> str:
    """Return the source that opens an array (`group/name`) of a Zarr store in a folder."""
    return f'{_ZARR}{store.absolute()}":/{array}'


def is_zarr(source: str | Path) -> bool:
    """Return whether a source is of `zarr_source`."""
    return isinstance(source, str) and source.startswith(_ZARR)


def _parts_of_zarr(source: str | Path) -> tuple[Path, str]:
    """Return the store and the array of a source of `zarr_source`."""
    store, _, array = str(source)[len(_ZARR) :].rpartition('":/')
    return Path(store), array


def file_of(source: str | Path) -> Path:
    """Return the file on disk that stands for a source: an archive for its member, metadata for an array."""
    if is_zarr(source):
        return Path(*_parts_of_zarr(source), ARRAY_METADATA)
    return Path(str(source)[len(_ZIPPED) : str(source).index("}/")] if is_zipped(source) else source)


def name_of(source: str | Path) -> str:
    """Return the name of a source in messages: its last part, without a query, which may contain a key."""
    if is_zarr(source):
        store, array = _parts_of_zarr(source)
        return f"{store.name}/{array}"
    return Path(urlsplit(str(source)).path).name if is_remote(source) else Path(source).name


def open_raster(source: str | Path) -> DatasetReader:
    """Open a raster of a scene; the caller closes it, and reads it within `scene_gdal` in one thread.

    Raises:
        UnreadableImageError: it cannot be opened.
        TileShapeError: no Sentinel-2 file has such a header.
    """
    name = name_of(source)
    with scene_gdal(remote=is_remote(source)):
        try:
            dataset = _open(source)
        except (RasterioError, OSError, ValueError) as error:
            raise UnreadableImageError(f"{name}: {_why(source)}") from error
        try:
            check_header(dataset, name)
        except BaseException:
            dataset.close()
            raise
        return dataset


def _open(source: str | Path) -> DatasetReader:
    if is_remote(source):
        return rasterio.open(address_of(source), driver="GTiff")
    if not file_of(source).is_file():  # GDAL would accept `/vsicurl/…` and the like as a path
        raise FileNotFoundError(source)
    if is_zarr(source):
        return rasterio.open(source, driver="Zarr")
    if is_zipped(source):
        is_jp2 = str(source).lower().endswith(".jp2")
        return rasterio.open(source, driver="JP2OpenJPEG" if is_jp2 else "GTiff")
    return rasterio.open(source, driver="JP2OpenJPEG" if _is_jp2(Path(source)) else "GTiff")


def _is_jp2(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_JP2)) == _JP2
    except OSError:
        return False


def _why(source: str | Path) -> str:
    if urlsplit(str(source)).scheme in _BUCKETS:
        return "it cannot be read from its bucket as a GeoTIFF; check that it exists, and your credentials"
    if is_remote(source):
        server = urlsplit(str(source)).netloc
        return (
            f"{server} does not serve it as a GeoTIFF (.tif) by ranges; download it and classify it from disk"
        )
    if is_zarr(source):
        return "an array that is no readable Zarr; download the product again"
    if is_zipped(source) and file_of(source).is_file():
        return f"a truncated or corrupt member of {file_of(source).name}; download the product again"
    if _is_jp2(file_of(source)):
        return "a truncated or corrupt JPEG 2000 file"
    return why_unreadable(file_of(source))


def fetch_text(url: str) -> bytes:
    """Return the body of an http(s) URL, of a bounded size.

    Raises:
        FetchError: there is no response, another status than 200, or too long a body, or it is in a bucket.
    """
    if urlsplit(url).scheme in _BUCKETS:
        raise FetchError(f"{shown(url)}: metadata are read from disk or by http(s); give an address of these")
    try:
        with httpx.stream("GET", url, timeout=_TIMEOUT_S, follow_redirects=True) as response:
            if response.status_code != 200:
                raise FetchError(f"{shown(url)}: the server answers {response.status_code}")
            content = b""
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > _MAX_BYTES:
                    raise FetchError(
                        f"{shown(url)}: more than {_MAX_BYTES // 2**20} MiB, too long for STAC metadata"
                    )
            return content
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FetchError(f"{shown(url)}: no response ({type(error).__name__}); check the network") from error


def remote_state(url: str) -> str:
    """Return a hash that changes when the file at a URL does, as far as the server's headers show.

    Of a file in a bucket it changes with the places and sizes of its blocks.

    Raises:
        FetchError: there is no response, or the server does not have the file.
        UnreadableImageError: a file in a bucket cannot be opened.
    """
    if urlsplit(url).scheme in _BUCKETS:
        return _state_in_bucket(url)
    try:
        response = httpx.head(_signed(url), timeout=_TIMEOUT_S, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FetchError(f"{shown(url)}: no response ({type(error).__name__}); check the network") from error
    if response.status_code not in (200, 206):
        raise FetchError(f"{shown(url)}: the server answers {response.status_code}")
    state = {name: response.headers[name] for name in _STATE_HEADERS if name in response.headers}
    public = urlsplit(url)._replace(query="").geturl()
    return hashlib.sha256(repr((public, sorted(state.items()))).encode()).hexdigest()


def _state_in_bucket(url: str) -> str:
    """Return a hash of the size, tags and index of blocks of a GeoTIFF in a bucket."""
    with scene_gdal(remote=True), open_raster(url) as dataset:
        state = [url, repr(dataset.profile), repr(sorted(dataset.tags().items()))]
        for (row, column), _ in islice(dataset.block_windows(1), _MAX_BLOCKS):
            for kind in ("OFFSET", "SIZE"):
                state.append(str(dataset.get_tag_item(f"BLOCK_{kind}_{column}_{row}", "TIFF", bidx=1)))
    return hashlib.sha256("\n".join(state).encode()).hexdigest()


def shown(url: str) -> str:
    """Return a URL as it may be printed: without a query, which may contain a key, and without a password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
