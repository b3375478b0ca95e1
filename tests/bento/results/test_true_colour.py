"""The picture of a scene in true colour, which lies beside its class map."""

from pathlib import Path

import numpy as np
import pytest
from geotiffs import geotiff
from PIL import Image

from tilewise.bento.batch import Output, OutputOptions, RunOptions, classify_scenes
from tilewise.bento.inference.thinning import shown
from tilewise.bento.inference.windows import Detail, GridOptions
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.scenes import SceneOptions, parse_clouds

BANDS = ("B02", "B03", "B04", "B08")
READING = SceneOptions(ReadOptions(level=Level.L2A, scale=0.0001, offset=0), parse_clouds("none"))
PICTURE = OutputOptions((Output.QUICKLOOK,))


def scene(height: int, width: int) -> np.ndarray:
    """A scene whose upper left is red, upper right green, lower left blue, lower right no data."""
    pixels = np.full((4, height, width), 300, np.uint16)
    down, across = height // 2, width // 2
    pixels[2, :down, :across] = 3000
    pixels[1, :down, across:] = 3000
    pixels[0, down:, :across] = 3000
    pixels[:, down:, across:] = 0
    return pixels


def picture(folder: Path, model: Path, pixels: np.ndarray, grid: GridOptions, bands: tuple[str, ...]) -> Path:
    (folder / "in").mkdir()
    (folder / "in" / "s.tif").write_bytes(geotiff(pixels, names=bands, tiled=True))
    options = RunOptions(reading=READING, grid=grid, outputs=PICTURE)
    (outcome,) = classify_scenes(folder / "in", folder / "out", model=model, options=options)
    assert outcome.error is None
    return folder / "out" / "s.truecolour.jpg"


@pytest.mark.parametrize(
    ("size", "grid", "expected"),
    [
        ((200, 260), GridOptions(), (200, 260)),
        ((200, 260), GridOptions(stride=16), (200, 260)),
        ((200, 260), GridOptions(stride=16, detail=Detail.FINE), (200, 260)),
        ((256, 256), GridOptions(stride=64, cell=16), (384, 384)),  # a map of 16 pixels is shown larger
        ((400, 2100), GridOptions(), (195, 1024)),
    ],
)
def test_it_shows_each_corner_in_its_colour(
    linear_model: Path, tmp_path: Path, size: tuple[int, int], grid: GridOptions, expected: tuple[int, int]
) -> None:
    with Image.open(picture(tmp_path, linear_model, scene(*size), grid, BANDS)) as image:
        seen = np.asarray(image.convert("RGB")).astype(int)
    height, width = seen.shape[:2]
    assert (height, width) == expected
    corners = [
        seen[row, column] for row in (height // 8, -height // 8) for column in (width // 8, -width // 8)
    ]
    assert [int(corner.argmax()) for corner in corners[:3]] == [0, 1, 2]
    assert all(corner.max() - np.sort(corner)[1] > 100 for corner in corners[:3])
    assert np.abs(corners[3] - 225).max() < 10
    middle = [seen[height // 2 + step, width // 8] for step in (-8, 8)]
    assert [int(colour.argmax()) for colour in middle] == [0, 2]


def test_the_same_scene_gives_the_same_bytes(linear_model: Path, tmp_path: Path) -> None:
    contents = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        contents.append(picture(folder, linear_model, scene(200, 260), GridOptions(), BANDS).read_bytes())
    assert contents[0] == contents[1]


def test_a_scene_without_a_visible_band_has_none(linear_model: Path, tmp_path: Path) -> None:
    path = picture(tmp_path, linear_model, scene(128, 128)[[0, 1, 3]], GridOptions(), ("B02", "B03", "B08"))
    assert not path.exists()
    assert path.with_name("s.quicklook.png").is_file()


@pytest.mark.parametrize(("side", "longest", "most"), [(10, 10, 1024), (5000, 5000, 1024), (7, 9000, 512)])
def test_the_pixels_shown_are_spread_over_the_whole_side(side: int, longest: int, most: int) -> None:
    lines = shown(side, longest, most)
    assert len(lines) == max(1, round(side * min(1, most / longest)))
    step = side / len(lines)
    assert np.abs(lines + 0.5 - (np.arange(len(lines)) + 0.5) * step).max() <= 0.5
