"""Fetching archives and split lists, from a real HTTP server on this machine and from local files."""

import errno
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from http_server import Server, serving

from tilewise.datasets.acquire import fetch as fetching
from tilewise.datasets.acquire.download import DownloadLimits
from tilewise.datasets.acquire.fetch import (
    ARCHIVES,
    FETCHABLE,
    Archive,
    Context,
    SplitList,
    fetch,
    fetch_archive,
    fetch_splits,
)
from tilewise.datasets.cli import main
from tilewise.datasets.core.errors import FetchError, TilewiseError, UnsafeArchiveError
from tilewise.datasets.readers.sources import Format, find_source

LIMITS = DownloadLimits(tries=3, backoff_s=0.0, timeout_s=5.0)
QUIETLY = Context(download=LIMITS)
TILES = {
    f"EuroSAT_MS/{label}/{label}_{number}.tif": (f"{label} {number} ".encode() * 400)
    for label in ("Forest", "River")
    for number in (1, 2)
}
SOME = {"EuroSAT_MS/Forest/Forest_9.tif": b"nine"}
UNSAFE = {"../escaped.tif": b"out"}
INSIDE = sum(map(len, TILES.values()))


class Listener:
    """Remembers what a fetch says, and the last progress of each step."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: dict[str, tuple[int, int | None]] = {}
        self.context = Context(self._hear, self.messages.append, LIMITS)

    def _hear(self, step: str, done: int, total: int | None) -> None:
        self.steps[step] = (done, total)


def failing_at(step: str, error: BaseException) -> Context:
    """Return a context in which this step fails."""

    def progress(at: str, done: int, total: int | None) -> None:
        if at == step:
            raise error

    return Context(progress, download=LIMITS)


def make_zip(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(zipfile.ZipInfo(name), content)  # the same bytes whenever it is made
    return stream.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    with serving(make_zip(TILES)) as server:
        yield server


@pytest.fixture
def archive(server: Server) -> Archive:
    md5 = hashlib.md5(server.body, usedforsecurity=False).hexdigest()
    return Archive(Format.EUROSAT_MS, "EuroSAT_MS", f"{server.url}/a.zip?download=1", md5, len(server.body))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "place" / "raw"


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def local(tmp_path: Path) -> Callable[[dict[str, bytes]], str]:
    """Write a local zip of these files and return its path."""

    def write(files: dict[str, bytes]) -> str:
        path = tmp_path / "local.zip"
        path.write_bytes(make_zip(files))
        return str(path)

    return write


Local = Callable[[dict[str, bytes]], str]


def unpacked(out: Path) -> dict[str, bytes]:
    """Return every file below `out` but the card."""
    files = (path for path in out.rglob("*") if path.is_file() and path.name != "dataset.json")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def record(folder: Path) -> dict[str, object]:
    card = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    return dict(card["extra"]["archive"])


def refusal(caught: pytest.ExceptionInfo[TilewiseError]) -> str:
    """Return the message, which the user sees as one line."""
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_published_archive_is_unpacked_and_given_a_card(
    archive: Archive, server: Server, out: Path, listener: Listener
) -> None:
    folder = fetch_archive(archive, out, None, listener.context)

    assert folder == out / "EuroSAT_MS"
    assert unpacked(out) == TILES  # and neither the zip nor a part is left
    source = find_source(folder)
    assert (source.format, source.synthetic, len(source.files())) == (Format.EUROSAT_MS, False, len(TILES))
    assert record(folder) == {
        "source": f"{server.url}/a.zip",
        "source_id": hashlib.sha256(archive.url.encode()).hexdigest()[:12],
        "published": True,
        "sha256": hashlib.sha256(server.body).hexdigest(),
        "md5": archive.md5,
        "size": archive.size,
        "files": len(TILES),
    }
    assert listener.messages == []
    whole = (archive.size, archive.size)
    assert listener.steps == {"download": whole, "verify": whole, "unpack": (INSIDE, INSIDE)}


def test_second_fetch_asks_the_server_nothing_and_says_so(
    archive: Archive, server: Server, out: Path, listener: Listener
) -> None:
    for source in (None, None, archive.url):
        assert fetch_archive(archive, out, source, listener.context) == out / "EuroSAT_MS"
    assert len(server.requests) == 1
    assert ["already complete" in note for note in listener.messages] == [True, True]


def test_data_set_that_lost_files_is_fetched_again(archive: Archive, out: Path, listener: Listener) -> None:
    folder = fetch_archive(archive, out, None, listener.context)
    next(folder.glob("*/*.tif")).unlink()
    fetch_archive(archive, out, None, listener.context)

    assert unpacked(out) == TILES
    assert "only 3 of 4 files" in listener.messages[-1]


def test_wrong_checksum_removes_the_file_so_that_the_next_call_starts_clean(
    archive: Archive, server: Server, out: Path
) -> None:
    right, server.body = server.body, server.body[:-1] + b"?"
    with pytest.raises(FetchError) as caught:
        fetch_archive(archive, out, context=QUIETLY)
    assert re.search("checksum is not the published one.*removed.*--from", refusal(caught))
    assert list(out.iterdir()) == []

    server.body = right
    fetch_archive(archive, out, context=QUIETLY)
    assert server.requests == [None, None]
    assert unpacked(out) == TILES


@pytest.mark.parametrize(
    ("step", "error", "raised", "left"),
    [
        ("download", KeyboardInterrupt(), KeyboardInterrupt, ".part"),
        ("verify", KeyboardInterrupt(), KeyboardInterrupt, ".zip"),
        ("unpack", KeyboardInterrupt(), KeyboardInterrupt, ".zip"),
        ("unpack", OSError(errno.ENOSPC, "full"), FetchError, ".zip"),
    ],
    ids=["download", "verify", "unpack", "disk-full"],
)
def test_interrupted_fetch_keeps_the_download_and_no_half_made_data_set(
    archive: Archive, server: Server, out: Path, step: str, error: BaseException, raised: type, left: str
) -> None:
    with pytest.raises(raised):
        fetch_archive(archive, out, None, failing_at(step, error))
    assert [path.suffix for path in out.iterdir()] == [left]

    fetch_archive(archive, out, context=QUIETLY)
    assert unpacked(out) == TILES
    assert server.requests.count(None) == 1  # what was here was not asked for again


def test_what_an_interrupted_unpack_left_is_cleaned_up(archive: Archive, out: Path) -> None:
    left = out / ".EuroSAT_MS.unpacking" / "EuroSAT_MS" / "Forest" / "Forest_1.tif"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    fetch_archive(archive, out, context=QUIETLY)
    assert unpacked(out) == TILES


def test_local_zip_is_used_as_it_is_and_its_checksum_recorded(
    archive: Archive, server: Server, out: Path, listener: Listener, local: Local
) -> None:
    path = Path(local(SOME))
    folder = fetch_archive(archive, out, str(path), listener.context)

    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert unpacked(out) == SOME
    assert record(folder)["sha256"] == sha256
    assert record(folder)["published"] is False
    assert str(path.parent) not in (folder / "dataset.json").read_text(encoding="utf-8")
    [warning] = listener.messages
    assert "not the published eurosat-ms" in warning
    assert sha256 in warning

    fetch_archive(archive, out, str(path), listener.context)
    assert "already complete" in listener.messages[-1]
    assert server.requests == []
    assert path.exists()


def test_local_zip_that_is_the_published_one_needs_no_warning(
    archive: Archive, server: Server, out: Path, listener: Listener, local: Local
) -> None:
    folder = fetch_archive(archive, out, local(TILES), listener.context)
    assert listener.messages == []
    assert record(folder)["published"] is True

    fetch_archive(archive, out, None, listener.context)
    assert server.requests == []


def test_another_archive_replaces_what_a_fetch_has_made(archive: Archive, out: Path, local: Local) -> None:
    fetch_archive(archive, out, local(SOME), QUIETLY)
    fetch_archive(archive, out, None, QUIETLY)
    assert unpacked(out) == TILES


def test_failed_unpack_leaves_the_data_set_and_the_local_zip_that_were_there(
    archive: Archive, out: Path, local: Local
) -> None:
    fetch_archive(archive, out, None, QUIETLY)
    with pytest.raises(UnsafeArchiveError):
        fetch_archive(archive, out, local(UNSAFE), QUIETLY)
    assert unpacked(out) == TILES
    assert (out.parent.parent / "local.zip").exists()


def test_folder_that_no_fetch_has_made_is_left_alone(archive: Archive, server: Server, out: Path) -> None:
    own = out / "EuroSAT_MS" / "Forest" / "mine.tif"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    with pytest.raises(FetchError) as caught:
        fetch_archive(archive, out, context=QUIETLY)
    assert "was not fetched" in refusal(caught)
    assert own.read_bytes() == b"mine"
    assert server.requests == []


def test_other_url_is_fetched_once_and_recorded_without_its_secrets(
    archive: Archive, server: Server, out: Path, listener: Listener
) -> None:
    server.body = make_zip(SOME)
    url = server.url.replace("//", "//user:password@") + "/some.zip?token=secret"
    folder = fetch_archive(archive, out, url, listener.context)
    fetch_archive(archive, out, url, listener.context)

    assert unpacked(out) == SOME
    assert len(server.requests) == 1
    assert record(folder)["source"] == f"{server.url}/some.zip"
    seen = (folder / "dataset.json").read_text(encoding="utf-8") + "".join(listener.messages)
    assert not re.search("password|secret", seen)


def test_parts_of_two_sources_are_not_mixed(archive: Archive, server: Server, out: Path) -> None:
    server.cut_after, server.cuts = 500, 3
    with pytest.raises(FetchError):
        fetch_archive(archive, out, None, QUIETLY)
    server.body = make_zip(SOME)
    fetch_archive(archive, out, f"{server.url}/other.zip", QUIETLY)
    assert server.requests[-1] is None


def test_bad_download_is_removed_so_that_the_next_call_starts_clean(
    archive: Archive, server: Server, out: Path, listener: Listener
) -> None:
    right, server.body = server.body, make_zip(UNSAFE)
    with pytest.raises(UnsafeArchiveError):
        fetch_archive(archive, out, f"{server.url}/other.zip", listener.context)
    assert list(out.iterdir()) == []
    assert "removed" in listener.messages[-1]

    server.body = right
    fetch_archive(archive, out, f"{server.url}/other.zip", listener.context)
    assert unpacked(out) == TILES


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("file:///etc/passwd", "only http, https and local paths"),
        (".", "is a folder"),
        ("no/such.zip", "no such file"),
    ],
)
def test_source_that_is_no_url_and_no_file_is_refused(
    archive: Archive, out: Path, source: str, message: str
) -> None:
    with pytest.raises(FetchError) as caught:
        fetch_archive(archive, out, source, QUIETLY)
    assert message in refusal(caught)


def test_out_that_is_a_file_is_one_line(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("a file")
    with pytest.raises(FetchError) as caught:
        fetch_archive(archive, tmp_path / "raw", context=QUIETLY)
    assert "raw" in refusal(caught)


def test_unknown_name_lists_what_there_is(out: Path) -> None:
    with pytest.raises(FetchError) as caught:
        fetch("bigearthnet", out)
    assert all(name in refusal(caught) for name in FETCHABLE)


NAMES = b"Forest_1.jpg\nRiver_2.jpg\n"
LISTS = (SplitList("train.txt", hashlib.sha256(NAMES).hexdigest(), len(NAMES)),)


@pytest.fixture
def publisher(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server as the one that publishes the lists."""
    monkeypatch.setattr(fetching, "SPLITS_URL", server.url)
    server.body = NAMES
    return server


def test_split_lists_are_fetched_once(publisher: Server, out: Path, listener: Listener) -> None:
    publisher.cut_after, publisher.cuts = 10, 1
    assert fetch_splits(LISTS, out, None, listener.context) == out / "splits"
    fetch_splits(LISTS, out, None, listener.context)

    assert unpacked(out) == {"splits/train.txt": NAMES}
    assert publisher.requests == [None, "bytes=10-"]
    assert "already complete" in listener.messages[-1]


def test_split_list_with_a_wrong_checksum_is_removed(publisher: Server, out: Path) -> None:
    publisher.body = NAMES.replace(b"1", b"7")
    with pytest.raises(FetchError) as caught:
        fetch_splits(LISTS, out, context=QUIETLY)
    assert "checksum" in refusal(caught)
    assert unpacked(out) == {}


def test_split_lists_from_a_url_or_a_folder_may_differ_but_that_is_said(
    server: Server, tmp_path: Path, out: Path, listener: Listener
) -> None:
    server.body = b"Forest_7.jpg\n"
    fetch_splits(LISTS, out, f"{server.url}/base/", listener.context)
    assert server.paths == ["/base/train.txt"]
    assert unpacked(out) == {"splits/train.txt": b"Forest_7.jpg\n"}
    assert "not the published list" in listener.messages[-1]

    (tmp_path / "train.txt").write_bytes(NAMES)
    fetch_splits(LISTS, out, str(tmp_path), listener.context)
    assert unpacked(out) == {"splits/train.txt": NAMES}
    assert len(listener.messages) == 1


def test_page_that_is_no_list_is_refused(server: Server, out: Path) -> None:
    server.body = b"<html>please log in</html>"
    with pytest.raises(FetchError) as caught:
        fetch_splits(LISTS, out, server.url, QUIETLY)
    assert "not a list of tile names" in refusal(caught)
    assert unpacked(out) == {}


def test_folder_without_the_lists_is_one_line_that_names_from(tmp_path: Path, out: Path) -> None:
    with pytest.raises(FetchError) as caught:
        fetch_splits(LISTS, out, str(tmp_path), QUIETLY)
    assert re.search("train.txt: there is no such file.*--from", refusal(caught))


def test_command_prints_the_folder_and_its_notes_apart(
    archive: Archive, out: Path, local: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHIVES, "eurosat-ms", archive)
    done = CliRunner().invoke(main, ["fetch", "eurosat-ms", "--from", local(SOME), "--out", str(out)])
    assert done.exit_code == 0
    assert done.stdout == f"eurosat-ms is in {out / 'EuroSAT_MS'}\n"
    assert "\nwarning: local.zip is not the published eurosat-ms" in f"\n{done.stderr}"
    assert unpacked(out) == SOME


def test_command_fails_with_one_line(publisher: Server, out: Path) -> None:
    publisher.statuses = [404]
    done = CliRunner().invoke(main, ["fetch", "eurosat-splits", "--out", str(out)])
    assert done.exit_code == 1
    assert re.fullmatch(r"error: .*HTTP 404.*--from URL-or-local-folder.*\n", done.stderr)
