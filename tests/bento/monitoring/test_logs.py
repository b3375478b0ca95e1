"""Logs of a real service, and the form of their lines."""

import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from geotiffs import tile_file
from servers import Server, served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tilewise.bento.api.replies import HANDLERS
from tilewise.bento.monitoring.logs import LogStyle, RequestLog, formatter, get_logger, style_of
from tilewise.bento.settings import Settings
from tilewise.datasets.acquire.synthetic import synthesise_tile
from tilewise.datasets.core.errors import TilewiseError

FOREST = tile_file(synthesise_tile("Forest", 3, 1))
KEY = "a-key-of-more-than-sixteen-characters"


@pytest.fixture(scope="module")
def server(linear_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = {"TILEWISE_WORKERS": "1", "TILEWISE_API_KEYS": f"tester:{KEY}"}
    with served(linear_model, tmp_path_factory.mktemp("logs"), **settings) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, trust_env=False, timeout=30, headers=headers) as client:
        yield client


def lines_of(server: Server, request_id: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("request_id") == request_id]


def until_logged(server: Server, request_id: str) -> dict[str, Any]:
    """The request's only line, which is written when its answer is already on its way."""
    for _ in range(200):
        found = lines_of(server, request_id)
        if found:
            (line,) = found
            return line
        time.sleep(0.02)
    raise AssertionError(f"no line of {request_id} in:\n{server.log.read_text()}")


def test_a_request_is_one_line_of_json_with_what_an_operator_asks(
    client: httpx.Client, server: Server
) -> None:
    parts = [
        ("tiles", ("a.tif", FOREST)),
        ("tiles", ("b.tif", b"no tile")),
        ("tiles", ("c.tif", b"none either")),
    ]
    answer = client.post("/classify", files=parts, headers={"X-Request-ID": "three-tiles"})
    assert answer.status_code == 200
    line = until_logged(server, "three-tiles")
    assert line["level"] == "info"
    assert (line["method"], line["path"], line["status"]) == ("POST", "/classify", 200)
    assert (line["tiles"], line["model"], line["errors"]) == (3, "0", {"unreadable_image": 2})
    assert len(FOREST) < line["bytes"] < len(FOREST) + 2000
    assert 0 < line["seconds"] < 30
    assert line["time"].endswith("Z")


def test_a_refused_request_is_logged_with_its_code(client: httpx.Client, server: Server) -> None:
    client.get("/no/such/thing?name=secret.tif", headers={"X-Request-ID": "nowhere"})
    line = until_logged(server, "nowhere")
    assert (line["status"], line["errors"], line["path"]) == (404, {"not_found": 1}, "/no/such/thing")
    httpx.get(f"{server.url}/model", headers={"X-Request-ID": "no-key"}, trust_env=False, timeout=30)
    line = until_logged(server, "no-key")
    assert (line["status"], line["errors"]) == (401, {"unauthorized": 1})


def test_no_name_key_query_or_body_is_in_the_log(client: httpx.Client, server: Server) -> None:
    client.post("/classify", files={"tiles": ("a-telling-name.tif", b"a telling body")})
    client.post(
        "/classify?name=a-telling-query", content=b"a telling body", headers={"Content-Type": "image/tiff"}
    )
    client.get("/model", headers={"X-Request-ID": "the-end"})
    until_logged(server, "the-end")
    overrides = server.log.read_text()
    assert "telling" not in overrides
    assert KEY not in overrides


def test_probes_and_scrapes_are_not_logged(client: httpx.Client, server: Server) -> None:
    for path in ("/livez", "/readyz", "/metrics"):
        assert client.get(path, headers={"X-Request-ID": f"probe{path[1:]}"}).status_code == 200
    client.get("/model", headers={"X-Request-ID": "after-probes"})
    until_logged(server, "after-probes")
    assert '"request_id": "probe' not in server.log.read_text()


@pytest.mark.parametrize("path", ["/model", "/livez", "/metrics", "/no/such/thing", "/classify"])
def test_every_answer_carries_a_request_id(client: httpx.Client, path: str) -> None:
    assert client.get(path, headers={"X-Request-ID": "mine.1_2-3"}).headers["x-request-id"] == "mine.1_2-3"
    ids = {client.get(path).headers["x-request-id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(len(one) == 32 for one in ids)


@pytest.mark.parametrize("unsound", ["", "with blank", "x" * 129, 'quote"', "café", "a,b", "<b>"])
def test_an_unsound_request_id_is_replaced(client: httpx.Client, unsound: str) -> None:
    given = client.get("/model", headers={"X-Request-ID": unsound.encode()}).headers["x-request-id"]
    assert given != unsound
    assert len(given) == 32


# Of an application that fails, in this process: the real service has no route that does.


async def fail(request: Request) -> Response:
    raise RuntimeError("a secret of the house: /etc/tilewise")


async def fail_midway(request: Request) -> Response:
    async def pieces() -> Any:
        yield b"the beginning"
        raise RuntimeError("midway")

    return StreamingResponse(pieces())


async def succeed(request: Request) -> Response:
    return PlainTextResponse("well")


@pytest.fixture
def failing(caplog: pytest.LogCaptureFixture) -> Callable[[LogStyle], tuple[TestClient, io.StringIO]]:
    def make(style: LogStyle) -> tuple[TestClient, io.StringIO]:
        routes = [Route("/fail", fail), Route("/midway", fail_midway), Route("/well/{id}", succeed)]
        stream = io.StringIO()
        app = RequestLog(Starlette(routes=routes, exception_handlers=HANDLERS), style, stream)
        return TestClient(app, raise_server_exceptions=True), stream

    return make


def test_an_unforeseen_error_is_told_to_the_log_and_not_to_the_client(
    failing: Callable[[LogStyle], tuple[TestClient, io.StringIO]], caplog: pytest.LogCaptureFixture
) -> None:
    client, stream = failing(LogStyle.JSON)
    with caplog.at_level(logging.ERROR, "tilewise"):
        answer = client.get("/fail", headers={"X-Request-ID": "bad-luck"})
    assert answer.status_code == 500
    assert set(answer.json()) == {"error"}
    assert answer.json()["error"]["code"] == "internal"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "bad-luck"
    line = json.loads(stream.getvalue())
    assert (line["level"], line["status"], line["errors"]) == ("error", 500, {"internal": 1})
    (record,) = caplog.records
    text = formatter(LogStyle.JSON).format(record)
    told = json.loads(text)
    assert told["request_id"] == "bad-luck"
    assert "RuntimeError: a secret of the house" in told["traceback"]
    assert "\n" not in text


def test_an_answer_that_breaks_off_does_not_look_whole(
    failing: Callable[[LogStyle], tuple[TestClient, io.StringIO]],
) -> None:
    client, stream = failing(LogStyle.JSON)
    with pytest.raises(ConnectionAbortedError):
        client.get("/midway")
    assert len(stream.getvalue().splitlines()) == 1


def test_a_route_is_logged_by_its_pattern_so_that_ids_which_open_things_stay_secret(
    failing: Callable[[LogStyle], tuple[TestClient, io.StringIO]],
) -> None:
    client, stream = failing(LogStyle.JSON)
    client.get("/well/unguessable")
    assert json.loads(stream.getvalue())["path"] == "/well/{id}"
    assert "unguessable" not in stream.getvalue()


def test_text_is_one_line_whatever_the_path_holds(
    failing: Callable[[LogStyle], tuple[TestClient, io.StringIO]],
) -> None:
    client, stream = failing(LogStyle.TEXT)
    client.get("/a%0A2026 forged%1b[31m")
    (line,) = stream.getvalue().splitlines()
    assert "404 GET /a?2026?forged?[31m" in line
    assert line.endswith("1×not_found")


def test_nothing_but_errors_is_logged_where_the_log_is_off(
    failing: Callable[[LogStyle], tuple[TestClient, io.StringIO]], caplog: pytest.LogCaptureFixture
) -> None:
    client, stream = failing(LogStyle.OFF)
    client.get("/well/1")
    assert not caplog.records
    client.get("/fail")
    assert stream.getvalue() == ""
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_log_that_nobody_reads_any_more_stops_no_request(
    failing: Callable[[LogStyle], tuple[TestClient, io.StringIO]],
) -> None:
    client, stream = failing(LogStyle.JSON)
    stream.close()
    assert client.get("/well/1").status_code == 200


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_style_that_there_is_not_is_refused_with_those_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TILEWISE_LOG", "xml")
    with pytest.raises(TilewiseError, match="TILEWISE_LOG is json, text or off, not 'xml'"):
        Settings.from_environment()


def test_requests_are_logged_as_json_unless_a_person_looks_on() -> None:
    assert style_of(None, io.StringIO()) is LogStyle.JSON
    assert style_of(None, Terminal()) is LogStyle.OFF
    assert style_of("text", Terminal()) is LogStyle.TEXT
    assert style_of("off", io.StringIO()) is LogStyle.OFF


def test_lines_for_people_have_the_fields_and_keep_terminal_codes_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "tilewise"):
        get_logger().warning("notice", status="dead_lettered", reason="\x1b[2J\nforged")
    line = formatter(LogStyle.TEXT).format(caplog.records[0])
    time_of_it, rest = line.split(" ", 1)
    assert time_of_it.endswith("Z")
    assert rest == 'WARNING notice status="dead_lettered" reason="\\u001b[2J\\nforged"'


@pytest.mark.parametrize("style", [LogStyle.JSON, LogStyle.TEXT, LogStyle.OFF])
def test_records_of_the_standard_library_look_the_same(
    style: LogStyle, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        raise RuntimeError("the cause")
    except RuntimeError:
        with caplog.at_level(logging.INFO, "tilewise"):
            logging.getLogger("tilewise").exception("%d tiles failed", 3)
    text = formatter(style).format(caplog.records[0])
    assert "3 tiles failed" in text
    assert "RuntimeError: the cause" in text
    if style is LogStyle.JSON:
        line = json.loads(text)
        assert list(line) == ["time", "level", "message", "traceback"]
        assert (line["level"], line["message"]) == ("error", "3 tiles failed")
        assert "\n" not in text
    else:
        assert " ERROR 3 tiles failed\nTraceback" in text


def test_a_process_that_configured_no_log_prints_nothing_below_warning(
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = "from tilewise.bento.monitoring.logs import get_logger; get_logger().info('a secret')"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
    assert "secret" not in "".join(capfd.readouterr())
