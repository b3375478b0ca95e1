"""Which model answers, what becomes of a candidate that fails, and how its answers are compared."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geotiffs import tile_file
from hostile.attacks import padded_tile
from prometheus_client import REGISTRY
from tiny_onnx import metadata, write_model

from tilewise.bento.inference.engine import Answers, Engine
from tilewise.bento.inference.uploads import Batch, InferenceError, Upload
from tilewise.bento.serving.runtime import Serving, total_variation
from tilewise.bento.settings import Settings
from tilewise.datasets.acquire.synthetic import synthesise_tile
from tilewise.datasets.core.errors import TilewiseError, UnreadableImageError
from tilewise.datasets.core.tile import BAND_COUNT, DN, Tile
from tilewise.models.model_file import PredictionSets

FOREST = synthesise_tile("Forest", 1, 2)
TILE = Tile("t", synthesise_tile("Forest", 1, 2).pixels, synthesise_tile("Forest", 1, 2).bands, None)


def model(path: Path, version: str, highest_coverage: float) -> Path:
    """Write a model of two classes that is calibrated up to a coverage."""
    sets = PredictionSets(method="test", thresholds={highest_coverage: 0.01})
    described = metadata(("A", "B")).model_copy(update={"version": version, "prediction_sets": sets})
    weights = np.zeros((BAND_COUNT + 1, 2), np.float32)
    return write_model(path, described.model_dump_json(), weights=weights)


@contextmanager
def serving_of(
    tmp_path: Path, coverages: tuple[float, float] = (0.95, 0.95), **settings: Any
) -> Iterator[Serving]:
    """Serve a champion "1" and a candidate "2", each calibrated up to a coverage, in this process."""
    champion, candidate = (
        model(tmp_path / "a.onnx", "1", coverages[0]),
        model(tmp_path / "b.onnx", "2", coverages[1]),
    )
    usual = {
        "workers": 1,
        "threads": 1,
        "reload_seconds": 0,
        "tasks": str(tmp_path / "tasks"),
        "drift_window": 0,
    }
    usual |= {"model": str(champion), "candidate": str(candidate), "candidate_mode": "canary"}
    serving = Serving.start(Settings(**{**usual, "candidate_fraction": 0.5, **settings}))
    try:
        yield serving
    finally:
        serving.close()


def keys(serving: Serving) -> tuple[str, str]:
    """Return a key of the champion's and one of the canary's callers."""
    names = [f"caller {n}" for n in range(100)]
    canary = next(name for name in names if serving.releases.is_chosen(name))
    return next(name for name in names if not serving.releases.is_chosen(name)), canary


def fallbacks(reason: str) -> float:
    return (
        REGISTRY.get_sample_value("tilewise_canary_fallbacks_total", {"reason": reason, "candidate": "2"})
        or 0.0
    )


def ask_together(serving: Serving, *asked: tuple[str, float]) -> list[Any]:
    """Ask for one tile by each key at a coverage, all at once; return versions, or what was raised."""

    async def scenario() -> list[Any]:
        tiles = [[Upload("t", TILE, coverage=coverage)] for _, coverage in asked]
        calls = [serving.classify(uploads, key) for uploads, (key, _) in zip(tiles, asked, strict=True)]
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)

    found = []
    for outcome in asyncio.run(scenario()):
        if isinstance(outcome, BaseException):
            found.append(outcome)
            continue
        engine, results = outcome
        assert results[0]["class"] in ("A", "B")
        found.append(engine.metadata.version)
    return found


def break_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an engine fail from now on, as onnxruntime does that is out of memory."""
    classify = Engine.classify

    def fail(self: Engine, tiles: DN) -> Answers:
        if self is engine:
            raise RuntimeError("bad allocation")
        return classify(self, tiles)

    monkeypatch.setattr(Engine, "classify", fail)


def test_no_batch_reads_what_takes_long(tmp_path: Path) -> None:
    """Files that decode to much, or that GDAL must read, are read beside the batches."""
    plain, slow = tile_file(FOREST), tile_file(FOREST, compress="lzma")
    batches: list[Batch] = []

    async def ask(serving: Serving, *contents: bytes) -> list[Any]:
        uploads = [Upload(str(index), content) for index, content in enumerate(contents)]
        return (await serving.classify(uploads, "key", "caller"))[1]

    with serving_of(tmp_path) as serving:
        serving.observers.add(batches.append)
        asyncio.run(ask(serving, plain))  # its CRS is known after that
        batches.clear()
        answers = asyncio.run(ask(serving, slow, plain, b"II*\0", padded_tile(), plain))
    assert ["error" in answer for answer in answers] == [False, False, True, False, False]
    (batch,) = batches
    kinds = [type(upload.content) for upload in batch.uploads]
    assert kinds == [Tile, bytes, UnreadableImageError, Tile, bytes]


def test_the_canary_answers_its_callers_and_the_champion_the_others(tmp_path: Path) -> None:
    with serving_of(tmp_path) as serving:
        ours, theirs = keys(serving)
        assert ask_together(serving, (ours, 0.9), (theirs, 0.9)) == ["1", "2"]


def test_a_canary_that_fails_harms_no_caller_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_of(tmp_path) as serving:
        ours, theirs = keys(serving)
        assert serving.releases.candidate is not None
        break_engine(serving.releases.candidate, monkeypatch)
        before = fallbacks("error")
        assert ask_together(serving, (ours, 0.9), (theirs, 0.9), (ours, 0.9)) == ["1", "1", "1"]
        assert fallbacks("error") == before + 1


def test_a_canary_that_is_calibrated_for_less_leaves_higher_coverages_to_the_champion(tmp_path: Path) -> None:
    with serving_of(tmp_path, coverages=(0.95, 0.8)) as serving:
        ours, theirs = keys(serving)
        before = fallbacks("coverage")
        assert ask_together(serving, (ours, 0.95), (theirs, 0.95), (theirs, 0.8)) == ["1", "1", "2"]
        assert fallbacks("coverage") == before + 1


def test_a_champion_that_fails_is_an_error_of_its_callers_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_of(tmp_path) as serving:
        ours, theirs = keys(serving)
        break_engine(serving.engine, monkeypatch)
        failed, version = ask_together(serving, (ours, 0.9), (theirs, 0.9))
        assert isinstance(failed, InferenceError)
        assert version == "2"


def test_a_coverage_that_a_new_champion_is_not_calibrated_for_is_refused(tmp_path: Path) -> None:
    with serving_of(tmp_path, coverages=(0.9, 0.95)) as serving:
        ours, theirs = keys(serving)
        refused, version = ask_together(serving, (ours, 0.95), (theirs, 0.95))
        assert isinstance(refused, TilewiseError)
        assert "calibrated for a coverage of at most 0.9" in str(refused)
        assert version == "2"


def test_a_shadow_that_fails_is_no_matter_to_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving_of(tmp_path, candidate_mode="shadow", candidate_fraction=1.0) as serving:
        assert serving.releases.candidate is not None
        break_engine(serving.releases.candidate, monkeypatch)
        assert ask_together(serving, ("a", 0.9), ("b", 0.9)) == ["1", "1"]
        assert ask_together(serving, ("a", 0.9)) == ["1"]


def test_the_distance_of_answers_is_half_the_sum_of_differences() -> None:
    assert total_variation({"A": 0.7, "B": 0.3}, {"A": 0.7, "B": 0.3}) == 0
    assert total_variation({"A": 1.0}, {"A": 0.25, "B": 0.75}) == pytest.approx(0.75)
    assert total_variation({"A": 1.0}, {"C": 1.0}) == 1
