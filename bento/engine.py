"""onnxruntime around a model file: tiles in, answers out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from datasets.errors import TileShapeError
from datasets.tile import BAND_COUNT, DN
from models.modelfile import INPUT, ModelFile, ModelMetadata, open_model

_BATCH = 256  # tiles at a time: activations of a batch stay within a few hundred megabytes


@dataclass(frozen=True, slots=True)
class Answers:
    """What the network says of n tiles.

    Attributes:
        probabilities: float32 (n, classes), calibrated.
        embedding: float32 (n, features).
    """

    probabilities: npt.NDArray[np.float32]
    embedding: npt.NDArray[np.float32]


class Engine:
    """A model, loaded once and ready; safe to call from several threads."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        """Open the model file `path`; raises ModelFileError as `models.modelfile.open_model` does."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait take the cores from the event loop and from the readers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._file: ModelFile = open_model(path, options)

    @property
    def metadata(self) -> ModelMetadata:
        """What the model says of itself."""
        return self._file.metadata

    @property
    def sha256(self) -> str:
        """Of the model file."""
        return self._file.sha256

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
        names = ["probabilities", "embedding"]
        starts = range(0, len(tiles), _BATCH) if len(tiles) else range(1)
        parts = [self._file.session.run(names, {INPUT: tiles[s : s + _BATCH]}) for s in starts]
        probabilities, embedding = (np.concatenate(outputs) for outputs in zip(*parts, strict=True))
        return Answers(probabilities, embedding)
