"""What of a model file needs no graph: metadata, self-test, the cores that run it, the gain of INT8."""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError
from tiny_onnx import metadata

from tilewise.models.model_file import (
    ModelMetadata,
    Outliers,
    PredictionSets,
    ReferenceHistogram,
    SelfTest,
    gain,
    usable_cores,
)


def changed(**fields: object) -> str:
    """Sound metadata, with some fields changed."""
    return json.dumps(json.loads(metadata().model_dump_json()) | fields)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("max 100000", 64),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("0 100000", 1),
        ("6400000 50000", 64),
        ("nonsense", 64),
    ],
)
def test_cores_are_those_that_the_container_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, cores: int
) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr("tilewise.models.model_file._CGROUP_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr("os.sched_getaffinity", {0: set(range(64))}.__getitem__)
    assert usable_cores() == cores


@pytest.mark.parametrize(("known", "cores"), [(None, 1), (6, 6)])
def test_a_system_without_affinity_has_the_cores_that_it_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, known: int | None, cores: int
) -> None:
    monkeypatch.setattr("tilewise.models.model_file._CGROUP_QUOTA", tmp_path / "none")
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: known)
    assert usable_cores() == cores


def test_what_a_file_does_not_say_of_its_model_has_its_default() -> None:
    plain = metadata()
    assert (plain.schema_version, plain.temperature, plain.synthetic) == (1, 1.0, False)
    assert ModelMetadata.model_validate_json(changed(temperature=0.5)).temperature == 0.5


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (metadata(), "name"),
        (PredictionSets(method="split", thresholds={0.9: 0.1}), "method"),
        (Outliers(method="distance", threshold=1, false_alarms=0.1), "method"),
        (ReferenceHistogram(band="B02", mean=1, std=1, counts=(1,)), "band"),
        (SelfTest(tiles="", probabilities=()), "tiles"),
    ],
)
def test_metadata_stay_as_they_were_read(part: BaseModel, name: str) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(part, name, "other")


def packed(pixels: np.ndarray) -> SelfTest:
    tiles = base64.b64encode(zlib.compress(pixels.astype("<u2").tobytes())).decode()
    return SelfTest(tiles=tiles, probabilities=())


def test_the_tiles_of_the_self_test_are_enlarged_pixel_by_pixel() -> None:
    small = np.arange(2 * 13 * 8 * 8).reshape(2, 13, 8, 8)
    expected = np.kron(small, np.ones((8, 8), int))
    found = packed(small).enlarged()
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)


def test_no_self_test_decompresses_to_more_than_64_tiles() -> None:
    assert packed(np.zeros((70, 13, 8, 8))).enlarged().shape == (64, 13, 64, 64)


def test_a_self_test_that_is_not_compressed_is_malformed() -> None:
    with pytest.raises(ValueError, match="header"):
        SelfTest(tiles=base64.b64encode(b"no tiles").decode(), probabilities=()).enlarged()


def test_the_gain_is_of_the_medians_of_seven_runs_and_the_first_run_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, shapes = 0.0, []

    class Timed:
        def __init__(self, *seconds: float) -> None:
            self.left = list(seconds)

        def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> None:
            nonlocal now
            now += self.left.pop(0)
            shapes.append(inputs["tiles"].shape)

    monkeypatch.setattr("tilewise.models.model_file.perf_counter", lambda: now)
    slow: Any = Timed(100, 7, 1, 6, 2, 5, 3, 12)
    fast: Any = Timed(100, 2, 2, 2, 2, 1, 1, 1)
    assert gain(slow, fast) == 2.5
    assert shapes == [(16, 13, 64, 64)] * 16
