"""Find clouds in the pixels of a scene that comes without a cloud mask.

A logistic regression decides each pixel by its own reflectances, so a pixel does not depend on the window
that it is read with. Its inputs are reflectances, the darkest of the visible bands, and normalised
differences to the red band; there is one table of weights for each set of bands. `benchmarks/clouds.py` fits
the tables on real scenes and measures them on others (docs/decisions/0032). Cloud shadows are not found, and
thin cirrus only half of the time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tilewise.datasets.core.bands import positions
from tilewise.datasets.core.radiometry import QUANTIFICATION, Level
from tilewise.datasets.core.tile import DN

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

VISIBLE = ("B02", "B03", "B04")
_NIR = ("B08", "B8A")  # the second where the first is absent, as in products at 60 m
_AT_ONCE = 2**16  # pixels: what is computed of them stays in the caches of a core
_MIN_BANDS = 3  # equal numbers in fewer bands may be chance


@dataclass(frozen=True, slots=True)
class CloudWeights:
    """Weights of the log-odds that a pixel is cloud.

    Attributes:
        bias: the constant for each level, since the atmosphere brightens what Level-1C sees.
        reflectance: of each band's reflectance (0-1), by its name; `NIR` is B08 or B8A.
        darkest: of the smallest reflectance of the visible bands.
        difference: of (band - B04) / (band + B04), by the band's name.
    """

    bias: Mapping[Level, float]
    reflectance: Mapping[str, float]
    darkest: float
    difference: Mapping[str, float]


TABLES: tuple[CloudWeights, ...] = (
    CloudWeights(
        bias={Level.L1C: -4.692, Level.L2A: -5.085},
        reflectance={"B02": -2.568, "B03": 9.843, "B04": -19.413, "NIR": 11.437, "B11": -24.649},
        darkest=48.074,
        difference={"B02": -0.769, "B03": -8.744, "NIR": 4.935, "B11": -2.77},
    ),
    CloudWeights(
        bias={Level.L1C: -4.624, Level.L2A: -3.939},
        reflectance={"B02": -9.277, "B03": 56.314, "B04": -81.197, "NIR": -0.414},
        darkest=66.585,
        difference={"B02": -2.686, "B03": -5.423, "NIR": 1.684},
    ),
    CloudWeights(
        bias={Level.L1C: -4.073, Level.L2A: -3.244},
        reflectance={"B02": -7.037, "B03": 68.578, "B04": -82.855},
        darkest=50.412,
        difference={"B02": -3.205, "B03": -4.919},
    ),
)
"""From the most bands to the fewest; made by `python benchmarks/clouds.py DATA --fit`."""


def table_for(bands: tuple[str, ...]) -> CloudWeights | None:
    """Return the weights for a scene with these bands; None where it lacks a visible band."""
    present = {*bands, *(("NIR",) if set(_NIR) & set(bands) else ())}
    return next((table for table in TABLES if set(table.reflectance) <= present), None)


def find_clouds(pixels: DN, bands: tuple[str, ...], level: Level | None, table: CloudWeights) -> Mask:
    """Return bool (height, width): where a scene's pixels are cloud, or fill without any data.

    Args:
        pixels: uint16 (13, height, width), DN; 0 = no data.
        bands: canonical names of the scene's bands.
        level: processing level; None counts as Level-1C.
        table: as `table_for` returns it.
    """
    found = is_fill(pixels, bands)
    step = max(1, _AT_ONCE // pixels.shape[2])
    for row in range(0, pixels.shape[1], step):
        odds = log_odds(pixels[:, row : row + step], bands, table)
        found[row : row + step] |= odds > -table.bias[level or Level.L1C]
    return found


def log_odds(pixels: DN, bands: tuple[str, ...], table: CloudWeights) -> Floats:
    """Return float32 (height, width): log-odds of cloud without the bias; -inf where a band is missing."""
    values = read_inputs(pixels, bands, tuple(table.reflectance))
    odds = np.float32(table.darkest) * darkest_of(values)
    for name, weight in table.reflectance.items():
        odds += np.float32(weight) * values[name]
    for name, weight in table.difference.items():
        odds += np.float32(weight) * difference_to_red(values, name)
    for value in values.values():
        odds[value == 0] = -np.inf
    return odds


def is_fill(pixels: DN, bands: tuple[str, ...]) -> Mask:
    """Return bool (height, width): where all bands have the same number, which no surface has.

    Such are undeclared no-data values, as 65535, or -9999 after it was clipped.
    """
    if len(bands) < _MIN_BANDS:
        return np.zeros(pixels.shape[1:], bool)
    first, *others = positions(bands)
    same = np.asarray((pixels[first] > 0) & (pixels[first] == pixels[others[0]]))
    rows, columns = np.nonzero(same)  # few, as a rule
    numbers, still = pixels[first, rows, columns], np.ones(len(rows), bool)
    for index in others[1:]:
        still &= pixels[index, rows, columns] == numbers
    same[rows, columns] = still
    return same


def read_inputs(pixels: DN, bands: tuple[str, ...], names: tuple[str, ...]) -> dict[str, Floats]:
    """Return the reflectances (0-6.5, float32) of the bands that a table names; 0 is no data."""
    nir = next((name for name in _NIR if name in bands), "")
    chosen = positions([nir if name == "NIR" else name for name in names])
    scale = np.float32(1 / QUANTIFICATION)
    return {name: pixels[index] * scale for name, index in zip(names, chosen, strict=True)}


def darkest_of(values: Mapping[str, Floats]) -> Floats:
    """Return the smallest reflectance of the visible bands: cloud is bright in all of them."""
    return np.minimum(np.minimum(values["B02"], values["B03"]), values["B04"])


def difference_to_red(values: Mapping[str, Floats], name: str) -> Floats:
    """Return the normalised difference of a band and the red band, -1 to 1; cloud has about 0."""
    band, red = values[name], values["B04"]
    return (band - red) / np.maximum(band + red, np.float32(1e-4))
