"""Request ids: the caller's own where it is sound, so that a request can be followed through several services."""

import re
import secrets

from starlette.types import Scope

HEADER = b"x-request-id"
_SOUND = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def request_id_of(scope: Scope) -> str:
    """Return the id in the request's header `X-Request-ID`, or a new one of 32 hexadecimal digits."""
    for name, value in scope["headers"]:
        if name == HEADER and _SOUND.fullmatch(value):
            return str(value, "ascii")
    return secrets.token_hex(16)
