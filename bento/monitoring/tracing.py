"""Traces: where the time of a request went, sent to an OpenTelemetry collector. Off unless a setting names one.

A request is a span with its stages below it: `receive`, `wait`, `read`, `infer`, `describe`, `write`. Tiles of several
requests are worked on together, so each of these requests has the batch's stages among its own. BentoML's tracing is
switched off (`tilewise.bento.service`): it would trace the request only, and costs even where nobody looks.

What a trace holds of a request is its route, status and request id, the number of its tiles and the model's version.
"""

import importlib.util
import os
import threading
import time
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tilewise.bento.inference.uploads import Batch
from tilewise.bento.monitoring.logs import QUIET_PATHS, route_of
from tilewise.bento.request_context import RequestContext, current
from tilewise.datasets.core.errors import TilewiseError

EXPORTER = "opentelemetry.exporter.otlp.proto.http"
_PATH = "/v1/traces"  # of the OpenTelemetry protocol over HTTP
_PROPAGATED = (b"traceparent", b"tracestate")  # W3C Trace Context
_PATIENCE_S = 2.0  # at the end


def traces_url(overrides: str) -> str:
    """Return the URL that spans are posted to, where `said` is a collector's, with or without a path.

    Raises:
        TilewiseError: it is no URL, or the exporter is not installed.
    """
    parts = urlsplit(overrides)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise TilewiseError(f"TILEWISE_TRACE is the URL of a collector, not {overrides!r}; e.g. http://127.0.0.1:4318")
    if not _is_installed(EXPORTER):
        raise TilewiseError("TILEWISE_TRACE: the exporter is not installed; pip install 'tilewise[trace]'")
    return overrides if parts.path.strip("/") else overrides.rstrip("/") + _PATH


class Tracing:
    """A process's way to the collector; what OpenTelemetry's own variables (OTEL_…) say of sampling holds."""

    def __init__(self, url: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({"service.name": os.environ.get("OTEL_SERVICE_NAME", "tilewise")})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter(url)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("tilewise")

    def begin(self, scope: Scope, request_context: RequestContext) -> None:
        """Begin a request's span, below the caller's where it says one, and note it if it is sampled."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {str(name, "ascii"): str(value, "latin-1") for name, value in scope["headers"] if name in _PROPAGATED}
        parent = TraceContextTextMapPropagator().extract(carrier)
        attributes = {"http.request.method": scope["method"], "tilewise.request_id": request_context.request_id}
        began = request_context.began + _since_1970()
        span = self._tracer.start_span(scope["method"], parent, SpanKind.SERVER, attributes, start_time=began)
        request_context.span = span if span.is_recording() else None

    def end(self, scope: Scope, request_context: RequestContext, status: int) -> None:
        """End a request's span."""
        from opentelemetry.trace import StatusCode

        now, span = time.perf_counter_ns(), request_context.span
        if request_context.answered:
            self._stage(span, "receive", request_context.began, request_context.submitted)
            self._stage(span, "write", request_context.answered, now)
        route = route_of(scope)
        span.update_name(f"{scope['method']} {route}")
        span.set_attributes(
            {"http.route": route, "http.response.status_code": status, "tilewise.tiles": request_context.tiles}
        )
        if request_context.model:
            span.set_attribute("tilewise.model_version", request_context.model)
        if status >= 500 or not status:
            span.set_status(StatusCode.ERROR)
        span.end(now + _since_1970())

    def look(self, batch: Batch) -> None:
        """Give the batch's stages to the requests whose tiles it held."""
        for request_context in batch.requests:
            if request_context.span is not None:
                self._stage(request_context.span, "wait", request_context.submitted, batch.stages[0].began)
                for stage in batch.stages:
                    self._stage(request_context.span, stage.name, stage.began, stage.ended, len(batch.uploads))

    def close(self) -> None:
        """Send what has not been sent, if the collector takes it within a few seconds."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_PATIENCE_S)
        self._exporter.shutdown()  # it would try again and again

    def _stage(self, parent: Any, name: str, began: int, ended: int, batch_tiles: int = 0) -> None:
        from opentelemetry.trace import set_span_in_context

        attributes = {"tilewise.batch_tiles": batch_tiles} if batch_tiles else None
        offset = _since_1970()
        span = self._tracer.start_span(
            name, set_span_in_context(parent), attributes=attributes, start_time=began + offset
        )
        span.end(ended + offset)


@lru_cache(maxsize=1)
def tracing_to(overrides: str) -> Tracing:
    """Return this process's tracing to a collector, begun when it is first asked for; raises as `traces_url` does."""
    return Tracing(traces_url(overrides))


class TraceRequests:
    """ASGI middleware, just inside the log: a span for each request."""

    def __init__(self, app: ASGIApp, collector: str) -> None:
        self._app, self._tracing = app, tracing_to(collector)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        request_context = current()
        if scope["type"] != "http" or request_context is None or scope["path"] in QUIET_PATHS:
            return await self._app(scope, receive, send)
        status = 0

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._tracing.begin(scope, request_context)
        if request_context.span is None:
            return await self._app(scope, receive, send)
        try:
            await self._app(scope, receive, send_noting)
        finally:
            self._tracing.end(scope, request_context, status)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package that it is in
        return False


def _since_1970() -> int:
    """Return what must be added to `time.perf_counter_ns` to have nanoseconds since 1970."""
    return time.time_ns() - time.perf_counter_ns()
