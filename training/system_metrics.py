"""Load and memory of processor and GPU, disk and network, tracked beside a run's figures while it fits."""

from typing import TYPE_CHECKING

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from training.tracking import mlflow_logger

if TYPE_CHECKING:  # a machine that only fits may have no MLflow
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor


class SystemMetrics(Callback):
    """Runs MLflow's own monitor, which takes a sample every ten seconds, in a thread of the first process.

    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL changes the seconds; a run that is resumed goes on counting. It needs
    psutil, and nvidia-ml-py for NVIDIA's GPUs.
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

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """End: nothing else would be called."""
        self._end()

    def _end(self) -> None:
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
