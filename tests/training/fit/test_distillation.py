"""Distillation: teachers are read from the folders of their runs, and targets become what they answer."""

from pathlib import Path

import pytest
import torch
import yaml

from tilewise.datasets.core.errors import TrainingError
from tilewise.models.network.backbones import PatchCNN
from tilewise.models.network.classifier import SYMMETRIES
from tilewise.training.fit.optimisation import Optimisation
from tilewise.training.fit.task import ClassificationTask
from tilewise.training.fit.transfer import Distillation, Teachers

CLASSES = ["a", "b", "c"]
MEAN, STD = [1000.0] * 13, [500.0] * 13
CPU = torch.device("cpu")


def run_of(folder: Path, seed: int) -> ClassificationTask:
    """Leave the folder of a finished run, and return what was trained in it."""
    torch.manual_seed(seed)
    task = ClassificationTask(CLASSES, MEAN, STD, [1, 1, 1], PatchCNN(8, (8,), (1,)))
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": task.state_dict()}, folder / "checkpoints" / "best.ckpt")
    backbone = {
        "class_path": "tilewise.models.network.backbones.PatchCNN",
        "init_args": {"patch": 8, "widths": [8], "depths": [1]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"backbone": backbone}}))
    return task.eval()


def tiles() -> torch.Tensor:
    return torch.randint(1, 4000, (5, 13, 64, 64), generator=torch.Generator().manual_seed(1)).float()


def test_a_target_is_the_label_and_what_one_teacher_makes_of_the_tile_in_one_of_eight_ways(
    tmp_path: Path,
) -> None:
    first, second = run_of(tmp_path / "first", 1), run_of(tmp_path / "second", 2)
    labels = torch.eye(3)[[0, 1, 2, 0, 1]]
    teachers = Teachers(Distillation([tmp_path / "first", tmp_path / "second"], 0.75), 3, CPU, compile=False)
    with torch.no_grad():
        answers = [task(way(tiles()))[0].softmax(1) for task in (first, second) for way in SYMMETRIES]
    possible = [0.25 * labels + 0.75 * answer for answer in answers]
    met = set()
    for seed in range(120):
        torch.manual_seed(seed)
        target = teachers.blend(tiles(), labels)
        met.add(min(range(16), key=lambda n: float((possible[n] - target).abs().max())))
        assert min(float((each - target).abs().max()) for each in possible) < 1e-5
    assert met == set(range(16)), "all teachers and all ways have their turn"


def test_teachers_learn_nothing_and_are_no_part_of_a_checkpoint(tmp_path: Path) -> None:
    run_of(tmp_path / "first", 1)
    task = ClassificationTask(
        CLASSES,
        MEAN,
        STD,
        [1, 1, 1],
        PatchCNN(8, (8,), (1,)),
        distillation=Distillation([tmp_path / "first"]),
    )
    before = set(task.state_dict())
    task.on_fit_start()
    step = {"tiles": tiles(), "whole": tiles(), "targets": torch.eye(3)[[0, 1, 2, 0, 1]]}
    task.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]  # no trainer is there to log to
    task.training_step(step, 0).backward()
    assert set(task.state_dict()) == before
    assert all(weights.grad is not None for weights in task.classifier.backbone.parameters())


def test_a_teacher_answers_to_whole_tiles_where_the_student_sees_damaged_ones(tmp_path: Path) -> None:
    teacher = run_of(tmp_path / "first", 1)
    exact, taught = Optimisation(label_smoothing=0.0), Distillation([tmp_path / "first"], share=1.0)
    task = ClassificationTask(
        CLASSES, MEAN, STD, [1, 1, 1], PatchCNN(8, (8,), (1,)), exact, distillation=taught
    ).eval()
    task.on_fit_start()
    task.log = lambda *_, **__: None  # type: ignore[method-assign, assignment]  # no trainer is there to log to
    damaged = tiles() * (torch.arange(64) % 3 > 0)
    loss = task.training_step(
        {"tiles": damaged, "whole": tiles(), "targets": torch.eye(3)[[0, 1, 2, 0, 1]]}, 0
    )
    overrides = task(damaged)[0].log_softmax(1)
    possible = [-(teacher(way(tiles()))[0].softmax(1) * overrides).sum(1).mean() for way in SYMMETRIES]
    assert min((loss - each).abs() for each in possible) < 1e-6


@pytest.mark.parametrize(
    "spoil", ["no folder", "no settings", "no checkpoint", "broken", "other classes", "other net"]
)
def test_what_is_no_teacher_is_said_with_its_place(tmp_path: Path, spoil: str) -> None:
    run = tmp_path / "run"
    if spoil != "no folder":
        run_of(run, 1)
    if spoil == "no settings":
        (run / "config.yaml").unlink()
    if spoil == "no checkpoint":
        (run / "checkpoints" / "best.ckpt").unlink()
    if spoil == "broken":
        (run / "checkpoints" / "best.ckpt").write_bytes(b"PK\3\4 no weights")
    if spoil == "other net":
        (run / "config.yaml").write_text(
            yaml.safe_dump({"model": {"backbone": {"class_path": "tilewise.models.network.backbones.None_"}}})
        )
    with pytest.raises(TrainingError, match=r"model\.distillation\.teachers: .*run"):
        Teachers(Distillation([run]), 4 if spoil == "other classes" else 3, CPU, compile=False)


@pytest.mark.parametrize(("teachers", "share"), [([], 0.5), ([Path("run")], 1.5), ([Path("run")], -0.1)])
def test_nobody_and_shares_that_are_none_are_refused(teachers: list[Path], share: float) -> None:
    with pytest.raises(TrainingError, match=r"model\.distillation"):
        Distillation(teachers, share)
