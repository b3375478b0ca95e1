"""All that a model file says of tiles, through onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datasets.errors import TrainingError
from datasets.pack import Pack
from datasets.progress import Report, silent
from datasets.tile import DN
from models.modelfile import INPUT, OUTPUTS, ModelFile
from training.disturbances import DISTURBANCES
from training.evaluation import ALL

Floats = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
_BATCH = 64


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs for n tiles: float32 (n, classes), (n, classes), (n, features), (n,)."""

    probabilities: Floats
    logits: Floats
    embedding: Floats
    outlier_score: Floats

    def __len__(self) -> int:
        return len(self.outlier_score)

    def take(self, rows: npt.NDArray[np.generic]) -> Outputs:
        """Return the outputs for some of the tiles."""
        return Outputs(self.probabilities[rows], self.logits[rows], self.embedding[rows], self.outlier_score[rows])


@dataclass(frozen=True)
class Case:
    """A model file and the tiles that it is measured on.

    Attributes:
        model: the model file.
        pack: the pack.
        split: whose tiles are measured.
        progress: told of long work.
    """

    model: ModelFile
    pack: Pack
    split: str
    progress: Report = silent

    def rows(self, source: str) -> Rows:
        """Return the rows of a source in the split."""
        return self.pack.rows(self.split, source)

    @property
    def sources(self) -> list[str]:
        """The sources that have tiles in the split.

        Raises:
            TrainingError: there is none, or the model does not know all classes of the pack.
        """
        found = [source for source in self.pack.summary.sources if len(self.rows(source))]
        if not found:
            have = ", ".join(f"{name} ({sum(c.values())})" for name, c in self.pack.summary.counts.items())
            raise TrainingError(f"{self.pack.root}: no tile is in the split {self.split!r}; it has {have}")
        return found

    def labels(self, rows: Rows) -> Rows:
        """Return the tiles' classes as positions in the model's classes, int64 (n,); -1 where it does not know one."""
        known = self.model.metadata.classes
        places = np.array([known.index(name) if name in known else -1 for name in self.pack.summary.classes])
        return np.asarray(places[self.pack.labels[rows]], np.int64)

    def ask(self, rows: Rows, change: Callable[[DN], DN] | None = None, step: str = "answering") -> Outputs:
        """Return the outputs for the tiles in `rows`, each batch changed by `change` first."""
        parts = []
        for start in range(0, len(rows), _BATCH):
            tiles = self.pack.fetch(rows[start : start + _BATCH])
            parts.append(self._run(tiles if change is None else change(tiles)))
            self.progress(step, min(start + _BATCH, len(rows)), len(rows))
        return _joined(parts)

    def ask_through(self, view: str, rows: Rows, step: str) -> Outputs:
        """Return the outputs for the tiles in `rows`, seen through all bands, or those of a set of `BAND_SETS`."""
        return self.ask(rows, None if view == ALL else DISTURBANCES[f"{view}_bands"], step)

    def ask_tiles(self, tiles: DN) -> Outputs:
        """Return the outputs for uint16 (n, 13, 64, 64), n >= 1."""
        return _joined([self._run(tiles[start : start + _BATCH]) for start in range(0, len(tiles), _BATCH)])

    def flagged(self, found: Outputs) -> float | None:
        """Return the share (0-1) that the file's own threshold flags; None where it has none."""
        limits = self.model.metadata.outliers
        return None if limits is None else float((found.outlier_score > limits.threshold).mean())

    def _run(self, tiles: DN) -> Outputs:
        return Outputs(*self.model.session.run(list(OUTPUTS), {INPUT: np.ascontiguousarray(tiles)}))


def _joined(parts: list[Outputs]) -> Outputs:
    names = ("probabilities", "logits", "embedding", "outlier_score")
    return Outputs(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
