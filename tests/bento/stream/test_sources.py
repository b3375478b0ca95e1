"""Which scene a notice tells of, and that nothing of it lies elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest

from tilewise.bento.stream.allow_list import AllowList
from tilewise.bento.stream.notices import Notice, scene_of
from tilewise.datasets.acquire.synthetic import synthesise_scene
from tilewise.datasets.core.errors import NoticeError, SceneError
from tilewise.datasets.core.radiometry import ReadOptions
from tilewise.datasets.scenes import SceneOptions
from tilewise.datasets.scenes.search import Kind

OPTIONS = SceneOptions()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    for name in ("a", "b"):
        (folder / name).mkdir()
        synthesise_scene(folder / name / f"{name}.tif", 1, 1, 1)
    synthesise_scene(folder / "b" / "c.tif", 2, 1, 1)
    return folder


@pytest.fixture(scope="module")
def allowed(archive: Path) -> AllowList:
    return AllowList.parse([str(archive), "s3://cogs/=https://cogs.example/"])


def item(**hrefs: str) -> dict[str, Any]:
    assets = {key: {"href": href} for key, href in hrefs.items()}
    properties = {"processing:level": "L2A", "s2:processing_baseline": "03.01"}
    return {"type": "Feature", "id": "S2A_1", "collection": "l2a", "properties": properties, "assets": assets}


def test_a_file_and_a_folder_of_one_scene_are_read(allowed: AllowList, archive: Path) -> None:
    told = scene_of(Notice(str(archive / "a" / "a.tif")), allowed, OPTIONS)
    assert told.location == str(archive / "a" / "a.tif")
    assert told.folder.startswith("a-")
    assert scene_of(Notice("a"), allowed, OPTIONS).source.paths == told.source.paths
    with told.source.open() as scene:
        assert (scene.width, scene.height) == (64, 64)


def test_a_scene_has_the_same_folder_however_it_is_named(allowed: AllowList, archive: Path) -> None:
    told = [
        scene_of(Notice(overrides), allowed, OPTIONS)
        for overrides in ("a/a.tif", str(archive / "b" / ".." / "a" / "a.tif"))
    ]
    assert told[0] == told[1]
    other = scene_of(Notice("a/a.tif", overrides=ReadOptions(offset=-1000)), allowed, OPTIONS)
    assert other.folder != told[0].folder, "it is read in another way"


@pytest.mark.parametrize("name", ["list.txt", "archive.zip", "b"])
def test_what_is_no_single_scene_is_refused(allowed: AllowList, archive: Path, name: str) -> None:
    if "." in name:
        (archive / name).write_text("/etc/passwd\n")
    with pytest.raises(NoticeError, match=r"not a scene|2 scenes"):
        scene_of(Notice(name), allowed, OPTIONS)


def test_a_folder_of_folders_is_not_walked(archive: Path) -> None:
    allowed = AllowList.parse([str(archive.parent)])
    with pytest.raises(NoticeError, match="not a scene"):
        scene_of(Notice(str(archive)), allowed, OPTIONS)


def test_a_scene_that_is_not_there_yet_may_come(allowed: AllowList) -> None:
    with pytest.raises(SceneError, match="no such file") as told:
        scene_of(Notice("late.tif"), allowed, OPTIONS)
    assert not isinstance(told.value, NoticeError)


def test_an_item_keeps_only_what_may_be_read(allowed: AllowList) -> None:
    sent = item(
        B02="s3://cogs/a/B02.tif",
        B03="https://cogs.example/x.tif",
        thumbnail="https://elsewhere.example/t.jpg",
    )
    sent["assets"]["B03"]["href"] = "s3://cogs/a/B03.tif"
    told = scene_of(Notice(item=sent), allowed, OPTIONS)
    assert told.source.kind is Kind.STAC
    assert told.source.paths == ("https://cogs.example/a/B02.tif", "https://cogs.example/a/B03.tif")
    assert told.source.item is not None
    assert "elsewhere" not in told.source.item.text


@pytest.mark.parametrize(
    "href", ["https://elsewhere.example/B03.tif", "/etc/passwd", "../../secret.tif", "s3://x/B03.tif"]
)
def test_an_item_with_a_band_that_may_not_be_read_is_refused_whole(allowed: AllowList, href: str) -> None:
    with pytest.raises(
        NoticeError, match=r"S2A_1: B03 cannot be read: .*not on the allow-list of this consumer"
    ):
        scene_of(Notice(item=item(B02="s3://cogs/a/B02.tif", B03=href)), allowed, OPTIONS)


def test_relative_hrefs_start_where_the_item_lies(allowed: AllowList, archive: Path) -> None:
    sent = item(B02="./B02.tif")
    for here, expected in (
        ("s3://cogs/a/item.json", "https://cogs.example/a/B02.tif"),
        (f"{archive}/a/item.json", None),
    ):
        sent["links"] = [{"rel": "self", "href": here}]
        told = scene_of(Notice(item=sent), allowed, OPTIONS)
        assert told.source.paths == (expected or archive / "a" / "B02.tif",)
    (archive / "a" / "item.json").write_text(json.dumps(item(B02="B02.tif")))
    assert scene_of(Notice("a/item.json"), allowed, OPTIONS).source.paths == (archive / "a" / "B02.tif",)


def test_names_of_results_hold_no_paths(allowed: AllowList) -> None:
    sent = item(B02="s3://cogs/a/B02.tif") | {"id": "../../etc/cron.d/x" + "y" * 500}
    told = scene_of(Notice(item=sent), allowed, OPTIONS)
    assert "/" not in told.folder + told.source.name
    assert not told.folder.startswith(".")
    assert len(told.folder) < 120


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"type": "Catalog", "links": []}', '{"type": "Feature", "assets": []}']
)
def test_json_that_is_no_item_is_refused(allowed: AllowList, archive: Path, content: str) -> None:
    (archive / "a" / "odd.json").write_text(content)
    with pytest.raises(NoticeError):
        scene_of(Notice("a/odd.json"), allowed, OPTIONS)
