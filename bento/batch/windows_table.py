"""The table of a scene's windows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rasterio.warp import transform

from bento.batch.frame import Frame
from bento.batch.tables import TableWriter
from bento.batch.wkb import quads_to_wkb, to_wkb
from bento.blending import NO_CLASS
from bento.windows import WindowAnswer
from models.modelfile import ModelMetadata

_DIGITS = 7  # of a degree: a centimetre
_HALF_TURN = 180.0


class WindowsTable:
    """Takes windows as they are answered.

    Each row has: `row` and `column` of the upper left pixel, `class`, `confidence` (its probability), `valid_share`,
    `p_<class>` for every class, `outlier_score`, and where the model is calibrated for them `outlier` (whether the
    score is above the model's threshold) and `prediction_set` (likeliest class first). A window that was skipped has
    none but its place and `valid_share`.

    Args:
        path: the GeoParquet file to make.
        frame: the scene's grid.
        metadata: of the model.
        coverage: of the prediction sets, 0-1.
    """

    def __init__(self, path: Path, frame: Frame, metadata: ModelMetadata, coverage: float) -> None:
        self._frame, self._metadata = frame, metadata
        sets = metadata.prediction_sets
        self._threshold = sets.threshold(coverage) if sets else None
        self._writer = TableWriter(path, _schema(metadata))

    def add(self, windows: Sequence[WindowAnswer]) -> None:
        """Take windows in reading order; raises OSError where the disk does not take them."""
        if windows:
            self._writer.add(self._columns(windows), _outlines(windows, self._frame))

    def finish(self) -> Path:
        """Make the file whole; return it."""
        return self._writer.finish()

    def close(self) -> None:
        """Give up what is not finished."""
        self._writer.close()

    def _columns(self, windows: Sequence[WindowAnswer]) -> dict[str, Any]:
        classes = self._metadata.classes
        shares = [window.probabilities for window in windows]
        scores = [score_of(window) for window in windows]
        columns: dict[str, Any] = {
            "row": [window.row for window in windows],
            "column": [window.column for window in windows],
            "class": [None if w.class_index == NO_CLASS else classes[w.class_index] for w in windows],
            "confidence": [None if share is None else float(share.max()) for share in shares],
            "valid_share": [window.valid_share for window in windows],
            "outlier_score": scores,
        }
        for index, name in enumerate(classes):
            columns[f"p_{name}"] = [None if share is None else float(share[index]) for share in shares]
        if self._metadata.outliers:
            limit = self._metadata.outliers.threshold
            columns["outlier"] = [None if score is None else score > limit for score in scores]
        if self._threshold is not None:
            columns["prediction_set"] = [None if share is None else self._set(share) for share in shares]
        return columns

    def _set(self, shares: Any) -> list[str]:
        assert self._threshold is not None  # noqa: S101 - asked by the caller
        ranked = sorted(zip(shares.tolist(), self._metadata.classes, strict=True), reverse=True)
        return [name for share, name in ranked if share >= self._threshold]


def score_of(window: WindowAnswer) -> float | None:
    """Return the outlier score of a window, None where it was skipped."""
    score = window.outlier_score
    return None if score is None or window.probabilities is None else float(score)


def _schema(metadata: ModelMetadata) -> pa.Schema:
    fields = [
        ("row", pa.int32()),
        ("column", pa.int32()),
        ("class", pa.string()),
        ("confidence", pa.float32()),
        ("valid_share", pa.float32()),
        *((f"p_{name}", pa.float32()) for name in metadata.classes),
        ("outlier_score", pa.float32()),
    ]
    if metadata.outliers:
        fields.append(("outlier", pa.bool_()))
    if metadata.prediction_sets:
        fields.append(("prediction_set", pa.list_(pa.string())))
    return pa.schema(fields)


def _outlines(windows: Sequence[WindowAnswer], frame: Frame) -> list[bytes | None]:
    """Return the windows' outlines: all corners are transformed at once, which is 20 times faster than one by one."""
    boxes = np.array([(w.column, w.row, w.column + w.width, w.row + w.height) for w in windows], float)
    corners = boxes[:, [[0, 1], [0, 3], [2, 3], [2, 1]]]  # (windows, 4 corners, column and row)
    place = frame.window_place or frame.place
    a, b, c, d, e, f = place.transform[:6]
    xs = (a * corners[..., 0] + b * corners[..., 1] + c).ravel()
    ys = (d * corners[..., 0] + e * corners[..., 1] + f).ravel()
    longitude, latitude = transform(place.crs, "EPSG:4326", xs, ys)
    on_earth = np.stack([longitude, latitude], axis=-1).round(_DIGITS).reshape(corners.shape)
    odd = np.ptp(on_earth[..., 0], axis=1) > _HALF_TURN
    odd |= ~(np.isfinite(on_earth).all(axis=(1, 2)) & (abs(on_earth[..., 0]) <= _HALF_TURN).all(axis=1))
    outlines: list[bytes | None] = [*quads_to_wkb(on_earth)]
    for index in np.flatnonzero(odd).tolist():  # across the antimeridian, or nowhere on Earth
        footprint = windows[index].footprint(place)
        outlines[index] = None if footprint is None else to_wkb(footprint)
    return outlines
