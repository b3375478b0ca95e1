"""The order of tiles: shuffled steps for training, fixed chunks for evaluation, each divided among processes.

Orders depend on the seed and the epoch alone, so any number of processes sees the same batches, and a run
that is resumed within an epoch goes on with the batches that were left.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from tilewise.datasets.core.errors import TrainingError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BlockOptions:
    """How tiles are shuffled that are read from the disk in every epoch.

    Attributes:
        tiles: tiles in a block, which is read in one go.
        window: tiles that are shuffled with one another; the blocks of a window come from all over the pack.
        shards: number of equal parts that an epoch's blocks are divided into. Every batch takes as many tiles
            from each, and every process reads its own shards, so the number of processes must divide it.
    """

    tiles: int = 64
    window: int = 16_384
    shards: int = 8


class EpochOrder:
    """Shuffle `length` tiles into steps of `batch` tiles; an incomplete last step is left out.

    Attributes:
        length: tiles in an epoch.
        batch: tiles in a step, at most `length`.
        steps: steps in an epoch.

    Args:
        length: tiles in an epoch.
        batch: tiles in a step, in all processes together.
        seed: seed of the run.
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
                f"a batch of {self.batch} tiles cannot be divided into {blocks.shards} shards; "
                "choose data.loader.blocks.shards that divides data.batch_size"
            )
        # Few tiles make small blocks: each shard needs some.
        self._size = max(1, min(blocks.tiles, length // (4 * blocks.shards)))
        count = -(-length // self._size)
        shortage = (
            count * self._size - length
        )  # of the last block, whose shard is not the same in every epoch
        self.steps = ((count // blocks.shards) * self._size - shortage) // (self.batch // blocks.shards)

    def of(self, epoch: int) -> Indices:
        """Return int64 (steps, batch): indices 0 … length − 1, each at most once."""
        rng = np.random.default_rng([self._seed, epoch])
        if self._blocks is None:
            return rng.permutation(self.length)[: self.steps * self.batch].reshape(self.steps, self.batch)
        blocks = rng.permutation(-(-self.length // self._size))
        shards = self._blocks.shards
        width = self.batch // shards
        parts = [self._shuffled(blocks[n::shards], rng)[: self.steps * width] for n in range(shards)]
        return np.concatenate([part.reshape(self.steps, width) for part in parts], axis=1)

    def _shuffled(self, blocks: Indices, rng: np.random.Generator) -> Indices:
        """Return the tiles of `blocks`, those of one window shuffled with one another."""
        assert self._blocks is not None  # noqa: S101 - for the type checker
        within = max(1, self._blocks.window // (self._size * self._blocks.shards))
        tiles = blocks[:, None] * self._size + np.arange(self._size)
        windows = [tiles[first : first + within].ravel() for first in range(0, len(tiles), within)]
        return np.concatenate([rng.permutation(window[window < self.length]) for window in windows])


@dataclass(frozen=True)
class ProcessRank:
    """One of `world_size` processes that train or test together.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    def columns_of(self, steps: Indices, blocks: BlockOptions | None = None) -> Indices:
        """Return this process's columns of `steps` (steps, batch).

        Raises:
            TrainingError: the batch or the shards cannot be divided equally.
        """
        whole = steps.shape[1] if blocks is None else blocks.shards
        if whole % self.world_size:
            option = "a batch of data.batch_size" if blocks is None else "data.loader.blocks.shards"
            raise TrainingError(
                f"{option} ({whole}) cannot be divided among {self.world_size} processes; choose a multiple"
            )
        width = steps.shape[1] // self.world_size
        return steps[:, self.rank * width : (self.rank + 1) * width]


def in_chunks(length: int, chunk: int, process: ProcessRank) -> Iterator[Indices]:
    """Yield the indices 0 … length − 1, in order, in chunks that do not depend on the number of processes.

    Every process yields as many chunks of the same shape, so that processes that synchronise at every step
    do. An index that only fills a chunk up is −1.
    """
    chunk = min(chunk, length)
    count = -(-length // chunk)
    for number in range(
        process.rank, -(-count // process.world_size) * process.world_size, process.world_size
    ):
        indices = np.arange(number * chunk, (number + 1) * chunk)
        yield np.where(indices < length, indices, -1)


class StepSampler(Sampler[list[int]]):
    """Yield this process's indices of each step; an index counts through epochs (index + epoch × length).

    Attributes:
        start: the step that the next epoch begins with; then 0 again.

    Args:
        order: order of the tiles of all processes.
        process: which process this is.
        blocks: how tiles are shuffled in blocks, if they are.
        read_ahead: called with the indices, not counting through epochs, of the tiles of the coming window.
    """

    def __init__(
        self,
        order: EpochOrder,
        process: ProcessRank,
        blocks: BlockOptions | None = None,
        read_ahead: Callable[[Indices], None] | None = None,
    ) -> None:
        self._order, self._process, self._blocks, self._read_ahead = order, process, blocks, read_ahead
        self._epoch, self.start = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the order of `epoch`; Lightning calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._order.steps

    def __iter__(self) -> Iterator[list[int]]:
        steps = self._process.columns_of(self._order.of(self._epoch), self._blocks)
        start, self.start = self.start, 0
        for number in range(start, len(steps)):
            self._request_ahead(steps, start, number)
            yield (steps[number] + self._epoch * self._order.length).tolist()

    def _request_ahead(self, steps: Indices, start: int, number: int) -> None:
        """At the first step of a window, request the tiles of the next one."""
        if self._read_ahead is None or self._blocks is None:
            return
        window = max(1, self._blocks.window // self._order.batch)
        if number == start:
            self._read_ahead(steps[start : start + window].ravel())
        if number == start or number % window == 0:
            self._read_ahead(steps[number + window : number + 2 * window].ravel())


class ChunkSampler(Sampler[list[int]]):
    """Yield all indices in order, in chunks that are the same for any number of processes (`in_chunks`)."""

    def __init__(self, length: int, chunk: int, process: ProcessRank) -> None:
        self._chunks = [indices.tolist() for indices in in_chunks(length, chunk, process)]

    def __len__(self) -> int:
        return len(self._chunks)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._chunks)
