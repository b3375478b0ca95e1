"""Which tile stands where in an epoch: orders that the seed and the epoch alone decide.

An order is cut into steps of one *global* batch, which all training processes work on together. So it does not depend
on the number of processes, and a run can be resumed in the middle of an epoch on another number of devices.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datasets.errors import TrainingError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BlockOptions:
    """How tiles are shuffled that are read from the disk in every epoch.

    Attributes:
        tiles: in a block, which is read in one go.
        window: tiles that are shuffled with one another; the blocks in a window come from all over the pack.
        shards: into how many equal parts an epoch's blocks are dealt. Every batch takes as much of each, and every
            process reads its own, so the number of processes must divide it.
    """

    tiles: int = 64
    window: int = 16_384
    shards: int = 8


class EpochOrder:
    """Orders of `length` tiles in steps of `batch` tiles; the tiles of an incomplete last step wait for another epoch.

    Attributes:
        length, batch: a batch is no larger than the tiles are many.
        steps: in an epoch.

    Args:
        length: how many tiles stand in an epoch.
        batch: tiles a step, in all processes together.
        seed: of the run.
        blocks: shuffle in blocks; None shuffles all tiles.

    Raises:
        TrainingError: the shards do not divide the batch.
    """

    def __init__(self, length: int, batch: int, seed: int, blocks: BlockOptions | None = None) -> None:
        self.length, self.batch, self._seed = length, min(batch, length), seed
        self._blocks = blocks
        if blocks is None:
            self.steps = length // self.batch
            return
        if self.batch % blocks.shards:
            raise TrainingError(
                f"a batch of {self.batch} tiles cannot be parted into {blocks.shards} shards; "
                "choose data.blocks.shards that divides data.batch_size"
            )
        # Few tiles make small blocks: each shard needs some.
        self._size = max(1, min(blocks.tiles, length // (4 * blocks.shards)))
        count = -(-length // self._size)
        shortage = count * self._size - length  # of the last block, whose shard is not the same in every epoch
        self.steps = ((count // blocks.shards) * self._size - shortage) // (self.batch // blocks.shards)

    def of(self, epoch: int) -> Indices:
        """Return int64 (steps, batch): positions 0 … length − 1, each at most once."""
        rng = np.random.default_rng([self._seed, epoch])
        if self._blocks is None:
            return rng.permutation(self.length)[: self.steps * self.batch].reshape(self.steps, self.batch)
        blocks = rng.permutation(-(-self.length // self._size))
        shards = self._blocks.shards
        share = self.batch // shards
        parts = [self._shuffled(blocks[n::shards], rng)[: self.steps * share] for n in range(shards)]
        return np.concatenate([part.reshape(self.steps, share) for part in parts], axis=1)

    def _shuffled(self, blocks: Indices, rng: np.random.Generator) -> Indices:
        """Return the tiles of `blocks`, those of one window shuffled with one another."""
        assert self._blocks is not None  # noqa: S101 - for the type checker
        within = max(1, self._blocks.window // (self._size * self._blocks.shards))
        tiles = blocks[:, None] * self._size + np.arange(self._size)
        windows = [tiles[first : first + within].ravel() for first in range(0, len(tiles), within)]
        return np.concatenate([rng.permutation(window[window < self.length]) for window in windows])


@dataclass(frozen=True)
class Part:
    """One of several processes that train or test together."""

    rank: int = 0
    count: int = 1

    def of_batch(self, steps: Indices, blocks: BlockOptions | None = None) -> Indices:
        """Return this process's columns of `steps` (steps, batch).

        Raises:
            TrainingError: the batch or the shards cannot be parted equally.
        """
        whole = steps.shape[1] if blocks is None else blocks.shards
        if whole % self.count:
            what = "a batch of data.batch_size" if blocks is None else "data.blocks.shards"
            raise TrainingError(f"{what} ({whole}) cannot be parted among {self.count} processes; choose a multiple")
        share = steps.shape[1] // self.count
        return steps[:, self.rank * share : (self.rank + 1) * share]


def in_chunks(length: int, chunk: int, part: Part) -> Iterator[Indices]:
    """Yield the positions 0 … length − 1, in order, in chunks that do not depend on the number of processes.

    Every process yields as many chunks of the same shape, so that those that meet at every step meet; a place that is
    not to be counted is −1.
    """
    chunk = min(chunk, length)
    whole = -(-length // chunk)
    for number in range(part.rank, -(-whole // part.count) * part.count, part.count):
        positions = np.arange(number * chunk, (number + 1) * chunk)
        yield np.where(positions < length, positions, -1)
