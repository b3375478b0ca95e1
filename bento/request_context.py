"""Request context: what is recorded of a request in progress, for the log, traces and predictions."""

import time
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, eq=False)
class RequestContext:
    """What is known of one request so far.

    Attributes:
        request_id: from the header `X-Request-ID`, or generated.
        tiles: number of tiles (or windows of a scene) in the request.
        model: version of the model that answers; empty if none does.
        codes: error codes in the response, with their counts.
        began: when the request arrived, in nanoseconds of `time.perf_counter_ns`.
        submitted: when its tiles were queued for a batch; 0: not yet.
        answered: when the last of its tiles was answered; 0: not yet.
        span: OpenTelemetry `Span` of the request; None if it is not traced.
    """

    request_id: str
    tiles: int = 0
    model: str = ""
    codes: Counter[str] = field(default_factory=Counter)
    began: int = field(default_factory=time.perf_counter_ns)
    submitted: int = 0
    answered: int = 0
    span: Any = None


_CONTEXT: ContextVar[RequestContext | None] = ContextVar("request_context", default=None)


def begin(request_context: RequestContext) -> None:
    """Make `request_context` the one of the request that the running task serves."""
    _CONTEXT.set(request_context)


def current() -> RequestContext | None:
    """Return the context of the request being served, or None outside of any request."""
    return _CONTEXT.get()


def note_requested(tiles: int, model: str) -> None:
    """Record the number of tiles (or windows) in the request and the version of the model that answers it."""
    request_context = _CONTEXT.get()
    if request_context is not None:
        request_context.tiles, request_context.model = tiles, model


def note_submitted() -> None:
    """Record that the request's tiles are queued for a batch."""
    request_context = _CONTEXT.get()
    if request_context is not None:
        request_context.submitted = time.perf_counter_ns()


def note_answered() -> None:
    """Record that all tiles of the request are answered."""
    request_context = _CONTEXT.get()
    if request_context is not None:
        request_context.answered = time.perf_counter_ns()


def note_code(code: str) -> None:
    """Record an error code in the request's response."""
    request_context = _CONTEXT.get()
    if request_context is not None:
        request_context.codes[code] += 1
