"""Small texts and head lines from the web, for STAC metadata and the fingerprints of remote scenes."""

import hashlib
from urllib.parse import urlsplit

import httpx

from datasets.errors import FetchError

_MOST_BYTES = 32 * 2**20
_SECONDS = 30.0
_TELLING = ("etag", "last-modified", "content-length", "x-goog-hash", "content-md5")


def fetch_text(url: str) -> bytes:
    """Return what an http(s) address gives, of a bounded size.

    Raises:
        FetchError: there is no answer, another status than 200, or too long a text.
    """
    try:
        with httpx.stream("GET", url, timeout=_SECONDS, follow_redirects=True) as answer:
            if answer.status_code != 200:
                raise FetchError(f"{shown(url)}: the server answers {answer.status_code}")
            content = b""
            for piece in answer.iter_bytes():
                content += piece
                if len(content) > _MOST_BYTES:
                    raise FetchError(f"{shown(url)}: more than {_MOST_BYTES // 2**20} MiB, too long for STAC metadata")
            return content
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FetchError(f"{shown(url)}: no answer ({type(error).__name__}); is the network there?") from error


def remote_state(url: str) -> str:
    """Return a text that changes when the file at an address does, as far as its server tells.

    Raises:
        FetchError: there is no answer, or the server does not have the file.
    """
    try:
        answer = httpx.head(url, timeout=_SECONDS, follow_redirects=True)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise FetchError(f"{shown(url)}: no answer ({type(error).__name__}); is the network there?") from error
    if answer.status_code not in (200, 206):
        raise FetchError(f"{shown(url)}: the server answers {answer.status_code}")
    told = {name: answer.headers[name] for name in _TELLING if name in answer.headers}
    return hashlib.sha256(repr((urlsplit(url)._replace(query="").geturl(), sorted(told.items()))).encode()).hexdigest()


def shown(url: str) -> str:
    """Return an address as it may be printed: without a query, which may hold a key, and without a password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
