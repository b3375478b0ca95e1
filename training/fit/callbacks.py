"""Callbacks of training: weight averaging, seeds, history, system metrics, the last checkpoint, and early
ends by SIGTERM or a loss that is not finite.

An epoch may be shorter than saving takes: on a GPU half a second. The last checkpoint is therefore skipped
where saving would take more than a twentieth of the time, but never after the last epoch.

Each step computes two flags on the device: is the loss not finite, and did this process receive SIGTERM. One
small reduction combines them over processes, and the host reads them two steps later, when they have arrived,
so that no step waits for the device. The optimiser skips a step whose loss is not finite, on the device.

Lightning does the latter by a broadcast and a wait in every step (Lightning-AI/pytorch-lightning#21487), and
broadcasts from inside the signal handler; here that is switched off while fitting.
"""

import contextlib
import csv
import json
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, WeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from tilewise.datasets.core.errors import StoppedError, TrainingError
from tilewise.training.settings import RunFolder
from tilewise.training.tracking import mlflow_logger

if TYPE_CHECKING:
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor


@contextlib.contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into a StoppedError, so that started work is ended, too; a training inside handles SIGTERM
    itself.

    Outside the main thread, which alone may handle signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise StoppedError("stopped by SIGTERM; the same command goes on")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class SystemMetrics(Callback):
    """Runs MLflow's own monitor, which takes a sample every ten seconds, in a thread of the first process.

    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL changes the seconds; a run that is resumed goes on counting. It
    needs psutil, and nvidia-ml-py for NVIDIA's GPUs.
    """

    def __init__(self) -> None:
        self._monitor: SystemMetricsMonitor | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin, where the run is tracked."""
        logger = mlflow_logger(trainer)
        if logger is None or logger.run_id is None or not trainer.is_global_zero:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        uri = str(logger._tracking_uri)
        self._monitor = SystemMetricsMonitor(logger.run_id, resume_logging=True, tracking_uri=uri)
        self._monitor.start()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """End, also where the run was stopped."""
        self._end()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """End: nothing else would be called."""
        self._end()

    def _end(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None


_LONG = 10  # seconds of an epoch from which they are printed without decimals


class Ema(WeightAveraging):
    """Exponential moving average of the weights, which validation, checkpoints and export use.

    The decay grows with the number of steps, min(decay, (1 + n) / (10 + n)), so that short runs are not
    dominated by their first, untrained weights. Steps are counted on the host: Lightning's own update asks
    the device for their number, and so waits for it, once a step.

    Args:
        decay: fraction of the old average that each step keeps, in the long run.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(use_buffers=True)
        self._decay, self._count = decay, 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move the average, which was made before the module was moved, to the module's device."""
        if self._average_model is not None:
            self._average_model.to(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after each step of the optimiser."""
        if trainer.global_step > self._latest_update_step and self._average_model is not None:
            update_average(self._average_model, pl_module, kept_fraction(self._decay, self._count))
            self._count += 1
            self._latest_update_step = trainer.global_step

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the average, and the number of steps in it."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if self._average_model is not None:
            self._count = int(self._average_model.n_averaged)


class SeedEachStep(Callback):
    """Seeds torch from the run's seed, the epoch, the step and the process, for the network's dropout.

    A run that is resumed at any step then has the same dropout as an uninterrupted one. Augmentation needs no
    seeding: its draws are seeded by tile (`tilewise.datasets.loading.draws`).
    """

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed before the step."""
        seed = getattr(getattr(trainer, "datamodule", None), "seed", 0)
        place = [seed, trainer.current_epoch, batch_idx, trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))


class History(Callback):
    """Write `history.csv` in the run's folder: one row an epoch, for plots; a resumed run appends to it."""

    COLUMNS = ("train/loss", "val/loss", "val/accuracy", "val/macro_f1", "val/calibration_error")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's figures."""
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "history.csv"
        first = trainer.current_epoch == 0
        with path.open("w" if first else "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if first:
                writer.writerow(["epoch", *(name.replace("/", "_") for name in self.COLUMNS)])
            metrics = trainer.callback_metrics
            figures = [f"{float(metrics[c]):.5f}" if c in metrics else "" for c in self.COLUMNS]
            writer.writerow([trainer.current_epoch + 1, *figures])


class EpochLines(Callback):
    """Print one line an epoch, for logs, in place of a progress bar."""

    def __init__(self) -> None:
        self._started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the time, also where a run is taken up within an epoch."""
        self._started = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the time."""
        self._started = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the epoch's figures."""
        if not trainer.is_global_zero:
            return
        figures = {k: float(v) for k, v in trainer.progress_bar_metrics.items()}
        text = "  ".join(f"{name} {value:.4f}" for name, value in sorted(figures.items()))
        taken = time.monotonic() - self._started
        seconds = f"{taken:.0f}" if taken >= _LONG else f"{taken:.2f}"
        print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {text}  {seconds} s", flush=True)


def kept_fraction(decay: float, steps: int) -> float:
    """Return the fraction (0-1) of the old average that is kept after `steps` steps; 0 for the first."""
    return min(decay, (1 + steps) / (10 + steps)) if steps else 0.0


def update_average(average: AveragedModel, model: nn.Module, kept: float) -> None:
    """Move every weight and buffer of `average` towards those of `model`; whole numbers are copied."""
    means = [tensor.detach() for tensor in chain(average.module.parameters(), average.module.buffers())]
    values = [tensor.detach() for tensor in chain(model.parameters(), model.buffers())]
    floating = [place for place, mean in enumerate(means) if mean.is_floating_point()]
    torch._foreach_lerp_([means[n] for n in floating], [values[n] for n in floating], 1.0 - kept)
    for mean, value in zip(means, values, strict=True):
        if not mean.is_floating_point():
            mean.copy_(value)
    average.n_averaged += 1


_LAG = 2  # steps after which the host reads a step's flags
_SAVING = 0.05  # fraction of the time that last checkpoints may take
_NAMED = 5  # tiles in the error message; the file beside the checkpoint has all


@dataclass(frozen=True, slots=True)
class _Word:
    """The flags of one step of the optimiser, on their way to the host."""

    step: int
    flags: Tensor  # float32 (2,): broken, asked to stop
    rows: list[Tensor]  # of the step's batches
    arrived: torch.cuda.Event | None

    def read(self) -> tuple[bool, bool]:
        if self.arrived is not None:
            self.arrived.synchronize()
        broken, end = self.flags.tolist()
        return broken > 0, end > 0


class Health(Checkpoint):
    """Save the last checkpoint, and stop a run whose loss is not finite or that receives SIGTERM.

    Lightning's `save_last` only saves together with the best checkpoint, so it can be many epochs old.

    It is a `Checkpoint` so that Lightning calls it after the other callbacks. The task has the attribute
    `broken`, bool (): whether any loss was not finite since fitting began.
    """

    def __init__(self) -> None:
        self._interrupted_by_sigterm, self._due = False, 0.0
        self._words: deque[_Word] = deque()
        self._rows: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen to SIGTERM in Lightning's place, which restores the handlers at the end."""
        self._interrupted_by_sigterm, self._due = False, 0.0
        self._words.clear()
        self._rows.clear()
        loop: Any = trainer.fit_loop.epoch_loop
        loop._broadcast_sigterm_tensor = lambda: None
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self._on_sigterm())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record the rows of the next step."""
        self._rows.append(batch["rows"])

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        """Compute the step's flags, and let the optimiser skip it if its loss is not finite."""
        stop = torch.full((), float(self._interrupted_by_sigterm), device=pl_module.device)
        flags = torch.stack([pl_module.broken.float(), stop])
        if trainer.world_size > 1:
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = flags[0]  # type: ignore[attr-defined]  # as a loss scaler sets it
        self._words.append(_send(trainer.global_step, flags, self._rows))
        self._rows = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the flags that have arrived."""
        lag = 0 if pl_module.device.type == "cpu" else _LAG
        while len(self._words) > lag:
            # Told at an epoch's last step, the run ends after its validation: there is no way back into
            # between them.
            self._look(
                trainer, pl_module, may_end=not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
            )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the flags that are left, and keep the state after the epoch, unless that was done just
        now."""
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

    def _on_sigterm(self) -> None:
        self._interrupted_by_sigterm = True

    def _agreed(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        stop = torch.tensor(float(self._interrupted_by_sigterm), device=pl_module.device)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(stop, op=torch.distributed.ReduceOp.MAX)
        return bool(stop > 0)

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
        raise StoppedError(
            f"stopped by SIGTERM after step {trainer.global_step}; go on with --ckpt_path {last}"
        )


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
        f"the loss of step {word.step} (epoch {trainer.current_epoch + 1}) is not finite; its batch held "
        f"{some} "
        f"(all in {listed}), and {folder.broken} has the weights from before it; look at those tiles, or "
        f"lower "
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
