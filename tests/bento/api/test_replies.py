"""Content negotiation: the media type of a response by the Accept header."""

import pytest

from tilewise.bento.api.replies import negotiate

OFFERS = ("application/geo+json", "image/tiff")


@pytest.mark.parametrize(
    ("accept", "offer"),
    [
        ("", OFFERS[0]),
        ("*/*", OFFERS[0]),
        ("image/tiff", OFFERS[1]),
        ("IMAGE/TIFF", OFFERS[1]),
        ("image/*, */*;q=0.1", OFFERS[1]),
        ("application/geo+json;q=0.2, image/tiff;q=0.3", OFFERS[1]),
        ("application/geo+json;q=0, */*", OFFERS[1]),
        ("image/tiff; application=geotiff", OFFERS[1]),
        ("text/html, application/xhtml+xml, image/tiff;q=0.9", OFFERS[1]),
        ("text/html", None),
        ("image/tiff;q=0", None),
        ("image/tiff;q=nonsense", None),
        ("image/tiff;q=7", None),
        (";;;,,,/", None),
    ],
)
def test_the_form_that_is_liked_best_is_given(accept: str, offer: str | None) -> None:
    assert negotiate(accept, OFFERS) == offer
