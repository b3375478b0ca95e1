"""Convert the numbers in a file to DN = reflectance × 10 000.

ESA's products define reflectance = (number + ADD_OFFSET) / QUANTIFICATION_VALUE. The offset is −1000 since
processing baseline 04.00 (25 January 2022) and 0 before; 0 always means no data. Here the same is written as
reflectance = (number + offset) × scale. A file's scale and offset come from its metadata or from the user,
and are never guessed from the values: a DN of 1,300 may be a meadow without the offset or water with it.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from tilewise.datasets.core.bands import EUROSAT_MS_ORDER, RGB_BANDS
from tilewise.datasets.core.errors import RadiometryUnknownError

QUANTIFICATION = 10_000
DN_MAX = 65_535
FIRST_OFFSET_BASELINE = 4.0  # https://sentiwiki.copernicus.eu/web/s2-processing#baseline-04.00
BASELINE_OFFSET = -1000.0

# EuroSAT's RGB tiles: 8 bit = 1 + DN × 254 / 2750, rounded, 255 where DN is higher (docs/decisions/0002).
RGB_DN_PER_STEP = 2750 / 254
RGB_ZERO = 1


class Level(StrEnum):
    """Processing level: top-of-atmosphere (L1C) or surface reflectance (L2A)."""

    L1C = "L1C"
    L2A = "L2A"


@dataclass(frozen=True, slots=True)
class Radiometry:
    """Conversion of a file's numbers to reflectance: (number + offset) × scale, at a processing level."""

    level: Level
    scale: float
    offset: float

    @property
    def is_identity(self) -> bool:
        """Whether the file's numbers are already DN."""
        return self.offset == 0 and abs(self.scale * QUANTIFICATION - 1) < 1e-9

    def to_dn(self, numbers: npt.NDArray[np.generic], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint16]:
        """Return DN (uint16, the shape of `numbers`); 0 where not `valid`.

        A valid pixel never becomes 0, since 0 is no data: lower values are clipped to 1 (reflectance 0.0001),
        as ESA clips dark pixels when it removes the offset, and higher ones to 65,535.
        """
        factor = self.scale * QUANTIFICATION
        if numbers.dtype == np.uint16 and self.is_identity:
            return np.where(valid, numbers, np.uint16(0)).astype(np.uint16, copy=False)
        dn = np.where(valid, numbers, 0).astype(np.float32)
        dn += np.float32(self.offset)
        dn *= np.float32(factor)
        np.clip(np.rint(dn, out=dn), 1, DN_MAX, out=dn)
        dn[~valid] = 0
        return dn.astype(np.uint16)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """The user's options for reading files: they win over the files' own metadata. None: use the metadata.

    Attributes:
        bands: canonical band names in the file's order; `_` for a band to leave out.
        level: processing level.
        scale: reflectance per unit of the file's numbers (0.0001 for DN, 1 for reflectance 0–1).
        offset: added to the file's numbers before scaling (ESA's BOA_ADD_OFFSET: 0 or −1000).
    """

    bands: tuple[str, ...] | None = None
    level: Level | None = None
    scale: float | None = None
    offset: float | None = None


PRESETS: dict[str, ReadOptions] = {
    "eurosat": ReadOptions(EUROSAT_MS_ORDER, Level.L1C, 1 / QUANTIFICATION, 0.0),
    "eurosat-rgb": ReadOptions(RGB_BANDS, Level.L1C, RGB_DN_PER_STEP / QUANTIFICATION, -float(RGB_ZERO)),
}
"""What a list of bands says of level, scale and offset, where it is that of a published dataset."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """A raster file's metadata that bear on radiometry.

    Attributes:
        name: the file's name (a SAFE product's name has its level and baseline).
        dtype: numpy name of its data type.
        tags: its metadata items.
        bands: the canonical names of its spectral bands.
        scale: its declared GDAL scale, or None where it is the default 1.
        offset: its declared GDAL offset in reflectance, or None where scale and offset are the defaults.
    """

    name: str
    dtype: str
    tags: Mapping[str, str]
    bands: tuple[str, ...] = ()
    scale: float | None = None
    offset: float | None = None

    def tag(self, *names: str) -> str | None:
        """Return the first of the named metadata items that the file has, ignoring case."""
        lowered = {key.lower(): value for key, value in self.tags.items()}
        return next((lowered[name.lower()] for name in names if name.lower() in lowered), None)


_LEVEL_IN_TAG = re.compile(r"(1C|2A)", re.IGNORECASE)  # Level-1C, L2A, S2MSI1C, …
_LEVEL_IN_PRODUCT_NAME = re.compile(r"_MSIL(1C|2A)_")
_BASELINE = re.compile(r"_N(\d{2})\d{2}_")  # `_N0511_`: 05.11, of which the first number decides


def decide_radiometry(facts: FileFacts, options: ReadOptions) -> Radiometry:
    """Return how the file's numbers become reflectance: by the user's options, else by the file's metadata.

    Raises:
        RadiometryUnknownError: level, scale or offset are in neither; the message names all that are missing.
    """
    level = options.level or _level_of(facts)
    scale = options.scale if options.scale is not None else _scale_of(facts, level)
    offset = options.offset if options.offset is not None else _offset_of(facts)
    if level is None or scale is None or offset is None:
        raise RadiometryUnknownError(_missing_message(facts, level, scale, offset))
    return Radiometry(level, scale, offset)


def _level_of(facts: FileFacts) -> Level | None:
    if "B10" in facts.bands:  # the cirrus band exists in Level-1C alone
        return Level.L1C
    match = _LEVEL_IN_TAG.search(facts.tag("PROCESSING_LEVEL", "PRODUCT_TYPE") or "")
    match = match or _LEVEL_IN_PRODUCT_NAME.search(facts.tag("PRODUCT_URI") or facts.name)
    return Level(f"L{match.group(1).upper()}") if match else None


def _scale_of(facts: FileFacts, level: Level | None) -> float | None:
    if facts.scale is not None:
        return facts.scale
    quantification = _number(facts.tag("QUANTIFICATION_VALUE", "BOA_QUANTIFICATION_VALUE"))
    if quantification is not None and quantification > 0:
        return 1 / quantification
    # ESA's integer products of either level are quantised by 10 000; floats and bytes may hold anything.
    return 1 / QUANTIFICATION if level and facts.dtype in ("uint16", "int16") else None


def _offset_of(facts: FileFacts) -> float | None:
    added = _esa_offset_of(facts)
    if facts.offset is None or not facts.scale:
        return added
    if facts.offset == 0 and added:  # a GDAL scale alone, and ESA's offset: it may be removed or forgotten
        return None
    return facts.offset / facts.scale


def _esa_offset_of(facts: FileFacts) -> float | None:
    added = _number(facts.tag("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET"))
    if added is not None:
        return added
    baseline = _baseline_of(facts)
    if baseline is None:
        return None
    return BASELINE_OFFSET if baseline >= FIRST_OFFSET_BASELINE else 0.0


def _baseline_of(facts: FileFacts) -> float | None:
    tagged = _number(facts.tag("PROCESSING_BASELINE"))
    if tagged is not None:
        return tagged
    match = _BASELINE.search(facts.tag("PRODUCT_URI") or facts.name)
    return float(match.group(1)) if match else None


def _number(text: str | None) -> float | None:
    """Return the finite number in a metadata item, or None where it is missing or not a number."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _missing_message(facts: FileFacts, level: Level | None, scale: float | None, offset: float | None) -> str:
    missing = []
    if level is None:
        missing.append("level (L1C or L2A)")
    if scale is None:
        missing.append("scale (reflectance per unit: 0.0001 for DN, 1 for reflectance 0-1)")
    if offset is None:
        missing.append("offset (0 for processing baselines before 04.00 and harmonised data, -1000 since)")
    names = " and no ".join(text.split(" (")[0] for text in missing)
    return (
        f"{facts.name}: its metadata have no {names}; "
        f"give {'; '.join(missing)} - as options on the command line (--level L2A …), as fields of a request"
    )
