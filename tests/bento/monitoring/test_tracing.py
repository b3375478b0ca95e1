"""Traces of a real service, as a real collector on loopback receives them."""

import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from geotiffs import tile_file
from servers import free_port, served
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from watched import until

from tilewise.bento.monitoring import tracing
from tilewise.bento.monitoring.logs import LogStyle, RequestLog
from tilewise.bento.monitoring.tracing import TraceRequests, traces_url, tracing_to
from tilewise.datasets.acquire.synthetic import synthesise_tile
from tilewise.datasets.core.errors import TilewiseError

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="pip install 'tilewise[trace]'")
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

FOREST = tile_file(synthesise_tile("Forest", 3, 1))
CALLER = "0af7651916cd43dd8448eb211c80319c"
STAGES = ["receive", "wait", "read", "infer", "describe", "write"]


@dataclass
class Collector:
    """What has been received: the paths posted to, the services that posted, and their spans."""

    url: str = ""
    paths: set[str] = field(default_factory=set)
    services: set[str] = field(default_factory=set)
    spans: list[Span] = field(default_factory=list)

    def receive(self, path: str, body: bytes) -> None:
        self.paths.add(path)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {
                a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
            }
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def requests(self) -> list[Span]:
        return [span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER]

    def below(self, parent: Span) -> list[Span]:
        found = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return sorted(found, key=lambda span: (span.start_time_unix_nano, STAGES.index(span.name)))


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.receive(self.path, self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield collector
        finally:
            server.shutdown()


def attributes(span: Span) -> dict[str, str | int]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


@pytest.mark.slow
def test_a_request_is_traced_with_its_stages(linear_model: Path, tmp_path: Path) -> None:
    with collecting() as collector:
        settings = {
            "TILEWISE_WORKERS": "1",
            "TILEWISE_TRACE": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        with served(linear_model, tmp_path, **settings) as server:
            with httpx.Client(base_url=server.url, trust_env=False, timeout=30) as client:
                headers = {"traceparent": f"00-{CALLER}-b7ad6b7169203331-01", "X-Request-ID": "followed"}
                parts = [("tiles", ("secret-name.tif", FOREST)), ("tiles", ("b.tif", FOREST))]
                assert client.post("/classify", files=parts, headers=headers).status_code == 200
                client.get(
                    "/model", headers={"traceparent": f"00-{CALLER}-b7ad6b7169203331-00"}
                )  # not sampled
                client.get("/no/such/thing")
            until(lambda: len(collector.spans) >= 8, "two requests, one with six stages, are collected")
            assert f'"trace_id": "{CALLER}"' in server.log.read_text()
        assert collector.paths == {"/v1/traces"}
        assert collector.services == {"tilewise"}
        request, unknown = sorted(collector.requests(), key=lambda span: span.start_time_unix_nano)

        assert (request.name, request.trace_id.hex()) == ("POST /classify", CALLER)
        assert request.parent_span_id.hex() == "b7ad6b7169203331"
        assert attributes(request) == {
            "http.request.method": "POST",
            "http.route": "/classify",
            "http.response.status_code": 200,
            "tilewise.request_id": "followed",
            "tilewise.tiles": 2,
            "tilewise.model_version": "0",
        }
        stages = collector.below(request)
        assert [stage.name for stage in stages] == STAGES
        for before, after in pairwise(stages):
            assert before.end_time_unix_nano <= after.start_time_unix_nano + 10**6
        assert all(stage.trace_id.hex() == CALLER for stage in stages)
        assert request.start_time_unix_nano == pytest.approx(stages[0].start_time_unix_nano, abs=10**6)
        assert attributes(stages[3])["tilewise.batch_tiles"] == 2

        assert (unknown.name, unknown.status.code) == ("GET other", Status.STATUS_CODE_UNSET)
        assert "secret" not in str(collector.spans)
        assert (
            len(collector.requests()) == 2
        )  # neither the probes of readiness nor what the caller does not sample


def test_a_collector_that_is_down_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")

    async def well(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("well")(scope, receive, send)

    collector = f"http://127.0.0.1:{free_port()}"
    traced = TraceRequests(well, collector)
    log = io.StringIO()
    client = TestClient(RequestLog(traced, LogStyle.JSON, log))
    assert [client.get("/").text for _ in range(20)] == ["well"] * 20
    assert all("trace_id" in json.loads(line) for line in log.getvalue().splitlines())
    tracing_to(collector).close()


def test_a_collector_is_named_with_or_without_a_path() -> None:
    assert traces_url("http://127.0.0.1:4318") == "http://127.0.0.1:4318/v1/traces"
    assert traces_url("http://127.0.0.1:4318/") == "http://127.0.0.1:4318/v1/traces"
    assert traces_url("https://traces.example/otlp/v1/traces") == "https://traces.example/otlp/v1/traces"


@pytest.mark.parametrize("overrides", ["127.0.0.1:4318", "1", "grpc://127.0.0.1:4317", "http://"])
def test_what_is_no_collector_is_refused_in_one_line(overrides: str) -> None:
    with pytest.raises(TilewiseError, match="TILEWISE_TRACE is the URL of a collector"):
        traces_url(overrides)


def test_where_the_exporter_is_not_installed_the_way_to_install_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracing, "EXPORTER", "opentelemetry.no_such.exporter")
    with pytest.raises(TilewiseError, match=r"pip install 'tilewise\[trace\]'"):
        traces_url("http://127.0.0.1:4318")


def test_where_nothing_is_traced_no_tracing_is_loaded() -> None:
    loaded = "[name for name in sys.modules if name.startswith('opentelemetry.sdk')]"
    code = f"import sys, tilewise.bento.serving.runtime, tilewise.bento.api.app; print(*{loaded})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""
