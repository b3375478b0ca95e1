"""Errors in HTTP: each class has a code, the status of the code, a message and a hint."""

import pytest

from tilewise.bento.api.replies import ERROR_CODES, status_of_code
from tilewise.bento.errors import CODES, body_of, code_of
from tilewise.datasets.core import errors
from tilewise.datasets.core.errors import TilewiseError

OURS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TilewiseError)]


@pytest.mark.parametrize("kind", OURS)
def test_every_error_has_a_status_and_a_body(kind: type[TilewiseError]) -> None:
    error = kind("tile.tif: something is wrong; do this instead")
    assert 400 <= ERROR_CODES[code_of(error)].status <= 599
    body = body_of(error)["error"]
    assert body["code"]
    assert (body["message"], body["hint"]) == ("tile.tif: something is wrong", "do this instead")


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        (errors.UnreadableImageError, 415, "unreadable_image"),
        (errors.TileShapeError, 422, "tile_shape"),
        (errors.UnknownBandError, 422, "unknown_band"),
        (errors.BandsUnknownError, 422, "bands_unknown"),
        (errors.RadiometryUnknownError, 422, "radiometry_unknown"),
        (errors.ModelFileError, 503, "model"),
        (TilewiseError, 400, "bad_request"),
    ],
)
def test_errors_that_a_client_tells_apart_have_their_own_code(
    kind: type[TilewiseError], status: int, code: str
) -> None:
    assert body_of(kind("x"))["error"]["code"] == code
    assert status_of_code(code) == status


def test_no_error_is_hidden_by_one_that_stands_before_it_in_the_table() -> None:
    for kind, code in CODES:
        assert code_of(kind("x")) == code


def test_an_unknown_code_is_a_failure_of_the_service() -> None:
    assert status_of_code("no_such_code") == 500


def test_a_message_without_a_way_out_has_an_empty_hint() -> None:
    assert body_of(TilewiseError("it is so"))["error"]["hint"] == ""


def test_only_the_first_semicolon_parts_the_message_from_the_way_out() -> None:
    body = body_of(TilewiseError("unknown; say level; offset"))["error"]
    assert (body["message"], body["hint"]) == ("unknown", "say level; offset")
