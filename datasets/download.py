"""Downloading one file over HTTP, going on where the last try, or the last call, has stopped.

What is here is kept as `<file>.part` until the file is whole. Two downloads of one file at the same time are
not supported.
"""

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from datasets.errors import FetchError
from datasets.progress import Report, silent

_CONTENT_RANGE = re.compile(r"bytes (?:(?P<first>\d+)-\d+|\*)/(?:(?P<total>\d+)|\*)")
_OUTSIDE = httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE
_PASSING_STATUS = (408, 425, 429)  # the only 4xx that may be gone on the next try


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """What a download may cost at most: tries, seconds, bytes."""

    tries: int = 5
    backoff_s: float = 0.5  # before the second try; doubled before each further one
    timeout_s: float = 30.0  # without a single byte
    max_bytes: int = 8 << 30  # where the size is not published


@dataclass(frozen=True, slots=True)
class Download:
    """A file to download: its URL, its place, its published size in bytes, the way out of a failure."""

    url: str
    target: Path
    size: int | None
    way_out: str
    limits: DownloadLimits = DownloadLimits()

    @property
    def part(self) -> Path:
        """Where the file is until it is whole."""
        return self.target.with_name(f"{self.target.name}.part")

    def done(self) -> int:
        """Return how many bytes of the part are here."""
        return self.part.stat().st_size if self.part.exists() else 0

    def failure(self, reason: str) -> FetchError:
        """Return the error that names the URL, the reason and the way out."""
        return FetchError(f"{without_secrets(self.url)}: {reason}; {self.way_out}")


class _TryAgainError(Exception):
    """A failure that may be gone on the next try."""


def download(job: Download, report: Report = silent) -> None:
    """Download `job`, going on from the part that is here, with a bounded number of tries.

    `report` hears of the step "download", in bytes.

    Raises:
        FetchError: it could not be had, or not be written; what came is kept for the next call.
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
    # The bytes must be those of the file, which is what ranges count and checksums are about.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with client.stream("GET", job.url, headers=headers) as response:
        start, said = _place_of(response, job, done)
        size = _agreed_size(job, said)
        if response.status_code != _OUTSIDE:
            with writing_to(job.part.parent, None if size is None else size - start):
                _receive(response, job, start, size, report)
    if size is not None and job.done() < size:
        raise _TryAgainError(f"the connection was cut after {job.done():,} of {size:,} bytes")


def _place_of(response: httpx.Response, job: Download, done: int) -> tuple[int, int | None]:
    """Return at which byte of the file the answer's body starts and how long the file is (None: not said)."""
    status, length = response.status_code, response.headers.get("content-length", "")
    if status == httpx.codes.OK:  # a server without ranges starts again, and so do we
        return 0, int(length) if length.isdigit() else None
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    first, total = (match["first"], match["total"]) if match else (None, None)
    if status == httpx.codes.PARTIAL_CONTENT and first is not None and int(first) == done:
        return done, int(total) if total else None
    if status == _OUTSIDE and total is not None and int(total) == done:
        return done, done  # all of it was here
    if status in (httpx.codes.PARTIAL_CONTENT, _OUTSIDE):
        job.part.unlink(missing_ok=True)
        raise _TryAgainError(f"HTTP {status} does not fit the {done:,} bytes that were here")
    reason = f"HTTP {status} {response.reason_phrase}".strip()
    if status >= httpx.codes.INTERNAL_SERVER_ERROR or status in _PASSING_STATUS:
        raise _TryAgainError(reason)
    raise job.failure(reason)


def _agreed_size(job: Download, said: int | None) -> int | None:
    """Return the size in bytes that is published, else what the server has said, if that is acceptable."""
    if said is None or said == job.size:
        return job.size
    if job.size is not None:
        raise job.failure(f"the server offers {said:,} bytes, but the published file has {job.size:,}")
    if said > job.limits.max_bytes:
        raise job.failure(f"{said:,} bytes are more than the {job.limits.max_bytes:,} allowed")
    return said


def _receive(response: httpx.Response, job: Download, start: int, size: int | None, report: Report) -> None:
    bound = job.limits.max_bytes if job.size is None else job.size
    done = start
    with job.part.open("ab" if start else "wb") as sink:
        for chunk in response.iter_raw():
            done += len(chunk)
            if done > bound:
                job.part.unlink()
                raise job.failure(f"the server sends more than the {bound:,} bytes allowed; its part was removed")
            sink.write(chunk)
            report("download", done, size)


def without_secrets(source: str) -> str:
    """Return a URL as it may be printed and recorded: user, password and query may be secrets."""
    scheme, found, rest = source.partition("://")
    host, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}" if found else source


def one_line(error: Exception) -> str:
    """Return an error's message without line breaks; its type where it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def writing_to(folder: Path, need: int | None = None) -> Iterator[None]:
    """Run the block if `need` bytes (None: unknown) are free; what the disk then refuses is a FetchError too.

    Raises:
        FetchError: too little is free, the disk becomes full, or it fails in another way.
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
