"""API keys: which callers may use the service, where the operator has set any.

With keys, every path needs one except health, the web page with its files, and the API's description. The
metrics need one too, unless a setting opens them, because they name classes and models.
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

OPEN_PATHS = frozenset(
    {
        "/",
        "/livez",
        "/readyz",
        "/healthz",
        "/v2/health/live",
        "/v2/health/ready",
        "/openapi.json",
        "/favicon.ico",
    }
)
OPEN_FOLDERS = ("/page/",)
METRICS = "/metrics"
MIN_LENGTH = 16  # characters; `openssl rand -hex 16` gives 32
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = re.compile(r"[!-+\--~]{16,256}")  # printable ASCII without spaces and commas


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key: the name of its caller, and the hash of its text, which is not kept."""

    caller: str
    digest: bytes


def parse_keys(entries: Iterable[str]) -> list[ApiKey]:
    """Return the keys in `entries`, written as `KEY` or `name:KEY`; a name may have several, for rotation.

    Raises:
        TilewiseError: a key is too short, or has characters that a header cannot hold. The message does not
            show it.
    """
    numbered = enumerate((entry.strip() for entry in entries), start=1)
    return [_parse_key(entry, number) for number, entry in numbered if entry]


def _parse_key(entry: str, number: int) -> ApiKey:
    name, separator, text = entry.partition(":")
    if not separator:
        name, text = "", entry
    if (separator and not _NAME.fullmatch(name)) or not _KEY.fullmatch(text):
        raise TilewiseError(
            f"API key {number} is not KEY or name:KEY with a key of {MIN_LENGTH} to 256 printable "
            "characters; `openssl rand -hex 32` makes one"
        )
    digest = _digest(text)
    return ApiKey(name or f"key-{digest.hex()[:8]}", digest)


def read_keys(setting: str | None, file: str | None) -> list[ApiKey]:
    """Return the keys in the setting (separated by commas) and in the file (one a line, `#`: a comment).

    Raises:
        TilewiseError: a key is malformed, or the file cannot be read or has none.
    """
    keys = parse_keys((setting or "").split(","))
    if file:
        from_file = parse_keys(line.partition("#")[0] for line in _read_lines(file))
        if not from_file:
            raise TilewiseError(f"{file}: has no API key; write one a line, as KEY or name:KEY")
        keys += from_file
    return keys


def _read_lines(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TilewiseError(f"{file}: the API keys cannot be read ({type(error).__name__})") from error


class KeyCheck:
    """ASGI middleware that refuses requests without a valid key with 401.

    It stores the name of the caller as `scope["state"]["caller"]`.
    """

    def __init__(self, app: ASGIApp, keys: list[ApiKey], open_metrics: bool = False) -> None:
        self._app, self._keys = app, keys
        self._open = OPEN_PATHS | {METRICS} if open_metrics else OPEN_PATHS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        caller = self.caller_of(Headers(scope=scope))
        if caller is None and not self._is_open(scope):
            return await _refuse(scope, receive, send)
        if caller is not None:
            scope.setdefault("state", {})["caller"] = caller
        return await self._app(scope, receive, send)

    def caller_of(self, headers: Mapping[str, str]) -> str | None:
        """Return the caller whose key is in the headers, or None; the time does not depend on the key."""
        found = None
        digest = _digest(_credentials(headers))
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key.caller
        return found

    def _is_open(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            return False
        path: str = scope["path"]
        return path in self._open or path.startswith(OPEN_FOLDERS)


def _credentials(headers: Mapping[str, str]) -> str:
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
