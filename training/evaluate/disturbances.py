"""Disturbances and faults of tiles, for measuring robustness: noise, haze, rotation, JPEG; wrong offset,
scale, bands.

Tiles are uint16 (n, 13, height, width), DN, 0 = no data. A model should classify tiles under `DISTURBANCES`
all the same; it should flag tiles with `FAULTS`. The gates and `tilewise assess` measure both.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from tilewise.datasets.core.bands import BAND_NAMES, BAND_SETS, EUROSAT_MS_ORDER, RGB_BANDS, positions
from tilewise.datasets.core.radiometry import BASELINE_OFFSET, DN_MAX, QUANTIFICATION
from tilewise.datasets.core.tile import BAND_COUNT, DN, only_bands
from tilewise.datasets.loading.geometry import ALL_VALID

Floats = npt.NDArray[np.floating]
Indices = npt.NDArray[np.int64]
Bands = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of input tiles.

    Attributes:
        description: for tables.
        apply: maps tiles to the same tiles with the fault.
        affects: maps a tile's bands to whether the fault changes it.
    """

    description: str
    apply: Callable[[DN], DN]
    affects: Callable[[Bands], bool] = lambda bands: True


def offset_left_in(tiles: DN) -> DN:
    """Keep the offset of 1000 DN that products have had since processing baseline 04.00."""
    return as_dn(tiles, tiles.astype(np.float32) - BASELINE_OFFSET)


def unit_scale(tiles: DN) -> DN:
    """Read reflectances 0-1 as if they were DN."""
    return as_dn(tiles, tiles.astype(np.float32) / QUANTIFICATION)


def eurosat_order(tiles: DN) -> DN:
    """Read files whose B8A is the last band, as EuroSAT's, as if they were in the canonical order."""
    found = np.zeros_like(tiles)
    for rows, bands in band_groups(tiles):
        names = [BAND_NAMES[band] for band in bands]
        order = np.array(positions(name for name in EUROSAT_MS_ORDER if name in names))
        found[np.ix_(rows, bands)] = tiles[np.ix_(rows, order)]
    return found


def red_for_blue(tiles: DN) -> DN:
    """Swap red and blue."""
    red, _, blue = positions(RGB_BANDS)
    found = tiles.copy()
    found[:, [red, blue]] = tiles[:, [blue, red]]
    return found


def cut_off(tiles: DN) -> DN:
    """Set the part of each tile beyond a slanting swath edge to no data, a tenth to nine tenths of it."""
    count, _, height, width = tiles.shape
    down, across = np.mgrid[0:height, 0:width]
    distance = down + 0.2 * across
    fractions = np.linspace(0.1, 0.9, count) if count > 1 else np.array([0.5])
    edges = np.quantile(distance, np.random.default_rng(0).permutation(fractions))
    return np.where((distance < edges[:, None, None])[:, None], np.uint16(0), tiles)


FAULTS: dict[str, Fault] = {
    "offset": Fault("an offset of +1000 left in", offset_left_in),
    "scale": Fault("a 0-1 scale taken for DN", unit_scale),
    "order": Fault("B8A-last order read as canonical", eurosat_order, lambda bands: "B8A" in bands),
    "red_blue": Fault("red and blue exchanged", red_for_blue, lambda bands: set(RGB_BANDS) <= set(bands)),
    "no_data": Fault("10-90 % of the tile NaN or no data", cut_off),
}


def as_dn(tiles: DN, changed: npt.NDArray[np.number]) -> DN:
    """Return `changed` as DN from 1 on, as readers do, with no data where `tiles` had it."""
    return np.where(tiles == 0, 0, np.clip(np.rint(changed), 1, DN_MAX)).astype(np.uint16)


def band_groups(tiles: DN) -> list[tuple[Indices, Indices]]:
    """Return (rows, band indices) of each group of tiles that have the same bands."""
    present = (tiles > 0).any((2, 3))
    kinds, which = np.unique(present, axis=0, return_inverse=True)
    return [(np.flatnonzero(which == number), np.flatnonzero(kind)) for number, kind in enumerate(kinds)]


_HAZE = (("B01", 400), ("B02", 270), ("B03", 155), ("B04", 80), ("B05", 60), ("B06", 50))
_JPEG_QUALITY = 75  # Pillow's default
_JPEG_CUT = 0.01  # fraction of the pixels at each end that 8 bits clip
_TURN_DEGREES = 30.0


def _brighter(tiles: DN) -> DN:
    return as_dn(tiles, tiles * np.float32(1.1))


def _band_gain(tiles: DN) -> DN:
    """Make each band of each tile 10 % brighter or darker, at random."""
    signs = np.random.default_rng(0).choice([-1, 1], (len(tiles), BAND_COUNT, 1, 1))
    return as_dn(tiles, tiles * (1 + 0.1 * signs).astype(np.float32))


def _haze(tiles: DN) -> DN:
    """Add path radiance that falls with wavelength, about as Rayleigh scattering does (λ⁻⁴ from 400 DN at 443
    nm)."""
    haze = np.zeros((tiles.shape[1], 1, 1), np.float32)
    for name, added in _HAZE:
        haze[positions([name])[0]] = added
    return as_dn(tiles, tiles + haze)


def _noise(tiles: DN, deviation: float) -> DN:
    noise = np.random.default_rng(0).normal(0, deviation, tiles.shape).astype(np.float32)
    return as_dn(tiles, tiles + noise)


def _turned(tiles: DN) -> DN:
    return np.ascontiguousarray(np.rot90(tiles, axes=(2, 3)))


def _rotated(tiles: DN) -> DN:
    """Rotate by 30 degrees; pixels beyond the edge are mirrored."""
    return _interpolated(
        tiles,
        lambda pixels: ndimage.rotate(pixels, _TURN_DEGREES, (3, 2), reshape=False, order=1, mode="mirror"),
    )


def _half_pixel(tiles: DN) -> DN:
    """Shift by half a pixel down and right, so that each pixel is the mean of four."""
    return _interpolated(
        tiles, lambda pixels: ndimage.shift(pixels, (0, 0, 0.5, 0.5), order=1, mode="mirror")
    )


def _smaller(tiles: DN) -> DN:
    """Shrink to half the size, each pixel the mean of four; pixels beyond the edge are mirrored."""
    return _interpolated(tiles, _halved)


def _halved(pixels: Floats) -> Floats:
    means = pixels.reshape(*pixels.shape[:2], pixels.shape[2] // 2, 2, pixels.shape[3] // 2, 2).mean((3, 5))
    around = [(0, 0), (0, 0), *((side // 4, side - side // 2 - side // 4) for side in pixels.shape[2:])]
    return np.pad(means, around, mode="symmetric").astype(np.float32)


def enlarged(tiles: DN, times: int, down: float = 0.5, right: float = 0.5) -> DN:
    """Enlarge a part of each tile to the size of the tile, interpolated.

    Args:
        tiles: uint16 (n, 13, height, width), DN.
        times: factor of each side.
        down, right: position of the part, from 0, at the upper and the left edge, to 1.
    """
    height, width = (side // times for side in tiles.shape[2:])
    top, left = round(down * (tiles.shape[2] - height)), round(right * (tiles.shape[3] - width))
    part = tiles[:, :, top : top + height, left : left + width]
    return _interpolated(
        part,
        lambda pixels: ndimage.zoom(pixels, (1, 1, times, times), order=1, grid_mode=True, mode="nearest"),
    )


def _striped(tiles: DN) -> DN:
    """Set every eighth line to no data, as a detector fault does."""
    found = tiles.copy()
    found[:, :, ::8] = 0
    return found


def _jpeg(tiles: DN) -> DN:
    """Scale each band to 8 bits between its own extremes and pass it through a JPEG, as previews are made."""
    found = tiles.copy()
    for row, band in zip(*np.nonzero(tiles.any(axis=(2, 3))), strict=True):
        found[row, band] = _through_jpeg(tiles[row, band])
    return found


def _through_jpeg(band: DN) -> DN:
    low, high = np.quantile(band[band > 0], [_JPEG_CUT, 1 - _JPEG_CUT])
    step = max(high - low, 1) / 255
    file = io.BytesIO()
    Image.fromarray(np.clip((band - low) / step, 0, 255).astype(np.uint8)).save(
        file, "JPEG", quality=_JPEG_QUALITY
    )
    return as_dn(band, np.asarray(Image.open(file)).astype(np.float32) * np.float32(step) + np.float32(low))


def _interpolated(tiles: DN, move: Callable[[Floats], Floats]) -> DN:
    """Return `tiles` moved; a pixel that was interpolated from any no-data pixel is no data."""
    valid = move((tiles > 0).astype(np.float32)) > ALL_VALID
    return np.where(valid, np.clip(np.rint(move(tiles.astype(np.float32))), 1, DN_MAX), 0).astype(np.uint16)


DISTURBANCES: dict[str, Callable[[DN], DN]] = {
    "gain": _brighter,
    "band_gain": _band_gain,
    "haze": _haze,
    "weak_noise": partial(_noise, deviation=30),
    "noise": partial(_noise, deviation=100),
    "turned": _turned,
    "rotated": _rotated,
    "half_pixel": _half_pixel,
    "smaller": _smaller,
    "larger": partial(enlarged, times=2),
    "striped": _striped,
    "jpeg": _jpeg,
    "l2a_bands": partial(only_bands, bands=BAND_SETS["l2a"]),
    "10m_bands": partial(only_bands, bands=BAND_SETS["10m"]),
    "rgb_bands": partial(only_bands, bands=BAND_SETS["rgb"]),
}
"""By name; `DESCRIPTIONS` has the words for tables."""

DESCRIPTIONS: dict[str, str] = {
    "gain": "10 % brighter",
    "band_gain": "each band 10 % brighter or darker, at random",
    "haze": "haze: +400 DN at 443 nm, less with wavelength",
    "weak_noise": "sensor noise, standard deviation 30 DN",
    "noise": "sensor noise, standard deviation 100 DN",
    "turned": "a quarter turn",
    "rotated": "rotated by 30°",
    "half_pixel": "shifted by half a pixel, interpolated",
    "smaller": "half the size, mirrored beyond the edge",
    "larger": "the middle quarter at twice the size",
    "striped": "every eighth line no data",
    "jpeg": "8 bit and JPEG of quality 75, each band",
    "l2a_bands": "without B10",
    "10m_bands": "only the four 10 m bands",
    "rgb_bands": "only B04, B03, B02",
}
