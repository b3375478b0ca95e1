"""Servers that the tests of security share, and raw connections to them."""

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

KEY, OTHER_KEY, FILED_KEY = "alice-0123456789abcdef", "0123456789abcdef-bob", "carol~0123456789+abcdef"
ORIGIN = "https://maps.example"
HEAD_SECONDS, BODY_SECONDS = 1, 1


@dataclass(frozen=True)
class Answer:
    """What came over a raw connection, and after how long."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    @property
    def error(self) -> dict[str, str]:
        error: dict[str, str] = json.loads(self.body)["error"]
        return error


def say(url: str, *pieces: bytes, pause: float = 0.05, patience: float = 15) -> Answer:
    """Send pieces over a new connection, with pauses; return what comes until the server closes or the answer
    is whole.

    A connection that is closed without a word is status 0.
    """
    host, _, port = url.removeprefix("http://").partition(":")
    heard = b""
    began = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=patience) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except OSError:  # it has heard enough
                break
            time.sleep(pause)
        while not _is_whole(heard):
            try:
                more = connection.recv(65536)
            except ConnectionResetError:
                break
            if not more:
                break
            heard += more
    return _parse(heard, time.monotonic() - began)


def _is_whole(heard: bytes) -> bool:
    head, end, body = heard.partition(b"\r\n\r\n")
    length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(end and length) and len(body) >= int(length[0].split(b":")[1])


def _parse(heard: bytes, seconds: float) -> Answer:
    head, _, body = heard.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    pairs = (line.split(": ", 1) for line in lines[1:] if ": " in line)
    headers = {name.lower(): value for name, value in pairs}
    return Answer(int(lines[0].split(" ")[1]) if head else 0, headers, body, seconds)
