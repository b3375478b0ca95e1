"""The STAC item of a model, as catalogues and other programs take it."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from stac_model.schema import MLModelProperties
from stac_rules import SCHEMAS
from tiny_onnx import metadata, write_model

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.errors import ModelFileError
from tilewise.models.cli import card
from tilewise.models.model_file import int8_of, open_model
from tilewise.models.model_item import write_model_item

pystac = pytest.importorskip("pystac")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file with one in INT8 beside it."""
    described = metadata(("Forêt", "Sea Lake")).model_copy(
        update={"licence": "MIT", "ancestry": "timm/some", "created": "2026-11-28T10:00:00+00:00"}
    )
    path = write_model(tmp_path / "model.onnx", described.model_dump_json())
    eight = described.model_copy(update={"precision": "int8", "quantised_from": open_model(path).sha256})
    write_model(int8_of(path), eight.model_dump_json())
    return path


def item_of(model: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(write_model_item(model).read_text(encoding="utf-8"))
    return content


def test_it_is_valid_by_pystac_and_by_the_extensions_own_package(model: Path) -> None:
    from pystac.validation.stac_validator import JsonSchemaSTACValidator

    validator = JsonSchemaSTACValidator()
    validator.schema_cache |= SCHEMAS
    content = item_of(model)
    assert len(pystac.Item.from_dict(content).validate(validator)) == 3  # STAC itself and two extensions
    fields = MLModelProperties(**content["properties"])
    assert fields.input[0].input.shape == [-1, 13, 64, 64]
    assert fields.output[0].result.shape == [-1, 2]
    assert fields.framework == "ONNX"


def test_it_lies_beside_the_model_and_leads_to_its_files(model: Path) -> None:
    assert write_model_item(model) == model.with_name("model.stac.json")
    assets = item_of(model)["assets"]
    assert {key: asset["href"] for key, asset in assets.items()} == {
        "model": "./model.onnx",
        "model_int8": "./model.int8.onnx",
    }
    for asset in assets.values():
        file = model.parent / asset["href"]
        assert asset["tilewise:sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    int8_of(model).unlink()
    assert set(item_of(model)["assets"]) == {"model"}


def test_it_tells_bands_classes_and_where_the_weights_come_from(model: Path) -> None:
    properties = item_of(model)["properties"]
    assert [band["name"] for band in properties["bands"]] == list(BAND_NAMES)
    (output,) = properties["mlm:output"]
    listed = [(known["value"], known["name"]) for known in output["classification:classes"]]
    assert listed == [(0, "For_t"), (1, "Sea_Lake")]
    assert [known["description"] for known in output["classification:classes"]] == ["Forêt", "Sea Lake"]
    assert (properties["mlm:pretrained"], properties["mlm:pretrained_source"]) == (True, "timm/some")
    assert (properties["license"], properties["datetime"]) == ("MIT", "2026-11-28T10:00:00+00:00")


def test_a_model_of_unknown_origin_and_time_has_a_valid_item_too(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", metadata().model_dump_json())
    properties = item_of(path)["properties"]
    assert properties["datetime"] is None
    assert properties["start_datetime"] < properties["end_datetime"]
    assert properties["mlm:pretrained"] is False
    assert "license" not in properties


def test_what_is_no_model_has_no_item(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ModelFileError):
        write_model_item(tmp_path / "model.onnx")
    assert not (tmp_path / "model.stac.json").exists()


def test_the_card_of_a_folder_comes_with_the_item(model: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tmp_path, elsewhere, ignore=shutil.ignore_patterns("elsewhere"))
    result = CliRunner().invoke(card, ["--model", str(elsewhere / model.name)])
    assert result.output.splitlines()[-1] == f"the STAC item is {elsewhere / 'model.stac.json'}"
    assert item_of(model) == json.loads((elsewhere / "model.stac.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["accurate", "fast"])
def test_the_items_that_ship_are_of_the_models_that_ship(name: str) -> None:
    folder = Path(__file__).parents[2] / "models" / "pretrained" / name
    assets = json.loads((folder / "model.stac.json").read_text(encoding="utf-8"))["assets"]
    assert {asset["href"]: asset["tilewise:sha256"] for asset in assets.values()} == {
        f"./{file.name}": hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("*.onnx")
    }
