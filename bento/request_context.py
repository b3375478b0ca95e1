"""What is noted of a request while it is served, for those who look on: the log, the trace, the prediction log."""

import time
from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, eq=False)
class RequestContext:
    """Of one request.

    Attributes:
        request_id: the caller's, or our own.
        tiles: that it asks about.
        model: version of the model that answers it; empty where none does.
        codes: of the errors in its answer, with how many.
        began, submitted, answered: when the request came, its tiles began to wait for a batch, and all had been
            answered: nanoseconds of `time.perf_counter_ns`; 0: not (yet).
        span: of the request in a trace (opentelemetry's `Span`); None where nothing is traced.
    """

    request_id: str
    tiles: int = 0
    model: str = ""
    codes: Counter[str] = field(default_factory=Counter)
    began: int = field(default_factory=time.perf_counter_ns)
    submitted: int = 0
    answered: int = 0
    span: Any = None


_CONTEXT: ContextVar[RequestContext | None] = ContextVar("notes", default=None)


def begin(request_context: RequestContext) -> None:
    """Make `notes` those of the request that the running task serves."""
    _CONTEXT.set(request_context)


def current() -> RequestContext | None:
    """Return the notes of the request that is being served, or None outside of any."""
    return _CONTEXT.get()


def note_asked(tiles: int, model: str) -> None:
    """Note how many tiles (or windows) the request asks about, and the version of the model that answers it."""
    request_context = _CONTEXT.get()
    if request_context is not None:
        request_context.tiles, request_context.model = tiles, model


def note_answered() -> None:
    """Note that all tiles of the request have been answered."""
    request_context = _CONTEXT.get()
    if request_context is not None:
        request_context.answered = time.perf_counter_ns()


def note_code(code: str) -> None:
    """Note that the request's answer holds an error."""
    request_context = _CONTEXT.get()
    if request_context is not None:
        request_context.codes[code] += 1
