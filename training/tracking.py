"""Runs in MLflow: figures, config, data, code, environment, pictures and the model file."""

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import distributions
from pathlib import Path

import click
import pytorch_lightning as pl
from pytorch_lightning.loggers import MLFlowLogger

from tilewise.datasets.core.locations import checkout
from tilewise.datasets.packs.pack import Pack
from tilewise.training.settings import RunFolder

_PROJECT = checkout() or Path()


def code_revision() -> str:
    """Return the git revision of the code, with `-dirty` where tracked files were changed; empty without
    git."""
    revision = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{revision}-dirty" if revision and changed else revision


def dvc_lock_hash() -> str:
    """Return the SHA-256 of `dvc.lock`, which pins the bytes that the pipeline made; empty where there is
    none."""
    path = _PROJECT / "dvc.lock"
    return sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def environment() -> str:
    """Return the installed packages with their versions, one a line, and the platform, as a comment."""
    packages = {f"{d.metadata['Name']}=={d.version}" for d in distributions() if d.metadata["Name"]}
    lines: Sequence[str] = sorted(packages, key=str.lower)
    return "\n".join([f"# Python {platform.python_version()}, {platform.platform()}", *lines]) + "\n"


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=_PROJECT, capture_output=True, text=True, timeout=30, check=False
        )
    except OSError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


_RUN_ID = "mlflow.json"


@dataclass(frozen=True)
class Tracking:
    """Where runs are tracked.

    Attributes:
        enabled: false tracks nothing.
        uri: MLflow's tracking URI: a server (`http://…`) or a SQLite file (`sqlite:///mlflow.db`).
        artifacts: where artifacts go when the store is SQLite; a server decides for itself.
        experiment: the experiment's name.
        run: the run's name; default: the run folder's.
        tags: further tags.
        system_metrics: whether load and memory of processor and GPU are tracked while a run fits.
    """

    enabled: bool = True
    uri: str = "sqlite:///mlflow.db"
    artifacts: Path = Path("mlruns")
    experiment: str = "tilewise"
    run: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    system_metrics: bool = True


tracking_uri_option = click.option(
    "--tracking-uri",
    "uri",
    envvar="MLFLOW_TRACKING_URI",
    show_envvar=True,
    default=Tracking.uri,
    show_default=True,
    help="MLflow's server or SQLite file.",
)


def make_logger(tracking: Tracking, folder: RunFolder, fresh: bool) -> MLFlowLogger | None:
    """Return a logger for the run in `folder`: a new run if `fresh`, else the one that the folder already
    has."""
    if not tracking.enabled:
        return None
    known = folder.root / _RUN_ID
    logger = MLFlowLogger(
        experiment_name=tracking.experiment,
        run_name=tracking.run or folder.root.name,
        tracking_uri=tracking.uri,
        artifact_location=_artifact_location(tracking),
        tags={**tracking.tags, **_provenance_tags()},
        run_id=None if fresh else run_id_of(folder, tracking.uri),
    )
    if logger.run_id:
        folder.root.mkdir(parents=True, exist_ok=True)
        known.write_text(json.dumps({tracking.uri: logger.run_id}) + "\n", encoding="utf-8")
    return logger


def run_id_of(folder: RunFolder, uri: str) -> str | None:
    """Return the id of the run in `folder` in the tracker at `uri`, if it is tracked there."""
    known = folder.root / _RUN_ID
    return alive_run(uri, json.loads(known.read_text("utf-8")).get(uri)) if known.is_file() else None


def how_to_look(tracking: Tracking) -> str:
    """Return the line that shows how to open the tracker's page."""
    if not tracking.enabled:
        return "tracking is off"
    if tracking.uri.startswith("http"):
        return f"runs are at {tracking.uri}"
    page = f"http://127.0.0.1:5000/#/experiments/{experiment_id(tracking)}/runs"
    return f"look at the runs with: mlflow ui --backend-store-uri {tracking.uri} and open {page}"


def experiment_id(tracking: Tracking) -> str:
    """Return the id of the experiment, which is made where it is not there yet."""
    from mlflow.tracking import MlflowClient  # a machine that only fits may have no MLflow

    client = MlflowClient(tracking_uri=tracking.uri)
    found = client.get_experiment_by_name(tracking.experiment)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(tracking.experiment, artifact_location=_artifact_location(tracking)))


def log_provenance(trainer: pl.Trainer, pack: Pack, config: Path) -> None:
    """Log the config, the environment, and what was trained and validated on, to the run, if there is one."""
    logger = mlflow_logger(trainer)
    if logger is None or logger.run_id is None:
        return
    client = logger.experiment
    client.set_tag(logger.run_id, "data_hash", pack.summary.data_hash)
    client.log_text(logger.run_id, environment(), "requirements.txt")
    if config.is_file():
        client.log_artifact(logger.run_id, str(config))
    log_data(trainer, pack, {"train": "training", "val": "validation"})


def log_data(trainer: pl.Trainer, pack: Pack, contexts: dict[str, str]) -> None:
    """Log splits of a pack, each with what it is for, as the run's dataset inputs, if there is a run."""
    logger = mlflow_logger(trainer)
    if logger is None or logger.run_id is None:
        return
    from tilewise.training.logged_model import dataset_inputs  # a machine that only fits may have no MLflow

    logger.experiment.log_inputs(logger.run_id, dataset_inputs(pack, contexts))


def log_model_file(trainer: pl.Trainer, path: Path) -> None:
    """Log a model file, and the INT8 file beside it, as the run's logged model, if there is a run."""
    logger = mlflow_logger(trainer)
    if logger is None or logger.run_id is None:
        return
    from tilewise.models.model_file import open_model
    from tilewise.training.logged_model import log_model

    log_model(logger.experiment, logger.run_id, open_model(path))


def log_results(
    trainer: pl.Trainer, metrics: dict[str, float], files: Sequence[Path] = (), place: str | None = None
) -> None:
    """Log final figures and files to the run, if there is one."""
    logger = mlflow_logger(trainer)
    if logger is None or logger.run_id is None:
        return
    for name, value in metrics.items():
        logger.experiment.log_metric(logger.run_id, name, value)
    for file in files:
        logger.experiment.log_artifact(logger.run_id, str(file), place)


def mlflow_logger(trainer: pl.Trainer) -> MLFlowLogger | None:
    """Return the trainer's MLflow logger, if it has one."""
    return next((logger for logger in trainer.loggers if isinstance(logger, MLFlowLogger)), None)


def _artifact_location(tracking: Tracking) -> str | None:
    """Return where an experiment's artifacts go: said outright for SQLite, since MLflow would otherwise fix
    the folder that the first run was started from."""
    return tracking.artifacts.resolve().as_uri() if tracking.uri.startswith("sqlite:") else None


def _provenance_tags() -> dict[str, str]:
    return {"mlflow.source.git.commit": code_revision(), "dvc_lock_sha256": dvc_lock_hash()}


def alive_run(uri: str, run_id: str | None) -> str | None:
    """Return `run_id` if the store still has that run: a folder may outlive its store."""
    if run_id is None:
        return None
    from mlflow.tracking import MlflowClient  # a machine that only fits may have no MLflow

    found = MlflowClient(tracking_uri=uri)
    try:
        return run_id if found.get_run(run_id).info.lifecycle_stage == "active" else None
    except Exception:  # every store raises its own kind for an unknown run
        return None
