"""Downloading, against a real HTTP server on this machine."""

import errno
import shutil
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from http_server import Server, serving

from tilewise.datasets.acquire.download import Download, DownloadLimits, download, without_secrets
from tilewise.datasets.core.errors import FetchError

BODY = bytes(range(256)) * 50
SIZE = len(BODY)
LIMITS = DownloadLimits(tries=3, backoff_s=0.0, timeout_s=5.0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    with serving(BODY) as server:
        yield server


@pytest.fixture
def job(server: Server, tmp_path: Path) -> Download:
    return Download(f"{server.url}/a.zip?token=secret", tmp_path / "a.zip", SIZE, "go elsewhere", LIMITS)


def refusal(job: Download) -> str:
    """Return the message, which the user sees as one line."""
    with pytest.raises(FetchError) as caught:
        download(job)
    assert not job.target.exists()
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    return str(caught.value)


def is_whole(job: Download) -> bool:
    return job.target.read_bytes() == BODY and not job.part.exists()


def test_file_arrives_whole_and_its_progress_is_told(job: Download) -> None:
    told: list[tuple[str, int, int | None]] = []
    download(job, lambda *progress: told.append(progress))
    assert is_whole(job)
    assert told[-1] == ("download", SIZE, SIZE)


@pytest.mark.parametrize(
    ("behaviour", "requests"),
    [
        ({"cuts": 2}, [None, "bytes=5000-", "bytes=10000-"]),
        ({"cuts": 1, "says_length": False}, [None, "bytes=5000-"]),  # looks like the end of the file
        ({"cuts": 1, "ranges": False}, [None, "bytes=5000-"]),  # starts again
        ({"cuts": 1, "shift": 7}, [None, "bytes=5000-", None]),  # is not appended
        ({"statuses": [500, 429]}, [None] * 3),
    ],
    ids=["twice", "hidden", "without-ranges", "wrong-range", "status"],
)
def test_failure_that_passes_is_tried_again(
    job: Download, server: Server, behaviour: dict[str, Any], requests: list[str | None]
) -> None:
    server.cut_after = 5000
    vars(server).update(behaviour)
    download(job)
    assert server.requests == requests
    assert is_whole(job)


def test_next_call_goes_on_where_the_last_one_gave_up(job: Download, server: Server) -> None:
    server.cut_after, server.cuts = 2000, 3
    assert "tries: 3, 6,000 bytes are kept" in refusal(job)
    assert job.part.read_bytes() == BODY[:6000]

    download(job)
    assert server.requests[-1] == "bytes=6000-"
    assert is_whole(job)


@pytest.mark.parametrize(
    ("size", "part", "requests"),
    [
        (SIZE, BODY, []),
        (None, BODY, [f"bytes={SIZE}-"]),  # answered 416
        (SIZE, bytes(SIZE + 1), [None]),
    ],
    ids=["whole", "whole-unknown", "too-long"],
)
def test_part_is_used_if_it_is_whole_and_thrown_away_if_it_is_too_long(
    job: Download, server: Server, size: int | None, part: bytes, requests: list[str | None]
) -> None:
    job = replace(job, size=size)
    job.part.write_bytes(part)
    download(job)
    assert server.requests == requests
    assert is_whole(job)


def test_redirect_is_followed(job: Download, server: Server) -> None:
    server.redirect_to = f"{server.url}/elsewhere.zip"
    download(replace(job, url=f"{server.url}/redirect"))
    assert server.paths == ["/redirect", "/elsewhere.zip"]
    assert is_whole(job)


def test_redirect_to_another_scheme_is_refused(job: Download, server: Server) -> None:
    server.redirect_to = "ftp://127.0.0.1/a.zip"
    assert "ftp://" in refusal(replace(job, url=f"{server.url}/redirect"))
    assert len(server.requests) == 1


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, 3)])
def test_http_error_names_the_url_the_reason_and_the_way_out(
    job: Download, server: Server, status: int, requests: int
) -> None:
    server.statuses = [status] * requests
    message = refusal(job)
    assert message.startswith(f"{server.url}/a.zip: HTTP {status}")
    assert message.endswith("; go elsewhere")
    assert len(server.requests) == requests
    assert not job.part.exists()


def test_no_network_is_one_line(job: Download) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens here
        message = refusal(replace(job, url=f"http://127.0.0.1:{taken.getsockname()[1]}/a.zip?token=secret"))
    assert "refused (tries: 3); go elsewhere" in message


@pytest.mark.parametrize("url", ["http://", "http://127.0.0.1:port/a.zip"])
def test_malformed_url_is_one_line(job: Download, url: str) -> None:
    assert refusal(replace(job, url=url)).endswith("; go elsewhere")


@pytest.mark.parametrize(
    ("size", "limit", "message"),
    [(SIZE - 1, SIZE, "the published file has 12,799"), (None, 1000, "more than the 1,000 allowed")],
)
def test_length_is_checked_before_a_byte_is_taken(
    job: Download, size: int | None, limit: int, message: str
) -> None:
    assert message in refusal(replace(job, size=size, limits=replace(LIMITS, max_bytes=limit)))
    assert not job.part.exists()


@pytest.mark.parametrize("size", [SIZE, None], ids=["published", "unknown"])
def test_endless_stream_is_stopped_at_the_bound(job: Download, server: Server, size: int | None) -> None:
    server.body += b"x" * 10_000_000
    server.says_length = False
    job = replace(job, size=size, limits=replace(LIMITS, max_bytes=SIZE))
    assert f"more than the {SIZE:,} bytes" in refusal(job)
    assert not job.part.exists()


def test_length_that_the_server_does_not_keep_ends_after_bounded_tries(job: Download, server: Server) -> None:
    server.ranges = False
    server.said_length = SIZE + 50
    assert "tries: 3" in refusal(replace(job, size=None))
    assert len(server.requests) == LIMITS.tries


def test_too_little_space_says_how_much_is_needed(
    job: Download, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.says_length = False  # the published size will do
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=SIZE - 1))
    assert f"{SIZE:,} bytes are needed" in refusal(job)
    assert not job.part.exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left"), f"the disk is full; {SIZE:,} bytes of free space"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_what_the_disk_refuses_is_one_line_and_keeps_the_part(
    job: Download, error: OSError, message: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    with pytest.raises(FetchError, match=message):
        download(job, fail)
    assert job.part.exists()


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("https://user:password@a.org/b.zip?token=1#c", "https://a.org/b.zip"),
        ("data/b?c.zip", "data/b?c.zip"),
    ],
)
def test_secrets_of_a_url_are_not_shown(source: str, shown: str) -> None:
    assert without_secrets(source) == shown
