"""A model whose file holds reference histograms, and what a served one says in `/metrics`."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import numpy.typing as npt
from tiny_onnx import metadata, write_model

from tilewise.datasets.acquire.synthetic import render
from tilewise.datasets.core.bands import BAND_NAMES
from tilewise.datasets.packs.statistics import EDGES
from tilewise.datasets.readers.eurosat import CLASSES
from tilewise.models.model_file import ModelMetadata, Outliers, PredictionSets, ReferenceHistogram


def tiles(count: int, seed: int) -> npt.NDArray[np.uint16]:
    """Return synthetic tiles (count, 13, 64, 64), of each class in turn."""
    return np.stack([render(CLASSES[n % len(CLASSES)], n, seed=seed) for n in range(count)])


def watched_metadata(training: npt.NDArray[np.uint16], absent: tuple[str, ...] = ()) -> ModelMetadata:
    """Return metadata of a model that was trained on `training`, without the bands `absent`."""
    histograms = []
    for index, band in enumerate(BAND_NAMES):
        values = training[:, index][training[:, index] > 0]
        counts = np.histogram(values, EDGES)[0] * (band not in absent)
        histograms.append(ReferenceHistogram(band=band, mean=0, std=1, counts=tuple(counts.tolist())))
    return metadata(CLASSES).model_copy(
        update={
            "histogram_edges": EDGES,
            "histograms": tuple(histograms),
            "prediction_sets": PredictionSets(method="test", thresholds={0.9: 0.01}),
            "outliers": Outliers(method="test", threshold=1e6, false_alarms=0.01),
        }
    )


def watched_model(path: Path, training: npt.NDArray[np.uint16]) -> Path:
    """Write such a model."""
    weights = np.zeros((len(BAND_NAMES) + 1, len(CLASSES)), np.float32)
    return write_model(path, watched_metadata(training).model_dump_json(), weights=weights)


def samples(url: str, name: str) -> dict[str, float]:
    """Return the samples of a metric, by what stands in the braces."""
    text = httpx.get(f"{url}/metrics", trust_env=False, timeout=30).text
    found = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def until(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait until something is so, at most `seconds`."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.05)
