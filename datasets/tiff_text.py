"""How many directories a TIFF has and how much text they hold, told without GDAL, which may need hours for them.

GDAL puts metadata items (tag 42112, XML) into a list one after another, and looks the whole list through for each:
60,000 items take 6 s, and ten times as many a hundred times as long; those of overviews it reads, too. The layout:
TIFF 6.0, section 2; BigTIFF: http://bigtiff.org.
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO

GDAL_METADATA, SUB_DIRECTORIES = 42112, 330
MOST_DIRECTORIES = 256  # those beyond are not looked at
_MOST_ENTRIES = 4096  # of a directory; libtiff takes what has more for none
_BEYOND = 2**62  # the end of any file


@dataclass(frozen=True, slots=True)
class _Layout:
    """How numbers are written in a file: their order, and the sizes that differ in a BigTIFF."""

    order: str
    big: bool

    @property
    def place(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "I"))

    @property
    def count(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "H"))

    @property
    def entry(self) -> struct.Struct:
        return struct.Struct(self.order + ("HHQ8s" if self.big else "HHI4s"))


def count_text(file: BinaryIO) -> tuple[int, int]:
    """Return the number of directories in `file` and the bytes of GDAL's metadata in them; (0, 0): it is no sound TIFF.

    Directories are told up to one more than `MOST_DIRECTORIES`.
    """
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return 0, 0
    layout = _Layout(order, struct.unpack(order + "H", head[2:4])[0] == 43)
    waiting, seen, text = [layout.place.unpack_from(head, 8 if layout.big else 4)[0]], set[int](), 0
    while waiting and len(seen) <= MOST_DIRECTORIES:
        place = waiting.pop()
        if place and place not in seen:
            seen.add(place)
            more, size = _read_directory(file, place, layout)
            waiting += more
            text += size
    return len(seen), text


def _read_directory(file: BinaryIO, place: int, layout: _Layout) -> tuple[list[int], int]:
    """Return where further directories are that this one names, and the bytes of its text."""
    file.seek(min(place, _BEYOND))
    first = file.read(layout.count.size)
    if len(first) < layout.count.size:
        return [], 0
    form = layout.entry
    size = layout.count.unpack(first)[0] * form.size
    if size > _MOST_ENTRIES * form.size:
        return [], 0
    content = file.read(size + layout.place.size)
    lines = list(form.iter_unpack(content[: min(size, len(content) - len(content) % form.size)]))
    following = content[size:]
    further = [layout.place.unpack(following)[0]] if len(following) == layout.place.size else []
    for tag, kind, count, value in lines:
        if tag == SUB_DIRECTORIES:
            further += _read_places(file, kind, count, value, layout)
    return further, sum(count for tag, _, count, _ in lines if tag == GDAL_METADATA)


def _read_places(file: BinaryIO, kind: int, count: int, value: bytes, layout: _Layout) -> list[int]:
    """Return the places that an entry holds, as 4 or 8 bytes each: in itself, or where it says."""
    number = struct.Struct(layout.order + ("Q" if kind in (16, 18) else "I"))
    size = min(count, MOST_DIRECTORIES + 1) * number.size
    if size > len(value):
        file.seek(min(layout.place.unpack(value)[0], _BEYOND))
        value = file.read(size)
    whole = min(size, len(value) - len(value) % number.size)
    return [place for (place,) in number.iter_unpack(value[:whole])]
