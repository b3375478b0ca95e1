"""Masked pretraining without labels: parts of tiles are hidden, and the network reconstructs them.

Masked image modelling (He et al. 2022, arXiv:2111.06377; Xie et al. 2022, arXiv:2111.09886), for tiles of
several bands: squares are hidden in all bands, and some bands whole, so that the network learns spatial
context and relations between bands. Hidden pixels get the fill value of absent bands, the mean. Targets
are not single pixels but mean and standard deviation of each cell of 4 × 4 pixels, in standard
deviations of the band.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.tile import BAND_COUNT, TILE_SIZE
from tilewise.datasets.loading.draws import Draws
from tilewise.datasets.loading.loaders import Batch
from tilewise.models.network.backbones import ResidualCNN
from tilewise.models.network.classifier import Classifier
from tilewise.training.fit.optimisation import Optimisation, OptimisedModule, compiled, wanted

CELL = 4  # pixels on a side of a cell
_CELLS = TILE_SIZE // CELL
_SEED = 0x6D61736B  # masks must not correlate with a tile's other random draws
_EPSILON = 1e-4


@dataclass(frozen=True)
class Masking:
    """The masks.

    Attributes:
        share: fraction of the squares of a tile that are hidden (0-1), in all bands.
        square: pixels on a side of a square: 4, 8, 16 or 32.
        bands: probability (0-1) that a band of a tile is hidden whole.
    """

    share: float = 0.6
    square: int = 8
    bands: float = 0.25

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and 0 <= self.bands < 1) or self.share + self.bands == 0:
            raise TrainingError(
                f"model.masking: share {self.share} is from 0 to 1 and bands {self.bands} below 1, one of "
                f"them above 0"
            )
        if self.square not in (4, 8, 16, 32):
            raise TrainingError(f"model.masking.square: {self.square}; it is 4, 8, 16 or 32 pixels")


class Reconstruction(nn.Module):
    """Hide parts of tiles, and compute the loss of their reconstruction.

    Args:
        classifier: its backbone learns; it must have `grid` (`tilewise.models.network.backbones`).
        masking: the masks.

    Raises:
        TrainingError: the backbone has no grid of features.
    """

    def __init__(self, classifier: Classifier, masking: Masking) -> None:
        super().__init__()
        backbone = classifier.backbone
        if not hasattr(backbone, "grid"):
            raise TrainingError(
                f"model.backbone: {type(backbone).__name__} has no grid of features; "
                "pretraining takes tilewise.models.network.backbones.ResidualCNN or "
                "tilewise.models.network.backbones.PatchCNN"
            )
        self.masking = masking
        self.preprocess, self.backbone = classifier.preprocess, backbone
        self.decoder = _decoder(backbone)

    def hidden(self, keys: Tensor) -> Tensor:
        """Return bool (batch, 13, 16, 16): which cells of which bands are hidden, by the keys (batch,) of the
        tiles."""
        return draw_hidden(self.masking, Draws(keys, _SEED))

    def forward(self, tiles: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss () of a batch and how many cells it is the mean over ().

        The loss is the squared error of the hidden cells, in standard deviations.

        Args:
            tiles: float32 (batch, 13, 64, 64), DN; cells with no data (0) are left out.
            keys: int64 (batch,), that seed the masks.
        """
        hidden = self.hidden(keys)
        targets = hidden & (functional.avg_pool2d((tiles > 0).float(), CELL) == 1)
        shown = torch.where(_enlarged(hidden, CELL) & (tiles > 0), self.preprocess.fill, tiles)
        seen = self.preprocess(shown).contiguous(memory_format=torch.channels_last)
        grid: Tensor = self.backbone.grid(seen)  # type: ignore[operator]
        predicted = self.decoder(grid).float().unflatten(1, (2, BAND_COUNT))
        errors = (predicted - describe(self.preprocess(tiles))).square().sum(1) * targets
        cells = targets.sum()
        return errors.sum() / (2 * cells.clamp(min=1)), cells


class MaskedPretraining(OptimisedModule):
    """Train a network on tiles without labels; a later training starts from its checkpoint
    (`model.start_from`).

    Args:
        classes, band_mean, band_std: taken from the data module.
        backbone: the network, of `tilewise.models.network.backbones`.
        optimisation: how its weights move; label smoothing and class balance are ignored.
        compile: compile the network; null: on a GPU.
        masking: what is hidden.
    """

    def __init__(
        self,
        classes: list[str],
        band_mean: list[float],
        band_std: list[float],
        backbone: nn.Module | None = None,
        optimisation: Optimisation = Optimisation(),  # noqa: B008 - frozen
        compile: bool | None = None,
        masking: Masking = Masking(),
    ) -> None:
        super().__init__(optimisation)
        # The classifier whole, under its name, so that a checkpoint is what a training can start from; its
        # head stays as it was drawn.
        self.classifier = Classifier(backbone or ResidualCNN(), len(classes), band_mean, band_std)
        self.classifier.head.requires_grad_(False)
        self.reconstruction = Reconstruction(self.classifier, masking)
        self.to(memory_format=torch.channels_last)
        self._compile = compile
        self._forward: list[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = []

    def on_fit_start(self) -> None:
        """Start watching the loss, and compile."""
        super().on_fit_start()
        compile = wanted(self._compile, self.device)
        # In a list, since a second name for the network must not become a second set of weights.
        self._forward = [compiled(self.reconstruction) if compile else self.reconstruction]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of an augmented batch."""
        loss, _ = self._forward[0](batch["tiles"], batch["keys"])
        return self.watched(loss, len(batch["tiles"]))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss on tiles of the val split, each with the same mask every time."""
        real = batch["rows"] >= 0
        loss, cells = self.reconstruction(batch["tiles"][real].float(), batch["rows"][real])
        # Weighted by the number of cells, so that it does not depend on batches and processes.
        self.log("val/loss", loss, prog_bar=True, batch_size=int(cells), sync_dist=True)


def draw_hidden(masking: Masking, draws: Draws) -> Tensor:
    """Return bool (batch, 13, 16, 16): which cells of which bands are hidden."""
    side = TILE_SIZE // masking.square
    squares = _enlarged(draws.uniform(1, side, side) < masking.share, _CELLS // side)
    return squares | (draws.uniform(BAND_COUNT, 1, 1) < masking.bands)


def _enlarged(cells: Tensor, factor: int) -> Tensor:
    """Return (…, factor × side, factor × side) of (…, side, side): each cell as often as it is wide and
    high."""
    return cells.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def describe(normalised: Tensor) -> Tensor:
    """Return float32 (batch, 2, 13, 16, 16): the level and the spread of each cell of (batch, 13, 64, 64)."""
    level = functional.avg_pool2d(normalised, CELL)
    variance = functional.avg_pool2d(normalised.square(), CELL) - level.square()
    return torch.stack([level, variance.clamp(min=_EPSILON).sqrt()], dim=1)


def _decoder(backbone: nn.Module) -> nn.Sequential:
    """Return what maps a backbone's grid to (batch, 26, 16, 16)."""
    with torch.no_grad():
        side = backbone.eval().grid(torch.zeros(1, BAND_COUNT, TILE_SIZE, TILE_SIZE)).shape[-1]  # type: ignore[operator]
    backbone.train()
    factor = _CELLS // side
    features = int(backbone.features)  # type: ignore[arg-type]
    return nn.Sequential(nn.Conv2d(features, 2 * BAND_COUNT * factor**2, 1), nn.PixelShuffle(factor))
