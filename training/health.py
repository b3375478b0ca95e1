"""What a run can be taken up from: a last checkpoint after epochs, and one where it ends early, told to by SIGTERM or
by a loss that is no number.

An epoch may be shorter than it takes to save: on a GPU half a second. So the last checkpoint is left out where saving
would take more than a twentieth of the time, but never after the last epoch.

Each step, a word of two flags is put together on the device: is the loss broken, and was this process told to end. The
processes agree on it with one small reduction, and the host reads it two steps later, when it has long arrived, so that
no step waits for the device. A broken step does not move the weights: the optimiser skips it on the device.

Lightning does the latter by a broadcast and a wait in every step (Lightning-AI/pytorch-lightning#21487), and broadcasts
from inside the signal handler; here its part in it is switched off while fitting.
"""

import json
import signal
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor
from torch.optim import Optimizer

from datasets.errors import StoppedError, TrainingError
from training.paths import RunFolder

_LAG = 2  # steps that a GPU may be ahead of the host's look at their flags
_SAVING = 0.05  # the share of the time that last checkpoints may take
_NAMED = 5  # tiles in the error's line; the file beside the checkpoint has all


@dataclass(frozen=True, slots=True)
class _Word:
    """The flags of one step of the optimiser, on their way to the host."""

    step: int
    flags: Tensor  # float32 (2,): broken, told to end
    rows: list[Tensor]  # of the step's batches
    arrived: torch.cuda.Event | None

    def read(self) -> tuple[bool, bool]:
        if self.arrived is not None:
            self.arrived.synchronize()
        broken, end = self.flags.tolist()
        return broken > 0, end > 0


class Health(Checkpoint):
    """Keeps a last checkpoint, and stops a run whose loss is not finite, or that is told to end.

    Lightning's `save_last` only saves where the best is saved, so it can be many epochs old.

    It is a `Checkpoint` so that Lightning calls it after the other callbacks. The task must say in `broken`, bool (),
    whether any loss was not finite since fitting began.
    """

    def __init__(self) -> None:
        self._told_to_end, self._due = False, 0.0
        self._words: deque[_Word] = deque()
        self._rows: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to SIGTERM in Lightning's place, which restores the handlers at the end."""
        self._told_to_end, self._due = False, 0.0
        self._words.clear()
        self._rows.clear()
        loop: Any = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = lambda: None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self._be_told())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remember whose loss comes next."""
        self._rows.append(batch["rows"])

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Put the step's flags together, and let the optimiser skip it if it is broken."""
        told = torch.full((), float(self._told_to_end), device=pl_module.device)
        flags = torch.stack([pl_module.broken.float(), told])
        if trainer.world_size > 1:
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = flags[0]  # type: ignore[attr-defined]  # what a loss scaler would say
        self._words.append(_send(trainer.global_step, flags, self._rows))
        self._rows = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at flags that have arrived."""
        lag = 0 if pl_module.device.type == "cpu" else _LAG
        while len(self._words) > lag:
            # Told at an epoch's last step, the run ends after its validation: there is no way back into between them.
            self._look(trainer, pl_module, may_end=not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the flags that are left, and keep the state after the epoch, unless that was done just now."""
        while self._words:
            self._look(trainer, pl_module, may_end=True)
        if self._agreed(trainer, pl_module):
            self._end(trainer)
        # The first process decides: each has its own clock, and all must save together.
        if trainer.strategy.broadcast(_is_last_epoch(trainer) or time.monotonic() >= self._due):
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        began = time.monotonic()
        trainer.save_checkpoint(RunFolder(Path(trainer.default_root_dir)).last, weights_only=False)
        ended = time.monotonic()
        self._due = ended + (ended - began) / _SAVING

    def _be_told(self) -> None:
        self._told_to_end = True

    def _agreed(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        told = torch.tensor(float(self._told_to_end), device=pl_module.device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
        return bool(told > 0)

    def _look(self, trainer: pl.Trainer, pl_module: Any, may_end: bool) -> None:
        word = self._words.popleft()
        broken, end = word.read()
        if broken:
            _stop_broken(trainer, pl_module, word)
        if end and may_end:
            self._end(trainer)

    def _end(self, trainer: pl.Trainer) -> None:
        last = RunFolder(Path(trainer.default_root_dir)).last
        trainer.save_checkpoint(last, weights_only=False)
        raise StoppedError(f"stopped by SIGTERM after step {trainer.global_step}; go on with --ckpt_path {last}")


def _is_last_epoch(trainer: pl.Trainer) -> bool:
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    return trainer.should_stop or 0 < epochs <= trainer.current_epoch + 1 or 0 < steps <= trainer.global_step


def _send(step: int, flags: Tensor, rows: list[Tensor]) -> _Word:
    if flags.device.type != "cuda":
        return _Word(step, flags.clone(), rows, None)
    host = torch.empty(flags.shape, pin_memory=True)
    host.copy_(flags, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return _Word(step, host, rows, arrived)


def _stop_broken(trainer: pl.Trainer, pl_module: Any, word: _Word) -> None:
    """Keep the state from before the broken step, say which tiles were in it, and raise."""
    folder = RunFolder(Path(trainer.default_root_dir))
    here = _names(trainer, word.rows) if bool(pl_module.broken) else []
    names = _from_all(trainer, here)
    trainer.save_checkpoint(folder.broken, weights_only=False)
    listed = folder.broken.with_suffix(".json")
    if trainer.is_global_zero:
        content = {"step": word.step, "epoch": trainer.current_epoch, "tiles": names}
        listed.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    some = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    raise TrainingError(
        f"the loss of step {word.step} (epoch {trainer.current_epoch + 1}) is not finite; its batch held {some} "
        f"(all in {listed}), and {folder.broken} has the weights from before it; look at those tiles, or lower "
        "model.optimisation.rate"
    )


def _names(trainer: Any, rows: list[Tensor]) -> list[str]:
    return list(trainer.datamodule.pack.names(torch.cat(rows).cpu().numpy()))


def _from_all(trainer: pl.Trainer, names: list[str]) -> list[str]:
    if trainer.world_size == 1:
        return names
    gathered: list[list[str]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(gathered, names)
    return [name for part in gathered for name in part]
