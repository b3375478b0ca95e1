"""The model file: opened only if it is whole, ours, of this version, and of the form its users rely on."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto
from tiny_onnx import linear_graph, metadata, write_model

from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.core.errors import ModelFileError
from tilewise.models.model_file import (
    FORMER_METADATA_KEY,
    MAX_BYTES,
    METADATA_KEY,
    SCHEMA_VERSION,
    open_model,
)

ROOT = Path(__file__).parents[2]


def refusal(path: Path) -> str:
    """The error of opening `path`: one line that names the file."""
    with pytest.raises(ModelFileError) as caught:
        open_model(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


def changed(**fields: object) -> str:
    """Sound metadata, with some fields changed."""
    return json.dumps(json.loads(metadata().model_dump_json()) | fields)


# A sound file.


def test_a_graph_made_by_another_tool_opens_if_it_has_the_form_and_the_metadata(tmp_path: Path) -> None:
    opened = open_model(write_model(tmp_path / "model.onnx"))
    probabilities = opened.session.run(["probabilities"], {"tiles": np.ones((3, 13, 64, 64), np.uint16)})[0]
    np.testing.assert_allclose(probabilities, 0.5)


def test_metadata_survive_the_way_through_the_file(tmp_path: Path) -> None:
    known = metadata().model_copy(update={"metrics": {"val/accuracy": 0.95}, "licence": "CC-BY-4.0"})
    assert open_model(write_model(tmp_path / "model.onnx", known.model_dump_json())).metadata == known


# Files that are no model of ours.


def test_a_missing_file_is_named_together_with_the_way_to_make_one(tmp_path: Path) -> None:
    assert "there is no such model; `tilewise train` makes one" in refusal(tmp_path / "no.onnx")


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    assert "there is no such model" in refusal(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x08\x0anonsense" * 50, b"\x89PNG\r\n\x1a\n", b"version https://"]
)
def test_bytes_that_are_no_onnx_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert "not a readable ONNX file; export it again" in refusal(tmp_path / "model.onnx")


def test_a_file_with_the_metadata_key_from_before_the_project_was_renamed_opens(tmp_path: Path) -> None:
    graph = linear_graph(None)
    onnx.helper.set_model_props(graph, {FORMER_METADATA_KEY: metadata().model_dump_json()})
    onnx.save(graph, str(tmp_path / "model.onnx"))
    assert FORMER_METADATA_KEY == "sentile"
    assert open_model(tmp_path / "model.onnx").metadata == metadata()


def test_of_two_metadata_keys_the_present_one_counts(tmp_path: Path) -> None:
    graph = linear_graph(None)
    former = metadata().model_copy(update={"name": "former"}).model_dump_json()
    onnx.helper.set_model_props(
        graph, {FORMER_METADATA_KEY: former, METADATA_KEY: metadata().model_dump_json()}
    )
    onnx.save(graph, str(tmp_path / "model.onnx"))
    assert open_model(tmp_path / "model.onnx").metadata == metadata()


def test_an_onnx_file_without_metadata_is_refused(tmp_path: Path) -> None:
    onnx.save(linear_graph(None), str(tmp_path / "model.onnx"))
    message = refusal(tmp_path / "model.onnx")
    assert "without the metadata 'tilewise'" in message
    assert "`tilewise export`" in message


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin"])
def test_a_graph_that_reads_weights_from_other_files_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    graph = linear_graph(metadata().model_dump_json())
    onnx.save(
        graph,
        str(tmp_path / "model.onnx"),
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=50,  # of the weights alone: onnxruntime refuses small constants there by itself
    )
    graph = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    # The weights lie where onnxruntime would look for them from the folder that the process runs in.
    here = tmp_path / "below" if location.startswith("..") else tmp_path
    here.mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    assert (here / location).is_file()
    assert "not a readable ONNX file" in refusal(tmp_path / "model.onnx")


# Metadata of another version, or malformed.


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0, "1", "a\nb", None])
def test_metadata_of_another_version_are_refused_and_the_version_is_named(
    tmp_path: Path, version: object
) -> None:
    message = refusal(write_model(tmp_path / "model.onnx", changed(schema_version=version)))
    assert f"of version {version!r}, this is version {SCHEMA_VERSION}; export it again" in message


def test_another_version_is_told_as_such_even_when_its_fields_are_others(tmp_path: Path) -> None:
    message = refusal(write_model(tmp_path / "model.onnx", '{"schema_version": 2, "labels": []}'))
    assert "version 2" in message


@pytest.mark.parametrize("text", ["", "no JSON", "[1, 2]", "{}", "[" * 100_000])
def test_metadata_that_are_no_object_with_a_version_are_refused(tmp_path: Path, text: str) -> None:
    assert "of version 'unknown'" in refusal(write_model(tmp_path / "model.onnx", text))


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"classes": ["A"]}, "classes"),
        ({"classes": ["A", 7]}, "classes.1"),
        ({"temperature": 0}, "temperature"),
        ({"metrics": {"val/accuracy": "good"}}, "metrics.val/accuracy"),
        ({"lables": ["A", "B"]}, "lables"),
        ({"name": 1, "classes": ["A"], "temperature": 0}, "name"),
    ],
)
def test_malformed_metadata_are_refused_and_the_field_is_named(
    tmp_path: Path, fields: dict[str, object], where: str
) -> None:
    message = refusal(write_model(tmp_path / "model.onnx", changed(**fields)))
    assert f"malformed at {where}: " in message


def test_metadata_that_lack_a_field_are_refused_and_the_field_is_named(tmp_path: Path) -> None:
    text = json.dumps({"schema_version": SCHEMA_VERSION, "name": "x", "version": "1", "network": "y"})
    assert "malformed at classes: " in refusal(write_model(tmp_path / "model.onnx", text))


# Graphs of another form.


@pytest.mark.parametrize(
    "form",
    [
        {"size": 32},
        {"size": 128},
        {"number_type": TensorProto.FLOAT},
        {"outputs": ("logits", "probabilities", "embedding")},
        {"outputs": ("probabilities",)},
        {"outputs": ("probabilities", "outlier_score", "logits", "embedding")},
    ],
)
def test_a_graph_with_other_inputs_or_outputs_is_refused(tmp_path: Path, form: dict[str, Any]) -> None:
    assert "its graph has the inputs" in refusal(write_model(tmp_path / "model.onnx", **form))


@pytest.mark.parametrize("classes", [1, 3])
def test_a_graph_that_answers_other_classes_than_its_metadata_name_is_refused(
    tmp_path: Path, classes: int
) -> None:
    message = refusal(write_model(tmp_path / "model.onnx", weights=np.zeros((14, classes), np.float32)))
    assert f"its metadata have 2 classes, its graph returns ['batch', {classes}]" in message


def test_a_graph_whose_probabilities_have_a_third_axis_is_refused(tmp_path: Path) -> None:
    model = linear_graph(metadata().model_dump_json())
    (softmax,) = (node for node in model.graph.node if node.op_type == "Softmax")
    softmax.output[0] = "flat"
    model.graph.node.append(onnx.helper.make_node("Unsqueeze", ["flat", "last"], ["probabilities"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "last"))
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1
    onnx.save(model, str(tmp_path / "model.onnx"))
    assert "2 classes, its graph returns ['batch', 2, 1]" in refusal(tmp_path / "model.onnx")


@pytest.mark.parametrize("fields", [{"tile_size": 32}, {"bands": ["B02", "B03"]}])
def test_metadata_that_contradict_the_graph_are_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    message = refusal(write_model(tmp_path / "model.onnx", changed(**fields)))
    assert "other bands or tile sizes than its graph" in message


# Size and digest.


def test_a_file_larger_than_an_onnx_file_can_be_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_BYTES == 2_147_483_648
    path = write_model(tmp_path / "model.onnx")
    size = path.stat().st_size
    monkeypatch.setattr("tilewise.models.model_file.MAX_BYTES", size)
    open_model(path)
    monkeypatch.setattr("tilewise.models.model_file.MAX_BYTES", size - 1)
    assert f"{size:,} bytes are more than an ONNX file can have" in refusal(path)


def test_a_digest_that_is_not_in_the_metadata_is_refused(tmp_path: Path) -> None:
    graph = linear_graph(None)
    zeros = "0" * 64
    properties = {"x": f'"digest":"{zeros}"', METADATA_KEY: metadata().model_dump_json()}
    onnx.helper.set_model_props(graph, properties)
    content = graph.SerializeToString()
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / "model.onnx").write_bytes(content.replace(zeros.encode(), digest.encode()))
    assert "its digest is not where it belongs" in refusal(tmp_path / "model.onnx")


def test_a_digest_that_is_not_written_as_the_export_does_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path / "model.onnx", changed(digest="f" * 64))
    assert "its digest is not where it belongs" in refusal(path)


# Files that were exported from a network.


def test_an_exported_model_opens_and_tells_its_classes_and_bands(model_file: Path) -> None:
    opened = open_model(model_file)
    assert len(opened.metadata.classes) == 10
    assert opened.metadata.bands == BAND_NAMES
    assert opened.metadata.synthetic
    assert opened.sha256 == hashlib.sha256(model_file.read_bytes()).hexdigest()


@pytest.mark.parametrize("slower", [False, True])
def test_products_of_bytes_are_made_slower_only_where_the_processor_would_get_them_wrong(
    model_file: Path, monkeypatch: pytest.MonkeyPatch, slower: bool
) -> None:
    known = frozenset() if slower else frozenset({"avx512_vnni"})
    monkeypatch.setattr("tilewise.models.model_file.int8_instructions", lambda: known)
    options = ort.SessionOptions()
    open_model(model_file, options)
    if slower:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="x64quantprecision"):
            options.get_session_config_entry("session.x64quantprecision")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_model_is_refused(tmp_path: Path, model_file: Path, share: float) -> None:
    content = model_file.read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[: int(len(content) * share)])
    refusal(tmp_path / "model.onnx")


OPEN = """
import sys
import zlib
from pathlib import Path

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "pytorch_lightning", "onnx", "mlflow"}:
            raise ModuleNotFoundError(f"{name} is blocked")

if sys.argv[2] == "blocked":
    sys.meta_path.insert(0, Blocked())

import tilewise.bento.batch, tilewise.bento.service
from tilewise.models.model_file import open_model

opened = open_model(Path(sys.argv[1]))
assert "torch" not in sys.modules, "torch was imported"
print(len(opened.metadata.classes))
"""


@pytest.mark.parametrize("torch", ["blocked", "at hand"])
def test_serving_and_batch_need_no_torch_and_do_not_import_it(
    model_file: Path, tmp_path: Path, torch: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPEN, str(model_file), torch],
        cwd=ROOT,
        env=os.environ | {"BENTOML_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "10"


@pytest.mark.parametrize("place", range(100, 900, 100))
def test_a_byte_that_changed_is_noticed_by_the_digest(tmp_path: Path, model_file: Path, place: int) -> None:
    content = bytearray(model_file.read_bytes())
    content[place] ^= 1
    (tmp_path / "model.onnx").write_bytes(content)
    assert "corrupt, its bytes are not those that were exported" in refusal(tmp_path / "model.onnx")
