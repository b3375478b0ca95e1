"""Training runs side by side, from MLflow."""

from datetime import UTC, datetime
from typing import Any

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from datasets.errors import TrainingError

_FIGURES = ("accuracy", "macro_f1", "calibration_error")


def compare_runs(uri: str, experiment: str | None = None, most: int = 20) -> list[dict[str, Any]]:
    """Return one row a run, newest first: name, when, data, code, test figures, and the settings in which they differ.

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
    return [_row(run, differing) for run in trained]


def _row(run: Run, settings: list[str]) -> dict[str, Any]:
    started = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
    row: dict[str, Any] = {
        "run": run.info.run_name,
        "when": started.isoformat(timespec="minutes").removesuffix("+00:00"),
        "state": run.info.status.lower(),
        "data": run.data.tags.get("data_hash", "")[:12],
        "code": run.data.tags.get("mlflow.source.git.commit", "")[:12],
    }
    for name in _FIGURES:
        for key, value in sorted(run.data.metrics.items()):
            if key.startswith("test/") and key.endswith(f"/{name}"):
                row[key.removeprefix("test/")] = round(value, 4)
    return row | {name: run.data.params.get(name, "") for name in settings}


def _differing(settings: list[dict[str, str]]) -> list[str]:
    """Return the names of settings that are not the same in all runs, without those that name folders."""
    names = sorted({name for each in settings for name in each})
    ours = [name for name in names if not name.endswith(("pack", "/out"))]
    return [name for name in ours if len({each.get(name) for each in settings}) > 1]
