"""What masked pretraining hides, asks for and learns."""

import pytest
import torch
from torch import Tensor, nn

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.loading.draws import Draws
from tilewise.models.network.backbones import PatchCNN, ResidualCNN
from tilewise.training.fit.masked import CELL, MaskedPretraining, Masking, describe, draw_hidden

CLASSES, MEAN, STD = ["a", "b"], [1000.0] * 13, [500.0] * 13


def some_tiles(count: int = 4) -> Tensor:
    return torch.randint(1, 3000, (count, 13, 64, 64), generator=torch.Generator().manual_seed(1)).float()


def keys(count: int = 4) -> Tensor:
    return torch.arange(count)


def make(masking: Masking = Masking(), backbone: nn.Module | None = None) -> MaskedPretraining:  # noqa: B008
    torch.manual_seed(0)
    return MaskedPretraining(CLASSES, MEAN, STD, backbone or PatchCNN(16, (24, 32), (1, 1)), masking=masking)


def test_squares_are_hidden_in_all_bands_and_bands_whole_about_as_often_as_asked() -> None:
    squares = draw_hidden(Masking(share=0.6, square=8, bands=0.0), Draws(keys(200), 1))
    assert torch.equal(squares, squares[:, :1].expand_as(squares))
    blocks = squares[:, 0].unflatten(1, (8, 2)).unflatten(3, (8, 2)).float().mean((2, 4))
    assert set(blocks.unique().tolist()) == {0.0, 1.0}, "8 pixels on a side are two cells"
    assert squares.float().mean() == pytest.approx(0.6, abs=0.02)
    bands = draw_hidden(Masking(share=0.0, bands=0.25), Draws(keys(200), 1)).flatten(2).float()
    assert set(bands.mean(2).unique().tolist()) == {0.0, 1.0}
    assert bands.mean() == pytest.approx(0.25, abs=0.03)


class Blind(nn.Module):
    """A network that sees nothing."""

    def grid(self, seen: Tensor) -> Tensor:
        return torch.zeros(len(seen), 32, 4, 4)


def pixels(cells: Tensor) -> Tensor:
    """Return (…, 64, 64) of (…, 16, 16)."""
    return cells.repeat_interleave(CELL, 2).repeat_interleave(CELL, 3)


@torch.no_grad()
def test_a_network_is_asked_for_what_is_hidden_and_for_nothing_else() -> None:
    loss = make(Masking(share=0.5, bands=0.0)).eval().reconstruction
    loss.backbone = Blind()
    tiles, hidden = some_tiles(), pixels(loss.hidden(keys()))
    blind, cells = loss(tiles, keys())
    assert cells == loss.hidden(keys()).sum() > 0
    assert loss(torch.where(hidden, tiles, tiles + 500), keys())[0] == pytest.approx(blind), "what is shown"
    assert loss(torch.where(hidden, tiles + 500, tiles), keys())[0] != pytest.approx(blind), "what is hidden"


@torch.no_grad()
def test_what_is_hidden_does_not_reach_the_network() -> None:
    loss = make(Masking(share=0.5, bands=0.3)).eval().reconstruction
    hidden = pixels(loss.hidden(keys()))
    seen: list[Tensor] = []
    grid = loss.backbone.grid
    loss.backbone.grid = lambda x: (seen.append(x), grid(x))[1]  # type: ignore[assignment]
    for tiles in (some_tiles(), torch.where(hidden, some_tiles() * 2, some_tiles())):
        loss(tiles, keys())
    assert torch.equal(*seen)


@torch.no_grad()
def test_cells_with_missing_data_are_never_asked_for() -> None:
    loss = make(Masking(share=1.0, bands=0.0)).eval().reconstruction
    loss.backbone = Blind()
    tiles = some_tiles()
    tiles[:, 9] = 0
    tiles[:, :, ::4, 33] = 0  # one pixel of every cell of a column
    before, cells = loss(tiles, keys())
    assert cells == 4 * 12 * 16 * 15
    holed = (tiles == 0).float().unflatten(2, (16, 4)).unflatten(4, (16, 4)).amax((3, 5)) > 0
    changed = torch.where(pixels(holed) & (tiles > 0), tiles + 900, tiles)
    assert not torch.equal(changed, tiles)
    assert loss(changed, keys())[0] == pytest.approx(before)
    assert loss(torch.zeros_like(tiles), keys())[0] == 0


@torch.no_grad()
def test_the_validation_loss_is_the_same_however_tiles_are_batched() -> None:
    loss = make().eval().reconstruction
    tiles = some_tiles(6)
    tiles[:4, 3:] = 0  # tiles of fewer bands ask for fewer cells
    whole, cells = loss(tiles, keys(6))
    parts = [loss(tiles[part], keys(6)[part]) for part in (slice(0, 4), slice(4, 6))]
    together = sum(float(part * count) for part, count in parts) / float(cells)
    assert together == pytest.approx(float(whole), rel=1e-4)


def test_level_and_spread_are_those_of_each_cell() -> None:
    normalised = torch.randn(2, 13, 64, 64, generator=torch.Generator().manual_seed(3))
    level, spread = describe(normalised).unbind(1)
    cell = normalised[1, 4, 8:12, 20:24]
    assert level[1, 4, 2, 5] == pytest.approx(float(cell.mean()), abs=1e-5)
    assert spread[1, 4, 2, 5] == pytest.approx(float(cell.std(unbiased=False)), abs=1e-3)


@pytest.mark.parametrize("backbone", [PatchCNN(16, (24, 32), (1, 1)), ResidualCNN((8, 16), (1, 1), (8,))])
@pytest.mark.slow
def test_it_learns_to_say_what_is_hidden(backbone: nn.Module) -> None:
    task = make(backbone=backbone)
    ramp = torch.arange(64.0).view(1, 1, 1, 64) * 20
    tiles = (800 + ramp * torch.linspace(0.2, 1, 13).view(1, 13, 1, 1)).expand(8, 13, 64, 64).contiguous()
    optimiser = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], 3e-3)
    losses = []
    for step in range(60):
        loss, _ = task.reconstruction(tiles, torch.arange(8) + 8 * step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.3 * sum(losses[:5])
    assert all(weights.grad is None for weights in task.classifier.head.parameters())


def test_settings_and_networks_that_cannot_be_are_refused() -> None:
    for wrong in ({"share": 1.5}, {"bands": 1.0}, {"share": 0.0, "bands": 0.0}, {"square": 5}):
        with pytest.raises(TrainingError, match=r"model\.masking"):
            Masking(**wrong)  # type: ignore[arg-type]
    plain = nn.Flatten()
    plain.features = 4  # type: ignore[assignment]
    with pytest.raises(TrainingError, match="Flatten has no grid of features"):
        make(backbone=plain)
