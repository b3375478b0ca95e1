"""Which model file is used when one is named, and when none is."""

import os
from pathlib import Path

import pytest

from tilewise.datasets.core.errors import ModelFileError
from tilewise.models.model_file import find_model


def exported(path: Path, age: float) -> Path:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    return path


def test_a_model_that_was_named_is_used_whatever_else_lies_there(in_folder: Path) -> None:
    exported(in_folder / "artifacts" / "run" / "model.onnx", age=0)
    assert find_model(Path("mine.onnx")) == Path("mine.onnx")


def test_the_newest_exported_model_is_used_when_none_is_named(in_folder: Path) -> None:
    exported(in_folder / "artifacts" / "a" / "model.onnx", age=300)
    newest = exported(in_folder / "artifacts" / "b" / "deep" / "model.onnx", age=100)
    exported(in_folder / "artifacts" / "c" / "model.onnx", age=200)
    exported(in_folder / "artifacts" / "d" / "other.onnx", age=0)
    assert find_model(None).resolve() == newest.resolve()


def test_where_nothing_was_exported_the_weights_that_ship_are_used(in_folder: Path) -> None:
    shipped = find_model(None)
    assert shipped.parts[-4:] == ("models", "pretrained", "accurate", "model.onnx")
    assert shipped.is_file()


@pytest.mark.parametrize("name", ["accurate", "fast"])
def test_weights_that_ship_go_by_their_names_and_a_file_of_that_name_by_its_path(
    name: str, in_folder: Path
) -> None:
    (in_folder / name).write_bytes(b"")
    assert find_model(name).parts[-3:] == ("pretrained", name, "model.onnx")
    assert find_model(name).is_file()
    assert find_model(f"./{name}") == Path(name)


def test_without_any_model_the_error_names_the_ways_to_get_one(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tilewise.models.model_file.PRETRAINED_MODEL", in_folder / "none.onnx"
    )  # an installation without weights
    with pytest.raises(ModelFileError) as caught:
        find_model(None)
    message = str(caught.value)
    assert "\n" not in message
    for way in ("TILEWISE_MODEL", "artifacts", "`tilewise train`", "`make demo`"):
        assert way in message


def test_a_model_in_a_registry_is_no_file_and_the_error_says_how_to_fetch_it() -> None:
    with pytest.raises(
        ModelFileError, match="mlflow artifacts download -u models:/tilewise@champion -d FOLDER"
    ):
        find_model("models:/tilewise@champion")
