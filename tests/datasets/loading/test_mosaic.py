"""Mosaics are of one class and the same bands, keep no data, and leave other classes alone."""

import pytest
import torch
from torch import Tensor

from tilewise.datasets.core.bands import BAND_SETS, positions
from tilewise.datasets.core.errors import TilewiseError, TrainingError
from tilewise.datasets.loading.draws import Draws
from tilewise.datasets.loading.mosaic import Mosaic, MosaicOptions, mates_of, mosaic

CLASSES = ("crop", "road", "wood")
SIDE = 64


def tiles_of(labels: Tensor) -> Tensor:
    """Return tiles whose pixels all say which row they are of: 1, 2, 3 and so on."""
    rows = torch.arange(1, len(labels) + 1, dtype=torch.float32)
    return rows[:, None, None, None].expand(-1, 13, SIDE, SIDE).clone()


def mosaics(options: MosaicOptions, tiles: Tensor, labels: Tensor) -> Tensor:
    return Mosaic(options, CLASSES)(tiles, labels, Draws(torch.arange(len(tiles)), 0))


@pytest.mark.parametrize("side", [2, 4])
def test_a_mosaic_holds_whole_tiles_of_its_class_and_no_other(side: int) -> None:
    labels = torch.arange(60) % 3
    made = mosaics(MosaicOptions(fraction=1.0, sides=(side,)), tiles_of(labels), labels)
    for row, tile in enumerate(made):
        cells = tile.unfold(1, SIDE // side, SIDE // side).unfold(2, SIDE // side, SIDE // side).flatten(3)
        assert (cells.amin(3) == cells.amax(3)).all(), "a cell is of one tile"
        found = cells[0, :, :, 0].long().flatten() - 1
        assert found[0] == row, "the first is the tile itself"
        assert len(found.unique()) == side**2
        assert (labels[found] == labels[row]).all()


def test_only_the_classes_that_were_named_become_mosaics() -> None:
    labels = torch.arange(30) % 3
    tiles = tiles_of(labels)
    made = mosaics(MosaicOptions(fraction=1.0, classes=("crop", "wood")), tiles, labels)
    changed = (made != tiles).flatten(1).any(1)
    assert changed.equal(labels != 1)


def test_only_tiles_that_have_the_bands_become_mosaics() -> None:
    labels = torch.zeros(8, dtype=torch.long)
    tiles = tiles_of(labels)
    tiles[::2, positions(["B08"])] = 0
    made = mosaics(MosaicOptions(fraction=1.0, bands=("B04", "B08")), tiles, labels)
    assert (made != tiles).flatten(1).any(1).tolist() == [False, True] * 4


def test_as_many_tiles_become_mosaics_as_were_asked_for() -> None:
    labels = torch.zeros(400, dtype=torch.long)
    tiles = tiles_of(labels)
    changed = (mosaics(MosaicOptions(fraction=0.3), tiles, labels) != tiles).flatten(1).any(1)
    assert 0.2 < changed.float().mean() < 0.4
    assert mosaics(MosaicOptions(), tiles, labels).equal(tiles), "none is the default"


def test_tiles_of_other_bands_are_no_mates() -> None:
    labels = torch.zeros(8, dtype=torch.long)
    rgb = torch.zeros(13, dtype=torch.bool)
    rgb[positions(BAND_SETS["rgb"])] = True
    present = torch.ones(8, 13, dtype=torch.bool)
    present[::2] = rgb
    mates = mates_of(present, labels, 16)
    assert (mates % 2 == torch.arange(8)[:, None] % 2).all()
    assert mates[0].tolist() == [0, 2, 4, 6] * 4, "where there are fewer, they come round again"


def test_a_pixel_that_covers_no_data_is_no_data() -> None:
    tiles = torch.full((1, 13, SIDE, SIDE), 1000.0)
    tiles[0, :, 0, 0] = 0
    mates = torch.zeros(1, 4, dtype=torch.long)
    made = mosaic(tiles, mates, Draws(torch.tensor([3]), 0))
    assert set(made.unique().tolist()) == {0.0, 1000.0}
    assert int((made[0, 0] == 0).sum()) == 4, "one in each of the four"


def test_pieces_are_mirrored_by_chance() -> None:
    tiles = torch.arange(1.0, SIDE + 1).expand(1, 13, SIDE, SIDE).contiguous()  # brighter from left to right
    made = [
        mosaic(tiles, torch.zeros(1, 4, dtype=torch.long), Draws(torch.tensor([key]), 0)) for key in range(8)
    ]
    rising = {bool(tile[0, 0, 0, 0] < tile[0, 0, 0, 31]) for tile in made}
    assert rising == {True, False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 1.5}, "data.augment.mosaic.fraction: 1.5 is not a fraction"),
        ({"sides": (3,)}, "data.augment.mosaic.sides: .* divide 64"),
        ({"sides": ()}, "data.augment.mosaic.sides"),
        ({"bands": ("B99",)}, "B99"),
    ],
)
def test_what_makes_no_mosaics_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(TilewiseError, match=message):
        MosaicOptions(**options)  # type: ignore[arg-type]


def test_a_class_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(TrainingError, match="no class is called field; the classes are crop, road, wood"):
        Mosaic(MosaicOptions(fraction=0.1, classes=("field",)), CLASSES)
