"""Folders of labelled tiles: `<root>/<Class>/<name>.tif` or `.jpg`, in one of three formats.

A folder that tilewise made (fetched, unpacked or synthesised) has a card, `dataset.json`, with its format and
origin, so that later steps need no options.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from tilewise.datasets.core.errors import NoTilesError
from tilewise.datasets.core.files import atomic_write
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.core.tile import Tile
from tilewise.datasets.readers import eurosat
from tilewise.datasets.readers.geotiff import read_tile

CARD_NAME = "dataset.json"


class Format(StrEnum):
    """File format of a folder's tiles."""

    EUROSAT_MS = "eurosat-ms"
    EUROSAT_RGB = "eurosat-rgb"
    GEOTIFF = "geotiff"


_SUFFIXES = {
    Format.EUROSAT_MS: (".tif",),
    Format.EUROSAT_RGB: (".jpg",),
    Format.GEOTIFF: (".tif", ".tiff"),
}
_PUBLISHED_FOLDERS = {"EuroSAT_MS": Format.EUROSAT_MS, "EuroSAT_RGB": Format.EUROSAT_RGB}


@dataclass(frozen=True, slots=True)
class DatasetCard:
    """The card of a folder of tiles: the content of its `dataset.json`.

    Attributes:
        name: name of the data set.
        format: format of its files.
        licence: licence of its files.
        origin: source of its files.
        synthetic: whether its tiles are computed.
        notes: remarks.
        extra: further fields; `split` is the split that all its tiles go to.
    """

    name: str
    format: Format
    licence: str
    origin: str
    synthetic: bool = False
    notes: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def write(self, root: Path) -> None:
        """Write the card into the folder `root`, whole or not at all."""
        with atomic_write(root / CARD_NAME) as partial:
            partial.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class TileFile:
    """One labelled file: its path, its name (the stem) and its class (the folder)."""

    path: Path
    name: str
    label: str


@dataclass(frozen=True, slots=True)
class Source:
    """A folder of labelled tiles and how to read them.

    Attributes:
        root: the folder.
        format: format of its files.
        options: bands and radiometry that its files do not declare.
        synthetic: whether its tiles are computed.
        split: the split of all its tiles, whatever the plan: unchecked labels may train, but not evaluate.
    """

    root: Path
    format: Format
    options: ReadOptions = field(default_factory=ReadOptions)
    synthetic: bool = False
    split: str | None = None

    def files(self) -> list[TileFile]:
        """Return every labelled file, sorted by class and name.

        Raises:
            NoTilesError: there is none.
        """
        suffixes = _SUFFIXES[self.format]
        paths = sorted(path for path in self.root.glob("*/*") if path.suffix.lower() in suffixes)
        if not paths:
            raise NoTilesError(
                f"{self.root}: no tiles; {self.format} needs {self.root.name}/<Class>/<name>{suffixes[0]}"
            )
        return [TileFile(path, path.stem, eurosat.class_of(path)) for path in paths]

    def read(self, path: Path) -> Tile:
        """Read one of the files as a tile.

        Raises:
            TilewiseError: the file cannot be read.
        """
        return self._reader()(path)

    def _reader(self) -> Callable[[Path], Tile]:
        readers: dict[Format, Callable[[Path], Tile]] = {
            Format.EUROSAT_MS: eurosat.read_ms,
            Format.EUROSAT_RGB: eurosat.read_rgb,
            Format.GEOTIFF: lambda path: read_tile(path, self.options, path.stem),
        }
        return readers[self.format]


def find_source(root: Path, form: Format | None = None, options: ReadOptions | None = None) -> Source:
    """Return the source in `root`. Its format is `form`, else that of its card, else that of its name.

    Raises:
        NoTilesError: there is no such folder, or its card is broken.
    """
    if not root.is_dir():
        raise NoTilesError(f"{root}: there is no such folder; `tilewise data fetch` or `synth` makes one")
    card = read_card(root)
    form = form or Format(card.get("format", _PUBLISHED_FOLDERS.get(root.name, Format.GEOTIFF)))
    split = (card.get("extra") or {}).get("split")
    return Source(root, form, options or ReadOptions(), bool(card.get("synthetic", False)), split)


def find_sources(
    roots: tuple[Path, ...], form: Format | None = None, options: ReadOptions | None = None
) -> list[Source]:
    """Return the sources in `roots`; a folder that contains sources means all of them."""
    found = []
    for root in roots:
        inner = [child for child in sorted(root.glob("*/")) if _is_source(child)] if root.is_dir() else []
        found += [find_source(child, form, options) for child in inner] or [find_source(root, form, options)]
    return found


def fixed_splits(sources: Sequence[Source]) -> dict[str, str]:
    """Return {tile name: split} for the tiles of sources whose card fixes their split."""
    return {file.name: source.split for source in sources if source.split for file in source.files()}


def _is_source(folder: Path) -> bool:
    return (folder / CARD_NAME).is_file() or folder.name in _PUBLISHED_FOLDERS


def read_card(root: Path) -> dict[str, Any]:
    """Return the content of the folder's `dataset.json`; empty where it has none.

    Raises:
        NoTilesError: the card is broken.
    """
    path = root / CARD_NAME
    if not path.is_file():
        return {}
    try:
        card = dict(json.loads(path.read_text(encoding="utf-8")))
        Format(card.get("format", Format.GEOTIFF))
    except (ValueError, TypeError) as error:
        raise NoTilesError(
            f"{path}: not a valid card ({error}); set `format` to one of {', '.join(Format)}"
        ) from error
    return card
