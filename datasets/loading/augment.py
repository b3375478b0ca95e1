"""Augmentation of whole batches on the device that trains: radiometry, missing bands, mixing of tiles.

Tiles are DN (reflectance × 10 000) as float32 (batch, 13, height, width); 0 is no data and stays no data, and
data never becomes 0. Every number drawn belongs to a tile (`tilewise.datasets.loading.draws`), every shape is constant, and nothing
waits for the device, so that the whole of it can be compiled into few kernels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from tilewise.datasets.core.bands import BAND_NAMES, BAND_SETS, positions
from tilewise.datasets.core.errors import TrainingError, UnknownBandError
from tilewise.datasets.loading.atmosphere import Atmosphere, AtmosphereOptions
from tilewise.datasets.loading.draws import Draws
from tilewise.datasets.loading.geometry import GeometryOptions, Warp
from tilewise.datasets.loading.mosaic import Mosaic, MosaicOptions


@dataclass(frozen=True)
class HoleOptions:
    """How often tiles get holes.

    Attributes:
        share: of tiles (0–1) that lose a rectangle, in all bands.
        most: largest share of the tile's area that is lost.
        striped: share of tiles (0–1) that lose every n-th line, from top to bottom or from side to side, in all bands.
        periods: smallest and largest n, 2 or more.
    """

    share: float = 0.1
    limit: float = 0.4
    striped: float = 0.0
    periods: tuple[int, int] = (3, 16)

    def __post_init__(self) -> None:
        if not 2 <= self.periods[0] <= self.periods[1]:
            raise TrainingError(
                f"data.holes.periods: {list(self.periods)} are not two numbers of lines, 2 or more, in order"
            )


class Holes(nn.Module):
    """Makes a rectangle of some tiles no data."""

    def __init__(self, options: HoleOptions) -> None:
        super().__init__()
        self._options = options

    def forward(self, tiles: Tensor, draws: Draws) -> Tensor:
        """Return tiles (batch, 13, height, width) with holes."""
        options, shape = self._options, tiles.shape[2:]
        lost = (draws.uniform() < options.share) * draws.between(0.0, options.limit)
        return tiles * (1 - rectangles(lost, draws, *shape))[:, None]


class Stripes(nn.Module):
    """Makes every n-th line of some tiles no data."""

    def __init__(self, options: HoleOptions) -> None:
        super().__init__()
        self._options = options

    def forward(self, tiles: Tensor, draws: Draws) -> Tensor:
        """Return tiles (batch, 13, height, width) with lines lost, from side to side or from top to bottom."""
        shortest, longest = self._options.periods
        period = draws.between(shortest, longest + 1, 1).floor()
        first = (draws.uniform(1) * period).floor()
        across = draws.uniform(1, 1) < 0.5
        rows, columns = (torch.arange(n, device=tiles.device) % period == first for n in tiles.shape[2:])
        lines = torch.where(across, rows[:, :, None], columns[:, None, :])
        lost = lines & (draws.uniform(1, 1) < self._options.striped)
        return tiles * ~lost[:, None]


def rectangles(share: Tensor, draws: Draws, height: int, width: int) -> Tensor:
    """Return float32 (batch, height, width), 1 inside one rectangle a tile that covers `share` (batch,) of the area."""
    side = share.sqrt()[:, None]
    inside = []
    for length in (height, width):
        extent = (side * length).floor()
        first = (draws.uniform(1) * (length - extent + 1)).floor()
        place = torch.arange(length, device=share.device)
        inside.append((place >= first) & (place < first + extent))
    return (inside[0][:, :, None] & inside[1][:, None, :]).to(torch.float32)


QUANTIFICATION = 10_000.0
_QUANTILES = 1024


@dataclass(frozen=True)
class RadiometryOptions:
    """How strongly reflectances are disturbed; standard deviations.

    Attributes:
        gain: of the logarithm of a factor common to all bands of a tile (illumination).
        band_gain: of the logarithm of a factor of each band (calibration, atmosphere).
        haze: of a reflectance (0–1) added to all bands of a tile.
        band_haze: of a reflectance added to each band.
        noise: of a reflectance added to each pixel, for a tile of usual strength: tiles draw how strong theirs is, most
            of them less and some three times as much, since a network must know clean tiles as well.
        noise_fraction: share of tiles (0–1) that get noise at all.
    """

    gain: float = 0.1
    band_gain: float = 0.05
    haze: float = 0.01
    band_haze: float = 0.005
    noise: float = 0.0
    noise_fraction: float = 1.0


@dataclass(frozen=True)
class BandDropout:
    """How often bands are hidden from the network, so that one network serves any set of bands.

    Attributes:
        sets: how often (relative weight) a tile keeps only this set of bands (`all`, or a name of BAND_SETS).
        random: relative weight of keeping a random subset.
        keep: smallest and largest share of bands kept in a random subset.
        fewest: a draw that leaves a tile fewer bands than this leaves it all it has.
    """

    sets: dict[str, float] = field(default_factory=lambda: {"all": 0.4, "l2a": 0.1, "10m": 0.15, "rgb": 0.15})
    random: float = 0.2
    keep: tuple[float, float] = (0.3, 0.95)
    fewest: int = 3

    def __post_init__(self) -> None:
        unknown = [name for name in self.sets if name not in ("all", *BAND_SETS)]
        if unknown:
            known = ", ".join(("all", *BAND_SETS))
            raise UnknownBandError(f"no set of bands is called {', '.join(unknown)}; the sets are {known}")


@dataclass(frozen=True)
class MixOptions:
    """How often tiles are mixed with their neighbour in the batch.

    Attributes:
        cutmix: share of tiles (0–1) into which a rectangle of another tile is pasted
            (CutMix, Yun et al. 2019, arXiv:1905.04899).
        mixup: share of tiles that become a weighted mean with another tile
            (mixup, Zhang et al. 2018, arXiv:1710.09412).
        alpha: of the Beta distribution that the other tile's share is drawn from.
    """

    cutmix: float = 0.5
    mixup: float = 0.0
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.cutmix < 0 or self.mixup < 0 or self.cutmix + self.mixup > 1 or self.alpha <= 0:
            raise TrainingError(
                f"data.mix: cutmix {self.cutmix} and mixup {self.mixup} are shares that add up to 1 at most, "
                f"and alpha {self.alpha} is above 0"
            )


class Radiometry(nn.Module):
    """Gain and haze for each tile and band; data stay at least 1."""

    def __init__(self, options: RadiometryOptions) -> None:
        super().__init__()
        self._options = options

    def forward(self, tiles: Tensor, draws: Draws) -> Tensor:
        """Return tiles (batch, bands, height, width), disturbed."""
        options, bands = self._options, tiles.shape[1]
        gain = draws.normal(1, 1, 1) * options.gain + draws.normal(bands, 1, 1) * options.band_gain
        haze = draws.normal(1, 1, 1) * options.haze + draws.normal(bands, 1, 1) * options.band_haze
        changed = torch.addcmul(haze * QUANTIFICATION, tiles, gain.exp())
        return torch.where(tiles > 0, changed.clamp(min=1.0), 0.0)


class Noise(nn.Module):
    """Noise of each pixel and band of some tiles; data stay at least 1.

    It comes last: where other steps read their input more than once, the compiler would draw the noise as often.
    """

    def __init__(self, options: RadiometryOptions) -> None:
        super().__init__()
        self._options = options

    def forward(self, tiles: Tensor, draws: Draws) -> Tensor:
        """Return tiles (batch, bands, height, width), disturbed."""
        strength = draws.normal(1, 1, 1).abs() * (self._options.noise * QUANTIFICATION)
        noise = draws.grain(*tiles.shape[1:]) * strength
        noisy = tiles + noise * (draws.uniform(1, 1, 1) < self._options.noise_fraction)
        return torch.where(tiles > 0, noisy.clamp(min=1.0), 0.0)


class DropBands(nn.Module):
    """Makes the bands outside a drawn set no data."""

    _sets: Tensor
    _weights: Tensor

    def __init__(self, options: BandDropout) -> None:
        super().__init__()
        self._options = options
        weights = torch.tensor([*options.sets.values(), options.random], dtype=torch.float32)
        self.register_buffer("_weights", (weights.cumsum(0) / weights.sum())[:-1])
        self.register_buffer("_sets", torch.stack([*map(_mask_of, options.sets), torch.zeros(len(BAND_NAMES)).bool()]))

    def forward(self, tiles: Tensor, draws: Draws) -> Tensor:
        """Return tiles (batch, 13, height, width) with bands hidden."""
        present = tiles.amax(dim=(2, 3)) > 0  # (batch, 13)
        kept = self._draw_kept(draws) & present
        kept = torch.where(kept.sum(dim=1, keepdim=True) >= self._options.fewest, kept, present)
        return tiles * kept[:, :, None, None]

    def _draw_kept(self, draws: Draws) -> Tensor:
        """Return bool (batch, 13): which bands each tile keeps."""
        choice = (draws.uniform(1) >= self._weights).sum(dim=1)
        share = draws.between(*self._options.keep, 1)
        at_random = draws.uniform(len(BAND_NAMES)) < share
        return torch.where((choice == len(self._weights))[:, None], at_random, self._sets[choice])


class Mix(nn.Module):
    """CutMix and mixup between the two tiles of a pair: rows 0 and 1 of the batch, 2 and 3, and so on.

    The order of tiles is random, so neighbours are too. Only tiles with the same bands are mixed: a rectangle without
    a band would tell the network where to look.
    """

    _shares: Tensor

    def __init__(self, options: MixOptions) -> None:
        super().__init__()
        self._options = options
        self.register_buffer("_shares", torch.from_numpy(beta_quantiles(options.alpha, _QUANTILES)))

    def forward(self, tiles: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return tiles (batch, 13, height, width) and targets (batch, classes), mixed alike."""
        options = self._options
        if options.cutmix + options.mixup == 0:
            return tiles, targets
        neighbours = torch.arange(len(tiles), device=tiles.device) ^ 1
        neighbours = neighbours.clamp(max=len(tiles) - 1)  # the last of an odd number has itself
        present = tiles.amax(dim=(2, 3)) > 0
        alike = (present == present[neighbours]).all(dim=1)
        kind, share = draws.uniform(), self._draw_share(draws)
        foreign = tiles[neighbours]
        weight = rectangles(share, draws, *tiles.shape[2:]) * (kind < options.cutmix)[:, None, None]
        if options.mixup > 0:
            mixes = (kind >= options.cutmix) & (kind < options.cutmix + options.mixup)
            weight = weight + (share * mixes)[:, None, None]
        weight = weight * alike[:, None, None]  # (batch, height, width): the other tile's share of each pixel
        area = weight.mean(dim=(1, 2))[:, None]
        return _blend(tiles, foreign, weight[:, None]), targets * (1 - area) + targets[neighbours] * area

    def _draw_share(self, draws: Draws) -> Tensor:
        """Return float32 (batch,) in 0–1 of the Beta distribution, by its quantiles."""
        place = draws.uniform() * (_QUANTILES - 1)
        low = place.floor().long()
        return torch.lerp(self._shares[low], self._shares[low + 1], place - low)


class Augmentation(nn.Module):
    """All that happens to a training batch on the device: geometry, atmosphere, radiometry, missing data, mixing.

    Args:
        classes: their names, in the order of labels.
        seed: of the run.
        geometry: turns and warps; None where the loader has done that.
        radiometry, band_dropout, mix, atmosphere, holes, mosaic: the rest; None leaves it out.
    """

    def __init__(
        self,
        classes: Sequence[str],
        seed: int,
        geometry: GeometryOptions | None = None,
        radiometry: RadiometryOptions | None = None,
        band_dropout: BandDropout | None = None,
        mix: MixOptions | None = None,
        atmosphere: AtmosphereOptions | None = None,
        holes: HoleOptions | None = None,
        mosaic: MosaicOptions | None = None,
    ) -> None:
        super().__init__()
        self._classes, self._seed = len(classes), seed
        # Before the warp, which turns the seams of mosaics like all else.
        self.mosaic = Mosaic(mosaic, classes) if mosaic and mosaic.share > 0 else None
        self.warp = Warp(geometry) if geometry else None
        self.atmosphere = Atmosphere(atmosphere) if atmosphere and atmosphere.share > 0 else None
        self.radiometry = Radiometry(radiometry) if radiometry else None
        self.drop_bands = DropBands(band_dropout) if band_dropout else None
        self.holes = Holes(holes) if holes and holes.share > 0 else None
        self.mix = Mix(mix) if mix else None
        self.stripes = Stripes(holes) if holes and holes.striped > 0 else None
        self.noise = Noise(radiometry) if radiometry and radiometry.noise > 0 else None

    def forward(self, tiles: Tensor, labels: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return augmented tiles, the same without damage, and targets.

        Damage is what hides nothing from whoever knows better: noise, and lines that were lost. A teacher answers to
        tiles without it, so that it teaches to see through it. Both are float32 (batch, 13, height, width), targets
        float32 (batch, classes).

        Args:
            tiles: uint16 (batch, 13, height, width), DN.
            labels: int64 (batch,).
            keys: int64 (batch,), what each tile's draws depend on.
        """
        draws = Draws(keys, self._seed)
        changed = tiles.to(torch.float32)
        targets = torch.nn.functional.one_hot(labels, self._classes).to(torch.float32)
        changed = self.mosaic(changed, labels, draws) if self.mosaic is not None else changed
        for step in (self.warp, self.atmosphere, self.radiometry, self.drop_bands):
            changed = step(changed, draws) if step is not None else changed
        if self.mix is not None:
            changed, targets = self.mix(changed, targets, draws)
        whole = self.holes(changed, draws) if self.holes is not None else changed
        damaged = self.stripes(whole, draws) if self.stripes is not None else whole
        return (self.noise(damaged, draws) if self.noise is not None else damaged), whole, targets


def beta_quantiles(alpha: float, count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Return float32 (count,): quantiles of Beta(alpha, alpha), evenly spaced from 0 to 1, by numerical integration."""
    # x = sin²t takes the singularities out of the density at 0 and 1 for alpha ≥ ½.
    edges = np.linspace(0, np.pi / 2, 20_001)
    middles = (edges[1:] + edges[:-1]) / 2
    density = (np.sin(middles) * np.cos(middles)) ** (2 * alpha - 1)
    cumulative = np.concatenate([[0.0], np.cumsum(density)])
    angles = np.interp(np.linspace(0, 1, count), cumulative / cumulative[-1], edges)
    return (np.sin(angles) ** 2).astype(np.float32)


def _blend(tiles: Tensor, foreign: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean; a pixel is no data if one that counts in it is."""
    mixed = torch.lerp(tiles, foreign, weight)
    hole = ((tiles == 0) & (weight < 1)) | ((foreign == 0) & (weight > 0))
    return torch.where(hole, 0.0, mixed)


def _mask_of(name: str) -> Tensor:
    mask = torch.zeros(len(BAND_NAMES), dtype=torch.bool)
    mask[positions(BAND_NAMES if name == "all" else BAND_SETS[name])] = True
    return mask
