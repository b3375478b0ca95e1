"""`tilewise train run|fit|validate|test|export|pretrain` and `tilewise export`: Lightning's command line.

`tilewise.training.__main__` lists all commands of `tilewise train`. Pretraining takes the options of
training, without those for labels and checkpoints of other runs; configs/experiments/masked.yaml is a
complete set.
"""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import yaml
from jsonargparse import Namespace
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from tilewise.datasets.core.console import CONTEXT, FOLDER, one_line_errors, out_option
from tilewise.datasets.core.errors import TilewiseError, TrainingError
from tilewise.datasets.core.locations import CONFIGS
from tilewise.datasets.loading.module import TileDataModule
from tilewise.training.fit.callbacks import Ema, EpochLines, Health, History, SeedEachStep, SystemMetrics
from tilewise.training.fit.masked import MaskedPretraining
from tilewise.training.fit.optimisation import AUTO, OptimisedModule, allow_tf32, best_precision
from tilewise.training.fit.task import ClassificationTask
from tilewise.training.fit.trainer import Trainer
from tilewise.training.settings import PRETRAINING, RUNS, Quantisation, RunFolder, new_run, newest_run
from tilewise.training.tracking import Tracking, how_to_look, log_provenance, make_logger

_DEFAULTS = [str(CONFIGS / f"{name}.yaml") for name in ("data", "model", "trainer")]
_FITTING = ("run", "fit")
_LAST = "last"  # as --ckpt_path: continue from the last checkpoint in the run's folder, if there is one
_RUN_VARIABLE = "TILEWISE_RUN"  # tells Lightning's further processes the folder that the first one chose


class SaveRunConfig(SaveConfigCallback):
    """Save the settings of a run in its folder and in the tracker."""

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Write `config.yaml` when a run is fitted; later subcommands read it."""
        if stage != "fit":
            return
        path = RunFolder(Path(trainer.default_root_dir)).settings
        path.parent.mkdir(parents=True, exist_ok=True)
        content = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        for key in ("config", "ckpt_path", "weights_only", "out"):
            content.pop(key, None)
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        log_provenance(trainer, trainer.datamodule.pack, path)
        for logger in trainer.loggers:
            logger.log_hyperparams(
                {name: content[name] for name in ("data", "model", "ema", "seed_everything")}
            )


class TrainingCLI(LightningCLI):
    """The command line of training.

    Attributes:
        best: the metric that chooses the best checkpoint, and whether the highest (max) or lowest (min) value
            is best.
        linked: attributes of the data that become arguments of the task.
        runs: parent folder of runs without --out.
    """

    best: tuple[str, str] = ("val/accuracy", "max")
    linked: tuple[str, ...] = ("classes", "band_mean", "band_std", "class_counts")
    runs: Path = RUNS

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the trainer's methods that are subcommands, with the parameters that are not options."""
        taken = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders", "weights_only"}
        return dict.fromkeys(("run", "fit", "validate", "test", "export", "average"), taken)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add --out, the callbacks of every run, and the links from data to task."""
        parser.add_argument(
            "--out",
            type=Path | None,
            default=None,
            help="Folder of the run. Default: a new one in artifacts/runs; the newest for test and export.",
        )
        parser.add_class_arguments(Tracking, "tracking")
        parser.add_class_arguments(Quantisation, "quantisation")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.add_lightning_class_args(Ema, "ema")
        figure, mode = self.best
        parser.set_defaults(
            {
                "checkpoint.monitor": figure,
                "checkpoint.mode": mode,
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
                "early_stopping.monitor": figure,
                "early_stopping.mode": mode,
                "early_stopping.patience": 20,
            }
        )
        parser.link_arguments("seed_everything", "data.seed")
        for name in self.linked:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Set what depends on the machine and on the run: precision, folder."""
        config = self.config[self.subcommand]
        fitting = self.subcommand in _FITTING
        config.out = config.out or (_shared_new_run(self.runs) if fitting else newest_run().root)
        self._refuse_overwriting(RunFolder(config.out))
        if config.get("ckpt_path") == _LAST:
            last = RunFolder(config.out).last
            config.ckpt_path = str(last) if last.is_file() else None
        config.trainer.default_root_dir = str(config.out)
        config.checkpoint.dirpath = str(RunFolder(config.out).checkpoints)
        if config.trainer.precision in (None, AUTO):
            # Measurements and exported files are in 32 bit.
            config.trainer.precision = best_precision() if fitting else "32-true"
        allow_tf32(fitting)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the trainer with the tracker's logger."""
        folder = RunFolder(Path(self._get(self.config, "out")))
        fresh = self.subcommand in _FITTING and not self._get(self.config, "ckpt_path")
        logger = make_logger(self._tracking(), folder, fresh) or False
        terminal = sys.stdout.isatty()
        trainer = super().instantiate_trainer(
            logger=logger, enable_progress_bar=terminal, enable_model_summary=terminal, **kwargs
        )
        assert isinstance(trainer, Trainer)  # noqa: S101 - the class that main() names
        trainer.quantisation = self._quantisation()
        always: list[Callback] = [SeedEachStep(), History(), Health()]
        always += [SystemMetrics()] if self._tracking().system_metrics else []
        trainer.callbacks += always if terminal else [*always, EpochLines()]  # type: ignore[attr-defined]
        return trainer

    def after_run(self) -> None:
        """Print where the run is, and how to look at it and serve its model."""
        folder = RunFolder(Path(self._get(self.config, "out")))
        click.echo(f"the run is in {folder.root}; {how_to_look(self._tracking())}")
        click.echo(f"serve the model with: tilewise serve --model {folder.model}")

    def _refuse_overwriting(self, folder: RunFolder) -> None:
        """Refuse a folder that holds a run already."""
        writing = self.subcommand in (*_FITTING, "average")
        if writing and folder.best.is_file() and not self._get(self.config, "ckpt_path"):
            raise TrainingError(
                f"{folder.root} holds a run already; continue it with --ckpt_path {folder.last}, or name "
                f"another --out"
            )

    def _tracking(self) -> Tracking:
        given: Namespace | Tracking = self._get(self.config_init, "tracking")
        return given if isinstance(given, Tracking) else Tracking(**given.as_dict())

    def _quantisation(self) -> Quantisation:
        given: Namespace | Quantisation = self._get(self.config_init, "quantisation")
        return given if isinstance(given, Quantisation) else Quantisation(**given.as_dict())


def main(arguments: list[str], prog_name: str = "tilewise train") -> None:
    """Run the command line; a TilewiseError is one line and exit status 1."""
    description = "Train, measure and export a tile classifier. Without a subcommand: run."
    with short_errors():
        start(TrainingCLI, ClassificationTask, _complete(arguments), prog_name, description)


def start(
    cli: type[TrainingCLI], task: type[OptimisedModule], words: list[str], prog: str, description: str
) -> None:
    """Build task, data and trainer from `words`, and run the subcommand, which is the first word."""
    _quieten()
    known = cli.subcommands()
    # Lightning starts further processes with this argv; the command line of pretraining has no subcommand
    # word.
    before = prog.split()[1:] if prog.startswith("tilewise") else prog.split()[3:]
    sys.argv[1:] = [*before, *(words if len(known) > 1 else words[1:])]
    own = (
        {"description": description} if len(known) == 1 else {}
    )  # else the docstrings of the trainer's methods
    # Each subcommand has hundreds of options, which take long to declare: only those of the one that runs.
    declared = {words[0]: known[words[0]]} if words[0] in known else known
    cli = type(cli.__name__, (cli,), {"subcommands": staticmethod(lambda: declared)})
    cli(
        task,
        TileDataModule,
        args=words,
        trainer_class=Trainer,
        # The data module itself distributes batches to processes; Lightning's sampler would repeat tiles.
        trainer_defaults={"use_distributed_sampler": False},
        seed_everything_default=0,
        save_config_callback=SaveRunConfig,
        save_config_kwargs={"save_to_log_dir": False},
        auto_configure_optimizers=False,
        parser_kwargs={
            "prog": prog,
            "description": description,
            **{name: {"default_config_files": _DEFAULTS, **own} for name in declared},
        },
    )


@contextmanager
def short_errors() -> Iterator[None]:
    """Turn a TilewiseError into one line and its exit status; after Ctrl-C print how to continue the run."""
    try:
        yield
    except TilewiseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print("stopped; continue with --ckpt_path <run>/checkpoints/last.ckpt", file=sys.stderr)
        sys.exit(130)


def _shared_new_run(runs: Path) -> Path:
    """Return the folder of a new run in `runs`, the same in all processes of this run.

    Raises:
        TrainingError: a scheduler started several processes, which cannot agree on a name.
    """
    if "LOCAL_RANK" in os.environ and _RUN_VARIABLE in os.environ:  # Lightning started this process
        return Path(os.environ[_RUN_VARIABLE])
    if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        raise TrainingError(
            "several processes train together and need one folder; name the run's folder with --out"
        )
    os.environ[_RUN_VARIABLE] = str(new_run(runs).root)
    return Path(os.environ[_RUN_VARIABLE])


def _complete(arguments: list[str]) -> list[str]:
    """Return the arguments with the default subcommand `run`, and with the saved settings of an old run."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["run", *arguments]
    if arguments[0] in ("validate", "test", "export") and not {"-h", "--help"} & set(arguments):
        settings = _folder_of(arguments).settings
        if settings.is_file():
            return [arguments[0], "--config", str(settings), *arguments[1:]]
    return arguments


def _folder_of(arguments: list[str]) -> RunFolder:
    for index, word in enumerate(arguments):
        if word == "--out" and index + 1 < len(arguments):
            return RunFolder(Path(arguments[index + 1]))
        if word.startswith("--out="):
            return RunFolder(Path(word.removeprefix("--out=")))
    return newest_run()


def _quieten() -> None:
    """Turn off warnings that are meant for developers of other libraries."""
    for name in (
        "pytorch_lightning.utilities.rank_zero",
        "lightning_fabric.utilities.seed",
        "mlflow",
        "alembic",
    ):
        logging.getLogger(name).setLevel(logging.WARNING)
    advice = (
        ".*does not have many workers.*",
        ".*LightningCLI's args parameter.*",
        ".*isinstance.treespec.*",
        ".*Checkpoint directory.*exists.*",
        ".*smaller than the logging interval.*",
    )
    for text in advice:
        warnings.filterwarnings("ignore", text)


_DESCRIPTION = (
    "Train a network without labels, to reconstruct masked parts of tiles. The options are those of "
    "`tilewise train fit` "
    "(configs/experiments/masked.yaml is a complete set); the best checkpoint is for --model.start_from."
)


class PretrainingCLI(TrainingCLI):
    """The command line of pretraining: that of training, with one subcommand, which is not written."""

    best = ("val/loss", "min")
    linked = ("classes", "band_mean", "band_std")
    runs = PRETRAINING

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the one method of the trainer that pretrains, with the parameters that are not options."""
        return {"fit": TrainingCLI.subcommands()["fit"]}

    def after_fit(self) -> None:
        """Print how to start from the best checkpoint, or from the last where nothing was validated."""
        folder = RunFolder(Path(self._get(self.config, "out")))
        found = folder.best if folder.best.is_file() else folder.last
        click.echo(f"start a training from it with: tilewise train --model.start_from {found}")


def pretrain(arguments: list[str], prog_name: str) -> None:
    """Pretrain a network; a TilewiseError is one line and exit status 1."""
    with short_errors():
        start(PretrainingCLI, MaskedPretraining, ["fit", *arguments], prog_name, _DESCRIPTION)


_PASS_ON = {"ignore_unknown_options": True, "help_option_names": []}


def pass_on(name: str, run: Callable[[list[str], str], None], text: str) -> click.Command:
    """Return a click command that passes its arguments, `--help` among them, and its path on to `run`."""

    @click.command(name, context_settings=_PASS_ON, help=text)
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    @click.pass_context
    def command(context: click.Context, arguments: tuple[str, ...]) -> None:
        run(list(arguments), context.command_path)

    return command


def _lightning(name: str, text: str) -> click.Command:
    def run(arguments: list[str], path: str) -> None:
        main([name, *arguments], path.removesuffix(f" {name}"))

    return pass_on(name, run, text)


run = _lightning("run", "Fit, test and export.")
fit = _lightning("fit", "Fit.")
validate = _lightning("validate", "Measure a run's best checkpoint on the validation split.")
test = _lightning("test", "Measure a run's best checkpoint on the test split.")
export_run = _lightning("export", "Calibrate a run's best checkpoint and write its model file.")
pretrain_command = pass_on("pretrain", pretrain, _DESCRIPTION)
export = pass_on(
    "export", lambda arguments, _: main(["export", *arguments]), "Calibrate a run and write its model file."
)


@click.command("average", context_settings=CONTEXT)
@click.argument("runs", nargs=-1, required=True, type=FOLDER, metavar="RUN...")
@out_option(FOLDER, "Folder of the run to write.", Path("artifacts/runs/average"))
@click.option("--tiles", default=6400, show_default=True, help="Training tiles that statistics are taken on.")
@one_line_errors
def average(runs: tuple[Path, ...], out: Path, tiles: int) -> None:
    """Average the weights of RUNs of one network, and take BatchNorm statistics anew.

    The runs must have begun with the same weights. `--out` is a run like others, for test and export.

    \b
      tilewise train average artifacts/runs/a artifacts/runs/b --out artifacts/runs/mean
      tilewise train test --out artifacts/runs/mean
    """
    first = RunFolder(runs[0]).settings
    if not first.is_file():
        raise TrainingError(f"{runs[0]}: no run is here: {first.name} is missing")
    folders = "[" + ",".join(str(run) for run in runs) + "]"
    main(["average", "--config", str(first), "--out", str(out), "--runs", folders, "--tiles", str(tiles)])
