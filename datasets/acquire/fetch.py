"""Fetch published data: archives of labelled tiles, and the lists that split them.

An archive is downloaded, verified, unpacked in a hidden sibling folder, given a card, and only then renamed:
a data set is either complete or absent. Two fetches into one folder at the same time are not supported.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tilewise.datasets.acquire.download import (
    BrokenZipError,
    Download,
    DownloadLimits,
    UnpackLimits,
    download,
    unpack,
    without_secrets,
    writing_to,
)
from tilewise.datasets.core.console import Report, silent
from tilewise.datasets.core.errors import FetchError, UnsafeArchiveError
from tilewise.datasets.readers.sources import CARD_NAME, DatasetCard, Format

SPLITS_NAME = "eurosat-splits"
SPLITS_URL = "https://hf.co/datasets/torchgeo/eurosat/resolve/1ce6f1bfb56db63fd91b6ecc466ea67f2509774c"

_CHUNK = 1 << 20  # bytes read at a time
_MAX_LIST = 16 << 20  # bytes; the longest published list has 0.3 MB
_LIST_LINE = re.compile(r"[\w.-]+")
_ARCHIVE_WAY_OUT = "`--from URL-or-local-zip` takes another source"
_LISTS_WAY_OUT = "`--from URL-or-local-folder` takes another source"
_LICENCE = "MIT"
_ORIGIN = (
    "EuroSAT (Helber et al. 2019, doi:10.1109/JSTARS.2019.2918242), https://zenodo.org/records/7711810; "
    "contains modified Copernicus Sentinel data"
)


@dataclass(frozen=True, slots=True)
class Archive:
    """A published zip of tiles: its format, its only folder, its URL, its MD5, its size in bytes."""

    format: Format
    folder: str
    url: str
    md5: str
    size: int


@dataclass(frozen=True, slots=True)
class SplitList:
    """A published list of tile names: its file, its SHA-256 and its size in bytes."""

    file: str
    sha256: str
    size: int


def _ignore(line: str) -> None:
    """Ignore a message."""


@dataclass(frozen=True, slots=True)
class Context:
    """Progress reports, messages (one line each) and limits of a fetch."""

    progress: Report = silent
    say: Callable[[str], None] = _ignore
    download: DownloadLimits = field(default_factory=DownloadLimits)
    unpack: UnpackLimits = field(default_factory=UnpackLimits)


ARCHIVES: dict[str, Archive] = {
    "eurosat-ms": Archive(
        format=Format.EUROSAT_MS,
        folder="EuroSAT_MS",
        url="https://zenodo.org/records/7711810/files/EuroSAT_MS.zip?download=1",
        md5="091174add3c8e680a49244acf185b9f0",
        size=2_065_402_329,
    ),
    "eurosat-rgb": Archive(
        format=Format.EUROSAT_RGB,
        folder="EuroSAT_RGB",
        url="https://zenodo.org/records/7711810/files/EuroSAT_RGB.zip?download=1",
        md5="f46e308c4d50d4bf32fedad2d3d62f3b",
        size=94_658_721,
    ),
}
SPLIT_LISTS = (
    SplitList(
        "eurosat-spatial-train.txt",
        "2db7d455afb8dcbca898ea19a00f1f90c091734efdbba89e22aaf24056da243f",
        316_710,
    ),
    SplitList(
        "eurosat-spatial-val.txt",
        "6c758477604b7057a0fd990d7f6327b63b99a6725aac11a6a9d0174a7fdd8f0b",
        99_786,
    ),
    SplitList(
        "eurosat-spatial-test.txt",
        "de22dec83d350cac3b3e4ca8e285cb6733c81ab94bf5bcf9213a567993402452",
        105_934,
    ),
)
FETCHABLE = (*ARCHIVES, SPLITS_NAME)
QUIETLY = Context()


def fetch(name: str, out: Path, source: str | None = None, context: Context = QUIETLY) -> Path:
    """Fetch the data set or lists named `name` (one of `FETCHABLE`) into `out`, and return their folder.

    Raises:
        FetchError: the name is unknown; else as `fetch_archive` and `fetch_splits`.
        UnsafeArchiveError: as `fetch_archive`.
    """
    if name == SPLITS_NAME:
        return fetch_splits(SPLIT_LISTS, out, source, context)
    if name not in ARCHIVES:
        raise FetchError(f"nothing to fetch is named {name!r}; choose one of {', '.join(FETCHABLE)}")
    return fetch_archive(ARCHIVES[name], out, source, context)


@dataclass(frozen=True, slots=True)
class _LocalZip:
    """A zip on this disk: its path, a label and id of its source, and whether it was downloaded here."""

    path: Path
    label: str
    source_id: str
    downloaded: bool


@dataclass(frozen=True, slots=True)
class _Checksums:
    sha256: str
    md5: str
    size: int


def fetch_archive(archive: Archive, out: Path, source: str | None = None, context: Context = QUIETLY) -> Path:
    """Fetch `archive`, or the zip at `source` (a URL or a path), unpack it and return its folder.

    A complete data set from the same archive is kept; one that was fetched from another archive is replaced.
    A zip from another `source` need not be the published one: then a message says so, and its card records
    its checksum.

    Raises:
        FetchError: the archive could not be fetched, is not the published one, is broken, or the disk is
            full.
        UnsafeArchiveError: it would write outside its folder or unpack to more than `context` allows.
    """
    source = None if source == archive.url else source
    folder = out / archive.folder
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        record = _record_of(folder, context)
        if _is_from(record, archive, source):
            context.say(f"{folder}: already complete; nothing to fetch")
            return folder
        local = _obtain(archive, out, source, context)
        sums = _checksums(local.path, context.progress)
        if record.get("sha256") == sums.sha256:
            context.say(f"{folder}: already complete, from the same archive; nothing to unpack")
        else:
            _judge(archive, local, sums, source, context)
            _install(archive, local, sums, folder, context)
        if local.downloaded:
            local.path.unlink()
    return folder


def _record_of(folder: Path, context: Context) -> dict[str, Any]:
    """Return the card's record of the archive that `folder` came from; empty if it is incomplete.

    Raises:
        FetchError: the folder has content from elsewhere, which must not be lost.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return {}
    try:
        record = json.loads((folder / CARD_NAME).read_text(encoding="utf-8"))["extra"]["archive"]
        files = int(record["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FetchError(
            f"{folder}: exists already, but was not fetched; move it away or give another --out"
        ) from error
    present = sum(path.is_file() for path in folder.rglob("*")) - 1  # the card is not from the archive
    if present < files:
        context.say(f"{folder}: only {present} of {files} files exist; fetching it again")
        return {}
    return dict(record)


def _is_from(record: dict[str, Any], archive: Archive, source: str | None) -> bool:
    if source is None:
        return record.get("md5") == archive.md5
    return _is_url(source) and record.get("source_id") == _identity(source)


def _obtain(archive: Archive, out: Path, source: str | None, context: Context) -> _LocalZip:
    if source is not None and not _is_url(source):
        return _local_zip(Path(source))
    url = source or archive.url
    # The name depends on the source: a part of one must never be continued with the bytes of another.
    path = out / f"{archive.folder}-{_identity(url)}.zip"
    if not path.exists():
        size = None if source else archive.size
        download(Download(url, path, size, _ARCHIVE_WAY_OUT, context.download), context.progress)
    return _LocalZip(path, without_secrets(url), _identity(url), downloaded=True)


def _local_zip(path: Path) -> _LocalZip:
    if path.is_dir():
        raise FetchError(f"{path}: is a folder, not a zip; a folder of tiles can be used without fetching")
    if not path.is_file():
        raise FetchError(f"{path}: there is no such file; {_ARCHIVE_WAY_OUT}")
    return _LocalZip(path, path.name, "", downloaded=False)


def _checksums(path: Path, progress: Report) -> _Checksums:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    total, done = path.stat().st_size, 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            sha256.update(chunk)
            md5.update(chunk)
            done += len(chunk)
            progress("verify", done, total)
    return _Checksums(sha256.hexdigest(), md5.hexdigest(), done)


def _judge(
    archive: Archive, local: _LocalZip, sums: _Checksums, source: str | None, context: Context
) -> None:
    """Refuse a zip that is not the published one; only warn where the user named another `source`."""
    if sums.md5 == archive.md5:
        return
    if source is None:
        local.path.unlink()
        raise FetchError(
            f"{local.label}: the checksum is not the published one (md5 {sums.md5}); the file was removed, "
            f"so fetch again, or {_ARCHIVE_WAY_OUT}"
        )
    context.say(
        f"warning: {local.label} is not the published {archive.format} (sha256 {sums.sha256}); used as it is"
    )


def _install(archive: Archive, local: _LocalZip, sums: _Checksums, folder: Path, context: Context) -> None:
    """Unpack into a hidden sibling folder, add the card, and only then rename it."""
    stage = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(stage, ignore_errors=True)
    try:
        files = unpack(local.path, folder.name, stage, context.unpack, context.progress)
        _card(archive, local, sums, files).write(stage / folder.name)
        if folder.exists():
            folder.rename(stage / ".replaced")  # goes with the stage
        (stage / folder.name).rename(folder)
    except (UnsafeArchiveError, BrokenZipError):
        if local.downloaded:  # another try would fail likewise
            local.path.unlink()
            context.say(f"{local.path}: removed, since it cannot be used")
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _card(archive: Archive, local: _LocalZip, sums: _Checksums, files: int) -> DatasetCard:
    published = sums.md5 == archive.md5
    record = {"source": local.label, "source_id": local.source_id, "published": published}
    extra = {"archive": {**record, **asdict(sums), "files": files}}
    name = str(archive.format)
    if published:
        return DatasetCard(name, archive.format, _LICENCE, _ORIGIN, extra=extra)
    licence = f"{_LICENCE}, where it is a part of the published archive"
    return DatasetCard(
        name, archive.format, licence, local.label, notes=f"not the published {name}", extra=extra
    )


def fetch_splits(
    lists: Iterable[SplitList], out: Path, source: str | None = None, context: Context = QUIETLY
) -> Path:
    """Fetch the lists from `source` (a folder or a base URL; None: the publisher) and return `out`/splits.

    Raises:
        FetchError: a list could not be fetched, is not a list of names, or is not the published one although
            no other source was named.
    """
    folder = out / "splits"
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for wanted in lists:
            target = folder / wanted.file
            if source is None and target.is_file() and _sha256(target) == wanted.sha256:
                context.say(f"{target}: already complete; nothing to fetch")
            else:
                _fetch_list(wanted, target, source, context)
    return folder


def _fetch_list(wanted: SplitList, target: Path, source: str | None, context: Context) -> None:
    fresh = target.with_name(f"{target.name}.new-{_identity(source or SPLITS_URL)}")
    try:
        if source is None or _is_url(source):
            url = f"{(source or SPLITS_URL).rstrip('/')}/{wanted.file}"
            limits = replace(context.download, max_bytes=_MAX_LIST)
            size = None if source else wanted.size
            download(Download(url, fresh, size, _LISTS_WAY_OUT, limits), context.progress)
        else:
            _copy_list(Path(source) / wanted.file, fresh)
        _check_list(fresh, wanted, source, context)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def _copy_list(path: Path, fresh: Path) -> None:
    if not path.is_file():
        raise FetchError(f"{path}: there is no such file; {_LISTS_WAY_OUT}")
    if path.stat().st_size > _MAX_LIST:
        raise FetchError(f"{path}: {path.stat().st_size:,} bytes are too many for a list of names")
    shutil.copyfile(path, fresh)


def _check_list(fresh: Path, wanted: SplitList, source: str | None, context: Context) -> None:
    sha256 = _sha256(fresh)
    if sha256 == wanted.sha256:
        return
    if source is None:
        raise FetchError(
            f"{wanted.file}: the checksum is not the published one (sha256 {sha256}); the file was removed, "
            f"so fetch again, or {_LISTS_WAY_OUT}"
        )
    lines = fresh.read_text(encoding="utf-8", errors="replace").split()
    if not lines or not all(_LIST_LINE.fullmatch(line) for line in lines):
        shown = without_secrets(source)
        raise FetchError(f"{wanted.file}: the file at {shown} is not a list of tile names, one per line")
    context.say(f"warning: {wanted.file} is not the published list (sha256 {sha256}); used as it is")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_url(source: str) -> bool:
    """Return whether `source` is an http(s) URL (True) or a path (False).

    Raises:
        FetchError: it is a URL of another scheme.
    """
    scheme, found, _ = source.partition("://")
    if found and scheme.lower() not in ("http", "https"):
        raise FetchError(f"{without_secrets(source)}: only http, https and local paths can be fetched")
    return bool(found)


def _identity(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:12]
