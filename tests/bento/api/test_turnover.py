"""Connections are closed after a random number of requests, so that they spread over the processes."""

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from servers import Server, served


def lives(server: Server, connections: int, limit: int) -> list[int]:
    """Return after how many requests each of several connections is closed; `limit` if none closes it."""
    found = []
    for _ in range(connections):
        with httpx.Client(trust_env=False, timeout=30) as client:
            answers = (client.get(f"{server.url}/model") for _ in range(limit))
            closed = (
                n for n, answer in enumerate(answers, start=1) if answer.headers.get("connection") == "close"
            )
            found.append(next(closed, limit))
    return found


@pytest.fixture(scope="module")
def two_processes(linear_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service in two processes that hands a connection over after at most eight requests."""
    with served(
        linear_model, tmp_path_factory.mktemp("two"), TILEWISE_WORKERS="2", TILEWISE_TURNOVER="8"
    ) as server:
        yield server


@pytest.mark.slow
def test_where_several_processes_serve_each_connection_is_closed_at_the_latest_after_so_many_requests(
    two_processes: Server,
) -> None:
    found = lives(two_processes, connections=12, limit=9)
    assert max(found) <= 8
    assert len(set(found)) > 1, "those that are opened together must not come back together"


@pytest.mark.slow
def test_a_single_process_keeps_its_connections(linear_model: Path, tmp_path: Path) -> None:
    with served(linear_model, tmp_path, TILEWISE_WORKERS="1", TILEWISE_TURNOVER="3") as server:
        assert lives(server, connections=2, limit=9) == [9, 9]


@pytest.mark.slow
def test_a_request_of_many_tiles_counts_as_many(two_processes: Server) -> None:
    body = np.ones((16, 13, 64, 64), np.uint16)
    content = io.BytesIO()
    np.save(content, body)
    headers = {"Content-Type": "application/octet-stream"}
    for _ in range(4):
        answer = httpx.post(
            f"{two_processes.url}/classify",
            content=content.getvalue(),
            headers=headers,
            trust_env=False,
            timeout=30,
        )
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
