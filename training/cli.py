"""`tilewise train pretrain`: train a network on tiles without labels, for a training to start from.

The settings are those of training, without what concerns labels and other runs; configs/experiments/masked.yaml is a
whole set.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import click
import yaml
from jsonargparse import Namespace
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

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
_LAST = "last"  # as --ckpt_path: go on where the run's folder holds a last checkpoint, else begin
_RUN_VARIABLE = "TILEWISE_RUN"  # how Lightning's further processes learn the folder that the first one made up


class SaveRunConfig(SaveConfigCallback):
    """Keeps the settings of a run in its folder and in the tracker."""

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Write `config.yaml` when a run fits; later subcommands start from it."""
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
            logger.log_hyperparams({name: content[name] for name in ("data", "model", "ema", "seed_everything")})


class TrainingCLI(LightningCLI):
    """The command line; see the module's description.

    Attributes:
        best: the figure by which the best checkpoint is known, and whether it is the highest (max) or lowest (min).
        told: what the task is told of the data.
        runs: where a run goes that was not told where.
    """

    best: tuple[str, str] = ("val/accuracy", "max")
    told: tuple[str, ...] = ("classes", "band_mean", "band_std", "class_counts")
    runs: Path = RUNS

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the trainer's methods that are subcommands, with the parameters that are no options."""
        taken = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders", "weights_only"}
        return dict.fromkeys(("run", "fit", "validate", "test", "export"), taken)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's folder, the callbacks that every run has, and what the task takes from the data."""
        parser.add_argument(
            "--out",
            type=Path | None,
            default=None,
            help="Folder of the run. Default: a new one in artifacts/runs, or the newest for test and export.",
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
        for name in self.told:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        """Settle what depends on the machine and on the run: precision, folder."""
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
            # What is measured and shipped is measured and shipped in 32 bit.
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
        """Say where everything is."""
        folder = RunFolder(Path(self._get(self.config, "out")))
        click.echo(f"the run is in {folder.root}; {how_to_look(self._tracking())}")
        click.echo(f"serve the model with: TILEWISE_MODEL={folder.model} bentoml serve")

    def _refuse_overwriting(self, folder: RunFolder) -> None:
        """A run must not be lost because its folder was named a second time."""
        if self.subcommand in _FITTING and folder.best.is_file() and not self._get(self.config, "ckpt_path"):
            raise TrainingError(
                f"{folder.root} holds a run already; go on with it by --ckpt_path {folder.last}, or name another --out"
            )

    def _tracking(self) -> Tracking:
        given: Namespace | Tracking = self._get(self.config_init, "tracking")
        return given if isinstance(given, Tracking) else Tracking(**given.as_dict())

    def _quantisation(self) -> Quantisation:
        given: Namespace | Quantisation = self._get(self.config_init, "quantisation")
        return given if isinstance(given, Quantisation) else Quantisation(**given.as_dict())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors that a user can mend are one line and exit status 1."""
    description = "Train, measure and export a tile classifier. Without a subcommand: run."
    with short_errors():
        words = _complete(list(sys.argv[1:] if arguments is None else arguments))
        start(TrainingCLI, ClassificationTask, words, "tilewise train", description)


def start(cli: type[TrainingCLI], task: type[OptimisedModule], words: list[str], prog: str, description: str) -> None:
    """Build task, data and trainer as `words` say, a subcommand first, and do what they ask for."""
    _quieten()
    names = cli.subcommands()
    # Lightning starts further processes by this process's words; a lone subcommand is not among them.
    before = prog.split()[1:] if prog.startswith("tilewise") else prog.split()[3:]
    sys.argv[1:] = [*before, *(words if len(names) > 1 else words[1:])]
    own = {"description": description} if len(names) == 1 else {}  # else each says what its method does
    cli(
        task,
        TileDataModule,
        args=words,
        trainer_class=Trainer,
        # The data module itself parts batches among processes; Lightning's sampler would repeat tiles.
        trainer_defaults={"use_distributed_sampler": False},
        seed_everything_default=0,
        save_config_callback=SaveRunConfig,
        save_config_kwargs={"save_to_log_dir": False},
        auto_configure_optimizers=False,
        parser_kwargs={
            "prog": prog,
            "description": description,
            **{name: {"default_config_files": _DEFAULTS, **own} for name in names},
        },
    )


@contextmanager
def short_errors() -> Iterator[None]:
    """Say what a user can mend in one line and end the process with its status; say how an interrupted run goes on."""
    try:
        yield
    except TilewiseError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print("stopped; go on with --ckpt_path <run>/checkpoints/last.ckpt", file=sys.stderr)
        sys.exit(130)


def _shared_new_run(runs: Path) -> Path:
    """Return the folder of a new run in `runs`, the same in all processes of this run.

    Raises:
        TrainingError: something else than Lightning started several processes, which cannot agree on a name.
    """
    if "LOCAL_RANK" in os.environ and _RUN_VARIABLE in os.environ:  # Lightning started this process
        return Path(os.environ[_RUN_VARIABLE])
    if int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1"))) > 1:
        raise TrainingError("several processes train together and need one folder; name the run's folder with --out")
    os.environ[_RUN_VARIABLE] = str(new_run(runs).root)
    return Path(os.environ[_RUN_VARIABLE])


def _complete(arguments: list[str]) -> list[str]:
    """Return the arguments with `run` where no subcommand was given, and a run's own settings where it has some."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["run", *arguments]
    if arguments[0] in ("validate", "test", "export") and not {"-h", "--help"} & set(arguments):
        settings = _folder_of(arguments).settings
        if settings.is_file():
            return [arguments[0], "--config", str(settings), *arguments[1:]]
    return arguments


def _folder_of(arguments: list[str]) -> RunFolder:
    for place, word in enumerate(arguments):
        if word == "--out" and place + 1 < len(arguments):
            return RunFolder(Path(arguments[place + 1]))
        if word.startswith("--out="):
            return RunFolder(Path(word.removeprefix("--out=")))
    return newest_run()


def _quieten() -> None:
    """Switch off advice that is not meant for users of this command line."""
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
    "Train a network to say what is hidden in tiles, without labels. The options are those of `tilewise train fit` "
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

    def after_fit(self) -> None:
        """Say what may start from it: the best checkpoint, or where nothing was validated the last."""
        folder = RunFolder(Path(self._get(self.config, "out")))
        found = folder.best if folder.best.is_file() else folder.last
        click.echo(f"start a training from it with: tilewise train --model.start_from {found}")


def pretrain(arguments: list[str], prog_name: str) -> None:
    """Pretrain as `arguments` say; errors that a user can mend are one line and exit status 1."""
    with short_errors():
        start(PretrainingCLI, MaskedPretraining, ["fit", *arguments], prog_name, _DESCRIPTION)


TRAIN_COMMANDS = {
    "pretrain": "tilewise.training.cli:pretrain",
    "pseudo-label": "tilewise.training.fit.pseudo_labels:main",
    "leave-out": "tilewise.training.evaluate.leave_out:leave_out",
    "spread": "tilewise.training.evaluate.spread:spread",
    "agreement": "tilewise.training.evaluate.spread:agreement",
}
"""Commands beside Lightning's own; each is imported when it is called."""

_PASSED_ON = {"ignore_unknown_options": True, "help_option_names": []}


@click.command(context_settings=_PASSED_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def train(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Train, measure and export a tile classifier."""
    prog = context.info_name if context.parent is None else f"tilewise {context.info_name}"
    if arguments and arguments[0] in TRAIN_COMMANDS:
        command: click.Command = resolve_name(TRAIN_COMMANDS[arguments[0]])
        command(list(arguments[1:]), prog_name=f"{prog} {arguments[0]}")
    else:
        main(list(arguments))


@click.command(context_settings=_PASSED_ON)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def export(arguments: tuple[str, ...]) -> None:
    """Calibrate a run's best checkpoint and write its model file."""
    main(["export", *arguments])
