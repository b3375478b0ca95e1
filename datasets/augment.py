"""Augmentation of whole batches on the device that trains: radiometry, missing bands, mixing of tiles.

Tiles are DN (reflectance × 10 000) as float32 (batch, 13, height, width); 0 is no data and stays no data, and
data never becomes 0. Every function draws from torch's global generators.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from datasets.bands import BAND_NAMES, BAND_SETS, positions
from datasets.errors import UnknownBandError

QUANTIFICATION = 10_000.0


@dataclass(frozen=True)
class RadiometryOptions:
    """How strongly reflectances are disturbed; standard deviations.

    Attributes:
        gain: of the logarithm of a factor common to all bands of a tile (illumination).
        band_gain: of the logarithm of a factor of each band (calibration, atmosphere).
        haze: of a reflectance (0–1) added to all bands of a tile.
        band_haze: of a reflectance added to each band.
        noise: of a reflectance added to each pixel.
    """

    gain: float = 0.1
    band_gain: float = 0.05
    haze: float = 0.01
    band_haze: float = 0.005
    noise: float = 0.0


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
    """How often a rectangle of another tile is pasted in (CutMix, Yun et al. 2019, arXiv:1905.04899).

    Attributes:
        cutmix: share of batches (0–1).
        alpha: of the Beta distribution that the pasted share of the area is drawn from.
    """

    cutmix: float = 0.5
    alpha: float = 1.0


def jitter_radiometry(tiles: Tensor, options: RadiometryOptions) -> Tensor:
    """Return tiles with gain, haze and noise drawn for each tile and band; data stay at least 1."""
    count, bands = tiles.shape[:2]
    one, each = (count, 1, 1, 1), (count, bands, 1, 1)
    gain = torch.exp(_normal(tiles, one, options.gain) + _normal(tiles, each, options.band_gain))
    haze = _normal(tiles, one, options.haze) + _normal(tiles, each, options.band_haze)
    changed = tiles * gain + haze * QUANTIFICATION
    if options.noise > 0:
        changed = changed + torch.randn_like(tiles) * (options.noise * QUANTIFICATION)
    return torch.where(tiles > 0, changed.clamp(min=1.0), 0.0)


def drop_bands(tiles: Tensor, options: BandDropout) -> Tensor:
    """Return tiles with the bands outside a drawn set made all no data."""
    present = tiles.amax(dim=(2, 3)) > 0  # (batch, 13)
    kept = _draw_kept(len(tiles), options, tiles.device) & present
    kept = torch.where(kept.sum(dim=1, keepdim=True) >= options.fewest, kept, present)
    return tiles * kept[:, :, None, None]


def cutmix(tiles: Tensor, targets: Tensor, options: MixOptions) -> tuple[Tensor, Tensor]:
    """Paste one rectangle of a shuffled batch into the batch; targets (batch, classes) mix by area.

    Only tiles with the same bands are mixed: a rectangle without a band would tell the network where to look.
    """
    if torch.rand(()) >= options.cutmix:
        return tiles, targets
    order = torch.randperm(len(tiles), device=tiles.device)
    share = torch.distributions.Beta(options.alpha, options.alpha).sample()
    height, width = tiles.shape[2:]
    tall, wide = int(height * share.sqrt()), int(width * share.sqrt())
    top, left = int(torch.randint(height - tall + 1, ())), int(torch.randint(width - wide + 1, ()))
    present = tiles.amax(dim=(2, 3)) > 0
    alike = (present == present[order]).all(dim=1)
    area = alike * (tall * wide / (height * width))
    mixed = tiles.clone()
    inside = (slice(None), slice(None), slice(top, top + tall), slice(left, left + wide))
    mixed[inside] = torch.where(alike[:, None, None, None], tiles[order][inside], tiles[inside])
    return mixed, targets * (1 - area[:, None]) + targets[order] * area[:, None]


def _normal(like: Tensor, shape: tuple[int, ...], std: float) -> Tensor:
    return torch.randn(shape, device=like.device, dtype=like.dtype) * std


def _draw_kept(count: int, options: BandDropout, device: torch.device) -> Tensor:
    """Return bool (count, 13): which bands each tile keeps."""
    masks = torch.stack([_mask_of(name) for name in options.sets]).to(device)
    weights = torch.tensor([*options.sets.values(), options.random], device=device)
    choice = torch.multinomial(weights, count, replacement=True)
    low, high = options.keep
    share = torch.rand(count, 1, device=device) * (high - low) + low
    at_random = torch.rand(count, len(BAND_NAMES), device=device) < share
    is_random = choice == len(options.sets)
    return torch.where(is_random[:, None], at_random, masks[choice.clamp(max=len(options.sets) - 1)])


def _mask_of(name: str) -> Tensor:
    mask = torch.zeros(len(BAND_NAMES), dtype=torch.bool)
    mask[positions(BAND_NAMES if name == "all" else BAND_SETS[name])] = True
    return mask
