"""`python -m training pretrain`: train a network on tiles without labels, for a training to start from.

The settings are those of training, without what concerns labels and other runs; configs/experiments/masked.yaml is a
whole set.
"""

import sys
from pathlib import Path

import click

from training.cli import TrainingCLI, short_errors, start
from training.paths import PRETRAINING, RunFolder
from training.pretraining.masked import MaskedPretraining

_NAME = "pretrain"
_DESCRIPTION = (
    "Train a network to say what is hidden in tiles, without labels. The options are those of `python -m training fit` "
    "(configs/experiments/masked.yaml has some that work); the best checkpoint is what its --model.start_from takes."
)


class PretrainingCLI(TrainingCLI):
    """The command line of pretraining: as that of training, with one subcommand that need not be named."""

    best = ("val/loss", "min")
    told = ("classes", "band_mean", "band_std")
    runs = PRETRAINING

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the trainer's one method that pretrains, with the parameters that are no options."""
        return {"fit": TrainingCLI.subcommands()["fit"]}

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder, and what Lightning calls further processes with: this command, not `fit`."""
        super().before_instantiate_classes()
        sys.argv[1] = _NAME

    def after_fit(self) -> None:
        """Say what may start from it: the best checkpoint, or where nothing was validated the last."""
        folder = RunFolder(Path(self._get(self.config, "out")))
        found = folder.best if folder.best.is_file() else folder.last
        click.echo(f"start a training from it with: python -m training --model.start_from {found}")


def pretrain(arguments: list[str], prog_name: str) -> None:
    """Pretrain as `arguments` say; errors that a user can mend are one line and exit status 1."""
    with short_errors():
        start(PretrainingCLI, MaskedPretraining, ["fit", *arguments], prog_name, _DESCRIPTION)
