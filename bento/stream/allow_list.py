"""Where notices may lead: folders of this machine and addresses that the operator named, and nowhere else.

Whoever can send a notice could otherwise have any file of this machine, or any server within its reach, read.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from tilewise.datasets.core.errors import NoticeError, TilewiseError
from tilewise.datasets.scenes.rasters import shown

_LONGEST = 2048
_LONGEST_PART = 255  # bytes of a name that file systems take
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SCHEMES = ("http", "https", "s3")
_READABLE = ("http", "https")


@dataclass(frozen=True, slots=True)
class Places:
    """What may be read.

    Attributes:
        folders: with links followed; anything below them may be read.
        addresses: what an address begins with, and what is read in that beginning's place; both end with `/`.
    """

    folders: tuple[Path, ...] = ()
    addresses: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, overrides: Sequence[str]) -> "Places":
        """Return what an operator names: folders, `https://host/path/`, or `s3://bucket/path/=https://host/path/`.

        Raises:
            TilewiseError: nothing is named, a folder is not there, or an address cannot be read.
        """
        if not overrides:
            raise TilewiseError(
                "no place is allowed, so every notice would be refused; name folders or addresses (--allow)"
            )
        texts = [text for text in overrides if "://" in text]
        folders = [_folder(text) for text in overrides if text not in texts]
        return cls(tuple(folders), tuple(_mapping(text) for text in texts))

    def admit(self, overrides: str) -> str | Path:
        """Return what is to be read for a path or an address in a notice: a path without links, or an http(s) address.

        Raises:
            NoticeError: it is neither, or lies outside what is allowed.
        """
        if not overrides or len(overrides) > _LONGEST or _UNPRINTABLE.search(overrides):
            raise NoticeError(f"a place is 1 to {_LONGEST} printable characters; this one is not")
        parts = _split(overrides)
        if parts.scheme == "file" and parts.netloc in ("", "localhost"):
            return self._admit_path(unquote(parts.path))
        if parts.scheme in _SCHEMES:
            return self._admit_address(parts)
        if parts.scheme or "://" in overrides:
            raise NoticeError(
                f"{_told(overrides)}: {parts.scheme or 'such'} addresses are not read; send a path, http(s) or s3"
            )
        return self._admit_path(overrides)

    def _admit_path(self, overrides: str) -> Path:
        """Return the file of a path; one that is not absolute starts at the first folder that has it."""
        if "\x00" in overrides or any(len(os.fsencode(part)) > _LONGEST_PART for part in overrides.split("/")):
            raise NoticeError(f"a path holds no NUL, and no name longer than {_LONGEST_PART} bytes")
        found = [
            path for path in self._candidates(overrides) if any(_is_below(path, folder) for folder in self.folders)
        ]
        if not found:
            raise NoticeError(
                f"{_told(overrides)}: outside what this consumer may read; the operator allows places by --allow"
            )
        return next((path for path in found if path.exists()), found[0])

    def _candidates(self, overrides: str) -> Iterator[Path]:
        """Give the paths that may be meant, with links followed."""
        for start in self.folders:
            try:
                yield (start / overrides).resolve()
            except (OSError, RuntimeError):  # a loop of links, or a name that is too long
                continue

    def _admit_address(self, parts: SplitResult) -> str:
        address = _plain(parts)
        for beginning, read_as in self.addresses:
            if address.startswith(beginning) and address != beginning:
                query = f"?{parts.query}" if parts.query else ""
                return read_as + address.removeprefix(beginning) + query
        raise NoticeError(f"{address}: outside what this consumer may read; the operator allows places by --allow")


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise TilewiseError(f"--allow {text}: there is no such folder")
    return path.resolve()


def _mapping(text: str) -> tuple[str, str]:
    overrides, _, read_as = text.partition("=")
    beginning, target = (_beginning(part or overrides) for part in (overrides, read_as))
    if urlsplit(target).scheme not in _READABLE:
        raise TilewiseError(
            f"--allow {text}: files are read by http(s); say how: {overrides}=https://bucket.s3.region.amazonaws.com/path/"
        )
    return beginning, target


def _beginning(text: str) -> str:
    try:
        parts = _split(text)
        address = _plain(parts)
    except NoticeError as error:
        raise TilewiseError(f"--allow {error}") from error
    if parts.scheme not in _SCHEMES or parts.query:
        raise TilewiseError(f"--allow {text}: name http(s)://host/path/ or s3://bucket/path/, without a query")
    return address if address.endswith("/") else f"{address}/"


def _split(overrides: str) -> SplitResult:
    try:
        parts = urlsplit(overrides)
        parts.port  # noqa: B018 - it is parsed, and refused, when it is asked for
    except ValueError as error:
        raise NoticeError("it holds no sound address") from error
    return parts


def _plain(parts: SplitResult) -> str:
    """Return an address in the one form that it is compared in, without its query.

    Raises:
        NoticeError: it names a user, or a part that would lead out of its beginning.
    """
    address = f"{parts.scheme}://{parts.netloc.lower()}{parts.path}"
    steps = unquote(parts.path).replace("\\", "/").split("/")
    if not parts.hostname or "@" in parts.netloc or parts.fragment or "\\" in address or {".", ".."} & set(steps):
        raise NoticeError(f"{shown(address)}: an address has a host, no user, no fragment and no `..`")
    return address


def _is_below(path: Path, folder: Path) -> bool:
    return path != folder and path.is_relative_to(folder)


def _told(overrides: str) -> str:
    """Return a place as it may be told: without a query or a password, which may open something."""
    return shown(overrides) if "://" in overrides else overrides
