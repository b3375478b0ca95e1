"""Lightning's trainer for a whole run: fit, then test and export the best checkpoint."""

from pathlib import Path
from typing import Any

import click
import numpy as np
import pytorch_lightning as pl
import torch

from tilewise.datasets.core.errors import TrainingError
from tilewise.datasets.core.tile import DN
from tilewise.datasets.loading.module import TileDataModule
from tilewise.datasets.packs.pack import spread
from tilewise.datasets.quality.suspects import write_predictions
from tilewise.training.evaluate.evaluation import (
    ALL,
    Evaluation,
    as_markdown,
    evaluate,
    views_of,
    write_evaluations,
)
from tilewise.training.fit.task import ClassificationTask
from tilewise.training.settings import Quantisation, RunFolder
from tilewise.training.tracking import log_data, log_model_file, log_results

_CHECKED_TILES = 256  # compared between torch and onnxruntime before a model file gets its name


class Trainer(pl.Trainer):
    """A Lightning trainer whose root folder is the folder of one run.

    Attributes:
        quantisation: options of the INT8 file.
    """

    quantisation = Quantisation()

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(Path(self.default_root_dir))

    def run(
        self, model: ClassificationTask, datamodule: TileDataModule, ckpt_path: str | None = None
    ) -> None:
        """Train, then test and export the best checkpoint.

        Args:
            model: the task.
            datamodule: the data.
            ckpt_path: a checkpoint to resume from.
        """
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        if self.interrupted:
            raise KeyboardInterrupt
        self.test(model, datamodule=datamodule)
        self.export(model, datamodule=datamodule)

    def test(  # type: ignore[override]
        self, model: ClassificationTask, datamodule: TileDataModule, ckpt_path: str | None = None, **_: Any
    ) -> None:
        """Measure a checkpoint, the best one by default, on the test split, by source and set of bands.

        Args:
            model: the task.
            datamodule: the data.
            ckpt_path: another checkpoint than the run's best.
        """
        path = self._load_best(model, ckpt_path)
        super().test(model, datamodule=datamodule, verbose=False)
        if not self.is_global_zero:
            return
        evaluations = _evaluate_groups(model, datamodule)
        files = write_evaluations(evaluations, self.folder.evaluation, str(path), model.classifier.symmetries)
        files.append(self.folder.evaluation / "predictions.csv")
        _write_answers(files[-1], model, datamodule)
        metrics = {k: v for e in evaluations for k, v in e.metrics(datamodule.test_split).items()}
        log_results(self, metrics, files, "evaluation")
        log_data(self, datamodule.pack, {datamodule.test_split: "test"})
        click.echo(f"tested {path} on the split {datamodule.test_split!r}:")
        click.echo(as_markdown(evaluations))

    def average(
        self, model: ClassificationTask, datamodule: TileDataModule, runs: list[Path], tiles: int = 6400
    ) -> None:
        """Average the weights of runs, take BatchNorm statistics anew, and write the result as a run.

        Args:
            model: the task.
            datamodule: the data.
            runs: folders of runs; the last checkpoint of each is taken.
            tiles: training tiles that statistics are taken on.
        """
        from tilewise.training.fit.average import (
            augmented_batches,
            average_checkpoints,
            refresh_statistics,
            write_run,
        )

        folders = [RunFolder(run) for run in runs]
        mean, ancestry = average_checkpoints([folder.last for folder in folders])
        model.load_state_dict(mean)
        counted = refresh_statistics(model.classifier, augmented_batches(datamodule, tiles))
        write_run(self.folder, model.state_dict(), ancestry, folders[0].settings)
        click.echo(f"averaged {len(runs)} runs into {self.folder.best}, statistics of {counted} tiles")

    def export(
        self, model: ClassificationTask, datamodule: TileDataModule, ckpt_path: str | None = None
    ) -> None:
        """Calibrate a checkpoint, the best one by default, and write the model file, in fp32 and in INT8.

        INT8 is written where it costs no more accuracy than the settings of quantisation allow.

        Args:
            model: the task.
            datamodule: the data.
            ckpt_path: another checkpoint than the run's best.
        """
        if not self.is_global_zero:
            return
        # A machine that only fits may have no ONNX.
        from tilewise.models.export.export import export as export_model
        from tilewise.models.model_file import int8_of
        from tilewise.models.model_item import write_model_item
        from tilewise.training.evaluate.quantisation import export_int8
        from tilewise.training.fit.calibrate import calibrate, describe

        path = self._load_best(model, ckpt_path)
        classifier = model.classifier.float().cpu().eval()
        calibration = calibrate(classifier, datamodule, model.classes)
        metadata = describe(model, datamodule, self.folder.root.name, calibration)
        tiles = _some_tiles(datamodule)
        int8_of(self.folder.model).unlink(missing_ok=True)  # it belongs to the former model
        difference = export_model(classifier, metadata, self.folder.model, tiles)
        size = self.folder.model.stat().st_size / 1e6
        click.echo(
            f"exported {path} to {self.folder.model} ({size:.1f} MB, temperature {metadata.temperature:.3f}, "
            f"largest difference from torch {difference:.1e} on {len(tiles)} tiles)"
        )
        _, metrics = export_int8(self.folder.model, datamodule.pack, self.quantisation)
        write_model_item(self.folder.model)
        log_results(self, calibration.metrics | metrics)
        log_model_file(self, self.folder.model)

    def _load_best(self, model: ClassificationTask, ckpt_path: str | None) -> Path:
        """Load the weights of `ckpt_path`, or of the run's best checkpoint, and return its path."""
        path = Path(ckpt_path) if ckpt_path else self.folder.best
        if not path.is_file():
            raise TrainingError(f"{path}: there is no such checkpoint; `tilewise train fit` makes one")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        model.on_load_checkpoint(saved)
        try:
            model.load_state_dict(saved["state_dict"])
        except RuntimeError as error:
            raise TrainingError(f"{path}: a checkpoint of another network than the one configured") from error
        return path


def _write_answers(path: Path, model: ClassificationTask, datamodule: TileDataModule) -> None:
    rows, classes = model.collected.rows.numpy(), model.classes
    sources = datamodule.pack.sources[rows].tolist()
    keys = list(zip(sources, datamodule.pack.names(rows), strict=True))
    labels = [classes[label] for label in model.collected.labels.tolist()]
    write_predictions(path, keys, labels, model.collected.logits(ALL).softmax(1).numpy(), classes)


def _evaluate_groups(model: ClassificationTask, datamodule: TileDataModule) -> list[Evaluation]:
    """Evaluate the collected logits: all tiles together, then each source with each set of bands."""
    collected, pack = model.collected, datamodule.pack
    rows, labels = collected.rows.numpy(), collected.labels
    found = [evaluate(ALL, collected.logits(ALL).softmax(1), labels, model.classes)]
    for source in pack.summary.sources:
        chosen = torch.from_numpy(np.flatnonzero(pack.sources[rows] == source))
        if not len(chosen):
            continue
        for view in views_of(pack.bands(int(rows[chosen[0]]))):
            probabilities = collected.logits(view)[chosen].softmax(1)
            found.append(evaluate(f"{source}/{view}", probabilities, labels[chosen], model.classes))
    return found


def _some_tiles(datamodule: TileDataModule) -> DN:
    """Return up to 256 tiles spread evenly over the pack."""
    return datamodule.pack.fetch(spread(datamodule.pack.rows(), _CHECKED_TILES))
