"""A loss that is no number stops the run, keeps the weights from before it, and names the tiles."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from plain_network import PLAIN

from tilewise.datasets.packs.pack import Pack
from tilewise.training.cli import main
from tilewise.training.fit.callbacks import Health

BRIGHT = 17  # a place in the train split


@pytest.fixture(scope="module")
def bright_pack(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic tiles as an array file; one of the train split is far brighter than any other."""
    tiles = pack.fetch(np.arange(len(pack)))
    tiles[pack.rows("train")[BRIGHT]] = 65_535
    path = tmp_path_factory.mktemp("arrays") / "tiles.npz"
    names = np.array(pack.names(np.arange(len(pack))))
    np.savez(path, tiles=tiles, labels=pack.labels, splits=pack.splits, names=names)
    return path


def fit(pack: Path, out: Path, *options: str) -> None:
    main(["fit", *PLAIN, f"--data.pack={pack}", f"--out={out}", "--data.augment.enabled=false", *options])


@pytest.mark.parametrize("more", [[], ["--trainer.accumulate_grad_batches=3"]])
def test_a_loss_that_is_not_finite_stops_with_the_weights_from_before_and_the_tiles_names(
    bright_pack: Path, pack: Pack, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    # Normalised, the bright tile is at the most that there is, 5.3, and the others are below 1.
    breaking = ["--model.backbone.init_args.limit=5", "--trainer.max_epochs=3"]
    with pytest.raises(SystemExit) as stopped:
        fit(bright_pack, tmp_path / "run", *breaking, *more)
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert error.count("\n") == 1
    assert "is not finite; its batch held" in error
    content = json.loads((tmp_path / "run/checkpoints/not-finite.json").read_text())
    name = pack.names(pack.rows("train")[[BRIGHT]])[0]
    assert name in content["tiles"]
    assert len(content["tiles"]) % 10 == 0
    kept = torch.load(tmp_path / "run/checkpoints/not-finite.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    assert all(value.isfinite().all() for value in kept["current_model_state"].values())


def test_the_weights_that_are_kept_are_those_from_before_the_broken_step(
    bright_pack: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        fit(bright_pack, tmp_path / "broken", "--model.backbone.init_args.limit=5", "--trainer.max_epochs=1")
    step = json.loads((tmp_path / "broken/checkpoints/not-finite.json").read_text())["step"]
    assert 0 < step < 7
    every = [
        "--checkpoint.every_n_train_steps=1",
        "--checkpoint.save_top_k=-1",
        "--checkpoint.filename={step}",
    ]
    fit(bright_pack, tmp_path / "sound", "--trainer.max_epochs=1", "--checkpoint.monitor=null", *every)
    sound = torch.load(tmp_path / f"sound/checkpoints/step={step}.ckpt", weights_only=True)[
        "current_model_state"
    ]
    broken = torch.load(tmp_path / "broken/checkpoints/not-finite.ckpt", weights_only=True)[
        "current_model_state"
    ]
    for name, value in sound.items():
        assert torch.equal(value, broken[name]), name


class SlowDisk(TorchCheckpointIO):
    """Takes its time to save, and remembers after how many epochs it did."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.epochs = seconds, list[int]()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        time.sleep(self.seconds)
        self.epochs.append(checkpoint["epoch"])
        super().save_checkpoint(checkpoint, path, storage_options)


class Short(pl.LightningModule):
    """An epoch of a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("broken", torch.zeros((), dtype=torch.bool))

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.weight * 2

    def train_dataloader(self) -> torch.utils.data.DataLoader[Any]:
        return torch.utils.data.DataLoader([{"rows": torch.zeros(1)}])  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.parametrize("end", [{"max_epochs": 12}, {"max_steps": 12}])
def test_where_saving_takes_longer_than_epochs_it_is_left_out_but_for_the_last(
    tmp_path: Path, end: dict[str, int]
) -> None:
    disk = SlowDisk(0.3)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", callbacks=[Health()], plugins=[disk], **quiet, **end
    )
    trainer.fit(Short())
    assert disk.epochs[0] == 0, "a run that is killed early has something to go on from"
    assert len(disk.epochs) < 6
    assert disk.epochs[-1] == 11
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 12
