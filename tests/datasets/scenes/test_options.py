"""Cloud masks on the command line: which are accepted, and which refused."""

import pytest

from tilewise.datasets.core.errors import SceneError
from tilewise.datasets.scenes.options import CloudKind, CloudMask, make_scene_options, parse_clouds


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("none", None),
        ("auto", CloudMask()),
        ("pixels", CloudMask(CloudKind.PIXELS)),
        ("scl", CloudMask(CloudKind.SCL)),
        ("QA60", CloudMask(CloudKind.QA60)),
        ("probability", CloudMask(CloudKind.PROBABILITY, 50)),
        ("probability:40", CloudMask(CloudKind.PROBABILITY, 40)),
        ("file:{stem}_clouds.tif", CloudMask(CloudKind.FILE, 50, "{stem}_clouds.tif")),
        ("file:masks/{stem}.tif:1", CloudMask(CloudKind.FILE, 1, "masks/{stem}.tif")),
        ("file:C:/masks/{stem}.tif:62.5", CloudMask(CloudKind.FILE, 62.5, "C:/masks/{stem}.tif")),
    ],
)
def test_a_cloud_mask_is_parsed(text: str, mask: CloudMask | None) -> None:
    assert parse_clouds(text) == mask


@pytest.mark.parametrize(
    "text", ["", "clouds", "scl:40", "pixels:40", "none:1", "probability:x", "probability:101", "file:"]
)
def test_anything_else_is_refused_with_what_is_accepted(text: str) -> None:
    with pytest.raises(SceneError, match="use auto, none, scl, qa60, probability"):
        parse_clouds(text)


def test_the_options_of_a_command_line_become_one_object_that_differs_where_they_do() -> None:
    options = make_scene_options(bands="l2a", level="l2a", scale=0.0001, offset=0, clouds="scl", warp=True)
    assert options == make_scene_options(
        bands="l2a", level="L2A", scale=0.0001, offset=0, clouds="scl", warp=True
    )
    assert repr(options) != repr(
        make_scene_options(bands="l2a", level="L2A", scale=0.0001, offset=0, clouds="scl")
    )
