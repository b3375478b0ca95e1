"""Names of results: short, safe, and never the same twice."""

import pytest

from tilewise.datasets.scenes.search import unique_names


@pytest.mark.parametrize(
    ("scenes", "names"),
    [
        ([("a", ("x",)), ("b", ("x",))], ["a", "b"]),
        ([("a", ("x", "north")), ("a", ("x", "south"))], ["north-a", "south-a"]),
        ([("a", ("p", "x")), ("a", ("q", "x"))], ["p-x-a", "q-x-a"]),
        ([("a", ("x",)), ("a", ("x",)), ("b", ())], ["a", "a-2", "b"]),
        ([("a", ()), ("a", ())], ["a", "a-2"]),
        ([("../../etc/passwd", ()), ("", ()), ("/", ())], ["_.._etc_passwd", "scene", "_"]),
    ],
)
def test_each_scene_has_a_name_of_its_own(
    scenes: list[tuple[str, tuple[str, ...]]], names: list[str]
) -> None:
    assert unique_names(scenes) == names


def test_a_name_is_never_too_long_for_a_file() -> None:
    (name,) = unique_names([("x" * 400, ())])
    assert len(name) <= 150
