"""Finding scenes: in folders, by patterns and lists; no source is skipped silently."""

import pickle
from pathlib import Path

import pytest
from rasters import write_l1c

from tilewise.datasets.core.errors import NoTilesError, SceneError
from tilewise.datasets.scenes import Kind, find_scenes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "north/a.tif",
        "south/a.tif",
        "south/b.TIFF",
        ".hidden/x.tif",
        "south/.part.tif",
        "a.classes.tif",
    ):
        write_l1c(tmp_path / name, corner=(600_000, 5_000_000))
    (tmp_path / "notes.md").write_text("hello")
    (tmp_path / "folder.tif").mkdir()
    return tmp_path


def names(*places: object, skip: tuple[str, ...] = (".classes.tif",)) -> list[str]:
    return [scene.name for scene in find_scenes([str(place) for place in places], skip=skip)]


def test_folders_are_walked_in_a_fixed_order_past_hidden_files_and_earlier_results(folder: Path) -> None:
    assert names(folder) == ["north-a", "south-a", "b"]
    assert "a.classes" in names(folder, skip=())


def test_patterns_files_and_lists_name_scenes_and_each_is_taken_once(folder: Path) -> None:
    assert names(folder / "*" / "a.tif") == ["north-a", "south-a"]
    assert names(folder / "**" / "*.TIFF") == ["b"]
    assert names(folder / "north" / "a.tif", folder / "north", folder / "north" / "..") == [
        "north-a",
        "south-a",
        "b",
    ]
    listed = folder / "list.txt"
    listed.write_text(f"# mine\nnorth/a.tif\n\n{folder / 'south' / 'b.TIFF'}\nsouth\n")
    assert names(listed) == ["north-a", "b", "south-a"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.tif", "there is no such file"),
        ("no/such/*.tif", "no file matches"),
        ("notes.md", "neither a GeoTIFF, a product"),
    ],
)
def test_a_source_that_is_not_a_scene_is_reported_and_the_others_are_read(
    folder: Path, source: str, message: str
) -> None:
    odd, valid = find_scenes([folder / source, folder / "north" / "a.tif"])
    with pytest.raises(SceneError, match=message), odd.open():
        pass
    with valid.open() as scene:
        assert scene.height == 64


def test_a_source_without_any_scene_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoTilesError, match="no GeoTIFF"):
        find_scenes([tmp_path])


def test_a_scene_can_be_sent_to_another_process(folder: Path) -> None:
    (found,) = find_scenes([folder / "north"])
    sent = pickle.loads(pickle.dumps(found))  # noqa: S301 - our own bytes
    assert sent == found
    assert sent.kind is Kind.STACKED
    assert sent.fingerprint() == found.fingerprint()
