"""Sound tiles and faulty ones, drawn at random: what `models.input_check` learns to tell apart.

The mistakes are of the kinds in `training.faults`, but drawn: other offsets, orders, scales, and clouds that are
painted and not real; and noise, which a network does not see through.

Tiles are uint16 (n, 13, height, width), DN, 0 = no data.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from datasets.bands import BAND_SETS, positions
from datasets.radiometry import BASELINE_OFFSET, QUANTIFICATION
from datasets.tile import BAND_COUNT, DN
from training.faults import as_dn, eurosat_order, groups, red_for_blue

_OFFSETS = (-BASELINE_OFFSET, -BASELINE_OFFSET, -BASELINE_OFFSET, -0.6 * BASELINE_OFFSET, BASELINE_OFFSET)
_SCALES = (1 / QUANTIFICATION, 0.01, 0.1, 0.2, 5.0, 10.0)
_NOISE = (60, 300)  # DN; sound bands have at most about 20
_EACH_KIND = 8000  # tiles that are drawn from each kind
_MOST_TURNS = 16
_VAPOUR, _CIRRUS, _SHORT_WAVE = positions(["B09", "B10", "B11"])


def exposures(kinds: Sequence[DN], seed: int = 0) -> Iterator[tuple[DN, DN]]:
    """Yield sound tiles and as many faulty ones, drawn from tiles of several `kinds`, all kinds alike.

    A third of the draws show all the bands that the tiles have; all but the first are mixtures of two tiles.
    """
    random = np.random.default_rng(seed)
    for tiles in kinds:
        for turn in range(max(2, min(_MOST_TURNS, -(-_EACH_KIND // len(tiles))))):
            drawn = draw_sound(mix_lines(tiles, random), random) if turn else tiles
            drawn = draw_bands(drawn, random) if turn % 3 else drawn
            yield drawn, draw_faults(drawn, random)


def draw_faults(tiles: DN, random: np.random.Generator) -> DN:
    """Return `tiles` with a random mistake each: offset, order, scale, a bright flat veil as of cloud, or noise."""
    kinds = random.permutation(np.arange(len(tiles)) % len(_DRAWN))
    found = np.zeros_like(tiles)
    for kind, make in enumerate(_DRAWN):
        found[kinds == kind] = make(tiles[kinds == kind], random)
    return found


def mix_lines(tiles: DN, random: np.random.Generator, share: float = 0.6) -> DN:
    """Return `tiles` with the first lines of a `share` (0-1) of them taken from another one: two kinds of land each."""
    count, lines = len(tiles), tiles.shape[2]
    until = np.where(random.random(count) < share, random.integers(0, lines, count), 0)
    others = tiles[random.permutation(count)]
    return np.where((np.arange(lines) < until[:, None])[:, None, :, None], others, tiles)


def draw_sound(tiles: DN, random: np.random.Generator, gain: float = 0.07, band_gain: float = 0.03) -> DN:
    """Return `tiles` with the small differences of brightness (standard deviations) that sound input has too."""
    count = len(tiles)
    logs = random.normal(0, gain, (count, 1, 1, 1)) + random.normal(0, band_gain, (count, BAND_COUNT, 1, 1))
    return as_dn(tiles, tiles * np.exp(logs))


def draw_bands(tiles: DN, random: np.random.Generator) -> DN:
    """Return `tiles` through a random set of bands each: a common one (`l2a`, `10m`, `rgb`) or any."""
    present = np.asarray((tiles > 0).any((2, 3)))
    common = [np.isin(np.arange(BAND_COUNT), positions(BAND_SETS[name])) for name in ("l1c", "l2a", "10m", "rgb")]
    chosen = random.integers(0, len(common) + 1, len(tiles))
    any_set = random.random((len(tiles), BAND_COUNT)) < random.uniform(0.3, 0.95, (len(tiles), 1))
    keep = np.stack([*np.broadcast_to(np.stack(common)[:, None], (4, *any_set.shape)), any_set])
    kept = np.asarray(keep[chosen, np.arange(len(tiles))] & present)
    none = ~np.any(kept, axis=1)
    kept[none] = present[none]
    return np.asarray(tiles * kept[:, :, None, None].astype(np.uint16))


def _draw_offset(tiles: DN, random: np.random.Generator) -> DN:
    return as_dn(tiles, tiles + random.choice(_OFFSETS, (len(tiles), 1, 1, 1)))


def _draw_scale(tiles: DN, random: np.random.Generator) -> DN:
    return as_dn(tiles, tiles * random.choice(_SCALES, (len(tiles), 1, 1, 1)))


def _draw_order(tiles: DN, random: np.random.Generator) -> DN:
    """Exchange the bands that each tile has: B8A last, all reversed, red for blue, or any order."""
    orders = (eurosat_order, eurosat_order, _reversed, red_for_blue, lambda some: _shuffled(some, random))
    kinds = random.integers(0, len(orders), len(tiles))
    found = tiles.copy()
    for kind, make in enumerate(orders):
        found[kinds == kind] = make(tiles[kinds == kind])
    same = (found == tiles).all((1, 2, 3))  # an order that changes nothing is no mistake
    found[same] = _reversed(tiles[same])
    return found


def _draw_veil(tiles: DN, random: np.random.Generator) -> DN:
    """Lay a bright cloud of some thickness over tiles: about as white in all bands, darker where water absorbs."""
    count = len(tiles)
    thickness = random.uniform(0.4, 1.0, (count, 1, 1, 1))
    cloud = random.uniform(3000, 8000, (count, 1, 1, 1)) * np.exp(random.normal(0, 0.1, (count, BAND_COUNT, 1, 1)))
    cloud[:, _VAPOUR] *= 0.4
    cloud[:, _CIRRUS] = random.uniform(10, 800, (count, 1, 1))
    cloud[:, _SHORT_WAVE:] *= random.uniform(0.3, 1.0, (count, 1, 1, 1))
    return as_dn(tiles, tiles * (1 - thickness) + thickness * cloud)


def _draw_noise(tiles: DN, random: np.random.Generator) -> DN:
    """Add noise to each pixel and band, as strong as hides what the network looks for."""
    deviation = random.uniform(*_NOISE, (len(tiles), 1, 1, 1))
    return as_dn(tiles, tiles + random.normal(0, 1, tiles.shape) * deviation)


# Orders are many and the hardest to tell.
_DRAWN = (_draw_offset, _draw_order, _draw_order, _draw_order, _draw_scale, _draw_veil, _draw_noise)


def _reversed(tiles: DN) -> DN:
    found = np.zeros_like(tiles)
    for taken, into in groups(tiles):
        found[np.ix_(taken, into)] = tiles[np.ix_(taken, into[::-1])]
    return found


def _shuffled(tiles: DN, random: np.random.Generator) -> DN:
    found = np.zeros_like(tiles)
    for taken, into in groups(tiles):
        for row in taken:
            found[row, into] = tiles[row, random.permutation(into)]
    return found
