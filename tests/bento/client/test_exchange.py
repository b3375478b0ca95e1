"""What the client does next, whatever it hears, without a network: exchanges are driven by hand."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tilewise.bento.client.answers import ServiceError
from tilewise.bento.client.exchange import (
    Call,
    Exchange,
    Heard,
    Patience,
    Pause,
    Portion,
    ask,
    become_ready,
    classify,
    pause_before_retry,
    portions,
    send_file,
)
from tilewise.datasets.core.errors import TileShapeError, TilewiseError

CALL = Call("GET", "/model")
REQUEST = httpx.Request("GET", "http://service/model")
PATIENCE = Patience(retries=3)
MODEL = {"name": "m", "version": "1", "sha256": "0"}


def response(status: int = 200, content: Any = None, **headers: str) -> httpx.Response:
    overrides = {"tilewise-api-version": "1"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, json={} if content is None else content, headers=overrides, request=REQUEST)


def refusal(status: int, code: str = "busy", **headers: str) -> httpx.Response:
    return response(status, {"error": {"code": code, "message": "no", "hint": "wait"}}, **headers)


def drive(exchange: Exchange[Any], hear: Callable[[Call], Heard]) -> tuple[Any, list[Call], list[float]]:
    """Drive an exchange; return its result, the calls and the pauses."""
    calls, pauses, heard = [], [], None
    try:
        while True:
            step = exchange.send(heard)
            if isinstance(step, Pause):
                pauses.append(step.seconds)
                heard = None
            else:
                calls.append(step)
                heard = hear(step)
    except StopIteration as end:
        return end.value, calls, pauses


def in_turn(*answers: Heard) -> Callable[[Call], Heard]:
    left = list(answers)
    return lambda _: left.pop(0)


# What is asked again, and when.


@pytest.mark.parametrize(
    "passing",
    [
        refusal(429),
        refusal(503),
        httpx.ConnectError("refused", request=REQUEST),
        httpx.ReadError("reset", request=REQUEST),
        httpx.RemoteProtocolError("closed", request=REQUEST),
        httpx.ConnectTimeout("", request=REQUEST),
    ],
    ids=lambda heard: str(getattr(heard, "status_code", type(heard).__name__)),
)
def test_what_may_pass_is_asked_again_after_growing_pauses(passing: Heard) -> None:
    answer, calls, pauses = drive(ask(CALL, PATIENCE), in_turn(passing, passing, passing, response()))
    assert answer.status_code == 200
    assert calls == [CALL] * 4
    for n, pause in enumerate(pauses):
        assert 0.25 * 2**n <= pause <= 0.5 * 2**n


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500, 504])
def test_what_will_not_pass_is_not_asked_again(status: int) -> None:
    with pytest.raises(ServiceError) as refused:
        drive(ask(CALL, PATIENCE), in_turn(refusal(status, "some_code", x_request_id="abc")))
    assert (refused.value.status, refused.value.code, refused.value.request_id) == (status, "some_code", "abc")
    assert str(refused.value) == "no; wait"


def test_patience_ends_and_the_last_refusal_is_told() -> None:
    with pytest.raises(ServiceError) as refused:
        drive(ask(CALL, PATIENCE), in_turn(*[refusal(503)] * 4))
    assert (refused.value.code, refused.value.status) == ("busy", 503)


def test_a_slow_answer_is_not_asked_for_again() -> None:
    with pytest.raises(ServiceError) as refused:
        drive(ask(CALL, PATIENCE), in_turn(httpx.ReadTimeout("", request=REQUEST)))
    assert (refused.value.code, refused.value.status) == ("timeout", None)


def test_the_service_says_how_long_to_wait_in_seconds_or_by_a_date_and_within_bounds() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=8), usegmt=True)
    never = format_datetime(datetime.now(UTC) - timedelta(seconds=8), usegmt=True)
    for overrides, minimum, limit in [
        ("4", 4, 5),
        (soon, 6.5, 10),
        ("3600", 30, 30),
        ("9" * 400, 30, 30),
        (never, 0, 0.5),
        ("soon", 0, 0.5),
        ("-1", 0, 0.5),
    ]:
        pause = pause_before_retry(refusal(503, retry_after=overrides), 0, Patience())
        assert minimum <= pause <= limit, overrides


def test_pauses_do_not_outgrow_their_bound_and_differ_between_clients() -> None:
    assert pause_before_retry(refusal(429), 50, Patience(longest_pause=7)) == 7
    assert len({pause_before_retry(refusal(429), 0, Patience()) for _ in range(20)}) > 1


# Answers that are none of tilewise's.


@pytest.mark.parametrize(
    ("heard", "code", "said"),
    [
        (httpx.Response(200, text="<html>", request=REQUEST), "not_tilewise", "check the URL"),
        (httpx.Response(404, text="nothing", request=REQUEST), "not_tilewise", "404"),
        (httpx.Response(502, text="bad gateway", request=REQUEST), "not_tilewise", "502"),
        (httpx.Response(302, headers={"location": "http://else"}, request=REQUEST), "not_tilewise", "302"),
        (httpx.Response(400, json={"error": "text"}, request=REQUEST), "not_tilewise", "400"),
        (response(tilewise_api_version="2"), "other_version", "version 2"),
        (httpx.TooManyRedirects("no", request=REQUEST), "not_tilewise", "check the URL"),
    ],
)
def test_an_answer_of_another_program_or_version_is_told_from_a_refusal(
    heard: Heard, code: str, overrides: str
) -> None:
    with pytest.raises(ServiceError) as refused:
        drive(ask(CALL, PATIENCE), in_turn(heard))
    assert refused.value.code == code
    assert overrides in str(refused.value)


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
        drive(classify(Portion(("a.tif",), (b"x",)), {}, PATIENCE), in_turn(response(content=content)))


# How tiles become requests.


def test_a_list_is_cut_by_tiles_and_by_bytes_and_its_order_kept() -> None:
    tiles = [bytes(10)] * 5 + [bytes(95)] + [bytes(200)] + [bytes(10)]
    cut = list(portions(tiles, max_tiles=3, max_bytes=100))
    assert [[len(content) for content in portion.contents] for portion in cut] == [
        [10] * 3,
        [10] * 2,
        [95],
        [200],
        [10],
    ]
    assert [name for portion in cut for name in portion.names] == [str(n) for n in range(8)]


def test_files_are_read_only_when_their_request_is_made(tmp_path: Path) -> None:
    here = tmp_path / "here.tif"
    here.write_bytes(b"1")
    cut = portions([here, tmp_path / "gone.tif"], max_tiles=1, max_bytes=10)
    assert next(cut) == Portion((str(here),), (b"1",))
    with pytest.raises(FileNotFoundError):
        next(cut)


def test_arrays_files_and_arrays_of_other_bands_go_in_requests_of_their_own() -> None:
    rgb, all_bands = np.ones((3, 64, 64), np.uint16), np.ones((2, 13, 64, 64), np.uint16)
    cut = list(portions([rgb, rgb, all_bands, b"file", rgb], max_tiles=64, max_bytes=2**30))
    assert [portion.names for portion in cut] == [("0", "1"), ("2", "3"), ("4",), ("5",)]


def test_one_tile_is_a_list_of_one_and_no_tile_no_request() -> None:
    one = np.ones((13, 64, 64), np.uint16)
    assert [p.names for p in portions(b"file", 64, 100)] == [p.names for p in portions(one, 64, 100)] == [("0",)]
    assert list(portions([], 64, 100)) == []


@pytest.mark.parametrize("array", [np.ones((13, 64, 64)), np.ones((64, 64), np.uint16)], ids=["float", "flat"])
def test_an_array_of_another_kind_is_refused_before_it_is_sent(array: Any) -> None:
    with pytest.raises(TileShapeError, match="uint16"):
        list(portions(array, 64, 100))


def test_scale_and_offset_are_not_said_of_arrays() -> None:
    portion = Portion(("0",), (np.ones((13, 64, 64), np.uint16),))
    with pytest.raises(TilewiseError, match="leave out scale and offset"):
        drive(classify(portion, {"offset": -1000}, PATIENCE), in_turn())


def test_what_the_service_finds_too_large_is_sent_in_halves() -> None:
    def hear(call: Call) -> httpx.Response:
        names = [name for _, (name, _, _) in call.options["files"]]
        if len(names) > 2:
            return refusal(413, "too_large")
        error = {"code": "unreadable_image", "message": "no", "hint": ""}
        return response(content={"model": MODEL, "results": [{"name": name, "error": error} for name in names]})

    portion = Portion(tuple("abcde"), (b"x",) * 5)
    results, calls, _ = drive(classify(portion, {}, PATIENCE), hear)
    assert [result.name for result in results] == list("abcde")
    assert [len(call.options["files"]) for call in calls] == [5, 2, 3, 1, 2]
    with pytest.raises(ServiceError, match="no; wait"):
        drive(classify(Portion(("a",), (b"x",)), {}, PATIENCE), in_turn(refusal(413)))


# Scenes that become tasks.


def task(status: str) -> httpx.Response:
    return response(content={"status": status})


def accepted(location: str) -> httpx.Response:
    return response(202, {"status": "waiting"}, location=location)


def send(*answers: Heard, wait: float = 60) -> tuple[Any, list[Call], list[float]]:
    return drive(send_file(Path("s.tif"), "/scene", {"level": "L1C"}, "image/tiff", wait, PATIENCE), in_turn(*answers))


def test_a_task_is_looked_after_until_it_is_done() -> None:
    done = response(content={"the": "result"})
    answer, calls, pauses = send(accepted("/tasks/abc"), task("waiting"), task("running"), task("done"), done)
    assert answer is done
    assert [call.path for call in calls] == ["/scene", *["/tasks/abc"] * 3, "/tasks/abc/result"]
    assert calls[0].file == Path("s.tif")
    assert calls[0].options["params"] == {"name": "s.tif", "level": "L1C"}
    assert calls[-1].options["headers"]["Accept"] == "image/tiff"
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
    _, calls, _ = send(accepted("http://elsewhere:1/tasks/abc"), task("done"), response())
    assert [call.path for call in calls[1:]] == ["/tasks/abc", "/tasks/abc/result"]
    for location in ("http://elsewhere/steal", "", "/classify"):
        with pytest.raises(ServiceError, match="does not answer as tilewise does"):
            send(accepted(location))


# Readiness.


def test_readiness_is_waited_for() -> None:
    down = httpx.ConnectError("refused", request=REQUEST)
    ready, calls, pauses = drive(become_ready(60), in_turn(down, refusal(503), httpx.Response(200, request=REQUEST)))
    assert ready
    assert {call.path for call in calls} == {"/readyz"}
    assert len(pauses) == 2
    assert drive(become_ready(0), in_turn(down))[0] is False
