"""Unpacking a zip that nobody vouches for: every member is checked before the first byte is written."""

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from datasets.download import one_line, writing_to
from datasets.errors import FetchError, UnsafeArchiveError
from datasets.progress import Report, silent

_CHUNK = 1 << 20  # bytes unpacked at a time


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """What a zip may unpack to at most: members, bytes, and bytes for each byte of the zip."""

    max_members: int = 100_000
    max_bytes: int = 8 << 30  # EuroSAT MS unpacks to 2.9 GB
    max_ratio: int = 100  # EuroSAT MS has 2


_LIMITS = UnpackLimits()


class BrokenZipError(FetchError):
    """A zip that cannot be read, or that holds nothing of what it should."""


def unpack(path: Path, folder: str, into: Path, limits: UnpackLimits = _LIMITS, report: Report = silent) -> int:
    """Unpack what the zip `path` has below `folder` to below `into`/`folder`; return the number of files.

    `into` need not exist, its parent must. What a failure leaves in it is the caller's to remove. `report`
    hears of the step "unpack", in bytes.

    Raises:
        UnsafeArchiveError: a member could land elsewhere, or there is more of them than `limits` allow.
        BrokenZipError: it is not a readable zip, or has no files below `folder`.
        FetchError: the disk is full or fails.
    """
    with _broken_zip(path), zipfile.ZipFile(path) as zipped:
        members = _checked(zipped, path, folder, limits)
        total = sum(info.file_size for info in members)
        with writing_to(into.parent, total):
            _extract(zipped, members, total, into, report)
    return sum(not info.is_dir() for info in members)


@contextmanager
def _broken_zip(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError) as error:
        raise BrokenZipError(f"{path.name}: not a readable zip ({one_line(error)})") from error


def _checked(zipped: zipfile.ZipFile, path: Path, folder: str, limits: UnpackLimits) -> list[zipfile.ZipInfo]:
    """Return the members to unpack, those below `folder`, once every member has proved harmless."""
    members = zipped.infolist()
    if len(members) > limits.max_members:
        raise UnsafeArchiveError(f"{path.name}: {len(members)} members, more than {limits.max_members}")
    for info in members:
        _check_member(info, path)
    if len({info.filename.casefold() for info in members}) < len(members):
        raise UnsafeArchiveError(f"{path.name}: a member's name stands twice; nothing was unpacked")
    total = sum(info.file_size for info in members)
    bound = min(limits.max_bytes, limits.max_ratio * path.stat().st_size)
    if total > bound:
        raise UnsafeArchiveError(
            f"{path.name}: would unpack to {total:,} bytes, but {bound:,} are allowed; nothing was unpacked"
        )
    wanted = [info for info in members if info.filename.startswith(f"{folder}/")]
    if all(info.is_dir() for info in wanted):
        raise BrokenZipError(f"{path.name}: holds no files {folder}/<Class>/<name>; is it the right archive?")
    return wanted


def _check_member(info: zipfile.ZipInfo, path: Path) -> None:
    for name in (info.filename, info.orig_filename):  # they differ where a NUL or an extra field renames
        if not _is_safe_name(name):
            raise UnsafeArchiveError(
                f"{path.name}: the name of member {name!r} could lead elsewhere; nothing was unpacked"
            )
    member = f"{path.name}: member {info.filename!r}"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UnsafeArchiveError(f"{member} is a link or a device; nothing was unpacked")
    if info.flag_bits & 0x1:
        raise BrokenZipError(f"{member} is encrypted; a zip without a password is needed")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BrokenZipError(f"{member} is packed in a way that is not supported; stored and deflated are")


def _is_safe_name(name: str) -> bool:
    """Return whether every system would take `name` as a path below the folder it is unpacked into."""
    if any(sign in "\\:" or not sign.isprintable() for sign in name):
        return False
    return not {"", ".", ".."} & set(name.removesuffix("/").split("/"))


def _extract(zipped: zipfile.ZipFile, members: list[zipfile.ZipInfo], total: int, into: Path, report: Report) -> None:
    written = 0
    for info in members:
        target = into / info.filename
        if info.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with zipped.open(info) as stream, target.open("xb") as sink:
            while chunk := stream.read(_CHUNK):
                written += len(chunk)
                if written > total:  # what a header says is not to be trusted
                    raise UnsafeArchiveError(f"{zipped.filename}: unpacks to more than it declares")
                sink.write(chunk)
        report("unpack", written, total)
