"""`tilewise train`: the group of training commands; in a checkout `python -m training` is the same."""

from typing import Any

import click

from tilewise.datasets.core.console import CONTEXT, Entry, LazyGroup

_CLI = "tilewise.training.cli"
_RECIPE = "--recipe"
SECTIONS = {
    "Your own classes": {
        f"{_RECIPE} finetune": Entry(
            "tilewise.training.finetune.cli:finetune",
            "Teach a model file the classes of your tiles, in seconds.",
            "train",
        ),
    },
    "Runs (Lightning; options below)": {
        "run": Entry(f"{_CLI}:run", "Fit, test and export: the default.", "train"),
        "fit": Entry(f"{_CLI}:fit", "Fit a network, and keep the best and the last checkpoint.", "train"),
        "validate": Entry(
            f"{_CLI}:validate", "Measure a run's best checkpoint on the validation split.", "train"
        ),
        "test": Entry(f"{_CLI}:test", "Measure a run's best checkpoint on the test split.", "train"),
        "export": Entry(
            f"{_CLI}:export_run", "Calibrate a run's best checkpoint and write its model file.", "train"
        ),
    },
    "From finished runs": {
        "average": Entry(f"{_CLI}:average", "Average the weights of runs of one network.", "train"),
    },
    "Without labels": {
        "pretrain": Entry(f"{_CLI}:pretrain_command", "Pretrain a network on masked tiles.", "train"),
        "pseudo-label": Entry(
            "tilewise.training.fit.pseudo_labels:main",
            "Label tiles by the answers that several models share.",
            "train",
        ),
    },
    "Experiments": {
        "leave-out": Entry(
            "tilewise.training.evaluate.leave_out:leave_out",
            "Measure how well outliers are flagged, by training without a class.",
            "train",
        ),
        "spread": Entry(
            "tilewise.training.evaluate.spread:spread",
            "Show how far runs that differ in their seed differ.",
            "train",
        ),
        "agreement": Entry(
            "tilewise.training.evaluate.spread:agreement",
            "Show how often several model files agree.",
            "train",
        ),
    },
}


class TrainGroup(LazyGroup):
    """The group of training commands: `run` is the default, and Lightning's help follows the group's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Add `run` where no command is given; `--recipe NAME` is a command of two words."""
        words = [
            word
            for each in args
            for word in (each.split("=", 1) if each.startswith(f"{_RECIPE}=") else [each])
        ]
        if _RECIPE in words:
            at = words.index(_RECIPE)
            return super().parse_args(
                ctx, ["--", self._recipe(ctx, words[at + 1 : at + 2]), *words[:at], *words[at + 2 :]]
            )
        if args and args[0] in ("-h", "--help"):
            self._print_help(ctx)
        if not ctx.resilient_parsing and (not args or args[0].startswith("-")):
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def _recipe(self, ctx: click.Context, given: list[str]) -> str:
        """Return the command of a recipe, which `given` names."""
        name = " ".join([_RECIPE, *given])
        if name not in self.entries:
            known = [each.split()[1] for each in self.entries if each.startswith(_RECIPE)]
            raise click.UsageError(f"{name}: there is no such recipe; use {', '.join(known)}", ctx)
        return name

    def _print_help(self, ctx: click.Context) -> None:
        from tilewise.training.cli import main  # Lightning takes seconds to import

        click.echo(f"{self.get_help(ctx)}\n\nOptions of {ctx.command_path}, by Lightning:\n")
        main(["--help"], ctx.command_path)


@click.group(cls=TrainGroup, sections=SECTIONS, context_settings=CONTEXT)
def train(**_: Any) -> None:
    """Train, measure and export a tile classifier.

    \b
      tilewise train --config configs/experiments/demo.yaml --data.pack data/packed --out artifacts/runs/first
      tilewise train fit --data.pack data/packed --trainer.max_epochs 10
      tilewise train test --out artifacts/runs/first
      tilewise train run --help      # every option and its default
      tilewise train --recipe finetune --data tiles
    """


if __name__ == "__main__":
    train(prog_name="python -m training")
