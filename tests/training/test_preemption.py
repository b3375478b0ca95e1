"""A run that SIGTERM ends, and that is begun again by the same command, ends where an unbroken one does."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from plain_network import PLAIN
from processes import train_and_terminate

from tilewise.training.cli import main

pytestmark = pytest.mark.slow

EPOCHS = 5


def options(pack: Path, out: Path) -> list[str]:
    """A network with dropout, gradients of two batches a step, and the whole of the augmentation."""
    return [
        "fit",
        *PLAIN,
        f"--data.pack={pack}",
        f"--out={out}",
        f"--trainer.max_epochs={EPOCHS}",
        "--model.backbone.init_args.dropout=0.3",
        "--data.batch_size=2",
        "--trainer.accumulate_grad_batches=2",
        "--ckpt_path=last",
    ]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As many threads here as in the process that is compared with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_terminated_run_goes_on_in_the_middle_of_an_epoch_as_if_nothing_had_been(
    pack_folder: Path, tmp_path: Path
) -> None:
    broken = options(pack_folder, tmp_path / "broken")
    status, output = train_and_terminate(*broken, after="epoch 2/")
    assert status == 143, output
    assert "stopped by SIGTERM after step" in output
    assert "Traceback" not in output
    last = tmp_path / "broken/checkpoints/last.ckpt"
    stopped = torch.load(last, weights_only=True)
    assert 2 * 18 <= stopped["global_step"] < EPOCHS * 18
    for out in ("broken", "whole"):
        main(options(pack_folder, tmp_path / out))
    resumed, whole = (
        torch.load(tmp_path / out / "checkpoints/last.ckpt", weights_only=True) for out in ("broken", "whole")
    )
    assert resumed["global_step"] == whole["global_step"] == EPOCHS * 18
    for state in ("state_dict", "current_model_state"):
        for name, value in whole[state].items():
            assert torch.equal(resumed[state][name], value), name
