"""Level, offset and scale come from metadata or from the user, and are never guessed."""

import warnings
from typing import Any

import numpy as np
import pytest

from tilewise.datasets.core.errors import RadiometryUnknownError
from tilewise.datasets.core.radiometry import (
    PRESETS,
    FileFacts,
    Level,
    Radiometry,
    ReadOptions,
    decide_radiometry,
)

NOTHING = ReadOptions()
PRODUCT = "S2A_MSI{level}_20221005T115411_N{baseline}_R023_T29UNU_20221005T164454.SAFE"


def product(level: str = "L2A", baseline: str = "0400") -> str:
    return PRODUCT.format(level=level, baseline=baseline)


def facts(name: str = "scene.tif", dtype: str = "uint16", **others: Any) -> FileFacts:
    return FileFacts(name, dtype, others.pop("tags", {}), **others)


def dn(numbers: list[float], dtype: str, scale: float, offset: float = 0.0) -> list[int]:
    values = np.array(numbers, dtype)
    valid = np.isfinite(values) & (values != 0)
    return Radiometry(Level.L1C, scale, offset).to_dn(values, valid).tolist()


# What a file says.


def test_esas_tags_say_everything() -> None:
    tags = {
        "PROCESSING_LEVEL": "Level-2A",
        "BOA_QUANTIFICATION_VALUE": "10000",
        "BOA_ADD_OFFSET": "-1000",
    }
    assert decide_radiometry(facts(tags=tags), NOTHING) == Radiometry(Level.L2A, 1e-4, -1000)


def test_the_case_of_tags_does_not_matter() -> None:
    tags = {"product_type": "s2msi1c", "Quantification_Value": "20000", "Radio_Add_Offset": "0"}
    assert decide_radiometry(facts(tags=tags), NOTHING) == Radiometry(Level.L1C, 5e-5, 0)


@pytest.mark.parametrize(
    ("baseline", "offset"), [("0206", 0), ("0301", 0), ("0400", -1000), ("0510", -1000), ("1000", -1000)]
)
@pytest.mark.parametrize("level", ["L1C", "L2A"])
def test_a_products_name_tells_level_and_baseline(level: str, baseline: str, offset: float) -> None:
    expected = Radiometry(Level(level), 1e-4, offset)
    assert decide_radiometry(facts(product(level, baseline)), NOTHING) == expected
    by_tag = facts("renamed.tif", tags={"PRODUCT_URI": product(level, baseline)})
    assert decide_radiometry(by_tag, NOTHING) == expected


@pytest.mark.parametrize(
    ("baseline", "offset"), [("02.14", 0), ("03.01", 0), ("04.00", -1000), ("05.11", -1000)]
)
def test_the_offset_came_with_processing_baseline_04_00(baseline: str, offset: float) -> None:
    tags = {"PROCESSING_LEVEL": "L2A", "PROCESSING_BASELINE": baseline}
    assert decide_radiometry(facts(tags=tags), NOTHING).offset == offset


def test_a_said_offset_counts_more_than_the_baseline() -> None:
    harmonised = facts(product(baseline="0509"), tags={"BOA_ADD_OFFSET": "0"})
    assert decide_radiometry(harmonised, NOTHING).offset == 0


def test_gdals_scale_and_offset_are_taken_in_reflectance() -> None:
    declared = facts(tags={"PROCESSING_LEVEL": "L2A"}, scale=1e-4, offset=-0.1)
    radiometry = decide_radiometry(declared, NOTHING)
    assert radiometry.scale == 1e-4
    assert radiometry.offset == pytest.approx(-1000)


def test_a_gdal_scale_without_the_offset_that_the_tags_tell_is_a_contradiction() -> None:
    contradiction = facts(product(baseline="0509"), scale=1e-4, offset=0.0)
    with pytest.raises(RadiometryUnknownError, match="have no offset"):
        decide_radiometry(contradiction, NOTHING)
    assert decide_radiometry(contradiction, ReadOptions(offset=0)).offset == 0
    agreed = facts(product(baseline="0301"), scale=1e-4, offset=0.0)
    assert decide_radiometry(agreed, NOTHING).offset == 0


@pytest.mark.parametrize("declared", [{"scale": 1e-4}, {"offset": -0.1}, {"scale": 0.0, "offset": -0.1}])
def test_a_gdal_scale_or_offset_alone_leaves_the_offset_to_esas_tag(declared: dict[str, Any]) -> None:
    tagged = facts(tags={"PROCESSING_LEVEL": "L2A", "BOA_ADD_OFFSET": "-500"}, **declared)
    assert decide_radiometry(tagged, ReadOptions(scale=1e-4)).offset == -500


@pytest.mark.parametrize("offset", [0.1, -0.1])
def test_a_gdal_offset_counts_more_than_esas_tag_of_either_sign(offset: float) -> None:
    """Only a GDAL scale *without* an offset contradicts the tag."""
    stated = facts(product(baseline="0509"), scale=1e-4, offset=offset)
    assert decide_radiometry(stated, NOTHING).offset == pytest.approx(offset / 1e-4)


def test_the_cirrus_band_means_level_1c() -> None:
    cirrus = facts(bands=("B02", "B10"), tags={"RADIO_ADD_OFFSET": "0"})
    assert decide_radiometry(cirrus, NOTHING).level is Level.L1C
    with pytest.raises(RadiometryUnknownError, match="no level"):
        decide_radiometry(facts(bands=("B02",), tags={"RADIO_ADD_OFFSET": "0"}), NOTHING)


# What the user says.


def test_the_user_wins_over_everything_in_the_file() -> None:
    full = facts(
        product("L2A", "0509"), bands=("B10",), tags={"BOA_ADD_OFFSET": "-1000"}, scale=1e-4, offset=-0.1
    )
    options = ReadOptions(level=Level.L2A, scale=1.0, offset=7.0)
    assert decide_radiometry(full, options) == Radiometry(Level.L2A, 1.0, 7.0)


def test_the_user_may_say_only_what_is_missing() -> None:
    options = ReadOptions(offset=0.0)
    assert decide_radiometry(facts("S2B_MSIL2A_x.tif"), options) == Radiometry(Level.L2A, 1e-4, 0)


def test_an_unknown_radiometry_names_all_that_is_missing_and_how_to_say_it() -> None:
    with pytest.raises(RadiometryUnknownError) as unknown:
        decide_radiometry(facts("mine.tif", "float32"), NOTHING)
    message = str(unknown.value)
    assert message.startswith("mine.tif: its metadata have no level and no scale and no offset;")
    assert all(way in message for way in ("L1C or L2A", "0.0001 for DN", "-1000 since", "--level"))


def test_only_what_is_missing_is_asked_for() -> None:
    with pytest.raises(RadiometryUnknownError) as unknown:
        decide_radiometry(facts(tags={"PROCESSING_LEVEL": "L2A"}), NOTHING)
    assert "have no offset;" in str(unknown.value)
    assert "reflectance per unit" not in str(unknown.value)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "uint32"])
def test_only_16_bit_integers_are_taken_to_be_esas_numbers(dtype: str) -> None:
    tags = {"PROCESSING_LEVEL": "L2A", "BOA_ADD_OFFSET": "0"}
    with pytest.raises(RadiometryUnknownError, match="have no scale;"):
        decide_radiometry(facts(dtype=dtype, tags=tags), NOTHING)
    assert decide_radiometry(facts(dtype=dtype, tags=tags), ReadOptions(scale=1.0)).scale == 1.0
    assert decide_radiometry(facts(dtype="int16", tags=tags), NOTHING).scale == 1e-4


@pytest.mark.parametrize("text", ["", "none", "nan", "inf", "1e999", "10 000", "ten"])
def test_a_tag_that_is_no_number_says_nothing(text: str) -> None:
    tags = {"PROCESSING_LEVEL": "L2A", "BOA_ADD_OFFSET": text, "PROCESSING_BASELINE": text}
    with pytest.raises(RadiometryUnknownError, match="have no offset;"):
        decide_radiometry(facts(tags=tags), NOTHING)
    scaled = {"PROCESSING_LEVEL": "L2A", "BOA_ADD_OFFSET": "0", "QUANTIFICATION_VALUE": text}
    assert decide_radiometry(facts(tags=scaled), NOTHING).scale == 1e-4


@pytest.mark.parametrize("text", ["0", "-1", "-10000"])
def test_a_quantification_that_cannot_be_says_nothing(text: str) -> None:
    tags = {"PROCESSING_LEVEL": "L2A", "BOA_ADD_OFFSET": "0", "QUANTIFICATION_VALUE": text}
    with pytest.raises(RadiometryUnknownError, match="have no scale;"):
        decide_radiometry(facts(dtype="float32", tags=tags), NOTHING)


@pytest.mark.parametrize(("text", "scale"), [("0.5", 2), ("1", 1), ("1.5", 1 / 1.5)])
def test_any_quantification_above_zero_counts(text: str, scale: float) -> None:
    tags = {"PROCESSING_LEVEL": "L2A", "BOA_ADD_OFFSET": "0", "QUANTIFICATION_VALUE": text}
    assert decide_radiometry(facts(dtype="float32", tags=tags), NOTHING).scale == scale


# Numbers to DN.


def test_a_byte_that_is_0_and_valid_does_not_become_no_data() -> None:
    black, valid = np.array([0, 0, 7], np.uint8), np.array([True, False, True])
    assert Radiometry(Level.L1C, 1e-4, 0).to_dn(black, valid).tolist() == [1, 0, 7]


@pytest.mark.parametrize("offset", [0, -1])
def test_a_number_that_is_not_valid_becomes_no_data(offset: float) -> None:
    numbers, valid = np.array([5, 65_535], np.uint16), np.array([True, False])
    assert Radiometry(Level.L1C, 1e-4, offset).to_dn(numbers, valid).tolist() == [5 + offset, 0]


def test_a_valid_pixel_never_becomes_no_data() -> None:
    assert dn([1, 500, 999, 1000, 1001, 2000], "uint16", 1e-4, -1000) == [1, 1, 1, 1, 1, 1000]
    assert dn([-0.05, 1e-9, 0.00004], "float32", 1.0) == [1, 1, 1]


def test_no_data_becomes_0_whatever_the_offset() -> None:
    assert dn([0, 5], "uint16", 1e-4, 1000) == [0, 1005]
    assert dn([0, 3], "int16", 1e-4, -1000) == [0, 1]


def test_dn_without_an_offset_pass_through_unaltered() -> None:
    numbers = np.arange(1, 65_536, dtype=np.uint16)
    assert np.array_equal(Radiometry(Level.L1C, 1e-4, 0).to_dn(numbers, numbers > 0), numbers)


def test_the_same_land_has_the_same_dn_before_and_since_baseline_04_00() -> None:
    before = np.arange(1, 20_000, dtype=np.uint16)
    old = Radiometry(Level.L2A, 1e-4, 0).to_dn(before, before > 0)
    new = Radiometry(Level.L2A, 1e-4, -1000).to_dn(before + 1000, before > 0)
    assert np.array_equal(old, new)


def test_reflectances_become_dn() -> None:
    assert dn([0.0001, 0.1, 0.12345, 1.0, 2.8], "float64", 1.0) == [1, 1000, 1234, 10_000, 28_000]
    assert dn([1, 100, 255], "uint8", 1 / 255) == [39, 3922, 10_000]


def test_what_is_too_bright_is_clipped_and_not_wrapped() -> None:
    assert dn([7.0, 1e30], "float32", 1.0) == [65_535, 65_535]
    assert dn([70_000], "uint32", 1e-4) == [65_535]


def test_values_that_mark_no_data_raise_no_warning() -> None:
    numbers = np.array([np.nan, np.inf, -3.4028235e38, 0.5], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = Radiometry(Level.L2A, 1.0, 0).to_dn(numbers, np.array([False, False, False, True]))
    assert result.tolist() == [0, 0, 0, 5000]


@pytest.mark.parametrize(
    ("scale", "offset", "same"),
    [(1e-4, 0, True), (1 / 10_000, 0.0, True), (1e-4, -1000, False), (5e-5, 0, False), (1.0, 0, False)],
)
def test_numbers_are_dn_already_only_by_the_usual_scale_without_offset(
    scale: float, offset: float, same: bool
) -> None:
    assert Radiometry(Level.L1C, scale, offset).is_identity is same
    assert (dn([1200], "uint16", scale, offset) == [1200]) is same


def test_the_preset_of_eurosats_pictures_is_how_they_were_made() -> None:
    """Their bytes are 1 + DN × 254 / 2750 (docs/decisions/0002), and no valid pixel is 0."""
    preset, numbers = PRESETS["eurosat-rgb"], np.arange(1, 256, dtype=np.uint8)
    found = decide_radiometry(facts(dtype="uint8"), preset).to_dn(numbers, np.ones(255, bool))
    np.testing.assert_array_equal(found, np.maximum(np.rint((np.arange(255)) * 2750 / 254), 1))
    assert (preset.bands, preset.level) == (("B04", "B03", "B02"), Level.L1C)
