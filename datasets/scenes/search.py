"""Find scenes in folders, patterns, lists and STAC metadata; a source that is no scene is never skipped."""

import glob
import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from tilewise.datasets.core.errors import NoTilesError, SceneError, TilewiseError, UnreadableImageError
from tilewise.datasets.scenes.band_files import group_by_scene, read_band_files, read_stacked
from tilewise.datasets.scenes.eopf import BANDS, SUFFIX, is_eopf, read_eopf
from tilewise.datasets.scenes.layers import CloudLayer, Parts, cloud_layer
from tilewise.datasets.scenes.options import CloudKind, SceneOptions
from tilewise.datasets.scenes.products import METADATA_NAMES
from tilewise.datasets.scenes.rasters import RASTER_SUFFIXES, is_remote, remote_state
from tilewise.datasets.scenes.safe import is_safe, read_safe
from tilewise.datasets.scenes.scene import Scene
from tilewise.datasets.scenes.stac import Item, files_of, read_items, read_stac

_PATTERN = re.compile(r"[*?\[]")
_ZIPPED = re.compile(r"S2[A-D]_MSIL(1C|2A)_.*\.zip$", re.IGNORECASE)
_STAC_SUFFIXES = (".json", ".geojson")
_LIST_SUFFIX = ".txt"
_UNSAFE = re.compile(r"[^\w.+ ()\-]+")
_MAX_NAME = 150  # results add suffixes, and file systems limit names to 255 bytes
_END = 64 * 2**10  # bytes of a quick fingerprint, at either end of a file


class Kind(StrEnum):
    """Kind of a scene's files."""

    STACKED = "stacked"
    BAND_FILES = "band files"
    SAFE = "safe"
    EOPF = "eopf"
    STAC = "stac"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class SceneSource:
    """A scene that was found and can be opened; it can be sent to other processes.

    Attributes:
        name: name of its results, unique among the scenes that were found together.
        kind: kind of its files.
        paths: its files, or the folder of a product, or the zip archive of a SAFE product; URLs are strings.
        options: how it is read.
        item: its STAC item, if any.
        problem: why it cannot be read, and the way out; "" if no reason is known.
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
            TilewiseError: it cannot be read; the message says the way out.
        """
        if self.problem:
            raise SceneError(self.problem)
        parts = self._parts()
        mask = self.options.clouds
        if mask is not None and mask.kind is CloudKind.FILE:
            parts = replace(parts, clouds=self._mask_file())
        how = self.options
        with Scene(self.name, parts, warp=how.warp, clouds=mask, area=how.area) as scene:
            yield scene

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the scene's bytes and of its options.

        With `options.quick_fingerprint` only the size, time, first and last 64 KiB of a local file count; of
        a remote file always only its server's headers.

        Raises:
            FetchError: a server does not answer.
            UnreadableImageError: a file cannot be read.
        """
        digest = hashlib.sha256(repr((self.kind.value, self.options, self.item)).encode())
        for source in (*self.paths, *self._mask_paths()):
            if is_remote(source):
                digest.update(remote_state(str(source)).encode())
                continue
            for name, path in _files_in(Path(source)):
                digest.update(name.encode())
                digest.update(_state_of(path) if self.options.quick_fingerprint else _content_of(path))
        return digest.hexdigest()

    def _parts(self) -> Parts:
        if self.kind is Kind.SAFE:
            return read_safe(Path(self.paths[0]), self.options)
        if self.kind is Kind.EOPF:
            return read_eopf(Path(self.paths[0]), self.options)
        if self.kind is Kind.BAND_FILES:
            return read_band_files(self.name, [Path(path) for path in self.paths], self.options)
        if self.kind is Kind.STAC and self.item is not None:
            return read_stac(self.item, self.options)
        return read_stacked(Path(self.paths[0]), self.options)

    def _mask_file(self) -> CloudLayer:
        mask = self.options.clouds
        assert mask is not None  # noqa: S101 - the caller checked it
        (path,) = self._mask_paths() or (None,)
        if path is None:
            raise SceneError(
                f"{self.name}: no file {mask.pattern} beside the scene; put the cloud mask there"
            )
        return cloud_layer(path, mask)

    def _mask_paths(self) -> tuple[Path, ...]:
        mask = self.options.clouds
        if mask is None or mask.kind is not CloudKind.FILE or not self.paths:
            return ()
        first = Path(self.item.base) if self.item else Path(self.paths[0])
        stem = self.name if self.kind in (Kind.BAND_FILES, Kind.STAC) else first.stem
        path = first.parent / mask.pattern.replace("{stem}", stem)
        return (path,) if path.is_file() else ()


def _files_in(path: Path) -> list[tuple[str, Path]]:
    """Return the files of a folder, each with its path from there, or the file itself with its name."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return [(file.relative_to(path).as_posix(), file) for file in files]
    return [(path.name, path)]


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


@dataclass(frozen=True, slots=True)
class _Found:
    """A scene before it has its options and its final name."""

    stem: str
    kind: Kind
    paths: tuple[Path | str, ...]
    item: Item | None = None
    problem: str = ""


def find_scenes(
    sources: Sequence[str | Path | Item], options: SceneOptions | None = None, skip: tuple[str, ...] = ()
) -> list[SceneSource]:
    """Return the scenes in `sources`, in a fixed order, each once and with a unique name.

    A source that is not a scene is returned as a scene that raises the reason when it is opened.

    Args:
        sources: files, folders (walked), products (SAFE, EOPF Zarr), patterns (`2024*/**/*.tif`), text lists
            of sources (.txt), STAC JSON (.json, or an http(s) URL), STAC items.
        options: how they will be read.
        skip: endings of file names that are not scenes, such as those of an earlier run's maps.

    Raises:
        NoTilesError: there is no scene at all.
    """
    found: dict[tuple[object, ...], _Found] = {}
    for source in sources:
        for scene in _find(source, skip):
            found.setdefault(_identity(scene), scene)
    if not found:
        names = ", ".join(str(source) for source in sources)
        raise NoTilesError(
            f"{names}: no GeoTIFF ({', '.join(RASTER_SUFFIXES[:2])}) found; "
            "name a scene or a folder of scenes"
        )
    unique = unique_names([(scene.stem, _folders(scene)) for scene in found.values()])
    return [
        SceneSource(name, scene.kind, scene.paths, options or SceneOptions(), scene.item, scene.problem)
        for name, scene in zip(unique, found.values(), strict=True)
    ]


def _find(source: str | Path | Item, skip: tuple[str, ...]) -> Iterator[_Found]:
    """Yield the scenes in a source of any kind."""
    if isinstance(source, Item):
        yield _of_item(source)
        return
    path = Path(source)
    if is_remote(source):
        yield from _of_stac(source)
    elif path.is_file() and path.suffix.lower() == _LIST_SUFFIX:
        for line in _lines(path):
            yield from _find_by_path(line, skip)
    elif not path.exists() and _PATTERN.search(str(source)):
        yield from _of_pattern(str(source), skip)
    else:
        yield from _find_by_path(source, skip)


def _find_by_path(source: str | Path, skip: tuple[str, ...]) -> Iterator[_Found]:
    """Yield the scenes of a file, a folder or a URL."""
    path = Path(source)
    if is_remote(source) or path.suffix.lower() in _STAC_SUFFIXES:
        yield from _of_stac(source)
    elif path.is_dir() and path.suffix.lower() == SUFFIX and not is_eopf(path):
        yield _not_a_scene(path)
    elif path.is_dir():
        yield from [_product(path)] if is_product(path) else _of_rasters(*_walk(path), skip)
    elif path.name in METADATA_NAMES:
        yield _product(path.parent)
    elif _ZIPPED.match(path.name) and path.is_file():
        yield _product(path)
    elif path.suffix.lower() in RASTER_SUFFIXES and path.is_file():
        yield _Found(path.stem, Kind.STACKED, (path,))
    else:
        yield _not_a_scene(path)


def _of_pattern(pattern: str, skip: tuple[str, ...]) -> Iterator[_Found]:
    """Yield the scenes that a pattern matches: its files together, as if they were in one folder."""
    paths = [Path(found) for found in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - it may be absolute
    if not paths:
        yield _Found(
            Path(pattern).stem, Kind.UNKNOWN, (Path(pattern),), problem=f"{pattern}: no file matches"
        )
    files = [path for path in paths if path.suffix.lower() in RASTER_SUFFIXES and path.is_file()]
    yield from _of_rasters(files, [], skip)
    for path in paths:
        if path not in files:
            yield from _find(path, skip)


def _walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the rasters and the products in a folder and below it, each in order."""
    rasters: list[Path] = []
    products: list[Path] = []
    for here, below, files in os.walk(folder):
        products += [Path(here, name) for name in below if is_product(Path(here, name))]
        below[:] = sorted(name for name in below if not _is_closed(name) and Path(here, name) not in products)
        rasters += [Path(here, name) for name in files if _is_raster(name)]
        products += [Path(here, name) for name in files if _ZIPPED.match(name)]
    return sorted(rasters), sorted(products)


def _is_closed(folder: str) -> bool:
    """Return whether a folder is not searched: a hidden one, or a Zarr store, whose files are chunks."""
    return folder.startswith(".") or folder.lower().endswith(SUFFIX)


def _is_raster(name: str) -> bool:
    return name.lower().endswith(RASTER_SUFFIXES) and not name.startswith(".")


def _of_rasters(rasters: Iterable[Path], products: Iterable[Path], skip: tuple[str, ...]) -> Iterator[_Found]:
    """Yield the scenes of many rasters: one for each group of band files, and one for each other raster."""
    wanted = [path for path in rasters if not path.name.endswith(skip) and path.is_file()]
    groups = group_by_scene(wanted)
    grouped = {path for paths in groups.values() for path in paths}
    alone = [_Found(path.stem, Kind.STACKED, (path,)) for path in wanted if path not in grouped]
    together = [
        _Found(scene or folder.name or "scene", Kind.BAND_FILES, tuple(sorted(paths)))
        for (folder, scene), paths in groups.items()
    ]
    yield from sorted(
        [*alone, *together, *map(_product, products)], key=lambda scene: [str(path) for path in scene.paths]
    )


def is_product(folder: Path) -> bool:
    """Return whether a folder is a product: SAFE or EOPF Zarr."""
    return is_safe(folder) or is_eopf(folder)


def _product(path: Path) -> _Found:
    """Return the product in a folder or in a zip archive."""
    whole = path.resolve()
    name = whole.stem if whole.suffix.lower() == ".zip" else whole.name
    return _Found(Path(name).stem, Kind.EOPF if is_eopf(whole) else Kind.SAFE, (path,))


def _of_stac(source: str | Path) -> Iterator[_Found]:
    try:
        items = read_items(source)
    except TilewiseError as error:
        yield _Found(Path(str(source)).stem, Kind.UNKNOWN, (source,), problem=str(error))
        return
    if not items:
        problem = f"{Path(str(source)).name}: it has no item, and none of its links leads to one"
        yield _Found(Path(str(source)).stem, Kind.UNKNOWN, (source,), problem=problem)
    yield from map(_of_item, items)


def _of_item(item: Item) -> _Found:
    try:
        return _Found(item.name, Kind.STAC, files_of(item), item)
    except TilewiseError as error:
        return _Found(item.name, Kind.STAC, (), item, str(error))


def _lines(path: Path) -> Iterator[str | Path]:
    """Yield the sources in a text list, one a line, without comments (#); paths start at its folder."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        source = line.strip()
        if source and not source.startswith("#"):
            yield source if is_remote(source) else path.parent / source


def _not_a_scene(path: Path) -> _Found:
    """Return a file that is not a scene, with the reason."""
    if not path.exists():
        problem = f"{path}: there is no such file"
    elif path.suffix.lower() == SUFFIX:
        problem = f"{path.name}: a Zarr store without {BANDS}, where products of Sentinel-2 have their bands"
    else:
        problem = (
            f"{path.name}: neither a GeoTIFF, a product (SAFE, EOPF Zarr), a text list (.txt) nor STAC "
            "metadata (.json)"
        )
    return _Found(path.stem, Kind.UNKNOWN, (path,), problem=problem)


def _identity(scene: _Found) -> tuple[object, ...]:
    if scene.item:
        return (scene.item.base, scene.item.text)
    return tuple(str(path) if is_remote(path) else Path(path).resolve() for path in scene.paths)


def _folders(scene: _Found) -> tuple[str, ...]:
    """Return the names of the folders that contain a scene."""
    if scene.item or not scene.paths or is_remote(scene.paths[0]):
        return ()
    folder = Path(scene.paths[0]).parent
    return tuple(part for part in folder.parts if part != folder.anchor)


def unique_names(scenes: Sequence[tuple[str, tuple[str, ...]]]) -> list[str]:
    """Return a unique name for each (stem, folders): the stem, after as many of its folders as are needed."""
    stems = [_tidy(stem) for stem, _ in scenes]
    names = list(stems)
    deepest = max((len(folders) for _, folders in scenes), default=0)
    for depth in range(1, deepest + 1):
        alike: dict[str, list[int]] = defaultdict(list)
        for number, name in enumerate(names):
            alike[name].append(number)
        for number in (number for group in alike.values() if _are_apart(group, scenes) for number in group):
            names[number] = "-".join((*map(_tidy, scenes[number][1][-depth:]), stems[number]))
    return _numbered(names)


def _are_apart(group: list[int], scenes: Sequence[tuple[str, tuple[str, ...]]]) -> bool:
    """Return whether the scenes of a group are in different folders, by which names can differ."""
    return len({scenes[number][1] for number in group}) > 1


def _numbered(names: list[str]) -> list[str]:
    """Return `names` with a number after each that is still taken (`scene.tif` beside `scene.tiff`)."""
    taken: set[str] = set()
    for index, name in enumerate(names):
        number = 1
        while names[index] in taken:
            number += 1
            names[index] = f"{name}-{number}"
        taken.add(names[index])
    return names


def _tidy(text: str) -> str:
    """Return a text as a valid file name on any system; ids from STAC may have any character."""
    return _UNSAFE.sub("_", text).strip(". ")[:_MAX_NAME] or "scene"
