"""Bands are found by any of their names, and by nothing else."""

import pytest

from tilewise.datasets.core.bands import (
    BAND_NAMES,
    BANDS,
    band_of_description,
    find_band,
    parse_bands,
    positions,
    sets_of_length,
)
from tilewise.datasets.core.errors import UnknownBandError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("B1", "B01"),
        ("b02", "B02"),
        (" B3 ", "B03"),
        ("red", "B04"),
        ("RedEdge1", "B05"),
        ("nir", "B08"),
        ("nir08", "B8A"),
        ("b8a", "B8A"),
        ("B08A", "B8A"),
        ("nir09", "B09"),
        ("cirrus", "B10"),
        ("swir16", "B11"),
        ("SWIR2", "B12"),
    ],
)
def test_a_band_is_found_by_its_aliases_in_any_case(text: str, name: str) -> None:
    assert find_band(text).name == name


def test_no_two_bands_share_a_name() -> None:
    names = [name.lower() for band in BANDS for name in (band.name, *band.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("text", ["B13", "B8B", "", "1", "panchromatic", "B02;B03"])
def test_an_unknown_band_is_refused_with_a_list_of_those_that_exist(text: str) -> None:
    with pytest.raises(UnknownBandError) as refused:
        find_band(text)
    assert repr(text) in str(refused.value)
    assert all(name in str(refused.value) for name in BAND_NAMES)


def test_b8a_stands_after_b08_in_a_tile() -> None:
    assert positions(["B01", "B08", "B8A", "B09", "B12"]) == [0, 7, 8, 9, 12]
    assert positions(["swir2", "B08A"]) == [12, 8]


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("rgb", "B04 B03 B02"),
        ("10m", "B02 B03 B04 B08"),
        ("20m", "B02 B03 B04 B05 B06 B07 B08 B8A B11 B12"),
        ("l1c", "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12"),
        ("L2A", "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12"),
        ("EuroSAT", "B01 B02 B03 B04 B05 B06 B07 B08 B09 B10 B11 B12 B8A"),
    ],
)
def test_one_word_says_a_set_of_bands(word: str, names: str) -> None:
    assert parse_bands(word) == parse_bands([word]) == parse_bands(f" {word} ") == tuple(names.split())


def test_a_list_of_bands_keeps_its_order_and_what_is_left_out() -> None:
    assert parse_bands("B4, green ,_,B02,_") == ("B04", "B03", "_", "B02", "_")
    assert parse_bands(["_", "b8a"]) == ("_", "B8A")
    assert parse_bands([]) == ()


@pytest.mark.parametrize("text", ["B02,B02", "B4,red", "B8A,_,nir08"])
def test_a_band_named_twice_is_refused(text: str) -> None:
    with pytest.raises(UnknownBandError, match="twice"):
        parse_bands(text)


@pytest.mark.parametrize("text", ["rgb,B08", "B02,", "B02 B03"])
def test_a_list_with_a_word_that_is_no_band_is_refused(text: str) -> None:
    with pytest.raises(UnknownBandError, match="is called"):
        parse_bands(text)


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("B8A", "B8A"),
        ("B4, central wavelength 665 nm", "B04"),
        ("  b02 (blue)", "B02"),
        ("Red", "B04"),
        ("Red Edge 1", "B05"),
        ("red-edge2 (740 nm)", "B06"),
        ("red_edge_3", "B07"),
        ("Red edge", None),
        ("QA60", None),
        ("probability", None),
        ("B80", None),
        ("665 nm", None),
        ("", None),
        (None, None),
    ],
)
def test_the_first_word_of_a_description_names_the_band(description: str | None, name: str | None) -> None:
    assert band_of_description(description) == name


def test_a_hint_names_the_sets_of_a_files_own_length() -> None:
    assert sets_of_length(4) == ["10m"]
    assert "l2a" in sets_of_length(12)
    assert "10m" not in sets_of_length(12)
    assert sets_of_length(7) == []


# Centre wavelengths of Sentinel-2A (nm) and ground sampling distances (m), as ESA publishes them.
PUBLISHED = {
    "B01": (442.7, 60),
    "B02": (492.4, 10),
    "B03": (559.8, 10),
    "B04": (664.6, 10),
    "B05": (704.1, 20),
    "B06": (740.5, 20),
    "B07": (782.8, 20),
    "B08": (832.8, 10),
    "B8A": (864.7, 20),
    "B09": (945.1, 60),
    "B10": (1373.5, 60),
    "B11": (1613.7, 20),
    "B12": (2202.4, 20),
}


def test_wavelengths_and_ground_sampling_distances_are_the_published_ones() -> None:
    assert {band.name: (band.centre_nm, band.resolution_m) for band in BANDS} == PUBLISHED
