"""Proof that nothing outside an upload is touched: a file that tells when it is opened, a port that tells of
calls."""

import ctypes
import os
import socket
import struct
from pathlib import Path

_OPEN_OR_READ = 0x20 | 0x01  # IN_OPEN, IN_ACCESS of inotify(7)


class Canary:
    """A file and a port that nobody has any business with."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "canary.tif"
        self.path.write_bytes(b"a secret of the server\n")
        self._library = ctypes.CDLL(None, use_errno=True)
        self._watch = self._library.inotify_init1(os.O_NONBLOCK)
        if self._library.inotify_add_watch(self._watch, str(self.path).encode(), _OPEN_OR_READ) < 0:
            raise OSError(ctypes.get_errno(), "inotify does not work here")
        self._port = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._port.setblocking(False)
        self.opened, self.called = 0, 0

    @property
    def names(self) -> list[str]:
        """What uploads call it."""
        url = f"http://127.0.0.1:{self._port.getsockname()[1]}/canary.tif"
        return [str(self.path), f"file://{self.path}", url, f"/vsicurl/{url}"]

    def look(self) -> tuple[int, int]:
        """Return how often the file was opened or read, and the port called, until now."""
        try:
            events = os.read(self._watch, 65536)
        except BlockingIOError:
            events = b""
        place = 0
        while place < len(events):
            place += 16 + struct.unpack_from("iIII", events, place)[3]
            self.opened += 1
        while True:
            try:
                self._port.accept()[0].close()
            except BlockingIOError:
                return self.opened, self.called
            self.called += 1
