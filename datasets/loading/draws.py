"""Random numbers that a tile's key alone decides, drawn for a whole batch on the device that trains.

A generator with a state would give a tile other numbers in another batch, on another device or after a
resumption. Here each number is a hash of the run's seed, the tile's key and a running number, so it is the
same for any number of devices, from wherever a run is resumed, and nothing waits for the device. The hash is
the two-round 32-bit mixer with the constants 0x21f0aaad and 0x735a2d97 (C. Wellons, hash-prospector, public
domain), whose products stay below 2⁶³.
"""

import math
from typing import Any

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_BYTES_DEVIATION = math.sqrt(4 * (256**2 - 1) / 12)  # of the sum of four uniform draws from 0 to 255
_STRIDE = 0x9E3779B1  # 2³² over the golden ratio: running numbers far apart before they are mixed


class Draws:
    """Draw a stream of random numbers for each tile of a batch.

    Args:
        keys: int64 (batch,): the same key draws the same numbers.
        seed: seed of the run.
    """

    def __init__(self, keys: Tensor, seed: int) -> None:
        low, high = keys & _WORD, (keys >> 32) & _WORD
        # The seed is mixed first: else seeds 0 and 1 would only swap the draws of neighbouring keys.
        self._keys = _mix(_mix(low ^ _mix((seed * _STRIDE + 1) & _WORD)) ^ high)
        self._used = 0

    def uniform(self, *shape: int) -> Tensor:
        """Return float32 (batch, *shape), uniform over [0, 1)."""
        # 24 bits are what a float32 holds exactly.
        return (self._words(*shape) >> 8).to(torch.float32) * 2.0**-24

    def normal(self, *shape: int) -> Tensor:
        """Return float32 (batch, *shape), normal with mean 0 and deviation 1 (Box and Muller 1958)."""
        radius = torch.sqrt(-2 * torch.log1p(-self.uniform(*shape)))
        return radius * torch.cos(2 * math.pi * self.uniform(*shape))

    def grain(self, *shape: int) -> Tensor:
        """Return float32 (batch, *shape), about normal, mean 0 and deviation 1: a sum of four uniform draws.

        For one number a pixel, which `normal` is too slow for on a CPU; none exceeds 3.5 deviations.
        """
        words = self._words(*shape)
        total = (words & 255) + ((words >> 8) & 255) + ((words >> 16) & 255) + (words >> 24)
        return (total.to(torch.float32) - 2 * 255) / _BYTES_DEVIATION

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """Return float32 (batch, *shape), uniform from `low` to `high`."""
        return self.uniform(*shape) * (high - low) + low

    def _words(self, *shape: int) -> Tensor:
        """Return int64 (batch, *shape): integers of 32 bits."""
        count = math.prod(shape)
        first = self._used
        self._used += count
        numbers = torch.arange(first + 1, first + 1 + count, device=self._keys.device)
        # Masked first: else torch's compiler takes the product for an array index, of 32 bits on a GPU.
        streams = _mix(((numbers & _WORD) * _STRIDE) & _WORD)
        return _mix(self._keys[:, None] ^ streams[None]).view(len(self._keys), *shape)


def _mix(words: Any) -> Any:
    """Return integers (an int64 tensor, or an int) in 0 … 2³² − 1, each a hash of one in the same range."""
    words = ((words ^ (words >> 16)) * 0x21F0AAAD) & _WORD
    words = ((words ^ (words >> 15)) * 0x735A2D97) & _WORD
    return words ^ (words >> 15)
