"""Augment whole batches on the device that trains: geometry, radiometry, missing bands, mixing of tiles.

Tiles are DN (reflectance × 10 000) as float32 (batch, 13, height, width); 0 is no data and stays no data, and
data never becomes 0. Every number drawn belongs to a tile (`tilewise.datasets.loading.draws`), every shape is
constant, and nothing waits for the device, so that all of it can be compiled into few kernels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from tilewise.datasets.core.bands import BAND_NAMES, BAND_SETS, positions
from tilewise.datasets.core.errors import TrainingError, UnknownBandError
from tilewise.datasets.core.radiometry import QUANTIFICATION
from tilewise.datasets.core.tile import has_data
from tilewise.datasets.loading.atmosphere import Atmosphere, AtmosphereOptions
from tilewise.datasets.loading.draws import Draws
from tilewise.datasets.loading.geometry import GeometryOptions, Warp
from tilewise.datasets.loading.mosaic import Mosaic, MosaicOptions

_QUANTILES = 1024


@dataclass(frozen=True)
class HoleOptions:
    """How often tiles lose pixels, in all bands.

    Attributes:
        fraction: fraction of tiles (0–1) that lose a rectangle.
        max_area: maximum fraction of the tile's area that a rectangle takes (0–1).
        striped: fraction of tiles (0–1) that lose every n-th row or every n-th column.
        periods: smallest and largest n, 2 or more.

    Raises:
        TrainingError: `periods` are not two numbers of lines in order.
    """

    fraction: float = 0.1
    max_area: float = 0.4
    striped: float = 0.0
    periods: tuple[int, int] = (3, 16)

    def __post_init__(self) -> None:
        if not 2 <= self.periods[0] <= self.periods[1]:
            raise TrainingError(
                f"data.augment.holes.periods: {list(self.periods)} are not two numbers of lines, 2 or more, "
                "in order"
            )


class Holes(nn.Module):
    """Set a rectangle of some tiles to no data."""

    def __init__(self, options: HoleOptions) -> None:
        super().__init__()
        self._options = options

    def forward(self, tiles: Tensor, draws: Draws) -> Tensor:
        """Return tiles (batch, 13, height, width) with holes."""
        options, shape = self._options, tiles.shape[2:]
        lost = (draws.uniform() < options.fraction) * draws.between(0.0, options.max_area)
        return tiles * (1 - rectangles(lost, draws, *shape))[:, None]


class Stripes(nn.Module):
    """Set every n-th row or column of some tiles to no data."""

    def __init__(self, options: HoleOptions) -> None:
        super().__init__()
        self._options = options

    def forward(self, tiles: Tensor, draws: Draws) -> Tensor:
        """Return tiles (batch, 13, height, width) with rows or columns lost."""
        shortest, longest = self._options.periods
        period = draws.between(shortest, longest + 1, 1).floor()
        first = (draws.uniform(1) * period).floor()
        across = draws.uniform(1, 1) < 0.5
        rows, columns = (torch.arange(n, device=tiles.device) % period == first for n in tiles.shape[2:])
        lines = torch.where(across, rows[:, :, None], columns[:, None, :])
        lost = lines & (draws.uniform(1, 1) < self._options.striped)
        return tiles * ~lost[:, None]


def rectangles(area: Tensor, draws: Draws, height: int, width: int) -> Tensor:
    """Return float32 (batch, height, width): 1 inside a rectangle of `area` (batch,), a fraction."""
    side = area.sqrt()[:, None]
    inside = []
    for length in (height, width):
        extent = (side * length).floor()
        first = (draws.uniform(1) * (length - extent + 1)).floor()
        index = torch.arange(length, device=area.device)
        inside.append((index >= first) & (index < first + extent))
    return (inside[0][:, :, None] & inside[1][:, None, :]).to(torch.float32)


@dataclass(frozen=True)
class RadiometryOptions:
    """How strongly reflectances are disturbed. All but `noise_fraction` are standard deviations.

    Attributes:
        gain: of the logarithm of a factor common to all bands of a tile (illumination).
        band_gain: of the logarithm of a factor of each band (calibration, atmosphere).
        haze: of a reflectance (0–1) added to all bands of a tile.
        band_haze: of a reflectance added to each band.
        noise: of a reflectance added to each pixel, for a tile of usual strength: each tile draws its
            strength, most of them less and some three times as much, since a network must know clean tiles as
            well.
        noise_fraction: fraction of tiles (0–1) that get noise at all.
    """

    gain: float = 0.1
    band_gain: float = 0.05
    haze: float = 0.01
    band_haze: float = 0.005
    noise: float = 0.0
    noise_fraction: float = 1.0


@dataclass(frozen=True)
class BandDropoutOptions:
    """How often bands are hidden from the network, so that one network serves any set of bands.

    Attributes:
        sets: how often (relative weight) a tile keeps only this set of bands (`all`, or a name of BAND_SETS).
        random: relative weight of keeping a random subset.
        keep: smallest and largest fraction of bands kept in a random subset (0–1).
        min_bands: a draw that leaves a tile fewer bands than this keeps all of its bands.

    Raises:
        UnknownBandError: a set of bands that does not exist.
    """

    sets: dict[str, float] = field(default_factory=lambda: {"all": 0.4, "l2a": 0.1, "10m": 0.15, "rgb": 0.15})
    random: float = 0.2
    keep: tuple[float, float] = (0.3, 0.95)
    min_bands: int = 3

    def __post_init__(self) -> None:
        unknown = [name for name in self.sets if name not in ("all", *BAND_SETS)]
        if unknown:
            known = ", ".join(("all", *BAND_SETS))
            raise UnknownBandError(
                f"data.augment.band_dropout.sets: no set of bands is called {', '.join(unknown)}; "
                f"the sets are {known}"
            )


@dataclass(frozen=True)
class MixOptions:
    """How often tiles are mixed with their neighbour in the batch.

    Attributes:
        cutmix: fraction of tiles (0–1) into which a rectangle of another tile is pasted
            (CutMix, Yun et al. 2019, arXiv:1905.04899).
        mixup: fraction of tiles (0–1) that become a weighted mean with another tile
            (mixup, Zhang et al. 2018, arXiv:1710.09412).
        alpha: parameter of the Beta distribution that the other tile's weight is drawn from, above 0.

    Raises:
        TrainingError: the fractions sum to more than 1, or one is negative, or `alpha` is not above 0.
    """

    cutmix: float = 0.5
    mixup: float = 0.0
    alpha: float = 1.0

    def __post_init__(self) -> None:
        if self.cutmix < 0 or self.mixup < 0 or self.cutmix + self.mixup > 1 or self.alpha <= 0:
            raise TrainingError(
                f"data.augment.mix: cutmix {self.cutmix} and mixup {self.mixup} must be fractions that "
                f"add up to 1 at most, and alpha {self.alpha} above 0"
            )


class RadiometricJitter(nn.Module):
    """Apply a gain and haze to each tile and band; data stay at least 1."""

    def __init__(self, options: RadiometryOptions) -> None:
        super().__init__()
        self._options = options

    def forward(self, tiles: Tensor, draws: Draws) -> Tensor:
        """Return tiles (batch, bands, height, width), disturbed."""
        options, bands = self._options, tiles.shape[1]
        gain = draws.normal(1, 1, 1) * options.gain + draws.normal(bands, 1, 1) * options.band_gain
        haze = draws.normal(1, 1, 1) * options.haze + draws.normal(bands, 1, 1) * options.band_haze
        changed = torch.addcmul(haze * QUANTIFICATION, tiles, gain.exp())
        return torch.where(has_data(tiles), changed.clamp(min=1.0), 0.0)


class Noise(nn.Module):
    """Add noise to each pixel and band of some tiles; data stay at least 1.

    It is the last step: where other steps read their input more than once, the compiler would draw the noise
    as often.
    """

    def __init__(self, options: RadiometryOptions) -> None:
        super().__init__()
        self._options = options

    def forward(self, tiles: Tensor, draws: Draws) -> Tensor:
        """Return tiles (batch, bands, height, width), disturbed."""
        strength = draws.normal(1, 1, 1).abs() * (self._options.noise * QUANTIFICATION)
        noise = draws.grain(*tiles.shape[1:]) * strength
        noisy = tiles + noise * (draws.uniform(1, 1, 1) < self._options.noise_fraction)
        return torch.where(has_data(tiles), noisy.clamp(min=1.0), 0.0)


class DropBands(nn.Module):
    """Set the bands outside a drawn set to no data."""

    _sets: Tensor
    _weights: Tensor

    def __init__(self, options: BandDropoutOptions) -> None:
        super().__init__()
        self._options = options
        weights = torch.tensor([*options.sets.values(), options.random], dtype=torch.float32)
        self.register_buffer("_weights", (weights.cumsum(0) / weights.sum())[:-1])
        self.register_buffer(
            "_sets", torch.stack([*map(_mask_of, options.sets), torch.zeros(len(BAND_NAMES)).bool()])
        )

    def forward(self, tiles: Tensor, draws: Draws) -> Tensor:
        """Return tiles (batch, 13, height, width) with bands hidden."""
        present = has_data(tiles.amax(dim=(2, 3)))  # (batch, 13)
        kept = self._draw_kept(draws) & present
        kept = torch.where(kept.sum(dim=1, keepdim=True) >= self._options.min_bands, kept, present)
        return tiles * kept[:, :, None, None]

    def _draw_kept(self, draws: Draws) -> Tensor:
        """Return bool (batch, 13): which bands each tile keeps."""
        choice = (draws.uniform(1) >= self._weights).sum(dim=1)
        fraction = draws.between(*self._options.keep, 1)
        at_random = draws.uniform(len(BAND_NAMES)) < fraction
        return torch.where((choice == len(self._weights))[:, None], at_random, self._sets[choice])


class Mix(nn.Module):
    """Mix the two tiles of a pair by CutMix or mixup: rows 0 and 1 of the batch, 2 and 3, and so on.

    The order of tiles is random, so neighbours are too. Only tiles with the same bands are mixed: a rectangle
    without a band would show the network where to look.
    """

    _weights: Tensor

    def __init__(self, options: MixOptions) -> None:
        super().__init__()
        self._options = options
        self.register_buffer("_weights", torch.from_numpy(beta_quantiles(options.alpha, _QUANTILES)))

    def forward(self, tiles: Tensor, targets: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return tiles (batch, 13, height, width) and targets (batch, classes), mixed alike."""
        options = self._options
        if options.cutmix + options.mixup == 0:
            return tiles, targets
        neighbours = torch.arange(len(tiles), device=tiles.device) ^ 1
        neighbours = neighbours.clamp(max=len(tiles) - 1)  # the last of an odd number has itself
        present = has_data(tiles.amax(dim=(2, 3)))
        alike = (present == present[neighbours]).all(dim=1)
        kind, drawn = draws.uniform(), self._draw_weight(draws)
        foreign = tiles[neighbours]
        weight = rectangles(drawn, draws, *tiles.shape[2:]) * (kind < options.cutmix)[:, None, None]
        if options.mixup > 0:
            mixes = (kind >= options.cutmix) & (kind < options.cutmix + options.mixup)
            weight = weight + (drawn * mixes)[:, None, None]
        weight = (
            weight * alike[:, None, None]
        )  # (batch, height, width): the other tile's weight in each pixel
        area = weight.mean(dim=(1, 2))[:, None]
        return _blend(tiles, foreign, weight[:, None]), targets * (1 - area) + targets[neighbours] * area

    def _draw_weight(self, draws: Draws) -> Tensor:
        """Return float32 (batch,) in 0–1 of the Beta distribution, by its quantiles."""
        position = draws.uniform() * (_QUANTILES - 1)
        low = position.floor().long()
        return torch.lerp(self._weights[low], self._weights[low + 1], position - low)


@dataclass(frozen=True)
class AugmentOptions:
    """How training batches are augmented; see each part for its units and ranges.

    Attributes:
        enabled: false switches all of it off.
        compile: compile the augmentation; null: on a GPU.
        geometry: flips, rotations and warps.
        radiometry: gain, haze and noise.
        band_dropout: hidden bands.
        mix: CutMix and mixup.
        atmosphere: Level-2A simulated from Level-1C.
        holes: lost rectangles and lines.
        mosaic: several small tiles of one class beside each other.
    """

    enabled: bool = True
    compile: bool | None = None
    geometry: GeometryOptions = GeometryOptions()  # noqa: RUF009 - frozen, as all of these
    radiometry: RadiometryOptions = RadiometryOptions()
    band_dropout: BandDropoutOptions = BandDropoutOptions()
    mix: MixOptions = MixOptions()
    atmosphere: AtmosphereOptions = AtmosphereOptions(fraction=0.0)  # noqa: RUF009
    holes: HoleOptions = HoleOptions(fraction=0.0)
    mosaic: MosaicOptions = MosaicOptions()  # noqa: RUF009


class Augmentation(nn.Module):
    """Augment a training batch on its device: geometry, atmosphere, radiometry, missing data, mixing.

    Args:
        classes: class names, in the order of labels.
        seed: seed of the run.
        options: what is done; a geometry whose backend is not torch is the loader's work.
    """

    def __init__(self, classes: Sequence[str], seed: int, options: AugmentOptions) -> None:
        super().__init__()
        self._classes, self._seed = len(classes), seed
        on, radiometry, holes = options.enabled, options.radiometry, options.holes
        # Before the warp, so that the seams of mosaics are rotated like everything else.
        self.mosaic = Mosaic(options.mosaic, classes) if on and options.mosaic.fraction > 0 else None
        self.warp = Warp(options.geometry) if on and options.geometry.backend == "torch" else None
        self.atmosphere = Atmosphere(options.atmosphere) if on and options.atmosphere.fraction > 0 else None
        self.radiometry = RadiometricJitter(radiometry) if on else None
        self.drop_bands = DropBands(options.band_dropout) if on else None
        self.holes = Holes(holes) if on and holes.fraction > 0 else None
        self.mix = Mix(options.mix) if on else None
        self.stripes = Stripes(holes) if on and holes.striped > 0 else None
        self.noise = Noise(radiometry) if on and radiometry.noise > 0 else None

    def forward(self, tiles: Tensor, labels: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return augmented tiles, the same without damage, and targets.

        Damage is noise and lost lines. A teacher answers tiles without it, so that a student learns to see
        through it. Both are float32 (batch, 13, height, width), targets float32 (batch, classes).

        Args:
            tiles: uint16 (batch, 13, height, width), DN.
            labels: int64 (batch,).
            keys: int64 (batch,), on which each tile's draws depend.
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
    """Return float32 (count,): quantiles of Beta(alpha, alpha), evenly spaced from 0 to 1."""
    # x = sin²t takes the singularities out of the density at 0 and 1 for alpha ≥ ½.
    edges = np.linspace(0, np.pi / 2, 20_001)
    middles = (edges[1:] + edges[:-1]) / 2
    density = (np.sin(middles) * np.cos(middles)) ** (2 * alpha - 1)
    cumulative = np.concatenate([[0.0], np.cumsum(density)])
    angles = np.interp(np.linspace(0, 1, count), cumulative / cumulative[-1], edges)
    return (np.sin(angles) ** 2).astype(np.float32)


def _blend(tiles: Tensor, foreign: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean; a pixel is no data if one with a weight in it is."""
    mixed = torch.lerp(tiles, foreign, weight)
    hole = (~has_data(tiles) & (weight < 1)) | (~has_data(foreign) & (weight > 0))
    return torch.where(hole, 0.0, mixed)


def _mask_of(name: str) -> Tensor:
    mask = torch.zeros(len(BAND_NAMES), dtype=torch.bool)
    mask[positions(BAND_NAMES if name == "all" else BAND_SETS[name])] = True
    return mask
