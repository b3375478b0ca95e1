"""onnxruntime around a model file: tiles in, answers out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from tilewise.datasets.core.errors import ModelFileError, TileShapeError
from tilewise.datasets.core.tile import BAND_COUNT, DN
from tilewise.models.model_file import INPUT, OUTPUTS, ModelFile, ModelMetadata, open_model, usable_cores

TILES_A_THREAD = 8
"""Tiles that a thread is given at a time: what they become on their way stays in its core's caches.

Measured on models/pretrained in INT8, one thread: 183 µs a tile by 8, 212 by 64 (docs/decisions/0013).
"""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the network says of n tiles.

    Attributes:
        probabilities: float32 (n, classes), calibrated.
        logits: float32 (n, classes).
        embedding: float32 (n, features).
        outlier_score: float32 (n,), larger for tiles unlike the training data.
    """

    probabilities: npt.NDArray[np.float32]
    logits: npt.NDArray[np.float32]
    embedding: npt.NDArray[np.float32]
    outlier_score: npt.NDArray[np.float32]


class Engine:
    """A model, loaded once and ready; safe to call from several threads."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        """Open the model file `path` and run it once.

        Raises:
            ModelFileError: as `tilewise.models.model_file.open_model` does, or the model does not answer soundly.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait take the cores from the event loop and from the readers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._at_once = TILES_A_THREAD * (threads or usable_cores())
        self._file: ModelFile = open_model(path, options)
        self._check_itself()

    @property
    def metadata(self) -> ModelMetadata:
        """What the model says of itself."""
        return self._file.metadata

    @property
    def sha256(self) -> str:
        """Of the model file."""
        return self._file.sha256

    @property
    def identity(self) -> dict[str, str]:
        """Name, version and hash, as answers tell them."""
        return {"name": self.metadata.name, "version": self.metadata.version, "sha256": self.sha256}

    @property
    def path(self) -> Path:
        """Where the model file lies."""
        return self._file.path

    def classify(self, tiles: DN) -> Answers:
        """Answer uint16 (n, 13, 64, 64), n >= 0.

        Raises:
            TileShapeError: the tiles have another shape or type.
        """
        size = self.metadata.tile_size
        if tiles.dtype != np.uint16 or tiles.shape[1:] != (BAND_COUNT, size, size):
            raise TileShapeError(
                f"tiles of {tiles.dtype} {tiles.shape}; the model takes uint16 (n, {BAND_COUNT}, {size}, {size})"
            )
        starts = range(0, len(tiles), self._at_once) if len(tiles) else range(1)
        parts = [self._file.session.run(list(OUTPUTS), {INPUT: tiles[s : s + self._at_once]}) for s in starts]
        if len(parts) == 1:
            return Answers(*parts[0])
        return Answers(*(np.concatenate(outputs) for outputs in zip(*parts, strict=True)))

    def _check_itself(self) -> None:
        """Refuse a model that gives no probabilities: a broken file may load and still answer nonsense."""
        size = self.metadata.tile_size
        tiles = np.full((2, BAND_COUNT, size, size), 1500, np.uint16)
        tiles[1, ::2] = 0
        try:
            found = self.classify(tiles).probabilities
        except Exception as error:  # onnxruntime's own exceptions share no base but Exception
            raise ModelFileError(f"{self.path}: the model cannot be run; export it again") from error
        if not (np.isfinite(found).all() and np.allclose(found.sum(1), 1, atol=1e-3)):
            raise ModelFileError(f"{self.path}: the model's probabilities do not sum to 1; export it again")
