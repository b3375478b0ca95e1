"""Small, plausible changes of sound TIFFs: files at the edge between what is plain and what is left to GDAL."""

import struct
from dataclasses import replace
from random import Random

from hostile import tiffs

_NAMES = (
    "DESCRIPTION", "SCALE", "OFFSET", "UNITTYPE", "PROCESSING_LEVEL", "processing_level", "BOA_ADD_OFFSET",
    "QUANTIFICATION_VALUE", "AREA_OR_POINT", "OVERVIEW_FILE", "x y", "a=b", "a:b", "", "PIXELTYPE", "NBITS",
)  # fmt: skip
_VALUES = (
    "B02", "B8A", "B2, blue", "nir", " B02", "B02 ", "", "1", "0.0001", "1e-4", ".5", "5.", "+1", "-1000", "0", "nan",
    "inf", "1e999", "0x10", "1,5", "10000", "Level-1C", "L2A", "é", "a\tb", "a&amp;b", "a&#65;b", "1_000", "１",
)  # fmt: skip
_ROLES = ("description", "scale", "offset", "unittype", "colorinterp", "Description", "x")
_SAMPLES = (0, 1, 2, 3, 12, 13, 99, -1, "00", " 1", "1a")
_DOMAINS = ("", "rio_creation_kwds", "IMAGE_STRUCTURE", "OVERVIEWS")
_NO_DATA = (
    "0", "nan", "-9999", "65535", "65536", "1e3", "1e3x", " 0", "0 ", "", "inf", "-1", "0.5", "0.1", "1,5", "NaN",
    "3.4e38", "1e-40", "65535.0",
)  # fmt: skip
_TEXTS = ("x", "é", "ImageJ=1.11\nimages=2\nslices=2", "a\0b", '{"shape": [13]}')
_LETTERS = {3: "H", 4: "I", 16: "Q"}


def alter(tiff: tiffs.Tiff, random: Random) -> bytes:
    """Return the file with one or two plausible changes."""
    for _ in range(random.choice((1, 1, 2))):
        tiff = random.choice(_CHANGES)(tiff, random)
    return tiffs.build(tiff, list(tiff.entries))


def _with(tiff: tiffs.Tiff, *entries: tiffs.Entry) -> tiffs.Tiff:
    return replace(tiff, entries=tuple(tiffs.put(list(tiff.entries), *entries)))


def _number(tiff: tiffs.Tiff, random: Random) -> tiffs.Tiff:
    value = random.choice((0, 1, 2, 3, 4, 8, 13, 16, 32, 64, 65, 128))
    tag = random.choice((*tiffs.NUMBERS, 254, 274))
    return _with(tiff, tiffs.number(tiff, tag, *[value] * random.choice((1, 1, 3, 12, 13))))


def _metadata(tiff: tiffs.Tiff, random: Random) -> tiffs.Tiff:
    items = [_item(random) for _ in range(random.randrange(6))]
    written = next((e.data[:-1].decode() for e in tiff.entries if e.tag == tiffs.GDAL_METADATA), "")
    head = "<GDALMetadata>"
    if random.random() < 0.5:
        head = written.removesuffix("\n").removesuffix("</GDALMetadata>") or head
    end = "</GDALMetadata>" + random.choice(("", "\n", " "))
    return _with(tiff, tiffs.text(tiffs.GDAL_METADATA, head + "".join(items) + end))


def _item(random: Random) -> str:
    sample = f' sample="{random.choice(_SAMPLES)}"' if random.random() < 0.6 else ""
    role = f' role="{random.choice(_ROLES)}"' if random.random() < 0.6 else ""
    domain = f' domain="{random.choice(_DOMAINS)}"' if random.random() < 0.1 else ""
    return f'  <Item name="{random.choice(_NAMES)}"{sample}{role}{domain}>{random.choice(_VALUES)}</Item>\n'


def _no_data(tiff: tiffs.Tiff, random: Random) -> tiffs.Tiff:
    return _with(tiff, tiffs.text(tiffs.GDAL_NO_DATA, random.choice(_NO_DATA)))


def _text(tiff: tiffs.Tiff, random: Random) -> tiffs.Tiff:
    return _with(tiff, tiffs.text(random.choice((270, 305, 306)), random.choice(_TEXTS)))


def _place(tiff: tiffs.Tiff, random: Random) -> tiffs.Tiff:
    if random.random() < 0.5:
        scale = [random.choice((0.0, 1.0, 10.0, -10.0, 1e308, float("nan"))) for _ in range(2)]
        values, tag = [*scale, random.choice((0.0, 0.0, 1.0))], tiffs.PIXEL_SCALE
    else:
        corner = [random.choice((0.0, 5e5, -1e9, 1e300, 4_740_000.0)) for _ in range(2)]
        values, tag = [random.choice((0.0, 0.0, 0.0, 1.0)), 0.0, 0.0, *corner, 0.0], tiffs.TIE_POINTS
    data = struct.pack(f"{tiff.order}{len(values)}d", *values)
    return _with(tiff, tiffs.Entry(tag, 12, len(values), data))


def _geo_key(tiff: tiffs.Tiff, random: Random) -> tiffs.Tiff:
    keys = next((entry for entry in tiff.entries if entry.tag == tiffs.GEO_KEYS), None)
    if keys is None:
        return tiff
    form = f"{tiff.order}{len(keys.data) // 2}H"
    values = list(struct.unpack(form, keys.data))
    values[random.randrange(len(values))] = random.choice(
        (0, 1, 2, 3, 1024, 1025, 2048, 3072, 4096, 32767, 32630, 4326, 9001, 9002, 65535)
    )
    return _with(tiff, replace(keys, data=struct.pack(form, *values)))


def _left_out(tiff: tiffs.Tiff, random: Random) -> tiffs.Tiff:
    place = random.randrange(len(tiff.entries))
    return replace(tiff, entries=tiff.entries[:place] + tiff.entries[place + 1 :])


def _offset_or_size(tiff: tiffs.Tiff, random: Random) -> tiffs.Tiff:
    tags = (tiffs.STRIP_OFFSETS, tiffs.STRIP_COUNTS, tiffs.TILE_OFFSETS, tiffs.TILE_COUNTS)
    entry = random.choice([entry for entry in tiff.entries if entry.tag in tags] or list(tiff.entries))
    if entry.kind not in _LETTERS:
        return tiff
    values = list(struct.unpack(f"{tiff.order}{entry.count}{_LETTERS[entry.kind]}", entry.data))
    place = random.randrange(len(values))
    values[place] = max(0, values[place] + random.choice((-1, 1, -8, 100, 5000, -values[place])))
    return _with(tiff, tiffs.number(tiff, entry.tag, *values))


def _pixels(tiff: tiffs.Tiff, random: Random) -> tiffs.Tiff:
    content = bytearray(tiff.content)
    for _ in range(random.choice((1, 1, 3))):
        content[random.randrange(16, len(content))] = random.randrange(256)
    return replace(tiff, content=bytes(content))


_CHANGES = (
    _number, _metadata, _metadata, _no_data, _text, _place, _geo_key, _left_out, _offset_or_size, _pixels,
)  # fmt: skip
