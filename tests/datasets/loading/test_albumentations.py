"""Warping by Albumentations moves all bands of a tile together and never mixes data with no data."""

import os
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from rasters import noise

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.loading.geometry import AlbumentationsWarp, GeometryOptions

pytest.importorskip("albumentations")

TURNS_ONLY = GeometryOptions(warp=0.0)
ALWAYS_WARPED = GeometryOptions(warp=1.0)
Planes = npt.NDArray[np.uint16]


def draws(warp: AlbumentationsWarp, planes: Planes, count: int, seed: int = 0) -> list[Planes]:
    warp.reseed(seed)
    return [warp(planes) for _ in range(count)]


def smooth(bands: int = 1) -> Planes:
    """A slope, so that interpolated values are known to lie between their neighbours."""
    rows, columns = np.mgrid[0:64, 0:64]
    return np.stack([(500 + 40 * rows + 17 * columns) * (band + 1) for band in range(bands)]).astype(
        np.uint16
    )


def test_all_eight_symmetries_occur_and_nothing_else() -> None:
    planes = noise(bands=3)
    turned = [np.rot90(planes, turns, axes=(1, 2)) for turns in range(4)]
    symmetries = {item.tobytes() for way in turned for item in (way, way[:, :, ::-1])}
    assert len(symmetries) == 8
    assert {item.tobytes() for item in draws(AlbumentationsWarp(TURNS_ONLY), planes, 200)} == symmetries


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 10, 12, 13])
def test_all_bands_of_a_tile_are_warped_together(bands: int) -> None:
    for warped in draws(AlbumentationsWarp(ALWAYS_WARPED), smooth(bands), 20):
        assert (warped.shape, warped.dtype) == ((bands, 64, 64), np.uint16)
        multiples = warped[:1] * np.arange(1, bands + 1)[:, None, None]
        assert np.abs(warped - multiples).max() <= bands  # each is rounded by itself


def test_a_warped_tile_shows_the_same_land() -> None:
    planes = smooth()
    for warped in draws(AlbumentationsWarp(ALWAYS_WARPED), planes, 50):
        assert planes.min() <= warped.min() < warped.max() <= planes.max()
        assert not np.array_equal(warped, planes)


def test_data_never_become_no_data() -> None:
    for value in (1, 65_535):
        planes = np.full((3, 64, 64), value, np.uint16)
        assert all(
            (warped == value).all() for warped in draws(AlbumentationsWarp(ALWAYS_WARPED), planes, 100)
        )


def test_no_data_stay_no_data_and_never_bleed() -> None:
    planes = np.full((4, 64, 64), 5000, np.uint16)
    planes[:, :, :32] = 0
    empty = []
    for warped in draws(AlbumentationsWarp(ALWAYS_WARPED), planes, 200):
        kept = warped[warped > 0]
        assert kept.min(initial=5000) >= 4995
        assert (warped.any(axis=0) == warped.all(axis=0)).all()
        empty.append(1 - len(kept) / warped.size)
    assert 0.4 < np.mean(empty) < 0.65
    assert np.std(empty) > 0.05


def test_a_lone_pixel_without_data_is_not_filled_by_turning() -> None:
    planes = noise(bands=2)
    planes[:, 10, 20] = 0
    for turned in draws(AlbumentationsWarp(TURNS_ONLY), planes, 30):
        assert np.count_nonzero(turned == 0) == 2
        assert sorted(turned[0].ravel()) == sorted(planes[0].ravel())


def test_a_pixel_that_one_band_lacks_is_lost_in_all() -> None:
    planes = noise(bands=2)
    planes[1, 10, 20] = 0
    (turned,) = draws(AlbumentationsWarp(TURNS_ONLY), planes, 1)
    assert np.count_nonzero(turned[0] == 0) == np.count_nonzero(turned[1] == 0) == 1


def test_a_tile_without_data_stays_empty() -> None:
    warp = AlbumentationsWarp(ALWAYS_WARPED)
    assert not warp(np.zeros((13, 64, 64), np.uint16)).any()
    assert warp(np.zeros((0, 64, 64), np.uint16)).shape == (0, 64, 64)


def test_the_same_seed_draws_the_same_and_another_seed_does_not() -> None:
    planes = noise(bands=2)
    warp = AlbumentationsWarp(GeometryOptions())
    first, again, other = (np.stack(draws(warp, planes, 8, seed)) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(first, np.stack(draws(AlbumentationsWarp(GeometryOptions()), planes, 8, 5)))


def test_the_fraction_of_warped_tiles_is_as_requested() -> None:
    planes = smooth()
    options = GeometryOptions(flips=False, warp=0.3)
    warped = sum(not np.array_equal(item, planes) for item in draws(AlbumentationsWarp(options), planes, 400))
    assert 0.22 < warped / 400 < 0.38


def test_with_one_ratio_both_sides_zoom_alike_and_out_as_often_as_in() -> None:
    options = GeometryOptions(
        flips=False, warp=1.0, rotate_degrees=0, scale=(0.5, 2.0), keep_ratio=True, shift=0, shear_degrees=0
    )
    across = np.broadcast_to(np.arange(64) * 100 + 1, (64, 64))
    planes = np.stack([across, across.T]).astype(np.uint16)
    drawn = [item.astype(int) for item in draws(AlbumentationsWarp(options), planes, 200)]
    steps = np.array([[w[0, 32, 33] - w[0, 32, 32], w[1, 33, 32] - w[1, 32, 32]] for w in drawn])
    assert (np.abs(np.diff(steps)) <= 5).all()  # OpenCV interpolates in 32nds of a pixel
    assert (steps[:, 0] > 100).mean() == pytest.approx(0.5, abs=0.12)  # what is further apart is seen smaller
    assert steps.min() < 60
    assert steps.max() > 180


@pytest.mark.parametrize(
    ("scale", "keep_ratio"),
    [((0.0, 1.0), False), ((1.5, 0.5), False), ((1.1, 2.0), True), ((0.5, 0.9), True)],
)
def test_a_range_that_is_none_is_refused(scale: tuple[float, float], keep_ratio: bool) -> None:
    with pytest.raises(TrainingError, match=r"data\.augment\.geometry\.scale: .* is not a range of zooms"):
        GeometryOptions(scale=scale, keep_ratio=keep_ratio)


def test_no_geometry_leaves_tiles_as_they_are() -> None:
    planes = noise(bands=13)
    planes[:, :5] = 0
    options = GeometryOptions(flips=False, warp=0.0)
    assert all(np.array_equal(item, planes) for item in draws(AlbumentationsWarp(options), planes, 5))


def test_the_input_is_not_altered() -> None:
    planes = noise(bands=3)
    draws(AlbumentationsWarp(ALWAYS_WARPED), planes, 5)
    assert np.array_equal(planes, noise(bands=3))


def test_importing_it_makes_no_network_request() -> None:
    watch = (
        "import sys; sys.addaudithook(lambda event, _: "
        "print(event) if event in ('urllib.Request', 'socket.connect') else None); "
        "from tilewise.datasets.loading.geometry import AlbumentationsWarp, GeometryOptions; "
        "AlbumentationsWarp(GeometryOptions())"
    )
    environment = {name: value for name, value in os.environ.items() if "ALBUMENTATIONS" not in name}
    command = [sys.executable, "-c", watch]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == ""
