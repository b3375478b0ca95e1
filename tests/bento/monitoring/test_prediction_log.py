"""The prediction log: its files, its bounds, and a real service that writes them."""

import logging
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from affine import Affine
from geotiffs import geotiff, tile_file
from prometheus_client import REGISTRY
from servers import served
from watched import samples, until, watched_model

from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.uploads import Batch, Upload, classify_batch
from tilewise.bento.monitoring import prediction_log
from tilewise.bento.monitoring.prediction_log import (
    SCHEMA,
    LogOptions,
    PredictionLog,
    bbox_of,
    delete_oldest,
    is_chosen,
)
from tilewise.bento.request_context import RequestContext
from tilewise.bento.settings import Settings
from tilewise.datasets.acquire.synthetic import synthesise_tile
from tilewise.datasets.core.bands import BAND_NAMES, RGB_BANDS, positions
from tilewise.datasets.core.errors import TilewiseError
from tilewise.datasets.core.tile import Tile

FOREST, RIVER = synthesise_tile("Forest", 3, 1), synthesise_tile("River", 4, 1)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    training = np.stack([FOREST.pixels, RIVER.pixels])
    return Engine(watched_model(tmp_path_factory.mktemp("watched") / "model.onnx", training), threads=1)


def batch_of(engine: Engine, *tiles: Tile, request_id: str = "r-1") -> Batch:
    request_context = RequestContext(request_id)
    return classify_batch(
        engine, [Upload(tile.name, tile, engine=engine, request_context=request_context) for tile in tiles]
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    """All rows in the folder, oldest file first."""
    tables = [pq.read_table(path) for path in sorted(folder.glob("predictions-*.parquet"))]
    return pa.concat_tables(tables).to_pylist() if tables else []


def logged(
    folder: Path, engine: Engine, *batches: Batch, options: LogOptions | None = None
) -> list[dict[str, Any]]:
    log = PredictionLog(folder, options or LogOptions())
    for batch in batches:
        log.observe(batch)
    log.close()
    return rows(folder)


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("tilewise_predictions_total", {"outcome": outcome}) or 0


# What is kept.


def test_a_row_holds_what_an_audit_and_a_retraining_need(engine: Engine, tmp_path: Path) -> None:
    (row,) = logged(tmp_path, engine, batch_of(engine, FOREST))
    (file,) = tmp_path.iterdir()
    assert pq.read_schema(file).equals(SCHEMA, check_metadata=False)
    assert abs(row["time"] - datetime.now(UTC)) < timedelta(minutes=1)
    assert row["request_id"] == "r-1"
    assert row["class"] == max(row["probabilities"], key=lambda pair: pair[1])[0]
    assert sum(share for _, share in row["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert row["class"] in row["prediction_set"]
    assert row["coverage"] == pytest.approx(0.9)
    assert (row["outlier"], row["outlier_score"]) == (False, pytest.approx(FOREST.pixels.mean(), rel=1e-3))
    assert (row["model_name"], row["model_version"], row["model_sha256"]) == ("tiny", "0", engine.sha256)
    assert row["bands"] == list(BAND_NAMES)
    assert row["band_mean"] == pytest.approx(FOREST.pixels.mean(axis=(1, 2)).tolist(), rel=1e-5)
    assert row["band_std"] == pytest.approx(FOREST.pixels.std(axis=(1, 2)).tolist(), rel=1e-4)
    assert row["embedding"] == pytest.approx(FOREST.pixels.mean(axis=(1, 2)).tolist(), rel=2e-3)
    assert row["valid_fraction"] == 1
    (ring,) = FOREST.footprint["coordinates"]  # type: ignore[index]
    west, south = np.min(ring, axis=0)
    assert (row["bbox"]["xmin"], row["bbox"]["ymin"]) == (west, south)
    assert FOREST.georeference is not None
    assert row["crs"] == FOREST.georeference.crs.to_string()
    assert Affine(*row["transform"]) == FOREST.georeference.transform


def test_names_and_tiles_are_kept_only_where_that_is_said(engine: Engine, tmp_path: Path) -> None:
    without, with_both = tmp_path / "without", tmp_path / "with"
    without.mkdir()
    with_both.mkdir()
    (row,) = logged(without, engine, batch_of(engine, FOREST))
    assert (row["name"], row["tile"]) == (None, None)
    (row,) = logged(with_both, engine, batch_of(engine, FOREST), options=LogOptions(names=True, tiles=True))
    assert row["name"] == FOREST.name
    assert np.array_equal(np.frombuffer(row["tile"], "<u2").reshape(13, 64, 64), FOREST.pixels)


def test_a_tile_of_few_bands_is_kept_with_those(engine: Engine, tmp_path: Path) -> None:
    pixels = np.zeros_like(FOREST.pixels)
    pixels[positions(RGB_BANDS)] = FOREST.pixels[positions(RGB_BANDS)]
    pixels[:, :, :16] = 0
    rgb = Tile("rgb", pixels, tuple(b for b in BAND_NAMES if b in RGB_BANDS), None)
    (row,) = logged(tmp_path, engine, batch_of(engine, rgb), options=LogOptions(tiles=True))
    assert row["bands"] == list(rgb.bands)
    assert row["band_mean"] == pytest.approx(pixels[1:4, :, 16:].mean(axis=(1, 2)).tolist(), rel=1e-5)
    assert row["band_std"] == pytest.approx(pixels[1:4, :, 16:].std(axis=(1, 2)).tolist(), rel=1e-4)
    assert len(row["tile"]) == 3 * 64 * 64 * 2
    assert (row["bbox"], row["crs"], row["transform"]) == (None, None, None)
    assert (row["level"], row["valid_fraction"]) == (None, 0.75)


def test_a_band_without_data_has_no_features() -> None:
    values = np.zeros((2, 4, 4), np.uint16)
    values[1, 0] = (1, 2, 3, 65_535)
    mean, std = prediction_log.band_features(values)
    assert (mean[0], std[0]) == (None, None)
    assert (mean[1], std[1]) == (pytest.approx(values[1, 0].mean()), pytest.approx(values[1, 0].std()))


def test_refused_tiles_are_not_kept(engine: Engine, tmp_path: Path) -> None:
    request_context = RequestContext("r-2")
    bad = Upload("bad", b"no tile", engine=engine, request_context=request_context)
    good = Upload("good", FOREST, engine=engine, request_context=request_context)
    assert len(logged(tmp_path, engine, classify_batch(engine, [bad, good, bad]))) == 1


def test_a_share_of_the_requests_is_kept_whole_and_the_same_ones_everywhere(
    engine: Engine, tmp_path: Path
) -> None:
    batches = [batch_of(engine, FOREST, RIVER, request_id=f"r-{n}") for n in range(40)]
    found = logged(tmp_path, engine, *batches, options=LogOptions(fraction=0.5))
    ids = [row["request_id"] for row in found]
    assert set(ids) == {f"r-{n}" for n in range(40) if is_chosen(f"r-{n}", 0.5)}
    assert all(ids.count(one) == 2 for one in ids)
    assert 8 < len(set(ids)) < 32
    assert not any(is_chosen(f"r-{n}", 0) for n in range(40))
    assert all(is_chosen(f"r-{n}", 1) for n in range(40))


def test_a_box_across_the_antimeridian_begins_in_the_east() -> None:
    east = [[179.9, 10.0], [180.0, 10.0], [180.0, 11.0], [179.9, 10.0]]
    west = [[-180.0, 10.0], [-179.8, 10.0], [-179.8, 11.5], [-180.0, 10.0]]
    for parts in ([[east], [west]], [[west], [east]]):
        box = bbox_of({"type": "MultiPolygon", "coordinates": parts})
        assert box == {"xmin": 179.9, "ymin": 10.0, "xmax": -179.8, "ymax": 11.5}
    assert bbox_of({"type": "Polygon", "coordinates": [west]}) == {
        "xmin": -180.0,
        "ymin": 10.0,
        "xmax": -179.8,
        "ymax": 11.5,
    }
    assert bbox_of(None) is None


# Files.


def test_a_file_is_closed_when_it_is_full_or_old(engine: Engine, tmp_path: Path) -> None:
    log = PredictionLog(tmp_path, LogOptions(rows=4, seconds=0.3))
    log.observe(batch_of(engine, *[FOREST] * 9))
    until(
        lambda: len(rows(tmp_path)) == 9, "the last row is written though the log is not closed", seconds=10
    )
    sizes = [pq.read_metadata(path).num_rows for path in sorted(tmp_path.glob("*.parquet"))]
    assert sizes[:2] == [4, 4]
    log.close()


def test_a_file_with_tiles_is_closed_before_it_takes_much_memory(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_log, "MAX_FILE_BYTES", 3 * FOREST.pixels.nbytes)
    logged(tmp_path, engine, batch_of(engine, *[FOREST] * 7), options=LogOptions(tiles=True))
    assert sorted(pq.read_metadata(path).num_rows for path in tmp_path.glob("*.parquet")) == [1, 3, 3]


def test_the_oldest_files_delete_oldest(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / f"predictions-2026010{n}T000000.000Z-1-aa.parquet").write_bytes(bytes(100))
    other = tmp_path / "notes.parquet"
    other.write_bytes(bytes(1000))
    delete_oldest(tmp_path, 250)
    assert sorted(path.name[19:21] for path in tmp_path.glob("predictions-*")) == ["3T", "4T"]
    delete_oldest(tmp_path, 10)
    assert len(list(tmp_path.glob("predictions-*"))) == 1  # the newest stays
    assert other.exists()


def test_the_folder_stays_within_its_bytes(engine: Engine, tmp_path: Path) -> None:
    options = LogOptions(rows=2, tiles=True, max_bytes=250_000)
    pixels = np.random.default_rng(0).integers(1, 9999, FOREST.pixels.shape).astype(np.uint16)
    noise = Tile("noise", pixels, BAND_NAMES, None)
    logged(tmp_path, engine, batch_of(engine, *[noise] * 12), options=options)
    files = list(tmp_path.iterdir())
    assert files
    assert sum(path.stat().st_size for path in files) <= 250_000


def test_what_a_killed_process_left_is_cleared_away(engine: Engine, tmp_path: Path) -> None:
    left, fresh = tmp_path / ".predictions-a.partial", tmp_path / ".predictions-b.partial"
    left.write_bytes(b"half")
    fresh.write_bytes(b"half")
    os.utime(left, (time.time() - 7200, time.time() - 7200))
    PredictionLog.start(Settings(predictions=str(tmp_path))).close()
    assert not left.exists()
    assert fresh.exists()


# What goes wrong.


def test_where_the_writer_cannot_keep_up_tiles_are_dropped_and_counted(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_log, "MAX_WAITING", 3)
    may_write = threading.Event()
    write = pq.write_table
    monkeypatch.setattr(pq, "write_table", lambda *a, **k: may_write.wait(20) and write(*a, **k))
    before = counted("dropped")
    log = PredictionLog(tmp_path, LogOptions(rows=1))
    for _ in range(3):
        log.observe(batch_of(engine, *[FOREST] * 4))
    assert 12 - 3 - 2 <= counted("dropped") - before <= 12 - 3  # the writer itself holds one or none
    may_write.set()
    log.close()
    assert len(rows(tmp_path)) == 12 - (counted("dropped") - before)


def test_a_folder_that_has_gone_is_logged_and_counted_and_what_comes_later_is_kept(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    log = PredictionLog(folder, LogOptions(rows=1))
    folder.rmdir()
    before = counted("failed")
    with caplog.at_level(logging.ERROR, "tilewise"):
        log.observe(batch_of(engine, FOREST))
        until(lambda: counted("failed") == before + 1, "the failure is counted")
    assert "could not be kept" in caplog.text
    folder.mkdir()
    log.observe(batch_of(engine, RIVER))
    log.close()
    assert len(rows(folder)) == 1
    assert not list(folder.glob(".*"))


def test_a_folder_that_cannot_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        TilewiseError,
        match=r"^TILEWISE_PREDICTIONS: .*file/log cannot be written to .*; name another folder$",
    ):
        PredictionLog.start(Settings(predictions=str(tmp_path / "file" / "log")))


# A real service.


@pytest.mark.slow
def test_a_service_that_stops_has_written_what_it_answered(engine: Engine, tmp_path: Path) -> None:
    settings = {
        "TILEWISE_WORKERS": "2",
        "TILEWISE_PREDICTIONS": str(tmp_path / "log"),
        "TILEWISE_PREDICTIONS_NAMES": "1",
    }
    bad = geotiff(FOREST.pixels[:, :63], names=BAND_NAMES)
    with served(engine.path, tmp_path, **settings) as server:
        for n in range(6):
            files = [("tiles", (f"{n}.tif", tile_file(FOREST))), ("tiles", ("bad.tif", bad))]
            answer = httpx.post(
                f"{server.url}/classify", files=files, headers={"X-Request-ID": f"r-{n}"}, trust_env=False
            )
            assert answer.status_code == 200
        assert not list((tmp_path / "log").glob("*.parquet"))
        assert samples(server.url, "tilewise_tiles_total")
    found = rows(tmp_path / "log")
    assert sorted((row["request_id"], row["name"]) for row in found) == [
        (f"r-{n}", f"{n}.tif") for n in range(6)
    ]
    names = [path.name for path in (tmp_path / "log").iterdir()]
    assert len({name.split("-")[2] for name in names}) == len(names) <= 2  # a file for each process
