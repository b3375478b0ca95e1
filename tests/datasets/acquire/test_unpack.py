"""Unpacking zips that mean well, and zips that do not."""

import copy
import errno
import io
import re
import shutil
import stat
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from tilewise.datasets.acquire.download import BrokenZipError, UnpackLimits, unpack
from tilewise.datasets.core.errors import FetchError, TilewiseError, UnsafeArchiveError

TILES = {
    f"EuroSAT_MS/{label}/{label}_{number}.tif": (f"{label} {number} ".encode() * 400)
    for label in ("Forest", "River")
    for number in (1, 2)
}
INSIDE = sum(map(len, TILES.values()))


def make_zip(files: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", packing) as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return stream.getvalue()


def hostile(name: str, mode: int = stat.S_IFREG | 0o644) -> bytes:
    """Return a zip of good tiles and then a member of this name and kind."""
    stream = io.BytesIO(make_zip(TILES))
    with zipfile.ZipFile(stream, "a") as zipped:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name  # past the constructor, which would mend it
        info.external_attr = mode << 16
        zipped.writestr(info, b"../../escaped")
    return stream.getvalue()


def encrypted() -> bytes:
    """Return a zip whose headers say that its members need a password."""
    body = bytearray(make_zip(TILES))
    for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for match in re.finditer(re.escape(start), bytes(body)):
            body[match.start() + flags] |= 1
    return bytes(body)


def place(body: bytes, tmp_path: Path) -> tuple[Path, Path]:
    """Return the path of a zip and the folder, in one of its own, that it is unpacked into."""
    path, into = tmp_path / "a.zip", tmp_path / "deep" / "place" / "stage"
    path.write_bytes(body)
    into.parent.mkdir(parents=True)
    return path, into


def refuse(body: bytes, tmp_path: Path, limits: UnpackLimits | None = None) -> TilewiseError:
    """Return the refusal of a zip, which is one line and has left nothing outside the target."""
    path, into = place(body, tmp_path)
    with pytest.raises(TilewiseError) as caught:
        unpack(path, "EuroSAT_MS", into, limits or UnpackLimits())
    shutil.rmtree(into, ignore_errors=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "deep", "place"]
    assert "\n" not in str(caught.value)
    return caught.value


def test_only_what_is_below_the_folder_is_unpacked_and_its_progress_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    beside = {"EuroSAT_MS/": b"", "README.md": b"read me", "EuroSAT_MSX/Forest/Forest_3.tif": b"three"}
    path, into = place(make_zip(beside | TILES), tmp_path)
    assert unpack(path, "EuroSAT_MS", into, report=lambda *progress: told.append(progress)) == len(TILES)

    files = (path for path in into.rglob("*") if path.is_file())
    assert {path.relative_to(into).as_posix(): path.read_bytes() for path in files} == TILES
    assert told[-1] == ("unpack", INSIDE, INSIDE)


@pytest.mark.parametrize(
    "name",
    [
        "/escaped.tif",
        "EuroSAT_MS/../../escaped.tif",
        "EuroSAT_MS/./escaped.tif",
        "EuroSAT_MS//escaped.tif",
        "EuroSAT_MS\\..\\..\\escaped.tif",
        "C:escaped.tif",
        "EuroSAT_MS/Forest/a.tif\0.txt",
        "EuroSAT_MS/Forest/a\n.tif",
        "EuroSAT_MS/con/a.tif",
        "EuroSAT_MS/Forest/nul.tif",
        "EuroSAT_MS/Forest/COM1 .tif",
        "EuroSAT_MS/Forest/a.tif.",
        "EuroSAT_MS/Forest /a.tif",
    ],
)
def test_member_that_could_land_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    error = refuse(hostile(name), tmp_path)
    assert isinstance(error, UnsafeArchiveError)
    assert "could lead elsewhere" in str(error)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path: Path, kind: int) -> None:
    error = refuse(hostile("EuroSAT_MS/Forest/link.tif", kind | 0o777), tmp_path)
    assert isinstance(error, UnsafeArchiveError)
    assert "link or a device" in str(error)


def test_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    assert "occurs twice" in str(refuse(hostile("EuroSAT_MS/forest/FOREST_1.tif"), tmp_path))


def test_names_that_differ_in_their_composition_alone_are_refused(tmp_path: Path) -> None:
    body = make_zip({"EuroSAT_MS/Forest/\u00e9.tif": b"one", "EuroSAT_MS/Forest/e\u0301.tif": b"two"})
    assert "occurs twice" in str(refuse(body, tmp_path))


def test_file_that_is_also_a_folder_is_refused(tmp_path: Path) -> None:
    body = make_zip({"EuroSAT_MS/Forest": b"file", "EuroSAT_MS/Forest/Forest_1.tif": b"one"})
    assert isinstance(refuse(body, tmp_path), FetchError)


@pytest.mark.parametrize(
    ("body", "limits", "message"),
    [
        (make_zip(TILES), UnpackLimits(max_members=3), "4 members, more than 3"),
        (make_zip(TILES), UnpackLimits(max_bytes=1000), "1,000 are allowed"),
        (
            make_zip({"EuroSAT_MS/a/bomb": bytes(20_000_000)}, zipfile.ZIP_DEFLATED),
            UnpackLimits(),
            "would unpack to 20,000,000 bytes",
        ),
    ],
    ids=["members", "bytes", "ratio"],
)
def test_more_than_the_limits_is_refused(
    tmp_path: Path, body: bytes, limits: UnpackLimits, message: str
) -> None:
    error = refuse(body, tmp_path, limits)
    assert isinstance(error, UnsafeArchiveError)
    assert message in str(error)


def test_header_that_lies_about_the_size_gains_nothing(tmp_path: Path) -> None:
    body = make_zip({"EuroSAT_MS/Forest/Forest_1.tif": bytes(2_000_000)}, zipfile.ZIP_DEFLATED)
    lie = body.replace((2_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert lie != body
    assert isinstance(refuse(lie, tmp_path), BrokenZipError | UnsafeArchiveError)


def test_unpacking_stops_at_what_is_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that its header fools, as zipfile is not, is stopped by the count of what is written."""
    body = make_zip(TILES)
    infolist, open_member = zipfile.ZipFile.infolist, zipfile.ZipFile.open

    def shrunk(zipped: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
        members = [copy.copy(info) for info in infolist(zipped)]
        for info in members:
            info.file_size = 10
        return members

    monkeypatch.setattr(zipfile.ZipFile, "infolist", shrunk)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda zipped, info: open_member(zipped, info.filename))
    assert "more than it declares" in str(refuse(body, tmp_path))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>please log in</html>", "not a readable zip"),
        (make_zip(TILES)[:-30], "not a readable zip"),
        (make_zip(TILES).replace(b"Forest 1 ", b"Forest 7 "), "not a readable zip"),
        (make_zip({"other/Forest/Forest_1.tif": b"one"}), "is it the right archive"),
        (make_zip(TILES, zipfile.ZIP_BZIP2), "unsupported compression"),
        (encrypted(), "is encrypted"),
    ],
    ids=["html", "cut", "damaged", "another", "bzip2", "encrypted"],
)
def test_broken_or_foreign_zip_is_one_line(tmp_path: Path, body: bytes, message: str) -> None:
    error = refuse(body, tmp_path)
    assert isinstance(error, BrokenZipError)
    assert message in str(error)


def test_too_little_space_says_how_much_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=INSIDE - 1))
    assert f"{INSIDE:,} bytes are needed" in str(refuse(make_zip(TILES), tmp_path))


def test_disk_that_fills_up_is_one_line(tmp_path: Path) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path, into = place(make_zip(TILES), tmp_path)
    with pytest.raises(FetchError, match=f"disk is full; {INSIDE:,} bytes"):
        unpack(path, "EuroSAT_MS", into, report=fill)
