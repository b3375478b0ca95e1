"""What stands before every route, BentoML's own included, from the outside in."""

import logging
import sys
from typing import Any

from starlette.middleware.cors import CORSMiddleware

from bento.guard.deadlines import Deadlines
from bento.guard.headers import Headers
from bento.guard.keys import Keys, read_keys
from bento.settings import Settings
from bento.watch import logs
from bento.watch.tracing import TraceRequests, traces_url
from datasets.errors import SentileError

_ASKED_WITH = (
    "Authorization",
    "X-API-Key",
    "Content-Type",
    "Sentile-Key",
    "Sentile-API-Version",
    "X-Request-ID",
    "Prefer",
)
_TOLD = ("X-Request-ID", "Retry-After", "Location", "Content-Disposition", "Sentile-API-Version")


def guards(settings: Settings) -> list[tuple[type, dict[str, Any]]]:
    """Return ASGI middleware and its options.

    Raises:
        SentileError: keys, origins or the collector's URL are malformed.
    """
    style = logs.style_of(settings.log, sys.stderr)
    found: list[tuple[type, dict[str, Any]]] = [(logs.RequestLog, {"style": style})]
    if settings.trace:
        traces_url(settings.trace)
        found.append((TraceRequests, {"collector": settings.trace}))
    found.append((Headers, {}))
    if settings.cors_origins:  # before the keys: browsers ask without one whether they may ask
        found.append((CORSMiddleware, cors_options(settings.cors_origins)))
    limits = {
        "grace": settings.body_seconds,
        "least_rate": settings.body_rate,
        "most_seconds": settings.request_seconds,
    }
    found.append((Deadlines, limits))
    keys = read_keys(settings.api_keys, settings.api_keys_file)
    if keys:
        found.append((Keys, {"keys": keys, "open_metrics": bool(settings.open_metrics)}))
    return found


def quieten() -> None:
    """Keep libraries from logging what is wrong with uploads: lines without end, with text of the uploader's choice.

    What is wrong is told in the answer, and counted.
    """
    for name in ("rasterio", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("uvicorn.error").addFilter(lambda record: record.msg != "Invalid HTTP request received.")
    sys.unraisablehook = _tell_of_lost_error


def _tell_of_lost_error(lost: "sys.UnraisableHookArgs") -> None:
    """Do as Python does, but for messages of GDAL that hold bytes of a file which are no text."""
    if not isinstance(lost.exc_value, UnicodeDecodeError):
        sys.__unraisablehook__(lost)


def cors_options(origins: str) -> dict[str, Any]:
    """Return the options of starlette's CORS middleware for a list of origins, separated by commas.

    Credentials in the browser's own sense (cookies) are never allowed: keys travel in a header that the page sets.

    Raises:
        SentileError: one is no origin.
    """
    allowed = [origin.strip() for origin in origins.split(",") if origin.strip()]
    for origin in allowed:
        scheme, _, host = origin.partition("://")
        if origin != "*" and (scheme not in ("http", "https") or not host or set(host) & set("/?#@* ")):
            raise SentileError(
                f"SENTILE_CORS_ORIGINS: {origin!r} is no origin; write https://host or https://host:port"
            )
    return {
        "allow_origins": allowed,
        "allow_methods": ["GET", "POST", "DELETE"],
        "allow_headers": list(_ASKED_WITH),
        "expose_headers": list(_TOLD),
        "allow_credentials": False,
    }
