"""torchgeo's EuroSAT data module and trainer on our tiles, with the network that `train_speed.py` measures.

Run by `benchmarks/train_speed.py` with a Python that has torchgeo; prints images/s of the epochs after the
first.
"""

import argparse
import time
import warnings
from pathlib import Path

import lightning
import torch
from networks import build
from torch import nn
from torchgeo.datamodules import EuroSATDataModule
from torchgeo.trainers import ClassificationTask


class Clock(lightning.Callback):
    """Takes the time from the end of the first epoch to the end of the last."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter() if pl_module.device.type == "cuda" else time.process_time())


class SameNetwork(ClassificationTask):
    """torchgeo's task around our network, which here takes what torchgeo's own preprocessing gives."""

    def configure_models(self) -> None:
        backbone = build(self.hparams["model"])
        self.model = nn.Sequential(backbone, nn.Linear(backbone.features, 10))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--network", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--device", required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    data = EuroSATDataModule(arguments.batch, arguments.workers, root=str(arguments.root))
    clock = Clock()
    trainer = lightning.Trainer(
        accelerator="gpu" if arguments.device == "cuda" else "cpu",
        devices=1,
        precision=arguments.precision,
        max_epochs=arguments.epochs,
        limit_val_batches=1,  # its schedule of the learning rate cannot do without
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    trainer.fit(SameNetwork(model=arguments.network, in_channels=13, num_classes=10), datamodule=data)
    steps = trainer.num_training_batches * (arguments.epochs - 1)
    print(f"images/s {steps * arguments.batch / (clock.ends[-1] - clock.ends[0]):.2f}")


if __name__ == "__main__":
    main()
