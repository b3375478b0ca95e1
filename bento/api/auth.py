"""API keys: who may ask, where the operator wants to know.

Off by default. With keys, everything needs one but health, the page for people with its files, the API's description,
and, if that is said, the metrics: these name classes and models, so they are closed unless a setting opens them.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from tilewise.bento.api.replies import refuse
from tilewise.datasets.core.errors import TilewiseError

OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/healthz", "/openapi.json", "/favicon.ico"})
OPEN_FOLDERS = ("/page/",)
METRICS = "/metrics"
MIN_LENGTH = 16  # characters: `openssl rand -hex 16` gives 32
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"[!-+\--~]{16,256}")  # printable ASCII without blanks and commas


@dataclass(frozen=True, slots=True)
class Key:
    """A key that opens the service: its caller's name and the hash of its text, which is kept nowhere."""

    caller: str
    digest: bytes


def parse_keys(entries: Iterable[str]) -> list[Key]:
    """Return the keys that `entries` say, each as `KEY` or `name:KEY`; a name may have several, to change them over.

    Raises:
        TilewiseError: one is too short or holds characters that no header may hold. The message does not show it.
    """
    return [_parse_key(entry.strip(), place) for place, entry in enumerate(entries, start=1) if entry.strip()]


def _parse_key(entry: str, place: int) -> Key:
    name, separator, text = entry.partition(":")
    if not separator:
        name, text = "", entry
    if (separator and not _NAME.fullmatch(name)) or not _KEY.fullmatch(text):
        raise TilewiseError(
            f"API key {place} is not KEY or name:KEY with a key of {MIN_LENGTH} to 256 printable characters; "
            "`openssl rand -hex 32` makes one"
        )
    digest = _digest(text)
    return Key(name or f"key-{digest.hex()[:8]}", digest)


def read_keys(overrides: str | None, file: str | None) -> list[Key]:
    """Return the keys in the setting (separated by commas) and in the file (one a line, `#` begins a comment).

    Raises:
        TilewiseError: one is malformed, or the file cannot be read or holds none.
    """
    keys = parse_keys((overrides or "").split(","))
    if file:
        from_file = parse_keys(line.partition("#")[0] for line in _lines(file))
        if not from_file:
            raise TilewiseError(f"{file}: holds no API key; write one a line, as KEY or name:KEY")
        keys += from_file
    return keys


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TilewiseError(f"{file}: the API keys cannot be read ({type(error).__name__})") from error


class Keys:
    """ASGI middleware that lets in who has a key, and notes as `scope["state"]["caller"]` whose key it is."""

    def __init__(self, app: ASGIApp, keys: list[Key], open_metrics: bool = False) -> None:
        self._app, self._keys = app, keys
        self._open = OPEN_PATHS | {METRICS} if open_metrics else OPEN_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it with 401."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        caller = self.caller_of(Headers(scope=scope))
        if caller is None and not self._is_open(scope):
            return await _refuse(scope, receive, send)
        if caller is not None:
            scope.setdefault("state", {})["caller"] = caller
        return await self._app(scope, receive, send)

    def caller_of(self, headers: Mapping[str, str]) -> str | None:
        """Return whose key the headers hold, or None; it takes as long whichever key it is, and if it is none."""
        found = None
        digest = _digest(_presented(headers))
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key.caller
        return found

    def _is_open(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            return False
        path: str = scope["path"]
        return path in self._open or path.startswith(OPEN_FOLDERS)


def _presented(headers: Mapping[str, str]) -> str:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return headers.get("x-api-key", "").strip()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    response = refuse(
        401,
        "unauthorized",
        "this service needs an API key",
        "send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
        **{"WWW-Authenticate": 'Bearer realm="tilewise"'},
    )
    await response(scope, receive, send)
