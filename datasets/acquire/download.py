"""Download files with resumption and limits; unpack untrusted zips after checking every member."""

import errno
import os
import re
import shutil
import stat
import struct
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tilewise.datasets.core.console import Report, silent
from tilewise.datasets.core.errors import FetchError, UnsafeArchiveError

_CONTENT_RANGE = re.compile(r"bytes (?:(?P<first>\d+)-\d+|\*)/(?:(?P<total>\d+)|\*)")
_RANGE_NOT_SATISFIABLE = httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE
_CHUNK = 1 << 20  # bytes unpacked at a time
_TEMPORARY_STATUS = (408, 425, 429)  # the only 4xx that the next try may not meet


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """Limits of a download: tries, seconds, bytes."""

    tries: int = 5
    backoff_s: float = 0.5  # before the second try; doubled before each further one
    timeout_s: float = 30.0  # without a single byte
    max_bytes: int = 8 << 30  # where the size is not published


@dataclass(frozen=True, slots=True)
class Download:
    """A file to download: its URL, its target path, its published size in bytes, the way out of a failure."""

    url: str
    target: Path
    size: int | None
    way_out: str
    limits: DownloadLimits = DownloadLimits()

    @property
    def part(self) -> Path:
        """The path of the file until it is complete."""
        return self.target.with_name(f"{self.target.name}.part")

    def done(self) -> int:
        """Return how many bytes have been downloaded."""
        return self.part.stat().st_size if self.part.exists() else 0

    def failure(self, reason: str) -> FetchError:
        """Return the error that names the URL, the reason and the way out."""
        return FetchError(f"{without_secrets(self.url)}: {reason}; {self.way_out}")


class _TryAgainError(Exception):
    """A failure that the next try may not meet."""


def download(job: Download, report: Report = silent) -> None:
    """Download `job`, resuming from the bytes on disk, with a limited number of tries.

    `report` is called for the step "download", in bytes.

    Raises:
        FetchError: it could not be downloaded or written; the bytes so far are kept for the next call.
    """
    with writing_to(job.target.parent):
        if job.size is not None and job.done() > job.size:
            job.part.unlink()
        if job.done() != job.size:
            try:
                _try_to_download(job, report)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise job.failure(one_line(error)) from error
        with job.part.open("rb+") as stream:
            os.fsync(stream.fileno())
        job.part.replace(job.target)


def _try_to_download(job: Download, report: Report) -> None:
    limits = job.limits
    with httpx.Client(follow_redirects=True, timeout=limits.timeout_s) as client:
        for attempt in range(1, limits.tries + 1):
            try:
                _attempt(client, job, report)
                return
            except httpx.UnsupportedProtocol:
                raise
            except (httpx.TransportError, _TryAgainError) as error:
                if attempt == limits.tries:
                    kept = f", {job.done():,} bytes are kept for the next fetch" if job.done() else ""
                    raise job.failure(f"{one_line(error)} (tries: {attempt}{kept})") from error
            time.sleep(limits.backoff_s * 2 ** (attempt - 1))


def _attempt(client: httpx.Client, job: Download, report: Report) -> None:
    done = job.done()
    # The bytes must be those of the file, uncompressed: ranges and checksums refer to them.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with client.stream("GET", job.url, headers=headers) as response:
        start, offered = _range_of(response, job, done)
        size = _agreed_size(job, offered)
        if response.status_code != _RANGE_NOT_SATISFIABLE:
            with writing_to(job.part.parent, None if size is None else size - start):
                _receive(response, job, start, size, report)
    if size is not None and job.done() < size:
        raise _TryAgainError(f"the connection was cut after {job.done():,} of {size:,} bytes")


def _range_of(response: httpx.Response, job: Download, done: int) -> tuple[int, int | None]:
    """Return the file's byte at which the response's body starts, and the file's size (None: unknown)."""
    status, length = response.status_code, response.headers.get("content-length", "")
    if status == httpx.codes.OK:  # the server does not support ranges: start again
        return 0, int(length) if length.isdigit() else None
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    first, total = (match["first"], match["total"]) if match else (None, None)
    if status == httpx.codes.PARTIAL_CONTENT and first is not None and int(first) == done:
        return done, int(total) if total else None
    if status == _RANGE_NOT_SATISFIABLE and total is not None and int(total) == done:
        return done, done  # all of it is on disk
    if status in (httpx.codes.PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE):
        job.part.unlink(missing_ok=True)
        raise _TryAgainError(f"HTTP {status} does not fit the {done:,} bytes on disk")
    reason = f"HTTP {status} {response.reason_phrase}".strip()
    if status >= httpx.codes.INTERNAL_SERVER_ERROR or status in _TEMPORARY_STATUS:
        raise _TryAgainError(reason)
    raise job.failure(reason)


def _agreed_size(job: Download, offered: int | None) -> int | None:
    """Return the published size in bytes, else the size that the server offers, if that is allowed."""
    if offered is None or offered == job.size:
        return job.size
    if job.size is not None:
        raise job.failure(f"the server offers {offered:,} bytes, but the published file has {job.size:,}")
    if offered > job.limits.max_bytes:
        raise job.failure(f"{offered:,} bytes are more than the {job.limits.max_bytes:,} allowed")
    return offered


def _receive(response: httpx.Response, job: Download, start: int, size: int | None, report: Report) -> None:
    bound = job.limits.max_bytes if job.size is None else job.size
    done = start
    with job.part.open("ab" if start else "wb") as sink:
        for chunk in response.iter_raw():
            done += len(chunk)
            if done > bound:
                job.part.unlink()
                raise job.failure(
                    f"the server sends more than the {bound:,} bytes allowed; its part was removed"
                )
            sink.write(chunk)
            report("download", done, size)


def without_secrets(source: str) -> str:
    """Return a URL without user, password and query, which may be secrets, for printing and recording."""
    scheme, found, rest = source.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}" if found else source


def one_line(error: Exception) -> str:
    """Return an error's message without line breaks; its type where it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def writing_to(folder: Path, need: int | None = None) -> Iterator[None]:
    """Run the block if `need` bytes (None: unknown) are free; turn its disk errors into FetchError.

    Raises:
        FetchError: too little space is free, the disk becomes full, or it fails in another way.
    """
    try:
        if need and need > (free := shutil.disk_usage(folder).free):
            raise FetchError(f"{folder}: {need:,} bytes are needed on this disk, but only {free:,} are free")
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            amount = "more" if need is None else f"{need:,} bytes of"
            raise FetchError(f"{folder}: the disk is full; {amount} free space is needed") from error
        raise FetchError(f"{error.filename or folder}: {error.strerror or one_line(error)}") from error


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """Limits of unpacking a zip: members, bytes, and bytes for each byte of the zip."""

    max_members: int = 100_000
    max_bytes: int = 8 << 30  # EuroSAT MS unpacks to 2.9 GB
    max_ratio: int = 100  # EuroSAT MS has 2


_LIMITS = UnpackLimits()


class BrokenZipError(FetchError):
    """A zip that cannot be read, or that lacks the expected files."""


def unpack(
    path: Path, folder: str, into: Path, limits: UnpackLimits = _LIMITS, report: Report = silent
) -> int:
    """Unpack the members of the zip `path` below `folder` into `into`/`folder`; return the number of files.

    `into` need not exist, its parent must. After a failure the caller removes it. `report` is called for the
    step "unpack", in bytes.

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


def list_members(path: Path, limits: UnpackLimits = _LIMITS) -> list[zipfile.ZipInfo]:
    """Return the members of a zip that is read in place, after checking every one as `unpack` does.

    Raises:
        UnsafeArchiveError: a member could lead elsewhere, or there is more of them than `limits` allow.
        BrokenZipError: it is not a readable zip.
        FetchError: it cannot be read.
    """
    try:
        with _broken_zip(path), zipfile.ZipFile(path) as zipped:
            return _check_all(zipped, path, limits)
    except OSError as error:
        raise FetchError(f"{path.name}: it cannot be read: {error.strerror}") from error


def _checked(zipped: zipfile.ZipFile, path: Path, folder: str, limits: UnpackLimits) -> list[zipfile.ZipInfo]:
    """Return the members to unpack, those below `folder`, after checking every member."""
    members = _check_all(zipped, path, limits)
    wanted = [info for info in members if info.filename.startswith(f"{folder}/")]
    if all(info.is_dir() for info in wanted):
        raise BrokenZipError(f"{path.name}: holds no files {folder}/<Class>/<name>; is it the right archive?")
    return wanted


def _check_all(zipped: zipfile.ZipFile, path: Path, limits: UnpackLimits) -> list[zipfile.ZipInfo]:
    members = zipped.infolist()
    if len(members) > limits.max_members:
        raise UnsafeArchiveError(f"{path.name}: {len(members)} members, more than {limits.max_members}")
    for info in members:
        _check_member(info, path)
    # Names that differ in case or in Unicode composition alone are one file on some systems.
    if len({unicodedata.normalize("NFC", info.filename).casefold() for info in members}) < len(members):
        raise UnsafeArchiveError(f"{path.name}: a member's name occurs twice; nothing was unpacked")
    total = sum(info.file_size for info in members)
    bound = min(limits.max_bytes, limits.max_ratio * path.stat().st_size)
    if total > bound:
        raise UnsafeArchiveError(
            f"{path.name}: would unpack to {total:,} bytes, but {bound:,} are allowed; nothing was unpacked"
        )
    return members


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
        raise BrokenZipError(f"{member} has an unsupported compression; use stored or deflated")


def _is_safe_name(name: str) -> bool:
    """Return whether `name` is, on every system, a path below the folder it is unpacked into."""
    if any(sign in "\\:" or not sign.isprintable() for sign in name):
        return False
    parts = name.removesuffix("/").split("/")
    return not any(
        part in ("", ".", "..") or part[-1] in ". " or part.partition(".")[0].rstrip().casefold() in _DEVICES
        for part in parts
    )


_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{name}{n}" for name in ("com", "lpt") for n in range(10))}
)
"""Names that open a device on Windows, whatever ending follows."""


def _extract(
    zipped: zipfile.ZipFile, members: list[zipfile.ZipInfo], total: int, into: Path, report: Report
) -> None:
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
                if written > total:  # headers are not trusted
                    raise UnsafeArchiveError(f"{zipped.filename}: unpacks to more than it declares")
                sink.write(chunk)
        report("unpack", written, total)
