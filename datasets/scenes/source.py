"""A scene that was found, before it is opened: what it is called, where its files are, and how it will be read."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from datasets.errors import SceneError, UnreadableImageError
from datasets.scenes.band_files import read_band_files
from datasets.scenes.layers import CloudLayer, Parts, cloud_layer
from datasets.scenes.options import CloudKind, SceneOptions
from datasets.scenes.rasters import is_remote
from datasets.scenes.safe import read_safe
from datasets.scenes.scene import Scene
from datasets.scenes.stac import Item, read_stac
from datasets.scenes.stacked import read_stacked
from datasets.scenes.web import remote_state

_END = 64 * 2**10


class Kind(StrEnum):
    """The forms in which scenes come."""

    STACKED = "stacked"
    BAND_FILES = "band files"
    SAFE = "safe"
    STAC = "stac"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class SceneSource:
    """A scene that was found; it can be sent to other processes.

    Attributes:
        name: of its results, unique among the scenes that were found together.
        kind: its form.
        paths: its files, or the folder of a SAFE product; addresses on the web are strings.
        options: how it is read.
        item: of STAC.
        problem: why it cannot be read, and the way out; "" where nothing is known against it.
    """

    name: str
    kind: Kind
    paths: tuple[Path | str, ...]
    options: SceneOptions
    item: Item | None = None
    problem: str = ""

    @contextmanager
    def open(self) -> Iterator[Scene]:
        """Open the scene for the length of the block.

        Raises:
            SentileError: it cannot be understood or read; the message says the way out.
        """
        if self.problem:
            raise SceneError(self.problem)
        parts = self._parts()
        mask = self.options.clouds
        if mask is not None and mask.kind is CloudKind.FILE:
            parts = replace(parts, clouds=self._mask_file())
        with Scene(self.name, parts, warp=self.options.warp) as scene:
            yield scene

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the scene's bytes and of how they are read.

        With `options.quick_fingerprint` a local file counts with its size, time, first and last 64 KiB only; a remote
        one always with what its server tells of it.

        Raises:
            FetchError: a server does not answer.
            UnreadableImageError: a file cannot be read.
        """
        digest = hashlib.sha256(repr((self.kind.value, self.options, self.item)).encode())
        for place in (*self.paths, *self._mask_paths()):
            if is_remote(place):
                digest.update(remote_state(str(place)).encode())
                continue
            for path in _files_in(Path(place)):
                digest.update(path.name.encode())
                digest.update(_state_of(path) if self.options.quick_fingerprint else _content_of(path))
        return digest.hexdigest()

    def _parts(self) -> Parts:
        if self.kind is Kind.SAFE:
            return read_safe(Path(self.paths[0]), self.options)
        if self.kind is Kind.BAND_FILES:
            return read_band_files(self.name, [Path(path) for path in self.paths], self.options)
        if self.kind is Kind.STAC and self.item is not None:
            return read_stac(self.item, self.options)
        return read_stacked(Path(self.paths[0]), self.options)

    def _mask_file(self) -> CloudLayer:
        mask = self.options.clouds
        assert mask is not None  # noqa: S101 - asked by the caller
        (path,) = self._mask_paths() or (None,)
        if path is None:
            raise SceneError(f"{self.name}: {mask.pattern} is no file beside the scene; put the cloud mask there")
        return cloud_layer(path, mask)

    def _mask_paths(self) -> tuple[Path, ...]:
        mask = self.options.clouds
        if mask is None or mask.kind is not CloudKind.FILE or not self.paths:
            return ()
        first = Path(self.item.base) if self.item else Path(self.paths[0])
        stem = self.name if self.kind in (Kind.BAND_FILES, Kind.STAC) else first.stem
        path = first.parent / mask.pattern.replace("{stem}", stem)
        return (path,) if path.is_file() else ()


def _files_in(place: Path) -> list[Path]:
    if place.is_dir():
        return sorted(path for path in place.rglob("*") if path.is_file())
    return [place]


def _content_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise UnreadableImageError(f"{path.name}: it cannot be read: {error.strerror}") from error


def _state_of(path: Path) -> bytes:
    try:
        state = path.stat()
        with path.open("rb") as file:
            ends = file.read(_END)
            file.seek(max(state.st_size - _END, 0))
            ends += file.read(_END)
    except OSError as error:
        raise UnreadableImageError(f"{path.name}: it cannot be read: {error.strerror}") from error
    return hashlib.sha256(repr((state.st_size, state.st_mtime_ns)).encode() + ends).digest()
