"""How a trial's epochs reach the study: a callback of the trainer, which gives up what lags behind."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import optuna
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from datasets.errors import StoppedError

METRIC = "val/accuracy"


@dataclass
class Reporting:
    """A trial that is running.

    Attributes:
        trial: the study's.
        tell: shows a line to the user.
        values: METRIC after each epoch that was reported, by epoch (from 1).
        pruned: whether it was given up.
        interrupted: whether the user stopped it.
    """

    trial: optuna.Trial
    tell: Callable[[str], None]
    values: dict[int, float] = field(default_factory=dict)
    pruned: bool = False
    interrupted: bool = False

    def report(self, epoch: int, value: float) -> None:
        """Report an epoch once; a trial that was taken up again reports those before anew."""
        if epoch not in self.values:
            self.trial.report(value, epoch)
        self.values[epoch] = value


_RUNNING: ContextVar[Reporting | None] = ContextVar("running trial", default=None)


@contextmanager
def reporting(running: Reporting) -> Iterator[None]:
    """Let `ReportEpochs` report to this trial for the length of the block."""
    token = _RUNNING.set(running)
    try:
        yield
    finally:
        _RUNNING.reset(token)


class ReportEpochs(Callback):
    """Reports each epoch to the trial that is running; outside a search it does nothing."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End where SIGTERM came while the trainer was set up, before `training.health` listens to it."""
        if _RUNNING.get() is not None and trainer.received_sigterm:
            raise StoppedError("stopped by SIGTERM; the same command goes on")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, and end training where the study gives the trial up."""
        running = _RUNNING.get()
        if running is None or METRIC not in trainer.callback_metrics:
            return
        epoch, value = trainer.current_epoch + 1, float(trainer.callback_metrics[METRIC])
        running.report(epoch, value)
        running.tell(f"trial {running.trial.number}  epoch {epoch}/{trainer.max_epochs}  {METRIC} {value:.4f}")
        if epoch != trainer.max_epochs and running.trial.should_prune():
            running.pruned = trainer.should_stop = True

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remember that it was the user: Lightning ends with status 1 whatever stopped it."""
        running = _RUNNING.get()
        if running is not None:
            running.interrupted = isinstance(exception, KeyboardInterrupt)
