"""What a classifier answered, kept on the device until all is answered: no step of an evaluation waits for it."""

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor


class Answers:
    """The logits of all tiles, per set of bands, beside the tiles' rows and labels."""

    def __init__(self) -> None:
        self._logits: dict[str, list[Tensor]] = defaultdict(list)
        self._rows: list[Tensor] = []
        self._labels: list[Tensor] = []

    def add(self, view: str, logits: Tensor) -> None:
        """Add the logits of a batch seen through `view`."""
        self._logits[view].append(logits.detach().float())

    def add_truth(self, rows: Tensor, labels: Tensor) -> None:
        """Add the rows (in the pack) and labels of the batch that was added last; a row of −1 is not counted."""
        self._rows.append(rows)
        self._labels.append(labels)

    def collect(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Bring the answers of all processes together, each tile's once, in the order of rows, on the CPU.

        Args:
            gather: maps a process's tensor (n, …) to those of all processes (processes × n, …).
        """
        rows = gather(torch.cat(self._rows)).cpu()
        order = torch.argsort(rows, stable=True)
        order = order[rows[order] >= 0]
        self._rows = [rows[order]]
        self._labels = [gather(torch.cat(self._labels)).cpu()[order]]
        for view, parts in self._logits.items():
            self._logits[view] = [gather(torch.cat(parts)).cpu()[order]]

    @property
    def rows(self) -> Tensor:
        """int64 (n,): rows in the pack, in the order of the answers."""
        return torch.cat(self._rows)

    @property
    def labels(self) -> Tensor:
        """int64 (n,)."""
        return torch.cat(self._labels)

    def logits(self, view: str) -> Tensor:
        """float32 (n, classes): of all tiles seen through `view`."""
        return torch.cat(self._logits[view])
