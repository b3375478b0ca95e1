"""Drift: the reference, the window, and a real service."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from prometheus_client import REGISTRY
from servers import Server, served
from tiny_onnx import write_model
from watched import samples, tiles, until, watched_metadata, watched_model

from tilewise.bento.inference.engine import Engine
from tilewise.bento.inference.uploads import Batch
from tilewise.bento.monitoring.drift import Drift, Reference, Window
from tilewise.datasets.core.bands import BAND_NAMES, RGB_BANDS, positions
from tilewise.datasets.core.tile import Tile
from tilewise.datasets.readers.eurosat import CLASSES

TRAINING, LATER = tiles(60, seed=1), tiles(60, seed=2)


def test_a_reference_with_all_in_one_bin_still_tells_whether_values_left_it() -> None:
    reference = Reference((1, 6, 11, 16), {"B10": np.array([0, 100, 0])})
    assert reference.measure("B10", np.array([0, 50, 0]))["psi"] == pytest.approx(0)
    assert reference.measure("B10", np.array([0, 0, 50]))["psi"] > 0.25


# The window.


def test_a_window_counts_valid_pixels_only_and_each_band_by_itself() -> None:
    window = Window((1, 101, 1001, 65_536), 32)
    pixels = np.zeros((3, 13, 8, 8), np.uint16)
    pixels[:2, 1, :4] = 50
    pixels[0, 2] = 60_000
    window.add(pixels)
    sums = window.sums()
    assert sums[1].tolist() == [2 * 32, 0, 0, 2]
    assert sums[2].tolist() == [0, 0, 64, 1]
    assert not sums[[0, *range(3, 13)]].any()


def test_a_window_forgets_its_oldest_tiles_in_the_bands_that_go_on() -> None:
    window = Window((1, 101, 1001), 32)
    before, after = np.full((1, 13, 8, 8), 50, np.uint16), np.full((1, 13, 8, 8), 500, np.uint16)
    before[:, 12] = 0
    after[:, 12] = 0
    for _ in range(40):
        window.add(before)
    after[:, 5] = 0
    for _ in range(40):
        window.add(after)
    sums = window.sums()
    assert sums[0, 0] == 0
    assert sums[0, 1] > 0
    assert 30 <= sums[0, 2] <= 32
    assert sums[5, 0] > 0  # nothing has come to take the place of the tiles that had it
    assert sums[12].tolist() == [0, 0, 0]


@pytest.mark.parametrize("asked", [1, 5, 17, 31, 100, 128, 1000])
@pytest.mark.parametrize("together", [1, 33, 200])
def test_a_window_holds_no_more_tiles_than_asked_and_hardly_fewer(asked: int, together: int) -> None:
    window = Window((1, 101, 1001), asked)
    tiles = np.full((together, 13, 8, 8), 50, np.uint16)
    for _ in range(3 * asked // together + 2):
        window.add(tiles)
    held = window.sums()[0, -1]
    assert asked * 7 // 8 - 1 <= held <= asked
    assert held >= 1


# What is published.


def answered(pixels: npt.NDArray[np.uint16], bands: tuple[str, ...] = BAND_NAMES) -> Batch:
    outcomes: list[Any] = [Tile(str(n), tile, bands, None) for n, tile in enumerate(pixels)]
    return Batch([], [*outcomes, {"name": "bad", "error": {}}], [])


def told(band: str, measure: str = "psi") -> float | None:
    return REGISTRY.get_sample_value("tilewise_drift", {"band": band, "measure": measure})


@pytest.fixture
def champion(tmp_path: Path) -> Engine:
    text = watched_metadata(TRAINING, absent=("B10",)).model_dump_json()
    weights = np.zeros((14, len(CLASSES)), np.float32)
    return Engine(write_model(tmp_path / "model.onnx", text, weights=weights), threads=1)


def test_drift_is_told_of_bands_with_a_reference_and_enough_tiles(champion: Engine) -> None:
    drift = Drift(lambda: champion, window=64, minimum=20)
    rgb = np.zeros_like(LATER)
    rgb[:, positions(RGB_BANDS)] = LATER[:, positions(RGB_BANDS)]
    drift.observe(answered(rgb[:19], RGB_BANDS))
    drift.publish()
    assert told("B04") is None
    drift.observe(answered(rgb[19:30], RGB_BANDS))
    drift.publish()
    values = told("B04"), told("B04", "kl"), told("B04", "wasserstein")
    assert all(value is not None and value > 0 for value in values)
    assert told("B08") is None  # no tile has it
    drift.observe(answered(LATER[:30]))
    drift.publish()
    assert told("B08") is not None
    assert told("B10") is None  # the training data do not have it


def test_a_model_without_histograms_is_served_without_drift(linear_model: Path) -> None:
    before = [told(band) for band in BAND_NAMES]
    drift = Drift(lambda: Engine(linear_model, 1), window=64, minimum=1)
    drift.observe(answered(LATER[:4]))
    drift.publish()
    drift.close()
    assert [told(band) for band in BAND_NAMES] == before


def test_processes_add_their_windows_up_and_forget_the_dead(champion: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    drift = Drift(lambda: champion, window=1000, minimum=1, folder=folder)
    drift.observe(answered(LATER[:10]))
    drift.publish()
    (mine,) = folder.glob("*.npy")
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, timeout=30
    )
    for pid in (os.getppid(), int(ended.stdout)):  # one lives, one does not
        mine.with_name(mine.name.replace(str(os.getpid()), str(pid))).write_bytes(mine.read_bytes())
    drift.publish()
    assert REGISTRY.get_sample_value("tilewise_drift_tiles", {"band": "B04"}) == 20
    drift.close()
    assert not mine.exists()


def test_a_process_looks_back_on_no_more_tiles_than_its_part_of_the_window(champion: Engine) -> None:
    drift = Drift(lambda: champion, window=100, minimum=1)
    for _ in range(20):
        drift.observe(answered(LATER[:40]))
    drift.publish()
    held = REGISTRY.get_sample_value("tilewise_drift_tiles", {"band": "B04"})
    assert held is not None
    assert 80 <= held <= 100


# A real service.


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("drift")
    settings = {"TILEWISE_WORKERS": "2", "TILEWISE_DRIFT_WINDOW": "128", "TILEWISE_DRIFT_MIN_TILES": "50"}
    with served(watched_model(home / "model.onnx", TRAINING), home, **settings) as server:
        yield server


def post(url: str, pixels: npt.NDArray[np.uint16]) -> None:
    """Send tiles as an array, on a connection of their own so that either process may get them."""
    stream = io.BytesIO()
    np.save(stream, pixels)
    headers = {"Content-Type": "application/octet-stream"}
    done = httpx.post(
        f"{url}/classify", content=stream.getvalue(), headers=headers, trust_env=False, timeout=30
    )
    assert done.status_code == 200, done.text


@pytest.mark.slow
def test_a_forgotten_offset_is_seen_in_the_metrics_and_ordinary_tiles_are_not(service: Server) -> None:
    def all_bands(measure: str) -> dict[str, float]:
        found = samples(service.url, "tilewise_drift")
        return {
            band: v for band in BAND_NAMES for at, v in found.items() if f'"{band}",measure="{measure}"' in at
        }

    def told_of(pixels: npt.NDArray[np.uint16], minimum: float, limit: float) -> bool:
        post(service.url, pixels[:20])
        values = all_bands("psi").values()
        return len(values) == len(BAND_NAMES) and all(minimum <= value <= limit for value in values)

    post(service.url, LATER[:5])
    assert not all_bands("psi")
    until(lambda: told_of(LATER, 0, 0.25), "ordinary tiles are told to be ordinary")
    until(
        lambda: told_of(LATER + np.uint16(1000), 0.25, 100) and min(all_bands("wasserstein").values()) > 800,
        "an offset is told of in every band",
    )
    assert min(all_bands("kl").values()) > 0.1
