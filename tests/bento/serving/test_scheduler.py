"""Long work beside short: its answers are the engine's own, and it can be ended at any portion."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tilewise.bento.inference.engine import Engine
from tilewise.bento.serving.batcher import Batcher, ClosedError
from tilewise.bento.serving.scheduler import ScheduledEngine
from tilewise.datasets.acquire.synthetic import render
from tilewise.datasets.readers.eurosat import CLASSES

TILES = np.stack([render(CLASSES[n % 10], n, seed=3) for n in range(150)])


@pytest.fixture
def batcher() -> Iterator[Batcher[int, int]]:
    batcher: Batcher[int, int] = Batcher(list, 8)
    yield batcher
    batcher.close()


@pytest.mark.parametrize("count", [0, 1, 5, 150])
def test_answers_are_those_of_the_engine(engine: Engine, batcher: Batcher[int, int], count: int) -> None:
    found = ScheduledEngine(engine, batcher, lambda: None).classify(TILES[:count])
    expected = engine.classify(TILES[:count])
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-6)
    np.testing.assert_allclose(found.embedding, expected.embedding, rtol=1e-5)
    assert found.outlier_score.shape == expected.outlier_score.shape == (count,)


def test_it_says_of_the_model_what_the_engine_says(engine: Engine, batcher: Batcher[int, int]) -> None:
    turns = ScheduledEngine(engine, batcher, lambda: None)
    assert (turns.metadata, turns.identity, turns.path) == (engine.metadata, engine.identity, engine.path)


def test_the_work_ends_at_the_portion_at_which_it_is_told_to(
    engine: Engine, batcher: Batcher[int, int]
) -> None:
    portions: list[int] = []

    def check() -> None:
        portions.append(1)
        if len(portions) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ScheduledEngine(engine, batcher, check).classify(TILES)
    assert len(portions) == 3


def test_the_work_ends_when_the_batcher_closes(engine: Engine) -> None:
    batcher: Batcher[int, int] = Batcher(list, 8)
    begun, caught = threading.Event(), []

    def work() -> None:
        try:
            while True:
                ScheduledEngine(engine, batcher, begun.set).classify(TILES)
        except ClosedError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(10)
    batcher.close()
    thread.join(10)
    assert len(caught) == 1
