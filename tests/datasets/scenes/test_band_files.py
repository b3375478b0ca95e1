"""One file per band: gathered by name, each in its own resolution, on one grid of 10 m."""

from pathlib import Path

import numpy as np
import pytest
from rasterio.windows import Window
from scene_files import native, smooth, write_band

from tilewise.datasets.core.bands import BAND_NAMES, L2A_BANDS
from tilewise.datasets.core.errors import RadiometryUnknownError, SceneError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.scenes import Kind, SceneOptions, find_scenes, parse_clouds
from tilewise.datasets.scenes.band_files import parse_name

DN_L2A = ReadOptions(level=Level.L2A, scale=1e-4, offset=0)


@pytest.mark.parametrize(
    ("name", "scene", "word", "metres"),
    [
        ("T29UNU_20221005T115411_B02_10m.jp2", "T29UNU_20221005T115411", "B02", 10),
        ("T29UNU_20221005T115411_B8A.jp2", "T29UNU_20221005T115411", "B8A", 99),
        ("my scene.B1.tif", "my scene", "B1", 99),
        ("B12.tif", "", "B12", 99),
        ("blue.tif", "", "B02", 99),
        ("x_SCL_20m.tif", "x", "SCL", 20),
        ("x-MSK_CLDPRB_60m.tif", "x", "MSK_CLDPRB", 60),
    ],
)
def test_names_tell_scene_band_and_resolution(name: str, scene: str, word: str, metres: int) -> None:
    named = parse_name(Path(name))
    assert named
    assert (named.scene, named.word, named.metres) == (scene, word, metres)


@pytest.mark.parametrize(
    "name", ["scene.tif", "AB02.tif", "B13.tif", "Forest_1.tif", "B02_extra.tif", "orb1.tif"]
)
def test_other_names_tell_nothing(name: str) -> None:
    assert parse_name(Path(name)) is None


def write_scene(folder: Path, stem: str, bands: tuple[str, ...], seed: int = 0) -> np.ndarray:
    pixels = smooth(13, 120, seed)
    for band in bands:
        values, metres = native(pixels[BAND_NAMES.index(band)], band)
        write_band(folder / f"{stem}_{band}_{metres}m.tif", values, metres)
    return pixels


def test_bands_of_all_resolutions_come_together_at_10_m(tmp_path: Path) -> None:
    pixels = write_scene(tmp_path, "T32_20230607T102559", L2A_BANDS)
    write_band(tmp_path / "T32_20230607T102559_B02_60m.tif", np.full((20, 20), 9999, np.uint16), 60)
    (found,) = find_scenes([tmp_path], SceneOptions(DN_L2A, clouds=None))
    assert (found.name, found.kind) == ("T32_20230607T102559", Kind.BAND_FILES)
    with found.open() as scene:
        assert (scene.height, scene.width, scene.bands) == (120, 120, L2A_BANDS)
        assert scene.taken is not None
        got = scene.read(Window(0, 0, 120, 120))
    present = [BAND_NAMES.index(band) for band in L2A_BANDS]
    assert (got[present] > 0).all()
    np.testing.assert_array_equal(got[1], pixels[1])
    inner = (slice(None), slice(18, -18), slice(18, -18))
    assert np.abs(got[present].astype(int) - pixels[present])[inner].max() < 60
    assert not got[10].any()


def test_several_scenes_in_one_folder_are_told_apart_and_stacks_stay_themselves(tmp_path: Path) -> None:
    write_scene(tmp_path, "one", ("B02", "B03"))
    write_scene(tmp_path, "two", ("B02", "B03"), seed=1)
    write_band(tmp_path / "alone_B02.tif", smooth(1, 60)[0])
    write_band(tmp_path / "stack.tif", smooth(1, 60)[0])
    found = {scene.name: scene.kind for scene in find_scenes([tmp_path])}
    assert found == {
        "alone_B02": Kind.STACKED,
        "one": Kind.BAND_FILES,
        "two": Kind.BAND_FILES,
        "stack": Kind.STACKED,
    }


def test_files_of_several_bands_called_like_bands_are_scenes_of_their_own(tmp_path: Path) -> None:
    from rasters import write_tiff

    for name in ("B1", "B2"):  # of buildings, perhaps
        write_tiff(tmp_path / f"{name}.tif", smooth(3, 64), corner=(600_000, 5_000_000))
    assert [scene.kind for scene in find_scenes([tmp_path])] == [Kind.STACKED, Kind.STACKED]


def test_without_radiometry_the_files_are_refused_with_the_way_out(tmp_path: Path) -> None:
    write_scene(tmp_path, "s", ("B02", "B03"))
    (found,) = find_scenes([tmp_path])
    with pytest.raises(RadiometryUnknownError, match=r"^s: .*--level"), found.open():
        pass


def test_clouds_come_from_the_mask_among_the_files(tmp_path: Path) -> None:
    write_scene(tmp_path, "s", ("B02", "B03"))
    mask = np.full((60, 60), 4, np.uint8)
    mask[:, 30:] = 9
    write_band(tmp_path / "s_SCL_20m.tif", mask, 20)
    (found,) = find_scenes([tmp_path], SceneOptions(DN_L2A, parse_clouds("scl")))
    with found.open() as scene:
        got = scene.read(Window(0, 0, 120, 120))[1:3]
    assert (got[:, :, :60] > 0).all()
    assert not got[:, :, 60:].any()
    (found,) = find_scenes([tmp_path], SceneOptions(DN_L2A, parse_clouds("qa60")))
    with pytest.raises(SceneError, match="no cloud mask QA60"), found.open():
        pass
