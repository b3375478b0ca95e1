"""Hyperparameter search with Optuna: run trials, report their epochs, prune, resume after an interruption."""

import contextlib
import csv
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import pytorch_lightning as pl
from filelock import FileLock, Timeout
from mlflow.tracking import MlflowClient
from optuna.trial import FrozenTrial, TrialState
from pytorch_lightning.callbacks import Callback
from sqlalchemy.exc import SQLAlchemyError

from tilewise.datasets.core.errors import StoppedError, TrainingError
from tilewise.training.cli import main as train
from tilewise.training.fit.callbacks import interrupt_on_sigterm
from tilewise.training.settings import RunFolder
from tilewise.training.tracking import Tracking, alive_run, experiment_id, run_id_of
from tilewise.training.tuning.space import TuneSettings, Value, as_text, tracking_of, trial_options

METRIC = "val/accuracy"


@dataclass
class Reporting:
    """The running trial.

    Attributes:
        trial: the study's.
        tell: prints a line to the user.
        values: METRIC after each epoch that was reported, by epoch (from 1).
        pruned: whether it was pruned.
        interrupted: whether the user stopped it.
    """

    trial: optuna.Trial
    tell: Callable[[str], None]
    values: dict[int, float] = field(default_factory=dict)
    pruned: bool = False
    interrupted: bool = False

    def report(self, epoch: int, value: float) -> None:
        """Report an epoch once; a resumed trial reports its former epochs again."""
        if epoch not in self.values:
            self.trial.report(value, epoch)
        self.values[epoch] = value


_RUNNING: ContextVar[Reporting | None] = ContextVar("running trial", default=None)


@contextmanager
def reporting(running: Reporting) -> Iterator[None]:
    """Let `ReportEpochs` report to this trial for the duration of the block."""
    token = _RUNNING.set(running)
    try:
        yield
    finally:
        _RUNNING.reset(token)


class ReportEpochs(Callback):
    """Report each epoch to the running trial; do nothing outside a search."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End where SIGTERM came while the trainer was set up, before `tilewise.training.fit.callbacks`
        listens to it."""
        if _RUNNING.get() is not None and trainer.received_sigterm:
            raise StoppedError("stopped by SIGTERM; the same command goes on")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, and end training if the study prunes the trial."""
        running = _RUNNING.get()
        if running is None or METRIC not in trainer.callback_metrics:
            return
        epoch, value = trainer.current_epoch + 1, float(trainer.callback_metrics[METRIC])
        running.report(epoch, value)
        running.tell(
            f"trial {running.trial.number}  epoch {epoch}/{trainer.max_epochs}  {METRIC} {value:.4f}"
        )
        if epoch != trainer.max_epochs and running.trial.should_prune():
            running.pruned = trainer.should_stop = True

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Record whether the user interrupted it: Lightning ends with status 1 for any exception."""
        running = _RUNNING.get()
        if running is not None:
            running.interrupted = isinstance(exception, KeyboardInterrupt)


_PARENT = "mlflow.parentRunId"


class StudyRuns:
    """The MLflow runs of one study: a parent, and a child for each trial; does nothing where tracking is
    off."""

    def __init__(self, tracking: Tracking, study: str, known: str | None) -> None:
        """Continue the parent run `known` if it still exists, else create one."""
        self._tracking = tracking
        self.parent: str | None = None
        if tracking.enabled:
            self._client = MlflowClient(tracking_uri=tracking.uri)
            self.parent = alive_run(tracking.uri, known) or self._begin(study)
            self._client.update_run(self.parent, status="RUNNING")

    def options(self, number: int, name: str) -> list[str]:
        """Return the options that make a trial's run a child of the study's."""
        if self.parent is None:
            return []
        tags = {**self._tracking.tags, _PARENT: self.parent, "trial": str(number)}
        return [f"--tracking.tags={json.dumps(tags)}", f"--tracking.run={name}"]

    def forget_unstarted(self, folder: RunFolder) -> None:
        """Delete the run of a trial that was killed before its first checkpoint: it starts again with a new
        run."""
        run = run_id_of(folder, self._tracking.uri) if self.parent else None
        if run and not folder.last.is_file():
            self._client.delete_run(run)

    def trial_ended(self, folder: RunFolder, state: str, number: int, best: float | None) -> None:
        """Log a trial's final state to its run, and the best value to the study's run."""
        if self.parent is None:
            return
        if run := run_id_of(folder, self._tracking.uri):
            self._client.set_tag(run, "trial_state", state)
        if best is not None:
            self._client.log_metric(self.parent, "best/val/accuracy", best, step=number)

    def end(self, status: str, settings: dict[str, str]) -> None:
        """End the study's run, with the best trial's settings as tags: a later trial may be better."""
        if self.parent is None:
            return
        for name, value in settings.items():
            self._client.set_tag(self.parent, f"best/{name}", value)
        self._client.set_terminated(self.parent, status)

    def _begin(self, study: str) -> str:
        tags = {**self._tracking.tags, "mlflow.runName": f"tune {study}"}
        run = self._client.create_run(experiment_id(self._tracking), tags=tags)
        return str(run.info.run_id)


ENDED = (TrialState.COMPLETE, TrialState.PRUNED)
_MAX_FAILURES = 3  # in a row: then the cause is not the trials' settings
_MAX_ATTEMPTS = 3  # of a trial that kills its process
_CALLBACK = "--trainer.callbacks+=tilewise.training.tuning.study.ReportEpochs"
_SETTINGS, _RUN, _FOLDER, _ATTEMPTS = "settings", "mlflow_run", "folder", "attempts"
_LOCK = "tune.lock"
_USAGE, _INTERRUPTED, _TERMINATED = 2, 130, 143


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """The settings of a search.

    Attributes:
        study: its name.
        storage: Optuna's, e.g. `sqlite:///artifacts/tuning/study.db`.
        folder: of the trials' runs.
        trials: total number of trials.
        settings: search space, sampler and pruner.
        arguments: options of training for all trials.
    """

    study: str
    storage: str
    folder: Path
    trials: int
    settings: TuneSettings
    arguments: tuple[str, ...]


class Search:
    """An open study, with its runs in MLflow.

    Raises:
        TrainingError: the storage cannot be used, or the study was begun with other settings.
    """

    def __init__(self, plan: StudyPlan, tell: Callable[[str], None]) -> None:
        self.plan, self._tell = plan, tell
        self._options = trial_options(plan.settings, plan.arguments)
        tracking = tracking_of(self._options)
        self.study = open_study(plan)
        self._refuse_other_settings()
        self._runs = StudyRuns(tracking, plan.study, self.study.user_attrs.get(_RUN))
        if self._runs.parent:
            self.study.set_user_attr(_RUN, self._runs.parent)

    def run(self) -> None:
        """Run trials until as many as planned have ended.

        Raises:
            TrainingError: several trials fail in a row.
            KeyboardInterrupt, StoppedError: the user or a scheduler stopped it; the next run resumes the
                trial.
        """
        status = "FAILED"
        try:
            with interrupt_on_sigterm():
                self._run_all()
            status = "FINISHED"
        except (KeyboardInterrupt, StoppedError):
            status = "KILLED"
            raise
        finally:
            self._runs.end(status, {name: as_text(value) for name, value in self.best_settings().items()})

    def _run_all(self) -> None:
        with self._study_lock():
            self._requeue_killed_trials()
        failures = 0
        while (well := self._run_next()) is not None:
            failures = 0 if well else failures + 1
            if failures == _MAX_FAILURES:
                raise TrainingError(f"{failures} trials failed in a row; their logs: {self.plan.folder}")

    def ended(self) -> list[FrozenTrial]:
        """Return the trials that ended, complete or pruned, best first."""
        found = [trial for trial in self.study.get_trials(states=ENDED) if trial.value is not None]
        return sorted(
            found, key=lambda trial: (trial.state is not TrialState.COMPLETE, -(trial.value or 0.0))
        )

    def best_settings(self) -> dict[str, Value]:
        """Return the best complete trial's value of each searched option; empty before one is complete."""
        complete = [trial for trial in self.ended() if trial.state is TrialState.COMPLETE]
        return dict(complete[0].params) if complete else {}

    def folder_of(self, trial: FrozenTrial | optuna.Trial) -> RunFolder:
        """Return the folder of a trial's run; a resumed trial has the folder of its first attempt."""
        return RunFolder(self.plan.folder / trial.user_attrs.get(_FOLDER, f"trial-{trial.number:04}"))

    def _begun(self) -> int:
        """Return the number of trials that ended or run, in any process."""
        return len(self.study.get_trials(deepcopy=False, states=(*ENDED, TrialState.RUNNING)))

    def _study_lock(self) -> FileLock:
        """Return the lock under which trials are started and killed ones are searched for."""
        return _lock_of(self.plan.folder)

    def _run_next(self) -> bool | None:
        """Start a trial and run it; return whether it succeeded, None if enough have started."""
        with ExitStack() as held:
            with self._study_lock():  # a trial without its lock counts as killed
                if self._begun() >= self.plan.trials:
                    return None
                trial = self.study.ask()
                folder = self.folder_of(trial)
                held.enter_context(_lock_of(folder.root))
            return self._run_one(trial, folder)

    def _run_one(self, trial: optuna.Trial, folder: RunFolder) -> bool:
        """Run a trial and report its result to the study; return whether it succeeded."""
        trial.set_user_attr(_FOLDER, folder.root.name)
        running = Reporting(trial, self._tell)
        code = self._train(running, folder)
        self._raise_if_stopped(code, running)
        state = TrialState.FAIL if code or not running.values else TrialState.PRUNED
        if state is TrialState.PRUNED and not running.pruned:
            state = TrialState.COMPLETE
        self.study.tell(trial, max(running.values.values()) if state is TrialState.COMPLETE else None, state)
        self._print_end(trial, folder, state, running)
        return state is not TrialState.FAIL

    def _train(self, running: Reporting, folder: RunFolder) -> int:
        """Train with the trial's settings, its output logged to its folder; return the exit status."""
        trial, before = running.trial, list(sys.argv)
        chosen = self.plan.settings.suggest(trial)
        self._tell(f"trial {trial.number}  {words(chosen)}")
        self._runs.forget_unstarted(folder)
        if folder.last.is_file():
            for epoch, value in history(folder).items():
                running.report(epoch, value)
        arguments = [*self._options, *(f"--{name}={as_text(value)}" for name, value in chosen.items())]
        arguments += [*self._runs.options(trial.number, folder.root.name), _CALLBACK]
        with (
            (folder.root / "trial.log").open("a") as log,
            contextlib.redirect_stdout(log),
            reporting(running),
        ):
            try:
                train(["fit", *arguments, f"--out={folder.root}", "--ckpt_path=last"])
            except SystemExit as stop:
                return int(stop.code or 0)
            finally:
                sys.argv[:] = before
        return 0

    def _raise_if_stopped(self, code: int, running: Reporting) -> None:
        if running.interrupted or code == _INTERRUPTED:
            raise KeyboardInterrupt
        if code == _TERMINATED:
            raise StoppedError(f"stopped in trial {running.trial.number}; the same command resumes it")
        if code == _USAGE:
            self.study.tell(running.trial, state=TrialState.FAIL)
            raise TrainingError(
                "training does not know an option; see above, and correct it here or in the search space"
            )

    def _print_end(
        self, trial: optuna.Trial, folder: RunFolder, state: TrialState, running: Reporting
    ) -> None:
        best = self.ended()[0].value if self.best_settings() else None
        self._runs.trial_ended(folder, state.name.lower(), trial.number, best)
        ending = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "given up", TrialState.FAIL: "failed"}[
            state
        ]
        value = f", {METRIC} {max(running.values.values()):.4f}" if running.values else ""
        self._tell(
            f"trial {trial.number}  {ending}{value}; best so far {best:.4f}"
            if best
            else f"trial {trial.number}  {ending}{value}"
        )

    def _requeue_killed_trials(self) -> None:
        """Queue trials again whose process is gone, which shows by the free lock in their folder."""
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            folder, attempt = self.folder_of(trial), trial.user_attrs.get(_ATTEMPTS, 1)
            try:
                with _lock_of(folder.root, timeout=0):
                    self.study.tell(trial.number, state=TrialState.FAIL)
            except Timeout:
                continue
            if attempt < _MAX_ATTEMPTS:
                attributes = {_FOLDER: folder.root.name, _ATTEMPTS: attempt + 1}
                self.study.enqueue_trial(trial.params, user_attrs=attributes)
                self._tell(f"trial {trial.number}  was killed, and is taken up again")

    def _refuse_other_settings(self) -> None:
        """Refuse to continue a study with other settings: its trials are compared with each other."""
        shared = self.plan.settings.model_dump(mode="json", include={"settings", "space"})
        digest = hashlib.sha256(json.dumps([shared, self._options], sort_keys=True).encode()).hexdigest()
        if self.study.user_attrs.get(_SETTINGS, digest) != digest:
            raise TrainingError(
                f"the study {self.plan.study!r} was begun with another search space or other options; use "
                f"those again, "
                "or name another --study"
            )
        self.study.set_user_attr(_SETTINGS, digest)


def _lock_of(folder: Path, timeout: float = -1) -> FileLock:
    """Return the lock of a folder, which is created if missing; it waits for ever by default."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / _LOCK, timeout=timeout)


def open_study(plan: StudyPlan) -> optuna.Study:
    """Open or create the study.

    Raises:
        TrainingError: the storage cannot be used.
    """
    optuna.logging.set_verbosity(logging.WARNING)
    pruning = plan.settings.pruning
    try:
        if plan.storage.startswith("sqlite:///"):
            Path(plan.storage.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        with _lock_of(plan.folder):  # two processes must not create the tables at once
            study = optuna.create_study(
                storage=plan.storage,
                study_name=plan.study,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(pruning.after_trials, pruning.after_epochs),
            )
    except (SQLAlchemyError, OSError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
        raise TrainingError(
            f"{plan.storage}: no storage of Optuna ({why}); name another with --storage"
        ) from error
    # A resumed search must not draw the same values again.
    seed = plan.settings.seed + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=plan.settings.random_trials, seed=seed)
    return study


def history(folder: RunFolder) -> dict[int, float]:
    """Return METRIC after each epoch of a run, by epoch (from 1), as
    `tilewise.training.fit.callbacks.History` kept it."""
    path = folder.root / "history.csv"
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    column = METRIC.replace("/", "_")
    return {int(row["epoch"]): float(row[column]) for row in rows if row.get(column)}


def words(settings: dict[str, Value]) -> str:
    """Return settings in short: the last part of each name, and rounded numbers."""
    shown = {
        name: f"{value:.4g}" if isinstance(value, float) else as_text(value)
        for name, value in settings.items()
    }
    return "  ".join(f"{name.rpartition('.')[2]} {value}" for name, value in shown.items())
