"""Scenes in windows: exact side by side, without seams where they overlap, and never half kept."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from affine import Affine
from geotiffs import geotiff
from rasterio.windows import Window

from tilewise.bento.inference import window_grid
from tilewise.bento.inference.blending import COARSE_WEIGHT, FINE_WEIGHT, NO_CLASS, OUT_OF_DISTRIBUTION
from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.thinning import shown
from tilewise.bento.inference.windows import (
    Detail,
    GridOptions,
    SceneBlock,
    WindowAnswer,
    classify,
    strip_count,
    twice,
)
from tilewise.datasets.acquire.synthetic import TAGS, render
from tilewise.datasets.core.bands import BAND_NAMES, L2A_BANDS
from tilewise.datasets.core.errors import SceneError, UnreadableImageError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.core.tile import DN
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.datasets.scenes import SceneOptions, find_scenes
from tilewise.models.model_file import ModelMetadata, Outliers

KINDS = ("Forest", "SeaLake", "Pasture", "SeaLake", "Industrial", "AnnualCrop", "Forest", "River")
TALL, WIDE = 1300, 300  # two strips


def mosaic(height: int, width: int) -> DN:
    """Synthetic land (13, height, width) of many classes."""
    down, across = -(-height // 64), -(-width // 64)
    cells = {kind: render(kind, 3, seed=4) for kind in KINDS}
    rows = [
        np.concatenate([cells[KINDS[(r * 3 + c) % len(KINDS)]] for c in range(across)], 2)
        for r in range(down)
    ]
    return np.concatenate(rows, 1)[:, :height, :width]


def scene_file(folder: Path, pixels: npt.NDArray[Any], **more: Any) -> Path:
    path = folder / "scene.tif"
    path.write_bytes(
        geotiff(pixels, names=BAND_NAMES, tags=TAGS, tiled=True, blockxsize=256, blockysize=256, **more)
    )
    return path


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DN]:
    """A scene of two strips with holes, as a file and as pixels."""
    pixels = mosaic(TALL, WIDE)
    pixels[:, 200:330, 40:180] = 0
    pixels[3, 1000:1100, 250:] = 0
    return scene_file(tmp_path_factory.mktemp("tall"), pixels), pixels


def blocks_of(engine: Engine, path: Path, grid: GridOptions | None = None, **more: Any) -> list[SceneBlock]:
    with opened(path) as scene:
        return list(classify(engine, scene, grid, **more).iter_blocks())


def opened(path: Path) -> Any:
    (source,) = find_scenes([path], SceneOptions(clouds=None))
    return source.open()


def joined(blocks: Sequence[SceneBlock], name: str) -> npt.NDArray[Any]:
    return np.concatenate([getattr(block, name) for block in blocks], axis=-2)


def test_blocks_give_every_row_once_in_order_and_every_window_once(
    engine: Engine, tall: tuple[Path, DN]
) -> None:
    blocks = blocks_of(engine, tall[0])
    assert [block.row for block in blocks] == list(np.cumsum([0] + [len(b.class_map) for b in blocks[:-1]]))
    assert joined(blocks, "class_map").shape == (TALL, WIDE)
    windows = [window for block in blocks for window in block.windows]
    rows, columns = [*range(0, 1236, 64), 1236], [0, 64, 128, 192, 236]
    assert [(w.row, w.column) for w in windows] == [(r, c) for r in rows for c in columns]


@pytest.mark.parametrize("grid", [GridOptions(), GridOptions(stride=16, cell=4)])
def test_what_is_unlike_the_training_data_is_part_of_no_class(
    engine: Engine, tall: tuple[Path, DN], grid: GridOptions
) -> None:
    score = joined(blocks_of(engine, tall[0], grid), "outlier")
    threshold = float(np.nanmedian(score))
    outliers = Outliers(method="distance", threshold=threshold, false_alarms=0.05)
    strict = Strict(engine, engine.metadata.model_copy(update={"outliers": outliers}))
    before, after = blocks_of(engine, tall[0], grid), blocks_of(strict, tall[0], grid)
    classes, plain = joined(after, "class_map"), joined(before, "class_map")
    unlike = score > threshold
    assert 0.1 < unlike.mean() < 0.6
    assert (classes[unlike] == OUT_OF_DISTRIBUTION).all()
    np.testing.assert_array_equal(classes[~unlike], plain[~unlike])
    assert np.isnan(joined(after, "probability")[unlike]).all()
    np.testing.assert_array_equal(joined(after, "outlier"), score)


@pytest.mark.parametrize("stride", [16, 48])
def test_a_blended_outlier_score_is_between_those_of_the_windows_over_its_pixel(
    engine: Engine, tall: tuple[Path, DN], stride: int
) -> None:
    blocks = blocks_of(engine, tall[0], GridOptions(stride=stride))
    score = joined(blocks, "outlier")
    low, high = np.full(score.shape, np.inf), np.full(score.shape, -np.inf)
    for window in (window for block in blocks for window in block.windows):
        if window.outlier_score is not None:
            over = np.s_[
                window.row : window.row + window.height, window.column : window.column + window.width
            ]
            low[over] = np.minimum(low[over], window.outlier_score)
            high[over] = np.maximum(high[over], window.outlier_score)
    known = ~np.isnan(score)
    assert known.mean() > 0.5
    slack = 1e-4 * np.abs(score[known])
    assert (score[known] >= low[known] - slack).all()
    assert (score[known] <= high[known] + slack).all()


@dataclass(frozen=True)
class Strict:
    """An engine of which another threshold is known."""

    engine: Engine
    metadata: ModelMetadata

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


def test_windows_side_by_side_have_exactly_the_classes_of_their_tiles(
    engine: Engine, tall: tuple[Path, DN]
) -> None:
    path, pixels = tall
    blocks = blocks_of(engine, path)
    classes, probability, outlier = (joined(blocks, name) for name in ("class_map", "probability", "outlier"))
    seen = 0
    for window in (window for block in blocks for window in block.windows):
        tile = pixels[:, window.row : window.row + 64, window.column : window.column + 64]
        valid = (tile > 0).all(axis=0)
        assert window.valid_fraction == pytest.approx(valid.mean())
        if window.row % 64 or window.column % 64:
            continue
        inside = (slice(window.row, window.row + 64), slice(window.column, window.column + 64))
        if valid.mean() < 0.5:
            assert window.probabilities is None
            continue
        seen += 1
        answers = engine.classify(tile[None])
        assert (classes[inside][valid] == answers.probabilities[0].argmax()).all()
        np.testing.assert_allclose(probability[inside][valid], answers.probabilities[0].max(), atol=1e-5)
        np.testing.assert_allclose(outlier[inside][valid], answers.outlier_score[0], rtol=1e-5)
        assert (classes[inside][~valid] == NO_CLASS).all()
        assert np.isnan(probability[inside][~valid]).all()
    assert seen > 60


@pytest.mark.parametrize(
    "grid",
    [
        GridOptions(),
        GridOptions(32),
        GridOptions(24, keep_probabilities=True),
        GridOptions(32, cell=8),
        GridOptions(cell=64),
    ],
)
def test_threads_and_parting_change_nothing(engine: Engine, tall: tuple[Path, DN], grid: GridOptions) -> None:
    path, _ = tall
    whole = blocks_of(engine, path, grid, workers=1)
    with opened(path) as scene:
        count = strip_count(scene, grid)
    parted = [
        b
        for n in reversed(range(count))
        for b in reversed(blocks_of(engine, path, grid, workers=3, rows=(n, n + 1)))
    ]
    assert count >= 2 or grid.stride < 64
    for first, second in zip(whole, reversed(parted), strict=True):
        assert first.row == second.row
        for name in ("class_map", "probability", "outlier", "probabilities"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert [(w.row, w.column, w.valid_fraction) for w in first.windows] == [
            (w.row, w.column, w.valid_fraction) for w in second.windows
        ]


def test_overlapping_windows_are_averaged_with_the_weight_that_is_written_down(
    engine: Engine, tmp_path: Path
) -> None:
    pixels = mosaic(150, 170)
    pixels[:, 60:100, 60:90] = 0
    grid = GridOptions(stride=24, min_valid_fraction=0.9, keep_probabilities=True)
    blocks = blocks_of(engine, scene_file(tmp_path, pixels), grid)
    t = np.sin(np.pi * (np.arange(64) + 0.5) / 64) ** 2
    total, weight = np.zeros((len(CLASSES), 150, 170)), np.zeros((150, 170))
    for row in [*range(0, 86, 24), 86]:
        for column in [*range(0, 106, 24), 106]:
            tile = pixels[:, row : row + 64, column : column + 64]
            if (tile > 0).all(axis=0).mean() >= 0.9:
                answers = engine.classify(tile[None]).probabilities[0]
                total[:, row : row + 64, column : column + 64] += answers[:, None, None] * np.outer(t, t)
                weight[row : row + 64, column : column + 64] += np.outer(t, t)
    known = (pixels > 0).all(axis=0) & (weight > 0)
    assert 0 < known.sum() < known.size
    probabilities = joined(blocks, "probabilities")
    np.testing.assert_allclose(
        probabilities[:, known], (total / np.maximum(weight, 1e-9))[:, known], atol=1e-4
    )
    np.testing.assert_allclose(probabilities[:, known].sum(axis=0), 1, atol=1e-4)
    np.testing.assert_array_equal(joined(blocks, "class_map") == NO_CLASS, ~known)
    np.testing.assert_array_equal(joined(blocks, "class_map")[known], probabilities[:, known].argmax(axis=0))
    np.testing.assert_array_equal(joined(blocks, "probability")[known], probabilities[:, known].max(axis=0))


def test_overlap_leaves_no_seams(engine: Engine, tmp_path: Path) -> None:
    """Where land changes slowly, so does the answer: no step between pixels is near that between windows."""
    first, second = (render(kind, 3, seed=4).mean(axis=(1, 2)) for kind in ("Forest", "AnnualCrop"))
    fraction = np.linspace(0, 1, 640)
    pixels = (
        (first[:, None] * (1 - fraction) + second[:, None] * fraction)[:, None]
        .repeat(130, axis=1)
        .astype(np.uint16)
    )
    path = scene_file(tmp_path, pixels)

    def largest_step(grid: GridOptions) -> float:
        values = joined(blocks_of(engine, path, grid), "probabilities")
        return float(np.abs(np.diff(values, axis=2)).max())

    side_by_side = largest_step(GridOptions(keep_probabilities=True))
    blended = largest_step(GridOptions(stride=16, keep_probabilities=True))
    assert side_by_side > 0.05
    assert blended < side_by_side / 10


def test_maps_on_cells_take_the_value_at_the_cells_middle(engine: Engine, tmp_path: Path) -> None:
    pixels = mosaic(200, 171)
    pixels[:, 100:140, 16:24] = 0
    path = scene_file(tmp_path, pixels)
    fine = joined(blocks_of(engine, path, GridOptions(16)), "probability")
    with opened(path) as scene:
        answer = classify(engine, scene, GridOptions(16, cell=8))
        coarse = joined(list(answer.iter_blocks()), "probability")
        assert (answer.height, answer.width) == coarse.shape == (25, 22)
        assert answer.georeference.transform == scene.georeference.transform @ Affine.scale(8)
    around = np.stack([fine[3:200:8, 3:171:8][:, :21], fine[4:200:8, 4:171:8][:, :21]])
    inside = np.isfinite(around).all(axis=0)
    assert (np.abs(coarse[:, :21] - around.mean(axis=0))[inside] < 0.02).all()
    assert np.isnan(coarse[13:17, 2]).all()
    assert np.isfinite(coarse[:12]).all()


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (GridOptions(0), "choose 4 to 64"),
        (GridOptions(65), "choose 4 to 64"),
        (GridOptions(32, cell=5), "does not divide"),
        (GridOptions(32, cell=0), "does not divide"),
        (GridOptions(min_valid_fraction=2), "choose 0 to 1"),
    ],
)
def test_options_that_cannot_be_are_refused(
    engine: Engine, tall: tuple[Path, DN], grid: GridOptions, message: str
) -> None:
    with pytest.raises(SceneError, match=message):
        blocks_of(engine, tall[0], grid)


def test_progress_is_told_from_nothing_to_all(engine: Engine, tall: tuple[Path, DN]) -> None:
    reports: list[tuple[str, int, int | None]] = []
    blocks_of(engine, tall[0], progress=lambda *progress: reports.append(progress))
    assert reports[-1] == ("scene", 105, 105)
    assert [done for _, done, _ in reports] == sorted(done for _, done, _ in reports)


def test_whoever_stops_taking_blocks_stops_the_work(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_grid, "_PIXELS_AT_ONCE", 64 * 64)  # a strip is a row of blocks
    path = scene_file(tmp_path, mosaic(64 * 40, 64))
    with opened(path) as scene:
        reads: list[Window] = []
        read = scene.read
        scene.read = lambda window: (reads.append(window), read(window))[1]
        blocks = classify(engine, scene, workers=1).iter_blocks()
        next(blocks)
        blocks.close()
        assert 0 < len(reads) < 8
        assert strip_count(scene, GridOptions()) == 10
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("windows")]


def test_an_error_in_a_thread_reaches_whoever_takes_the_blocks(engine: Engine, tall: tuple[Path, DN]) -> None:
    path, _ = tall
    with opened(path) as scene:
        blocks = classify(engine, scene).iter_blocks()
        kept = path.rename(path.with_suffix(".kept"))
        try:
            with pytest.raises(UnreadableImageError):
                list(blocks)
        finally:
            kept.rename(path)


def damaged(path: Path, every: bool) -> None:
    with rasterio.open(path) as dataset:
        positions = [(x, y) for x in range(2) for y in range(2)] if every else [(1, 0)]
        spans = [
            [
                int(dataset.get_tag_item(f"BLOCK_{what}_{x}_{y}", "TIFF", bidx=1))
                for what in ("OFFSET", "SIZE")
            ]
            for x, y in positions
        ]
    content = bytearray(path.read_bytes())
    for first, size in spans:
        content[first : first + size] = b"\xff" * size
    path.write_bytes(content)


def test_windows_on_a_corrupt_block_are_no_data_and_the_rest_is_classified(
    engine: Engine, tmp_path: Path
) -> None:
    path = scene_file(tmp_path, mosaic(512, 512), compress="deflate", interleave="pixel")
    damaged(path, every=False)
    with opened(path) as scene:
        classes = joined(list(classify(engine, scene).iter_blocks()), "class_map")
        assert scene.broken == 1
    hole = np.zeros((512, 512), bool)
    hole[:256, 256:] = True
    np.testing.assert_array_equal(classes == NO_CLASS, hole)


def test_a_scene_of_which_nothing_can_be_decoded_is_an_error(engine: Engine, tmp_path: Path) -> None:
    path = scene_file(tmp_path, mosaic(512, 512), compress="deflate", interleave="pixel")
    damaged(path, every=True)
    with (
        opened(path) as scene,
        pytest.raises(UnreadableImageError, match=r"scene: none .* 4 blocks are truncated"),
    ):
        list(classify(engine, scene).iter_blocks())


@pytest.mark.realdata
@pytest.mark.parametrize("grid", [GridOptions(), GridOptions(16, cell=8)])
def test_real_scenes_are_classified_on_their_own_or_on_a_warped_grid(
    engine: Engine, real_data: Path, grid: GridOptions
) -> None:
    l1c = SceneOptions(ReadOptions(scale=1e-4, offset=0), clouds=None)
    l2a = SceneOptions(ReadOptions(L2A_BANDS, Level.L2A, 1e-4, 0), clouds=None, warp=True)
    for folder, options in {"lahinch_l1c": l1c, "waterville_l1c": l1c, "small_l2a": l2a}.items():
        for source in find_scenes([real_data / "scenes" / folder], options):
            with source.open() as scene:
                answer = classify(engine, scene, grid)
                classes = joined(list(answer.iter_blocks()), "class_map")
            assert classes.shape == (answer.height, answer.width)
            if "ship" not in source.name:  # on open water bands are 0, and so no data
                assert (classes != NO_CLASS).mean() > 0.5, source.name


# Fine maps: windows of half the size, pooled with the others.


FINE = GridOptions(stride=16, cell=4, detail=Detail.FINE, keep_probabilities=True)


def test_fine_maps_pool_the_blends_of_both_sizes_of_windows(engine: Engine, tall: tuple[Path, DN]) -> None:
    """Computed here by another way: each size's windows one by one, spread over pixels by their weights."""
    found = joined(blocks_of(engine, tall[0], FINE), "probabilities")
    pixels = tall[1]
    coarse, fine = (blend(engine, pixels, tile, FINE.stride) for tile in (64, 32))
    logs = COARSE_WEIGHT * np.log(np.maximum(coarse, 1e-4)) + FINE_WEIGHT * np.log(np.maximum(fine, 1e-4))
    expected = np.exp(logs) / np.exp(logs).sum(axis=0)
    known = np.isfinite(found[0]) & np.isfinite(fine[0])
    assert known.mean() > 0.9
    np.testing.assert_allclose(found[:, known], expected[:, known], atol=2e-4)


def blend(engine: Engine, pixels: DN, tile: int, stride: int) -> npt.NDArray[Any]:
    """Probabilities (classes, rows, columns) at the middles of cells of 4 pixels, from windows of a size."""
    height, width = pixels.shape[1:]
    down, across = ([*range(0, side - tile, stride), side - tile] for side in (height, width))
    middles = [np.arange(2, side, 4) for side in (height, width)]
    total = np.zeros((len(engine.metadata.classes) + 1, len(middles[0]), len(middles[1])))
    for row in down:
        for column in across:
            window = pixels[:, row : row + tile, column : column + tile]
            if (window.min(axis=0) != 0).mean() < 0.5:
                continue
            large = window[None] if tile == 64 else twice(window[None])
            answer = np.append(engine.classify(np.ascontiguousarray(large)).probabilities[0], 1)
            weights = []
            for start, places in ((row, middles[0]), (column, middles[1])):
                within = (places >= start) & (places < start + tile)
                weights.append(np.where(within, np.sin(np.pi * (places - start) / tile) ** 2, 0))
            total += answer[:, None, None] * np.outer(*weights)
    with np.errstate(invalid="ignore"):
        return np.asarray(total[:-1] / total[-1])


def test_fine_maps_cover_what_coarse_ones_cover(engine: Engine, tall: tuple[Path, DN]) -> None:
    coarse = blocks_of(engine, tall[0], replace(FINE, detail=Detail.COARSE))
    fine = blocks_of(engine, tall[0], FINE)
    for name, value in (("class_map", NO_CLASS), ("class_map", OUT_OF_DISTRIBUTION)):
        np.testing.assert_array_equal(joined(coarse, name) == value, joined(fine, name) == value)
    np.testing.assert_array_equal(joined(coarse, "outlier"), joined(fine, "outlier"))
    classes, probability = joined(fine, "class_map"), joined(fine, "probability")
    known = classes < OUT_OF_DISTRIBUTION
    np.testing.assert_array_equal(np.isfinite(probability), known)
    best = joined(fine, "probabilities").max(axis=0)
    np.testing.assert_allclose(probability[known], best[known], rtol=1e-6)
    windows = [[w.row for b in blocks for w in b.windows] for blocks in (coarse, fine)]
    assert windows[0] == windows[1]


def test_strips_of_a_fine_map_do_not_depend_on_the_others(
    engine: Engine, tall: tuple[Path, DN], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_grid, "_PIXELS_AT_ONCE", 2**16)  # small parts, so several strips
    whole = joined(blocks_of(engine, tall[0], FINE), "probability")
    with opened(tall[0]) as scene:
        count = strip_count(scene, FINE)
    assert count > 1
    parts = [b for n in range(count) for b in blocks_of(engine, tall[0], FINE, rows=(n, n + 1))]
    np.testing.assert_array_equal(joined(parts, "probability"), whole)


def test_fine_maps_need_windows_that_overlap(engine: Engine, tall: tuple[Path, DN]) -> None:
    with pytest.raises(SceneError, match="stride of 32 pixels with detail fine; choose 4 to 16"):
        blocks_of(engine, tall[0], GridOptions(stride=32, detail=Detail.FINE))


def test_pixels_between_two_are_their_weighted_mean_and_beside_no_data_none() -> None:
    tile = np.array([[100, 200, 400], [100, 200, 400], [100, 200, 0]], np.uint16)[None, None]
    large = twice(tile)[0, 0]
    assert large[0].tolist() == [100, 125, 175, 250, 350, 400]
    assert large[5].tolist() == [100, 125, 175, 0, 0, 0]
    assert large[3].tolist() == [100, 125, 175, 0, 0, 0]
    assert large[2].tolist() == [100, 125, 175, 250, 350, 400]


@pytest.mark.parametrize("turned", [False, True])
def test_what_the_first_window_leaves_out_comes_from_the_last_which_overlaps_it(
    engine: Engine, tmp_path: Path, turned: bool
) -> None:
    """A scene of 64 × 100: of its first window too little is valid, and the last begins at 36."""
    pixels = mosaic(100, 64)
    pixels[:, :50] = 0
    if turned:
        pixels = pixels.transpose(0, 2, 1).copy()
    last = pixels[:, -64:, -64:]
    answers = engine.classify(last[None])
    blocks = blocks_of(engine, scene_file(tmp_path, pixels))
    classes, outlier = joined(blocks, "class_map"), joined(blocks, "outlier")
    valid = (pixels > 0).all(axis=0)
    assert (classes[valid] == answers.probabilities[0].argmax()).all()
    assert (classes[~valid] == NO_CLASS).all()
    np.testing.assert_allclose(outlier[valid], answers.outlier_score[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("between", "rounded"), [((1000, 1002), [1000, 1001, 1002, 1002]), ((1, 7), [1, 3, 6, 7])]
)
def test_halves_between_two_pixels_are_rounded_up(between: tuple[int, int], rounded: list[int]) -> None:
    tiles = np.tile(np.array(between, np.uint16), (1, 1, 2, 1))
    assert twice(tiles)[0, 0, 0].tolist() == rounded


@pytest.mark.parametrize("stride", [48, 64])
def test_the_picture_of_a_scene_has_the_colours_of_the_pixels_that_it_shows(
    engine: Engine, tall: tuple[Path, DN], stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_grid, "_PIXELS_AT_ONCE", 2**16)  # small parts, so several strips
    path, pixels = tall
    rows, columns = (shown(side, max(TALL, WIDE)) for side in (TALL, WIDE))
    blocks = blocks_of(engine, path, GridOptions(stride=stride))
    colours = np.concatenate([block.colours for block in blocks if block.colours is not None], 1)
    np.testing.assert_array_equal(colours, pixels[[3, 2, 1]][:, rows][:, :, columns])


class Masked:
    """A scene of which only an area is wanted, and what is read of it."""

    def __init__(self, scene: Any, wanted: npt.NDArray[np.bool_]) -> None:
        self.scene, self.wanted = scene, wanted
        self.read = np.zeros_like(wanted)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scene, name)

    def inside(self, window: Window) -> npt.NDArray[np.bool_]:
        return self.wanted[window.toslices()]

    def readers(self) -> list[Any]:
        def read(window: Window) -> DN:
            self.read[window.toslices()] = True
            return self.scene.readers()[0](window)  # type: ignore[no-any-return]

        return [read]


@pytest.mark.parametrize(
    "area", [np.s_[300:420, 150:200], np.s_[1000:1010, 70:71], np.s_[0:1300, 280:300], np.s_[0:0, 0:0]]
)
def test_of_an_area_only_its_windows_are_read_and_they_are_answered_as_ever(
    engine: Engine, tall: tuple[Path, DN], area: tuple[slice, slice]
) -> None:
    path, _ = tall
    wanted = np.zeros((TALL, WIDE), bool)
    wanted[area] = True
    plain = joined(blocks_of(engine, path), "class_map")
    with opened(path) as scene:
        masked = Masked(scene, wanted)
        blocks = list(classify(engine, masked, GridOptions()).iter_blocks())
    np.testing.assert_array_equal(joined(blocks, "class_map"), np.where(wanted, plain, NO_CLASS))
    answered = [w for block in blocks for w in block.windows]
    needed = np.zeros_like(wanted)
    for window in answered:
        over = np.s_[window.row : window.row + window.height, window.column : window.column + window.width]
        needed[over] |= wanted[over].any()
    assert (masked.read >= needed).all()
    # What lies between the wanted windows of a strip is read with them, and nothing around these.
    beside = ~needed.any(axis=0)
    assert not masked.read[:, beside].any()


class SeenTwice(Masked):
    """A scene with a second observation, of which only an area has data."""

    def inside(self, window: Window) -> None:
        return None

    def readers(self) -> list[Any]:
        first = self.scene.readers()[0]

        def second(window: Window) -> DN:
            return np.where(self.wanted[window.toslices()], np.roll(first(window), 7, axis=2), 0)  # type: ignore[no-any-return]

        return [first, second]


def test_a_window_has_the_mean_of_the_observations_that_have_data_there(
    engine: Engine, tall: tuple[Path, DN]
) -> None:
    path, _ = tall
    both = np.zeros((TALL, WIDE), bool)
    both[:640] = True

    def answers(wanted: npt.NDArray[np.bool_]) -> dict[tuple[int, int], WindowAnswer]:
        with opened(path) as scene:
            blocks = list(classify(engine, SeenTwice(scene, wanted), GridOptions()).iter_blocks())
        return {
            (w.row, w.column): w for block in blocks for w in block.windows if w.probabilities is not None
        }

    once, mixed, twice_seen = map(answers, (np.zeros_like(both), both, np.ones_like(both)))
    assert any(
        np.abs(once[place].probabilities - twice_seen[place].probabilities).max() > 0.01  # type: ignore[operator]
        for place in once
    )
    for place in once:
        expected = twice_seen[place] if place[0] + 64 <= 640 else once[place]
        np.testing.assert_allclose(mixed[place].probabilities, expected.probabilities, atol=1e-6)
        assert mixed[place].outlier_score == pytest.approx(expected.outlier_score, rel=1e-5)
        assert float(np.sum(mixed[place].probabilities)) == pytest.approx(1, abs=1e-5)
