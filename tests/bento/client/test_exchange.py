"""The client's protocol without a network: exchanges are driven by hand, retries over a fake transport."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tilewise.bento.client import AsyncClient, Client, ServiceError
from tilewise.bento.client.exchange import (
    Chunk,
    Exchange,
    Request,
    Wait,
    classify,
    fetch,
    iter_chunks,
    send_file,
    wait_until_ready,
)
from tilewise.datasets.core.errors import TileShapeError, TilewiseError

Outcome = httpx.Response | httpx.RequestError
REQUEST = Request("GET", "/model")
SENT = httpx.Request("GET", "http://service/model")
MODEL = {"name": "m", "version": "1", "sha256": "0"}


def response(status: int = 200, content: Any = None, **headers: str) -> httpx.Response:
    all_headers = {"tilewise-api-version": "1"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    return httpx.Response(status, json={} if content is None else content, headers=all_headers, request=SENT)


def refusal(status: int, code: str = "busy", **headers: str) -> httpx.Response:
    return response(status, {"error": {"code": code, "message": "no", "hint": "wait"}}, **headers)


def drive(
    exchange: Exchange[Any], answer: Callable[[Request], Outcome]
) -> tuple[Any, list[Request], list[float]]:
    """Drive an exchange; return its result, the requests and the pauses."""
    requests, pauses = [], []
    try:
        step = next(exchange)
        while True:
            if isinstance(step, Wait):
                pauses.append(step.seconds)
                step = exchange.send(None)
                continue
            requests.append(step)
            outcome = answer(step)
            step = (
                exchange.throw(outcome) if isinstance(outcome, httpx.RequestError) else exchange.send(outcome)
            )
    except StopIteration as end:
        return end.value, requests, pauses


def in_turn(*outcomes: Outcome) -> Callable[[Request], Outcome]:
    left = list(outcomes)
    return lambda _: left.pop(0)


# Retries.


def ask(
    monkeypatch: pytest.MonkeyPatch, *outcomes: Outcome, retries: int = 3
) -> tuple[Any, int, list[float]]:
    """Ask a fake service for its model; return the result or error, the number of requests, the pauses."""
    left, pauses = list(outcomes), []

    def handle(request: httpx.Request) -> httpx.Response:
        outcome = left.pop(0)
        if isinstance(outcome, httpx.RequestError):
            raise outcome
        return outcome

    monkeypatch.setattr("time.sleep", pauses.append)
    with Client("http://service", retries=retries, transport=httpx.MockTransport(handle)) as client:
        try:
            result: Any = client.model()
        except ServiceError as error:
            result = error
    return result, len(outcomes) - len(left), pauses


@pytest.mark.parametrize(
    "transient",
    [
        refusal(429),
        refusal(503),
        httpx.ConnectError("refused", request=SENT),
        httpx.ReadError("reset", request=SENT),
        httpx.RemoteProtocolError("closed", request=SENT),
        httpx.ConnectTimeout("", request=SENT),
    ],
    ids=lambda outcome: str(getattr(outcome, "status_code", type(outcome).__name__)),
)
def test_a_transient_failure_is_retried_after_growing_pauses(
    transient: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, requests, pauses = ask(
        monkeypatch, transient, transient, transient, response(content={"name": "m"})
    )
    assert (found, requests, len(pauses)) == ({"name": "m"}, 4, 3)
    for n, pause in enumerate(pauses):
        assert 0.25 * 2**n <= pause <= 0.5 * 2**n


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500, 504])
def test_a_permanent_failure_is_not_retried(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    refused, requests, _ = ask(monkeypatch, refusal(status, "some_code", x_request_id="abc"), response())
    assert (refused.status, refused.code, refused.request_id, requests) == (status, "some_code", "abc", 1)
    assert str(refused) == "no; wait"


def test_after_the_last_retry_the_last_refusal_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    refused, requests, _ = ask(monkeypatch, *[refusal(503)] * 4)
    assert (refused.code, refused.status, requests) == ("busy", 503, 4)
    refused, requests, _ = ask(monkeypatch, *[httpx.ConnectError("refused", request=SENT)] * 2, retries=1)
    assert (refused.code, refused.status, requests) == ("unreachable", None, 2)


def test_a_request_that_timed_out_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    refused, requests, _ = ask(monkeypatch, httpx.ReadTimeout("", request=SENT), response())
    assert (refused.code, refused.status, requests) == ("timeout", None, 1)


def test_the_service_sets_the_pause_in_seconds_or_by_a_date_and_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=8), usegmt=True)
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=8), usegmt=True)
    for value, minimum, maximum in [
        ("4", 4, 5),
        (soon, 6.5, 10),
        ("3600", 30, 30),
        ("9" * 400, 30, 30),
        (past, 0, 0.5),
        ("soon", 0, 0.5),
        ("-1", 0, 0.5),
    ]:
        _, _, pauses = ask(monkeypatch, refusal(503, retry_after=value), response())
        assert minimum <= pauses[0] <= maximum, value


def test_pauses_are_bounded_and_differ_between_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, pauses = ask(monkeypatch, *[refusal(429)] * 20, response(), retries=20)
    assert max(pauses) <= 30
    assert len({ask(monkeypatch, refusal(429), response())[2][0] for _ in range(20)}) > 1


def test_asyncio_retries_concurrent_requests_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}

    def handle(request: httpx.Request) -> httpx.Response:
        seen[request.url.path] = seen.get(request.url.path, 0) + 1
        return (
            refusal(503, retry_after="0") if seen[request.url.path] < 3 else response(content={"name": "m"})
        )

    async def scenario() -> list[dict[str, Any]]:
        async with AsyncClient("http://service", retries=2, transport=httpx.MockTransport(handle)) as client:
            return await asyncio.gather(client.model(), client.scene(__file__))

    monkeypatch.setattr("tilewise.bento.client.exchange.pause_before_retry", lambda state: 0.01)
    assert asyncio.run(scenario()) == [{"name": "m"}] * 2
    assert seen == {"/model": 3, "/scene": 3}


# Responses that are not from tilewise.


@pytest.mark.parametrize(
    ("outcome", "code", "text"),
    [
        (httpx.Response(200, text="<html>", request=SENT), "not_tilewise", "check the URL"),
        (httpx.Response(404, text="nothing", request=SENT), "not_tilewise", "404"),
        (httpx.Response(502, text="bad gateway", request=SENT), "not_tilewise", "502"),
        (httpx.Response(302, headers={"location": "http://else"}, request=SENT), "not_tilewise", "302"),
        (httpx.Response(400, json={"error": "text"}, request=SENT), "not_tilewise", "400"),
        (response(tilewise_api_version="2"), "other_version", "version 2"),
        (httpx.TooManyRedirects("no", request=SENT), "not_tilewise", "check the URL"),
    ],
)
def test_a_response_of_another_program_or_version_has_its_own_error(
    outcome: Outcome, code: str, text: str
) -> None:
    with pytest.raises(ServiceError) as refused:
        drive(fetch(REQUEST), in_turn(outcome))
    assert refused.value.code == code
    assert text in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"model": MODEL},
        {"model": MODEL, "results": []},
        {"model": MODEL, "results": ["text"]},
        {"model": MODEL, "results": [{"name": "a", "class": "Forest"}]},
        {"model": "text", "results": [{}]},
    ],
    ids=str,
)
def test_results_of_another_form_are_no_results(content: dict[str, Any]) -> None:
    with pytest.raises(ServiceError, match="does not answer as tilewise does"):
        drive(classify(Chunk(("a.tif",), (b"x",)), {}), in_turn(response(content=content)))


# How tiles become requests.


def test_a_list_is_cut_by_tiles_and_by_bytes_and_its_order_kept() -> None:
    tiles = [bytes(10)] * 5 + [bytes(95)] + [bytes(200)] + [bytes(10)]
    cut = list(iter_chunks(tiles, max_tiles=3, max_bytes=100))
    assert [[len(content) for content in chunk.contents] for chunk in cut] == [
        [10] * 3,
        [10] * 2,
        [95],
        [200],
        [10],
    ]
    assert [name for chunk in cut for name in chunk.names] == [str(n) for n in range(8)]


def test_files_are_read_only_when_their_request_is_made(tmp_path: Path) -> None:
    here = tmp_path / "here.tif"
    here.write_bytes(b"1")
    cut = iter_chunks([here, tmp_path / "gone.tif"], max_tiles=1, max_bytes=10)
    assert next(cut) == Chunk((str(here),), (b"1",))
    with pytest.raises(FileNotFoundError):
        next(cut)


def test_arrays_files_and_arrays_of_other_bands_go_in_requests_of_their_own() -> None:
    rgb, all_bands = np.ones((3, 64, 64), np.uint16), np.ones((2, 13, 64, 64), np.uint16)
    cut = list(iter_chunks([rgb, rgb, all_bands, b"file", rgb], max_tiles=64, max_bytes=2**30))
    assert [chunk.names for chunk in cut] == [("0", "1"), ("2", "3"), ("4",), ("5",)]


def test_one_tile_is_a_list_of_one_and_no_tile_no_request() -> None:
    one = np.ones((13, 64, 64), np.uint16)
    assert (
        [p.names for p in iter_chunks(b"file", 64, 100)]
        == [p.names for p in iter_chunks(one, 64, 100)]
        == [("0",)]
    )
    assert list(iter_chunks([], 64, 100)) == []


@pytest.mark.parametrize(
    "array", [np.ones((13, 64, 64)), np.ones((64, 64), np.uint16)], ids=["float", "flat"]
)
def test_an_array_of_another_kind_is_refused_before_it_is_sent(array: Any) -> None:
    with pytest.raises(TileShapeError, match="uint16"):
        list(iter_chunks(array, 64, 100))


def test_scale_and_offset_are_not_said_of_arrays() -> None:
    chunk = Chunk(("0",), (np.ones((13, 64, 64), np.uint16),))
    with pytest.raises(TilewiseError, match="leave out scale and offset"):
        drive(classify(chunk, {"offset": -1000}), in_turn())


def test_what_the_service_finds_too_large_is_sent_in_halves() -> None:
    def answer(request: Request) -> httpx.Response:
        names = [name for _, (name, _, _) in request.options["files"]]
        if len(names) > 2:
            return refusal(413, "too_large")
        error = {"code": "unreadable_image", "message": "no", "hint": ""}
        return response(
            content={"model": MODEL, "results": [{"name": name, "error": error} for name in names]}
        )

    chunk = Chunk(tuple("abcde"), (b"x",) * 5)
    results, requests, _ = drive(classify(chunk, {}), answer)
    assert [result.name for result in results] == list("abcde")
    assert [len(request.options["files"]) for request in requests] == [5, 2, 3, 1, 2]
    with pytest.raises(ServiceError, match="no; wait"):
        drive(classify(Chunk(("a",), (b"x",)), {}), in_turn(refusal(413)))


# Scenes that become tasks.


def task(status: str) -> httpx.Response:
    return response(content={"status": status})


def accepted(location: str) -> httpx.Response:
    return response(202, {"status": "waiting"}, location=location)


def send(*answers: Outcome, wait: float = 60) -> tuple[Any, list[Request], list[float]]:
    return drive(send_file(Path("s.tif"), "/scene", {"level": "L1C"}, "image/tiff", wait), in_turn(*answers))


def test_a_task_is_looked_after_until_it_is_done() -> None:
    done = response(content={"the": "result"})
    result, requests, pauses = send(
        accepted("/tasks/abc"), task("waiting"), task("running"), task("done"), done
    )
    assert result is done
    assert [request.path for request in requests] == ["/scene", *["/tasks/abc"] * 3, "/tasks/abc/result"]
    assert requests[0].file == Path("s.tif")
    assert requests[0].options["params"] == {"name": "s.tif", "level": "L1C"}
    assert requests[-1].options["headers"]["Accept"] == "image/tiff"
    assert pauses == sorted(pauses)


def test_a_task_that_failed_is_told_by_its_own_error() -> None:
    with pytest.raises(ServiceError) as failed:
        send(accepted("/tasks/abc"), task("failed"), refusal(422, "no_data"))
    assert failed.value.code == "no_data"


def test_a_task_that_takes_too_long_is_told_with_its_address() -> None:
    with pytest.raises(ServiceError, match="/tasks/abc") as slow:
        send(accepted("/tasks/abc"), task("waiting"), wait=0)
    assert slow.value.code == "timeout"


def test_only_the_path_of_a_tasks_address_is_followed() -> None:
    _, requests, _ = send(accepted("http://elsewhere:1/tasks/abc"), task("done"), response())
    assert [request.path for request in requests[1:]] == ["/tasks/abc", "/tasks/abc/result"]
    for location in ("http://elsewhere/steal", "", "/classify"):
        with pytest.raises(ServiceError, match="does not answer as tilewise does"):
            send(accepted(location))


# Readiness.


def test_readiness_is_waited_for() -> None:
    down = httpx.ConnectError("refused", request=SENT)
    ready, requests, pauses = drive(
        wait_until_ready(60), in_turn(down, refusal(503), httpx.Response(200, request=SENT))
    )
    assert ready
    assert {request.path for request in requests} == {"/readyz"}
    assert len(pauses) == 2
    assert drive(wait_until_ready(0), in_turn(down))[0] is False
