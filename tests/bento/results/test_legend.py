"""Colours of classes: fixed for known ones, distinct for all that one map holds."""

from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.models.class_colours import colours


def test_a_known_class_has_the_same_colour_in_every_model() -> None:
    assert colours(["Cloud", "Forest"])[1] == colours(CLASSES)[CLASSES.index("Forest")]
    assert colours(CLASSES[::-1]) == colours(CLASSES)[::-1]


def test_the_ten_classes_can_be_told_apart() -> None:
    assert len(set(colours(CLASSES))) == len(CLASSES)


def test_other_classes_get_colours_that_can_be_told_apart() -> None:
    assert len(set(colours([f"class {n}" for n in range(9)]))) == 9


def test_there_is_a_colour_in_the_byte_range_for_any_number_of_classes() -> None:
    many = colours([f"class {n}" for n in range(100)])
    assert len(many) == 100
    assert all(0 <= part <= 255 for colour in many for part in colour)
