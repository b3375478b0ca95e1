"""Training runs side by side, from MLflow."""

from datetime import UTC, datetime
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from datasets.errors import TrainingError
from training.promotion.registry import NAME, Registry
from training.settings import differing

_FIGURES = ("accuracy", "macro_f1", "calibration_error")


def compare_runs(uri: str, experiment: str | None = None, most: int = 20, model: str = NAME) -> list[dict[str, Any]]:
    """Return one row a run, newest first: what it is, its test figures, and the settings in which the runs differ.

    What it is: name, when, state, data (name and hash), code, and which version of `model` it became, if any.

    Raises:
        TrainingError: there is no such experiment.
    """
    client = MlflowClient(tracking_uri=uri)
    found = [e for e in client.search_experiments() if experiment in (None, e.name)]
    if not found:
        raise TrainingError(f"{uri}: there is no experiment {experiment!r}")
    runs = client.search_runs([e.experiment_id for e in found], order_by=["start_time DESC"], max_results=most)
    trained = [run for run in runs if run.data.params]
    differing = _differing([dict(run.data.params) for run in trained])
    versions = {version.run_id: version.tags.get("semver", "") for version in Registry(uri, model).versions()}
    return [_row(run, versions.get(run.info.run_id, ""), differing) for run in trained]


def _row(run: Run, version: str, settings: list[str]) -> dict[str, Any]:
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    row: dict[str, Any] = {
        "run": run.info.run_name,
        "when": started.isoformat(timespec="minutes").removesuffix("+00:00"),
        "state": run.info.status.lower(),
        "version": version,
        "data": _data(run),
        "code": run.data.tags.get("mlflow.source.git.commit", "")[:12],
    }
    for name in _FIGURES:
        for key, value in sorted(run.data.metrics.items()):
            if key.startswith("test/") and key.endswith(f"/{name}"):
                row[key.removeprefix("test/")] = round(value, 4)
    return row | {name: run.data.params.get(name, "") for name in settings}


def _data(run: Run) -> str:
    """Return the name of the pack that a run was trained on, and the beginning of its hash."""
    hashed = run.data.tags.get("data_hash", "")[:12]
    inputs = run.inputs.dataset_inputs if run.inputs else []
    names = [each.dataset.name for each in inputs if each.dataset.name.endswith("/train")]
    return f"{names[0].removesuffix('/train')} {hashed}" if names else hashed


def _differing(settings: list[dict[str, str]]) -> list[str]:
    """Return the names of settings that are not the same in all runs, without those that name folders."""
    return [name for name in differing(settings) if not name.endswith(("pack", "/out"))] if settings else []
