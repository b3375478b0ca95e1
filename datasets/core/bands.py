"""The thirteen bands of Sentinel-2's MultiSpectral Instrument, identified by name and never by position.

Centre wavelengths are those of Sentinel-2A, in nm, from ESA's Sentinel-2 Spectral Response Functions
(COPE-GSEG-EOPG-TN-15-0007, version 3.0); the native resolution is the ground sampling distance in metres.
Aliases cover other spellings: unpadded (`B1`), padded (`B08A`), and the common names of the STAC `eo`
extension (`nir08`). All look-ups ignore case.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tilewise.datasets.core.errors import UnknownBandError


@dataclass(frozen=True, slots=True)
class Band:
    """One spectral band: its canonical name, its aliases, its wavelength (nm) and its resolution (m)."""

    name: str
    aliases: tuple[str, ...]
    centre_nm: float
    resolution_m: int


BANDS: tuple[Band, ...] = (
    Band("B01", ("B1", "coastal"), 442.7, 60),
    Band("B02", ("B2", "blue"), 492.4, 10),
    Band("B03", ("B3", "green"), 559.8, 10),
    Band("B04", ("B4", "red"), 664.6, 10),
    Band("B05", ("B5", "rededge071", "rededge1"), 704.1, 20),
    Band("B06", ("B6", "rededge075", "rededge2"), 740.5, 20),
    Band("B07", ("B7", "rededge078", "rededge3"), 782.8, 20),
    Band("B08", ("B8", "nir"), 832.8, 10),
    Band("B8A", ("B08A", "nir08"), 864.7, 20),
    Band("B09", ("B9", "nir09"), 945.1, 60),
    Band("B10", ("cirrus",), 1373.5, 60),
    Band("B11", ("swir16", "swir1"), 1613.7, 20),
    Band("B12", ("swir22", "swir2"), 2202.4, 20),
)
BAND_NAMES: tuple[str, ...] = tuple(band.name for band in BANDS)

L1C_BANDS = BAND_NAMES
L2A_BANDS = tuple(name for name in BAND_NAMES if name != "B10")  # Level-2A drops the cirrus band
TEN_METRE_BANDS = tuple(band.name for band in BANDS if band.resolution_m == 10)
TWENTY_METRE_BANDS = tuple(band.name for band in BANDS if band.resolution_m <= 20)
RGB_BANDS = ("B04", "B03", "B02")
EUROSAT_MS_ORDER = (*(name for name in BAND_NAMES if name != "B8A"), "B8A")  # B8A is last in EuroSAT's files

# Names for lists of bands, accepted wherever a list of bands is.
BAND_SETS: dict[str, tuple[str, ...]] = {
    "l1c": L1C_BANDS,
    "l2a": L2A_BANDS,
    "20m": TWENTY_METRE_BANDS,
    "10m": TEN_METRE_BANDS,
    "rgb": RGB_BANDS,
    "eurosat": EUROSAT_MS_ORDER,
    "eurosat-rgb": RGB_BANDS,
}

LEAVE_OUT = "_"  # in a list of a file's bands: a raster band to leave out
_LEAVING_OUT = (LEAVE_OUT, "-")  # how it may be written

_BY_NAME = {alias.lower(): band for band in BANDS for alias in (band.name, *band.aliases)}
_INDEX = {name: index for index, name in enumerate(BAND_NAMES)}
_FIRST_WORD = re.compile(r"[A-Za-z0-9]+")
_RED_EDGE = re.compile(r"red[ _-]edge[ _-]?", re.IGNORECASE)  # `Red Edge 1` is not the red band


def find_band(name: str) -> Band:
    """Return the band with the name or alias `name`, ignoring case.

    Raises:
        UnknownBandError: no band has that name; the message lists all bands.
    """
    band = _BY_NAME.get(name.strip().lower())
    if band is None:
        raise UnknownBandError(
            f"no Sentinel-2 band is called {name!r}; the bands are {', '.join(BAND_NAMES)}"
        )
    return band


def positions(names: Iterable[str]) -> list[int]:
    """Return the index of each named band in the canonical order of a tile (0 for B01 … 12 for B12)."""
    return [_INDEX[find_band(name).name] for name in names]


def parse_bands(text: str | Sequence[str]) -> tuple[str, ...]:
    """Parse `"B02,B03"`, a sequence of names, or the name of a set (`l1c`, `rgb`, …).

    `_` or `-` marks a raster band to leave out; the result has `_` there.

    Raises:
        UnknownBandError: a name is unknown or occurs twice.
    """
    words = text.split(",") if isinstance(text, str) else list(text)
    if band_set := BAND_SETS.get(",".join(words).strip().lower()):
        return band_set
    names = tuple(LEAVE_OUT if word.strip() in _LEAVING_OUT else find_band(word).name for word in words)
    known = [name for name in names if name in BAND_NAMES]
    if len(set(known)) != len(known):
        raise UnknownBandError(f"a band is named twice in {', '.join(names)}")
    return names


def band_of_description(description: str | None) -> str | None:
    """Return the band that a raster band's description names, or None.

    Descriptions are free text, such as `B8A`, `B4, central wavelength 665 nm` (GDAL's SENTINEL2 driver) or
    `red`; the first word decides.
    """
    match = _FIRST_WORD.match(_RED_EDGE.sub("rededge", (description or "").strip()))
    band = _BY_NAME.get(match.group().lower()) if match else None
    return band.name if band else None


def sets_of_length(count: int) -> list[str]:
    """Return the names of the sets in BAND_SETS that have `count` bands."""
    return [name for name, bands in BAND_SETS.items() if len(bands) == count]
