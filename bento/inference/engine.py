"""Inference: run a model file by onnxruntime on batches of tiles."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from tilewise.bento.inference.device import Device, providers_of
from tilewise.datasets.core.errors import ModelFileError, TileShapeError
from tilewise.datasets.core.tile import BAND_COUNT, DN
from tilewise.models.model_file import (
    INPUT,
    INT8,
    OUTPUTS,
    ModelFile,
    ModelMetadata,
    open_model,
    usable_cores,
)

_MAX_DIFFERENCE, _MAX_DIFFERENCE_INT8 = 1e-3, 0.05  # of a probability: processors sum in other orders
TILES_A_THREAD = 8
"""Tiles per thread in one run of the network, so that its activations stay in the caches of a core.

Measured on models/pretrained in INT8, one thread: 183 µs a tile by 8, 212 by 64 (docs/decisions/0013).
"""
TILES_A_GPU_RUN = 256


@dataclass(frozen=True, slots=True)
class Answers:
    """Outputs of the network for n tiles.

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


class TileClassifier(Protocol):
    """Whatever classifies tiles as an `Engine` does: an engine, or one that takes turns with other work."""

    @property
    def metadata(self) -> ModelMetadata:
        """Metadata in the model file."""
        ...

    @property
    def sha256(self) -> str:
        """SHA-256 of the model file, hexadecimal."""
        ...

    @property
    def identity(self) -> dict[str, str]:
        """Name, version and SHA-256 of the model, as responses hold them."""
        ...

    @property
    def path(self) -> Path:
        """Path of the model file."""
        ...

    def classify(self, tiles: DN) -> Answers:
        """Classify uint16 (n, 13, 64, 64), n >= 0; raises TileShapeError for any other shape or type."""
        ...


class Engine:
    """Run one model file; safe to call from several threads."""

    def __init__(self, path: Path, threads: int = 0, device: Device = Device.CPU) -> None:
        """Open the model file `path` and run it once.

        Args:
            path: of the model file.
            threads: of the network on a processor; 0: one for each usable core.
            device: one that `tilewise.bento.inference.device.choose` returned.

        Raises:
            ModelFileError: as `tilewise.models.model_file.open_model`, or the model gives no valid
                probabilities.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait would take the cores from the event loop and from reading.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        cuda = device is Device.CUDA
        self._run_size = TILES_A_GPU_RUN if cuda else TILES_A_THREAD * (threads or usable_cores())
        self._file: ModelFile = open_model(path, options, providers_of(device))
        self._self_check()

    @property
    def metadata(self) -> ModelMetadata:
        """Metadata in the model file."""
        return self._file.metadata

    @property
    def sha256(self) -> str:
        """SHA-256 of the model file, hexadecimal."""
        return self._file.sha256

    @property
    def identity(self) -> dict[str, str]:
        """Name, version and SHA-256 of the model, as responses hold them."""
        return {"name": self.metadata.name, "version": self.metadata.version, "sha256": self.sha256}

    @property
    def path(self) -> Path:
        """Path of the model file."""
        return self._file.path

    @property
    def widths(self) -> dict[str, int]:
        """Columns of each output that has some: classes, or features of the embedding."""
        outputs = self._file.session.get_outputs()
        classes = len(self.metadata.classes)
        return {
            one.name: one.shape[1] if isinstance(one.shape[1], int) else classes
            for one in outputs
            if len(one.shape) == 2
        }

    def classify(self, tiles: DN) -> Answers:
        """Classify uint16 (n, 13, 64, 64), n >= 0.

        Raises:
            TileShapeError: the tiles have another shape or type.
        """
        size = self.metadata.tile_size
        if tiles.dtype != np.uint16 or tiles.shape[1:] != (BAND_COUNT, size, size):
            raise TileShapeError(
                f"tiles of {tiles.dtype} {tiles.shape}; the model takes uint16 (n, {BAND_COUNT}, {size}, "
                f"{size})"
            )
        starts = range(0, len(tiles), self._run_size) if len(tiles) else range(1)
        parts = [
            self._file.session.run(list(OUTPUTS), {INPUT: tiles[s : s + self._run_size]}) for s in starts
        ]
        if len(parts) == 1:
            return Answers(*parts[0])
        return Answers(*(np.concatenate(outputs) for outputs in zip(*parts, strict=True)))

    def _self_check(self) -> None:
        """Refuse a model whose probabilities are invalid: a corrupt file may load and still give nonsense."""
        size, test = self.metadata.tile_size, self.metadata.self_test
        tiles = np.full((2, BAND_COUNT, size, size), 1500, np.uint16)
        tiles[1, ::2] = 0
        try:
            probabilities = self.classify(tiles).probabilities
            found = self.classify(test.enlarged()).probabilities if test else None
        except Exception as error:  # onnxruntime's own exceptions share no base but Exception
            raise ModelFileError(f"{self.path}: the model cannot be run; export it again") from error
        if not (np.isfinite(probabilities).all() and np.allclose(probabilities.sum(1), 1, atol=1e-3)):
            raise ModelFileError(f"{self.path}: the model's probabilities do not sum to 1; export it again")
        if test and found is not None:
            self._compare(found, np.array(test.probabilities, np.float32))

    def _compare(self, found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
        """Refuse a model that does not answer its own tiles as it did when it was exported."""
        allowed = _MAX_DIFFERENCE_INT8 if self.metadata.precision == INT8 else _MAX_DIFFERENCE
        if found.shape != expected.shape or not np.abs(found - expected).max() <= allowed:
            raise ModelFileError(
                f"{self.path}: the model does not answer the tiles in its metadata as it did when it was "
                "exported; copy or export it again"
            )
