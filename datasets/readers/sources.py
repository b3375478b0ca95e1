"""Folders of labelled tiles: `<root>/<Class>/<name>.tif` or `.jpg`, in one of three formats.

A folder that tilewise made (fetched, unpacked or synthesised) carries a card, `dataset.json`, that says its
format and origin, so that no later step has to be told again.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from tilewise.datasets.core.errors import NoTilesError
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.core.tile import Tile
from tilewise.datasets.readers import eurosat
from tilewise.datasets.readers.geotiff import read_tile

CARD_NAME = "dataset.json"


class Format(StrEnum):
    """How the files of a folder are read."""

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
class Card:
    """What a folder of tiles says of itself: `dataset.json`."""

    name: str
    format: Format
    licence: str
    origin: str
    synthetic: bool = False
    notes: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def write(self, root: Path) -> None:
        """Write the card into the folder `root`."""
        (root / CARD_NAME).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


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
        root, format, said: where its tiles are, and how they are read.
        synthetic: whether they were computed.
        split: where all its tiles go, whatever the plan: labels that nobody checked train and never judge.
    """

    root: Path
    format: Format
    overrides: ReadOptions = field(default_factory=ReadOptions)
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
                f"{self.root}: no tiles; {self.format} wants {self.root.name}/<Class>/<name>{suffixes[0]}"
            )
        return [TileFile(path, path.stem, eurosat.class_of(path)) for path in paths]

    def read(self, path: Path) -> Tile:
        """Read one of the files into the one tile form; raises the reader's TilewiseError."""
        return self._reader()(path)

    def _reader(self) -> Callable[[Path], Tile]:
        readers: dict[Format, Callable[[Path], Tile]] = {
            Format.EUROSAT_MS: eurosat.read_ms,
            Format.EUROSAT_RGB: eurosat.read_rgb,
            Format.GEOTIFF: lambda path: read_tile(path, self.overrides, path.stem),
        }
        return readers[self.format]


def find_source(root: Path, form: Format | None = None, overrides: ReadOptions | None = None) -> Source:
    """Return the source in `root`, in the format that is said, else its card's, else that of its name.

    Raises:
        NoTilesError: there is no such folder, or its card is broken.
    """
    if not root.is_dir():
        raise NoTilesError(f"{root}: there is no such folder; `tilewise data fetch` or `synth` makes one")
    card = read_card(root)
    form = form or Format(card.get("format", _PUBLISHED_FOLDERS.get(root.name, Format.GEOTIFF)))
    split = (card.get("extra") or {}).get("split")
    return Source(root, form, overrides or ReadOptions(), bool(card.get("synthetic", False)), split)


def find_sources(
    roots: tuple[Path, ...], form: Format | None = None, overrides: ReadOptions | None = None
) -> list[Source]:
    """Return the sources in `roots`; a folder that holds only such folders stands for all of them."""
    found = []
    for root in roots:
        inner = [child for child in sorted(root.glob("*/")) if _is_source(child)] if root.is_dir() else []
        found += [find_source(child, form, overrides) for child in inner] or [find_source(root, form, overrides)]
    return found


def fixed_splits(sources: Sequence[Source]) -> dict[str, str]:
    """Return {tile name: split} for the tiles of sources that say where they all go."""
    return {file.name: source.split for source in sources if source.split for file in source.files()}


def _is_source(folder: Path) -> bool:
    return (folder / CARD_NAME).is_file() or folder.name in _PUBLISHED_FOLDERS


def read_card(root: Path) -> dict[str, Any]:
    """Return what the folder's `dataset.json` says; nothing where it has none.

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
            f"{path}: no card that tilewise knows ({error}); mend it: `format` is {', '.join(Format)}"
        ) from error
    return card
