"""A training that starts from a model file alone, run as a user would."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tilewise.datasets.packs.pack import Pack
from tilewise.models.model_file import INPUT, open_model
from tilewise.models.network.backbones import PatchCNN
from tilewise.models.network.classifier import Classifier
from tilewise.training.cli import main
from tilewise.training.fit.masked import MaskedPretraining
from tilewise.training.fit.transfer import start_from

NETWORK = [
    "--model.backbone=tilewise.models.network.backbones.PatchCNN",
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
    assert (
        f"error: model.start_from: {model_file}: a model file of another network" in capsys.readouterr().err
    )


def test_the_head_of_other_classes_is_left_out_though_they_are_as_many(
    skilled_model: Path, pack: Pack
) -> None:
    known = open_model(skilled_model).metadata.classes
    heads = []
    for classes in (known, tuple(f"my {name}" for name in known)):
        classifier = Classifier(PatchCNN(16, (24, 32), (1, 1)), len(classes), [1.0] * 13, [1.0] * 13)
        drawn = classifier.head.weight.clone()
        start_from(classifier, skilled_model, classes, pack, "model.start_from")
        heads.append(torch.equal(classifier.head.weight, drawn))
    assert heads == [False, True]


def test_the_head_of_pretraining_is_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = MaskedPretraining(["a", "b"], [1.0] * 13, [1.0] * 13, PatchCNN(16, (24, 32), (1, 1)))
    torch.save({"state_dict": task.state_dict()}, tmp_path / "best.ckpt")
    classifier = Classifier(PatchCNN(16, (24, 32), (1, 1)), 2, [1.0] * 13, [1.0] * 13)
    drawn = classifier.head.weight.clone()
    start_from(classifier, tmp_path / "best.ckpt", ("a", "b"), None, "model.start_from")
    assert torch.equal(classifier.head.weight, drawn)
    learned = zip(task.classifier.backbone.parameters(), classifier.backbone.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in learned)


def test_tiles_without_labels_are_refused_where_labels_train(
    pack_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        f"--data.pack={pack_folder}",
        f"--out={tmp_path / 'run'}",
        "--data.train_splits=[train,unlabelled]",
    ]
    with pytest.raises(SystemExit):
        main(["fit", *NETWORK, *words])
    assert "error: data.train_splits: unlabelled tiles have no labels" in capsys.readouterr().err
