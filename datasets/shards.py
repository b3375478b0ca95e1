"""Reading ahead of training: the pixels of coming steps, in the order of the file, so that the disk reads in one go.

A pack larger than the memory is still read through its memory map. A thread reads the same bytes a little earlier, in
long sequential runs, so that the map finds them in the page cache. If the thread falls behind, training waits for the
disk, but nothing changes in what it sees.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from datasets.pack import PLANE_BYTES, PLANES

if TYPE_CHECKING:
    from datasets.pack import Pack

_GAP = 512 * 1024  # bytes that are cheaper to read through than to skip
_PIECE = 8 * 2**20
_AHEAD = 4  # requests that may wait: more would push out of the cache what is needed first


class ReadAhead:
    """Reads the tiles of coming steps in the background.

    Attributes:
        bytes_read: so far.
    """

    def __init__(self, pack: Pack) -> None:
        self._pack, self.bytes_read = pack, 0
        self._wanted: queue.Queue[npt.NDArray[np.int64] | None] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(target=self._work, name="read-ahead", daemon=True)
        self._thread.start()

    def want(self, rows: npt.NDArray[np.int64]) -> None:
        """Have the tiles in `rows` read; forgotten if the disk is behind already."""
        if not len(rows):
            return
        try:
            self._wanted.put_nowait(rows)
        except queue.Full:
            return

    def close(self) -> None:
        """Finish what was asked for, and end the thread."""
        self._wanted.put(None)
        self._thread.join(timeout=60)

    def _work(self) -> None:
        buffer = memoryview(bytearray(_PIECE))
        with (self._pack.root / PLANES).open("rb", buffering=0) as file:
            while (rows := self._wanted.get()) is not None:
                for start, stop in byte_ranges(self._pack, rows):
                    file.seek(start)
                    while start < stop and (count := file.readinto(buffer[: min(_PIECE, stop - start)])):
                        start += count
                        self.bytes_read += count


def byte_ranges(pack: Pack, rows: npt.NDArray[np.int64], gap: int = _GAP) -> list[tuple[int, int]]:
    """Return where the pixels of `rows` lie in the file of planes: ascending (start, stop), near ones made one."""
    ordered = np.unique(rows)
    starts = pack.first_plane[ordered] * PLANE_BYTES
    stops = starts + np.array([len(pack.places[row]) for row in ordered], np.int64) * PLANE_BYTES
    breaks = np.flatnonzero(starts[1:] - stops[:-1] > gap) + 1
    firsts, lasts = np.concatenate([[0], breaks]), np.concatenate([breaks, [len(ordered)]]) - 1
    return [(int(starts[first]), int(stops[last])) for first, last in zip(firsts, lasts, strict=True)]
