"""Turns and warps on the device, against a bilinear sampling written out in numpy."""

import numpy as np
import pytest
import torch

from tilewise.datasets.loading.draws import Draws
from tilewise.datasets.loading.geometry import GeometryOptions, Warp, symmetries, warp

Planes = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def reference(tile: Planes, matrix: Planes) -> Planes:
    """Sample `tile` (bands, side, side) pixel by pixel, mirrored beyond the edge pixels."""
    _, height, width = tile.shape
    present = tile.any(axis=(1, 2))
    valid = (tile[present] > 0).all(axis=0).astype(float)
    out = np.zeros_like(tile)
    for row, column in np.ndindex(height, width):
        x, y = matrix @ [2 * column / (width - 1) - 1, 2 * row / (height - 1) - 1, 1]
        found, seen = np.zeros(len(tile)), 0.0
        place = ((y + 1) / 2 * (height - 1), (x + 1) / 2 * (width - 1))
        low = [int(np.floor(p)) for p in place]
        for step in np.ndindex(2, 2):
            weight = np.prod([1 - abs(p - (b + s)) for p, b, s in zip(place, low, step, strict=True)])
            r, c = (mirror(b + s, side) for b, s, side in zip(low, step, (height, width), strict=True))
            found, seen = found + weight * tile[:, r, c], seen + weight * valid[r, c]
        out[:, row, column] = np.where(present & (seen > 0.999), np.maximum(found, 1), 0)
    return out


def mirror(place: int, side: int) -> int:
    place = abs(place) % (2 * side - 2)
    return 2 * side - 2 - place if place >= side else place


@pytest.mark.parametrize("holes", [False, True])
def test_warps_are_those_of_a_sampling_done_by_hand(holes: bool) -> None:
    rng = np.random.default_rng(0)
    tiles = rng.integers(1, 9000, (3, 4, 9, 9)).astype(float)
    tiles[1, 2] = 0  # a band that the tile lacks
    if holes:
        tiles[2, :, 3:5, 4:7] = 0
    matrices = np.stack(
        [[[0.9, 0.3, 0.1], [-0.2, 1.1, -0.2]], [[1.2, 0, 0.4], [0.1, 0.8, 0]], [[0.7, -0.7, 0]] * 2]
    )
    found = warp(torch.tensor(tiles).float(), torch.tensor(matrices).float()).numpy()
    expected = np.stack([reference(tile, matrix) for tile, matrix in zip(tiles, matrices, strict=True)])
    assert np.array_equal(found == 0, expected == 0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.2)


def test_the_eight_symmetries_are_those_of_turning_and_mirroring_an_array() -> None:
    tile = torch.randint(1, 9000, (1, 13, 64, 64)).float()
    matrices = torch.cat([symmetries(), torch.zeros(8, 2, 1)], dim=2)
    turned = warp(tile.expand(8, -1, -1, -1), matrices).round()
    array = tile[0].numpy()
    expected = {np.rot90(a, n, (1, 2)).tobytes() for a in (array, array[:, :, ::-1]) for n in range(4)}
    assert {t.numpy().tobytes() for t in turned} == expected


def test_a_symmetry_moves_pixels_by_less_than_a_hundredth_of_a_dn() -> None:
    tile = torch.randint(1, 9000, (8, 13, 64, 64)).float()
    turned = warp(tile, torch.cat([symmetries(), torch.zeros(8, 2, 1)], dim=2))
    assert (turned - turned.round()).abs().max() < 0.01 * 9


def test_each_tile_is_turned_for_itself_and_only_a_share_is_warped() -> None:
    tiles = torch.randint(1, 9000, (1, 1, 16, 16)).float().expand(400, 1, 16, 16)
    options = GeometryOptions(warp=0.25)
    turned = Warp(options)(tiles, Draws(torch.arange(400), 0))
    values = [set(t.round().flatten().tolist()) for t in turned]
    whole = set(tiles[0].flatten().tolist())
    assert sum(v <= whole for v in values) / 400 == pytest.approx(0.75, abs=0.06)
    assert len({t.round().numpy().tobytes() for t, v in zip(turned, values, strict=True) if v <= whole}) == 8


def test_zoom_turn_and_shift_keep_their_limits() -> None:
    options = GeometryOptions(
        flips=False, warp=1.0, rotate_degrees=30, scale=(0.5, 2.0), shift=0.1, shear_degrees=0
    )
    matrices = Warp(options).draw(Draws(torch.arange(2000), 0))
    area = 1 / torch.linalg.det(matrices[:, :, :2])
    angle = torch.rad2deg(torch.atan2(matrices[:, 1, 0], matrices[:, 0, 0]))
    assert 0.25 <= area.min() < 0.4
    assert 3 < area.max() <= 4
    assert angle.abs().max() <= 30.001
    assert angle.abs().max() > 29
    assert matrices[:, :, 2].abs().max() <= 0.2


def test_with_one_ratio_both_sides_zoom_alike_and_out_as_often_as_in() -> None:
    options = GeometryOptions(
        flips=False, warp=1.0, rotate_degrees=0, scale=(0.5, 3.0), keep_ratio=True, shift=0, shear_degrees=0
    )
    matrices = Warp(options).draw(Draws(torch.arange(2000), 0))
    zoom = 1 / matrices[:, 0, 0]
    torch.testing.assert_close(matrices[:, 1, 1], matrices[:, 0, 0])
    assert (zoom < 1).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert 0.5 <= zoom.min() < 0.52
    assert 2.9 < zoom.max() <= 3


def test_without_turns_and_warps_tiles_are_left_alone() -> None:
    tiles = torch.ones(2, 13, 8, 8)
    assert Warp(GeometryOptions(flips=False, warp=0.0))(tiles, Draws(torch.arange(2), 0)) is tiles
