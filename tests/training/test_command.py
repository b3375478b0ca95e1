"""`tilewise train pretrain`, run as a user would, and a training that starts from what it left."""

import csv
from pathlib import Path

import pytest
import torch
from processes import train as run
from processes import train_and_terminate

from tilewise.training.cli import main as train
from tilewise.training.cli import pretrain

pytestmark = pytest.mark.slow

SMALL = [
    "--model.backbone=tilewise.models.network.backbones.PatchCNN",
    "--model.backbone.init_args.patch=8",
    "--model.backbone.init_args.widths=[8]",
    "--model.backbone.init_args.depths=[1]",
    "--data.batch_size=24",
    "--trainer.precision=32-true",
    "--trainer.max_epochs=2",
    "--tracking.enabled=false",
]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {name: value for name, value in loaded.items() if name.startswith("classifier.backbone.")}


def test_a_training_starts_from_pretrained_weights(
    pack_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "masked"
    pretrain([*SMALL, f"--data.pack={pack_folder}", f"--out={out}"], "pretrain")
    overrides = capsys.readouterr().out
    assert "epoch 2/2" in overrides
    assert "val/loss" in overrides
    best = out / "checkpoints/best.ckpt"
    assert f"--model.start_from {best}" in overrides
    start = [f"--model.start_from={best}", "--model.optimisation.rate=0"]
    train(["fit", *SMALL, f"--data.pack={pack_folder}", f"--out={tmp_path / 'run'}", *start])
    before, after = weights(best), weights(tmp_path / "run/checkpoints/last.ckpt")
    kernels = [name for name, value in before.items() if value.ndim == 4]
    assert kernels
    assert all(torch.equal(before[name], after[name]) for name in kernels), "at a rate of 0 nothing moves"


def state(out: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(out / "checkpoints/last.ckpt", weights_only=True)[
        "current_model_state"
    ]
    return loaded


def test_it_goes_on_where_it_was_stopped_and_loses_no_run(
    pack_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    settings = [*SMALL, f"--data.pack={pack_folder}"]
    pretrain([*settings, f"--out={whole}"], "pretrain")
    status, output = train_and_terminate("pretrain", *settings, f"--out={parted}", after="epoch 1/2")
    assert status != 0, output
    pretrain([*settings, f"--out={parted}", "--ckpt_path=last"], "pretrain")
    for name, value in state(whole).items():
        torch.testing.assert_close(state(parted)[name], value, rtol=1e-3, atol=1e-5)
    with pytest.raises(SystemExit):
        pretrain([*settings, f"--out={whole}"], "pretrain")
    assert "holds a run already" in capsys.readouterr().err


def test_two_processes_pretrain_as_one_does(pack_folder: Path, tmp_path: Path) -> None:
    settings = [*SMALL, f"--data.pack={pack_folder}", "--model.masking.share=0.5"]
    two = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    done = run("pretrain", *settings, f"--out={tmp_path / 'two'}", *two)
    assert done.returncode == 0, done.stdout + done.stderr
    pretrain([*settings, f"--out={tmp_path / 'one'}"], "pretrain")
    with (tmp_path / "two/history.csv").open() as its, (tmp_path / "one/history.csv").open() as mine:
        for other, row in zip(csv.DictReader(its), csv.DictReader(mine), strict=True):
            assert float(other["val_loss"]) == pytest.approx(float(row["val_loss"]), rel=0.05)


def test_its_help_says_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pretrain(["--help"], "tilewise train pretrain")
    assert "without labels, to reconstruct masked parts of tiles" in " ".join(capsys.readouterr().out.split())


def test_a_network_that_cannot_be_pretrained_is_said_in_one_line(
    pack_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = [
        "--model.backbone=tilewise.models.network.backbones.TorchvisionBackbone",
        "--model.backbone.name=resnet18",
    ]
    with pytest.raises(SystemExit) as stopped:
        pretrain(
            [*SMALL[4:], *network, f"--data.pack={pack_folder}", f"--out={tmp_path / 'run'}"], "pretrain"
        )
    assert stopped.value.code == 1
    assert "error: model.backbone: TorchvisionBackbone has no grid of features" in capsys.readouterr().err
