"""The engine: any number of tiles in, as many answers out, each the same however they are grouped."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tilewise.bento.inference.engine import Engine
from tilewise.datasets.acquire.synthetic import render
from tilewise.datasets.core.errors import ModelFileError, TileShapeError
from tilewise.datasets.core.tile import DN
from tilewise.datasets.readers.eurosat import CLASSES


@pytest.fixture(scope="module")
def network(model_file: Path) -> Engine:
    return Engine(model_file, threads=1)


@pytest.fixture(scope="module")
def tiles() -> DN:
    """More tiles than go through the network at a time, all different, some with holes."""
    rng = np.random.default_rng(0)
    tiles = np.repeat(np.stack([render(label, 1, 3) for label in CLASSES]), 30, axis=0)
    tiles += rng.integers(0, 500, tiles.shape, dtype=np.uint16)
    tiles[::7, :, :20] = 0
    tiles[::11, 3] = 0
    return tiles


def test_probabilities_of_each_tile_sum_to_one(network: Engine, tiles: DN) -> None:
    probabilities = network.classify(tiles).probabilities
    assert probabilities.shape == (300, 10)
    assert probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_many_tiles_are_answered_as_if_each_had_come_alone_and_in_order(network: Engine, tiles: DN) -> None:
    together = network.classify(tiles)
    alone = [network.classify(tile[None]) for tile in tiles]
    assert len(np.unique(together.probabilities.round(6), axis=0)) > 250, "the tiles must differ"
    np.testing.assert_allclose(
        together.probabilities, np.concatenate([a.probabilities for a in alone]), atol=1e-5
    )
    np.testing.assert_allclose(together.embedding, np.concatenate([a.embedding for a in alone]), atol=1e-4)


def test_no_tile_gives_no_answer(network: Engine) -> None:
    answers = network.classify(np.zeros((0, 13, 64, 64), np.uint16))
    assert answers.probabilities.shape == (0, 10)
    assert len(answers.embedding) == 0


def test_a_tile_without_any_data_still_gets_finite_probabilities(network: Engine) -> None:
    probabilities = network.classify(np.zeros((1, 13, 64, 64), np.uint16)).probabilities
    assert np.isfinite(probabilities).all()
    assert probabilities.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 12, 64, 64), np.uint16),
        ((13, 64, 64), np.uint16),
        ((2, 13, 63, 64), np.uint16),
        ((1, 64, 64, 13), np.uint16),
        ((1, 13, 64, 64), np.float32),
        ((1, 13, 64, 64), np.uint8),
    ],
)
def test_arrays_of_another_form_are_refused_and_the_right_one_is_named(
    network: Engine, shape: tuple[int, ...], dtype: type
) -> None:
    with pytest.raises(TileShapeError, match=r"the model takes uint16 \(n, 13, 64, 64\)"):
        network.classify(np.zeros(shape, dtype))


def test_one_engine_serves_several_threads(network: Engine, tiles: DN) -> None:
    expected = network.classify(tiles[:80]).probabilities
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda start: network.classify(tiles[start : start + 4]), range(0, 80, 4)))
    np.testing.assert_allclose(np.concatenate([part.probabilities for part in parts]), expected, atol=1e-5)


def test_a_model_that_is_none_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="there is no such model"):
        Engine(tmp_path / "model.onnx")
