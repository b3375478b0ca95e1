"""A training that starts from a model file alone, run as a user would."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.pack import Pack
from models.modelfile import INPUT, open_model
from training.cli import main

NETWORK = [
    "--model.backbone=models.network.PatchCNN",
    "--model.backbone.init_args.patch=16",
    "--model.backbone.init_args.widths=[24,32]",
    "--model.backbone.init_args.depths=[1,1]",
    "--data.batch_size=24",
    "--trainer.precision=32-true",
    "--trainer.max_epochs=1",
    "--tracking.enabled=false",
]


def fit(pack: Path, out: Path, start: Path) -> None:
    main(["fit", *NETWORK, f"--data.pack={pack}", f"--out={out}", f"--model.start_from={start}"])


def test_training_goes_on_from_a_model_file(
    skilled_model: Path, pack: Pack, pack_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pack.rows("val")
    answers = open_model(skilled_model).session.run(["probabilities"], {INPUT: pack.fetch(rows)})[0].argmax(1)
    skill = float((answers == pack.labels[rows]).mean())
    assert skill > 0.3
    fit(pack_folder, tmp_path / "run", skilled_model)
    after = float(capsys.readouterr().out.split("val/accuracy ")[1].split()[0])
    assert after > skill - 0.15, "one epoch from drawn weights is right about as often as chance"
    state = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert np.isfinite(state["classifier.backbone.blocks.0.0.weight"]).all()


def test_a_file_of_another_network_is_one_line(
    model_file: Path, pack_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        fit(pack_folder, tmp_path / "run", model_file)
    assert stopped.value.code == 1
    assert f"error: model.start_from: {model_file}: a model file of another network" in capsys.readouterr().err
