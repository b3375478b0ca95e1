"""A stand-in for the Planetary Computer: it signs, and its storage refuses old signatures.

It is an HTTP proxy, so that addresses of the real storage's host lead to it. It is a process of its own: GDAL
holds Python's lock while it opens a file.
"""

import json
import time
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from range_server import RangesHandler, serve, started

VALID_S = 4.0  # how long the storage takes a signature
_TOLD_S = 61.0  # what the signer tells: the package renews it when less than a minute is left
_LOG = ".signed"


class _SigningHandler(RangesHandler):
    def _answer(self) -> None:
        parts = urlsplit(self.path)
        if parts.path.startswith("/token/"):
            self._sign()
            return
        signed = float(parse_qs(parts.query).get("sig", ["0"])[0])
        if time.time() - signed > VALID_S:
            self._send(403, b"signature expired", {})
        else:
            self._send_file(self.folder / Path(parts.path).name)

    def _sign(self) -> None:
        with (self.folder / _LOG).open("a") as log:
            log.write(f"{self.path}\n")
        until = datetime.now(UTC) + timedelta(seconds=_TOLD_S)
        token = f"st=a&se=b&sp=r&sig={time.time():.3f}"
        body = json.dumps({"msft:expiry": until.isoformat(), "token": token}).encode()
        self._send(200, body, {"Content-Type": "application/json"})


def signatures(folder: Path) -> int:
    """How many signatures were given."""
    return len((folder / _LOG).read_text().splitlines())


def signing_storage(folder: Path) -> AbstractContextManager[str]:
    """Serve a folder as storage; the block gets the URL of the proxy, whose path /token is the signer."""
    return started(Path(__file__), folder)


if __name__ == "__main__":
    serve(_SigningHandler)
