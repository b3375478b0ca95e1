"""Folders of labelled tiles say themselves how they are read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rasters import noise, write_folder, write_jpeg, write_l1c, write_tiff

from tilewise.datasets.core.bands import RGB_BANDS
from tilewise.datasets.core.errors import BandsUnknownError, NoTilesError
from tilewise.datasets.core.radiometry import Level, ReadOptions
from tilewise.datasets.readers.sources import DatasetCard, Format, find_source, find_sources


def card(root: Path, form: Format, synthetic: bool = False) -> None:
    root.mkdir(parents=True, exist_ok=True)
    DatasetCard("mine", form, "CC0-1.0", "made in a test", synthetic).write(root)


def test_a_folder_without_a_card_holds_geotiffs(tmp_path: Path) -> None:
    source = find_source(write_folder(tmp_path / "mine", {"B/b2": 1, "A/a": 2, "B/b1": 3}))
    assert (source.format, source.synthetic) == (Format.GEOTIFF, False)
    assert [(file.label, file.name) for file in source.files()] == [("A", "a"), ("B", "b1"), ("B", "b2")]
    assert np.array_equal(source.read(source.files()[0].path).pixels, noise(2))


@pytest.mark.parametrize(
    ("name", "form"), [("EuroSAT_MS", Format.EUROSAT_MS), ("EuroSAT_RGB", Format.EUROSAT_RGB)]
)
def test_the_published_folders_are_known_by_name(tmp_path: Path, name: str, form: Format) -> None:
    (tmp_path / name).mkdir()
    assert find_source(tmp_path / name).format is form


def test_a_card_counts_more_than_a_name_and_the_user_more_than_a_card(tmp_path: Path) -> None:
    root = tmp_path / "EuroSAT_MS"
    card(root, Format.EUROSAT_RGB, synthetic=True)
    assert find_source(root).format is Format.EUROSAT_RGB
    assert find_source(root).synthetic
    assert find_source(root, Format.GEOTIFF).format is Format.GEOTIFF


def test_each_format_takes_its_own_files(tmp_path: Path) -> None:
    write_l1c(tmp_path / "A" / "one.tif")
    write_l1c(tmp_path / "A" / "two.TIFF")
    write_jpeg(tmp_path / "A" / "three.JPG", np.ones((3, 64, 64), np.uint8))
    (tmp_path / "A" / "notes.txt").write_text("no tile")
    (tmp_path / "loose.tif").touch()

    def names(form: Format) -> set[str]:
        return {file.name for file in find_source(tmp_path, form).files()}

    assert names(Format.GEOTIFF) == {"one", "two"}
    assert names(Format.EUROSAT_MS) == {"one"}
    assert names(Format.EUROSAT_RGB) == {"three"}


def test_geotiffs_are_read_with_what_the_user_says(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "A" / "a.tif", noise(bands=3), tags={})
    with pytest.raises(BandsUnknownError, match="a: its 3 bands"):
        find_source(tmp_path).read(path)
    options = ReadOptions(RGB_BANDS, Level.L2A, 1e-4, 0.0)
    assert find_source(tmp_path, options=options).read(path).bands == ("B02", "B03", "B04")


def test_an_empty_folder_has_no_tiles_and_says_what_is_wanted(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    with pytest.raises(NoTilesError, match=r"no tiles; geotiff needs mine/<Class>/<name>\.tif"):
        find_source(root).files()


def test_a_folder_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(NoTilesError, match=r"there is no such folder; .*synth"):
        find_source(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"format": "hdf5"}', '{"format": null}', "\udcff"])
def test_a_broken_card_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        NoTilesError, match=r"dataset\.json: not a valid card .* eurosat-ms, eurosat-rgb, geotiff"
    ):
        find_source(tmp_path)


def test_a_folder_of_data_sets_stands_for_all_of_them(tmp_path: Path) -> None:
    card(tmp_path / "mine", Format.GEOTIFF)
    (tmp_path / "EuroSAT_RGB").mkdir()
    (tmp_path / "splits").mkdir()
    found = find_sources((tmp_path,))
    assert [(source.root.name, source.format) for source in found] == [
        ("EuroSAT_RGB", Format.EUROSAT_RGB),
        ("mine", Format.GEOTIFF),
    ]
    shutil.rmtree(tmp_path / "mine")
    write_l1c(tmp_path / "other" / "A" / "a.tif")
    assert len(find_sources((tmp_path, tmp_path / "other"))) == 2


def test_a_card_says_what_it_was_given(tmp_path: Path) -> None:
    card(tmp_path, Format.GEOTIFF)
    written = json.loads((tmp_path / "dataset.json").read_text())
    assert written["licence"] == "CC0-1.0"
    assert written["format"] == "geotiff"
    assert written["synthetic"] is False
