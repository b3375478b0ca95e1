"""A model file proves itself whole: every damaged one is refused, whatever was damaged."""

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_onnx import linear_graph, metadata

from tilewise.bento.inference.engine import Engine
from tilewise.datasets.core.errors import ModelFileError
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.models.export.stamp import save_model
from tilewise.models.model_file import METADATA_KEY, SelfTest, open_model

WEIGHTS = np.random.default_rng(1).normal(0, 1e-3, (14, len(CLASSES))).astype(np.float32)


@pytest.fixture
def stamped(tmp_path: Path) -> Path:
    save_model(linear_graph(None, WEIGHTS), metadata(CLASSES), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_a_whole_file_is_opened_and_its_self_test_passes(stamped: Path) -> None:
    found = Engine(stamped, threads=1).metadata
    assert found.self_test is not None
    assert found.self_test.enlarged().shape == (4, 13, 64, 64)
    assert [len(row) for row in found.self_test.probabilities] == [len(CLASSES)] * 4
    assert len(found.self_test.tiles) < 8000, "it is small"


def test_every_flipped_bit_is_noticed(stamped: Path, tmp_path: Path) -> None:
    content, draw = bytearray(stamped.read_bytes()), random.Random(0)  # noqa: S311 - to be repeated
    path = tmp_path / "flipped.onnx"
    places = [draw.randrange(len(content)) for _ in range(300)]
    digest = content.index(b'"digest":"')
    for place in [*places, *range(digest, digest + 75)]:
        bit = 1 << draw.randrange(8)
        content[place] ^= bit
        path.write_bytes(content)
        content[place] ^= bit
        with pytest.raises(ModelFileError):
            Engine(path, threads=1)


def test_a_file_that_was_cut_is_told_from_one_that_is_none(stamped: Path) -> None:
    stamped.write_bytes(stamped.read_bytes()[:-1] + b"\0")
    with pytest.raises(ModelFileError, match="corrupt, its bytes are not those that were exported"):
        open_model(stamped)


def test_saving_again_gives_the_same_bytes(stamped: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.onnx"
    save_model(onnx.load(str(stamped)), open_model(stamped).metadata, again)
    assert again.read_bytes() == stamped.read_bytes()


def test_a_model_that_answers_its_own_tiles_otherwise_is_refused(stamped: Path, tmp_path: Path) -> None:
    """As a broken runtime would: the bytes are right and have no digest, and the answers are others."""
    test = open_model(stamped).metadata.self_test
    assert test is not None
    path = tmp_path / "other.onnx"
    text = metadata(CLASSES).model_copy(update={"self_test": test}).model_dump_json()
    onnx.save(linear_graph(text, WEIGHTS), str(path))
    Engine(path, threads=1)
    onnx.save(linear_graph(text, WEIGHTS * 1.1), str(path))
    with pytest.raises(ModelFileError, match="does not answer the tiles in its metadata"):
        Engine(path, threads=1)


@pytest.mark.parametrize("tiles", ["", "!", "AAAA", "eNoDAAAAAAE="])
def test_a_malformed_self_test_is_refused(tiles: str, tmp_path: Path) -> None:
    broken = SelfTest(tiles=tiles, probabilities=((0.5, 0.5),))
    text = metadata().model_copy(update={"self_test": broken}).model_dump_json()
    onnx.save(linear_graph(text), str(tmp_path / "model.onnx"))
    with pytest.raises(ModelFileError):
        Engine(tmp_path / "model.onnx", threads=1)


def test_the_metadata_are_written_once(stamped: Path) -> None:
    props = onnx.load(str(stamped)).metadata_props
    assert [entry.key for entry in props] == [METADATA_KEY]
