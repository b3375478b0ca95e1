"""EuroSAT's two archives: the order of the bands in one, the bytes of the other, and that the two agree."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasters import noise, write_jpeg, write_tiff

from tilewise.datasets.core.bands import BAND_NAMES, positions
from tilewise.datasets.core.errors import BandsUnknownError, TileShapeError, UnreadableImageError
from tilewise.datasets.core.radiometry import PRESETS, Level, ReadOptions
from tilewise.datasets.core.tile import Tile
from tilewise.datasets.readers.eurosat import read_ms, read_picture, read_rgb, rgb_to_dn
from tilewise.datasets.readers.geotiff import read_tile

PAIRS = 3  # of each class


def test_the_last_band_of_a_file_is_b8a(tmp_path: Path) -> None:
    pixels = noise()
    tile = read_ms(write_tiff(tmp_path / "Forest_1.tif", pixels, tags={}, corner=(500_000, 5_500_000)))
    assert np.array_equal(tile.pixels[BAND_NAMES.index("B8A")], pixels[-1])
    assert np.array_equal(tile.pixels[positions(["B08", "B09", "B10", "B12"])], pixels[[7, 8, 9, 11]])
    assert (tile.name, tile.bands, tile.level) == ("Forest_1", BAND_NAMES, Level.L1C)
    assert tile.georeference is not None


def test_a_multispectral_file_of_three_bands_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BandsUnknownError, match="13 band names were given, but the file has 3 bands"):
        read_ms(write_tiff(tmp_path / "Forest_1.tif", noise(bands=3), tags={}))


def test_bytes_become_dn_from_1_to_2750_without_gaps_in_their_order() -> None:
    dn = rgb_to_dn(np.arange(256, dtype=np.uint8)).astype(int)
    assert (dn[0], dn[1], dn[2], dn[128], dn[255]) == (1, 1, 11, 1375, 2750)
    steps = np.diff(dn[1:])
    assert set(steps) <= {10, 11}


def test_an_rgb_file_has_red_green_and_blue_and_no_other_band(tmp_path: Path) -> None:
    colours = np.ones((3, 64, 64), np.uint8) * np.array([200, 100, 50], np.uint8)[:, None, None]
    tile = read_rgb(write_jpeg(tmp_path / "Forest_1.jpg", colours))
    assert (tile.name, tile.bands, tile.level) == ("Forest_1", ("B02", "B03", "B04"), Level.L1C)
    red, green, blue = tile.pixels[positions(["B04", "B03", "B02"])].astype(int)
    for band, byte in ((red, 200), (green, 100), (blue, 50)):
        assert np.abs(band - (byte - 1) * 2750 / 254).max() <= 3 * 2750 / 254  # JPEG's own rounding
    assert not tile.pixels[[0, *range(4, 13)]].any()


def test_a_black_rgb_pixel_is_data(tmp_path: Path) -> None:
    tile = read_rgb(write_jpeg(tmp_path / "Night_1.jpg", np.zeros((3, 64, 64), np.uint8)))
    assert (tile.pixels[positions(tile.bands)] == 1).all()
    assert tile.valid_fraction == 1


def test_only_a_jpeg_is_an_rgb_tile(tmp_path: Path) -> None:
    grey = np.full((3, 64, 64), 9, np.uint8)
    for path in (write_jpeg(tmp_path / "a.jpg", grey, "PNG"), write_tiff(tmp_path / "b.jpg", grey, tags={})):
        with pytest.raises(UnreadableImageError, match=f"{path.name}: not a readable JPEG"):
            read_rgb(path)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95, 0.999])
def test_a_truncated_jpeg_is_refused_and_not_filled_with_grey(tmp_path: Path, share: float) -> None:
    path = write_jpeg(tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UnreadableImageError, match="not a readable JPEG"):
        read_rgb(path)


@pytest.mark.parametrize(
    ("shape", "message"), [((3, 63, 64), "64 × 63 pixels of 3"), ((1, 64, 64), "64 × 64 pixels of 1")]
)
def test_an_rgb_tile_of_another_shape_is_refused(
    tmp_path: Path, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(TileShapeError, match=message):
        read_rgb(write_jpeg(tmp_path / "a.jpg", np.ones(shape, np.uint8)))


# Real data.


@pytest.fixture(scope="module")
def pairs(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Tile, Tile]]:
    """MS and RGB tiles of the same names, a few of each class, unpacked from the published archives."""
    folder = tmp_path_factory.mktemp("eurosat")
    with (
        zipfile.ZipFile(real_data / "EuroSAT_MS.zip") as ms,
        zipfile.ZipFile(real_data / "EuroSAT_RGB.zip") as rgb,
    ):
        names = {Path(name).stem for name in rgb.namelist()}
        taken: dict[str, list[str]] = {}
        for member in sorted(ms.namelist()):
            label = Path(member).parent.name
            if Path(member).stem in names and len(taken.setdefault(label, [])) < PAIRS:
                taken[label].append(Path(member).stem)
        found = []
        for label, stems in taken.items():
            for stem in stems:
                tiff = ms.extract(f"EuroSAT_MS/{label}/{stem}.tif", folder)
                jpeg = rgb.extract(f"EuroSAT_RGB/{label}/{stem}.jpg", folder)
                found.append((read_ms(Path(tiff)), read_rgb(Path(jpeg))))
    assert len(found) == 10 * PAIRS
    return found


@pytest.mark.realdata
def test_real_multispectral_tiles_have_their_bands_in_their_places(pairs: list[tuple[Tile, Tile]]) -> None:
    pixels = np.stack([tile.pixels for tile, _ in pairs])
    mean = dict(zip(BAND_NAMES, pixels.mean(axis=(0, 2, 3)), strict=True))
    assert mean["B8A"] > mean["B09"]
    assert mean["B8A"] == pytest.approx(mean["B08"], rel=0.3)  # neighbours in the spectrum
    assert mean["B10"] < 100
    assert 300 < mean["B09"] < 1500
    alike = np.corrcoef(pixels[:, 7].ravel(), pixels[:, 8].ravel())[0, 1]
    assert alike > 0.95
    assert all(tile.georeference is not None and tile.valid_fraction == 1 for tile, _ in pairs)


@pytest.mark.realdata
def test_real_tiles_have_the_mean_and_deviation_that_torchgeo_publishes_of_all(real_data: Path) -> None:
    """Of the 27,000 tiles; about a thousand are read here. A mistaken order of bands would show at once."""
    published = pytest.importorskip("torchgeo.datamodules.eurosat")
    with zipfile.ZipFile(real_data / "EuroSAT_MS.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".tif")]
        files = [(name, archive.read(name)) for name in names]
    tiles = np.stack([read_tile(content, PRESETS["eurosat"], name).pixels for name, content in files])
    for index, band in enumerate(BAND_NAMES):
        values = tiles[:, index].astype(np.float64)
        assert values.mean() == pytest.approx(published.MEAN[band], rel=0.05), band
        assert values.std() == pytest.approx(published.STD[band], rel=0.15), band


@pytest.mark.realdata
@pytest.mark.parametrize("band", ["B04", "B03", "B02"])
def test_real_rgb_tiles_agree_with_the_multispectral_ones_of_their_names(
    pairs: list[tuple[Tile, Tile]], band: str
) -> None:
    place = BAND_NAMES.index(band)
    ms = np.stack([tile.pixels[place] for tile, _ in pairs]).astype(float)
    rgb = np.stack([tile.pixels[place] for _, tile in pairs]).astype(float)
    darker = ms < 2700  # brighter pixels are clipped in the JPEGs
    assert darker.mean() > 0.9
    assert np.median(np.abs(rgb - ms)[darker] / ms[darker]) < 0.05
    assert abs(np.median((rgb - ms)[darker] / ms[darker])) < 0.02


@pytest.mark.parametrize("driver", ["JPEG", "PNG"])
def test_an_uploaded_picture_has_the_pixels_that_training_reads(tmp_path: Path, driver: str) -> None:
    """Libraries bring a JPEG's colours up to full size in their own ways, tens of bytes apart."""
    rgb = np.random.default_rng(1).integers(0, 256, (3, 64, 64), np.uint8)
    path = write_jpeg(tmp_path / "Forest_1.jpg", rgb, driver)
    with rasterio.open(path) as dataset:
        expected = rgb_to_dn(dataset.read())
    tile = read_picture(path.read_bytes(), ReadOptions(), "a.jpg")
    assert np.array_equal(tile.pixels[[3, 2, 1]], expected)
    if driver == "JPEG":
        assert np.array_equal(tile.pixels, read_rgb(path).pixels)
