"""TIFF files taken apart into their directories' entries, and put together again wrongly.

A mutated file keeps the sound one's bytes and gets a new directory at its end, so the pixels stay where they
were. The
layout of files, entries and types: TIFF 6.0, section 2; BigTIFF: http://bigtiff.org.
"""

import struct
from dataclasses import dataclass, replace
from random import Random

SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIP_OFFSETS, SAMPLES, ROWS, STRIP_COUNTS, PLANAR = 273, 277, 278, 279, 284
PREDICTOR, TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS = 317, 322, 323, 324, 325
SUB_IFDS, EXTRA, FORMAT, JPEG_TABLES, EXIF = 330, 338, 339, 347, 34665
PIXEL_SCALE, TIE_POINTS, TRANSFORM, GEO_KEYS, GEO_DOUBLES, GEO_ASCII = (
    33550,
    33922,
    34264,
    34735,
    34736,
    34737,
)
GDAL_METADATA, GDAL_NO_DATA, RPC, LERC = 42112, 42113, 50844, 50674
NUMBERS = (
    WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, ROWS, PLANAR, PREDICTOR, TILE_WIDTH, TILE_LENGTH, EXTRA,
    FORMAT,
)  # fmt: skip
ODD = (
    0,
    1,
    2,
    3,
    15,
    16,
    63,
    64,
    65,
    127,
    255,
    256,
    4096,
    32767,
    65535,
    65536,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
COMPRESSIONS = (
    0,
    1,
    2,
    4,
    5,
    6,
    7,
    8,
    32773,
    32946,
    34712,
    34887,
    34925,
    50000,
    50001,
    50002,
    52546,
    9999,
    65535,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a directory: what it says of itself, and the bytes of its value; `place` overrides where
    they lie."""

    tag: int
    kind: int
    count: int
    data: bytes
    place: int | None = None


@dataclass(frozen=True, slots=True)
class Tiff:
    """A file and the entries of its first directory."""

    content: bytes
    order: str
    big: bool
    entries: tuple[Entry, ...]


def parse(content: bytes) -> Tiff:
    """Take a sound TIFF apart."""
    order = "<" if content[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", content, 2)[0] == 43
    start = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)[0]
    count = struct.unpack_from(order + ("Q" if big else "H"), content, start)[0]
    form, size, head = (order + "HHQ", 20, 12) if big else (order + "HHI", 12, 8)
    entries = []
    for place in range(start + (8 if big else 2), start + (8 if big else 2) + count * size, size):
        tag, kind, number = struct.unpack_from(form, content, place)
        length = SIZES.get(kind, 1) * number
        inline = size - head
        if length <= inline:
            data = content[place + head : place + head + length]
        else:
            offset = struct.unpack_from(order + ("Q" if big else "I"), content, place + head)[0]
            data = content[offset : offset + length]
        entries.append(Entry(tag, kind, number, data))
    return Tiff(content, order, big, tuple(entries))


def build(tiff: Tiff, entries: list[Entry], following: int | None = 0) -> bytes:
    """Put a file together with other entries; `following` is the place of a next directory, None: itself."""
    order, big = tiff.order, tiff.big
    out = bytearray(tiff.content)
    inline = 8 if big else 4
    lines = []
    for entry in entries:
        value = entry.data
        if entry.place is not None:
            value = struct.pack(order + ("Q" if big else "I"), entry.place & (2 ** (8 * inline) - 1))
        elif len(value) > inline:
            value = struct.pack(order + ("Q" if big else "I"), len(out))
            out += entry.data
        count = entry.count & (2 ** (8 * inline) - 1)
        lines.append(
            struct.pack(order + ("HHQ" if big else "HHI"), entry.tag, entry.kind, count)
            + value.ljust(inline, b"\0")
        )
    start = len(out)
    out += struct.pack(order + ("Q" if big else "H"), len(lines)) + b"".join(lines)
    out += struct.pack(order + ("Q" if big else "I"), start if following is None else following)
    struct.pack_into(order + ("Q" if big else "I"), out, 8 if big else 4, start)
    return bytes(out)


def number(tiff: Tiff, tag: int, *values: int) -> Entry:
    """Return an entry of one or several 32-bit numbers (SHORT where all are small, as most writers do)."""
    short = all(0 <= value < 2**16 for value in values)
    data = struct.pack(
        tiff.order + str(len(values)) + ("H" if short else "I"), *(v & 0xFFFFFFFF for v in values)
    )
    return Entry(tag, 3 if short else 4, len(values), data)


def text(tag: int, value: str | bytes) -> Entry:
    """Return an entry of text."""
    data = (value.encode() if isinstance(value, str) else value) + b"\0"
    return Entry(tag, 2, len(data), data)


def put(entries: list[Entry], *new: Entry) -> list[Entry]:
    """Return the entries with some replaced or added, in the order of their tags."""
    tags = {entry.tag for entry in new}
    return sorted(
        [entry for entry in entries if entry.tag not in tags] + list(new), key=lambda entry: entry.tag
    )


def geo_keys(tiff: Tiff, citation: str, place: int = 1026) -> tuple[Entry, Entry]:
    """Return the entries of a projected CRS of which little is said but words.

    They stand as the file's own citation (1026), from which GDAL reads what ESRI's programs write, or as the
    CRS's (3073).
    """
    length = len(citation.encode()) + 1
    known = {1024: 1, 1025: 1, 2048: 4326, 3072: 32767, 3074: 32767, 3075: 1, 3076: 9001}
    lines = [(key, 0, 1, value) for key, value in known.items()] + [(place, GEO_ASCII, length, 0)]
    keys = [1, 1, 0, len(lines), *(number for line in sorted(lines) for number in line)]
    return Entry(GEO_KEYS, 3, len(keys), struct.pack(f"{tiff.order}{len(keys)}H", *keys)), text(
        GEO_ASCII, citation + "|"
    )


def esri(canary: str) -> list[str]:
    """Return CRS texts that name a file: as a grid of shifts, and as a file of definitions."""
    form = (
        "ESRI PE String = "
        'PROJCS["x",GEOGCS["g",DATUM["d",SPHEROID["s",6378137,298.257]{0}],PRIMEM["Greenwich",0],'
        'UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],UNIT["metre",1]{1}]'
    )
    projected = ',EXTENSION["PROJ4","{} +units=m +wktext"]'
    return [
        form.format(f',EXTENSION["PROJ4_GRIDS","{canary}"]', ""),
        form.format("", projected.format(f"+proj=utm +zone=29 +ellps=WGS84 +nadgrids={canary}")),
        form.format("", projected.format(f"+proj=utm +zone=29 +ellps=WGS84 +geoidgrids={canary}")),
        form.format("", projected.format(f"+init={canary}:x")),
    ]


def gdal_metadata(items: list[tuple[str, str, str]]) -> str:
    """Return GDAL's XML of metadata items: (name, domain, value)."""
    lines = [f'<Item name="{name}" domain="{domain}">{value}</Item>' for name, domain, value in items]
    return f"<GDALMetadata>{''.join(lines)}</GDALMetadata>"


def references(canary: str) -> list[str]:
    """Return metadata that name another file where GDAL, or one of its drivers, might follow it."""
    return [
        gdal_metadata([("OVERVIEW_FILE", "OVERVIEWS", canary)]),
        gdal_metadata(
            [("OVERVIEW_FILE", "OVERVIEWS", f":::BASE:::{canary}"), ("INTERNAL_MASK_FLAGS_1", "", "2")]
        ),
        gdal_metadata(
            [
                ("X_DATASET", "GEOLOCATION", canary),
                ("Y_DATASET", "GEOLOCATION", canary),
                ("X_BAND", "GEOLOCATION", "1"),
            ]
        ),
        gdal_metadata(
            [("SUBDATASET_1_NAME", "SUBDATASETS", canary), ("FILENAME", "PROXY_OVERVIEW_REQUEST", canary)]
        ),
        gdal_metadata([("METADATATYPE", "IMD", canary), ("filename", "xml:VRT", canary)]),
        gdal_metadata(
            [
                (
                    "x",
                    'xml:VRT" format="xml',
                    f"<VRTDataset><SourceFilename>{canary}</SourceFilename></VRTDataset>",
                )
            ]
        ),
        f'<!DOCTYPE x [<!ENTITY e SYSTEM "{canary}">]><GDALMetadata><Item name="a">&e;</Item></GDALMetadata>',
    ]


def bombs(random: Random) -> str:
    """Return XML that is small and means much, or is deep, or long, or broken."""
    choice = random.randrange(6)
    if choice == 0:
        laughs = "".join(f'<!ENTITY l{i} "{10 * ("&l" + str(i - 1) + ";")}">' for i in range(1, 10))
        return (
            f'<!DOCTYPE l [<!ENTITY l0 "ha">{laughs}]><GDALMetadata><Item name="x">&l9;</Item></GDALMetadata>'
        )
    if choice == 1:
        return "<GDALMetadata>" + "<a>" * random.choice((10, 1000, 20_000))
    if choice == 2:
        return gdal_metadata(
            [(f"N{i}", "", "v" * random.choice((1, 100))) for i in range(random.choice((10, 2000)))]
        )
    if choice == 3:
        return _role("offset", random.choice(ODD), random.choice(("nan", "1e999", "x", "-1")))
    if choice == 4:
        return _role(
            "description", random.choice((0, -1, 99_999_999_999)), random.choice(("B02", chr(1), "é" * 1000))
        )
    return "<GDALMetadata><Item name=" + random.choice(
        ("'", '"x"', '"x" sample="', "<<<<", "]]>", "&#0;", "&#xFFFFFFFF;")
    )


def _role(role: str, sample: int, value: str) -> str:
    return f'<GDALMetadata><Item name="{role.upper()}" sample="{sample}" role="{role}">{value}</Item></GDALMetadata>'


def mutate(tiff: Tiff, random: Random, canary: str) -> bytes:
    """Return a mutated file."""
    entries = list(tiff.entries)
    content = bytearray(tiff.content)
    for _ in range(random.choice((1, 1, 1, 2, 3, 5))):
        entries = random.choice(_ENTRY_MUTATIONS)(tiff, entries, random, canary)
    if random.random() < 0.3:
        _damage_blocks(tiff, content, random)
    following = random.choice((0, 0, 0, 0, None, 8, len(content), 2**32 - 1, random.randrange(len(content))))
    out = build(replace(tiff, content=bytes(content)), entries, following)
    return _damage_file(out, random) if random.random() < 0.15 else out


def _some_number(tiff: Tiff, entries: list[Entry], random: Random, canary: str) -> list[Entry]:
    return put(entries, number(tiff, random.choice(NUMBERS), random.choice(ODD)))


def _compression(tiff: Tiff, entries: list[Entry], random: Random, canary: str) -> list[Entry]:
    kind = random.choice(COMPRESSIONS)
    found = put(
        entries,
        number(tiff, COMPRESSION, kind),
        number(tiff, PREDICTOR, random.choice((0, 1, 2, 3, 4, 34892))),
    )
    if kind in (6, 7):
        tables = random.randbytes(random.choice((0, 2, 600)))
        found = put(
            found,
            Entry(JPEG_TABLES, 7, len(tables), tables),
            number(tiff, PHOTOMETRIC, random.choice((1, 2, 6))),
        )
    if kind == 34887:
        found = put(found, number(tiff, LERC, random.choice((0, 4, 9)), random.choice((0, 1, 2, 7))))
    return found


def _layout(tiff: Tiff, entries: list[Entry], random: Random, canary: str) -> list[Entry]:
    size = random.choice((0, 1, 16, 64, 256, 4096, 16384, 65536, 2**31 - 16, 2**32 - 16))
    other = random.choice((size, 16, 64, 1))
    offsets, counts = (
        [random.choice((0, 8, len(tiff.content), 2**32 - 1)) for _ in range(random.choice((1, 13, 64)))]
        for _ in range(2)
    )
    return put(
        [entry for entry in entries if entry.tag not in (STRIP_OFFSETS, STRIP_COUNTS, ROWS)],
        number(tiff, TILE_WIDTH, size),
        number(tiff, TILE_LENGTH, other),
        number(tiff, TILE_OFFSETS, *offsets),
        number(tiff, TILE_COUNTS, *counts),
    )


def _type_or_count(tiff: Tiff, entries: list[Entry], random: Random, canary: str) -> list[Entry]:
    if not entries:
        return entries
    place = random.randrange(len(entries))
    entry = entries[place]
    change = random.randrange(6)
    if change == 0:
        entry = replace(entry, kind=random.choice((*range(20), 129, 65535)))
    elif change == 1:
        entry = replace(entry, count=random.choice((*ODD, 2**40, 2**63, 2**64 - 1)))
    elif change == 2:
        entry = replace(entry, tag=random.choice((0, 65535, *(other.tag for other in entries))))
    elif change == 3:
        entry = replace(
            entry, place=random.choice((0, 4, 8, len(tiff.content), len(tiff.content) - 1, 2**32 - 1, 2**63))
        )
    elif change == 4:
        entry = replace(entry, data=random.randbytes(len(entry.data)))
    else:
        return entries[:place] + entries[place + 1 :]
    return [*entries[:place], entry, *entries[place + 1 :]]


def _order(tiff: Tiff, entries: list[Entry], random: Random, canary: str) -> list[Entry]:
    changed = [*entries, *random.sample(entries, min(len(entries), 3))]
    random.shuffle(changed)
    return changed


def _metadata(tiff: Tiff, entries: list[Entry], random: Random, canary: str) -> list[Entry]:
    written = random.choice(references(canary)) if random.random() < 0.4 else bombs(random)
    return put(entries, text(GDAL_METADATA, written))


def _place(tiff: Tiff, entries: list[Entry], random: Random, canary: str) -> list[Entry]:
    choice = random.randrange(5)
    if choice == 0:
        return put(entries, *geo_keys(tiff, random.choice(esri(canary)), random.choice((1026, 3073))))
    if choice == 1:
        count = random.choice((4, 16, 32, 400))
        known = (1024, 1025, 2048, 2049, 2054, 3072, 3073, 3074, 4096, GEO_DOUBLES, GEO_ASCII)
        keys = [random.choice((*ODD[:15], *known)) & 0xFFFF for _ in range(count)]
        return put(entries, Entry(GEO_KEYS, 3, count, struct.pack(f"{tiff.order}{count}H", *keys)))
    if choice == 2:
        codes = (
            1,
            1,
            0,
            2,
            1024,
            0,
            1,
            random.choice((1, 2, 3)),
            random.choice((2048, 3072, 4096)),
            0,
            1,
            random.randrange(65536),
        )
        return put(entries, Entry(GEO_KEYS, 3, len(codes), struct.pack(f"{tiff.order}{len(codes)}H", *codes)))
    tag, count = random.choice(
        ((PIXEL_SCALE, 3), (TIE_POINTS, 6), (TRANSFORM, 16), (GEO_DOUBLES, 4), (RPC, 92))
    )
    numbers = [
        random.choice((0.0, 1.0, -1.0, 1e308, -1e-308, float("nan"), float("inf"), 540_000.0))
        for _ in range(count)
    ]
    return put(entries, Entry(tag, 12, count, struct.pack(f"{tiff.order}{count}d", *numbers)))


def _pointer(tiff: Tiff, entries: list[Entry], random: Random, canary: str) -> list[Entry]:
    places = [random.choice((0, 8, len(tiff.content), 2**32 - 1)) for _ in range(random.choice((1, 2, 50)))]
    return put(entries, number(tiff, random.choice((SUB_IFDS, EXIF, 34853, 40965)), *places))


def _words(tiff: Tiff, entries: list[Entry], random: Random, canary: str) -> list[Entry]:
    tag = random.choice((270, 305, 306, 315, 700, 33432, GDAL_NO_DATA, 34675, 34377, 50838, 50839, 65000))
    value = random.choice(
        (b"", b"nan", b"1e400", canary.encode(), b"\xff\xfe\xfd", b"%s%n%x" * 50, b"A" * 70_000, b"0x7")
    )
    return put(entries, text(tag, value))


_ENTRY_MUTATIONS = (
    _some_number, _some_number, _compression, _compression, _layout, _type_or_count, _type_or_count, _type_or_count,
    _order, _metadata, _metadata, _place, _place, _pointer, _words,
)  # fmt: skip


def _damage_blocks(tiff: Tiff, content: bytearray, random: Random) -> None:
    """Change bytes of the pixels, which lie anywhere between the header and the end."""
    start = random.randrange(16, len(content))
    length = random.choice((1, 1, 8, 200))
    content[start : start + length] = random.randbytes(len(content[start : start + length]))


def _damage_file(content: bytes, random: Random) -> bytes:
    choice = random.randrange(5)
    if choice == 0:
        return content[: random.randrange(len(content))]
    if choice == 1:
        return random.randbytes(random.choice((1, 4, 100))) + content
    if choice == 2:
        return content[:4] + struct.pack("<I", random.randrange(2**32)) + content[8:]
    if choice == 3:
        return content + random.randbytes(random.choice((1, 5000)))
    changed = bytearray(content)
    for _ in range(random.choice((1, 4, 64))):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)
