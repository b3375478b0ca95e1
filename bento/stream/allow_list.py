"""Allow-list: the folders and addresses that notices may lead to, named by the operator.

Without it, whoever can send a notice could have any file of this machine, or any server within its reach,
read.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from tilewise.datasets.core.errors import NoticeError, TilewiseError
from tilewise.datasets.scenes.rasters import shown

_MAX_LENGTH = 2048
_MAX_NAME = 255  # bytes of a name that file systems take
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SCHEMES = ("http", "https", "s3")
_READABLE = ("http", "https")


@dataclass(frozen=True, slots=True)
class AllowList:
    """What notices may lead to.

    Attributes:
        folders: resolved paths; everything below them may be read.
        addresses: pairs of the prefix of allowed addresses, and the prefix that replaces it for reading; both
            end with `/`.
    """

    folders: tuple[Path, ...] = ()
    addresses: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, entries: Sequence[str]) -> "AllowList":
        """Parse folders, `https://host/path/`, and `s3://bucket/path/=https://host/path/` (read from there).

        Raises:
            TilewiseError: there is no entry, a folder is missing, or an address cannot be read.
        """
        if not entries:
            raise TilewiseError(
                "the allow-list is empty, so every notice would be refused; name folders or addresses by "
                "--allow"
            )
        addresses = [text for text in entries if "://" in text]
        folders = [_folder(text) for text in entries if text not in addresses]
        return cls(tuple(folders), tuple(_mapping(text) for text in addresses))

    def resolve(self, location: str) -> str | Path:
        """Return what to read for a path or address in a notice: a resolved path, or an http(s) address.

        Raises:
            NoticeError: it is neither, or is not allowed.
        """
        if not location or len(location) > _MAX_LENGTH or _UNPRINTABLE.search(location):
            raise NoticeError(
                f"a path or address has 1 to {_MAX_LENGTH} printable characters; this one has not"
            )
        parts = _split(location)
        if parts.scheme == "file" and parts.netloc in ("", "localhost"):
            return self._resolve_path(unquote(parts.path))
        if parts.scheme in _SCHEMES:
            return self._resolve_address(parts)
        if parts.scheme or "://" in location:
            scheme = parts.scheme or "such"
            raise NoticeError(
                f"{_shown(location)}: {scheme} addresses are not read; send a path, http(s) or s3"
            )
        return self._resolve_path(location)

    def _resolve_path(self, location: str) -> Path:
        """Return the file of a path; a relative one is looked for in each folder in turn."""
        if "\x00" in location or any(len(os.fsencode(part)) > _MAX_NAME for part in location.split("/")):
            raise NoticeError(f"a path holds no NUL, and no name longer than {_MAX_NAME} bytes")
        allowed = [
            path
            for path in self._candidates(location)
            if any(_is_below(path, folder) for folder in self.folders)
        ]
        if not allowed:
            raise NoticeError(_not_allowed(_shown(location)))
        return next((path for path in allowed if path.exists()), allowed[0])

    def _candidates(self, location: str) -> Iterator[Path]:
        """Give the paths that a location may mean, with links followed."""
        for start in self.folders:
            try:
                yield (start / location).resolve()
            except (OSError, RuntimeError):  # a loop of links, or a name that is too long
                continue

    def _resolve_address(self, parts: SplitResult) -> str:
        address = _plain(parts)
        for prefix, replacement in self.addresses:
            if address.startswith(prefix) and address != prefix:
                query = f"?{parts.query}" if parts.query else ""
                return replacement + address.removeprefix(prefix) + query
        raise NoticeError(_not_allowed(address))


def _not_allowed(location: str) -> str:
    return f"{location}: not on the allow-list of this consumer; the operator extends it by --allow"


def _folder(text: str) -> Path:
    path = Path(text)
    if not path.is_dir():
        raise TilewiseError(f"--allow {text}: there is no such folder")
    return path.resolve()


def _mapping(text: str) -> tuple[str, str]:
    """Return the prefix that an entry allows, and the prefix to read from."""
    given, _, replacement = text.partition("=")
    prefix, target = (_prefix(part or given) for part in (given, replacement))
    if urlsplit(target).scheme not in _READABLE:
        raise TilewiseError(
            f"--allow {text}: files are read by http(s); say how: "
            f"{given}=https://bucket.s3.region.amazonaws.com/path/"
        )
    return prefix, target


def _prefix(text: str) -> str:
    try:
        parts = _split(text)
        address = _plain(parts)
    except NoticeError as error:
        raise TilewiseError(f"--allow {error}") from error
    if parts.scheme not in _SCHEMES or parts.query:
        raise TilewiseError(
            f"--allow {text}: name http(s)://host/path/ or s3://bucket/path/, without a query"
        )
    return address if address.endswith("/") else f"{address}/"


def _split(location: str) -> SplitResult:
    try:
        parts = urlsplit(location)
        parts.port  # noqa: B018 - reading it validates it
    except ValueError as error:
        raise NoticeError("it holds no valid address") from error
    return parts


def _plain(parts: SplitResult) -> str:
    """Return an address normalised for comparison, without its query.

    Raises:
        NoticeError: it names a user, or has a part that would lead out of its prefix.
    """
    address = f"{parts.scheme}://{parts.netloc.lower()}{parts.path}"
    steps = unquote(parts.path).replace("\\", "/").split("/")
    if (
        not parts.hostname
        or "@" in parts.netloc
        or parts.fragment
        or "\\" in address
        or {".", ".."} & set(steps)
    ):
        raise NoticeError(f"{shown(address)}: an address has a host, no user, no fragment and no `..`")
    return address


def _is_below(path: Path, folder: Path) -> bool:
    return path != folder and path.is_relative_to(folder)


def _shown(location: str) -> str:
    """Return a path or an address as it may be logged: without a query or a password, which may be secret."""
    return shown(location) if "://" in location else location
