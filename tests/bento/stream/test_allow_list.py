"""Where notices may lead, and where they may not."""

from pathlib import Path

import pytest

from tilewise.bento.stream.allow_list import AllowList
from tilewise.datasets.core.errors import NoticeError, TilewiseError


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "a.tif").touch()
    (tmp_path / "secret.tif").touch()
    return folder


@pytest.fixture
def allowed(archive: Path) -> AllowList:
    return AllowList.parse(
        [
            str(archive),
            "https://cogs.example/s2",
            "s3://tiles/l2a/=https://tiles.s3.eu-central-1.amazonaws.com/l2a/",
        ]
    )


def test_paths_below_an_allowed_folder_are_read(allowed: AllowList, archive: Path) -> None:
    for overrides in (str(archive / "a.tif"), "a.tif", f"file://{archive}/a.tif", f"{archive}/sub/../a.tif"):
        assert allowed.resolve(overrides) == archive / "a.tif"


@pytest.mark.parametrize(
    "overrides",
    [
        "/etc/passwd",
        "../secret.tif",
        "{archive}/../secret.tif",
        "{archive}",
        "{archive}x/a.tif",
        "file:///etc/passwd",
        "file:///%2e%2e/etc/passwd",
        "/vsicurl/http://169.254.169.254/latest/meta-data",
        "a.tif\x00",
        "file:///a%00.tif",
        "x" * 5000,
        "",
        "line\nline",
        "n" * 300 + ".tif",
        "file:///" + "%C3%BC" * 200,
        "\ud800.tif",
    ],
)
def test_other_paths_are_refused(allowed: AllowList, archive: Path, overrides: str) -> None:
    with pytest.raises(NoticeError):
        allowed.resolve(overrides.replace("{archive}", str(archive)))


def test_links_that_lead_out_are_refused(allowed: AllowList, archive: Path) -> None:
    (archive / "link.tif").symlink_to(archive.parent / "secret.tif")
    (archive / "loop").symlink_to(archive / "loop")
    with pytest.raises(NoticeError, match="not on the allow-list of this consumer"):
        allowed.resolve(str(archive / "link.tif"))
    with pytest.raises(NoticeError):
        allowed.resolve("loop/a.tif/../../../secret.tif")


def test_addresses_with_an_allowed_beginning_are_read_as_the_operator_says(allowed: AllowList) -> None:
    assert allowed.resolve("https://cogs.example/s2/a.json?sig=x") == "https://cogs.example/s2/a.json?sig=x"
    assert allowed.resolve("HTTPS://Cogs.Example/s2/a.json") == "https://cogs.example/s2/a.json"
    assert (
        allowed.resolve("s3://tiles/l2a/a/B02.tif")
        == "https://tiles.s3.eu-central-1.amazonaws.com/l2a/a/B02.tif"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        "https://cogs.example/s2",
        "https://cogs.example/s2x/a.json",
        "https://cogs.example/other/a.json",
        "https://cogs.example/s2/../other/a.json",
        "https://cogs.example/s2/%2e%2e/other/a.json",
        "https://cogs.example/s2/..%5cother/a.json",
        "https://cogs.example/s2/\\..\\a.json",
        "https://cogs.example@evil.example/s2/a.json",
        "https://user:word@cogs.example/s2/a.json",
        "https://cogs.example.evil.example/s2/a.json",
        "https://cogs.example:8443/s2/a.json",
        "http://cogs.example/s2/a.json",
        "http://169.254.169.254/latest/meta-data",
        "https://[::1/s2/a.json",
        "https:///s2/a.json",
        "s3://other/l2a/a.json",
        "s3://tiles/l1c/a.json",
        "gs://tiles/l2a/a.json",
        "ftp://cogs.example/s2/a.json",
        "data:application/json,{}",
        "//cogs.example/s2/a.json",
    ],
)
def test_other_addresses_are_refused(allowed: AllowList, overrides: str) -> None:
    with pytest.raises(NoticeError):
        allowed.resolve(overrides)


def test_refusals_tell_no_keys(allowed: AllowList) -> None:
    with pytest.raises(NoticeError) as told:
        allowed.resolve("https://alice:hunter2@evil.example/a.json?sig=topsecret")
    assert "hunter2" not in str(told.value)
    assert "topsecret" not in str(told.value)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ([], "the allow-list is empty"),
        (["/no/such/folder"], "there is no such folder"),
        (["s3://tiles/l2a/"], "say how: s3://tiles/l2a/=https://"),
        (["ftp://host/x/"], "name http"),
        (["https://host/a/?x=1"], "without a query"),
    ],
)
def test_an_operator_is_told_what_cannot_be_allowed(overrides: list[str], why: str) -> None:
    with pytest.raises(TilewiseError, match=why):
        AllowList.parse(overrides)
