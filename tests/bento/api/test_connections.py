"""Connections: requests that come slowly, without end or not at all are cut off."""

import http.client
import os
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from hardened import HEAD_SECONDS, KEY, say
from hostile.service import Workers, serving
from servers import Server

GET = b"GET /model HTTP/1.1\r\nHost: x\r\nX-API-Key: " + KEY.encode() + b"\r\n"


def test_a_connection_that_says_nothing_is_closed(guarded: Server) -> None:
    assert say(guarded.url).status == 0


def test_a_head_that_comes_byte_by_byte_is_not_waited_for(guarded: Server) -> None:
    drops = [b"GET /model HTTP/1.1\r\nHost: x\r\n", *([b"A: b\r\n"] * 100)]
    answer = say(guarded.url, *drops, pause=0.1)
    assert answer.status in (0, 408)  # the answer may be lost to a client that goes on talking
    assert answer.seconds < 10 * HEAD_SECONDS + 5


def test_a_head_that_stops_is_refused_with_408(guarded: Server) -> None:
    answer = say(guarded.url, b"GET /model HTTP/1.1\r\n", b"Host: x\r\n")
    assert answer.status == 408
    assert answer.error["code"] == "too_slow"


def test_headers_without_end_are_refused_with_431(guarded: Server) -> None:
    answer = say(guarded.url, GET, *([b"X-Long: " + b"y" * 30_000 + b"\r\n"] * 4))
    assert answer.status == 431
    assert answer.error["code"] == "head_too_large"


def test_pipelined_requests_are_answered_and_nonsense_after_them_is_not_our_failure(guarded: Server) -> None:
    answer = say(guarded.url, (GET + b"\r\n") * 3 + b"\x00\x01nonsense\r\n\r\n")
    assert answer.status in (200, 400)
    assert httpx.get(f"{guarded.url}/readyz", trust_env=False, timeout=30).status_code == 200
    assert "Traceback" not in guarded.log.read_text()


def test_a_question_to_change_the_protocol_is_answered_as_any_other(guarded: Server) -> None:
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\n"
    upgrade += b"Sec-WebSocket-Version: 13\r\n\r\n"
    assert say(guarded.url, GET + upgrade).status == 200
    assert say(guarded.url, GET.replace(KEY.encode(), b"") + upgrade).status == 401


@pytest.mark.parametrize("hosts", [b"", b"Host: x\r\nHost: y\r\n"])
def test_a_request_has_one_host(guarded: Server, hosts: bytes) -> None:
    answer = say(guarded.url, b"GET /livez HTTP/1.1\r\n" + hosts + b"\r\n")
    assert (answer.status, answer.error["code"]) == (400, "bad_request")
    assert say(guarded.url, b"GET /livez HTTP/1.0\r\n\r\n").status == 200


@pytest.mark.parametrize("path", [b"/classify", b"/nothing"])
def test_a_refusal_reaches_a_client_that_is_still_sending(guarded: Server, path: bytes) -> None:
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: image/tiff\r\nContent-Length: %d\r\n\r\n"
    body = bytes(20 * 2**20)
    answer = say(guarded.url, head % (path, len(body)), body)  # without a key
    assert (answer.status, answer.error["code"]) == (401, "unauthorized")


@pytest.mark.slow
def test_a_request_on_an_idle_connection_is_answered_while_the_service_stops(
    linear_model: Path, tmp_path: Path
) -> None:
    with serving(linear_model, tmp_path, settings={"TILEWISE_WORKERS": "1"}) as (port, parent):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/model")
        assert connection.getresponse().read()
        connection.auto_open = 0  # over the same connection or not at all
        for pid in Workers(parent).at_start:
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.5)  # the request is sent while the service stops
        connection.request("GET", "/model")
        answer = connection.getresponse()
        assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_one_address_takes_at_most_half_of_the_connections(guarded: Server) -> None:
    host, _, port = guarded.url.removeprefix("http://").partition(":")
    with ExitStack() as stack:
        for _ in range(60):  # of 40 that are allowed
            attacker = socket.create_connection((host, int(port)), 10, source_address=("127.0.0.2", 0))
            stack.enter_context(attacker)
        assert [say(guarded.url, GET + b"\r\n").status for _ in range(3)] == [200] * 3


def test_more_connections_than_allowed_are_closed_and_the_others_served(guarded: Server) -> None:
    host, _, port = guarded.url.removeprefix("http://").partition(":")
    with ExitStack() as stack:
        kept = stack.enter_context(httpx.Client(base_url=guarded.url, trust_env=False, timeout=30))
        assert kept.get("/readyz").status_code == 200
        for _ in range(60):
            stack.enter_context(socket.create_connection((host, int(port))))
        assert kept.get("/readyz").status_code == 200
        assert say(guarded.url, GET + b"\r\n").status == 0
    with httpx.Client(
        base_url=guarded.url, trust_env=False, transport=httpx.HTTPTransport(retries=5)
    ) as client:
        assert client.get("/readyz").status_code == 200
