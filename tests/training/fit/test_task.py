import math
from itertools import pairwise
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from tilewise.datasets.core.errors import TrainingError
from tilewise.models.network.backbones import ResidualCNN
from tilewise.training.fit.optimisation import Optimisation, warmup_cosine
from tilewise.training.fit.task import ClassificationTask


def test_the_rate_warms_up_and_then_falls_to_its_final_share() -> None:
    options = Optimisation(warmup=0.1, final_rate=0.01)
    factors = [warmup_cosine(100, options, step) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(factors[9:]))
    assert factors[100] == pytest.approx(0.01)


def test_balanced_classes_weigh_rare_ones_more_and_leave_the_mean_at_one() -> None:
    counts = [90, 10]
    task = ClassificationTask(
        ["a", "b"], [1.0] * 13, [1.0] * 13, counts, optimisation=Optimisation(balance_classes=True)
    )
    weights = task.class_weights
    assert weights[1] / weights[0] == pytest.approx(9)
    assert sum(w * c for w, c in zip(weights.tolist(), counts, strict=True)) / 100 == pytest.approx(1.0)


def test_balancing_changes_the_loss_of_a_rare_class() -> None:
    def loss(balance: bool) -> float:
        torch.manual_seed(0)
        optimisation = Optimisation(balance_classes=balance, label_smoothing=0.0)
        task = ClassificationTask(["a", "b"], [1.0] * 13, [1.0] * 13, [90, 10], optimisation=optimisation)
        targets = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        return float(task._loss(torch.tensor([[3.0, 0.0], [3.0, 0.0]]), targets, 0.0))

    assert loss(balance=True) > loss(balance=False)


def test_a_constant_rate_is_what_no_warmup_and_a_full_final_rate_give() -> None:
    options = Optimisation(warmup=0.0, final_rate=1.0)
    assert all(math.isclose(warmup_cosine(50, options, step), 1.0) for step in range(50))


def test_training_can_start_from_the_weights_of_a_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classes, mean, std = ["a", "b"], [1000.0] * 13, [500.0] * 13
    first = ClassificationTask(classes, mean, std, [1, 1], ResidualCNN((8,), (1,), (8,)))
    torch.save({"state_dict": first.state_dict()}, tmp_path / "best.ckpt")
    other_bands = [
        2000.0
    ] * 13  # of another pack: the weights keep the statistics that they were learned with
    second = ClassificationTask(
        classes, other_bands, std, [1, 1], ResidualCNN((8,), (1,), (8,)), start_from=tmp_path / "best.ckpt"
    )
    begin(second)
    tiles = torch.randint(1, 4000, (2, 13, 64, 64)).float()
    assert torch.equal(first.eval()(tiles)[0], second.eval()(tiles)[0])


def test_weights_of_another_network_or_of_none_are_refused(tmp_path: Path) -> None:
    wide = ClassificationTask(["a", "b"], [1.0] * 13, [1.0] * 13, [1, 1], ResidualCNN((16,), (1,), (8,)))
    torch.save({"state_dict": wide.state_dict()}, tmp_path / "wide.ckpt")
    (tmp_path / "broken.ckpt").write_bytes(b"PK")
    cases = {"wide.ckpt": "another network", "none.ckpt": "no such checkpoint", "broken.ckpt": "a broken one"}
    for name, message in cases.items():
        narrow = ClassificationTask(
            ["a", "b"],
            [1.0] * 13,
            [1.0] * 13,
            [1, 1],
            ResidualCNN((8,), (1,), (8,)),
            start_from=tmp_path / name,
        )
        with pytest.raises(TrainingError, match=message):
            begin(narrow)


def begin(task: ClassificationTask) -> None:
    """Do what a trainer does before it fits."""
    task.trainer = pl.Trainer(logger=False, barebones=True)
    task.setup("fit")


def test_weights_of_other_classes_leave_the_head_as_it_was_drawn(tmp_path: Path) -> None:
    first = ClassificationTask(["a", "b"], [1.0] * 13, [1.0] * 13, [1, 1], ResidualCNN((8,), (1,), (8,)))
    torch.save({"state_dict": first.state_dict()}, tmp_path / "best.ckpt")
    classes = ["a", "b", "c"]
    second = ClassificationTask(
        classes,
        [1.0] * 13,
        [1.0] * 13,
        [1] * 3,
        ResidualCNN((8,), (1,), (8,)),
        start_from=tmp_path / "best.ckpt",
    )
    drawn = second.classifier.head.weight.clone()
    begin(second)
    assert torch.equal(second.classifier.head.weight, drawn)
    learned = zip(
        first.classifier.backbone.parameters(), second.classifier.backbone.parameters(), strict=True
    )
    assert all(torch.equal(one, other) for one, other in learned)
