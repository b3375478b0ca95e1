"""Write files whole or not at all: atomic replacement, disk errors that GDAL hides, checksums."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rasterio._err import CPLE_BaseError  # what GDAL's copying raises; rasterio.errors does not have it
from rasterio.errors import RasterioError

_PROBE = bytes(2**16)
_CHUNK = 2**20


@contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends well it replaces `path`, else it is removed.

    Readers see the former file or the new one, never a part. The folder is made if it is missing. Two processes must
    not write the same `path` at once: the temporary name is the same for both.

    Args:
        durable: whether the new file is on the disk before it replaces the former one, so that it also survives a
            loss of power. False: for files that are rewritten every few seconds, or cheaply made again.

    Raises:
        OSError: the disk does not take the file.
    """
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        if durable:
            sync(partial)
        partial.replace(path)
        if durable:
            sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def telling_disk_errors(path: Path) -> Iterator[None]:
    """Turn GDAL's many ways of failing to write `path` into the OSError that the disk gives for it.

    Raises:
        OSError: the block failed.
    """
    try:
        yield
    except (RasterioError, CPLE_BaseError, SystemError) as error:
        raise ask_disk(path) from error


def ask_disk(path: Path) -> OSError:
    """Return why nothing can be added to `path`: by trying, since GDAL does not hand the reason on."""
    try:
        with path.open("ab") as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
    except OSError as reason:
        return reason
    return OSError(errno.EIO, "it could not be written whole", str(path))


def sync(path: Path) -> None:
    """Have the disk hold a file or a folder, so that it outlives a failure of power too."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
