"""Two processes on the CPU train as one does: the same losses, each tile counted once, and on with another
number."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from plain_network import PLAIN
from processes import train, train_and_terminate

from tilewise.training.cli import main

pytestmark = pytest.mark.slow

TWO = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
# An even number of tiles for each process: tiles mix in pairs, which are then the pairs of one process.
MIXING = ["--data.augment.mix.cutmix=0.3", "--data.augment.mix.mixup=0.3"]
MIXED = ["--data.batch_size=12", *MIXING, "--data.loader.evaluation_batch=7"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As many threads here as in the processes that are compared with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def options(pack: Path, out: Path, *more: str, epochs: int = 3) -> list[str]:
    return [*PLAIN, *MIXED, f"--data.pack={pack}", f"--out={out}", f"--trainer.max_epochs={epochs}", *more]


def history(out: Path) -> list[dict[str, float]]:
    with (out / "history.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["current_model_state"]
    return loaded


@pytest.fixture(scope="module")
def alone(pack_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    main(["fit", *options(pack_folder, out)])
    return out


def test_two_processes_learn_and_are_measured_as_one_is(
    pack_folder: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "two"
    done = train("run", *options(pack_folder, out, *TWO))
    assert done.returncode == 0, done.stdout + done.stderr
    for mine, its in zip(history(out), history(alone), strict=True):
        assert mine == pytest.approx(its, rel=1e-4)
    for name, value in weights(alone / "checkpoints/last.ckpt").items():
        torch.testing.assert_close(weights(out / "checkpoints/last.ckpt")[name], value, rtol=1e-3, atol=1e-5)
    together = (out / "evaluation/metrics.json").read_text()
    predictions = (out / "evaluation/predictions.csv").read_text()
    assert json.loads(together)["groups"]["all"]["tiles"] == 20
    main(["test", "--out", str(out), "--trainer.devices=1", "--trainer.strategy=auto"])
    assert (out / "evaluation/metrics.json").read_text() == together
    assert (out / "evaluation/predictions.csv").read_text() == predictions
    assert (out / "model.onnx").is_file()


def test_two_processes_told_to_end_go_on_as_one_where_they_stopped(pack_folder: Path, tmp_path: Path) -> None:
    blocks = ["--data.loader.blocks.shards=2", "--data.loader.blocks.tiles=4"]
    more = ["--data.batch_size=4", "--data.loader.store=disk", *blocks]
    out = tmp_path / "two"
    status, output = train_and_terminate(
        "fit", *options(pack_folder, out, *more, *TWO, epochs=4), after="epoch 1/4"
    )
    assert status != 0, output
    assert "stopped by SIGTERM after step" in output
    last = out / "checkpoints/last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    assert 16 <= step < 64
    # A second process changes the order of sums alone, so what one makes of the rest is what one makes of it
    # all.
    main(["fit", *options(pack_folder, tmp_path / "on", *more, f"--ckpt_path={last}", epochs=4)])
    main(["fit", *options(pack_folder, tmp_path / "whole", *more, epochs=4)])
    resumed, whole = (weights(tmp_path / name / "checkpoints/last.ckpt") for name in ("on", "whole"))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-2, atol=1e-4, msg=name)
