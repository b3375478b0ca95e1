"""The one table from errors to HTTP, and the one shape of an error's body."""

from tilewise.datasets.core.errors import (
    BandsUnknownError,
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

# The first class that an error is an instance of decides.
STATUS: tuple[tuple[type[TilewiseError], int, str], ...] = (
    (UnreadableImageError, 415, "unreadable_image"),
    (TileShapeError, 422, "tile_shape"),
    (SceneTooLargeError, 413, "too_large"),
    (NoDataError, 422, "no_data"),
    (MissingBandError, 422, "band_missing"),
    (UnknownBandError, 422, "unknown_band"),
    (BandsUnknownError, 422, "bands_unknown"),
    (RadiometryUnknownError, 422, "radiometry_unknown"),
    (ModelFileError, 503, "model"),
    (TilewiseError, 400, "bad_request"),
)

INTERNAL = {
    "code": "internal",
    "message": "the service failed",
    "hint": "try again; if it stays so, tell the operator the X-Request-ID of this answer",
}
"""What a client is told of an error that is our fault: nothing of its cause, which the log holds under the id."""


def status_of(error: TilewiseError) -> int:
    """Return the HTTP status of an error."""
    return next(status for kind, status, _ in STATUS if isinstance(error, kind))


def status_of_code(code: str) -> int:
    """Return the HTTP status that goes with the code in an error's body."""
    return next((status for _, status, known in STATUS if known == code), 500)


def error_body(code: str, message: str, hint: str = "") -> dict[str, dict[str, str]]:
    """Return the body of an error: {"error": {"code", "message", "hint"}}."""
    return {"error": {"code": code, "message": message, "hint": hint}}


def body_of(error: TilewiseError, name: str = "") -> dict[str, dict[str, str]]:
    """Return the body of an error that is ours: what comes after `; ` in its message is the way out.

    `name` is that of the file which the message may begin with: there a `; ` parts nothing.
    """
    code = next(code for kind, _, code in STATUS if isinstance(error, kind))
    text = str(error)
    start = len(name) if text.startswith(name) else 0
    message, _, hint = text[start:].partition("; ")
    return error_body(code, text[:start] + message, hint)
