"""`python -m training pretrain`: train a network on tiles without labels, for a training to start from.

The settings are those of training, of which those of labels count for nothing; configs/experiments/masked.yaml is a
whole set.
"""

from pathlib import Path

import click

from training.cli import TrainingCLI, one_line_errors, start
from training.paths import RunFolder
from training.pretraining.masked import MaskedPretraining

_DESCRIPTION = (
    "Train a network to say what is hidden in tiles, without labels: pretrain --config FILE --data.pack PACK, as "
    "for `fit`. The run's best checkpoint is what `python -m training --model.start_from` takes."
)


class PretrainingCLI(TrainingCLI):
    """The command line of pretraining: as that of training, with one subcommand that need not be named."""

    best = ("val/loss", "min")
    told = ("classes", "band_mean", "band_std")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the trainer's one method that pretrains, with the parameters that are no options."""
        return {"fit": TrainingCLI.subcommands()["fit"]}

    def after_fit(self) -> None:
        """Say what may start from it."""
        best = RunFolder(Path(self._get(self.config, "out"))).best
        click.echo(f"start a training from it with: python -m training --model.start_from {best}")


def pretrain(arguments: list[str], prog_name: str) -> None:
    """Pretrain as `arguments` say; errors that a user can mend are one line and exit status 1."""
    with one_line_errors():
        start(PretrainingCLI, MaskedPretraining, ["fit", *arguments], prog_name, _DESCRIPTION)
