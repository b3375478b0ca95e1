"""Random numbers that a tile's key alone decides, drawn for a whole batch on the device that trains.

A generator with a state would give a tile other numbers in another batch, on another device or after a resumption. Here
each number is a hash of the run's seed, the tile's key and a running number, so it is the same for any number of
devices, from wherever a run is resumed, and nothing waits for the device. The hash is the two-round 32-bit mixer with
the constants 0x21f0aaad and 0x735a2d97 (C. Wellons, hash-prospector, public domain), whose products stay below 2⁶³.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tilewise.datasets.core.errors import TrainingError

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


_WORD = 0xFFFFFFFF
_BYTES_DEVIATION = math.sqrt(4 * (256**2 - 1) / 12)  # of the sum of four even draws from 0 to 255
_STRIDE = 0x9E3779B1  # 2³² over the golden ratio: running numbers far apart before they are mixed


class Draws:
    """A stream of draws for each tile of a batch.

    Args:
        keys: int64 (batch,): the same key draws the same numbers.
        seed: of the run.
    """

    def __init__(self, keys: Tensor, seed: int) -> None:
        low, high = keys & _WORD, (keys >> 32) & _WORD
        # The seed is mixed first: else seeds 0 and 1 would only swap the draws of neighbouring keys.
        self._keys = _mix(_mix(low ^ _mix((seed * _STRIDE + 1) & _WORD)) ^ high)
        self._used = 0

    def uniform(self, *shape: int) -> Tensor:
        """Return float32 (batch, *shape), evenly spread over [0, 1)."""
        # 24 bits are what a float32 holds exactly.
        return (self._words(*shape) >> 8).to(torch.float32) * 2.0**-24

    def normal(self, *shape: int) -> Tensor:
        """Return float32 (batch, *shape), normal with mean 0 and deviation 1 (Box and Muller 1958)."""
        radius = torch.sqrt(-2 * torch.log1p(-self.uniform(*shape)))
        return radius * torch.cos(2 * math.pi * self.uniform(*shape))

    def grain(self, *shape: int) -> Tensor:
        """Return float32 (batch, *shape), with mean 0 and deviation 1, about normal: the sum of four even draws.

        For as many numbers as a tile has, which `normal` is too slow for on a CPU; none lies beyond 3.5 deviations.
        """
        words = self._words(*shape)
        total = (words & 255) + ((words >> 8) & 255) + ((words >> 16) & 255) + (words >> 24)
        return (total.to(torch.float32) - 2 * 255) / _BYTES_DEVIATION

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """Return float32 (batch, *shape), evenly spread from `low` to `high`."""
        return self.uniform(*shape) * (high - low) + low

    def _words(self, *shape: int) -> Tensor:
        """Return int64 (batch, *shape): whole numbers of 32 bits."""
        count = math.prod(shape)
        first = self._used
        self._used += count
        numbers = torch.arange(first + 1, first + 1 + count, device=self._keys.device)
        # Masked first: else torch's compiler takes the product for a place in an array, of 32 bits on a GPU.
        streams = _mix(((numbers & _WORD) * _STRIDE) & _WORD)
        return _mix(self._keys[:, None] ^ streams[None]).view(len(self._keys), *shape)


def _mix(words: Any) -> Any:
    """Return whole numbers (an int64 tensor, or an int) in 0 … 2³² − 1, each a hash of one in the same range."""
    words = ((words ^ (words >> 16)) * 0x21F0AAAD) & _WORD
    words = ((words ^ (words >> 15)) * 0x735A2D97) & _WORD
    return words ^ (words >> 15)
