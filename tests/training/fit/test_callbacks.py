"""What goes on around steps: the average of weights, and seeds that make a resumed run the same run."""

import copy
import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tilewise.training.fit.callbacks import Ema, EpochLines, SeedEachStep, kept_fraction, update_average


def test_the_average_follows_early_steps_and_smooths_late_ones() -> None:
    assert kept_fraction(0.999, 0) == 0
    assert kept_fraction(0.999, 1) == pytest.approx(2 / 11)
    assert kept_fraction(0.999, 10**6) == 0.999


def test_weights_are_averaged_and_whole_numbers_are_copied() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = AveragedModel(model, use_buffers=True)
    old = copy.deepcopy(dict(average.module.state_dict()))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    update_average(average, model, kept=0.75)
    for name, value in average.module.state_dict().items():
        expected = old[name] + (1 if name.endswith("num_batches_tracked") else 0.25)
        torch.testing.assert_close(value, expected)
    assert int(average.n_averaged) == 1


def test_an_average_does_not_ask_the_device_for_a_value() -> None:
    with torch.device("meta"):  # whose tensors have no values to ask for
        model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = AveragedModel(model, use_buffers=True).to("meta")
    update_average(average, model, kept=kept_fraction(0.999, 5))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        average.update_parameters(model)  # torch's own way does


class Walker(pl.LightningModule):
    """Its weight is the number of steps; it draws a number in each."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.drawn: list[float] = []

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        self.drawn.append(float(torch.rand(())))
        return -self.weight

    def train_dataloader(self) -> torch.utils.data.DataLoader[int]:
        return torch.utils.data.DataLoader(range(6))  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def walk(folder: Path, **options: object) -> Walker:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accelerator": "cpu",
    }
    walker = Walker()
    pl.Trainer(default_root_dir=folder, callbacks=[SeedEachStep(), Ema()], **quiet, **options).fit(walker)  # type: ignore[arg-type]
    return walker


def test_the_weights_after_training_are_the_average_over_the_optimisers_steps(tmp_path: Path) -> None:
    for accumulate in (1, 2):
        walker = walk(tmp_path, max_epochs=1, accumulate_grad_batches=accumulate, enable_checkpointing=False)
        expected = 0.0
        for step in range(6 // accumulate):
            kept = kept_fraction(0.999, step)
            expected = kept * expected + (1 - kept) * (step + 1)
        assert walker.weight.item() == pytest.approx(expected)


def test_each_step_draws_its_own_numbers_and_the_same_again(tmp_path: Path) -> None:
    first = walk(tmp_path, max_epochs=2, enable_checkpointing=False).drawn
    torch.rand(7)
    again = walk(tmp_path, max_epochs=2, enable_checkpointing=False).drawn
    assert first == again
    assert len(set(first)) == 12


def test_a_line_says_an_epoch_of_a_moment_to_the_hundredth_of_a_second(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    pl.Trainer(
        default_root_dir=tmp_path, accelerator="cpu", max_epochs=2, callbacks=[EpochLines()], **quiet
    ).fit(Walker())  # type: ignore[arg-type]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert all(re.search(r"  \d\.\d\d s$", line) for line in lines), lines
