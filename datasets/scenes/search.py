"""Finding scenes: in folders, by patterns, in lists, in STAC metadata. What was named is never silently passed over."""

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.errors import NoTilesError, SentileError
from datasets.scenes.band_files import group_by_scene
from datasets.scenes.names import unique_names
from datasets.scenes.options import SceneOptions
from datasets.scenes.rasters import RASTER_SUFFIXES, is_remote
from datasets.scenes.safe import METADATA_NAMES, is_safe
from datasets.scenes.source import Kind, SceneSource
from datasets.scenes.stac import Item, places_of, read_items

_PATTERN = re.compile(r"[*?\[]")
_ZIPPED = re.compile(r"S2[A-D]_MSIL(1C|2A)_.*\.zip$", re.IGNORECASE)
_STAC_SUFFIXES = (".json", ".geojson")
_LIST_SUFFIX = ".txt"


@dataclass(frozen=True, slots=True)
class _Found:
    """A scene before it has its options and its final name."""

    stem: str
    kind: Kind
    paths: tuple[Path | str, ...]
    item: Item | None = None
    problem: str = ""


def find_scenes(
    places: Sequence[str | Path], options: SceneOptions | None = None, skip: tuple[str, ...] = ()
) -> list[SceneSource]:
    """Return the scenes at `places`, in a fixed order and each once, with a name of its own each.

    Args:
        places: files, folders (walked), SAFE products, patterns (`2024*/**/*.tif`), text lists of places (.txt), STAC
            JSON (.json, or an http(s) address).
        options: how they will be read.
        skip: endings of file names that are no scenes, such as those of an earlier run's maps.

    A place that cannot be understood is a scene that says why when it is opened.

    Raises:
        NoTilesError: there is no scene at all.
    """
    found: dict[tuple[object, ...], _Found] = {}
    for place in places:
        for scene in _look(place, skip):
            found.setdefault(_identity(scene), scene)
    if not found:
        where = ", ".join(str(place) for place in places)
        raise NoTilesError(
            f"{where}: no GeoTIFF ({', '.join(RASTER_SUFFIXES[:2])}) is there; name a scene or a folder of scenes"
        )
    names = unique_names([(scene.stem, _folders(scene)) for scene in found.values()])
    return [
        SceneSource(name, scene.kind, scene.paths, options or SceneOptions(), scene.item, scene.problem)
        for name, scene in zip(names, found.values(), strict=True)
    ]


def _look(place: str | Path, skip: tuple[str, ...]) -> Iterator[_Found]:
    """Give the scenes at a place that may be anything."""
    path = Path(place)
    if is_remote(place):
        yield from _of_stac(place)
    elif path.is_file() and path.suffix.lower() == _LIST_SUFFIX:
        for line in _lines(path):
            yield from _look_in_place(line, skip)
    elif not path.exists() and _PATTERN.search(str(place)):
        yield from _of_pattern(str(place), skip)
    else:
        yield from _look_in_place(place, skip)


def _look_in_place(place: str | Path, skip: tuple[str, ...]) -> Iterator[_Found]:
    """Give the scenes at a file, a folder or an address."""
    path = Path(place)
    if is_remote(place) or path.suffix.lower() in _STAC_SUFFIXES:
        yield from _of_stac(place)
    elif path.is_dir():
        yield from [_safe(path)] if is_safe(path) else _of_rasters(*_walk(path), skip)
    elif path.name in METADATA_NAMES:
        yield _safe(path.parent)
    elif path.suffix.lower() in RASTER_SUFFIXES and path.is_file():
        yield _Found(path.stem, Kind.STACKED, (path,))
    else:
        yield _not_understood(path)


def _of_pattern(pattern: str, skip: tuple[str, ...]) -> Iterator[_Found]:
    """Give the scenes that a pattern matches: its files together, as if they lay in one folder."""
    paths = [Path(found) for found in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - it may be absolute
    if not paths:
        yield _Found(Path(pattern).stem, Kind.UNKNOWN, (Path(pattern),), problem=f"{pattern}: no file is called so")
    files = [path for path in paths if path.suffix.lower() in RASTER_SUFFIXES and path.is_file()]
    yield from _of_rasters(files, [], skip)
    for path in paths:
        if path not in files:
            yield from _look(path, skip)


def _walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the rasters, and the SAFE products, in a folder and below it, each in order."""
    rasters: list[Path] = []
    products: list[Path] = []
    for here, below, files in os.walk(folder):
        products += [Path(here, name) for name in below if is_safe(Path(here, name))]
        below[:] = sorted(name for name in below if not name.startswith(".") and Path(here, name) not in products)
        rasters += [Path(here, name) for name in files if _is_raster(name)]
        products += [Path(here, name) for name in files if _ZIPPED.match(name)]
    return sorted(rasters), sorted(products)


def _is_raster(name: str) -> bool:
    return name.lower().endswith(RASTER_SUFFIXES) and not name.startswith(".")


def _of_rasters(rasters: Iterable[Path], products: Iterable[Path], skip: tuple[str, ...]) -> Iterator[_Found]:
    """Give the scenes of many rasters: those of one file per band together, the others each by itself."""
    wanted = [path for path in rasters if not path.name.endswith(skip) and path.is_file()]
    groups = group_by_scene(wanted)
    grouped = {path for paths in groups.values() for path in paths}
    alone = [_Found(path.stem, Kind.STACKED, (path,)) for path in wanted if path not in grouped]
    together = [
        _Found(scene or folder.name or "scene", Kind.BAND_FILES, tuple(sorted(paths)))
        for (folder, scene), paths in groups.items()
    ]
    safe = [_safe(path) if path.is_dir() else _not_understood(path) for path in products]
    yield from sorted([*alone, *together, *safe], key=lambda scene: [str(path) for path in scene.paths])


def _safe(folder: Path) -> _Found:
    return _Found(folder.resolve().stem, Kind.SAFE, (folder,))


def _of_stac(place: str | Path) -> Iterator[_Found]:
    try:
        items = read_items(place)
    except SentileError as error:
        yield _Found(Path(str(place)).stem, Kind.UNKNOWN, (place,), problem=str(error))
        return
    if not items:
        problem = f"{Path(str(place)).name}: no item is in it, nor do its links lead to one"
        yield _Found(Path(str(place)).stem, Kind.UNKNOWN, (place,), problem=problem)
    for item in items:
        try:
            yield _Found(item.name, Kind.STAC, places_of(item), item)
        except SentileError as error:
            yield _Found(item.name, Kind.STAC, (), item, str(error))


def _lines(path: Path) -> Iterator[str | Path]:
    """Give the places in a text list, one a line, `#` before a remark; relative paths start at the list's folder."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        place = line.strip()
        if place and not place.startswith("#"):
            yield place if is_remote(place) else path.parent / place


def _not_understood(path: Path) -> _Found:
    """Return what a file that is no scene says."""
    if not path.exists():
        problem = f"{path}: there is no such file"
    elif _ZIPPED.match(path.name):
        problem = f"{path.name}: a zipped product; unpack it and name the .SAFE folder"
    else:
        problem = f"{path.name}: neither a GeoTIFF, a SAFE product, a text list (.txt) nor STAC metadata (.json)"
    return _Found(path.stem, Kind.UNKNOWN, (path,), problem=problem)


def _identity(scene: _Found) -> tuple[object, ...]:
    if scene.item:
        return (scene.item.base, scene.item.text)
    return tuple(str(path) if is_remote(path) else Path(path).resolve() for path in scene.paths)


def _folders(scene: _Found) -> tuple[str, ...]:
    """Return the names of the folders that a scene lies in."""
    if scene.item or not scene.paths or is_remote(scene.paths[0]):
        return ()
    folder = Path(scene.paths[0]).parent
    return tuple(part for part in folder.parts if part != folder.anchor)
