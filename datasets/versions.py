"""A version of the data without its pixels: the card, index and statistics of a pack, from a folder or a git revision.

DVC owns the bytes: for a revision they come from its cache or, where they are not there, from the remote. The planes,
which are almost all of a pack, are never asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.errors import PackError, SentileError, VersionError
from datasets.pack import CARD, INDEX, STATISTICS, PackSummary, parse_index, parse_summary

if TYPE_CHECKING:
    from pyarrow import Table

Read = Callable[[str], bytes]
"""Given the name of one of a pack's files, returns its bytes."""


@dataclass(frozen=True, slots=True)
class Version:
    """A pack as it was at one time.

    Attributes:
        said: how the user named it: a folder or a revision.
        summary: what its `pack.json` says.
        index: its index, one row a tile.
        edges: of the histograms, in DN.
        bands: the statistics of its train split, by band (see `datasets.statistics.BandStatistics`).
    """

    said: str
    summary: PackSummary
    index: Table
    edges: tuple[int, ...]
    bands: dict[str, dict[str, Any]]


def open_version(said: str, pack: Path = Path("data/packed"), repository: Path = Path()) -> Version:
    """Return the version that is in the folder `said`, or that `pack` was at the git revision `said`.

    Args:
        pack: where the pack is in the repository.
        repository: a folder in the working tree.

    Raises:
        VersionError: neither a pack nor a revision, or its bytes are nowhere.
        PackError: the pack is not whole or of another version.
    """
    if (Path(said) / CARD).is_file():
        return _parse(said, lambda name: _read_local(Path(said) / name))
    return _parse(said, _reader_at(said, pack, repository))


def _parse(said: str, read: Read) -> Version:
    summary = parse_summary(read(CARD), said)
    index = parse_index(read(INDEX), said)
    try:
        statistics = json.loads(read(STATISTICS))
        bands = {band["band"]: band for band in statistics["bands"]}
        return Version(said, summary, index, tuple(statistics["edges"]), bands)
    except (ValueError, KeyError, TypeError) as error:
        raise PackError(f"{said}/{STATISTICS}: not what sentile writes; pack again") from error


def _read_local(path: Path) -> bytes:
    if not path.is_file():
        raise PackError(f"{path}: missing; pack again with `python -m datasets pack`")
    return path.read_bytes()


def _reader_at(revision: str, pack: Path, repository: Path) -> Read:
    """Return what reads the files of the pack at a revision, through DVC."""
    try:
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException
        from dvc.scm import RevError, SCMError
        from dvc_data.index import DataIndexDirError
    except ImportError as error:
        raise SentileError("versions are read by DVC; pip install 'sentile[ops]'") from error
    files = DVCFileSystem(str(repository), rev=revision)

    def read(name: str) -> bytes:
        path = (pack / name).as_posix()
        try:
            return bytes(files.cat_file(path))
        except RevError:
            raise VersionError(f"{revision}: neither a pack nor a revision; `git log` lists some") from None
        except SCMError as error:
            raise VersionError(f"{revision}: no pack is there, and {error}; name two packs, or --repo") from error
        except FileNotFoundError as error:
            raise VersionError(
                f"{revision}: it has no {path}, or neither cache nor remote holds it; "
                "`dvc push` where it was made, or say where packs are with --pack"
            ) from error
        except (DvcException, DataIndexDirError, OSError) as error:
            why = error.__cause__ or error  # of a remote that refuses, DVC says no more than that it failed
            raise VersionError(f"{revision}: {path} cannot be had ({why}); see `dvc remote list`") from error

    return read
