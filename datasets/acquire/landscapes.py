"""Paint landscapes of EuroSAT's ten classes, seen through a plain atmosphere, for synthetic tiles.

A class is painted as fractions of materials on a grid of 64 × 64 pixels of 10 m; the materials' reflectance
spectra are mixed by those fractions; a plain atmosphere (path reflectance that falls with the fourth power of
wavelength, absorption by water vapour in B09, an opaque B10) makes of that something like Level-1C's
top-of-atmosphere reflectance; the bands of 20 and 60 m are averaged to their own grid and interpolated back
to 10 m. DN = reflectance × 10 000 without the offset of −1000, uint16, never 0.

Origin of the spectra: the values in `SPECTRA` were set by hand at the band centres, to two or three decimals,
after the well-known shapes of vegetation, soil, roofs and water that published libraries show (USGS Spectral
Library Version 7, Kokaly et al. 2017, doi:10.3133/ds1035; ECOSTRESS library, Meerdink et al. 2019,
doi:10.1016/j.rse.2019.05.015). They are not measurements; no value is copied from those libraries, and none
is derived from EuroSAT.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tilewise.datasets.core.bands import BANDS, positions
from tilewise.datasets.core.radiometry import DN_MAX, QUANTIFICATION
from tilewise.datasets.core.tile import BAND_COUNT, DN, TILE_SIZE

Floats = npt.NDArray[np.float64]

# Surface reflectance (0–1) at B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12; B10 sees no ground.
SPECTRA: dict[str, tuple[float, ...]] = {
    "crop": (0.028, 0.033, 0.075, 0.040, 0.10, 0.32, 0.42, 0.45, 0.47, 0.47, 0.0, 0.22, 0.10),
    "straw": (0.075, 0.095, 0.14, 0.19, 0.22, 0.25, 0.275, 0.295, 0.31, 0.33, 0.0, 0.36, 0.26),
    "soil": (0.065, 0.085, 0.125, 0.175, 0.195, 0.21, 0.23, 0.25, 0.26, 0.275, 0.0, 0.33, 0.28),
    "dark_soil": (0.045, 0.055, 0.075, 0.10, 0.115, 0.125, 0.135, 0.145, 0.15, 0.16, 0.0, 0.22, 0.19),
    "grass": (0.030, 0.038, 0.082, 0.052, 0.12, 0.30, 0.37, 0.395, 0.41, 0.41, 0.0, 0.25, 0.13),
    "dry_grass": (0.048, 0.062, 0.098, 0.115, 0.155, 0.23, 0.265, 0.285, 0.30, 0.31, 0.0, 0.30, 0.19),
    "shrub": (0.028, 0.034, 0.058, 0.048, 0.085, 0.185, 0.23, 0.25, 0.26, 0.265, 0.0, 0.20, 0.11),
    "orchard": (0.027, 0.032, 0.062, 0.042, 0.085, 0.235, 0.30, 0.325, 0.34, 0.34, 0.0, 0.19, 0.09),
    "broadleaf": (0.018, 0.022, 0.045, 0.024, 0.062, 0.21, 0.28, 0.30, 0.315, 0.315, 0.0, 0.145, 0.062),
    "conifer": (0.014, 0.017, 0.031, 0.021, 0.042, 0.125, 0.165, 0.18, 0.19, 0.19, 0.0, 0.085, 0.038),
    "asphalt": (0.075, 0.082, 0.095, 0.105, 0.11, 0.115, 0.12, 0.125, 0.13, 0.135, 0.0, 0.16, 0.15),
    "concrete": (0.13, 0.155, 0.185, 0.21, 0.22, 0.225, 0.23, 0.235, 0.24, 0.25, 0.0, 0.28, 0.265),
    "metal_roof": (0.21, 0.225, 0.24, 0.245, 0.25, 0.25, 0.255, 0.255, 0.26, 0.265, 0.0, 0.27, 0.24),
    "clay_roof": (0.058, 0.070, 0.105, 0.195, 0.22, 0.24, 0.25, 0.26, 0.27, 0.28, 0.0, 0.36, 0.32),
    "clear_water": (0.030, 0.028, 0.019, 0.008, 0.006, 0.004, 0.004, 0.003, 0.003, 0.002, 0.0, 0.001, 0.001),
    "turbid_water": (0.042, 0.054, 0.082, 0.068, 0.060, 0.033, 0.032, 0.024, 0.021, 0.014, 0.0, 0.007, 0.005),
    "glint": (0.30, 0.30, 0.30, 0.30, 0.30, 0.30, 0.30, 0.30, 0.30, 0.30, 0.0, 0.28, 0.26),
}
MATERIALS = tuple(SPECTRA)

_PATH_AT_B01 = 0.10  # the path reflectance at 443 nm; elsewhere it falls with the fourth power of wavelength
_CIRRUS = 0.001  # B10 sees no ground: about 10 DN under a clear sky
_VAPOUR = 0.38  # transmittance of water vapour in B09
_NOISE_DN = 9.0
_NOISE_FRACTION = 0.006

_ROWS, _COLUMNS = np.mgrid[0:TILE_SIZE, 0:TILE_SIZE] - (TILE_SIZE - 1) / 2


@dataclass(frozen=True, slots=True)
class Ground:
    """The ground of a tile.

    Attributes:
        cover: (len(MATERIALS), 64, 64), fractions of the materials, 0–1, that sum to 1.
        light: (64, 64), a factor on the reflectance, about 1.
    """

    cover: Floats
    light: Floats


@dataclass(frozen=True, slots=True)
class Plots:
    """Land divided into plots; each array is (64, 64), lengths are in pixels.

    Attributes:
        number: the plot of each pixel, below _MAX_PLOTS².
        edge: distance to the plot's edge.
        along: position on an axis parallel to two of the plot's sides.
        across: position on the axis at right angles to it.
    """

    number: npt.NDArray[np.intp]
    edge: Floats
    along: Floats
    across: Floats

    def draw(self, values: Floats) -> Floats:
        """Return (64, 64): for each pixel the value of its plot, of `values` (_MAX_PLOTS²,)."""
        return values[self.number]


Painter = Callable[[np.random.Generator], Ground]


def observe(label: str, rng: np.random.Generator) -> DN:
    """Return uint16 (13, 64, 64) DN from 1 up: a random landscape of a class (a key of PAINTERS)."""
    return _observe(PAINTERS[label](rng), rng)


def _observe(ground: Ground, rng: np.random.Generator) -> DN:
    """Return uint16 (13, 64, 64): the ground through the air and the instrument on this tile's day."""
    # Row by row: products too small for BLAS to spread over threads, which costs more than it gains here.
    rows = _spectra_of_the_day(rng).T @ ground.cover.transpose(1, 0, 2)
    surface = rows.transpose(1, 0, 2) * ground.light * np.exp(rng.normal(0, 0.08))
    haze = rng.uniform(0.85, 1.2)
    dn = QUANTIFICATION * (haze * _PATH[:, None, None] + _GAS[:, None, None] * surface)
    spread = _NOISE_FRACTION * dn + _NOISE_DN * (_GAS[:, None, None] > 0)
    dn += spread * rng.standard_normal(dn.shape)
    dn = _SAMPLING @ dn @ _SAMPLING.transpose(0, 2, 1)
    dn[_B10] += rng.normal(0, 1.5, dn[_B10].shape)
    return np.clip(np.rint(dn), 1, DN_MAX).astype(np.uint16)


def _spectra_of_the_day(rng: np.random.Generator) -> Floats:
    """Return (len(MATERIALS), 13): the spectra, each a little brighter or darker, bluer or redder."""
    brighter = rng.normal(0, 0.07, (len(MATERIALS), 1))
    redder = rng.normal(0, 0.06, (len(MATERIALS), 1)) * np.linspace(-1, 1, BAND_COUNT)
    return _SPECTRA * np.exp(brighter + redder)


def _path_reflectance() -> Floats:
    """Return (13,): path reflectance of the air, by Rayleigh's law."""
    wavelengths = np.array([band.centre_nm for band in BANDS])
    path = _PATH_AT_B01 * (wavelengths[0] / wavelengths) ** 4
    path[_B10] = _CIRRUS
    return path


def _transmission() -> Floats:
    """Return (13,): transmittance of the gases of the air (0–1)."""
    through = np.ones(BAND_COUNT)
    through[positions(["B09", "B10"])] = _VAPOUR, 0
    return through


def _sampling(factor: int) -> Floats:
    """Return (64, 64): along one axis, blur, average `factor` pixels into one sample and interpolate back."""
    pixels = np.arange(TILE_SIZE)
    samples = np.arange(-(-TILE_SIZE // factor))
    blur = np.eye(TILE_SIZE) + 0.1 * (np.eye(TILE_SIZE, k=1) + np.eye(TILE_SIZE, k=-1))
    average = (pixels // factor == samples[:, None]).astype(float)
    position = np.clip((pixels + 0.5) / factor - 0.5, 0, samples[-1])
    interpolate = np.maximum(0.0, 1 - np.abs(position[:, None] - samples))
    return interpolate @ _rows_to_one(average) @ _rows_to_one(blur)


def _rows_to_one(matrix: Floats) -> Floats:
    return matrix / matrix.sum(axis=1, keepdims=True)


_B10 = positions(["B10"])[0]
_SPECTRA = np.array(list(SPECTRA.values()))
_PATH = _path_reflectance()
_GAS = _transmission()
_SAMPLING = np.stack([_sampling(band.resolution_m // 10) for band in BANDS])


def _cover(**fractions: Floats | float) -> Floats:
    """Return (len(MATERIALS), 64, 64): fractions of the named materials, 0 or more, that sum to 1."""
    cover = np.zeros((len(MATERIALS), TILE_SIZE, TILE_SIZE))
    for material, fraction in fractions.items():
        cover[MATERIALS.index(material)] = np.maximum(fraction, 0)
    return cover / cover.sum(axis=0)


def _lay(ground: Ground, mask: Floats, over: Floats) -> Ground:
    """Return the ground with the cover `over` laid on it where `mask` (0–1) is, in even light."""
    return Ground(ground.cover * (1 - mask) + over * mask, ground.light * (1 - mask) + mask)


def _band(distance: Floats, width: Floats | float) -> Floats:
    """Return 0–1: the fraction of each pixel that a band of `width` px about distance 0 covers."""
    return np.clip(width / 2 - np.abs(distance) + 0.5, 0, 1)


def _ones(mask: npt.NDArray[np.bool_]) -> Floats:
    """Return 1 where `mask` is true and 0 elsewhere."""
    return mask.astype(np.float64)


def _sigmoid(values: Floats) -> Floats:
    return 1 / (1 + np.exp(-values))


def _noise(rng: np.random.Generator, scale: float) -> Floats:
    """Return (64, 64): normal noise of mean 0 and variance 1, correlated over about `scale` px."""
    weights = _noise_weights(scale)
    knots = weights.shape[1]
    return weights @ rng.standard_normal((knots, knots)) @ weights.T


@lru_cache
def _noise_weights(scale: float) -> Floats:
    """Return (64, knots): each pixel's Gaussian weights of knots `scale` px apart; squares sum to 1."""
    knots = np.arange(-2 * scale, TILE_SIZE + 2 * scale, scale)
    weights = np.exp(-(((np.arange(TILE_SIZE)[:, None] - knots) / (0.7 * scale)) ** 2) / 2)
    return weights / np.sqrt((weights**2).sum(axis=1, keepdims=True))


def _axes(rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return (along, across), each (64, 64) px: two axes at right angles, turned and shifted at random."""
    angle = rng.uniform(0, 2 * np.pi)
    shift = rng.uniform(-10, 10, 2)
    along = _COLUMNS * np.cos(angle) + _ROWS * np.sin(angle) + shift[0]
    across = _ROWS * np.cos(angle) - _COLUMNS * np.sin(angle) + shift[1]
    return along, across


_MAX_PLOTS = 64  # in either direction, far more than a tile shows


def _plots(rng: np.random.Generator, minimum: float, maximum: float) -> Plots:
    """Cut the land into strips, and each strip into rectangles, of `minimum` to `maximum` px."""
    along, across = _axes(rng)
    reach = -2.0 * TILE_SIZE
    strips = reach + np.cumsum(rng.uniform(minimum, maximum, _MAX_PLOTS))
    strip = np.searchsorted(strips, across)
    cuts = reach + np.cumsum(rng.uniform(minimum, maximum, _MAX_PLOTS))
    shifted = along + rng.uniform(0, maximum, _MAX_PLOTS)[strip]
    piece = np.searchsorted(cuts, shifted)
    to_side = np.minimum(across - strips[strip - 1], strips[strip] - across)
    to_end = np.minimum(shifted - cuts[piece - 1], cuts[piece] - shifted)
    return Plots(strip * _MAX_PLOTS + piece, np.minimum(to_side, to_end), along, across)


def _cells(rng: np.random.Generator, along: Floats, across: Floats, pitch: float) -> Floats:
    """Return (64, 64): a random number 0–1 for each cell of a regular grid of `pitch` px."""
    table = rng.uniform(size=(TILE_SIZE, TILE_SIZE))
    row, column = (np.floor(axis / pitch).astype(int) % TILE_SIZE for axis in (along, across))
    return table[row, column]


def _per_plot(rng: np.random.Generator, low: float = 0, high: float = 1) -> Floats:
    return rng.uniform(low, high, _MAX_PLOTS**2)


def _annual_crop(rng: np.random.Generator) -> Ground:
    """Large fields, each at its own growth from bare to closed, with furrows."""
    plots = _plots(rng, 16, 46)
    growth = plots.draw(rng.beta(0.5, 0.6, _MAX_PLOTS**2)) ** rng.uniform(0.6, 1.8)
    furrows = np.cos(2 * np.pi * plots.across / rng.uniform(4, 9)) * rng.uniform(0.02, 0.1)
    growth = np.clip(growth + furrows + 0.07 * _noise(rng, 6), 0, 1)
    straw = plots.draw(_per_plot(rng, 0, 0.8))
    dark = rng.uniform(0, 0.6)
    bare = (1 - growth) * (1 - straw)
    cover = _cover(crop=growth, straw=(1 - growth) * straw, soil=bare * (1 - dark), dark_soil=bare * dark)
    ground = Ground(cover, 1 + furrows + 0.03 * _noise(rng, 2))
    return _lay(ground, 0.7 * _band(plots.edge, rng.uniform(0, 1)), _cover(dry_grass=1.0))


def _permanent_crop(rng: np.random.Generator) -> Ground:
    """Vineyards and orchards: plots of canopy in rows three to five pixels apart, over soil or grass."""
    plots = _plots(rng, 18, 44)
    turn = plots.draw(_per_plot(rng, 0, np.pi))
    period = plots.draw(_per_plot(rng, 3, 5))
    rows = np.cos(2 * np.pi * (plots.along * np.cos(turn) + plots.across * np.sin(turn)) / period)
    vigour = plots.draw(_per_plot(rng, 0.35, 0.75)) + 0.08 * _noise(rng, 4)
    canopy = np.clip(vigour * (1 + rng.uniform(0.25, 1) * rows), 0, 1)
    green, dry = rng.uniform(0, 0.5), rng.uniform(0, 0.5)
    between = 1 - canopy
    floor = {"grass": green, "dry_grass": dry, "soil": 1 - green - dry}
    cover = _cover(orchard=canopy, **{name: part * between for name, part in floor.items()})
    ground = Ground(cover, 1 - 0.08 * rows + 0.04 * _noise(rng, 2))
    return _lay(ground, 0.8 * _band(plots.edge, rng.uniform(0.5, 1.5)), _cover(soil=1.0))


def _pasture(rng: np.random.Generator) -> Ground:
    """Smooth green meadows between hedges, with a tree here and there."""
    plots = _plots(rng, 24, 60)
    dry = rng.uniform(0, 0.3) + plots.draw(_per_plot(rng, -0.12, 0.12)) + 0.06 * _noise(rng, 16)
    dry = np.clip(dry, 0, 1)
    ground = Ground(_cover(grass=1 - dry, dry_grass=dry), 1 + 0.03 * _noise(rng, 8))
    hedges = _band(plots.edge, rng.uniform(0.6, 2)) * (_noise(rng, 8) > -0.8)
    trees = _noise(rng, 2) > rng.uniform(2.3, 3.2)
    return _lay(ground, 0.9 * np.maximum(hedges, trees), _cover(broadleaf=0.7, shrub=0.3))


def _herbaceous(rng: np.random.Generator) -> Ground:
    """Heath and rough grass: soft patches of grass, dry grass and shrub, a little bare ground."""
    scale = (4, 6, 10)[rng.integers(3)]
    lean = rng.normal(0, 0.5, 4)
    heights = [1.3 * (_noise(rng, scale) + 0.5 * _noise(rng, 2)) + lean[i] for i in range(4)]
    grass, dry_grass, shrub, soil = (np.exp(height) for height in heights)
    cover = _cover(grass=grass, dry_grass=dry_grass, shrub=shrub, soil=0.25 * soil)
    return Ground(cover, 1 + 0.05 * _noise(rng, 2))


def _forest(rng: np.random.Generator) -> Ground:
    """Closed canopy of broadleaf and conifer stands, dark, with crowns and their shadows."""
    conifer = _sigmoid(2.5 * _noise(rng, 16) + rng.normal(0, 2))
    gaps = 0.15 * _sigmoid(6 * (_noise(rng, 4) - 1.6))
    cover = _cover(broadleaf=1 - conifer, conifer=conifer, shrub=gaps)
    crowns = rng.uniform(0.15, 0.3) * _noise(rng, 1.5) + 0.08 * _noise(rng, 8)
    return Ground(cover, np.exp(crowns))


def _industrial(rng: np.random.Generator) -> Ground:
    """Large halls, bright or dark, among yards of asphalt, with strips of green."""
    plots = _plots(rng, 8, 24)
    kind = plots.draw(_per_plot(rng))
    halls, green = rng.uniform(0.4, 0.7), rng.uniform(0.05, 0.2)
    roofs = _roofs(plots.draw(_per_plot(rng)))
    hall = _band(np.maximum(2 - plots.edge, 0), 3) * (kind < halls)
    yard = 0.3 * _sigmoid(2 * _noise(rng, 6))
    ground = Ground(_cover(asphalt=1 - yard, concrete=yard), 1 + 0.06 * _noise(rng, 2))
    park = _cover(grass=0.6, dry_grass=0.3, broadleaf=0.1)
    ground = _lay(ground, _ones(kind > 1 - green), park)
    return _lay(ground, hall, roofs)


def _roofs(kind: Floats) -> Floats:
    """Return the cover of roofs: metal, concrete, dark sheet or clay, by a number 0–1 for each pixel."""
    return _cover(
        metal_roof=_ones(kind < 0.3),
        concrete=0.8 * _ones((kind >= 0.3) & (kind < 0.65)),
        asphalt=0.6 * _ones(kind >= 0.3),
        clay_roof=0.4 * _ones(kind > 0.85),
    )


def _residential(rng: np.random.Generator) -> Ground:
    """Streets in a grid, small houses along them, gardens between."""
    along, across = _axes(rng)
    block = rng.uniform(6, 9.5)
    garden = _noise(rng, 2) + rng.uniform(-0.5, 0.8)
    trees, grass = _sigmoid(2 * garden), _sigmoid(-2 * garden)
    cover = _cover(broadleaf=0.8 * trees, grass=grass, dry_grass=0.3, soil=0.15)
    ground = Ground(cover, 1 + 0.1 * _noise(rng, 1.5))
    houses = _cells(rng, along, across, rng.uniform(1.6, 2.4)) < rng.uniform(0.3, 0.5)
    clay = rng.uniform(0.2, 0.9)
    roofs = _cover(clay_roof=clay, asphalt=0.9 - clay * 0.8, concrete=0.35 * _cells(rng, along, across, 2))
    ground = _lay(ground, 0.85 * _ones(houses), roofs)
    streets = np.maximum(_streets(across, block), _streets(along, block * rng.uniform(1.5, 2.5)))
    return _lay(ground, 0.85 * streets, _cover(asphalt=0.85, concrete=0.15))


def _streets(axis: Floats, spacing: float) -> Floats:
    """Return 0–1: streets a good pixel wide, `spacing` px apart."""
    return _band((axis + spacing / 2) % spacing - spacing / 2, 1.2)


def _highway(rng: np.random.Generator) -> Ground:
    """A road two to three pixels wide with its verges, or two abreast, through some other land."""
    ground = _any_of(rng, (_annual_crop, _annual_crop, _pasture, _herbaceous, _residential))
    along, across = _axes(rng)
    across = across + rng.uniform(-4, 4) * (along / TILE_SIZE * 2) ** 2
    twin = rng.uniform() < 0.4
    if rng.uniform() < 0.3:  # a smaller road joins or crosses
        ground = _lay(ground, 0.9 * _band(_axes(rng)[1], 1.6), _cover(asphalt=1.0))
    ground = _lay(ground, 0.8 * _band(across, 5 + 4 * twin), _cover(grass=0.4, dry_grass=0.5, shrub=0.1))
    road = _band(np.abs(across) - 2.4, 2) if twin else _band(across, rng.uniform(2, 3))
    return _lay(ground, road, _cover(asphalt=0.85, concrete=rng.uniform(0, 0.3)))


def _river(rng: np.random.Generator) -> Ground:
    """A bending band of turbid water, its banks wooded or bare, through some other land."""
    ground = _any_of(rng, (_annual_crop, _pasture, _herbaceous, _forest))
    along, across = _axes(rng)
    bend = rng.uniform(2, 9) * np.sin(2 * np.pi * along / rng.uniform(50, 110) + rng.uniform(0, 6))
    distance = across + bend + 0.6 * _noise(rng, 6)
    width = rng.uniform(5, 18)
    wooded = rng.uniform(0, 1)
    banks = _cover(broadleaf=wooded, shrub=0.3, soil=1 - wooded)
    ground = _lay(ground, 0.9 * _band(distance, width + rng.uniform(0, 6)), banks)
    turbid = np.clip(rng.uniform(0.2, 1) + 0.1 * _noise(rng, 10), 0, 1)
    return _lay(ground, _band(distance, width), _cover(clear_water=1 - turbid, turbid_water=turbid))


def _sea_lake(rng: np.random.Generator) -> Ground:
    """Open water: nearly even, a slight gradient of turbidity, here and there glint."""
    along, _ = _axes(rng)
    turbid = rng.uniform(0, 0.5) + rng.uniform(-0.15, 0.15) * along / TILE_SIZE + 0.03 * _noise(rng, 16)
    turbid = np.clip(turbid, 0, 1)
    glint = rng.uniform(0, 0.04) * (1 + 0.15 * _noise(rng, 10) + 0.1 * _noise(rng, 1.5))
    return Ground(_cover(clear_water=1 - turbid, turbid_water=turbid, glint=glint), 1 + 0.02 * _noise(rng, 8))


def _any_of(rng: np.random.Generator, painters: tuple[Painter, ...]) -> Ground:
    return painters[rng.integers(len(painters))](rng)


PAINTERS: dict[str, Painter] = {
    "AnnualCrop": _annual_crop,
    "Forest": _forest,
    "HerbaceousVegetation": _herbaceous,
    "Highway": _highway,
    "Industrial": _industrial,
    "Pasture": _pasture,
    "PermanentCrop": _permanent_crop,
    "Residential": _residential,
    "River": _river,
    "SeaLake": _sea_lake,
}
