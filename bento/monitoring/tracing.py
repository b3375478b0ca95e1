"""Traces: where the time of a request goes, sent to the OpenTelemetry collector that TILEWISE_TRACE names.

A request is a span with its stages as children: `receive`, `wait`, `read`, `infer`, `describe`, `write`. A
batch holds tiles of several requests, so each of these requests gets the stages of the batch. BentoML's own
tracing is switched off (`tilewise.bento.service`): it would trace the request only, and costs time even where
nothing is collected.

A trace holds the route, status and ID of a request, the number of its tiles and the version of the model.
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
_FLUSH_S = 2.0  # for sending the last spans


def traces_url(collector: str) -> str:
    """Return the URL to post spans to, for the URL of a collector with or without a path.

    Raises:
        TilewiseError: it is not a URL, or the exporter is not installed.
    """
    parts = urlsplit(collector)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise TilewiseError(
            f"TILEWISE_TRACE is the URL of a collector, not {collector!r}; e.g. http://127.0.0.1:4318"
        )
    if not _is_installed(EXPORTER):
        raise TilewiseError("TILEWISE_TRACE: the exporter is not installed; pip install 'tilewise[trace]'")
    return collector if parts.path.strip("/") else collector.rstrip("/") + _PATH


class Tracing:
    """Trace requests to one collector; OpenTelemetry's own variables (OTEL_…) control sampling."""

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
        """Begin a request's span, as a child of the caller's if there is one; keep it if it is sampled."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carrier = {
            str(name, "ascii"): str(value, "latin-1")
            for name, value in scope["headers"]
            if name in _PROPAGATED
        }
        parent = TraceContextTextMapPropagator().extract(carrier)
        attributes = {
            "http.request.method": scope["method"],
            "tilewise.request_id": request_context.request_id,
        }
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
            {
                "http.route": route,
                "http.response.status_code": status,
                "tilewise.tiles": request_context.tiles,
            }
        )
        if request_context.model:
            span.set_attribute("tilewise.model_version", request_context.model)
        if status >= 500 or not status:
            span.set_status(StatusCode.ERROR)
        span.end(now + _since_1970())

    def observe(self, batch: Batch) -> None:
        """Add the stages of a batch to the spans of its requests."""
        for request_context in batch.requests:
            if request_context.span is not None:
                self._stage(request_context.span, "wait", request_context.submitted, batch.stages[0].began)
                for stage in batch.stages:
                    self._stage(
                        request_context.span, stage.name, stage.began, stage.ended, len(batch.uploads)
                    )

    def close(self) -> None:
        """Send the spans that are not sent yet, if the collector takes them within two seconds."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_FLUSH_S)
        self._exporter.shutdown()  # ends its retries

    def _stage(self, parent: Any, name: str, began: int, ended: int, batch_tiles: int = 0) -> None:
        from opentelemetry.trace import set_span_in_context

        attributes = {"tilewise.batch_tiles": batch_tiles} if batch_tiles else None
        offset = _since_1970()
        span = self._tracer.start_span(
            name, set_span_in_context(parent), attributes=attributes, start_time=began + offset
        )
        span.end(ended + offset)


@lru_cache(maxsize=1)
def tracing_to(collector: str) -> Tracing:
    """Return the process's `Tracing` to a collector; raises TilewiseError as `traces_url` does."""
    return Tracing(traces_url(collector))


class TraceRequests:
    """ASGI middleware, just inside the log: make a span for each request."""

    def __init__(self, app: ASGIApp, collector: str) -> None:
        self._app, self._tracing = app, tracing_to(collector)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        request_context = current()
        if scope["type"] != "http" or request_context is None or scope["path"] in QUIET_PATHS:
            return await self._app(scope, receive, send)
        status = 0

        async def send_recording(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._tracing.begin(scope, request_context)
        if request_context.span is None:
            return await self._app(scope, receive, send)
        try:
            await self._app(scope, receive, send_recording)
        finally:
            self._tracing.end(scope, request_context, status)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor is its parent package
        return False


def _since_1970() -> int:
    """Return the offset from `time.perf_counter_ns` to nanoseconds since 1970."""
    return time.time_ns() - time.perf_counter_ns()
