"""Error codes, and the one shape of an error's body: `{"error": {"code", "message", "hint"}}`.

A code names a kind of error to programs. It appears in HTTP responses, in the results of single tiles and in
failed tasks, so this module knows no HTTP; `tilewise.bento.api.replies` maps each code to a status.
"""

from tilewise.datasets.core.errors import (
    BandsUnknownError,
    FetchError,
    MissingBandError,
    ModelFileError,
    NoDataError,
    RadiometryUnknownError,
    SceneTooLargeError,
    TileShapeError,
    TilewiseError,
    UnknownBandError,
    UnreadableImageError,
)

CODES: tuple[tuple[type[TilewiseError], str], ...] = (
    (FetchError, "not_fetched"),
    (UnreadableImageError, "unreadable_image"),
    (TileShapeError, "tile_shape"),
    (SceneTooLargeError, "too_large"),
    (NoDataError, "no_data"),
    (MissingBandError, "band_missing"),
    (UnknownBandError, "unknown_band"),
    (BandsUnknownError, "bands_unknown"),
    (RadiometryUnknownError, "radiometry_unknown"),
    (ModelFileError, "model"),
    (TilewiseError, "bad_request"),
)
"""The code of each class of errors; the first class that an error is an instance of decides."""

INTERNAL = {
    "code": "internal",
    "message": "the service failed",
    "hint": "try again; if it fails again, tell the operator the X-Request-ID of this response",
}
"""The error of a bug or a failure of the service. The log has the cause, under the ID."""


def code_of(error: TilewiseError) -> str:
    """Return the code of an error."""
    return next(code for kind, code in CODES if isinstance(error, kind))


def error_body(code: str, message: str, hint: str = "") -> dict[str, dict[str, str]]:
    """Return the body of an error: `{"error": {"code", "message", "hint"}}`."""
    return {"error": {"code": code, "message": message, "hint": hint}}


def body_of(error: TilewiseError, name: str = "") -> dict[str, dict[str, str]]:
    """Return the body of an error; what follows the first `; ` of its text is the hint.

    Args:
        error: the error.
        name: of the file that the text may begin with; a `; ` inside the name separates nothing.
    """
    text = str(error)
    start = len(name) if text.startswith(name) else 0
    message, _, hint = text[start:].partition("; ")
    return error_body(code_of(error), text[:start] + message, hint)
