"""What changed between two maps: the hectares, how sure they are, and the map of it."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from geotiffs import CORNER
from maps_of_two_dates import write_maps
from PIL import Image
from rasterio.crs import CRS

from tilewise.bento.inference.blending import NO_CLASS, OUT_OF_DISTRIBUTION
from tilewise.bento.results.compare import (
    NOT_COMPARED,
    UNCHANGED,
    Comparison,
    compare_maps,
    open_class_map,
)
from tilewise.datasets.core.errors import ResultsError

HA = 0.01  # of a pixel of 10 m


def compared(before: Path, after: Path, out: Path, *, align: bool = False) -> Comparison:
    out.mkdir(exist_ok=True)
    return compare_maps(open_class_map(before), open_class_map(after), out, align=align)


def two_dates(folder: Path, before: np.ndarray, after: np.ndarray, sure: float | None = 0.8) -> Comparison:
    maps = (write_maps(folder, name, m, sure) for name, m in (("a", before), ("b", after)))
    return compared(*maps, folder / "out")


def test_hectares_go_from_the_class_before_to_the_class_after(tmp_path: Path) -> None:
    before, after = np.zeros((600, 700)), np.zeros((600, 700))
    after[:100, :50] = 1
    before[590:, :10], after[590:, :10] = 2, 1
    found = two_dates(tmp_path, before, after)
    still = 600 * 700 - 5000 - 100
    np.testing.assert_allclose(found.hectares, np.array([[still, 5000, 0], [0, 0, 0], [0, 100, 0]]) * HA)
    assert found.changed(found.hectares) == pytest.approx(51)
    assert found.notes == ()


def test_no_data_and_what_is_unlike_the_training_data_never_count_as_change(tmp_path: Path) -> None:
    before, after = np.zeros((100, 100)), np.zeros((100, 100))
    before[0], after[1], after[2] = NO_CLASS, NO_CLASS, OUT_OF_DISTRIBUTION
    before[3], before[0, :5], after[4, 7] = OUT_OF_DISTRIBUTION, OUT_OF_DISTRIBUTION, 1
    found = two_dates(tmp_path, before, after)
    assert found.changed(found.hectares) == pytest.approx(HA)
    assert (found.no_data_ha, found.unlike_ha) == pytest.approx((195 * HA, 205 * HA))
    assert found.hectares.sum() + found.no_data_ha + found.unlike_ha == pytest.approx(10_000 * HA)
    with rasterio.open(found.files[0]) as dataset:
        numbers = dataset.read(1)
    assert (numbers[:4] == NOT_COMPARED).all()
    assert numbers[4, 7] == 1 + 0 * 3 + 1
    assert (np.delete(numbers[4:].ravel(), 7) == UNCHANGED).all()


def test_expected_hectares_are_the_products_of_both_probabilities(tmp_path: Path) -> None:
    before, after = np.zeros((64, 128)), np.zeros((64, 128))
    after[:, :64] = 1
    paths = [
        write_maps(tmp_path, "a", before, 0.8),
        write_maps(tmp_path, "b", after, np.where(np.arange(128) < 64, 0.5, 0.9)),
    ]
    found = compared(*paths, tmp_path / "out")
    assert found.expected_ha is not None
    square = 64 * 64 * HA
    assert found.expected_ha[0, 1] == pytest.approx(0.4 * square)
    assert found.expected_ha[0, 0] == pytest.approx(0.72 * square)


def test_a_square_of_640_m_errs_as_one_and_squares_independently(tmp_path: Path) -> None:
    """One square: sd = area × sqrt(q (1 - q)); four independent ones: twice that for four times the area."""
    sds = []
    for side, name in ((64, "one"), (128, "four")):
        found = two_dates(tmp_path / name, np.zeros((side, side)), np.ones((side, side)))
        assert found.sd_ha is not None
        assert found.sd_ha[0, 1] == pytest.approx(found.changed_sd_ha)
        sds.append(found.sd_ha[0, 1])
    assert sds[0] == pytest.approx(64 * 64 * HA * (0.64 * 0.36) ** 0.5)
    assert sds[1] == pytest.approx(2 * sds[0])


def test_squares_are_640_m_on_maps_of_coarse_cells(tmp_path: Path) -> None:
    coarse = CORNER @ Affine.scale(16)
    paths = [write_maps(tmp_path, n, np.full((8, 8), v), transform=coarse) for n, v in (("a", 0), ("b", 1))]
    found = compared(*paths, tmp_path / "out")
    assert found.sd_ha is not None
    assert found.hectares[0, 1] == pytest.approx(64 * 2.56)
    assert found.sd_ha[0, 1] == pytest.approx(2 * 16 * 2.56 * (0.64 * 0.36) ** 0.5)


def test_without_probabilities_there_are_hectares_and_a_note(tmp_path: Path) -> None:
    found = two_dates(tmp_path, np.zeros((64, 64)), np.ones((64, 64)), None)
    assert found.hectares[0, 1] == pytest.approx(4096 * HA)
    assert (found.expected_ha, found.sd_ha, found.changed_sd_ha) == (None, None, None)
    assert "a.probability.tif" in found.notes[0]
    assert "b.probability.tif" in found.notes[0]


def test_a_map_of_changes_is_a_cog_that_names_its_numbers(tmp_path: Path) -> None:
    after = np.zeros((64, 64))
    after[:10], after[10:12] = 1, 2
    found = two_dates(tmp_path, np.zeros((64, 64)), after)
    path = found.files[0]
    assert [file.name for file in found.files] == [
        "a_to_b.changes.tif",
        "a_to_b.changes.tif.aux.xml",
        "a_to_b.changes.qml",
        "a_to_b.changes.png",
    ]
    with rasterio.open(path) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert (dataset.dtypes, dataset.nodata, dataset.transform) == (("uint16",), NOT_COMPARED, CORNER)
        assert json.loads(dataset.tags()["CLASSES"]) == ["Forest", "Pasture", "=River"]
    style = ElementTree.parse(path.with_suffix(".qml"))  # noqa: S314 - we wrote it
    labels = {int(e.get("value", "")): e.get("label") for e in style.iter("paletteEntry")}
    assert labels == {0: "unchanged", 2: "Forest → Pasture", 3: "Forest → =River"}
    names = ElementTree.parse(f"{path}.aux.xml")  # noqa: S314 - we wrote it
    assert [node.text for node in names.iter("Category")][2] == "Forest → Pasture"
    assert not list(path.parent.glob(".changes-*"))


def test_the_picture_shows_changes_in_the_colour_of_their_new_class(tmp_path: Path) -> None:
    after = np.zeros((400, 400))
    after[:200] = 1
    picture = Image.open(two_dates(tmp_path, np.zeros((400, 400)), after).files[-1]).convert("RGB")
    assert picture.getpixel((100, 100)) == (90, 160, 60)  # Pasture
    assert picture.getpixel((100, 300)) == (205, 208, 210)


# Maps that do not fit.


def test_different_grids_are_refused_with_the_way_out(tmp_path: Path) -> None:
    paths = [
        write_maps(tmp_path, "a", np.zeros((64, 64))),
        write_maps(tmp_path, "b", np.zeros((64, 64)), transform=CORNER @ Affine.translation(1, 0)),
    ]
    with pytest.raises(ResultsError, match=r"different grids .*from 540010.*--align"):
        compared(*paths, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_aligned_maps_are_compared_where_both_have_ground(tmp_path: Path) -> None:
    """The second map is of cells of 20 m and begins 100 m further east."""
    after = np.ones((32, 32))
    after[:, 0] = 2
    paths = [
        write_maps(tmp_path, "a", np.zeros((64, 64))),
        write_maps(tmp_path, "b", after, transform=CORNER @ Affine.translation(10, 0) @ Affine.scale(2)),
    ]
    found = compared(*paths, tmp_path / "out", align=True)
    assert found.hectares[0].tolist() == pytest.approx([0, 64 * 52 * HA, 64 * 2 * HA])
    assert found.no_data_ha == pytest.approx(64 * 10 * HA)
    assert found.expected_ha is not None
    assert found.expected_ha[0, 1] == pytest.approx(0.64 * 64 * 52 * HA)
    assert found.notes == ("b.classes.tif was brought to the grid of a.classes.tif by nearest neighbour",)


def test_maps_of_other_classes_are_refused(tmp_path: Path) -> None:
    paths = [
        write_maps(tmp_path, "a", np.zeros((64, 64))),
        write_maps(tmp_path, "b", np.zeros((64, 64)), names=("Forest", "Town")),
    ]
    with pytest.raises(ResultsError, match="other classes"):
        compared(*paths, tmp_path / "out")


def test_maps_without_metres_are_refused(tmp_path: Path) -> None:
    degrees = Affine(0.0001, 0, 2.8, 0, -0.0001, 42.3)
    path = write_maps(tmp_path, "a", np.zeros((64, 64)), transform=degrees, crs=CRS.from_epsg(4326))
    with pytest.raises(ResultsError, match="--warp"):
        open_class_map(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = write_maps(tmp_path, "a", np.zeros((64, 64)))
    with pytest.raises(ResultsError, match="no map of classes"):
        open_class_map(path.with_name("a.probability.tif"))
    (tmp_path / "text.classes.tif").write_text("no tif")
    with pytest.raises(ResultsError, match="cannot be read"):
        open_class_map(tmp_path / "text.classes.tif")
