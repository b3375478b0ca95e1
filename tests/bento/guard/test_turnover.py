"""Connections are handed over after a number of requests, politely."""

from pathlib import Path

import httpx
import pytest
from serving import served


@pytest.mark.parametrize(("workers", "closes"), [("2", [2, 5]), ("1", [])])
def test_every_so_many_requests_a_connection_is_closed_where_several_processes_serve(
    workers: str, closes: list[int], linear_model: Path, tmp_path: Path
) -> None:
    settings = {"SENTILE_WORKERS": workers, "SENTILE_TURNOVER": "3"}
    with served(linear_model, tmp_path, **settings) as server, httpx.Client(trust_env=False) as client:
        answers = [client.get(f"{server.url}/model") for _ in range(7)]
    assert all(answer.status_code == 200 for answer in answers)
    assert [n for n, answer in enumerate(answers) if answer.headers.get("connection") == "close"] == closes
